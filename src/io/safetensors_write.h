/* Writing safetensors files: a few arrays and a text of strings, whole or not at all. */
#ifndef IO_SAFETENSORS_WRITE_H
#define IO_SAFETENSORS_WRITE_H

#include "io/safetensors.h"

/* An array to write: `data` holds its items in `type`, which is not ST_OTHER, row-major and little-endian. */
typedef struct st_array {
    const char *name;
    st_type type;
    uint32_t n_dims;
    uint64_t dims[ST_MAX_DIMS];
    const void *data;
} st_array;

/* A string of `__metadata__`; UTF-8. */
typedef struct st_note {
    const char *key, *value;
} st_note;

/* Bytes of one item of `type`, which is not ST_OTHER. */
size_t st_item_bytes(st_type type);

/* `n` floats as items of `type` (not ST_OTHER) into `out`: rounded to nearest, ties to even. */
void st_from_float(st_type type, const float *src, size_t n, void *out);

/*
 * Write the arrays, in their order, and the notes to `path`: to a temporary name in the same folder, flushed, then
 * renamed, so that what was there stays until all is written; links are followed. Errors: DCM_ERR_FILE (also where a
 * pipe or a device is there, for a name that is there twice, or is no UTF-8), DCM_ERR_MEMORY.
 */
dcm_status safetensors_write(const char *path, const st_array *arrays, size_t n_arrays, const st_note *notes,
                             size_t n_notes);

#endif
