/* Products of many vectors on every device: an engine has the same bits for any number; only the user chooses one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/memory.h"
#include "device/tuning.h"
#include "ops/open.h"
#include "ops/ops_cl.h"
#include "ops/tune_cl.h"
#include "support/fixture.h"

enum { ROWS = 135 /* an odd number of tiles */, COLS = 512, MOST = 130 };

static char folder[64];
static time_t late;    /* seconds that the clock is ahead */
static bool slow_read; /* the next read takes an hour */
/* Waiting for the device takes 1 s with "clblast" chosen in it, 8 s else, and nothing else takes time. */
static tuning *timed;
static struct timespec stopped; /* when that began */

/* The linker gives these names. */
cl_int __real_clEnqueueReadBuffer(cl_command_queue queue, cl_mem from, cl_bool wait, size_t offset, size_t size,
                                  void *to, cl_uint n_events, const cl_event *events, cl_event *event);
cl_int __wrap_clEnqueueReadBuffer(cl_command_queue queue, cl_mem from, cl_bool wait, size_t offset, size_t size,
                                  void *to, cl_uint n_events, const cl_event *events, cl_event *event);

cl_int __wrap_clEnqueueReadBuffer(cl_command_queue queue, cl_mem from, cl_bool wait, size_t offset, size_t size,
                                  void *to, cl_uint n_events, const cl_event *events, cl_event *event)
{
    late += slow_read ? 3600 : 0;
    slow_read = false;
    return __real_clEnqueueReadBuffer(queue, from, wait, offset, size, to, n_events, events, event);
}

cl_int __real_clFinish(cl_command_queue queue);
cl_int __wrap_clFinish(cl_command_queue queue);

cl_int __wrap_clFinish(cl_command_queue queue)
{
    if (timed)
        late += strcmp(tuning_text(timed, TUNE_MANY), "clblast") ? 8 : 1;
    return __real_clFinish(queue);
}

int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    const int failed = __real_clock_gettime(clock, now);
    if (timed)
        *now = stopped;
    now->tv_sec += late;
    return failed;
}

static void time_by(tuning *times)
{
    assert_int_equal(__real_clock_gettime(CLOCK_MONOTONIC, &stopped), 0);
    timed = times;
}

static int begin(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/dcm-test-many-XXXXXX");
    return !mkdtemp(folder) || setenv("DCM_CACHE", folder, 1);
}

static int end(void **state)
{
    char command[96];
    (void)state;
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

/* Call `run` with the back end of each device, opened as by any program, in the group shape. */
static void each_device(void (*run)(backend *))
{
    cldev_entry *entries = NULL;
    size_t count = 0;
    assert_int_equal(cldev_list(&entries, &count), DCM_OK);
    for (size_t i = 0; i < count; i++) {
        char name[32];
        dcm_device *device = NULL;
        snprintf(name, sizeof name, "%u.%u", entries[i].platform, entries[i].index);
        assert_int_equal(dcm_device_open(&device, &(dcm_device_params){.name = name}), DCM_OK);
        clop_set_shape(device->ops, CLOP_SHAPE_GROUP);
        if (clop_device(device->ops)->limits.max_work_group >= 256)
            run(device->ops);
        dcm_device_close(&device);
    }
    mem_free(&entries);
}

static matrix *make_matrix(backend *b, quant_type type)
{
    uint64_t rng = 1;
    matrix *w = NULL;
    void *data = fx_weights(type, ROWS, COLS, 0.3, &rng);
    assert_int_equal(b->ops->matrix_new(b, type, ROWS, COLS, data, &w), DCM_OK);
    free(data);
    return w;
}

static void product(backend *b, const matrix *w, const float *x, uint32_t n, float *y)
{
    buffer *in = NULL, *out = NULL;
    assert_int_equal(b->ops->buffer_new(b, (size_t)n * COLS * 4, MEM_SCRATCH, &in), DCM_OK);
    assert_int_equal(b->ops->buffer_new(b, (size_t)n * ROWS * 4, MEM_SCRATCH, &out), DCM_OK);
    assert_int_equal(b->ops->write(in, 0, x, (size_t)n * COLS * 4), DCM_OK);
    const linear_args args = {.w = w, .n = n, .many = true, .x = in, .y = out, .ldy = ROWS};
    assert_int_equal(b->ops->linear(b, &args), DCM_OK);
    assert_int_equal(b->ops->read(out, 0, y, (size_t)n * ROWS * 4), DCM_OK);
    buffer_free(&in);
    buffer_free(&out);
}

static void same_bits(backend *b)
{
    static const uint32_t numbers[] = {1, 2, 17, 64, 65, 129};
    static const clop_many engines[] = {CLOP_MANY_GROUP, CLOP_MANY_MMA, CLOP_MANY_CLBLAST, CLOP_MANY_WIDE};
    static float x[MOST * COLS], whole[MOST * ROWS], y[MOST * ROWS];
    uint64_t rng = 2;
    matrix *w = make_matrix(b, QUANT_Q4_1);
    fx_fill(x, MOST, COLS, FX_NORMAL, &rng);
    for (size_t e = 0; e < sizeof engines / sizeof *engines; e++) {
        if (engines[e] == CLOP_MANY_MMA && !cldev_has(clop_device(b), CLDEV_MMA))
            continue;
        clop_set_many(b, engines[e]);
        product(b, w, x, MOST, whole);
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
            product(b, w, x, numbers[i], y);
            assert_memory_equal(y, whole, numbers[i] * ROWS * sizeof *y);
        }
    }
    matrix_free(&w);
}

