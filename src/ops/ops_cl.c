#include "ops/ops_cl.h"

#include "base/clock.h"
#include "base/error.h"
#include "ops/clblast.h"
#include "ops/profile.h"

#include <stdio.h>
#include <string.h>

enum {
    STAGE_COUNT = 4,
    STAGE_BYTES = 256 << 10,
    KERNELS_MAX = 24, /* of one program */
    CHUNK_WIDE = 192, /* steps of 96: panels of 12 tokens, the weights are unpacked once for all */
    CHUNK_GROUP = 512
};

/* A piece of pinned host memory that a write is copied into; `done` is the write that last read it. */
typedef struct stage {
    unsigned char *data;
    cl_event done;
} stage;

typedef struct program {
    struct program *next;
    char *family, *options;
    cl_program handle;
    size_t n_kernels;
    char label[24]; /* what profiles call the family: "attention" for "attention_view+attention_wide" */
    struct {
        char name[48];
        cl_kernel handle;
    } kernel[KERNELS_MAX];
} program;

struct backend_cl {
    backend base;
    cldev *device;
    clop_shape shape;
    clop_dense dense;
    bool is_strict;
    ops strict; /* the table of a strict back end */
    clop_tuned tuned;
    program *programs;
    buffer *scratch[CLOP_SCRATCHES];
    buffer *staging;
    stage stage[STAGE_COUNT];
    size_t next_stage;
    clop_pending pending;
    chain_plans *plans;
};

static backend_cl *self(backend *b) { return (backend_cl *)b; }

cldev *clop_device(backend *b) { return self(b)->device; }

clop_tuned *clop_tuned_of(backend *b) { return &self(b)->tuned; }

clop_pending *clop_pending_of(backend *b) { return &self(b)->pending; }

chain_plans **clop_plans_of(backend *b) { return &self(b)->plans; }

void clop_set_shape(backend *b, clop_shape shape) { self(b)->shape = shape; }

bool clop_wide(const backend *b)
{
    const backend_cl *cl = (const backend_cl *)b;
    return cl->shape == CLOP_SHAPE_AUTO ? cl->device->limits.wide_items : cl->shape == CLOP_SHAPE_WIDE;
}

bool clop_tier(const backend *b, cldev_tier tier)
{
    return cldev_tier_get(tier)->wide == clop_wide(b) && cldev_has(((const backend_cl *)b)->device, tier);
}

void clop_set_dense(backend *b, clop_dense dense) { self(b)->dense = dense; }

clop_dense clop_get_dense(const backend *b) { return ((const backend_cl *)b)->dense; }

/* ---- Buffers ---- */

dcm_status clop_buffer_new(backend *b, size_t bytes, mem_category category, buffer **out)
{
    cldev *device = self(b)->device;
    dcm_status status;
    cl_mem mem;
    *out = NULL;
    if (bytes > b->max_alloc)
        return dcm_fail(DCM_ERR_MEMORY,
                        "%s: a buffer of %zu bytes is more than the largest that the device allows (%zu)",
                        device->limits.name, bytes, b->max_alloc);
    if (b->memory.total > b->max_memory || bytes > b->max_memory - b->memory.total)
        return dcm_fail(DCM_ERR_MEMORY, "%s: a buffer of %zu bytes beside the %zu in use passes the limit of %zu bytes",
                        device->limits.name, bytes, b->memory.total, b->max_memory);
    DCM_TRY(status, fail, mem_new(out, 1, sizeof **out, "a buffer's record"));
    (*out)->owner = b;
    (*out)->bytes = bytes;
    (*out)->category = category;
    mem_count(&b->memory, category, bytes);
    DCM_TRY(status, fail, cldev_buffer_new(device, bytes, category == MEM_WEIGHTS, &mem));
    (*out)->handle = mem;
    /* Drivers allocate at first use: have it now, where lack of memory can be told apart from a failing kernel. */
    CL_TRY(status, fail,
           clEnqueueMigrateMemObjects(device->queue, 1, &mem, CL_MIGRATE_MEM_OBJECT_CONTENT_UNDEFINED, 0, NULL, NULL));
    return DCM_OK;
fail:
    clop_buffer_free(out);
    return dcm_fail_in(status, "%s: a buffer of %zu bytes", device->limits.name, bytes);
}

void clop_buffer_free(buffer **buf)
{
    if (!buf || !*buf)
        return;
    if ((*buf)->handle)
        clReleaseMemObject(buffer_mem(*buf));
    mem_uncount(&(*buf)->owner->memory, (*buf)->category, (*buf)->bytes);
    mem_free(buf);
}

