#include "ops/attention_cl.h"
#include "ops/matrix_cl.h"

#include "base/memory.h"
#include "ops/profile.h"

#include <stdio.h>
#include <string.h>

enum {
    CHAIN_STAGES = 64, /* as in cl/chain.cl */
    CHAIN_BUFFERS = 96,
    CHAIN_APART = 16, /* words of a counter: APART there */
    LINK_BUFFERS = 5, /* of a linear map */
    PLANS = 64,       /* that are kept: launches of a step, of large models one a layer */
    /* Of weights and cache, after which a launch ends before an attention: then its cost no longer counts, and where a
     * work-item has left, the others have no more than this and a layer to do without it. Measured with 30 layers of
     * 2 MB each: 4.2 ms a step with one layer a launch, 3.4 with 4, 8 or 30. */
    CHAIN_BYTES = 32 << 20
};

_Static_assert(KV_BLOCKS + LINK_BUFFERS <= CHAIN_BUFFERS, "a launch has room for a link beside any pool");

/* As in cl/chain.cl. */
typedef struct chain_stage {
    cl_uint rows, cols, x_offset, y_offset, layer;
    cl_float eps;
    cl_uchar w, x, gain, bias, y, input, flags, attends;
} chain_stage;

typedef struct chain_plan {
    cl_uint count, kv_heads, block_units[KV_BLOCKS];
    chain_stage stage[CHAIN_STAGES];
} chain_plan;

struct chain_plans {
    chain_plan plan[PLANS]; /* as on the device; count 0: none */
    cl_uint next;           /* to be replaced */
};

/* What all launches of a call are built and launched for: its first map, and its first attention or NULL. */
typedef struct chain_call {
    const matrix_cl *matrix;
    const attention_args *attention;
} chain_call;

typedef struct chain_launch {
    chain_plan plan;
    buffer *buffer[CHAIN_BUFFERS];
    size_t buffers, bytes, work_stride;
    const matrix_cl *matrix; /* whose program it is */
} chain_launch;

static bool link_fits(const op_link *link)
{
    const linear_args *m = &link->linear;
    if (link->kind == LINK_ATTENTION)
        return link->attention.store && !link->attention.many;
    return m->n == 1 && !m->many && matrix_cl_of(m->w)->n_parts == 1 && m->x_offset <= UINT32_MAX &&
           m->y_offset <= UINT32_MAX;
}

static chain_call call_of(const op_link *links, size_t count)
{
    chain_call call = {NULL, NULL};
    for (size_t i = count; i-- > 0;) {
        if (!link_fits(&links[i]))
            continue;
        if (links[i].kind == LINK_ATTENTION)
            call.attention = &links[i].attention;
        else
            call.matrix = matrix_cl_of(links[i].linear.w);
    }
    return call;
}

/* The number of a buffer, which has room. */
static cl_uchar number_of(chain_launch *l, buffer *b)
{
    size_t i = 0;
    while (i < l->buffers && l->buffer[i] != b)
        i++;
    if (i == l->buffers)
        l->buffer[l->buffers++] = b;
    return (cl_uchar)i;
}

static void add_attention(chain_launch *l, const attention_args *a)
{
    l->bytes += (size_t)a->step->max_units * a->pool->kv_heads * a->pool->head_dim * (a->pool->type == KV_F32 ? 8 : 4);
    l->plan.stage[l->plan.count++] = (chain_stage){
        .x = number_of(l, a->qkv), .y = number_of(l, a->out), .layer = a->layer, .attends = true};
}

static void add_linear(chain_launch *l, const linear_args *a)
{
    const matrix_cl *m = matrix_cl_of(a->w);
    const size_t floats = matrix_work_floats(a->w);
    l->bytes += m->base.bytes;
    l->work_stride = floats > l->work_stride ? floats : l->work_stride;
    l->plan.stage[l->plan.count++] = (chain_stage){.rows = m->base.rows,
                                                   .cols = m->base.cols,
                                                   .x_offset = (cl_uint)a->x_offset,
                                                   .y_offset = (cl_uint)a->y_offset,
                                                   .eps = a->eps,
                                                   .w = number_of(l, m->part[0].data),
                                                   .x = number_of(l, a->x),
                                                   .gain = number_of(l, a->gain ? a->gain : a->x),
                                                   .bias = number_of(l, a->bias ? a->bias : a->x),
                                                   .y = number_of(l, a->y),
                                                   .input = (cl_uchar)a->input,
                                                   .flags = (cl_uchar)matrix_flags(a)};
}

static bool same_program(const matrix_cl *a, const matrix_cl *b)
{
    return a->family == b->family && strcmp(a->options, b->options) == 0;
}

/* Put the first links into a launch; returns how many. What is profiled is launched apart by kind. */
static size_t gather(const backend *b, const chain_call *call, const op_link *links, size_t count, chain_launch *l)
{
    const attention_args *a = call->attention;
    size_t n = 0;
    memset(l, 0, sizeof *l);
    if (a) {
        l->plan.kv_heads = a->pool->kv_heads;
        l->buffers = a->pool->n_blocks;
        memcpy(l->buffer, a->pool->block, l->buffers * sizeof *l->buffer);
        memcpy(l->plan.block_units, a->pool->block_units, l->buffers * sizeof *l->plan.block_units);
    }
    for (; n < count && n < CHAIN_STAGES && link_fits(&links[n]); n++) {
        if (l->buffers + LINK_BUFFERS > CHAIN_BUFFERS || (b->profile && links[n].kind != links[0].kind))
            break;
        if (links[n].kind == LINK_ATTENTION) {
            if (l->bytes >= CHAIN_BYTES)
                break;
            add_attention(l, &links[n].attention);
            continue;
        }
        const matrix_cl *m = matrix_cl_of(links[n].linear.w);
        if (l->matrix && !same_program(m, l->matrix))
            break;
        l->matrix = m;
        add_linear(l, &links[n].linear);
    }
    if (!l->matrix)
        l->matrix = call->matrix;
    return n;
}

