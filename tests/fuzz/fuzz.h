/*
 * What the fuzz targets share. Each target is one file with LLVMFuzzerTestOneInput, linked with libFuzzer by
 * tests/fuzz/run and with replay.c by the tests. A target aborts where a reader breaks a promise: an invariant of what
 * it gave, or an error message that is not one line of printable text.
 */
#ifndef FUZZ_FUZZ_H
#define FUZZ_FUZZ_H

#include <dcm/status.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Abort with a word where `held` is not. */
void fuzz_check(bool held, const char *what);

/* The status of a reader: DCM_OK, or a failure of a file (or of memory) with one clear line; aborts on any other. */
void fuzz_check_status(dcm_status status);

/* The path of a file in memory with these bytes, for readers that take one: valid until the next call. */
const char *fuzz_file(const void *data, size_t size);

#endif
