/* Option groups that several commands share, and what they open. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <dcm/device.h>
#include <dcm/plan.h>
#include <dcm/session.h>

#include "args.h"

/* --device, --threads, --max-memory, --no-tuning, --tier; --strict. */
typedef struct device_options {
    const char *device; /* NULL: $DCM_DEVICE, else "auto" */
    int64_t threads;
    arg_memory max_memory;
    bool no_tuning; /* or $DCM_TUNING is "off" */
    bool strict;
    arg_texts tiers; /* behind those of $DCM_TIERS */
} device_options;

void options_add_device(args *a, device_options *o);

/* The same without --device. */
void options_add_limits(args *a, device_options *o);

/* --tier alone. */
void options_add_tiers(args *a, device_options *o);

/* --strict. */
void options_add_strict(args *a, device_options *o);

/* Open the device that the options name. 0, or the exit code after a message. */
int options_open_device(const device_options *o, dcm_device **device);

/* Most bytes that the options and the device allow; 0: not known. */
size_t options_memory_limit(const device_options *o, const dcm_device *device);

/* -v, -q: set the log level once parsed; both at once is wrong usage. */
typedef struct verbosity_options {
    bool verbose, quiet;
} verbosity_options;

void options_add_verbosity(args *a, verbosity_options *o);
int options_apply_verbosity(const verbosity_options *o);

/* --cache, --group, --sinks, --merge, --window, --log-r, --far-limit, --kv, --chunk. Start from CACHE_OPTIONS_DEFAULT.
 */
typedef struct cache_options {
    int kind; /* dcm_cache_kind */
    int64_t group, sinks, window;
    const char *merge;
    double log_r;
    int64_t far_limit;
    int kv;        /* dcm_kv_type */
    int64_t chunk; /* 0: the device's own */
} cache_options;

#define CACHE_OPTIONS_DEFAULT                                                                                  \
    ((cache_options){.kind = DCM_CACHE_DCM, .group = 256, .sinks = DCM_DEFAULT_SINKS, .merge = "auto"})

void options_add_cache(args *a, cache_options *o);

/* --kv, --log-r, --far-limit alone. */
arg_option options_kv(int *kv);
arg_option options_log_r(double *log_r);
arg_option options_far_limit(int64_t *far_limit);

/* What was given of --far-limit, as dcm_cache_params.far_limit has it. */
int32_t options_far_limit_param(const args *a, int64_t far_limit);

/* Check options against the policy (one without effect is wrong usage) and make parameters of them. */
int options_cache_params(const args *a, const cache_options *o, dcm_cache_params *params);

#endif
