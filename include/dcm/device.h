/* Devices: where the arithmetic runs. An OpenCL device, or the C reference. */
#ifndef DCM_DEVICE_H
#define DCM_DEVICE_H

#include <dcm/status.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* One opened device. Used by one thread at a time; several devices may be used by several threads. */
typedef struct dcm_device dcm_device;

/* Zero-initialise, then set what differs from the default. */
typedef struct dcm_device_params {
    /*
     * "auto" or NULL: a GPU before an accelerator before a CPU; the reference where there is no OpenCL platform
     * at all (logged). "ref": the C reference. "ref-float": the same with its sums in float instead of double, in the
     * same order, which shows what rounding alone does. "P.D": platform and device number. Else a case-insensitive
     * part of a device's or platform's name, which must fit exactly one device.
     */
    const char *name;
    int threads;       /* of the reference, or of an OpenCL device that is a CPU; 0: all processors; a GPU ignores it */
    size_t max_memory; /* most bytes this device may hold in all; 0: no limit but the device's own */
    /*
     * Ignore what dcm_device_tune has kept: all choices are the defaults of the device's family. Where it kept an
     * engine for products with many vectors, a prompt's results have other last bits than with it; else no result
     * differs.
     */
    bool no_tuning;
    /*
     * Compute with the same bits as every other strict device, "ref" included, whatever the chunk: own arithmetic in
     * one order (docs/method.md, "What keeps the bits"). Several times slower, with the weights stored as floats; no
     * tuning. A device whose compiler does not keep to it is refused with DCM_ERR_DEVICE; "ref-float" is wrong usage.
     * Training stays as it is.
     */
    bool strict;
    /*
     * Tiers (see dcm_device_tiers) forced on or off: "NAME=on" or "NAME=off", several with commas between, the last of
     * a name holds. NULL: each is used where its probe finds that it works. DCM_ERR_USAGE where there is no such name,
     * which are then listed, and with `strict`, which uses none; DCM_ERR_DEVICE where one that is forced on does not
     * work. The reference has no tiers: names are checked, no more.
     */
    const char *tiers;
} dcm_device_params;

/* What an opened device is. Strings are owned by the device. */
typedef struct dcm_device_info {
    const char *name;
    const char *platform; /* "C reference" for ref */
    const char *driver;
    bool is_ref;
    const char *type;       /* "gpu", "accelerator", "cpu" or "custom"; static; "cpu" for ref */
    const char *pci;        /* its place on the PCI bus, "0000:65:00.0"; "" where that is not told */
    size_t memory_bytes;    /* global memory */
    size_t max_alloc_bytes; /* largest single buffer, as queried */
} dcm_device_info;

/*
 * Open a device. On success *device is set and the caller must close it after everything opened on it; on
 * failure *device is NULL. Errors: DCM_ERR_USAGE (a name that fits several devices: the message lists them),
 * DCM_ERR_DEVICE (none fits, or it fails), DCM_ERR_MEMORY. `params` may be NULL.
 */
DCM_API dcm_status dcm_device_open(dcm_device **device, const dcm_device_params *params);

/* Close and set *device to NULL; NULL and pointers to NULL are accepted. */
DCM_API void dcm_device_close(dcm_device **device);

DCM_API void dcm_device_get_info(const dcm_device *device, dcm_device_info *info);

/*
 * Of the reference: add in float from now on ("ref-float"), or in double again, in the same order; a scorer's network
 * is then in float altogether. Errors: DCM_ERR_USAGE (another device).
 */
DCM_API dcm_status dcm_device_sum_floats(dcm_device *device, bool on);

/*
 * Measure how fast an opened device reads its memory, in GB (10^9 bytes) a second: the best of several rounds of sums,
 * each of about `bytes` (0, and where a round has no room for so many: the largest that fits) at other places of a
 * buffer larger than the caches, which takes up to 1 GiB of what the device and max_memory leave. It reads whole
 * vectors, whatever is in them: no element type is read faster. The reference: 0, nothing is measured. Nothing else
 * should run meanwhile. Errors: DCM_ERR_MEMORY, DCM_ERR_DEVICE.
 */
