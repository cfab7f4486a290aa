/*
 * OpenCL devices: finding, opening, programs and buffers. The only folder that sets up OpenCL; src/ops enqueues on
 * it.
 */
#ifndef DEVICE_DEVICE_H
#define DEVICE_DEVICE_H

#include <dcm/status.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>

#include "base/error.h"

/* Work-items that any kernel may have in a group; kernels that would have more take what max_work_group says. */
enum { CLDEV_GROUP_LEAST = 128 };

/* Limits of one device. 0 or false: unsupported or unknown. */
typedef struct cldev_limits {
    char name[256], platform[256], vendor[256], driver[256], version[128], c_version[128];
    char pci[32]; /* "0000:65:00.0": domain, bus, device, function; "" where the driver does not tell */
    cl_device_type type;
    uint32_t compute_units;
    size_t memory, max_alloc, local_memory, max_work_group;
    size_t cache;           /* bytes of the largest cache before global memory; 0: unknown */
    bool usable; /* available, with a compiler, little-endian, OpenCL 1.2 or later, groups of CLDEV_GROUP_LEAST */
    bool unified;           /* host and device share memory */
    bool wide_items;        /* a CPU: one work-item a core-sized slice with vector types pays; else coalesced groups */
    bool exact_divide;      /* divisions and square roots can be asked to round correctly */
    uint32_t vector_floats; /* floats in a vector register, as the driver says */
    bool prefetch_builtin;  /* a CPU: kernels may use clang's __builtin_prefetch, where the compiler has it */
    bool own_cache;         /* the driver keeps compiled kernels itself; giving out a binary costs more than it saves */
    bool host_code;         /* a CPU device runs kernels in this process, and its compiler takes inline assembly */
    /*
     * A work-group sees all that another has written before an atomic that it has seen. OpenCL 1.2 (section 3.3.1)
     * never promises it; the locked instructions of a CPU that is an x86 do it. Chains and attention that stores its
     * new unit rest on it.
     */
    bool ordered;
    uint32_t tiers_on, tiers_off; /* forced, a bit (1 << cldev_tier) each */
} cldev_limits;

/* What some devices have beyond OpenCL C 1.2; kernels use what a probe finds to work. The table is in tiers.c. */
typedef enum cldev_tier {
    CLDEV_DOT4,
    CLDEV_DOT2,
    CLDEV_HALF16,
    CLDEV_FP16,
    CLDEV_SUBGROUPS,
    CLDEV_MMA,
    CLDEV_TIERS
} cldev_tier;

/* What a probe said; not probed yet: all zero. */
typedef struct cldev_tier_state {
    bool probed, works;
    char why[200]; /* it does not */
} cldev_tier_state;

/* One place in the platform/device list. */
typedef struct cldev_entry {
    unsigned platform, index; /* P.D */
    cl_platform_id platform_id;
    cl_device_id id;
    uint32_t threads;    /* for cldev_open: most compute units to use of a CPU; 0: all */
    cldev_limits limits;
} cldev_entry;

/* Add what makes compiled kernels and measured choices another's: platform, device, vendor, versions, driver. */
uint64_t cldev_hash(uint64_t hash, const cldev_limits *limits);

/* All devices of all platforms: *entries is freed with mem_free. No platform at all: DCM_OK with *count = 0. */
dcm_status cldev_list(cldev_entry **entries, size_t *count);

/*
 * Choose by the rules of dcm_device_params.name ("ref" excluded). *found is false when `name` is "auto" and there
 * is no platform at all. Errors: DCM_ERR_USAGE (several fit; they are listed), DCM_ERR_DEVICE (none fits; all are
 * listed).
 */
dcm_status cldev_choose(const char *name, cldev_entry *entry, bool *found);

typedef struct cldev_slab cldev_slab;

/* An opened device: one context and one in-order queue. */
typedef struct cldev {
    cldev_limits limits;
    cl_platform_id platform_id;
    cl_device_id id; /* a sub-device where only some of a CPU's units are used */
    cl_context context;
    cl_command_queue queue;
    cl_command_queue other; /* without profiling while `queue` has it, and the other way round; NULL: not asked for */
    bool profiling;         /* `queue` times what it runs */
    cldev_slab *slab;       /* that lasting buffers are put into; NULL: the next one makes it */
    cldev_tier_state tier[CLDEV_TIERS];
} cldev;

/* Errors name the device. A CPU that cannot be divided is used whole, and it is said. */
dcm_status cldev_open(cldev **device, const cldev_entry *entry, bool profiling);

/* Wait for the queue, then go on with one that times what it runs, or with one that does not. */
dcm_status cldev_profile(cldev *device, bool on);

/* Waits for the queue, then releases; NULL and pointers to NULL are accepted. */
void cldev_close(cldev **device);

