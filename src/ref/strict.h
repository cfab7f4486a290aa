/*
 * The reference with the bits of the strict kernels: floats, and the arithmetic of cl/strict_math.cl, in the order that
 * cl/strict.cl, strict_pool.cl and strict_score.cl have. Otherwise as the functions of ref.h and score.h of the same
 * names.
 */
#ifndef REF_STRICT_H
#define REF_STRICT_H

#include "ref/ref.h"
#include "ref/score.h"

dcm_status ref_linear_strict(const ref_linear_args *args, int threads);
void ref_kv_store_strict(const ref_pool *pool, uint32_t layer, const float *qkv, uint32_t heads, uint32_t n,
                         const uint32_t *slots, const float *key_rot, int threads);
dcm_status ref_attention_strict(const ref_pool *pool, uint32_t layer, const ref_range *ranges, uint32_t n_ranges,
                                const float *q, uint32_t heads, float *out, int threads);
void ref_merge_gather_strict(const ref_pool *pool, const ref_merges *merges, float *x, int threads);
void ref_merge_apply_strict(const ref_pool *pool, const ref_merges *merges, ref_merge_mode mode, float weight,
                            const float *head, int threads);
void ref_merge_score_strict(const ref_pool *pool, const ref_merges *merges, const ref_score *score,
                            dcm_merge_choice *seen, int threads);

/* Operations one at a time, for finding out which of them a compiler does not keep to. */
typedef enum strict_try {
    STRICT_TRY_MUL_ADD, /* two roundings */
    STRICT_TRY_FMA,     /* one */
    STRICT_TRY_DIVIDE,
    STRICT_TRY_SQRT,
    STRICT_TRY_HALF, /* to half precision and back */
    STRICT_TRY_EXP,
    STRICT_TRY_SILU,
    STRICT_TRY_ELU,
    STRICT_TRY_SUM, /* of 40 products */
    STRICT_TRIES
} strict_try;

enum { STRICT_TRY_READS = 40 }; /* numbers from each address on */

/* The result for *a, *b and *c. */
float ref_strict_try(strict_try what, const float *a, const float *b, const float *c);

#endif