dcm_status clop_scratch(backend *b, clop_scratch_id id, size_t bytes, buffer **out)
{
    const cl_command_queue q = self(b)->device->queue;
    buffer **slot = &self(b)->scratch[id];
    const cl_uint zero = 0;
    dcm_status status;
    if (!*slot || (*slot)->bytes < bytes) {
        const size_t whole = (bytes + sizeof zero - 1) / sizeof zero * sizeof zero;
        clop_buffer_free(slot);
        DCM_TRY(status, fail, clop_buffer_new(b, whole, MEM_SCRATCH, slot));
        CL_TRY(status, fail, clEnqueueFillBuffer(q, buffer_mem(*slot), &zero, sizeof zero, 0, whole, 0, NULL, NULL));
    }
    *out = *slot;
    return DCM_OK;
fail:
    clop_buffer_free(slot); /* or it would be taken for a zeroed one */
    return status;
}

/* ---- Transfers ---- */

static dcm_status staging_open(backend_cl *cl)
{
    dcm_status status;
    cl_int error;
    DCM_TRY(status, fail, mem_new(&cl->staging, 1, sizeof *cl->staging, "a buffer's record"));
    cl->staging->owner = &cl->base;
    cl->staging->bytes = (size_t)STAGE_COUNT * STAGE_BYTES;
    cl->staging->category = MEM_SCRATCH;
    mem_count(&cl->base.memory, MEM_SCRATCH, cl->staging->bytes);
    cl->staging->handle = clCreateBuffer(cl->device->context, CL_MEM_READ_WRITE | CL_MEM_ALLOC_HOST_PTR,
                                         cl->staging->bytes, NULL, &error);
    DCM_TRY(status, fail, cldev_check(error, "clCreateBuffer"));
    unsigned char *data = clEnqueueMapBuffer(cl->device->queue, buffer_mem(cl->staging), CL_TRUE, CL_MAP_WRITE, 0,
                                             cl->staging->bytes, 0, NULL, NULL, &error);
    DCM_TRY(status, fail, cldev_check(error, "clEnqueueMapBuffer"));
    for (size_t i = 0; i < STAGE_COUNT; i++)
        cl->stage[i].data = data + i * STAGE_BYTES;
    return DCM_OK;
fail:
    return dcm_fail_in(status, "%s: a buffer of %zu bytes", cl->device->limits.name,
                       (size_t)STAGE_COUNT * STAGE_BYTES);
}

static void staging_close(backend_cl *cl)
{
    for (size_t i = 0; i < STAGE_COUNT; i++)
        if (cl->stage[i].done)
            clReleaseEvent(cl->stage[i].done);
    if (cl->stage[0].data) {
        clEnqueueUnmapMemObject(cl->device->queue, buffer_mem(cl->staging), cl->stage[0].data, 0, NULL, NULL);
        clFinish(cl->device->queue);
    }
    clop_buffer_free(&cl->staging);
}

/* Wait until the stage's last write has been done. */
static dcm_status stage_wait(backend *b, stage *s)
{
    dcm_status status = DCM_OK;
    if (s->done) {
        const uint64_t begin = clock_ns();
        CL_TRY(status, fail, clWaitForEvents(1, &s->done));
        clop_waited(b, clock_ns() - begin);
        clReleaseEvent(s->done);
        s->done = NULL;
    }
fail:
    return status;
}

dcm_status clop_write(buffer *buf, size_t offset, const void *data, size_t bytes)
{
    backend_cl *cl = self(buf->owner);
    const unsigned char *from = data;
    dcm_status status = DCM_OK;
    while (bytes) {
        stage *s = &cl->stage[cl->next_stage];
        const size_t piece = bytes < STAGE_BYTES ? bytes : STAGE_BYTES;
        cl->next_stage = (cl->next_stage + 1) % STAGE_COUNT;
        DCM_TRY(status, fail, stage_wait(&cl->base, s));
        memcpy(s->data, from, piece);
        CL_TRY(status, fail,
               clEnqueueWriteBuffer(cl->device->queue, buffer_mem(buf), CL_FALSE, offset, piece, s->data, 0, NULL,
                                    &s->done));
        if (cl->base.profile && clRetainEvent(s->done) == CL_SUCCESS)
            DCM_TRY(status, fail, clop_count(&cl->base, "transfer", "write", 0, s->done));
        from += piece;
        offset += piece;
        bytes -= piece;
    }
fail:
    return status;
}