DCM_API dcm_status dcm_device_read_speed(dcm_device *device, size_t bytes, double *gb_s);

/*
 * Measure what an empty kernel costs on an opened device, in microseconds: one of many in a full queue, and to enqueue
 * one, run it and wait for it; the best of several. The reference: 0, nothing is measured. Nothing else should run
 * meanwhile. Errors: DCM_ERR_DEVICE, DCM_ERR_MEMORY.
 */
DCM_API dcm_status dcm_device_launch_time(dcm_device *device, double *launch_us, double *round_trip_us);

/*
 * What ran on a device, by kernel. `family` groups kernels that do one job: "linear" and "matmul" (weights times one
 * and many vectors, rows of the embedding), "attention", "merge" and "dense" (merges, and the products of a merge
 * model), "cache" (keys and values into their units), "transfer" (kernel "read", "write" or "copy"); more may come. Of
 * the reference the kernels are its operations, and the time is that of the wall.
 */
typedef struct dcm_profile_entry {
    const char *family, *kernel;
    uint32_t rows, cols; /* of the weights multiplied; 0: none, or several matrices in one launch */
    uint64_t items;      /* work-items of one launch: tells apart what one kernel does at several sizes; 0: not known */
    uint64_t launches;
    uint64_t ns; /* of all launches: from their start to their end by the device's clock */
} dcm_profile_entry;

typedef struct dcm_profile {
    const dcm_profile_entry *entries; /* in the order of their first launch; owned by the device */
    size_t count;
    uint64_t
        span_ns; /* from the start of the first to the end of the last; what no entry has of it, the device idled */
    uint64_t wait_ns; /* the host waited for the device; beside it, it prepared and enqueued */
} dcm_profile;

/*
 * Count from now on what runs on the device (`on`), or stop counting. *counted (may be NULL) gets what was counted
 * since the last call that switched counting on, and is valid until the next call; all zero when nothing was. Waits
 * for what runs. While counting is on, an OpenCL device uses a queue of its own that takes times, which makes steps
 * slower; off, nothing of it is left. Errors: DCM_ERR_MEMORY, DCM_ERR_DEVICE (no queue that takes times): nothing is
 * changed.
 */
DCM_API dcm_status dcm_device_profile(dcm_device *device, bool on, dcm_profile *counted);

/*
 * Tuning: what is chosen for a device. Nothing is measured by itself: each choice is the default of the device's
 * family, unless dcm_device_tune measured it and the cache folder has its file for the device, its driver and this
 * version's kernels. One choice, the engine for products with many vectors, decides the order of their sums, and so the
 * last bits of a prompt's results; the others change no bit.
 */

/* One measurement. `error`: the largest found, as a part of what sums of floats may lose; above 1 is wrong. */
typedef struct dcm_tuning_row {
    const char *choice, *value; /* static */
    char what[48];              /* what was computed */
    double us;                  /* microseconds, the median of several; 0: it failed, or was not begun */
    double error;
    const char *status; /* "ok", "wrong", "failed" or "skipped" (time was over); static */
    bool chosen;
} dcm_tuning_row;

/*
 * Measure the choices of an opened device that change no bit, and with `engines` the engines for products with many
 * vectors too, where it has several (at most about 20 s in all); check each candidate's results against sums in double;
 * use and keep the best. *rows is freed with dcm_free. None: the reference, a strict device, and a GPU without
 * `engines`. Nothing else should run meanwhile. Errors: DCM_ERR_MEMORY, DCM_ERR_DEVICE.
 */
DCM_API dcm_status dcm_device_tune(dcm_device *device, bool engines, dcm_tuning_row **rows, size_t *count);

