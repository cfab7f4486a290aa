/* Host memory, sizes that cannot overflow, and counters of bytes by category. */
#ifndef BASE_MEMORY_H
#define BASE_MEMORY_H

#include <dcm/status.h>

#include <stdbool.h>
#include <stddef.h>

/* a * b and a + b into *out; false where the result does not fit a size_t. */
static inline bool size_mul(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool size_add(size_t a, size_t b, size_t *out) { return !__builtin_add_overflow(a, b, out); }

/* Zeroed memory for `count` items of `size` bytes into *pointer (a pointer's address); freed by mem_free.
 * DCM_ERR_MEMORY names `what`. */
dcm_status mem_new(void *pointer, size_t count, size_t size, const char *what);

/* Change *pointer to `count` items, kept contents first, new bytes not set; on failure it is left as it was. */
dcm_status mem_resize(void *pointer, size_t count, size_t size, const char *what);

/* Free *pointer and set it to NULL. */
void mem_free(void *pointer);

/*
 * Fault injection for tests: the n-th allocation from now fails (1: the next), 0 turns it off. Returns what was left of
 * an earlier count, 0 where it ran out. Not thread-safe.
 */
long mem_fail_at(long n);

/* One allocation more, of memory that comes from elsewhere: whether it is to fail. */
bool mem_fails(void);

/* Bytes of the machine's memory; 0: unknown. */
size_t mem_host_bytes(void);

/* Blocks that live now, for tests. */
size_t mem_living(void);

/* What bytes on a device are for. */
typedef enum mem_category { MEM_WEIGHTS, MEM_CACHE, MEM_TABLES, MEM_SCRATCH, MEM_CATEGORIES } mem_category;

typedef struct mem_counter {
    size_t now[MEM_CATEGORIES];
    size_t total;
    size_t peak; /* most `total` ever */
} mem_counter;

void mem_count(mem_counter *counter, mem_category category, size_t bytes);
void mem_uncount(mem_counter *counter, mem_category category, size_t bytes);

#endif
