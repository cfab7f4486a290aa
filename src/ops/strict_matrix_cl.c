#include "ops/strict_matrix_cl.h"

#include "base/error.h"

enum { UPLOAD_BYTES = 1 << 20 };

/* Unpack and write the rows of part i, a few at a time. */
static dcm_status upload(const matrix_strict *m, uint32_t i, const unsigned char *data, float *staging, uint32_t batch)
{
    const size_t row_bytes = quant_row_bytes(m->base.type, m->base.cols), cols = m->base.cols;
    const uint32_t rows = matrix_strict_rows(m, i);
    dcm_status status = DCM_OK;
    data += (size_t)i * m->part_rows * row_bytes;
    for (uint32_t done = 0; done < rows && status == DCM_OK; done += batch) {
        const uint32_t count = rows - done < batch ? rows - done : batch;
        for (uint32_t r = 0; r < count; r++)
            quant_to_float(m->base.type, data + (done + r) * row_bytes, staging + r * cols, cols);
        status = clop_write(m->part[i], done * cols * sizeof(float), staging, count * cols * sizeof(float));
    }
    return status;
}

dcm_status strict_matrix_new(backend *b, quant_type type, uint32_t rows, uint32_t cols, const void *data, matrix **out)
{
    const size_t row_floats = cols * sizeof(float), fit = b->max_alloc / row_floats;
    const uint32_t batch = row_floats < UPLOAD_BYTES ? (uint32_t)(UPLOAD_BYTES / row_floats) : 1;
    matrix_strict *m = NULL;
    float *staging = NULL;
    dcm_status status;
    *out = NULL;
    if (!fit)
        return dcm_fail(DCM_ERR_MEMORY, "a row of a matrix (%zu bytes) is more than the device's largest buffer (%zu)",
                        row_floats, b->max_alloc);
    DCM_TRY(status, fail, mem_new(&m, 1, sizeof *m, "a matrix's record"));
    m->base = (matrix){.owner = b, .type = type, .rows = rows, .cols = cols, .bytes = rows * row_floats};
    m->part_rows = fit < rows ? (uint32_t)fit : rows;
    m->n_parts = (uint32_t)(((uint64_t)rows + m->part_rows - 1) / m->part_rows);
    DCM_TRY(status, fail, mem_new(&m->part, m->n_parts, sizeof *m->part, "a matrix's parts"));
    DCM_TRY(status, fail, mem_new(&staging, batch, row_floats, "unpacking a matrix"));
    for (uint32_t i = 0; i < m->n_parts; i++) {
        DCM_TRY(status, fail, clop_buffer_new(b, matrix_strict_rows(m, i) * row_floats, MEM_WEIGHTS, &m->part[i]));
        DCM_TRY(status, fail, upload(m, i, data, staging, batch));
    }
    mem_free(&staging);
    *out = &m->base;
    return DCM_OK;
fail:
    mem_free(&staging);
    if (m) {
        *out = &m->base;
        strict_matrix_free(out);
    }
    return status;
}

void strict_matrix_free(matrix **out)
{
    if (!out || !*out)
        return;
    matrix_strict *m = (matrix_strict *)*out;
    for (uint32_t i = 0; m->part && i < m->n_parts; i++)
        clop_buffer_free(&m->part[i]);
    mem_free(&m->part);
    mem_free(&m);
    *out = NULL;
}