/* Nor do how many tokens and tiles an item takes at a time, which the tuner and the width of registers decide. */
static void same_bits_of_panels(backend *b)
{
    static float x[MOST * COLS], first[MOST * ROWS], y[MOST * ROWS];
    cldev_limits *l = &clop_device(b)->limits;
    const uint32_t width = l->vector_floats;
    tuning *t = &clop_tuned_of(b)->tuning;
    const tuning kept = *t;
    uint64_t rng = 4;
    fx_fill(x, MOST, COLS, FX_NORMAL, &rng);
    clop_set_many(b, CLOP_MANY_WIDE);
    matrix *w = make_matrix(b, QUANT_Q4_1);
    product(b, w, x, MOST, first);
    for (l->vector_floats = 8; l->vector_floats <= 16; l->vector_floats += 8)
        for (const char *const *panel = tuning_choices[TUNE_PANEL].value; *panel; panel++) {
            assert_true(tuning_set(t, TUNE_PANEL, *panel, TUNING_MEASURED));
            product(b, w, x, MOST, y);
            assert_memory_equal(y, first, sizeof y);
        }
    l->vector_floats = width;
    *t = kept;
    matrix_free(&w);
}

static void dense(backend *b, buffer *w, buffer *bias, const float *x, uint32_t n, float *y)
{
    buffer *in = fx_make_plain(b, "x", x, (size_t)n * COLS * 4, 4), *out = NULL;
    assert_int_equal(b->ops->buffer_new(b, (size_t)n * ROWS * 4, MEM_SCRATCH, &out), DCM_OK);
    const dense_args args = {.x = in, .w = w, .bias = bias, .y = out, .n = n, .in = COLS, .out = ROWS, .act = ACT_ELU};
    assert_int_equal(b->ops->dense(b, &args), DCM_OK);
    assert_int_equal(b->ops->read(out, 0, y, (size_t)n * ROWS * 4), DCM_OK);
    buffer_free(&in);
    buffer_free(&out);
}

/* Nor do those of the merge MLP's products. */
static void same_dense_bits(backend *b)
{
    static const uint32_t numbers[] = {1, 15, 16, 64};
    static float x[MOST * COLS], w[ROWS * COLS], whole[MOST * ROWS], y[MOST * ROWS];
    uint64_t rng = 3;
    fx_fill(x, MOST, COLS, FX_NORMAL, &rng);
    fx_fill(w, ROWS, COLS, FX_NORMAL, &rng);
    buffer *weights = fx_make_plain(b, "w", w, sizeof w, 4), *bias = fx_make_plain(b, "bias", x, ROWS * 4, 4);
    dense(b, weights, bias, x, MOST, whole);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        dense(b, weights, bias, x, numbers[i], y);
        assert_memory_equal(y, whole, numbers[i] * ROWS * sizeof *y);
    }
    buffer_free(&weights);
    buffer_free(&bias);
}

