#include "train/trainer.h"

#include "base/rng.h"

#include <math.h>

/* Of a normal distribution, by Box and Muller. */
static double normal(uint64_t *rng)
{
    const double u = 1 - rng_uniform(rng), v = rng_uniform(rng);
    return sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
}

static size_t rows_of(const dcm_trainer *t)
{
    return (size_t)t->model->config.info.layers * t->model->config.info.kv_heads;
}

static void fill_kind(uint8_t *kind, size_t first, size_t count, adamw_kind value)
{
    for (size_t i = 0; i < count; i++)
        kind[first + i] = (uint8_t)value;
}

void trainer_set_kinds(dcm_trainer *t)
{
    const score_layout l = score_layout_of(t->shape);
    const size_t x = 2 * (size_t)t->shape.head_dim, h = t->shape.hidden;
    for (size_t i = 0; i < rows_of(t); i++) {
        uint8_t *kind = t->kind + i * l.row;
        fill_kind(kind, 0, l.row, ADAMW_PLAIN);
        fill_kind(kind, l.mean, 2 * x, ADAMW_FROZEN);
        fill_kind(kind, l.w1, h * x, ADAMW_DECAY);
        fill_kind(kind, l.u, h * x, ADAMW_SLOW); /* what is added to a unit is not bounded, as its choice is */
        fill_kind(kind, l.r, t->shape.levels * x, ADAMW_SLOW);
        fill_kind(kind, l.sharp_v + 1, l.row - l.sharp_v - 1, ADAMW_FROZEN);
    }
}

/* Mean and variance of a channel of the sums. */
static double mean_of(const channel_sums *s, size_t at) { return s->sum[at] / (double)s->count; }

static double variance_of(const channel_sums *s, size_t at)
{
    return fmax(s->square[at] / (double)s->count - mean_of(s, at) * mean_of(s, at), 1e-8);
}

/*
 * Keys get one scale a head: what sets a key apart is in its few large channels, and the deviation from the mean, which
 * scales of their own would flatten, is the best sign of a unit worth keeping that needs no training.
 */
void trainer_set_channels(dcm_trainer *t)
{
    const score_layout l = score_layout_of(t->shape);
    const size_t heads = t->model->config.info.kv_heads, d = t->shape.head_dim;
    for (size_t i = 0; i < rows_of(t); i++) {
        const size_t keys = (i / heads * 2 * heads + i % heads) * d, values = keys + heads * d;
        float *mean = t->param + i * l.row + l.mean, *scale = t->param + i * l.row + l.scale;
        double variance = 0;
        for (size_t c = 0; c < d; c++)
            variance += variance_of(&t->sums, keys + c) / (double)d;
        for (size_t c = 0; c < d; c++) {
            mean[c] = (float)mean_of(&t->sums, keys + c);
            scale[c] = (float)(1 / sqrt(variance));
            mean[d + c] = (float)mean_of(&t->sums, values + c);
            scale[d + c] = (float)(1 / sqrt(variance_of(&t->sums, values + c)));
        }
    }
}

/*
 * The unit whose key is further from the mean is kept rather than the other; the network adds nothing at first (w2 and
 * u are 0), and where it looks is random.
 */
void trainer_set_first(dcm_trainer *t)
{
    const score_layout l = score_layout_of(t->shape);
    const size_t x = 2 * (size_t)t->shape.head_dim;
    uint64_t rng = t->params.seed;
    for (size_t i = 0; i < rows_of(t); i++) {
        float *row = t->param + i * l.row;
        for (size_t c = 0; c < l.row; c++)
            row[c] = 0;
        for (size_t c = 0; c < x; c++)
            row[l.scale + c] = 1;
        for (size_t c = 0; c < t->shape.hidden * x; c++)
            row[l.w1 + c] = (float)(normal(&rng) / sqrt((double)x));
        row[l.deviation] = 6;
        row[l.sharp_k] = row[l.sharp_v] = 4;
    }
}