/*
 * A buffer of `bytes`, at least 1; released by clReleaseMemObject. On CPUs the large ones, and all that are `lasting`
 * (weights: they are put side by side), are memory of this process in huge pages where the system has some: a step
 * reads so many small pages that finding them takes time, and huge ones share the caches more evenly.
 */
dcm_status cldev_buffer_new(cldev *device, size_t bytes, bool lasting, cl_mem *buffer);

/* No lasting buffers are added to those there are; for cldev_close. */
void cldev_buffers_close(cldev *device);

/*
 * What the probe of a tier says, whatever is forced: now where it was not probed before, a small kernel is built, run
 * and compared. What does not build, run or give the right numbers is not there; `why` is logged at DCM_LOG_DEBUG.
 */
const cldev_tier_state *cldev_tier_probe(cldev *device, cldev_tier tier);

/*
 * All of them, for as long as their builds take. Errors: DCM_ERR_MEMORY and DCM_ERR_DEVICE where not even a plain
 * kernel works.
 */
dcm_status cldev_probe_tiers(cldev *device);

/* Whether kernels may use a tier: it works, and is not forced off. */
bool cldev_has(cldev *device, cldev_tier tier);

/*
 * "dot4=off,mma=on": bits into `on` and `off`, the last of several of a name holds; NULL: none. DCM_ERR_USAGE where a
 * name, which are then listed, or a value is none.
 */
dcm_status cldev_tiers_parse(const char *text, uint32_t *on, uint32_t *off);

/* Take the tiers `off` as not there; DCM_ERR_DEVICE where one of `on` does not work. Both replace what was forced. */
dcm_status cldev_tiers_force(cldev *device, uint32_t on, uint32_t off);

/* "NAME=off,NAME=off ...", as cldev_tiers_parse takes it, of the tiers that kernels have been built for. */
void cldev_tiers_used(const cldev *device, char *out, size_t size);

/* A tier's name, the kernels that use it, and whether those are of the wide shape or of that of groups. */
typedef struct cldev_tier_text {
    const char *name, *needs, *used_by;
    bool wide;
} cldev_tier_text;

const cldev_tier_text *cldev_tier_get(cldev_tier tier);

/*
 * Build one kernel family: cl/common.cl, then cl/FAMILY.cl, with `options` such as "-DHEAD_DIM=64"; "weights+linear" is
 * cl/weights.cl, then cl/linear.cl. Binaries are kept in the cache folder under a key of sources, options, platform,
 * device, driver and format version; a corrupt or unreadable one, or one that others could have written, is rebuilt, an
 * unwritable folder is passed over with a word. Where the driver keeps what it compiles (limits.own_cache: PoCL, whose
 * binaries cost more than they save), nothing is kept here. A failed build is DCM_ERR_DEVICE; its log is shown.
 */
dcm_status cldev_build(cldev *device, const char *family, const char *options, cl_program *program);

/* "gpu", "accelerator", "cpu" or "custom"; of several types the one that ranks highest. */
const char *cldev_type_name(cl_device_type type);

/* "CL_OUT_OF_RESOURCES" for -5; never NULL. */
const char *cldev_error_name(cl_int error);

/*
 * DCM_OK for CL_SUCCESS; else the status that fits the error (memory or device), with `call` and the error's name
 * in the message.
 */
dcm_status cldev_check(cl_int error, const char *call);

/* Run an OpenCL call that returns its error; its own text stands in the message. */
#define CL_TRY(STATUS, LABEL, CALL) DCM_TRY(STATUS, LABEL, cldev_check((CALL), #CALL))

/* What --probe measures. */
typedef struct cldev_probe {
    double read_gb_s;     /* best of several sums over a buffer larger than the caches */
    double launch_us;     /* per empty kernel in a full queue, best of several queues */
    double round_trip_us; /* enqueue, run and wait, one at a time: the best */
    size_t largest_alloc; /* largest buffer that could be written and read back, at places spread over it */
} cldev_probe;

/*
 * The first of them alone, by kernels that read about `bytes` each (0: as much as one buffer has) of a buffer of at
 * most `room`, each what the others have driven out of the caches. DCM_ERR_DEVICE where a sum that was timed is wrong,
 * DCM_ERR_MEMORY.
 */
dcm_status cldev_measure_read(cldev *device, size_t bytes, size_t room, double *gb_s);

/* The next two alone. */
dcm_status cldev_measure_launch(cldev *device, double *launch_us, double *round_trip_us);

/* Nothing else should run meanwhile. DCM_ERR_DEVICE where a sum that was timed is wrong. */
dcm_status cldev_measure(cldev *device, cldev_probe *probe);

/* Source of a family as embedded by the build: one entry a file of cl/. */
typedef struct cl_source {
    const char *family; /* file name without .cl */
    const char *file;   /* "cl/attention.cl" for #line */
    const unsigned char *text;
    size_t size;
} cl_source;

/* Terminated by an entry with family NULL. */
extern const cl_source cl_sources[];

#endif
