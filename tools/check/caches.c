#include "check.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Units ---- */

/* A difference found in a unit, keys or values. */
static void take_unit(check_totals *t, const dcm_unit *u, uint32_t layer, uint32_t kind, uint64_t step, double max_abs,
                      double bound)
{
    const double ratio = check_ratio(max_abs, bound);
    if (!(max_abs > 0) || (*t->cache_worst && ratio <= t->cache_ratio))
        return;
    t->cache_max_abs = max_abs;
    t->cache_ratio = ratio;
    snprintf(t->cache_worst, sizeof t->cache_worst,
             "after %" PRIu64 ": layer %u, %s of tokens %" PRIu64 " to %" PRIu64 "%s", step, layer,
             kind ? "values" : "keys", u->first, u->first + u->tokens - 1, isinf(max_abs) ? ", no numbers" : "");
}

/* One unit, keys or values, beside the baseline's, head by head. */
static void compare_unit(const check_run *run, check_side *s, check_form form, size_t unit, uint32_t layer,
                         uint32_t kind, uint64_t step, double allowed)
{
    const check_cache *c = &s->cache[form];
    const size_t d = s->model.head_dim, n = s->model.kv_heads * d, at = (2 * unit + kind) * n;
    const float *a = run->side->cache->values + at, *b = c->values + at;
    const double token = run->job.device.strict ? 0 : check_bound(run->job.cache.kv, allowed, a, n);
    for (uint32_t h = 0; h < s->model.kv_heads; h++)
        take_unit(&s->sum[form], &c->units[unit], layer, kind, step, check_max_abs(a + h * d, b + h * d, d),
                  check_unit_bound(run, &c->units[unit], layer, h, kind, token));
}

/* One unit's digest beside the record's. */
static void compare_digest(const check_run *run, check_side *s, check_form form, size_t unit, uint32_t layer,
                           uint32_t kind, uint64_t step)
{
    const record_cache *recorded = check_record_cache(run, step);
    const check_cache *c = &s->cache[form];
    const size_t n = (size_t)s->model.kv_heads * s->model.head_dim, row = 2 * (size_t)layer + kind;
    const float own = record_digest(c->values + (2 * unit + kind) * n, n);
    take_unit(&s->sum[form], &c->units[unit], layer, kind, step,
              check_max_abs(&recorded->digest[row * recorded->units + unit], &own, 1),
              recorded->bound[row * recorded->units + unit]);
}

/* The same units in the same places? */
static bool same_units(const check_cache *a, const check_cache *b)
{
    if (a->n_units != b->n_units)
        return false;
    for (size_t i = 0; i < a->n_units; i++)
        if (a->units[i].first != b->units[i].first || a->units[i].level != b->units[i].level)
            return false;
    return true;
}

/* ---- All sides ---- */

/* Is the side's cache of this form held against the baseline's? */
static bool is_compared(const check_run *run, size_t i, check_form form)
{
    const check_side *s = &run->side[i];
    return check_works(s) && (form == CHECK_DECODE ? i > 0 : s->prompts);
}

/* Is it what others are held against, or what bounds come from? */
static bool is_measure(const check_run *run, size_t i, check_form form)
{
    return check_works(&run->side[i]) && form == CHECK_DECODE && check_carries(run, &run->side[i]);
}

static bool is_needed(const check_run *run, size_t i, check_form form, check_form compared)
{
    return is_measure(run, i, form) || (form == compared && is_compared(run, i, form));
}

static void fetch_units(check_run *run, size_t i, check_form form, uint64_t step)
{
    check_side *s = &run->side[i];
    if (!check_side_units(s, &run->job, form))
        check_lost(run, s, "with its cache after token %" PRIu64, step);
    else if (!same_units(run->side->cache, &s->cache[form])) {
        check_side_end(s, DCM_ERR_DEVICE, "its cache has other units than that of the baseline");
        check_lost(run, s, "after token %" PRIu64, step);
    }
}

/* The baseline's units as a record has them. False when memory runs out. */
static bool take_recorded_units(check_run *run, uint64_t step)
{
    const record_cache *recorded = check_record_cache(run, step);
    check_cache *c = run->side->cache;
    free(c->units);
    c->units = malloc(recorded->units * sizeof *c->units);
    c->n_units = c->units ? recorded->units : 0;
    for (size_t i = 0; i < c->n_units; i++)
        c->units[i] = (dcm_unit){.first = recorded->unit[i].first, .level = recorded->unit[i].level};
    return c->units != NULL;
}

static void compare_layer(check_run *run, check_form form, uint32_t layer, uint64_t step)
{
    const bool bounded = !run->against && !run->job.device.strict;
    for (size_t i = 0; i < run->sides && !run->stopped; i++)
        for (check_form f = CHECK_DECODE; f < CHECK_FORMS; f++)
            if (is_needed(run, i, f, form) && !check_side_layer(&run->side[i], &run->job, f, layer))
                check_lost(run, &run->side[i], "with its cache after token %" PRIu64, step);
    if (form == CHECK_DECODE && run->save && !run->stopped)
        check_record_layer(run, step, layer);
    for (uint32_t kind = 0; kind < 2 && !run->stopped; kind++) {
        const double allowed = bounded ? check_layer_allowed(run, kind) : 0;
        for (size_t i = 0; i < run->sides; i++)
            for (size_t u = 0; is_compared(run, i, form) && u < run->side[i].cache[form].n_units; u++)
                if (run->against)
                    compare_digest(run, &run->side[i], form, u, layer, kind, step);
                else
                    compare_unit(run, &run->side[i], form, u, layer, kind, step, allowed);
    }
}

void check_caches(check_run *run, check_form form, uint64_t step)
{
    if (run->against && !take_recorded_units(run, step)) {
        check_side_end(run->side, DCM_ERR_MEMORY, "no room for the units of the record");
        check_lost(run, run->side, "after token %" PRIu64, step);
    }
    for (size_t i = 0; i < run->sides && !run->stopped; i++)
        for (check_form f = CHECK_DECODE; f < CHECK_FORMS; f++)
            if (is_needed(run, i, f, form))
                fetch_units(run, i, f, step);
    if (form == CHECK_DECODE && run->save && !run->stopped && !check_record_units(run, step)) {
        check_side_end(run->side, DCM_ERR_MEMORY, "no room for the record of its cache");
        check_lost(run, run->side, "after token %" PRIu64, step);
    }
    for (uint32_t layer = 0; layer < run->side->model.layers && !run->stopped; layer++)
        compare_layer(run, form, layer, step);
    for (size_t i = 0; i < run->sides && !run->stopped; i++)
        run->side[i].sum[form].caches += is_compared(run, i, form);
}
