#include "energy.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void energy_open(energy *e, const dcm_device_info *device)
{
    *e = (energy){0};
    const bool gpu = strcmp(device->type, "gpu") == 0;
    const bool found = gpu ? energy_open_nvml(&e->source, device, e->missing, sizeof e->missing)
                           : energy_open_rapl(&e->source, e->missing, sizeof e->missing);
    if (!found)
        e->source.read = NULL;
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&e->wake, &clock);
    pthread_condattr_destroy(&clock);
    pthread_mutex_init(&e->lock, NULL);
}

static void give_up(energy *e, const char *why)
{
    if (e->source.close)
        e->source.close(&e->source);
    e->source = (energy_source){0};
    if (why)
        snprintf(e->missing, sizeof e->missing, "%s", why);
}

void energy_close(energy *e)
{
    if (e->running)
        energy_stop(e, &(double){0});
    give_up(e, NULL);
}

void energy_text(const energy *e, char *out, size_t size)
{
    const energy_source *s = &e->source;
    out[0] = '\0';
    if (s->read)
        snprintf(out, size, "%s, %s (%s)", s->method, s->scope, s->name);
}

/* ---- Measuring ---- */

/* Add what was used since the last sample: of a power, its mean over the two samples. */
static void sample(energy *e)
{
    double value;
    const double at = now();
    if (!e->source.read(&e->source, &value)) {
        e->failed = true;
    } else if (e->source.is_power) {
        e->joules += (e->watts + value) / 2 * (at - e->sampled);
        e->watts = value;
    } else {
        e->joules += value;
    }
    e->sampled = at;
}

static void *sampler(void *data)
{
    energy *e = data;
    pthread_mutex_lock(&e->lock);
    while (!e->stopping) {
        const double until = e->sampled + e->source.period;
        const struct timespec t = {.tv_sec = (time_t)until, .tv_nsec = (long)((until - floor(until)) * 1e9)};
        if (pthread_cond_timedwait(&e->wake, &e->lock, &t) == ETIMEDOUT)
            sample(e);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

void energy_start(energy *e)
{
    if (!e->source.read)
        return;
    e->failed = e->stopping = false;
    sample(e);
    e->joules = 0;
    e->began = e->sampled;
    e->running = true;
    e->sampling = e->source.period > 0 && pthread_create(&e->thread, NULL, sampler, e) == 0;
    if (e->source.period > 0 && !e->sampling)
        e->failed = true;
}

double energy_stop(energy *e, double *seconds)
{
    *seconds = 0;
    if (!e->running)
        return NAN;
    if (e->sampling) {
        pthread_mutex_lock(&e->lock);
        e->stopping = true;
        pthread_cond_signal(&e->wake);
        pthread_mutex_unlock(&e->lock);
        pthread_join(e->thread, NULL);
    }
    sample(e);
    e->running = e->sampling = false;
    *seconds = e->sampled - e->began;
    return e->failed ? NAN : e->joules;
}

void energy_measure_idle(energy *e, double seconds)
{
    struct timespec left = {.tv_sec = (time_t)seconds, .tv_nsec = (long)((seconds - floor(seconds)) * 1e9)};
    char why[ENERGY_TEXT];
    double lasted;
    if (!e->source.read)
        return;
    energy_start(e);
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
    const double joules = energy_stop(e, &lasted);
    if (joules > 0) {
        e->idle_watts = joules / lasted;
        return;
    }
    snprintf(why, sizeof why, "%s of %.100s: %s", e->source.method, e->source.name,
             isnan(joules) ? "it cannot be read any more" : "the counter stands still");
    give_up(e, why);
}