/* Have the plan on the device, as *number of those that are kept: it often is, from the step before. */
static dcm_status put_plan(backend *b, const chain_plan *plan, cl_uint *number, buffer **out)
{
    chain_plans **kept = clop_plans_of(b);
    dcm_status status = DCM_OK;
    if (!*kept)
        DCM_TRY(status, fail, mem_new(kept, 1, sizeof **kept, "plans of chains"));
    chain_plans *p = *kept;
    DCM_TRY(status, fail, clop_scratch(b, CLOP_SCRATCH_PLANS, sizeof p->plan, out));
    for (*number = 0; *number < PLANS; ++*number)
        if (memcmp(&p->plan[*number], plan, sizeof *plan) == 0)
            return DCM_OK;
    *number = p->next;
    p->next = (p->next + 1) % PLANS;
    p->plan[*number].count = 0; /* no launch's, should writing fail */
    DCM_TRY(status, fail, clop_write(*out, *number * sizeof *plan, plan, sizeof *plan));
    p->plan[*number] = *plan;
fail:
    return status;
}

static dcm_status chain_kernel(backend *b, const chain_call *call, const chain_launch *l, cl_kernel *kernel)
{
    char family[96], options[400];
    snprintf(family, sizeof family, "%s+attention_view+attention_wide+chain", l->matrix->family);
    snprintf(options, sizeof options, "%s -DCHAIN=1", l->matrix->options);
    if (call->attention)
        attention_options(options, sizeof options, b, call->attention, KV_BLOCKS);
    return clop_kernel(b, family, options, "chain", kernel);
}

static dcm_status launch(backend *b, const chain_call *call, chain_launch *l)
{
    static const step no_step;
    const attention_args *a = call->attention;
    const step *s = a ? a->step : &no_step;
    const uint32_t units = clop_device(b)->limits.compute_units;
    const size_t items = units ? units : 1, local = 1;
    const cl_ulong views = s->views, query_rot = s->query_rot, slots = s->slots, key_rot = s->key_rot;
    const cl_uint splits = attention_splits(s->max_units), work_stride = (cl_uint)l->work_stride;
    buffer *partial = l->buffer[0], *ended = l->buffer[0], *table = a ? a->pool->table : l->buffer[0],
           *data = a ? s->data : l->buffer[0], *plans, *work, *marks;
    cl_kernel kernel;
    dcm_status status;
    cl_uint number;
    DCM_TRY(status, fail, chain_kernel(b, call, l, &kernel));
    DCM_TRY(status, fail, put_plan(b, &l->plan, &number, &plans));
    if (a) {
        DCM_TRY(status, fail, clop_scratch(b, CLOP_SCRATCH_ENDED, a->pool->kv_heads * sizeof(cl_uint), &ended));
        DCM_TRY(status, fail, clop_scratch(b, CLOP_SCRATCH_ATTENTION, attention_partial_bytes(a), &partial));
    }
    const size_t floats = work_stride ? items * work_stride : 1; /* none for attention alone */
    DCM_TRY(status, fail, clop_scratch(b, CLOP_SCRATCH_LINEAR, floats * sizeof(cl_float), &work));
    DCM_TRY(status, fail,
            clop_scratch(b, CLOP_SCRATCH_CHAIN, (CHAIN_STAGES * (items + 1) + 1) * CHAIN_APART * sizeof(cl_uint),
                         &marks));
    clop_arg args[CHAIN_BUFFERS + 14];
    for (size_t i = 0; i < CHAIN_BUFFERS; i++)
        args[i] = (clop_arg)CLOP_MEM(l->buffer[i < l->buffers ? i : 0]);
    const clop_arg rest[] = {CLOP_MEM(plans),     CLOP_VAR(number),  CLOP_MEM(table),   CLOP_MEM(data),
                             CLOP_VAR(views),     CLOP_VAR(query_rot), CLOP_VAR(slots), CLOP_VAR(key_rot),
                             CLOP_MEM(partial),   CLOP_MEM(ended),   CLOP_VAR(splits),  CLOP_MEM(work),
                             CLOP_VAR(work_stride), CLOP_MEM(marks)};
    memcpy(args + CHAIN_BUFFERS, rest, sizeof rest);
    if (b->profile)
        b->profile->family = l->plan.stage[0].attends ? "attention" : "linear";
    status = clop_launch(b, kernel, args, sizeof args / sizeof *args, 1, &items, &local);
    if (b->profile)
        b->profile->family = NULL;
fail:
    return status;
}

dcm_status cl_chain(backend *b, const op_link *links, size_t count)
{
    if (!clop_wide(b) || !clop_device(b)->limits.ordered)
        return chain_each(b, links, count);
    const chain_call call = call_of(links, count);
    dcm_status status = DCM_OK;
    for (size_t n; count && status == DCM_OK; links += n, count -= n) {
        chain_launch l;
        n = gather(b, &call, links, count, &l);
        if (l.matrix && (n > 1 || (n && links->kind == LINK_ATTENTION))) {
            status = launch(b, &call, &l);
        } else {
            n = 1;
            status = link_run(b, links);
        }
    }
    return status;
}
