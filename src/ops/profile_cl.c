#include "ops/profile.h"

#include "ops/ops_cl.h"

enum { PENDING_MAX = 4096 }; /* events not read yet */

cl_event *clop_event(const backend *b, cl_event *event)
{
    *event = NULL;
    return b->profile ? event : NULL;
}

/* Read all pending events; waits for them. */
static dcm_status settle(backend *b)
{
    clop_pending *p = clop_pending_of(b);
    dcm_status status = DCM_OK;
    if (p->count)
        CL_TRY(status, fail, clFinish(clop_device(b)->queue));
    while (p->count) {
        const clop_counted *c = &p->item[p->count - 1];
        cl_ulong start, end;
        CL_TRY(status, fail, clGetEventProfilingInfo(c->event, CL_PROFILING_COMMAND_START, sizeof start, &start, NULL));
        CL_TRY(status, fail, clGetEventProfilingInfo(c->event, CL_PROFILING_COMMAND_END, sizeof end, &end, NULL));
        profile_add(b->profile, c->entry, start, end);
        clReleaseEvent(c->event);
        p->count--;
    }
fail:
    return status;
}

dcm_status clop_count(backend *b, const char *family, const char *kernel, uint64_t items, cl_event event)
{
    clop_pending *p = clop_pending_of(b);
    if (!event)
        return DCM_OK;
    p->item[p->count++] = (clop_counted){event, profile_find(b->profile, family, kernel, items)};
    return p->count == PENDING_MAX ? settle(b) : DCM_OK;
}

void clop_waited(backend *b, uint64_t ns)
{
    if (b->profile)
        b->profile->wait_ns += ns;
}

dcm_status clop_profile(backend *b, profile *to)
{
    clop_pending *p = clop_pending_of(b);
    dcm_status status = settle(b);
    if (status == DCM_OK && to && !p->item)
        status = mem_new(&p->item, PENDING_MAX, sizeof *p->item, "events of launches");
    if (status == DCM_OK)
        status = cldev_profile(clop_device(b), to != NULL);
    if (status == DCM_OK)
        b->profile = to;
    return status;
}

void clop_pending_close(clop_pending *p)
{
    while (p->count)
        clReleaseEvent(p->item[--p->count].event);
    mem_free(&p->item);
}
