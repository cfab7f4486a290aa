#include "eval.h"

#include "tool.h"

#include <stdio.h>

void eval_add_model(args *a, eval_options *o) { input_add_model(a, &o->model); }

void eval_add_plain_options(args *a, eval_options *o)
{
    const arg_option options[] = {
        {"policies", 0, ARG_TEXT, &o->policies, "A,B,...",
         "Several policies in one run, such as dcm:L=64:S=4:merge=newer,window:W=auto,full; auto is the units of the "
         "first."},
        table_format_option(&o->format),
    };
    args_add(a, "Policies and result", options, sizeof options / sizeof *options);
    options_add_cache(a, &o->cache);
    options_add_device(a, &o->device);
    options_add_strict(a, &o->device);
    options_add_verbosity(a, &o->words);
}

void eval_add_options(args *a, eval_options *o)
{
    bootstrap_add_options(a, &o->intervals);
    eval_add_plain_options(a, o);
}

int eval_take_options(eval *e, const args *a)
{
    const eval_options *o = e->o;
    static const char *const excluded[] = {"cache", "group", "sinks", "merge", "window", "log-r", "far-limit"};
    dcm_cache_params params;
    int code = options_apply_verbosity(&o->words);
    if (code == 0)
        code = options_cache_params(a, &o->cache, &params);
    if (code)
        return code;
    if (!o->policies) {
        e->policies.count = 1;
        e->policies.item[0].params = params;
        return 0;
    }
    for (size_t i = 0; i < sizeof excluded / sizeof *excluded; i++)
        if (args_seen(a, excluded[i]))
            return tool_fail(DCM_ERR_USAGE, "--%s has no effect with --policies: leave one of them out", excluded[i]);
    code = policies_read(&e->policies, o->policies, (dcm_kv_type)o->cache.kv);
    for (size_t i = 0; i < e->policies.count; i++)
        e->policies.item[i].params.chunk = (uint32_t)o->cache.chunk;
    return code;
}

void eval_close(eval *e)
{
    policies_release(&e->policies);
    runtime_close(&e->r);
}

json_t *eval_meta(const eval *e, const char *test)
{
    const bootstrap_options *o = &e->o->intervals;
    json_t *meta = runtime_meta(&e->r);
    json_object_set_new(meta, "test", json_string(test));
    json_object_set_new(meta, "interval", json_real(o->percent));
    json_object_set_new(meta, "resamples", json_integer(o->resamples));
    json_object_set_new(meta, "seed", json_integer(o->seed));
    return meta;
}

void eval_note(const eval *e, table_format format, const char *what)
{
    const bootstrap_options *o = &e->o->intervals;
    char text[256];
    snprintf(text, sizeof text, "low, high: %g %% of %lld resamples of %s", o->percent, (long long)o->resamples, what);
    table_note(format, text);
}

dcm_cache_params eval_full_params(const eval *e)
{
    return (dcm_cache_params){
        .kind = DCM_CACHE_FULL, .kv = (dcm_kv_type)e->o->cache.kv, .chunk = (uint32_t)e->o->cache.chunk};
}

int eval_add_full(eval *e, size_t *index)
{
    policy_list *list = &e->policies;
    const dcm_cache_params full = eval_full_params(e);
    for (*index = 0; *index < list->count; ++*index)
        if (list->item[*index].params.kind == DCM_CACHE_FULL && list->item[*index].params.kv == full.kv)
            return 0;
    if (list->count == POLICIES_MAX)
        return tool_fail(DCM_ERR_USAGE, "--policies: more than %d, with the full cache", POLICIES_MAX);
    list->item[list->count++] = (policy){.params = full};
    return 0;
}

/* ---- Caches ---- */

void eval_cache_note(eval_cache *cache, const dcm_cache_params *params, const dcm_session *session)
{
    dcm_session_stats stats;
    dcm_session_get_stats(session, &stats);
    *cache = (eval_cache){.params = *params, .units = stats.units, .bytes = stats.units * stats.unit_bytes};
    snprintf(cache->merge, sizeof cache->merge, "%s", stats.merge);
    policy_text(params, stats.merge, cache->name, sizeof cache->name);
}

void eval_cache_join(eval_cache *all, const eval_cache *one)
{
    if (!*all->name) {
        *all = *one;
        return;
    }
    if (all->params.window != one->params.window) {
        all->params.window = 0;
        policy_text(&all->params, all->merge, all->name, sizeof all->name);
    }
    if (all->units != one->units)
        all->units = all->bytes = 0;
}

table_cell eval_cache_units(const eval_cache *cache)
{
    return cache->units ? cell_int((int64_t)cache->units) : cell_none();
}

table_cell eval_cache_bytes(const eval_cache *cache)
{
    return cache->bytes ? cell_int((int64_t)cache->bytes) : cell_none();
}

void eval_cells(table_cell *cells, double value, bootstrap_interval interval)
{
    cells[0] = cell_real(value);
    cells[1] = cell_real(interval.low);
    cells[2] = cell_real(interval.high);
}
