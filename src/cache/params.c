#include "base/error.h"
#include "cache/cache.h"

enum { DEFAULT_GROUP = 256, MIN_FAR_LIMIT = 16, MAX_CHUNK = 1 << 16 };

int32_t cache_far_limit(uint32_t group) { return group / 8 > MIN_FAR_LIMIT ? (int32_t)(group / 8) : MIN_FAR_LIMIT; }

static dcm_status check_dcm(dcm_cache_params *p)
{
    dcm_plan probe;
    if (!p->group)
        p->group = DEFAULT_GROUP;
    if (p->window)
        return dcm_fail(DCM_ERR_USAGE, "a window of %u units has no effect with the dcm cache", p->window);
    if (!(p->log_r >= -100 && p->log_r <= 100))
        return dcm_fail(DCM_ERR_USAGE, "log-r weight %g is not in -100 .. 100", (double)p->log_r);
    if (p->far_limit < -1)
        return dcm_fail(DCM_ERR_USAGE, "a limit of %d far units is not in -1 .. %d", p->far_limit, INT32_MAX);
    if (p->far_limit == 0)
        p->far_limit = cache_far_limit(p->group);
    return dcm_plan_init(&probe, p->group, 0);
}

static dcm_status check_window(const dcm_cache_params *p)
{
    if (p->window <= (uint32_t)p->sinks)
        return dcm_fail(DCM_ERR_USAGE, "a window of %u units does not exceed its %d sinks", p->window, p->sinks);
    if (p->window > UINT32_C(1) << 28)
        return dcm_fail(DCM_ERR_USAGE, "a window of %u units is above %u", p->window, UINT32_C(1) << 28);
    return DCM_OK;
}

dcm_status cache_check_params(dcm_cache_params *out, const dcm_cache_params *params)
{
    *out = params ? *params : (dcm_cache_params){0};
    if (out->kv != DCM_KV_F16 && out->kv != DCM_KV_F32)
        return dcm_fail(DCM_ERR_USAGE, "unknown storage type %d for keys and values", (int)out->kv);
    if (out->chunk > MAX_CHUNK)
        return dcm_fail(DCM_ERR_USAGE, "a chunk of %u tokens is above %d", out->chunk, MAX_CHUNK);
    const bool compresses = out->kind == DCM_CACHE_DCM;
    if (!compresses && (out->group || out->merge || out->log_r != 0 || out->far_limit))
        return dcm_fail(DCM_ERR_USAGE,
                        "group length, merge, log-r weight and far limit have no effect without the dcm cache");
    if (out->kind == DCM_CACHE_FULL) {
        if (out->sinks || out->window)
            return dcm_fail(DCM_ERR_USAGE, "sinks and window have no effect with the full cache");
        return DCM_OK;
    }
    if (out->sinks < -1 || out->sinks > 1 << 16)
        return dcm_fail(DCM_ERR_USAGE, "%d sinks: not in 0 .. %d", out->sinks, 1 << 16);
    out->sinks = out->sinks == 0 ? DCM_DEFAULT_SINKS : out->sinks == -1 ? 0 : out->sinks;
    if (out->kind == DCM_CACHE_WINDOW)
        return check_window(out);
    if (!compresses)
        return dcm_fail(DCM_ERR_USAGE, "unknown cache kind %d", (int)out->kind);
    return check_dcm(out);
}

dcm_status dcm_cache_bytes(const dcm_model_info *model, const dcm_cache_params *params, uint64_t n, size_t *units,
                           size_t *bytes)
{
    dcm_cache_params p;
    const dcm_status status = cache_check_params(&p, params);
    if (status != DCM_OK)
        return status;
    uint64_t count = n;
    if (p.kind == DCM_CACHE_DCM)
        count = dcm_units_after(p.group, (uint32_t)p.sinks, n);
    else if (p.kind == DCM_CACHE_WINDOW && n > p.window)
        count = p.window;
    const size_t unit =
        unit_bytes(model->layers, model->kv_heads, model->head_dim, p.kv == DCM_KV_F32 ? KV_F32 : KV_F16);
    *units = (size_t)count;
    if (!size_mul(*units, unit, bytes))
        return dcm_fail(DCM_ERR_MEMORY, "%llu units of %zu bytes exceed the address space", (unsigned long long)count,
                        unit);
    return DCM_OK;
}
