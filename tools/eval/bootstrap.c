#define _GNU_SOURCE
#include "bootstrap.h"

#include "tool.h"

#include <math.h>
#include <stdlib.h>

void bootstrap_add_options(args *a, bootstrap_options *o)
{
    const arg_option options[] = {
        {"interval", 0, ARG_REAL, &o->percent, "PERCENT", "Width of the intervals: the share of resamples inside.", 1,
         100},
        {"resamples", 0, ARG_INT, &o->resamples, "N", "Resamples that the intervals are made of.", 2, 1000000},
        {"seed", 0, ARG_INT, &o->seed, "N", "Start of the random numbers.", 0, INT64_MAX, .show_zero = true},
    };
    args_add(a, "Intervals", options, sizeof options / sizeof *options);
}

static void add_row(double *to, const double *row, size_t columns)
{
    for (size_t c = 0; c < columns; c++)
        to[c] += row[c];
}

void bootstrap_total(const bootstrap_stratum *stratum, size_t columns, double *sums)
{
    for (size_t c = 0; c < columns; c++)
        sums[c] = 0;
    for (size_t i = 0; i < stratum->blocks; i++)
        add_row(sums, stratum->sums + i * columns, columns);
}

static void draw(const bootstrap_stratum *stratum, size_t columns, unsigned short state[3], double *sums)
{
    for (size_t c = 0; c < columns; c++)
        sums[c] = 0;
    for (size_t i = 0; i < stratum->blocks; i++) {
        const size_t block = (size_t)(erand48(state) * (double)stratum->blocks);
        add_row(sums, stratum->sums + block * columns, columns);
    }
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const double *sorted, size_t count, double share)
{
    const double at = share * (double)(count - 1);
    const size_t below = (size_t)at, above = below + 1 < count ? below + 1 : below;
    return sorted[below] == sorted[above] ? sorted[below]
                                          : sorted[below] + (at - (double)below) * (sorted[above] - sorted[below]);
}

static bootstrap_interval make_interval(double *value, size_t count, double percent)
{
    for (size_t i = 0; i < count; i++)
        if (isnan(value[i]))
            return (bootstrap_interval){NAN, NAN};
    qsort(value, count, sizeof *value, compare);
    const double outside = (1 - percent / 100) / 2;
    return (bootstrap_interval){quantile(value, count, outside), quantile(value, count, 1 - outside)};
}

int bootstrap(const bootstrap_options *o, const bootstrap_stratum *stratum, size_t strata, size_t columns,
              bootstrap_statistic *statistic, const void *context, size_t outputs, bootstrap_interval *interval)
{
    const uint64_t seed = (uint64_t)o->seed ^ (uint64_t)o->seed >> 32;
    const size_t resamples = (size_t)o->resamples;
    unsigned short state[3] = {0x330e, (unsigned short)seed, (unsigned short)(seed >> 16)};
    bool enough = strata > 0;
    for (size_t s = 0; s < strata; s++)
        enough = enough && stratum[s].blocks > 1;
    for (size_t i = 0; i < outputs; i++)
        interval[i] = (bootstrap_interval){NAN, NAN};
    if (!enough)
        return 0;
    double *sums = malloc((strata * columns + outputs) * sizeof *sums), *out = sums + strata * columns;
    double *values = malloc(outputs * resamples * sizeof *values); /* (output, resample) */
    for (size_t r = 0; r < resamples && sums && values; r++) {
        for (size_t s = 0; s < strata; s++)
            draw(&stratum[s], columns, state, sums + s * columns);
        statistic(context, sums, out);
        for (size_t i = 0; i < outputs; i++)
            values[i * resamples + r] = out[i];
    }
    for (size_t i = 0; i < outputs && sums && values; i++)
        interval[i] = make_interval(values + i * resamples, resamples, o->percent);
    const bool done = sums && values;
    free(sums);
    free(values);
    return done ? 0 : tool_fail(DCM_ERR_MEMORY, "no room for %zu resamples: lower --resamples", resamples);
}
