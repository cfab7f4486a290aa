/* What a case takes: of the host, and of the device before it is tried. */
#include "bench.h"
#include "tool.h"

void bench_reset_host_peak(void)
{
    FILE *out = fopen("/proc/self/clear_refs", "w");
    if (!out)
        return;
    fputs("5", out);
    fclose(out);
}

size_t bench_host_peak(void)
{
    char line[256];
    size_t kib = 0;
    FILE *in = fopen("/proc/self/status", "r");
    if (!in)
        return 0;
    while (fgets(line, sizeof line, in))
        if (sscanf(line, "VmHWM: %zu", &kib) == 1)
            break;
    fclose(in);
    return kib << 10;
}

/* Bytes in all once the case's tokens are in the cache: what is allocated beside caches, and the cache's own. */
static size_t bytes_needed(const bench *b, const dcm_session *session, const bench_case *c)
{
    dcm_session_stats stats = {.weight_bytes = b->r.info.weight_bytes};
    size_t units, cache, all;
    if (session)
        dcm_session_get_stats(session, &stats);
    if (dcm_cache_bytes(&b->r.info, &c->policy->params, c->depth + c->size, &units, &cache) != DCM_OK ||
        __builtin_add_overflow(cache, stats.weight_bytes + stats.scratch_bytes + stats.table_bytes, &all))
        return SIZE_MAX;
    return all;
}

void bench_refuse(const bench *b, const dcm_session *session, bench_case *c, size_t deeper, const char *why)
{
    for (size_t i = 0; i <= deeper; i++) {
        c[i].state = BENCH_NO_MEMORY;
        c[i].needed = bytes_needed(b, session, &c[i]);
        fprintf(stderr, "%s: %s, %s: left out: at least %zu bytes are needed%s%s\n", tool_name(), c[i].test, c[i].name,
                c[i].needed, why ? ": " : "", why ? why : "");
    }
}

bool bench_fits(const bench *b, const dcm_session *session, bench_case *c)
{
    const size_t needed = bytes_needed(b, session, c);
    char why[96];
    if (!b->memory_limit || needed <= b->memory_limit)
        return true;
    snprintf(why, sizeof why, "the limit is %zu", b->memory_limit);
    bench_refuse(b, session, c, 0, why);
    return false;
}

void bench_refuse_all(bench *b)
{
    char why[96];
    snprintf(why, sizeof why, "the limit is %zu", b->memory_limit);
    bench_refuse(b, NULL, b->cases, b->count - 1, why);
}
