#define _GNU_SOURCE
#include "bench.h"
#include "numbers.h"
#include "progress.h"
#include "tool.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    SLICE = 512,
    CHUNK_MAX = 65536,
    WARM_STEPS = 8,
    WARM_MERGED = 24,
    /* Steps that are profiled: so many, or as many as this time allows but the fewest; those before them are not. */
    PROFILED = 64,
    PROFILED_MIN = 8,
    PROFILE_SECONDS = 5,
    PROFILE_WARM = 2,
    FILL_READ = 2 /* tokens read after filling at once */
};

/* One sequence on its way through the depths of a test. */
typedef struct pass {
    bench *b;
    dcm_session *session;
    const dcm_cache_params *params;
    dcm_plan plan; /* dcm: the session's own schedule, for the actions */
    uint64_t position;
    uint64_t filled; /* tokens read to get to a depth, and the seconds of it */
    double fill_seconds;
} pass;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- What is fed ---- */

/*
 * Read `count` tokens as a prompt; the logits of the last make it wait for the end. Stops between steps on a signal.
 * `shown`: where nothing is timed closely; NULL for none.
 */
static dcm_status read_prompt(pass *p, uint64_t count, progress *shown)
{
    static int32_t ids[CHUNK_MAX];
    const uint32_t chunk = dcm_session_chunk(p->session);
    const uint64_t first = p->position;
    const uint64_t most = chunk < SLICE ? SLICE / chunk * chunk : chunk < CHUNK_MAX ? chunk : CHUNK_MAX;
    while (count && !tool_stopped()) {
        const uint64_t n = count < most ? count : most;
        for (uint64_t i = 0; i < n; i++)
            ids[i] = bench_token(p->b->seed, p->position + i, p->b->r.info.vocab);
        const dcm_status status = dcm_session_feed(p->session, ids, n, count == n ? p->b->logits : NULL);
        if (status != DCM_OK)
            return status;
        for (uint64_t i = 0; p->params->kind == DCM_CACHE_DCM && i < n; i++)
            dcm_plan_step(&p->plan);
        p->position += n;
        count -= n;
        if (shown)
            progress_at(shown, p->position - first);
    }
    return count ? DCM_ERR_INTERRUPTED : DCM_OK;
}

/* --fill: all but the last tokens at once; these make what a session makes with its first steps. */
static dcm_status fill_at_once(pass *p, uint64_t depth)
{
    const uint64_t read = depth < FILL_READ ? depth : FILL_READ;
    dcm_status status = dcm_session_fill(p->session, depth - read, p->b->seed);
    if (status == DCM_OK) {
        p->position = depth - read;
        if (p->params->kind == DCM_CACHE_DCM)
            dcm_plan_skip(&p->plan, p->position);
    }
    for (uint64_t i = 0; i < read && status == DCM_OK; i++)
        status = read_prompt(p, 1, NULL);
    return status;
}

/* Read up to `depth`, and add to the time that filling takes. */
static dcm_status fill(pass *p, uint64_t depth)
{
    if (p->b->fill)
        return fill_at_once(p, depth);
    const uint64_t before = p->position, count = depth - before, start = now_ns();
    progress shown;
    progress_begin(&shown, p->b->quiet, count);
    const dcm_status status = read_prompt(p, count, &shown);
    p->filled += p->position - before;
    p->fill_seconds += (double)(now_ns() - start) * 1e-9;
    progress_end(&shown);
    return status;
}

static dcm_status pass_open(pass *p, bench *b, const dcm_cache_params *params)
{
    dcm_session_close(&p->session);
    *p = (pass){.b = b, .params = params};
    if (params->kind == DCM_CACHE_DCM)
        dcm_plan_init(&p->plan, params->group, params->sinks < 0 ? 0 : (uint32_t)params->sinks);
    dcm_device_reset_peak(b->r.device);
    return dcm_session_open(&p->session, b->r.model, params);
}

/* ---- Cases ---- */

static void note_action(pass *p, size_t units_before, bench_step *step)
{
    static const char *const names[] = {"append", "merge", "retire"};
    step->action = names[0];
    step->level = -1;
    if (p->params->kind == DCM_CACHE_DCM) {
        const dcm_action action = dcm_plan_step(&p->plan);
        step->action = names[action.kind];
        step->level = action.level;
    } else if (p->params->kind == DCM_CACHE_WINDOW && units_before == p->params->window) {
        step->action = "evict";
    }
}

static dcm_status decode_steps(pass *p, bench_case *c, double *seconds)
{
    dcm_session_stats stats;
    uint64_t total = 0;
    dcm_session_get_stats(p->session, &stats);
    for (uint64_t i = 0; i < c->size; i++) {
        bench_step *step = &c->step[c->steps];
        const int32_t id = bench_token(p->b->seed, p->position, p->b->r.info.vocab);
        const size_t before = stats.units;
        const uint64_t start = now_ns();
        const dcm_status status = dcm_session_feed(p->session, &id, 1, p->b->logits);
        const uint64_t ns = now_ns() - start;
        if (status != DCM_OK)
            return status;
        dcm_session_get_stats(p->session, &stats);
        *step = (bench_step){.token = ++p->position, .ns = ns, .units = stats.units, .repetition = c->repetitions};
        note_action(p, before, step);
        c->steps++;
        total += ns;
        if (tool_stopped())
            return DCM_ERR_INTERRUPTED;
    }
    *seconds = (double)total * 1e-9;
    return DCM_OK;
}

