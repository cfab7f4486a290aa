/* Inside the OpenCL back end: what the launcher files of the kernel families share. */
#ifndef OPS_OPS_CL_H
#define OPS_OPS_CL_H

#include "device/device.h"
#include "device/tuning.h"
#include "ops/ops.h"

typedef struct backend_cl backend_cl;

static inline cl_mem buffer_mem(const buffer *b) { return (cl_mem)b->handle; }

/* The opened device of a back end. */
cldev *clop_device(backend *b);

/*
 * The kernel `name` of the family built with `options`: built at first use, then kept until the back end closes. Kernel
 * arguments are set anew before each launch (one thread at a time, in-order queue).
 */
dcm_status clop_kernel(backend *b, const char *family, const char *options, const char *name, cl_kernel *kernel);

/* One argument: its size and value. */
typedef struct clop_arg {
    size_t size;
    const void *value;
} clop_arg;

/* The argument for a variable (a scalar, or a cl_mem), for a buffer, or for `bytes` of local memory. */
#define CLOP_VAR(VARIABLE)                                                                                             \
    {                                                                                                                  \
        sizeof(VARIABLE), &(VARIABLE)                                                                                  \
    }
#define CLOP_MEM(BUFFER)                                                                                               \
    {                                                                                                                  \
        sizeof(cl_mem), &(BUFFER)->handle                                                                              \
    }
#define CLOP_LOCAL(BYTES)                                                                                              \
    {                                                                                                                  \
        (BYTES), NULL                                                                                                  \
    }

/* Set arguments 0 .. count - 1 and enqueue. `local` NULL only where the kernel has a required size. The global size is
 * a multiple of the local. */
dcm_status clop_launch(backend *b, cl_kernel kernel, const clop_arg *args, size_t count, uint32_t dims,
                       const size_t *global, const size_t *local);

/*
 * While something is profiled: the place for an enqueue's event, else NULL; what then becomes of the event (NULL: none
 * was made), which is taken over; and the host's waits. `family` and `kernel` live as long as the back end.
 */
cl_event *clop_event(const backend *b, cl_event *event);
dcm_status clop_count(backend *b, const char *family, const char *kernel, uint64_t items, cl_event event);
void clop_waited(backend *b, uint64_t ns);

/* Events of what was enqueued, not read yet. */
typedef struct clop_counted {
    cl_event event;
    size_t entry; /* of the profile */
} clop_counted;

typedef struct clop_pending {
    clop_counted *item;
    size_t count;
} clop_pending;

clop_pending *clop_pending_of(backend *b);
void clop_pending_close(clop_pending *p);
dcm_status clop_profile(backend *b, struct profile *to);

/* What chain_cl.c keeps, NULL at first; freed by close. */
typedef struct chain_plans chain_plans;
chain_plans **clop_plans_of(backend *b);

/* Scratch buffers of a back end, one for each purpose; freed by close. */
typedef enum clop_scratch_id {
    CLOP_SCRATCH_ATTENTION,
    CLOP_SCRATCH_ENDED, /* zeros, between launches */
    CLOP_SCRATCH_LINEAR,
    CLOP_SCRATCH_CHAIN,    /* zeros, between launches */
    CLOP_SCRATCH_PLANS,    /* of chains: what clop_plans_of has on the host */
    CLOP_SCRATCH_PANELS,   /* inputs of a product with many vectors */
    CLOP_SCRATCH_UNPACKED, /* its tiles as floats, or sums of shares of the columns */
    CLOP_SCRATCH_DENSE,
    CLOP_SCRATCH_SCORE,    /* what gradients of the scorer are sums of */
    CLOP_SCRATCH_BOUNDARY, /* gradients of the boundary term */
    CLOP_SCRATCHES
} clop_scratch_id;

/* The scratch buffer `id`, grown to at least `bytes` by replacing it (with zeros); counted as MEM_SCRATCH. */
dcm_status clop_scratch(backend *b, clop_scratch_id id, size_t bytes, buffer **out);

