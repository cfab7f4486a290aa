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

/* Limits and features of one device. 0 or false: unsupported or unknown. */
typedef struct cldev_limits {
    char name[256], platform[256], vendor[256], driver[256], version[128], c_version[128];
    char pci[32]; /* "0000:65:00.0": domain, bus, device, function; "" where the driver does not tell */
    cl_device_type type;
    uint32_t compute_units;
    size_t memory, max_alloc, local_memory, max_work_group;
    size_t cache;           /* bytes of the largest cache before global memory; 0: unknown */
    bool usable;            /* available, with a compiler, little-endian, OpenCL 1.2 or later */
    bool unified;           /* host and device share memory */
    bool wide_items;        /* a CPU: one work-item a core-sized slice with vector types pays; else coalesced groups */
    bool exact_divide;      /* divisions and square roots can be asked to round correctly */
    uint32_t vector_floats; /* floats in a vector register, as the driver says */
    bool own_cache;         /* the driver keeps compiled kernels itself; giving out a binary costs more than it saves */
    bool fp16;              /* half arithmetic compiles, runs and is right: set by cldev_probe_features */
    bool subgroups;         /* sub-group reductions compile, run and are right: set by cldev_probe_features */
    bool dot4;              /* sums of four byte products as x86's VNNI has them: set by cldev_probe_dot4 */
    bool mma;               /* NVIDIA's matrix units by inline PTX, likewise: set by cldev_probe_mma */
} cldev_limits;

/* One place in the platform/device list. */
typedef struct cldev_entry {
    unsigned platform, index; /* P.D */
    cl_platform_id platform_id;
    cl_device_id id;
    uint32_t threads;    /* for cldev_open: most compute units to use of a CPU; 0: all */
    cldev_limits limits; /* without the probed features */
} cldev_entry;

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
    bool sub_device;
    cl_context context;
    cl_command_queue queue;
    cl_command_queue other; /* without profiling while `queue` has it, and the other way round; NULL: not asked for */
    bool profiling;         /* `queue` times what it runs */
    cldev_slab *slab;       /* that lasting buffers are put into; NULL: the next one makes it */
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
 * Find limits.fp16 and limits.subgroups: those that the driver claims are built, run and compared, with a small
 * kernel each. Takes as long as the builds; a feature that does not build, run or give the right numbers is not
 * there, and the reason is logged at DCM_LOG_DEBUG. Errors: DCM_ERR_MEMORY and DCM_ERR_DEVICE where not even a
 * plain kernel works.
 */
dcm_status cldev_probe_features(cldev *device);

/* Find limits.mma in the same way; takes time on NVIDIA's devices alone. */
void cldev_probe_mma(cldev *device);

/*
 * Find limits.dot4 in the same way: on CPUs whose kernels run in this process (PoCL) on an x86 that has the
 * instruction, which is tried by inline assembly.
 */
void cldev_probe_dot4(cldev *device);

/*
 * Build one kernel family: cl/common.cl, then cl/FAMILY.cl, with `options` such as "-DHEAD_DIM=64"; "weights+linear" is
 * cl/weights.cl, then cl/linear.cl. Binaries are kept in the cache folder under a key of sources, options, platform,
 * device, driver and format version; a corrupt or unreadable one is rebuilt, an unwritable folder is passed over with a
 * word. A failed build is DCM_ERR_DEVICE and the build log is shown.
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