static dcm_status finish(backend *b)
{
    const uint64_t begin = clock_ns();
    const dcm_status status = cldev_check(clFinish(self(b)->device->queue), "clFinish");
    clop_waited(b, clock_ns() - begin);
    return status;
}

static dcm_status copy_buffer(buffer *to, size_t to_offset, const buffer *from, size_t from_offset, size_t bytes)
{
    backend *b = to->owner;
    cl_event event;
    dcm_status status;
    CL_TRY(status, fail,
           clEnqueueCopyBuffer(self(b)->device->queue, buffer_mem(from), buffer_mem(to), from_offset, to_offset, bytes,
                               0, NULL, clop_event(b, &event)));
    status = clop_count(b, "transfer", "copy", 0, event);
fail:
    return status;
}

static dcm_status read_buffer(buffer *buf, size_t offset, void *data, size_t bytes)
{
    backend *b = buf->owner;
    cl_event event;
    dcm_status status;
    if (!bytes)
        return finish(b);
    const uint64_t begin = clock_ns();
    CL_TRY(status, fail,
           clEnqueueReadBuffer(self(b)->device->queue, buffer_mem(buf), CL_TRUE, offset, bytes, data, 0, NULL,
                               clop_event(b, &event)));
    clop_waited(b, clock_ns() - begin);
    status = clop_count(b, "transfer", "read", 0, event);
fail:
    return status;
}

/* ---- Programs ---- */

static void program_close(program **p)
{
    if (!*p)
        return;
    for (size_t i = 0; i < (*p)->n_kernels; i++)
        clReleaseKernel((*p)->kernel[i].handle);
    if ((*p)->handle)
        clReleaseProgram((*p)->handle);
    mem_free(&(*p)->family);
    mem_free(&(*p)->options);
    mem_free(p);
}

static dcm_status copy_string(char **out, const char *text)
{
    const dcm_status status = mem_new(out, strlen(text) + 1, 1, "a string");
    if (status == DCM_OK)
        strcpy(*out, text);
    return status;
}

static dcm_status program_open(backend_cl *cl, const char *family, const char *options, program **out)
{
    dcm_status status;
    for (program *p = cl->programs; p; p = p->next)
        if (!strcmp(p->family, family) && !strcmp(p->options, options)) {
            *out = p;
            return DCM_OK;
        }
    DCM_TRY(status, fail, mem_new(out, 1, sizeof **out, "a program's record"));
    DCM_TRY(status, fail, copy_string(&(*out)->family, family));
    DCM_TRY(status, fail, copy_string(&(*out)->options, options));
    DCM_TRY(status, fail,
            (cl->is_strict ? cl_strict_build : cldev_build)(cl->device, family, options, &(*out)->handle));
    const char *last = strrchr(family, '+');
    snprintf((*out)->label, sizeof(*out)->label, "%s", last ? last + 1 : family);
    (*out)->label[strcspn((*out)->label, "_")] = 0;
    (*out)->next = cl->programs;
    cl->programs = *out;
    return DCM_OK;
fail:
    program_close(out);
    return status;
}

dcm_status clop_kernel(backend *b, const char *family, const char *options, const char *name, cl_kernel *kernel)
{
    program *p = NULL;
    cl_int error;
    const dcm_status status = program_open(self(b), family, options ? options : "", &p);
    if (status != DCM_OK)
        return status;
    for (size_t i = 0; i < p->n_kernels; i++)
        if (!strcmp(p->kernel[i].name, name)) {
            *kernel = p->kernel[i].handle;
            return DCM_OK;
        }
    if (p->n_kernels == KERNELS_MAX || strlen(name) >= sizeof p->kernel[0].name)
        return dcm_fail(DCM_ERR_DEVICE, "cl/%s.cl: no room to keep kernel %s", family, name);
    *kernel = clCreateKernel(p->handle, name, &error);
    if (error != CL_SUCCESS)
        return dcm_fail_in(cldev_check(error, "clCreateKernel"), "cl/%s.cl: kernel %s", family, name);
    strcpy(p->kernel[p->n_kernels].name, name);
    p->kernel[p->n_kernels++].handle = *kernel;
    return DCM_OK;
}

/* "kernel NAME: " before the message. */
static dcm_status kernel_failed(dcm_status status, cl_kernel kernel)
{
    char name[48] = "?";
    clGetKernelInfo(kernel, CL_KERNEL_FUNCTION_NAME, sizeof name, name, NULL);
    return dcm_fail_in(status, "kernel %s", name);
}

