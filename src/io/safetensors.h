/*
 * safetensors files: a JSON header and raw little-endian arrays, memory-mapped; checked like GGUF files. As the format
 * demands, the arrays cover the data without a gap. Memory used is at most eight times the header's size + 1 MiB; an
 * entry of the header, and the metadata, may have 32 KiB of text each.
 */
#ifndef IO_SAFETENSORS_H
#define IO_SAFETENSORS_H

#include <dcm/status.h>

#include <stddef.h>
#include <stdint.h>

typedef struct safetensors safetensors;

typedef enum st_type { ST_F32, ST_F16, ST_BF16, ST_OTHER } st_type;

enum { ST_MAX_DIMS = 8 };

typedef struct st_tensor {
    const char *name; /* NUL-terminated, owned by the file */
    st_type type;
    uint32_t n_dims;
    uint64_t dims[ST_MAX_DIMS]; /* row-major: the last one is the row length */
    const void *data;           /* inside the mapping, not aligned */
    size_t bytes;
    size_t items;
} st_tensor;

/* Open `path`. Errors: DCM_ERR_FILE (offset and field), DCM_ERR_MEMORY. */
dcm_status safetensors_open(safetensors **file, const char *path);

/* The same over bytes that the caller keeps until safetensors_close. */
dcm_status safetensors_open_memory(safetensors **file, const char *name, const void *data, size_t size);

/* Close and set *file to NULL; NULL and pointers to NULL are accepted. */
void safetensors_close(safetensors **file);

size_t safetensors_count(const safetensors *file);
const st_tensor *safetensors_at(const safetensors *file, size_t i);
const st_tensor *safetensors_find(const safetensors *file, const char *name); /* NULL when there is none */

/* A string of the `__metadata__` object, or NULL. Owned by the file. */
const char *safetensors_metadata(const safetensors *file, const char *key);

/* All items as floats into `out` (`items` floats). DCM_ERR_FILE for ST_OTHER. */
dcm_status safetensors_to_float(const safetensors *file, const st_tensor *tensor, float *out);

#endif
