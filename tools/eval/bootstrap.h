/* Intervals by resampling: blocks of sums are drawn with replacement, the same ones for everything that is compared. */
#ifndef BOOTSTRAP_H
#define BOOTSTRAP_H

#include <stddef.h>
#include <stdint.h>

#include "args.h"

/* --interval, --resamples, --seed. */
typedef struct bootstrap_options {
    double percent; /* of the resamples that lie inside an interval */
    int64_t resamples, seed;
} bootstrap_options;

#define BOOTSTRAP_OPTIONS_DEFAULT ((bootstrap_options){.percent = 95, .resamples = 1000})

void bootstrap_add_options(args *a, bootstrap_options *o);

/* What is drawn from: `blocks` rows of sums, a text's; from every stratum as many blocks as it has. */
typedef struct bootstrap_stratum {
    const double *sums; /* (blocks, columns) */
    size_t blocks;
} bootstrap_stratum;

typedef struct bootstrap_interval {
    double low, high; /* NAN where a stratum has fewer than two blocks, or a resample gives NAN */
} bootstrap_interval;

/* `outputs` values of the sums of every stratum, (strata, columns), into `out`. */
typedef void bootstrap_statistic(const void *context, const double *sums, double *out);

/*
 * Intervals of the statistic's values: quantiles of its values over the resamples, interpolated between neighbours.
 * Blocks are drawn by random.h, stratum after stratum, resample after resample, so that the same seed and numbers of
 * blocks give the same draws. 0, or 5 after a message.
 */
int bootstrap(const bootstrap_options *o, const bootstrap_stratum *stratum, size_t strata, size_t columns,
              bootstrap_statistic *statistic, const void *context, size_t outputs, bootstrap_interval *interval);

/* Wilson's interval of a share, `hits` of `count` trials: also where all or none were hits. */
bootstrap_interval interval_of_share(double percent, double hits, double count);

/* Sums over a stratum's blocks, `columns` of them. */
void bootstrap_total(const bootstrap_stratum *stratum, size_t columns, double *sums);

#endif
