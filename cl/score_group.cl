/* The scorer's functions for groups of SCORE_GROUP work-items, one merge and KV head each. Built behind score.cl. */

#define SCORE_GROUP 128
#define SHARE 16 /* work-items of a sum */

/* Of both units, item (t, j) of SHARE x SCORE_GROUP / SHARE: the t-th part of hidden unit j's sum, from all j. */
static inline void group_parts(const __global float *p, const __local float (*z)[SCORE_X],
                               __local float (*parts)[HIDDEN][SHARE], __local float (*norms)[SHARE])
{
    const uint t = get_local_id(0) % SHARE;
    for (uint j = get_local_id(0) / SHARE; j < HIDDEN; j += SCORE_GROUP / SHARE) {
        const __global float *w = p + SCORE_W1 + j * SCORE_X;
        float a = 0, b = 0;
        for (uint c = t; c < SCORE_X; c += SHARE) {
            a = fma(w[c], z[0][c], a);
            b = fma(w[c], z[1][c], b);
        }
        parts[0][j][t] = a;
        parts[1][j][t] = b;
    }
    const uint unit = get_local_id(0) / SHARE;
    if (unit < 2) {
        float sum = 0;
        for (uint c = t; c < HEAD_DIM; c += SHARE)
            sum = fma(z[unit][c], z[unit][c], sum);
        norms[unit][t] = sum;
    }
}

static inline float group_sum(const __local float *parts)
{
    float sum = 0;
    for (uint t = 0; t < SHARE; t++)
        sum += parts[t];
    return sum;
}

/* Keys or values of one of both units: chosen as values, since an array that is pointed into is in memory. */
static inline const __global kv_t *unit_row(const score_item *it, uint unit, bool key)
{
    const __global kv_t *const a = key ? it->a[0] : it->a[1], *const b = key ? it->b[0] : it->b[1];
    return unit ? b : a;
}

/* Both units without rotation, and z of them, by pairs of channels: first those of keys. */
static inline void group_load(const score_item *it, __local float (*x)[SCORE_X], __local float (*z)[SCORE_X])
{
    for (uint i = get_local_id(0); i < SCORE_X; i += SCORE_GROUP) {
        const uint unit = i / HEAD_DIM, pair = i % HEAD_DIM; /* pairs of keys, then of values */
        const bool key = pair < HEAD_DIM / 2;
        const uint n = key ? pair : pair - HEAD_DIM / 2;
        const uint first = key ? ROPE_FIRST(n) : 2 * n, second = key ? ROPE_SECOND(n) : 2 * n + 1;
        const __global kv_t *row = unit_row(it, unit, key);
        float2 v = (float2)(kv_load(row + first), kv_load(row + second));
        if (key)
            v = rope_unturn(v, as_float2(vload2(n, it->rot + unit * HEAD_DIM)));
        const uint base = key ? 0 : HEAD_DIM;
        const __global float *mean = it->p + SCORE_MEAN + base, *scale = it->p + SCORE_SCALE + base;
        x[unit][base + first] = v.x;
        x[unit][base + second] = v.y;
        z[unit][base + first] = (v.x - mean[first]) * scale[first];
        z[unit][base + second] = (v.y - mean[second]) * scale[second];
    }
}