/* The same with the energy it takes. */
static dcm_status decode(pass *p, bench_case *c, double *seconds)
{
    energy *meter = &p->b->meter;
    const size_t before = c->steps;
    double lasted;
    energy_start(meter);
    const dcm_status status = decode_steps(p, c, seconds);
    c->joules += energy_stop(meter, &lasted);
    c->metered_seconds += lasted;
    c->metered_steps += c->steps - before;
    return status;
}

/* ---- Profiles ---- */

/* Decode on, counting; the first steps make the queue and are not counted. */
static dcm_status profile_decode(pass *p, bench_case *c)
{
    const uint64_t steps = PROFILE_WARM + (c->size < PROFILED ? c->size : PROFILED), begun = now_ns();
    dcm_status status = DCM_OK;
    for (uint64_t i = 0; i < steps && status == DCM_OK; i++) {
        if (c->profile->tokens >= PROFILED_MIN && now_ns() - begun > PROFILE_SECONDS * (uint64_t)1000000000)
            break;
        dcm_profile counted;
        status = dcm_device_profile(p->b->r.device, true, NULL);
        const uint64_t start = now_ns();
        if (status == DCM_OK)
            status = read_prompt(p, 1, NULL);
        const uint64_t ns = now_ns() - start;
        if (status == DCM_OK)
            status = dcm_device_profile(p->b->r.device, true, &counted);
        if (status == DCM_OK && i >= PROFILE_WARM)
            bench_profile_add(c->profile, &counted, 1, ns);
    }
    return status;
}

/* Fill a new sequence to the depth and read the prompt once more, counting. */
static dcm_status profile_prompt(pass *p, bench_case *c)
{
    dcm_profile counted;
    dcm_status status = pass_open(p, p->b, &c->policy->params);
    if (status == DCM_OK)
        status = fill(p, c->depth);
    if (status == DCM_OK)
        status = dcm_device_profile(p->b->r.device, true, NULL);
    const uint64_t start = now_ns();
    if (status == DCM_OK)
        status = read_prompt(p, c->size, NULL);
    const uint64_t ns = now_ns() - start;
    if (status == DCM_OK)
        status = dcm_device_profile(p->b->r.device, true, &counted);
    if (status == DCM_OK)
        bench_profile_add(c->profile, &counted, c->size, ns);
    return status;
}

/* After the last repetition. A case that was measured stays so when this fails: it is said, and no column has it. */
static dcm_status profile(pass *p, bench_case *c)
{
    if (!c->decode && !p->b->breakdown)
        return DCM_OK;
    c->profile = calloc(1, sizeof *c->profile);
    dcm_status status = !c->profile ? DCM_ERR_MEMORY : c->decode ? profile_decode(p, c) : profile_prompt(p, c);
    if (status == DCM_ERR_INTERRUPTED)
        return status;
    if (status != DCM_OK)
        fprintf(stderr, "%s: %s, %s: profiled only %" PRIu64 " tokens: %s\n", tool_name(), c->test, c->name,
                c->profile ? c->profile->tokens : 0, c->profile ? dcm_error() : "no room");
    if (!c->profile || !c->profile->tokens) {
        free(c->profile);
        c->profile = NULL;
    }
    if (status != DCM_OK)
        dcm_session_close(&p->session);
    return dcm_device_profile(p->b->r.device, false, NULL);
}

/* Of as many bytes at a time as given, 0: most. A device too full for it leaves 0: not measured. */
static double read_speed(const bench *b, size_t bytes)
{
    double gb_s = 0;
    return dcm_device_read_speed(b->r.device, bytes, &gb_s) == DCM_OK ? gb_s : 0;
}

/* Bring the sequence to the case's depth and do it once. */
static dcm_status measure(pass *p, bench_case *c)
{
    double seconds = 0;
    dcm_status status = fill(p, c->depth);
    if (status != DCM_OK)
        return status;
    if (c->decode) {
        status = decode(p, c, &seconds);
    } else {
        const uint64_t start = now_ns();
        status = read_prompt(p, c->size, NULL);
        seconds = (double)(now_ns() - start) * 1e-9;
    }
    dcm_session_stats stats;
    dcm_session_get_stats(p->session, &stats);
    c->units = stats.units;
    c->unit_bytes = stats.unit_bytes;
    c->cache_bytes = stats.cache_bytes;
    c->peak_bytes = stats.peak_bytes;
    c->host_peak_bytes = bench_host_peak();
    if (status != DCM_OK)
        return status;
    p->b->failed = numbers_check(p->b->logits, p->b->r.info.vocab, p->session, p->params, p->position);
    if (p->b->failed)
        return DCM_ERR_FILE;
    c->prefill_rate[c->repetitions] = p->filled ? (double)p->filled / p->fill_seconds : 0;
    c->rate[c->repetitions++] = (double)c->size / seconds;
    return DCM_OK;
}

