/*
 * GGUF files, versions 2 and 3 (little-endian), memory-mapped. Opening reads and checks the whole header and tensor
 * directory: every count, offset, size and type, before anything of the size that the file claims is allocated.
 */
#ifndef IO_GGUF_H
#define IO_GGUF_H

#include <dcm/status.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/quant.h"

typedef struct gguf gguf;

/* Bytes inside the mapping; not NUL-terminated. */
typedef struct gguf_string {
    const char *data;
    size_t size;
} gguf_string;

enum { GGUF_MAX_DIMS = 4 };

/* One tensor: `dims[0]` is the row length (columns), dims[1] the number of rows; data inside the mapping. */
typedef struct gguf_tensor {
    gguf_string name;
    quant_type type;
    uint32_t n_dims;
    uint64_t dims[GGUF_MAX_DIMS]; /* 1 past n_dims */
    const void *data;
    size_t bytes;
} gguf_tensor;

/*
 * Open `path`. Errors: DCM_ERR_FILE with the byte offset and the field for: wrong magic, version or byte order,
 * truncation, size products that overflow, duplicate keys or tensor names, types of an unknown number, arrays of
 * arrays, tensors that overlap or pass the end of the file, an alignment that is no power of two of at least 8 (the
 * format wants a multiple of 8). Memory used is at most eight times the header's size + 1 MiB.
 */
dcm_status gguf_open(gguf **file, const char *path);

/* The same over bytes that the caller keeps until gguf_close; `name` stands in messages. For tests and fuzzing. */
dcm_status gguf_open_memory(gguf **file, const char *name, const void *data, size_t size);

/* Close and set *file to NULL; NULL and pointers to NULL are accepted. */
void gguf_close(gguf **file);

const char *gguf_path(const gguf *file);
uint32_t gguf_version(const gguf *file);

/* Bytes before the tensor data. */
size_t gguf_header_bytes(const gguf *file);

/*
 * Metadata by key. Each returns DCM_OK and sets *out, or DCM_ERR_FILE when the key is missing or of another type, with
 * the key and what was found in the message. Integers of any width, and float64 for float32, are accepted where the
 * value fits.
 */
bool gguf_has(const gguf *file, const char *key);
dcm_status gguf_get_u32(const gguf *file, const char *key, uint32_t *out);
dcm_status gguf_get_f32(const gguf *file, const char *key, float *out);
dcm_status gguf_get_bool(const gguf *file, const char *key, bool *out);
dcm_status gguf_get_string(const gguf *file, const char *key, gguf_string *out);

/* Arrays. *data points to packed little-endian items inside the mapping, not aligned: read them with memcpy. */
dcm_status gguf_get_array_size(const gguf *file, const char *key, size_t *count);
dcm_status gguf_get_f32_array(const gguf *file, const char *key, const void **data, size_t *count);
dcm_status gguf_get_i32_array(const gguf *file, const char *key, const void **data,
                              size_t *count); /* int32 or uint32 */

/* Strings of an array, in order: `strings` holds `count` items (from gguf_get_array_size). */
dcm_status gguf_get_string_array(const gguf *file, const char *key, gguf_string *strings, size_t count);

size_t gguf_tensor_count(const gguf *file);
const gguf_tensor *gguf_tensor_at(const gguf *file, size_t i);

/* NULL when there is none of that name. */
const gguf_tensor *gguf_find_tensor(const gguf *file, const char *name);

/* Offset of a tensor's data in the file, for messages. */
size_t gguf_tensor_offset(const gguf *file, const gguf_tensor *tensor);

#endif