/* One choice in use. All static: `origin` is "default", "file" or "measured". */
typedef struct dcm_tuning_choice {
    const char *choice, *value, *origin, *about;
} dcm_tuning_choice;

enum { DCM_TUNING_CHOICES = 8 };

/* The choices that the device has, into `out`; returns how many there are, none for the reference. */
DCM_API size_t dcm_device_tuning(const dcm_device *device, dcm_tuning_choice out[DCM_TUNING_CHOICES]);

/*
 * Tiers: what some devices have beyond OpenCL C 1.2. Kernels use one where a small kernel of it has been built, run and
 * compared on the device. On and off differ in the last bits of results.
 */
typedef struct dcm_device_tier {
    const char *name, *needs, *used_by; /* static: for params.tiers; what it takes; the kernels that use it */
    bool works;                         /* the probe was right */
    bool used;                          /* it works, is not forced off, and the device takes kernels that use it */
    const char *why;                    /* it is not used; "" where it is; owned by the device */
} dcm_device_tier;

enum { DCM_DEVICE_TIERS = 8 };

/* All tiers into `out`; returns how many there are, none for the reference. Probes what was not probed before. */
DCM_API size_t dcm_device_tiers(dcm_device *device, dcm_device_tier out[DCM_DEVICE_TIERS]);

/* Let dcm_session_stats.peak_bytes count from what the device holds now. */
DCM_API void dcm_device_reset_peak(dcm_device *device);

/* One OpenCL device of this machine, as its driver describes it. */
typedef struct dcm_device_entry {
    unsigned platform_index, device_index; /* "P.D" in dcm_device_params.name */
    char name[256], platform[256], vendor[256], driver[256];
    char version[128], c_version[128]; /* OpenCL; OpenCL C */
    const char *type;                  /* "gpu", "accelerator", "cpu" or "custom"; static */
    uint32_t compute_units;
    size_t memory_bytes;    /* global memory */
    size_t max_alloc_bytes; /* largest single buffer, as queried */
    size_t local_bytes;     /* local memory of a work-group */
    size_t max_work_group;  /* work-items */
    bool unified;           /* host and device share memory */
    bool usable;            /* dcm can run on it: available, with a compiler, OpenCL 1.2 or later, groups of 128 */
} dcm_device_entry;

/*
 * List the OpenCL devices of all platforms, in the order of their numbers. On success *entries is an array of
 * *count entries that the caller frees with dcm_free(); no platform at all is DCM_OK with *count = 0 and *entries =
 * NULL. The C reference is not among them. Errors: DCM_ERR_DEVICE (a platform fails), DCM_ERR_MEMORY.
 */
DCM_API dcm_status dcm_device_list(dcm_device_entry **entries, size_t *count);

enum {
    DCM_PROBE_FEATURES = 1, /* build, run and compare a small kernel for each feature */
    DCM_PROBE_SPEED = 2     /* measure: takes some seconds, and up to 1 GiB of the device */
};

/* What was found by trying. */
typedef struct dcm_device_probe {
    bool fp16;                  /* halves as a type */
    bool subgroups;             /* sub-group shuffles */
    bool dot4;                  /* sums of four byte products (x86's VNNI) */
    double read_gb_s;           /* GB (10^9 bytes) of global memory read in a second */
    double launch_us;           /* microseconds of an empty kernel in a full queue */
    double round_trip_us;       /* microseconds to enqueue a kernel, run it and wait for it */
    size_t largest_alloc_bytes; /* largest buffer that worked, at most max_alloc_bytes */
} dcm_device_probe;

/*
 * Try out one device of the list; `what`: DCM_PROBE_*. Fields not asked for are zero. Errors: DCM_ERR_DEVICE,
 * DCM_ERR_MEMORY.
 */
DCM_API dcm_status dcm_device_try(const dcm_device_entry *entry, unsigned what, dcm_device_probe *probe);

#ifdef __cplusplus
}
#endif

#endif
