/* Models of random weights: the same every time, of the size that their shape says, and refused where it makes no
 * sense.
 */
#include <dcm/dcm.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const dcm_model_info shape = {
    .name = "small", .layers = 3, .hidden = 64, .heads = 4, .kv_heads = 2, .ffn = 96, .vocab = 300, .tied = true};

static dcm_device *device;

static int setup(void **state)
{
    (void)state;
    assert_int_equal(dcm_device_open(&device, &(dcm_device_params){.name = "ref", .threads = 1}), DCM_OK);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    dcm_device_close(&device);
    return 0;
}

static dcm_model *open_model(const dcm_model_info *what, dcm_weights weights)
{
    dcm_model *model;
    if (dcm_model_synthetic(&model, device, what, weights) != DCM_OK)
        fail_msg("%s", dcm_error());
    return model;
}

/* Logits after a few tokens. */
static float *logits_of(const dcm_model_info *what, dcm_weights weights)
{
    static const int32_t tokens[] = {5, 299, 0, 17, 5};
    float *logits = malloc(what->vocab * sizeof *logits);
    dcm_model *model = open_model(what, weights);
    dcm_session *session;
    assert_int_equal(dcm_session_open(&session, model, &(dcm_cache_params){.kind = DCM_CACHE_FULL}), DCM_OK);
    assert_int_equal(dcm_session_feed(session, tokens, 5, logits), DCM_OK);
    dcm_session_close(&session);
    dcm_model_close(&model);
    return logits;
}

static void test_answers(void **state)
{
    (void)state;
    for (int weights = DCM_WEIGHTS_F16; weights <= DCM_WEIGHTS_Q4_1; weights++) {
        float *a = logits_of(&shape, (dcm_weights)weights), *b = logits_of(&shape, (dcm_weights)weights);
        double sum = 0, squares = 0;
        assert_memory_equal(a, b, shape.vocab * sizeof *a);
        for (uint32_t i = 0; i < shape.vocab; i++) {
            assert_true(isfinite(a[i]));
            sum += a[i];
            squares += (double)a[i] * a[i];
        }
        /* Unit-sized rows of 64 against weights of deviation 0.02: 0.16. */
        const double mean = sum / shape.vocab, deviation = sqrt(squares / shape.vocab - mean * mean);
        assert_true(deviation > 0.1 && deviation < 0.25);
        assert_true(fabs(mean) < 0.05);
        free(a);
        free(b);
    }
}

/* More layers, or an output matrix of its own: other weights take part. */
static void test_parts_differ(void **state)
{
    (void)state;
    dcm_model_info deeper = shape, untied = shape;
    deeper.layers++;
    untied.tied = false;
    float *plain = logits_of(&shape, DCM_WEIGHTS_F16), *a = logits_of(&deeper, DCM_WEIGHTS_F16);
    float *b = logits_of(&untied, DCM_WEIGHTS_F16);
    assert_memory_not_equal(plain, a, shape.vocab * sizeof *a);
    assert_memory_not_equal(plain, b, shape.vocab * sizeof *b);
    free(plain);
    free(a);
    free(b);
}

static void test_sizes(void **state)
{
    (void)state;
    static const double bytes[] = {2, 34 / 32.0, 20 / 32.0}; /* of an element */
    for (int weights = DCM_WEIGHTS_F16; weights <= DCM_WEIGHTS_Q4_1; weights++)
        for (int tied = 0; tied < 2; tied++) {
            dcm_model_info what = shape, got;
            what.tied = tied;
            dcm_model *model = open_model(&what, (dcm_weights)weights);
            dcm_model_get_info(model, &got);
            const double embedding = 300 * 64, layer = 128 * 64 + 64 * 64 + 192 * 64 + 64 * 96;
            const double norms = (1 + 2 * 3) * 64 * 4, step = (embedding + 3 * layer) * bytes[weights] + norms;
            assert_int_equal(got.step_bytes, (size_t)step);
            assert_int_equal(got.weight_bytes, (size_t)(step + (tied ? 0 : embedding * bytes[weights])));
            assert_int_equal(got.tied, tied);
            assert_int_equal(got.head_dim, 16);
            assert_string_equal(got.name, "small");
            assert_string_equal(got.arch, "llama");
            dcm_model_close(&model);
            assert_null(model);
        }
}

