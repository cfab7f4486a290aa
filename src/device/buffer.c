#define _GNU_SOURCE
#include "device/device.h"

#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>

#include "base/memory.h"

enum {
    HUGE_BYTES = 2 << 20, /* a huge page */
    PLACE = 4096,         /* buffers begin at multiples of it: drivers use host memory as it is then */
    SLAB_BYTES = 32 << 20
};

/* A mapping of its own, with buffers one after another behind this head; `users`: they, and who adds more. */
struct cldev_slab {
    size_t bytes, used;
    atomic_size_t users;
};

static void slab_leave(cldev_slab *s)
{
    if (atomic_fetch_sub(&s->users, 1) == 1)
        munmap(s, s->bytes);
}

/* Room for `bytes`, with one user. NULL where there is no memory. */
static cldev_slab *slab_new(size_t bytes)
{
    const size_t whole = (bytes + 2 * PLACE - 1) / PLACE * PLACE;
    if (whole < bytes || whole > SIZE_MAX - HUGE_BYTES)
        return NULL;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    uint8_t *map = mem_fails() ? MAP_FAILED : mmap(NULL, whole + HUGE_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    const size_t before = -(uintptr_t)map % HUGE_BYTES, after = HUGE_BYTES - before;
    cldev_slab *s = (cldev_slab *)(map + before);
    if (before)
        munmap(map, before);
    munmap(map + before + whole, after);
#ifdef MADV_HUGEPAGE
    madvise(s, whole, MADV_HUGEPAGE); /* where it is refused, small pages do */
#endif
    s->bytes = whole;
    s->used = PLACE;
    atomic_init(&s->users, 1);
    return s;
}

/* Drivers call it, from any thread, when nothing that runs uses the buffer any more. */
static void CL_CALLBACK released(cl_mem buffer, void *slab)
{
    (void)buffer;
    slab_leave(slab);
}

/* The slab for a buffer, with one more user: with `lasting` the one that is being filled if it has room. */
static cldev_slab *slab_for(cldev *device, size_t bytes, bool lasting)
{
    if (!lasting || bytes > SLAB_BYTES / 2)
        return slab_new(bytes);
    cldev_slab *s = device->slab;
    if (!s || s->bytes - s->used < bytes) {
        s = slab_new(SLAB_BYTES - PLACE);
        if (!s)
            return NULL;
        if (device->slab)
            slab_leave(device->slab);
        device->slab = s;
    }
    atomic_fetch_add(&s->users, 1);
    return s;
}

void cldev_buffers_close(cldev *device)
{
    if (device->slab)
        slab_leave(device->slab);
    device->slab = NULL;
}

dcm_status cldev_buffer_new(cldev *device, size_t bytes, bool lasting, cl_mem *buffer)
{
    const bool host = device->limits.type & CL_DEVICE_TYPE_CPU && (lasting || bytes >= HUGE_BYTES);
    cldev_slab *slab = NULL;
    cl_int error;
    dcm_status status = DCM_OK;
    bytes += !bytes;
    *buffer = NULL;
    if (host) {
        slab = slab_for(device, bytes, lasting);
        if (!slab)
            return dcm_fail(DCM_ERR_MEMORY, "the system has no memory for %zu bytes", bytes);
    }
    void *data = slab ? (uint8_t *)slab + slab->used : NULL;
    *buffer =
        clCreateBuffer(device->context, CL_MEM_READ_WRITE | (host ? CL_MEM_USE_HOST_PTR : 0), bytes, data, &error);
    DCM_TRY(status, fail, cldev_check(error, "clCreateBuffer(...)"));
    if (slab) {
        CL_TRY(status, fail, clSetMemObjectDestructorCallback(*buffer, released, slab));
        slab->used += (bytes + PLACE - 1) / PLACE * PLACE;
    }
    return DCM_OK;
fail:
    if (*buffer)
        clReleaseMemObject(*buffer);
    if (slab)
        slab_leave(slab);
    *buffer = NULL;
    return status;
}