/* One repetition of one test at all its depths. */
static dcm_status run_pass(bench *b, bench_case *cases)
{
    pass p = {0};
    dcm_status status = DCM_OK;
    for (size_t d = 0; d < b->depths && status == DCM_OK; d++) {
        bench_case *c = &cases[d];
        if (c->state == BENCH_NO_MEMORY)
            continue;
        if (!p.session || p.position > c->depth || b->fill) {
            bench_reset_host_peak();
            status = pass_open(&p, b, &c->policy->params);
        }
        if (status == DCM_OK && !bench_fits(b, p.session, c))
            continue;
        if (status == DCM_OK)
            status = measure(&p, c);
        if (status == DCM_OK && c->repetitions == b->repetitions) {
            if (c->decode)
                c->read_gb_s = read_speed(b, (size_t)b->r.info.step_bytes + c->units * c->unit_bytes);
            status = profile(&p, c);
        }
        if (status == DCM_ERR_MEMORY)
            bench_refuse(b, p.session, c, b->depths - d - 1, dcm_error());
        else if (status == DCM_ERR_INTERRUPTED && (c->steps || c->repetitions))
            c->state = BENCH_INTERRUPTED;
    }
    dcm_session_close(&p.session);
    return status == DCM_ERR_MEMORY ? DCM_OK : status;
}

/* ---- All of it ---- */

/*
 * Nothing of what is timed later may be built, or touched for the first time, then: a short prompt and some steps with
 * the policy's own parameters; with dcm also a group so short that merges happen at once.
 */
static dcm_status warm_up(bench *b, policy *one)
{
    pass p = {0};
    dcm_status status = pass_open(&p, b, &one->params);
    dcm_session_stats stats;
    if (status == DCM_OK) {
        dcm_session_get_stats(p.session, &stats);
        policies_settle_merge(&b->policies, &one->params, p.session);
        for (size_t i = 0; i < b->per_policy; i++) {
            bench_case *c = &b->cases[(size_t)(one - b->policies.item) * b->per_policy + i];
            policy_text(&one->params, stats.merge, c->name, sizeof c->name);
        }
    }
    if (status == DCM_OK && b->warmup)
        status = read_prompt(&p, b->warmup, NULL);
    for (int i = 0; i < WARM_STEPS && b->warmup && status == DCM_OK; i++)
        status = read_prompt(&p, 1, NULL);
    if (status == DCM_OK && b->warmup && one->params.kind == DCM_CACHE_DCM) {
        dcm_cache_params merging = one->params;
        merging.group = DCM_GROUP_MIN;
        status = pass_open(&p, b, &merging);
        for (int i = 0; i < WARM_MERGED && status == DCM_OK; i++)
            status = read_prompt(&p, 1, NULL);
    }
    dcm_session_close(&p.session);
    return status;
}

static void say_done(const bench *b, const bench_case *c)
{
    if (!b->quiet && isatty(STDERR_FILENO))
        for (size_t d = 0; d < b->depths; d++)
            if (c[d].repetitions)
                fprintf(stderr, "%s: %s, %s: %.1f tokens/s (%u of %u)\n", tool_name(), c[d].test, c[d].name,
                        c[d].rate[c[d].repetitions - 1], c[d].repetitions, b->repetitions);
}

static dcm_status run_policy(bench *b, policy *one)
{
    bench_case *cases = &b->cases[(size_t)(one - b->policies.item) * b->per_policy];
    dcm_status status = warm_up(b, one);
    if (status == DCM_ERR_MEMORY) {
        bench_refuse(b, NULL, cases, b->per_policy - 1, dcm_error());
        return DCM_OK;
    }
    for (size_t i = 0; i < b->per_policy; i += b->depths) {
        for (uint32_t k = 0; k < b->repetitions && status == DCM_OK; k++) {
            status = run_pass(b, &cases[i]);
            say_done(b, &cases[i]);
        }
        for (size_t d = 0; d < b->depths; d++)
            if (cases[i + d].state == BENCH_WAITING && cases[i + d].repetitions)
                cases[i + d].state = cases[i + d].repetitions == b->repetitions ? BENCH_OK : BENCH_INTERRUPTED;
    }
    return status;
}

int bench_run(bench *b)
{
    dcm_status status = DCM_OK;
    for (size_t i = 0; i < b->policies.count && status == DCM_OK; i++)
        status = run_policy(b, &b->policies.item[i]);
    const int stopped = tool_stopped();
    if (!stopped && status == DCM_OK)
        b->read_end = read_speed(b, 0);
    if (stopped || b->failed)
        return stopped ? stopped : b->failed;
    return status == DCM_OK ? 0 : tool_fail_library(status);
}
