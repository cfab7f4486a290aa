#include "ops/tune_cl.h"

#include <dcm/log.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "device/tuning.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    GROUP_ITEMS = 256, /* of the kernels of the product of many vectors */
    ROUNDS = 9,
    SAMPLES = 512,                               /* results that are compared */
    ROWS_MAX = 2 * TUNE_CHOICES * TUNING_VALUES, /* of what is reported */
    WHOLE_MS = 15000,
    FIRST_MS = 1000 /* measuring at first need begins nothing later than this */
};

static const double WORTH = 0.95; /* of the default's time: what is hardly faster is not worth another choice */

/* A product of random numbers. */
typedef struct trial_shape {
    quant_type type;
    uint32_t rows, cols, n;
    bool many;
} trial_shape;

typedef struct trial {
    trial_shape shape;
    unsigned char *data;
    float *host_x, *host_y;
    matrix *w;
    buffer *x, *y;
} trial;

/* What is measured so far. */
typedef struct tuner {
    backend *b;
    dcm_tuning_row *row;
    size_t count;
    uint64_t begin, limit_ms;
} tuner;

/* ---- One product ---- */

static void put_half(unsigned char *to, float x)
{
    const uint16_t half = float_to_half(x);
    memcpy(to, &half, sizeof half);
}

/* Random blocks: any bytes are quants, but scales and floats must be numbers of a decent size. */
static void fill_weights(quant_type type, unsigned char *data, size_t blocks)
{
    const size_t bytes = quant_get(type)->bytes, scale = type == QUANT_Q6_K ? 208 : 0;
    const bool two = type == QUANT_Q4_1 || type == QUANT_Q4_K || type == QUANT_Q5_K;
    uint64_t rng = 1;
    for (size_t i = 0; i < blocks; i++, data += bytes) {
        const float x = (float)rng_uniform(&rng) - 0.5f;
        for (size_t k = 0; k < bytes; k++)
            data[k] = (unsigned char)(rng_next(&rng) >> 56);
        if (type == QUANT_F32 || type == QUANT_BF16)
            memcpy(data, (const unsigned char *)&x + 4 - bytes, bytes);
        else
            put_half(data + scale, x / 64);
        if (two)
            put_half(data + 2, x / 32);
    }
}

static void trial_close(trial *t)
{
    matrix_free(&t->w);
    buffer_free(&t->x);
    buffer_free(&t->y);
    mem_free(&t->data);
    mem_free(&t->host_x);
    mem_free(&t->host_y);
}

static dcm_status trial_open(backend *b, const trial_shape *s, trial *t)
{
    const size_t row_bytes = quant_row_bytes(s->type, s->cols), x_items = (size_t)s->n * s->cols;
    uint64_t rng = 2;
    dcm_status status;
    *t = (trial){.shape = *s};
    DCM_TRY(status, fail, mem_new(&t->data, s->rows, row_bytes, "weights to measure with"));
    DCM_TRY(status, fail, mem_new(&t->host_x, x_items, sizeof(float), "vectors to measure with"));
    DCM_TRY(status, fail, mem_new(&t->host_y, (size_t)s->n * s->rows, sizeof(float), "results of a measurement"));
    fill_weights(s->type, t->data, s->rows * row_bytes / quant_get(s->type)->bytes);
    for (size_t i = 0; i < x_items; i++)
        t->host_x[i] = (float)rng_uniform(&rng) - 0.5f;
    DCM_TRY(status, fail, cl_matrix_new(b, s->type, s->rows, s->cols, t->data, &t->w));
    DCM_TRY(status, fail, clop_buffer_new(b, x_items * sizeof(float), MEM_SCRATCH, &t->x));
    DCM_TRY(status, fail, clop_buffer_new(b, (size_t)s->n * s->rows * sizeof(float), MEM_SCRATCH, &t->y));
    DCM_TRY(status, fail, clop_write(t->x, 0, t->host_x, x_items * sizeof(float)));
    return DCM_OK;
fail:
    trial_close(t);
    return status;
}

