#include "ref/score_net.h"

#include "base/error.h"
#include "base/memory.h"

/* One KV head of one merge on its way back. */
typedef struct back_row {
    score_unit a, b;
    double g[2 * REF_HEAD_MAX], q[2 * REF_HEAD_MAX]; /* of the result; of what the residual adds, before 1 / scale */
    double gap;                                      /* D's */
} back_row;

static double key_size(const double *k, uint32_t d)
{
    double squares = 0;
    for (uint32_t c = 0; c < d; c++)
        squares += k[c] * k[c];
    return sqrt(squares);
}

/* Add to g that of weight (|k| / t - 1)^2, k the result's key as it is stored; returns the value. */
static double magnitude(const ref_pool *pool, uint32_t layer, uint32_t head, uint32_t slot, const float *rotation,
                        double weight, back_row *row)
{
    const uint32_t d = pool->head_dim;
    const double t = (key_size(row->a.x, d) + key_size(row->b.x, d)) / 2;
    score_unit out;
    score_load(pool, layer, head, slot, rotation, &out);
    const double size = key_size(out.x, d);
    if (!(t > 0))
        return 0;
    for (uint32_t c = 0; c < d && size > 0; c++)
        row->g[c] += 2 * weight * (size / t - 1) / t * out.x[c] / size;
    return weight * (size / t - 1) * (size / t - 1);
}

/* The weights' part: D's gradient, and those of prior and both sharps. */
static void back_gap(const ref_score *p, uint32_t d, uint32_t level, double *sums, back_row *row)
{
    const double gap = row->a.s - row->b.s + p->prior[level];
    double of[2] = {0};
    for (uint32_t c = 0; c < 2 * d; c++)
        of[c >= d] += row->g[c] * (row->a.x[c] - row->b.x[c]);
    const float *const sharps[2] = {p->sharp_k, p->sharp_v};
    row->gap = 0;
    for (int k = 0; k < 2; k++) {
        const double slope = of[k] * score_sigmoid(*sharps[k] * gap) * score_sigmoid(-*sharps[k] * gap);
        row->gap += slope * *sharps[k];
        sums[sharps[k] - p->mean] += slope * gap;
    }
    sums[p->prior + level - p->mean] += row->gap;
    sums[p->deviation - p->mean] += row->gap * (row->a.norm - row->b.norm);
}

/* One unit through the network, `sign` times D's gradient at its s, and its share `m` of the result's, into dx. */
static void back_unit(const ref_score *p, uint32_t d, uint32_t level, double *sums, const back_row *row,
                      const score_unit *u, double sign, double *dx)
{
    const double gap = row->a.s - row->b.s + p->prior[level];
    for (uint32_t c = 0; c < 2 * d; c++)
        dx[c] = c < d && u->norm > 0 ? sign * row->gap * *p->deviation * u->z[c] / (d * u->norm) : 0;
    for (uint32_t j = 0; j < p->hidden; j++) {
        const size_t w = (size_t)j * 2 * d;
        double dh = sign * row->gap * p->w2[j];
        for (uint32_t c = 0; c < 2 * d; c++)
            dh += p->u[w + c] * row->q[c];
        const double pre = dh * (u->h[j] > 0 ? 1 : u->h[j] + 1);
        sums[p->w2 + j - p->mean] += sign * row->gap * u->h[j];
        sums[p->b1 + (size_t)level * p->hidden + j - p->mean] += pre;
        for (uint32_t c = 0; c < 2 * d; c++) {
            dx[c] += p->w1[w + c] * pre;
            sums[p->w1 + w + c - p->mean] += pre * u->z[c];
            sums[p->u + w + c - p->mean] += row->q[c] * u->h[j];
        }
    }
    for (uint32_t c = 0; c < 2 * d; c++)
        dx[c] = dx[c] * p->scale[c] + score_sigmoid(sign * *(c < d ? p->sharp_k : p->sharp_v) * gap) * row->g[c];
}

/* dunits (units, 2, kv_heads, head_dim) of one unit and KV head. */
static float *unit_at(const ref_pool *pool, float *dunits, uint32_t unit, int which, uint32_t head)
{
    return dunits + (((size_t)unit * 2 + (size_t)which) * pool->kv_heads + head) * pool->head_dim;
}

static void add_unit(const ref_pool *pool, float *dunits, uint32_t unit, uint32_t head, const double *dx)
{
    for (uint32_t c = 0; c < 2 * pool->head_dim; c++) {
        float *to = unit_at(pool, dunits, unit, c >= pool->head_dim, head) + c % pool->head_dim;
        *to = (float)(*to + dx[c]);
    }
}

/* One merge and KV head; `sums` are its parameters' gradients, at the same distances as parameters from p->mean. */
static double back_merge(const ref_pool *pool, const ref_score *p, const ref_score_back_args *a, uint32_t m,
                         uint32_t head, double *sums, back_row *row)
{
    const uint32_t d = pool->head_dim, level = score_level(p, a->merges.merge[m].level);
    const ref_merge *merge = a->merges.merge + m;
    const float *rotation = a->merges.rotations + (size_t)m * 3 * d;
    double loss = 0, da[2 * REF_HEAD_MAX], db[2 * REF_HEAD_MAX];
    score_load(pool, a->merges.layer, head, merge->a, rotation, &row->a);
    score_load(pool, a->merges.layer, head, merge->b, rotation + d, &row->b);
    score_run(p, d, level, &row->a);
    score_run(p, d, level, &row->b);
    for (uint32_t c = 0; c < 2 * d; c++)
        row->g[c] = unit_at(pool, a->dunits, a->first + m, c >= d, head)[c % d];
    if (a->magnitude > 0)
        loss = magnitude(pool, a->merges.layer, head, merge->out, rotation + 2 * d, a->magnitude, row);
    for (uint32_t c = 0; c < 2 * d; c++) {
        row->q[c] = row->g[c] / p->scale[c];
        sums[p->r + (size_t)level * 2 * d + c - p->mean] += row->q[c];
    }
    sums[p->bias + level - p->mean] += a->dscores[(size_t)(a->first + m) * pool->kv_heads + head];
    back_gap(p, d, level, sums, row);
    back_unit(p, d, level, sums, row, &row->a, 1, da);
    back_unit(p, d, level, sums, row, &row->b, -1, db);
    add_unit(pool, a->dunits, a->source[m].a, head, da);
    add_unit(pool, a->dunits, a->source[m].b, head, db);
    return loss;
}

dcm_status ref_merge_score_back(const ref_pool *pool, const ref_score *score, const ref_score_back_args *a, int threads)
{
    const size_t heads = pool->kv_heads, first = (size_t)(score->w1 - score->mean);
    const size_t end = (size_t)(score->sharp_v - score->mean) + 1;
    double *sums = NULL;
    const dcm_status status = mem_new(&sums, heads * end, sizeof *sums, "sums of gradients");
    if (status != DCM_OK)
        return status;
#pragma omp parallel for num_threads(threads)
    for (uint32_t head = 0; head < heads; head++) {
        const size_t at = a->merges.layer * heads + head;
        const ref_score p = score_at(score, at);
        float *dparams = a->dparams + at * score->row;
        back_row row;
        double loss = 0;
        for (uint32_t m = 0; m < a->merges.n; m++)
            loss += back_merge(pool, &p, a, m, head, sums + head * end, &row);
        for (size_t i = first; i < end; i++)
            dparams[i] = (float)(dparams[i] + sums[head * end + i]);
        if (a->magnitude > 0)
            a->loss[head] = (float)(a->loss[head] + loss);
    }
    mem_free(&sums);
    return DCM_OK;
}