/* Families that have two shapes of kernels: by limits.wide_items of the device, or one of them (tests). */
typedef enum clop_shape { CLOP_SHAPE_AUTO, CLOP_SHAPE_WIDE, CLOP_SHAPE_GROUP } clop_shape;
void clop_set_shape(backend *b, clop_shape shape);
bool clop_wide(const backend *b);

/* cldev_has, for a tier whose kernels are of the shape in use. Matrices keep what held when they were made. */
bool clop_tier(const backend *b, cldev_tier tier);

/* How dense products of many rows are computed: by CLBlast where the shape is not wide and the columns many, or one of
 * them (tests). */
typedef enum clop_dense { CLOP_DENSE_AUTO, CLOP_DENSE_OWN, CLOP_DENSE_CLBLAST } clop_dense;
void clop_set_dense(backend *b, clop_dense dense);
clop_dense clop_get_dense(const backend *b);

/*
 * Engines of the product of many vectors, in the order of the tuning's values. Which one decides the rounding of its
 * results, never the number of tokens.
 */
typedef enum clop_many {
    CLOP_MANY_AUTO,
    CLOP_MANY_WIDE,   /* one work-item a panel of tokens, vectors of 16 rows: CPUs */
    CLOP_MANY_GROUP,  /* tiles in local memory */
    CLOP_MANY_MMA,    /* the same on NVIDIA's matrix units */
    CLOP_MANY_CLBLAST /* panels of weights unpacked to floats, CLBlast's product */
} clop_many;

/* What is chosen for the device: its family's defaults at first. */
typedef struct clop_tuned {
    tuning tuning;
    clop_many many; /* one of them whatever is chosen (tests), or AUTO */
} clop_tuned;

clop_tuned *clop_tuned_of(backend *b);

/* Take one engine whatever is chosen (tests); AUTO ends that. */
static inline void clop_set_many(backend *b, clop_many engine) { clop_tuned_of(b)->many = engine; }

/* The ops, one launcher file a family: linear_cl.c, chain_cl.c, cache_cl.c (kv_store), attention_cl.c,
 * merge_cl.c, merge_score_cl.c, dense_cl.c, embed_cl.c. */
dcm_status cl_embed(backend *b, const embed_args *args);
dcm_status cl_linear(backend *b, const linear_args *args);
dcm_status cl_kv_store(backend *b, const kv_store_args *args);
dcm_status cl_attention(backend *b, const attention_args *args);
dcm_status cl_chain(backend *b, const op_link *links, size_t count);
dcm_status cl_attention_many(backend *b, const attention_args *args);
bool cl_attention_many_fits(backend *b);
dcm_status cl_merge_gather(backend *b, const merge_gather_args *args);
dcm_status cl_dense(backend *b, const dense_args *args);
dcm_status cl_merge_apply(backend *b, const merge_apply_args *args);
dcm_status cl_merge_score(backend *b, const merge_score_args *args);
dcm_status cl_matrix_new(backend *b, quant_type type, uint32_t rows, uint32_t cols, const void *data, matrix **out);
void cl_matrix_free(matrix **m);

/* What a strict back end differs in: its operations, cldev_build with its arithmetic before the family and no
 * contraction; and the trial of that arithmetic on the device. strict_cl.c, strict_try_cl.c. */
void cl_strict_ops(ops *table);
dcm_status cl_strict_build(cldev *device, const char *family, const char *options, cl_program *program);
dcm_status cl_strict_try(backend *b);

/* The ops of training: grad_cl.c. */
extern const struct grad_ops cl_grad_ops;

/* The same as the table's buffer_new, buffer_free and write, for the families' own buffers. */
dcm_status clop_buffer_new(backend *b, size_t bytes, mem_category category, buffer **out);
void clop_buffer_free(buffer **buf);
dcm_status clop_write(buffer *buf, size_t offset, const void *data, size_t bytes);

#endif