/* All kernels are clop_kernel's, whose record has the names. */
static dcm_status count_launch(backend *b, cl_kernel kernel, uint32_t dims, const size_t *global, cl_event event)
{
    uint64_t items = 1;
    if (!event)
        return DCM_OK;
    const char *family = b->profile->family;
    for (uint32_t d = 0; d < dims; d++)
        items *= global[d];
    for (const program *p = self(b)->programs; p; p = p->next)
        for (size_t i = 0; i < p->n_kernels; i++)
            if (p->kernel[i].handle == kernel)
                return clop_count(b, family ? family : p->label, p->kernel[i].name, items, event);
    return clop_count(b, "other", "other", items, event);
}

dcm_status clop_launch(backend *b, cl_kernel kernel, const clop_arg *args, size_t count, uint32_t dims,
                       const size_t *global, const size_t *local)
{
    dcm_status status;
    cl_event event;
    for (size_t i = 0; i < count; i++)
        CL_TRY(status, fail, clSetKernelArg(kernel, (cl_uint)i, args[i].size, args[i].value));
    CL_TRY(status, fail,
           clEnqueueNDRangeKernel(self(b)->device->queue, kernel, dims, NULL, global, local, 0, NULL,
                                  clop_event(b, &event)));
    DCM_TRY(status, fail, count_launch(b, kernel, dims, global, event));
    return DCM_OK;
fail:
    return kernel_failed(status, kernel);
}

/* ---- The table ---- */

/* Profiles tell the matrices apart. */
static dcm_status linear(backend *b, const linear_args *args)
{
    if (!b->profile)
        return cl_linear(b, args);
    b->profile->rows = args->w->rows;
    b->profile->cols = args->w->cols;
    const dcm_status status = cl_linear(b, args);
    b->profile->rows = b->profile->cols = 0;
    return status;
}

static void close_backend(backend *b)
{
    backend_cl *cl = self(b);
    clFinish(cl->device->queue);
    clblast_clear();
    clop_pending_close(&cl->pending);
    mem_free(&cl->plans);
    staging_close(cl);
    for (size_t i = 0; i < CLOP_SCRATCHES; i++)
        clop_buffer_free(&cl->scratch[i]);
    while (cl->programs) {
        program *p = cl->programs;
        cl->programs = p->next;
        program_close(&p);
    }
    mem_free(&cl);
}

static const ops table = {
    .grad = &cl_grad_ops,
    .close = close_backend,
    .buffer_new = clop_buffer_new,
    .buffer_free = clop_buffer_free,
    .write = clop_write,
    .copy = copy_buffer,
    .read = read_buffer,
    .sync = finish,
    .profile = clop_profile,
    .matrix_new = cl_matrix_new,
    .matrix_free = cl_matrix_free,
    .embed = cl_embed,
    .linear = linear,
    .kv_store = cl_kv_store,
    .attention = cl_attention,
    .chain = cl_chain,
    .merge_gather = cl_merge_gather,
    .dense = cl_dense,
    .merge_apply = cl_merge_apply,
    .merge_score = cl_merge_score,
};

dcm_status backend_cl_open(backend **out, struct cldev *device, size_t max_memory)
{
    dcm_status status;
    backend_cl *cl = NULL;
    *out = NULL;
    DCM_TRY(status, fail, mem_new(&cl, 1, sizeof *cl, "the OpenCL back end"));
    cl->base.ops = &table;
    cl->device = device;
    tuning_defaults(&device->limits, &cl->tuned.tuning);
    cl->base.max_alloc = device->limits.max_alloc ? device->limits.max_alloc : SIZE_MAX;
    cl->base.chunk = device->limits.wide_items ? CHUNK_WIDE : CHUNK_GROUP;
    cl->base.max_memory = device->limits.memory ? device->limits.memory : SIZE_MAX;
    if (max_memory && max_memory < cl->base.max_memory)
        cl->base.max_memory = max_memory;
    DCM_TRY(status, fail, staging_open(cl));
    *out = &cl->base;
    return DCM_OK;
fail:
    if (cl)
        close_backend(&cl->base);
    return status;
}

dcm_status backend_cl_strict(backend *b)
{
    backend_cl *cl = self(b);
    cl->strict = table;
    cl_strict_ops(&cl->strict);
    cl->is_strict = true;
    b->ops = &cl->strict;
    return cl_strict_try(b);
}
