#include "progress.h"

#include "runtime.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

/* Seconds: short readings show nothing, and a terminal need not be written to more often. */
static const double first_after = 0.5, interval = 0.2;

void progress_begin(progress *p, bool quiet, uint64_t total)
{
    const double now = runtime_seconds();
    *p = (progress){.on = !quiet && isatty(STDERR_FILENO), .total = total, .start = now};
}

/* "1:02:03" or "2:03" */
static void print_time(double seconds)
{
    const uint64_t s = (uint64_t)(seconds + 0.5);
    if (s >= 3600)
        fprintf(stderr, "%" PRIu64 ":%02" PRIu64 ":%02" PRIu64, s / 3600, s / 60 % 60, s % 60);
    else
        fprintf(stderr, "%" PRIu64 ":%02" PRIu64, s / 60, s % 60);
}

void progress_at(progress *p, uint64_t done)
{
    const double now = runtime_seconds(), spent = now - p->start;
    if (!p->on || !done || spent < first_after || now - p->shown < interval)
        return;
    const double rate = (double)done / spent;
    p->shown = now;
    if (p->total) {
        fprintf(stderr, "\r%" PRIu64 " of %" PRIu64 " tokens, %.1f tokens/s, ", done, p->total, rate);
        print_time(p->total > done ? (double)(p->total - done) / rate : 0);
        fputs(" left\033[K", stderr);
    } else {
        fprintf(stderr, "\r%" PRIu64 " tokens, %.1f tokens/s\033[K", done, rate);
    }
}

void progress_end(progress *p)
{
    if (p->shown > 0)
        fputs("\r\033[K", stderr);
    p->on = false;
}