/* Largest error of some results, as a part of what float sums can lose; infinite for what is no number. */
static dcm_status trial_error(const trial *t, double *worst)
{
    const trial_shape *s = &t->shape;
    const size_t row_bytes = quant_row_bytes(s->type, s->cols);
    uint64_t rng = 3;
    float *w = NULL;
    const dcm_status status = mem_new(&w, s->cols, sizeof *w, "a row of weights");
    if (status != DCM_OK)
        return status;
    *worst = 0;
    for (int i = 0; i < SAMPLES; i++) {
        const size_t row = rng_next(&rng) % s->rows, token = rng_next(&rng) % s->n;
        double sum = 0, terms = 0;
        quant_to_float(s->type, t->data + row * row_bytes, w, s->cols);
        for (uint32_t k = 0; k < s->cols; k++) {
            const double term = (double)w[k] * t->host_x[token * s->cols + k];
            sum += term;
            terms += fabs(term);
        }
        const double error = fabs(t->host_y[token * s->rows + row] - sum) / ((s->cols + 8) * 0x1p-24 * terms + FLT_MIN);
        if (!(error <= *worst))
            *worst = isnan(error) ? INFINITY : error;
    }
    mem_free(&w);
    return status;
}

static linear_args trial_args(const trial *t)
{
    const trial_shape *s = &t->shape;
    return (linear_args){.w = t->w, .n = s->n, .many = s->many, .x = t->x, .y = t->y, .ldy = s->rows};
}

/* Compute once, over NaN, and compare. */
static dcm_status trial_check(backend *b, const trial *t, double *error)
{
    const linear_args args = trial_args(t);
    const size_t bytes = (size_t)t->shape.n * t->shape.rows * sizeof(float);
    dcm_status status;
    memset(t->host_y, 0xff, bytes);
    DCM_TRY(status, fail, clop_write(t->y, 0, t->host_y, bytes));
    DCM_TRY(status, fail, cl_linear(b, &args));
    DCM_TRY(status, fail, b->ops->read(t->y, 0, t->host_y, bytes));
    status = trial_error(t, error);
fail:
    return status;
}

static dcm_status trial_time(backend *b, const trial *t, double *us)
{
    const linear_args args = trial_args(t);
    const uint64_t begin = clock_ns();
    dcm_status status;
    DCM_TRY(status, fail, cl_linear(b, &args));
    DCM_TRY(status, fail, b->ops->sync(b));
    *us = (double)(clock_ns() - begin) * 1e-3;
fail:
    return status;
}

/* ---- One choice ---- */

static bool many_wide(backend *b) { return clop_wide(b) || clop_device(b)->limits.max_work_group < GROUP_ITEMS; }

static bool eligible(backend *b, tuning_what what, const char *value)
{
    if (what != TUNE_MANY)
        return clop_wide(b);
    if (many_wide(b))
        return !strcmp(value, "wide");
    if (clop_device(b)->limits.tiers_on & 1u << CLDEV_MMA)
        return !strcmp(value, "mma");
    return strcmp(value, "wide") != 0 && (cldev_has(clop_device(b), CLDEV_MMA) || strcmp(value, "mma") != 0);
}

static uint64_t elapsed_ms(const tuner *t) { return (clock_ns() - t->begin) / 1000000; }

/* The values that the device can take, the default first. */
static size_t list_values(backend *b, tuning_what what, const char **values)
{
    tuning standard;
    size_t count = 0;
    tuning_defaults(&clop_device(b)->limits, &standard);
    const char *usual = tuning_text(&standard, what);
    if (eligible(b, what, usual))
        values[count++] = usual;
    for (int i = 0; i < TUNING_VALUES && tuning_choices[what].value[i]; i++)
        if (strcmp(tuning_choices[what].value[i], usual) && eligible(b, what, tuning_choices[what].value[i]))
            values[count++] = tuning_choices[what].value[i];
    return count;
}

/* Build and check with one value: a row that can be timed, or says why not. */
static dcm_tuning_row check_value(const tuner *t, tuning_what what, const char *value, const trial *trial)
{
    const trial_shape *s = &trial->shape;
    dcm_tuning_row row = {.choice = tuning_choices[what].name, .value = value, .status = "ok"};
    snprintf(row.what, sizeof row.what, "%s %ux%u, %u vectors", quant_get(s->type)->name, s->rows, s->cols, s->n);
    tuning_set(&clop_tuned_of(t->b)->tuning, what, value, TUNING_MEASURED);
    if (elapsed_ms(t) > t->limit_ms) {
        row.status = "skipped";
    } else if (trial_check(t->b, trial, &row.error) != DCM_OK) {
        dcm_log(DCM_LOG_INFO, "%s %s: %s", row.choice, value, dcm_error());
        row.status = "failed";
    } else if (!(row.error <= 1)) {
        row.status = "wrong";
    }
    return row;
}

