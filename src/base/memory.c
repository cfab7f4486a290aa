#include "base/memory.h"

#include "base/error.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static long fail_countdown;
static atomic_size_t living;

long mem_fail_at(long n)
{
    const long left = fail_countdown;
    fail_countdown = n;
    return left;
}

size_t mem_living(void) { return living; }

bool mem_fails(void) { return fail_countdown > 0 && --fail_countdown == 0; }

static dcm_status out_of_memory(size_t count, size_t size, const char *what)
{
    return dcm_fail(DCM_ERR_MEMORY, "host memory: no room for %s (%zu x %zu bytes)", what, count, size);
}

dcm_status mem_new(void *pointer, size_t count, size_t size, const char *what)
{
    void *block = mem_fails() ? NULL : calloc(count ? count : 1, size ? size : 1);
    memcpy(pointer, &block, sizeof block);
    living += block != NULL;
    return block ? DCM_OK : out_of_memory(count, size, what);
}

dcm_status mem_resize(void *pointer, size_t count, size_t size, const char *what)
{
    void *block;
    size_t bytes;
    memcpy(&block, pointer, sizeof block);
    if (mem_fails() || !size_mul(count, size, &bytes))
        return out_of_memory(count, size, what);
    const bool first = !block;
    block = realloc(block, bytes ? bytes : 1);
    if (!block)
        return out_of_memory(count, size, what);
    memcpy(pointer, &block, sizeof block);
    living += first;
    return DCM_OK;
}

void mem_free(void *pointer)
{
    void *block;
    memcpy(&block, pointer, sizeof block);
    living -= block != NULL;
    free(block);
    block = NULL;
    memcpy(pointer, &block, sizeof block);
}

void mem_count(mem_counter *counter, mem_category category, size_t bytes)
{
    counter->now[category] += bytes;
    counter->total += bytes;
    if (counter->total > counter->peak)
        counter->peak = counter->total;
}

void mem_uncount(mem_counter *counter, mem_category category, size_t bytes)
{
    counter->now[category] -= bytes;
    counter->total -= bytes;
}

void dcm_free(void *pointer) { mem_free(&pointer); }

size_t mem_host_bytes(void)
{
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (size_t)pages * (size_t)page : 0;
}
