#include "fuzz/heap.h"

#include <malloc.h>
#include <stdint.h>

static size_t now, peak;

void heap_start(void) { now = peak = 0; }
size_t heap_peak(void) { return peak; }

/* Blocks from before heap_start may have been freed since: never below 0. */
size_t heap_now(void) { return now > SIZE_MAX / 2 ? 0 : now; }

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)

bool heap_counts(void) { return false; }

#else

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void __libc_free(void *block);

bool heap_counts(void) { return true; }

static void *took(void *block)
{
    now += malloc_usable_size(block);
    if (now > peak && now <= SIZE_MAX / 2)
        peak = now;
    return block;
}

static void gave(void *block) { now -= block ? malloc_usable_size(block) : 0; }

void *malloc(size_t size) { return took(__libc_malloc(size)); }
void *calloc(size_t count, size_t size) { return took(__libc_calloc(count, size)); }

void free(void *block)
{
    gave(block);
    __libc_free(block);
}

/* A block that moves is there twice for a moment. */
void *realloc(void *block, size_t size)
{
    const size_t before = block ? malloc_usable_size(block) : 0;
    void *moved = __libc_realloc(block, size);
    if (moved || size == 0) {
        const bool twice = moved != block;
        now -= twice ? 0 : before;
        took(moved);
        now -= twice ? before : 0;
    }
    return moved;
}

#endif
