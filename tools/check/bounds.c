#include "check.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

bool check_all_numbers(const float *x, size_t n)
{
    size_t numbers = 0;
    for (size_t i = 0; i < n; i++)
        numbers += isfinite(x[i]) != 0;
    return numbers == n;
}

double check_max_abs(const float *a, const float *b, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs((double)a[i] - b[i]);
        if (!(d <= most))
            most = isnan(d) ? INFINITY : d;
    }
    return most;
}

double check_allowed(const check_run *run, check_apart *apart, size_t at)
{
    double allowed = CHECK_FACTOR * apart(run, run->with_floats, at);
    for (size_t i = 0; i < run->sides; i++)
        if (run->side[i].in_f32)
            allowed += CHECK_HALVES * apart(run, i, at);
    return allowed;
}

double check_rounding(dcm_kv_type kv) { return kv == DCM_KV_F32 ? FLT_EPSILON : ldexp(1, -10); }

double check_bound(dcm_kv_type kv, double allowed, const float *values, size_t n)
{
    double largest = 0;
    for (size_t i = 0; i < n; i++)
        largest = fmax(largest, fabs(values[i]));
    return fmax(allowed, largest * check_rounding(kv));
}

/* ---- What scorers chose ---- */

/* The choices of one level in one layer, merge by merge: (merges, kv_heads). */
struct check_choices {
    dcm_merge_choice *item;
    size_t count, room; /* in items */
};

static check_choices *choices_of(const check_run *run, uint32_t level, uint32_t layer)
{
    return &run->choices[level * run->side->model.layers + layer];
}

static bool keep(check_choices *to, const dcm_merge_choice *choice)
{
    if (to->count == to->room) {
        const size_t room = to->room ? 2 * to->room : 16;
        dcm_merge_choice *item = realloc(to->item, room * sizeof *item);
        if (!item)
            return false;
        to->item = item;
        to->room = room;
    }
    to->item[to->count++] = *choice;
    return true;
}

/* check_apart: of the i-th gap; infinite where one has no number. */
static double gap_apart(const check_run *run, size_t other, size_t i)
{
    return check_max_abs(&run->side[run->ref].chosen[i].choice.gap, &run->side[other].chosen[i].choice.gap, 1);
}

bool check_take_choices(check_run *run)
{
    const check_side *ref = &run->side[run->ref];
    const uint32_t layers = run->side->model.layers;
    if (!ref->n_chosen)
        return true;
    if (!run->choices) {
        run->choices = calloc((size_t)DCM_LEVELS_MAX * layers, sizeof *run->choices);
        run->gap_off = calloc(layers, sizeof *run->gap_off);
    }
    if (!run->choices || !run->gap_off)
        return false;
    for (size_t i = 0; i < ref->n_chosen; i++) {
        const check_chosen *made = &ref->chosen[i];
        run->gap_off[made->layer] = fmax(run->gap_off[made->layer], check_allowed(run, gap_apart, i));
        if (!keep(choices_of(run, made->choice.level, made->layer), &made->choice))
            return false;
    }
    return true;
}

void check_free_choices(check_run *run)
{
    for (size_t i = 0; run->choices && i < (size_t)DCM_LEVELS_MAX * run->side->model.layers; i++)
        free(run->choices[i].item);
    free(run->choices);
    free(run->gap_off);
}

/* ---- Bounds of units ---- */

/* One head's keys or values in one layer. */
typedef struct row {
    const check_run *run;
    uint32_t layer, head, kind;
    double token; /* most that a channel of a unit that was never merged may be off */
} row;

/* The older unit's weight if the gap were larger by so much. */
static double weight(const dcm_merge_choice *c, uint32_t kind, double more)
{
    return 1 / (1 + exp(-c->sharp[kind] * (c->gap + more)));
}

double check_choice_moves(const dcm_merge_choice *c, uint32_t kind, double gap)
{
    const double w = weight(c, kind, 0);
    return fmax(fabs(weight(c, kind, gap) - w), fabs(weight(c, kind, -gap) - w));
}

/* Most that a channel of node `index` of a level may be off. */
static double off(const row *r, uint32_t level, uint64_t index)
{
    const uint32_t heads = r->run->side->model.kv_heads;
    const check_choices *made = level ? choices_of(r->run, level - 1, r->layer) : NULL;
    if (!made || index * heads >= made->count)
        return r->token;
    const dcm_merge_choice *c = &made->item[index * heads + r->head];
    const double a = off(r, level - 1, 2 * index), b = off(r, level - 1, 2 * index + 1);
    const double moved = check_choice_moves(c, r->kind, r->run->gap_off[r->layer]);
    const double w = weight(c, r->kind, 0);
    return w * a + (1 - w) * b + moved * (c->spread[r->kind] + a + b);
}

double check_unit_bound(const check_run *run, const dcm_unit *u, uint32_t layer, uint32_t head, uint32_t kind,
                        double token)
{
    const int32_t sinks = run->job.cache.sinks;
    const uint64_t before = sinks > 0 ? (uint64_t)sinks : sinks ? 0 : DCM_DEFAULT_SINKS;
    const row r = {run, layer, head, kind, token};
    return run->choices && u->level ? off(&r, u->level, (u->first - before) >> u->level) : token;
}

/* check_apart: of keys (kind 0) or values (1) of the layer read last, the largest. */
static double layer_apart(const check_run *run, size_t other, size_t kind)
{
    const check_cache *ref = run->side[run->ref].cache;
    const size_t n = (size_t)run->side->model.kv_heads * run->side->model.head_dim;
    double apart = 0;
    for (size_t u = 0; u < ref->n_units; u++) {
        const size_t at = (2 * u + kind) * n;
        apart = fmax(apart, check_max_abs(ref->values + at, run->side[other].cache->values + at, n));
    }
    return apart;
}

double check_layer_allowed(const check_run *run, uint32_t kind) { return check_allowed(run, layer_apart, kind); }
