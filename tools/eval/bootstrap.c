#define _GNU_SOURCE
#include "bootstrap.h"

#include "random.h"
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

static void draw(const bootstrap_stratum *stratum, size_t columns, eval_random *random, double *sums)
{
    for (size_t c = 0; c < columns; c++)
        sums[c] = 0;
    for (size_t i = 0; i < stratum->blocks; i++)
        add_row(sums, stratum->sums + random_below(random, stratum->blocks) * columns, columns);
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
    const size_t resamples = (size_t)o->resamples;
    eval_random random = random_begin((uint64_t)o->seed);
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
            draw(&stratum[s], columns, &random, sums + s * columns);
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

/* Standard deviations on both sides of a normal mean that hold the share: erf(z / sqrt 2), by halving. */
static double normal_width(double share)
{
    double low = 0, high = 10;
    for (int i = 0; i < 60; i++) {
        const double middle = (low + high) / 2;
        *(erf(middle / sqrt(2)) < share ? &low : &high) = middle;
    }
    return high;
}

bootstrap_interval interval_of_share(double percent, double hits, double count)
{
    const double z = normal_width(percent / 100), share = hits / count, scale = 1 + z * z / count;
    const double centre = (share + z * z / (2 * count)) / scale;
    const double half = z / scale * sqrt(share * (1 - share) / count + z * z / (4 * count * count));
    return (bootstrap_interval){fmax(centre - half, 0), fmin(centre + half, 1)};
}
