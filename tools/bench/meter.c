/* Energy in a run: what counts it, and how it is told. */
#include "bench.h"

#include <math.h>

static const double IDLE_SECONDS = 0.5;

void bench_meter_open(bench *b)
{
    dcm_device_info info;
    bool decodes = false;
    for (size_t i = 0; i < b->count; i++)
        decodes = decodes || b->cases[i].decode;
    if (!decodes)
        return;
    dcm_device_get_info(b->r.device, &info);
    energy_open(&b->meter, &info);
    energy_measure_idle(&b->meter, fmax(IDLE_SECONDS, 2 * b->meter.source.least));
}

double bench_joules_per_1k(const bench *b, const bench_case *c)
{
    const bool enough = b->meter.source.read && c->metered_steps && c->metered_seconds >= b->meter.source.least;
    return enough ? c->joules / (double)c->metered_steps * 1000 : NAN;
}

double bench_watts(const bench *b, const bench_case *c)
{
    return isfinite(bench_joules_per_1k(b, c)) ? c->joules / c->metered_seconds : NAN;
}

json_t *bench_meter_meta(const bench *b)
{
    const energy *e = &b->meter;
    if (!e->source.read)
        return json_pack("{s:n,s:s}", "energy", "energy_missing", *e->missing ? e->missing : "nothing is decoded");
    return json_pack("{s:{s:s,s:s,s:o,s:f},s:n}", "energy", "method", e->source.method, "scope", e->source.scope, "of",
                     runtime_text(e->source.name), "idle_watts", e->idle_watts, "energy_missing");
}

void bench_meter_note(const bench *b, table_format format)
{
    char text[2 * ENERGY_TEXT], source[ENERGY_TEXT];
    energy_text(&b->meter, source, sizeof source);
    if (*source)
        snprintf(text, sizeof text,
                 "j_per_1k: joules per 1,000 decoded tokens by %s; %.1f W are drawn when idle (not subtracted)", source,
                 b->meter.idle_watts);
    else
        snprintf(text, sizeof text, "j_per_1k: energy is not measured: %s", b->meter.missing);
    if (*source || *b->meter.missing)
        table_note(format, text);
}