static void bits(void **state)
{
    (void)state;
    each_device(same_dense_bits);
    each_device(same_bits);
    each_device(same_bits_of_panels);
}

static void assert_default(backend *b)
{
    const cldev_limits *l = &clop_device(b)->limits;
    const tuning *t = &clop_tuned_of(b)->tuning;
    char path[4096];
    tune_engine(b);
    assert_int_equal(t->choice[TUNE_MANY].origin, TUNING_DEFAULT);
    assert_string_equal(tuning_text(t, TUNE_MANY), cldev_has(clop_device(b), CLDEV_MMA) ? "mma" : "group");
    assert_int_equal(tuning_path(l, path, sizeof path, false), DCM_OK);
    assert_int_not_equal(access(path, F_OK), 0);
}

/* Measure with the clock of `times` (see timed), NULL: the real one. Rows that were measured. */
static size_t measure(backend *b, bool engines, tuning *times)
{
    dcm_tuning_row *rows = NULL;
    size_t count = SIZE_MAX;
    time_by(times);
    assert_int_equal(tune_measure(b, engines, &rows, &count), DCM_OK);
    time_by(NULL);
    mem_free(&rows);
    return count;
}

/* The family's default and no file, after products and after measuring what changes no bit, whatever is fast. */
static void keep_default(backend *b)
{
    static const quant_type types[] = {QUANT_F16, QUANT_Q4_1};
    static float x[MOST * COLS], y[MOST * ROWS];
    time_by(&clop_tuned_of(b)->tuning);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        matrix *w = make_matrix(b, types[i]);
        product(b, w, x, MOST, y);
        matrix_free(&w);
        assert_default(b);
    }
    assert_int_equal(measure(b, false, timed), 0);
    assert_default(b);
}

static void nobody_asked(void **state)
{
    (void)state;
    each_device(keep_default);
}

/* A default that had not its whole turn stays: neither does another take its place, nor is that a failure. */
static void run_out_of_time(backend *b)
{
    dcm_tuning_row *rows = NULL;
    size_t count = 0, skipped = 0;
    assert_int_equal(cldev_probe_tiers(clop_device(b)), DCM_OK); /* or the slow read is a probe's */
    slow_read = true;
    assert_int_equal(tune_measure(b, true, &rows, &count), DCM_OK);
    assert_false(slow_read);
    for (size_t i = 0; i < count; i++) {
        assert_false(rows[i].chosen);
        skipped += !strcmp(rows[i].status, "skipped");
    }
    assert_true(count > 2);
    assert_int_equal(skipped, count - 1);
    mem_free(&rows);
    assert_default(b);
}

static void no_time(void **state)
{
    (void)state;
    each_device(run_out_of_time);
}

/* The fastest is used, and kept for later starts; measuring the rest again leaves it. */
static void choose_fastest(backend *b)
{
    const cldev_limits *l = &clop_device(b)->limits;
    clop_tuned *tuned = clop_tuned_of(b);
    tuning later;
    measure(b, true, &tuned->tuning);
    assert_int_equal(tune_engine(b), CLOP_MANY_CLBLAST);
    assert_int_equal(tuned->tuning.choice[TUNE_MANY].origin, TUNING_MEASURED);
    tuning_defaults(l, &later);
    tuning_load(l, &later);
    assert_int_equal(later.choice[TUNE_MANY].origin, TUNING_FILE);
    assert_string_equal(tuning_text(&later, TUNE_MANY), "clblast");
    measure(b, false, NULL);
    assert_int_equal(tune_engine(b), CLOP_MANY_CLBLAST);
}

static void asked(void **state)
{
    (void)state;
    each_device(choose_fastest);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(bits, begin, end), cmocka_unit_test_setup_teardown(nobody_asked, begin, end),
        cmocka_unit_test_setup_teardown(no_time, begin, end), cmocka_unit_test_setup_teardown(asked, begin, end)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
