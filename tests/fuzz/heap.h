/* Counts the process's heap: heap.c has malloc and its kin, in place of the C library's. Not thread-safe. */
#ifndef FUZZ_HEAP_H
#define FUZZ_HEAP_H

#include <stdbool.h>
#include <stddef.h>

/* False where a sanitiser has functions of its own. */
bool heap_counts(void);

/* Begin: what is taken from now on. */
void heap_start(void);

/* Bytes taken since, the most at a time, and those not yet given back. */
size_t heap_peak(void);
size_t heap_now(void);

#endif
