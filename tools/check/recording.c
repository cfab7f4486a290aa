#include "check.h"
#include "policies.h"
#include "tool.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- Making one ---- */

int check_record_begin(check_run *run)
{
    record *r = &run->made;
    r->steps = (size_t)run->steps;
    r->step = calloc(r->steps, sizeof *r->step);
    return r->step ? 0 : tool_fail(DCM_ERR_MEMORY, "no room for a record of %zu steps", r->steps);
}

void check_record_step(check_run *run, uint64_t step, int32_t token, const float *logits, double bound)
{
    record_step *s = &run->made.step[step - 1];
    s->token = token;
    s->bound = run->job.device.strict ? FLT_MIN : (float)bound; /* a record has none of 0 */
    record_sketch(s, logits, run->side->model.vocab);
}

bool check_record_units(check_run *run, uint64_t step)
{
    const check_side *ref = &run->side[run->ref];
    const size_t sums = 2 * (size_t)ref->model.layers;
    record *r = &run->made;
    record_cache *c = &r->cache[r->caches++];
    r->layers = ref->model.layers;
    *c = (record_cache){.step = step, .units = run->side->cache->n_units};
    c->unit = calloc(c->units, sizeof *c->unit);
    c->bound = calloc(sums * c->units, sizeof *c->bound);
    c->digest = calloc(sums * c->units, sizeof *c->digest);
    if (!c->unit || !c->bound || !c->digest)
        return false;
    for (size_t i = 0; i < c->units; i++) {
        const dcm_unit *u = &run->side->cache->units[i];
        c->unit[i] = (record_unit){.first = u->first, .level = u->level};
    }
    return true;
}

/*
 * How far a unit's digest may be off: by `own`, and by what a scorer's gaps let each of its values move. To a sum whose
 * signs are as by chance, n values add up as the root of n.
 */
static double digest_bound(const check_run *run, const dcm_unit *u, uint32_t layer, uint32_t kind, double own,
                           double token)
{
    const check_model *m = &run->side->model;
    double squares = 0;
    for (uint32_t h = 0; h < m->kv_heads; h++) {
        const double moved = check_unit_bound(run, u, layer, h, kind, token) - token;
        squares += m->head_dim * moved * moved;
    }
    return own + sqrt(squares);
}

/* check_apart: of digests of keys (kind 0) or values (1) in the layer read last, the largest. */
static double digests_apart(const check_run *run, size_t other, size_t kind)
{
    const check_cache *a = run->side[run->ref].cache, *b = run->side[other].cache;
    const size_t n = (size_t)run->side->model.kv_heads * run->side->model.head_dim;
    double apart = 0;
    for (size_t u = 0; u < a->n_units; u++) {
        const size_t at = (2 * u + kind) * n;
        apart = fmax(apart, fabs((double)record_digest(a->values + at, n) - record_digest(b->values + at, n)));
    }
    return apart;
}

/*
 * Digests of the baseline's units, and their bounds: what the references' digests allow, one rounding of each value at
 * least.
 */
void check_record_layer(check_run *run, uint64_t step, uint32_t layer)
{
    const check_side *base = run->side;
    const size_t n = (size_t)base->model.kv_heads * base->model.head_dim;
    record_cache *c = &run->made.cache[run->made.caches - 1];
    if (c->step != step)
        return;
    for (uint32_t kind = 0; kind < 2; kind++) {
        float *bound = c->bound + (2 * layer + kind) * c->units;
        double largest = 0;
        for (size_t u = 0; u < c->units; u++) {
            const size_t at = (2 * u + kind) * n;
            c->digest[(2 * layer + kind) * c->units + u] = record_digest(base->cache->values + at, n);
            for (size_t i = 0; i < n; i++)
                largest = fmax(largest, fabs(base->cache->values[at + i]));
        }
        if (run->job.device.strict)
            continue;
        const double allowed = check_layer_allowed(run, kind);
        const double own = fmax(check_allowed(run, digests_apart, kind),
                                sqrt((double)n) * largest * check_rounding(run->job.cache.kv));
        for (size_t u = 0; u < c->units; u++) {
            const double token = check_bound(run->job.cache.kv, allowed, base->cache->values + (2 * u + kind) * n, n);
            bound[u] = (float)digest_bound(run, &base->cache->units[u], layer, kind, own, token);
        }
    }
}

/* "newer", or "score" and the digest of its parameters: a file's name says nothing on another machine. */
static void merge_text(const check_model *m, char *out, size_t size)
{
    if (m->merge_digest)
        snprintf(out, size, "%s-%016" PRIx64, m->merge, m->merge_digest);
    else
        snprintf(out, size, "%s", m->merge);
}

json_t *check_record_options(const check_run *run, const check_model *model)
{
    char digest[32], merge[40], policy[POLICY_TEXT];
    snprintf(digest, sizeof digest, "%016" PRIx64, model->digest);
    dcm_cache_params cache = run->job.cache;
    cache.merge = NULL;
    merge_text(model, merge, sizeof merge);
    policy_text(&cache, merge, policy, sizeof policy);
    return json_pack("{s:s,s:I,s:I,s:I,s:I,s:s,s:b}", "model_digest", digest, "vocab", (json_int_t)model->vocab,
                     "layers", (json_int_t)model->layers, "kv_heads", (json_int_t)model->kv_heads, "head_dim",
                     (json_int_t)model->head_dim, "policy", policy, "strict", run->job.device.strict);
}

int check_record_write(check_run *run, json_t *facts, FILE *out)
{
    run->made.header = facts;
    json_object_set_new(facts, "options", check_record_options(run, &run->side->model));
    return record_write(&run->made, out) ? 0 : tool_fail(DCM_ERR_MEMORY, "%s: no room for its header", run->save);
}

/* ---- Using one ---- */

int check_record_take(check_run *run)
{
    const record *r = run->against;
    if (run->steps > r->steps)
        return tool_fail(DCM_ERR_USAGE, "--steps: the record has only %zu steps", r->steps);
    run->steps = run->steps ? run->steps : r->steps;
    run->ids = malloc(run->steps * sizeof *run->ids);
    if (!run->ids)
        return tool_fail(DCM_ERR_MEMORY, "no room for %" PRIu64 " tokens", run->steps);
    for (uint64_t i = 0; i < run->steps; i++)
        run->ids[i] = r->step[i].token;
    run->known = (size_t)run->steps;
    for (size_t i = 0; i < r->caches; i++)
        run->cache_at.item[run->cache_at.count++] = (int64_t)r->cache[i].step;
    return 0;
}

int check_record_fits(const check_run *run, const check_model *model)
{
    const json_t *theirs = json_object_get(run->against->header, "options");
    json_t *ours = check_record_options(run, model);
    const char *key;
    json_t *value;
    int code = 0;
    json_object_foreach(ours, key, value)
    {
        const json_t *other = json_object_get(theirs, key);
        if (code || json_equal(value, other))
            continue;
        char *own = json_dumps(value, JSON_ENCODE_ANY), *their = json_dumps(other, JSON_ENCODE_ANY);
        code = tool_fail(DCM_ERR_FILE,
                         "%s: its %s is %.200s, here it is %.200s: not a record of this model and these options",
                         run->side->name, key, their ? their : "missing", own ? own : "unknown");
        free(own);
        free(their);
    }
    json_decref(ours);
    return code;
}

const record_cache *check_record_cache(const check_run *run, uint64_t step)
{
    for (size_t i = 0; i < run->against->caches; i++)
        if (run->against->cache[i].step == step)
            return &run->against->cache[i];
    return NULL;
}