static void test_refused(void **state)
{
    (void)state;
    dcm_model_info wrong[12];
    for (size_t i = 0; i < 12; i++)
        wrong[i] = shape;
    wrong[0].layers = 0;
    wrong[1].layers = 1025;
    wrong[2].hidden = 0;
    wrong[3].hidden = 68; /* 17 a head */
    wrong[4].hidden = 66; /* not a multiple of heads */
    wrong[5].heads = 0;
    wrong[6].kv_heads = 3;
    wrong[7].kv_heads = 8;
    wrong[8].ffn = 95; /* no multiple of a block */
    wrong[9].vocab = 0;
    wrong[10].hidden = 2048; /* 512 a head */
    wrong[11].ffn = UINT32_MAX;
    for (size_t i = 0; i < 12; i++) {
        dcm_model *model = (dcm_model *)&wrong;
        assert_int_equal(dcm_model_synthetic(&model, device, &wrong[i], DCM_WEIGHTS_Q8_0), DCM_ERR_USAGE);
        assert_null(model);
        assert_non_null(strstr(dcm_error(), "shape:"));
    }
}

/* The peak is counted from what the device holds when it is reset. */
static void test_peak(void **state)
{
    (void)state;
    dcm_model *large, *model = open_model(&shape, DCM_WEIGHTS_F16);
    dcm_model_info wide = shape;
    dcm_session *session;
    dcm_session_stats stats;
    wide.vocab = 30000;
    large = open_model(&wide, DCM_WEIGHTS_F16);
    dcm_model_close(&large);
    assert_int_equal(dcm_session_open(&session, model, NULL), DCM_OK);
    dcm_session_get_stats(session, &stats);
    assert_true(stats.peak_bytes > 30000 * 64 * 2);
    dcm_device_reset_peak(device);
    dcm_session_get_stats(session, &stats);
    assert_true(stats.peak_bytes >= stats.weight_bytes && stats.peak_bytes < 1000000);
    dcm_session_close(&session);
    dcm_model_close(&model);
}

/* Nothing for the reference; for an OpenCL device what dcm_device_try finds, however busy the machine is. */
static void test_read_speed(void **state)
{
    (void)state;
    dcm_device *best;
    dcm_device_info info;
    double gb_s = -1;
    assert_int_equal(dcm_device_read_speed(device, 0, &gb_s), DCM_OK);
    assert_true(gb_s == 0);
    assert_int_equal(dcm_device_open(&best, NULL), DCM_OK);
    dcm_device_get_info(best, &info);
    /* Of one byte, a window is the least that every work-item can share; more than there is becomes what there is. */
    static const size_t bytes[] = {0, 1, 10000000, SIZE_MAX};
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        assert_int_equal(dcm_device_read_speed(best, bytes[i], &gb_s), DCM_OK);
        assert_true(info.is_ref ? gb_s == 0 : gb_s > 0.01 && gb_s < 50000);
    }
    dcm_device_close(&best);
    /* It takes no more than the limit leaves, and says so where that is nothing. */
    for (size_t limit = (size_t)8 << 20; !info.is_ref && limit >= (size_t)1 << 20; limit /= 8) {
        assert_int_equal(dcm_device_open(&best, &(dcm_device_params){.max_memory = limit}), DCM_OK);
        assert_int_equal(dcm_device_read_speed(best, 0, &gb_s), limit > (size_t)1 << 20 ? DCM_OK : DCM_ERR_MEMORY);
        dcm_device_close(&best);
    }
}

/* A limit that the weights pass: an error, and nothing is left behind that would count against the next model. */
static void test_no_memory(void **state)
{
    (void)state;
    dcm_device *small;
    dcm_model *model;
    assert_int_equal(dcm_device_open(&small, &(dcm_device_params){.name = "ref", .threads = 1, .max_memory = 100000}),
                     DCM_OK);
    assert_int_equal(dcm_model_synthetic(&model, small, &shape, DCM_WEIGHTS_F16), DCM_ERR_MEMORY);
    assert_null(model);
    assert_int_equal(dcm_model_synthetic(&model, small, &shape, DCM_WEIGHTS_Q4_1), DCM_OK);
    dcm_model_close(&model);
    dcm_device_close(&small);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),    cmocka_unit_test(test_parts_differ), cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_refused),    cmocka_unit_test(test_peak),         cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_read_speed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