static int compare_doubles(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median times of what is good, by turns, so that a busy or quiet moment of the machine meets all alike. */
static void time_rows(const tuner *t, tuning_what what, const trial *trials, size_t n_trials, dcm_tuning_row *row,
                      size_t count)
{
    double us[ROWS_MAX][ROUNDS];
    int rounds = 0;
    for (; rounds < ROUNDS && (rounds == 0 || elapsed_ms(t) <= t->limit_ms); rounds++)
        for (size_t i = 0; i < count; i++) {
            tuning_set(&clop_tuned_of(t->b)->tuning, what, row[i].value, TUNING_MEASURED);
            if (!strcmp(row[i].status, "ok") && trial_time(t->b, &trials[i % n_trials], &us[i][rounds]) != DCM_OK)
                row[i].status = "failed";
        }
    for (size_t i = 0; i < count; i++)
        if (!strcmp(row[i].status, "ok")) {
            qsort(us[i], (size_t)rounds, sizeof us[i][0], compare_doubles);
            row[i].us = us[i][rounds / 2];
        }
}

/* Time of a value over its rows; infinite where one of them is not good. */
static double time_of(const dcm_tuning_row *row, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += strcmp(row[i].status, "ok") ? INFINITY : row[i].us;
    return sum;
}

/* Try all values of a choice; leave the best set. DCM_ERR_DEVICE where none works. */
static dcm_status choose(tuner *t, tuning_what what, const trial *trials, size_t n_trials)
{
    const char *values[TUNING_VALUES];
    const size_t count = list_values(t->b, what, values);
    dcm_tuning_row *const row = t->row + t->count;
    size_t best = 0;
    for (size_t i = 0; i < count * n_trials; i++)
        row[i] = check_value(t, what, values[i / n_trials], &trials[i % n_trials]);
    t->count += count * n_trials;
    time_rows(t, what, trials, n_trials, row, count * n_trials);
    for (size_t v = 1; v < count; v++)
        if (time_of(row + v * n_trials, n_trials) < time_of(row + best * n_trials, n_trials) * (best ? 1 : WORTH))
            best = v;
    if (isinf(time_of(row + best * n_trials, n_trials)))
        return dcm_fail(DCM_ERR_DEVICE, "%s: no value of \"%s\" works", clop_device(t->b)->limits.name,
                        tuning_choices[what].name);
    tuning_set(&clop_tuned_of(t->b)->tuning, what, values[best], TUNING_MEASURED);
    for (size_t i = 0; i < n_trials; i++)
        row[best * n_trials + i].chosen = true;
    return DCM_OK;
}

/* Make the products, try the choice on them. */
static dcm_status tune_choice(tuner *t, tuning_what what, const trial_shape *shapes, size_t count)
{
    trial trials[2] = {0};
    const char *values[TUNING_VALUES];
    dcm_status status = DCM_OK;
    if (list_values(t->b, what, values) < 2)
        return status;
    for (size_t i = 0; i < count && status == DCM_OK; i++)
        status = trial_open(t->b, &shapes[i], &trials[i]);
    if (status == DCM_OK)
        status = choose(t, what, trials, count);
    for (size_t i = 0; i < count; i++)
        trial_close(&trials[i]);
    return status;
}

/* ---- All ---- */

static const trial_shape many_shapes[] = {{QUANT_F16, 4096, 2048, 256, true}, {QUANT_Q4_1, 2048, 2048, 256, true}};
static const trial_shape panel_shapes[] = {{QUANT_F16, 1024, 1024, 96, true}};
static const trial_shape share_shapes[] = {{QUANT_F16, 8192, 1024, 1, false}};

dcm_status tune_all(backend *b, dcm_tuning_row **rows, size_t *count)
{
    tuner t = {.b = b, .begin = clock_ns(), .limit_ms = WHOLE_MS};
    dcm_status status;
    *rows = NULL;
    *count = 0;
    clop_tuned_of(b)->decided = true;
    DCM_TRY(status, fail, mem_new(&t.row, ROWS_MAX, sizeof *t.row, "what was measured"));
    DCM_TRY(status, fail, tune_choice(&t, TUNE_MANY, many_shapes, 2));
    DCM_TRY(status, fail, tune_choice(&t, TUNE_PANEL, panel_shapes, 1));
    DCM_TRY(status, fail, tune_choice(&t, TUNE_SHARES, share_shapes, 1));
    tuning_store(&clop_device(b)->limits, &clop_tuned_of(b)->tuning);
    *rows = t.row;
    *count = t.count;
    return DCM_OK;
fail:
    mem_free(&t.row);
    return status;
}

/*
 * Decide by measurement; false where that cannot be. It is kept where all values had their turn: else the next start
 * measures again, which need not build what was built here.
 */
static bool measure_many(backend *b, quant_type type)
{
    const trial_shape shape = {type, 2048, 2048, 256, true};
    const tuning before = clop_tuned_of(b)->tuning;
    bool whole = true;
    tuner t = {.b = b, .begin = clock_ns(), .limit_ms = FIRST_MS};
    dcm_status status = mem_new(&t.row, ROWS_MAX, sizeof *t.row, "what was measured");
    if (status == DCM_OK)
        status = tune_choice(&t, TUNE_MANY, &shape, 1);
    for (size_t i = 0; i < t.count; i++) {
        dcm_log(DCM_LOG_INFO, "products of many vectors by %s: %.1f us, %s (%.2f s)", t.row[i].value, t.row[i].us,
                t.row[i].chosen ? "chosen" : t.row[i].status, (double)elapsed_ms(&t) * 1e-3);
        whole = whole && strcmp(t.row[i].status, "skipped") != 0;
    }
    if (status != DCM_OK)
        clop_tuned_of(b)->tuning = before;
    else if (whole)
        tuning_store(&clop_device(b)->limits, &clop_tuned_of(b)->tuning);
    mem_free(&t.row);
    return status == DCM_OK;
}

dcm_status tune_many(backend *b, quant_type type, clop_many *engine)
{
    clop_tuned *tuned = clop_tuned_of(b);
    const char *values[TUNING_VALUES];
    *engine = CLOP_MANY_WIDE;
    if (many_wide(b))
        return DCM_OK;
    if (tuned->many == CLOP_MANY_AUTO && !tuned->decided) {
        const bool open = tuned->tuning.choice[TUNE_MANY].origin == TUNING_DEFAULT;
        tuned->decided = true; /* measuring comes back here */
        if (!(list_values(b, TUNE_MANY, values) > 1 && open && tuned->measure && measure_many(b, type)) &&
            !eligible(b, TUNE_MANY, tuning_text(&tuned->tuning, TUNE_MANY)))
            tuning_set(&tuned->tuning, TUNE_MANY, values[0], TUNING_DEFAULT);
    }
    *engine = tuned->many ? tuned->many : (clop_many)(CLOP_MANY_WIDE + tuned->tuning.choice[TUNE_MANY].value);
    return DCM_OK;
}

void tune_begin(backend *b)
{
    clop_tuned *tuned = clop_tuned_of(b);
    tuning_load(&clop_device(b)->limits, &tuned->tuning);
    tuned->measure = true;
}

size_t tune_list(backend *b, dcm_tuning_choice *out)
{
    static const char *const origins[] = {"default", "file", "measured"};
    const clop_tuned *tuned = clop_tuned_of(b);
    size_t count = 0;
    for (int what = 0; what < TUNE_CHOICES; what++) {
        const tuning_choice *c = &tuning_choices[what];
        const int origin = tuned->tuning.choice[what].origin;
        const bool open = what == TUNE_MANY && !many_wide(b) && !tuned->decided && origin == TUNING_DEFAULT;
        if (what == TUNE_MANY || clop_wide(b))
            out[count++] = (dcm_tuning_choice){c->name, tuning_text(&tuned->tuning, (tuning_what)what),
                                               open ? "open" : origins[origin], c->about};
    }
    return count;
}
