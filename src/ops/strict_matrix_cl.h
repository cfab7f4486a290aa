/* Weight matrices of a strict OpenCL back end: the floats that quant_to_float makes of them on the host, row by row. */
#ifndef OPS_STRICT_MATRIX_CL_H
#define OPS_STRICT_MATRIX_CL_H

#include "ops/ops_cl.h"

/* Parts of `part_rows` rows, the last one fewer, none larger than the device's largest allocation. */
typedef struct matrix_strict {
    matrix base;
    uint32_t part_rows, n_parts;
    buffer **part;
} matrix_strict;

static inline const matrix_strict *matrix_strict_of(const matrix *m) { return (const matrix_strict *)m; }

/* Rows of part i. */
static inline uint32_t matrix_strict_rows(const matrix_strict *m, uint32_t i)
{
    return i + 1 < m->n_parts ? m->part_rows : m->base.rows - i * m->part_rows;
}

dcm_status strict_matrix_new(backend *b, quant_type type, uint32_t rows, uint32_t cols, const void *data, matrix **out);
void strict_matrix_free(matrix **m);

#endif
