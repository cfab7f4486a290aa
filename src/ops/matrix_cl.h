/*
 * Weight matrices of the OpenCL back end. A matrix is cut into tiles of 16 rows, the last one filled up with zeros. A
 * tile is a stream of blocks (one column for float types, else 32 columns, for Q6_K 16), in super-blocks of 256 columns
 * for the K types:
 *
 *   super-block: f16 d[16], and f16 dmin[16] (Q4_K, Q5_K), then its blocks
 *   block:       scales, then quants, row r of the tile at index r of each 16:
 *                Q4_0, Q8_0   f16 d[16]
 *                Q4_1         f16 d[16], f16 m[16]
 *                Q4_K, Q5_K   uint8 scale[16], uint8 min[16]
 *                Q6_K         int8 scale[16]
 *   quants:      Q4_*: 16 bytes for each k in 0 .. 15: low nibble column k, high nibble column k + 16
 *                Q8_0, Q5_K, Q6_K: 16 bytes (signed) for each column
 *                F32, F16, BF16: 16 items for each column
 *
 * So a vector of 16 rows takes one load a column on a CPU, and 32 work-items of a GPU read 128 consecutive bytes, four
 * rows each. Where the device multiplies bytes and adds the products (CLDEV_DOT4; quants of 4 bits: CLDEV_DOT2), bytes
 * k = 4 j .. 4 j + 3 of a row stand together instead, those of row r at index 4 r of each 64.
 */
#ifndef OPS_MATRIX_CL_H
#define OPS_MATRIX_CL_H

#include "ops/ops_cl.h"

enum { MATRIX_TILE = 16 };

/* Consecutive tiles in one buffer, none larger than the device's largest allocation. */
typedef struct matrix_part {
    buffer *data;
    uint32_t tile0, tiles;
} matrix_part;

typedef struct matrix_cl {
    matrix base;
    size_t tile_bytes;
    bool quads;         /* the quants of four columns of a row side by side: products by cl/linear_fixed.cl */
    const char *family; /* of the products with few vectors */
    char options[176];  /* of the families behind cl/weights.cl for this type */
    uint32_t n_parts;
    matrix_part *part;
} matrix_cl;

static inline const matrix_cl *matrix_cl_of(const matrix *m) { return (const matrix_cl *)m; }

/* Floats that a wide launch needs for one prepared input of a matrix: x, and the sums or digits of its blocks. */
size_t matrix_work_floats(const matrix *m);

/* True where also a plain x is prepared. */
bool matrix_needs_work(const matrix *m);

/* FLAG_* of cl/weights.cl. */
static inline cl_uint matrix_flags(const linear_args *args) { return (args->add ? 1 : 0) | (args->bias ? 2 : 0); }

/* cl_linear for linear_args.many: the weights are unpacked once for all tokens. */
dcm_status cl_matmul(backend *b, const linear_args *args);

/* cl_linear for single vectors, in groups; f(x) of INPUT_SWIGLU for all tokens into scratch. */
dcm_status linear_group(backend *b, const linear_args *args);
dcm_status linear_swiglu(backend *b, const linear_args *args, buffer **out);

/* The engines of cl_matmul in matmul_group_cl.c. */
dcm_status matmul_group(backend *b, const linear_args *args, bool mma);
dcm_status matmul_clblast(backend *b, const linear_args *args);

/* Work-items of a group of the kernels for single vectors and rows. */
size_t matrix_group_size(const backend *b);

#endif
