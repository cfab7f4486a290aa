#include "score_bounds.h"

void score_case_params(score_case *s, fx_input fill, uint64_t *rng)
{
    const fx_spec *spec = &s->cache.spec;
    const double size = fill == FX_LARGE ? 100 : fill != FX_TINY ? 1 : spec->type == KV_F16 ? 1e-6 : 1e-20;
    const size_t rows = (size_t)spec->layers * spec->kv_heads;
    s->at = score_layout_of(s->shape);
    s->params = fx_score(s->shape, rows, size, rng);
    s->bytes = rows * s->at.row * sizeof *s->params;
}

score_row score_row_at(const score_case *s, uint32_t merge, uint32_t layer, uint32_t head)
{
    const uint32_t level = fx_merge(&s->cache, merge)->level;
    return (score_row){merge, layer, head, level < s->shape.levels ? level : s->shape.levels - 1,
                       s->params + (layer * s->cache.spec.kv_heads + head) * s->at.row};
}

/* Turning back is three roundings. */
void score_off_load(const score_case *s, const score_row *row, uint32_t slot, const float *rot, off *x)
{
    const fx_cache *cache = &s->cache;
    const uint32_t d = cache->spec.head_dim;
    for (uint32_t i = 0; i < d / 2; i++) {
        uint32_t first, second;
        fx_pair(cache->spec.rope, d, i, &first, &second);
        const double k = fx_get(cache, cache->block, row->layer, 0, row->head, slot, first);
        const double q = fx_get(cache, cache->block, row->layer, 0, row->head, slot, second);
        const double cosine = rot[2 * i], sine = rot[2 * i + 1];
        x[first] = (off){k * cosine + q * sine, 4 * CK_U * (fabs(k * cosine) + fabs(q * sine)) + FLT_MIN};
        x[second] = (off){q * cosine - k * sine, 4 * CK_U * (fabs(q * cosine) + fabs(k * sine)) + FLT_MIN};
    }
    for (uint32_t c = 0; c < d; c++)
        x[d + c] = off_of(fx_get(cache, cache->block, row->layer, 1, row->head, slot, c));
}

static off hidden_unit(const score_case *s, const score_row *row, uint32_t j, const off *z)
{
    const uint32_t x = 2 * s->shape.head_dim;
    off_terms sum = {0};
    off_term(&sum, off_of(row->p[s->at.b1 + row->level * s->shape.hidden + j]));
    for (uint32_t c = 0; c < x; c++)
        off_term(&sum, off_mul(off_of(row->p[s->at.w1 + j * x + c]), z[c]));
    off h = off_sum(&sum, score_roundings(x));
    if (h.value < h.error)
        h.error += 8 * CK_U; /* exp is good for 4 units in the last place */
    h.value = h.value > 0 ? h.value : expm1(h.value);
    return h;
}

void score_off_run(const score_case *s, const score_row *row, uint32_t source, score_off *u)
{
    const uint32_t d = s->shape.head_dim, hidden = s->shape.hidden;
    const merge_pair *pair = fx_merge(&s->cache, row->merge);
    double squares = 0, errors = 0;
    off_terms sum = {0};
    score_off_load(s, row, source ? pair->b : pair->a, fx_merge_rot(&s->cache, row->merge, source), u->x);
    for (uint32_t c = 0; c < 2 * d; c++) {
        u->z[c] = off_mul(off_sub(u->x[c], off_of(row->p[s->at.mean + c])), off_of(row->p[s->at.scale + c]));
        squares += c < d ? u->z[c].value * u->z[c].value : 0;
        errors += c < d ? u->z[c].error * u->z[c].error : 0;
    }
    u->norm.value = sqrt(squares / d);
    u->norm.error = sqrt(errors / d) + score_roundings(d) * CK_U * u->norm.value;
    for (uint32_t j = 0; j < hidden; j++) {
        u->h[j] = hidden_unit(s, row, j, u->z);
        off_term(&sum, off_mul(off_of(row->p[s->at.w2 + j]), u->h[j]));
    }
    off_term(&sum, off_mul(off_of(row->p[s->at.deviation]), u->norm));
    u->s = off_sum(&sum, hidden + 16);
}

off score_off_gap(const score_case *s, const score_row *row, const score_off *a, const score_off *b)
{
    return off_add(off_sub(a->s, b->s), off_of(row->p[s->at.prior + row->level]));
}

/* The slope is at most 1/4, and exp of minus the distance from zero. */
off score_off_sigmoid(double sharp, off gap)
{
    const double x = sharp * gap.value, error = fabs(sharp) * gap.error + 2 * CK_U * fabs(x);
    const double m = 1 / (1 + exp(-x)), slope = fmin(0.25, exp(fmin(0, error - fabs(x))));
    return (off){m, error * slope + 8 * CK_U * m + FLT_MIN};
}
