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
    WHOLE_MS = 15000
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
    uint64_t begin;
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
    return strcmp(value, "wide") != 0 && (strcmp(value, "mma") != 0 || cldev_has(clop_device(b), CLDEV_MMA));
}

static bool time_is_over(const tuner *t) { return (clock_ns() - t->begin) / 1000000 > WHOLE_MS; }

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
    if (time_is_over(t)) {
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
    for (; rounds < ROUNDS && (rounds == 0 || !time_is_over(t)); rounds++)
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

/*
 * Try all values of a choice and set the best; none where the time was over before the default had its turn.
 * DCM_ERR_DEVICE where none works.
 */
static dcm_status choose(tuner *t, tuning_what what, const trial *trials, size_t n_trials)
{
    const char *values[TUNING_VALUES];
    const size_t count = list_values(t->b, what, values);
    tuning *const tuning = &clop_tuned_of(t->b)->tuning, before = *tuning;
    dcm_tuning_row *const row = t->row + t->count;
    size_t best = 0;
    for (size_t i = 0; i < count * n_trials; i++)
        row[i] = check_value(t, what, values[i / n_trials], &trials[i % n_trials]);
    t->count += count * n_trials;
    time_rows(t, what, trials, n_trials, row, count * n_trials);
    for (size_t v = 1; v < count; v++)
        if (time_of(row + v * n_trials, n_trials) < time_of(row + best * n_trials, n_trials) * (best ? 1 : WORTH))
            best = v;
    *tuning = before;
    if (!strcmp(row[n_trials - 1].status, "skipped"))
        return DCM_OK;
    if (isinf(time_of(row + best * n_trials, n_trials)))
        return dcm_fail(DCM_ERR_DEVICE, "%s: no value of \"%s\" works", clop_device(t->b)->limits.name,
                        tuning_choices[what].name);
    tuning_set(tuning, what, values[best], TUNING_MEASURED);
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

static bool any_chosen(const tuner *t)
{
    size_t i = 0;
    while (i < t->count && !t->row[i].chosen)
        i++;
    return i < t->count;
}

dcm_status tune_measure(backend *b, bool engines, dcm_tuning_row **rows, size_t *count)
{
    tuner t = {.b = b, .begin = clock_ns()};
    dcm_status status;
    *rows = NULL;
    *count = 0;
    DCM_TRY(status, fail, mem_new(&t.row, ROWS_MAX, sizeof *t.row, "what was measured"));
    DCM_TRY(status, fail, tune_choice(&t, TUNE_PANEL, panel_shapes, 1));
    DCM_TRY(status, fail, tune_choice(&t, TUNE_SHARES, share_shapes, 1));
    if (engines)
        DCM_TRY(status, fail, tune_choice(&t, TUNE_MANY, many_shapes, 2));
    if (any_chosen(&t))
        tuning_store(&clop_device(b)->limits, &clop_tuned_of(b)->tuning);
    *rows = t.row;
    *count = t.count;
    return DCM_OK;
fail:
    mem_free(&t.row);
    return status;
}

/* Instead of what cannot be used: the first that can. */
static void settle_engine(backend *b)
{
    tuning *t = &clop_tuned_of(b)->tuning;
    const char *values[TUNING_VALUES];
    if (eligible(b, TUNE_MANY, tuning_text(t, TUNE_MANY)))
        return;
    list_values(b, TUNE_MANY, values);
    tuning_set(t, TUNE_MANY, values[0], TUNING_DEFAULT);
}

clop_many tune_engine(backend *b)
{
    const clop_tuned *tuned = clop_tuned_of(b);
    if (tuned->many && !many_wide(b))
        return tuned->many;
    settle_engine(b);
    return (clop_many)(CLOP_MANY_WIDE + tuned->tuning.choice[TUNE_MANY].value);
}

size_t tune_list(backend *b, dcm_tuning_choice *out)
{
    static const char *const origins[] = {"default", "file", "measured"};
    const tuning *t = &clop_tuned_of(b)->tuning;
    size_t count = 0;
    settle_engine(b);
    for (int what = 0; what < TUNE_CHOICES; what++) {
        const tuning_choice *c = &tuning_choices[what];
        if (what == TUNE_MANY || clop_wide(b))
            out[count++] = (dcm_tuning_choice){c->name, tuning_text(t, (tuning_what)what),
                                               origins[t->choice[what].origin], c->about};
    }
    return count;
}
