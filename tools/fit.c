#include "fit.h"

#include "tool.h"

#include <inttypes.h>
#include <stdio.h>

/* Bytes of one cache; SIZE_MAX when that is not to be had. */
static size_t cache_bytes(const runtime *r, const dcm_cache_params *params, uint64_t tokens, size_t *unit)
{
    size_t units, bytes;
    if (dcm_cache_bytes(&r->info, params, tokens, &units, &bytes) != DCM_OK)
        return SIZE_MAX;
    *unit = units ? bytes / units : 0;
    return bytes;
}

/*
 * The largest group length whose cache of so many tokens fits into `room` bytes, into a text; "" for none. A third
 * stays free for tables, scratch, and the step by which the cache grows.
 */
static void suggest(const runtime *r, const dcm_session *session, dcm_kv_type kv, uint64_t tokens, size_t room,
                    char *out, size_t size)
{
    *out = 0;
    for (uint32_t group = DCM_GROUP_MAX; group >= DCM_GROUP_MIN; group /= 2) {
        const dcm_cache_params dcm = {.kind = DCM_CACHE_DCM, .group = group, .kv = kv};
        size_t unit = 0;
        const size_t bytes = cache_bytes(r, &dcm, tokens, &unit);
        const size_t step = dcm_session_chunk(session) * unit; /* on top while a step runs */
        if (bytes <= SIZE_MAX - step && bytes + step <= room / 3 * 2) {
            snprintf(out, size, "; --cache dcm -L %" PRIu32 " would fit, with %zu bytes", group, bytes + step);
            return;
        }
    }
}

int fit_check(const runtime *r, const device_options *device, const dcm_session *session,
              const dcm_cache_params *const *params, size_t count, uint64_t tokens)
{
    const size_t limit = options_memory_limit(device, r->device);
    dcm_session_stats stats;
    dcm_session_get_stats(session, &stats);
    const size_t beside = stats.weight_bytes + stats.scratch_bytes + stats.table_bytes;
    if (!limit || beside > limit)
        return 0;
    const size_t room = limit - beside;
    size_t needed = 0, unit;
    for (size_t i = 0; i < count; i++) {
        const size_t bytes = cache_bytes(r, params[i], tokens, &unit);
        needed = bytes > SIZE_MAX - needed ? SIZE_MAX : needed + bytes;
    }
    if (needed <= room)
        return 0;
    char other[128];
    suggest(r, session, params[0]->kv, tokens, room, other, sizeof other);
    return tool_fail(DCM_ERR_MEMORY,
                     "the cache of %" PRIu64 " tokens needs %zu bytes beside the %zu in use, but %zu of %zu are left%s",
                     tokens, needed, beside, room, limit, other);
}
