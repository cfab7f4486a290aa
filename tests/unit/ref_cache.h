/* A small cache on the reference back end, and the back end as a test's set-up. Included behind cmocka.h. */
#ifndef REF_CACHE_H
#define REF_CACHE_H

#include "cache/cache.h"

enum { PAIRS = 4 };
static const double frequency[PAIRS] = {1.0, 0.1, 0.01, 0.001};
static const dcm_model_info shape = {.layers = 2, .kv_heads = 1, .heads = 2, .head_dim = 8, .hidden = 16, .vocab = 8};

static backend *ref;

static int setup(void **state)
{
    (void)state;
    return (int)backend_ref_open(&ref, 1, 0);
}

static int teardown(void **state)
{
    (void)state;
    assert_int_equal(ref->memory.total, 0);
    backend_close(&ref);
    return 0;
}

static void open_cache(cache *c, const dcm_cache_params *given)
{
    dcm_cache_params params;
    assert_int_equal(cache_check_params(&params, given), DCM_OK);
    const rope turn = {ROPE_HALF, PAIRS, frequency};
    assert_int_equal(cache_open(c, ref, &shape, &params, turn), DCM_OK);
}

#endif
