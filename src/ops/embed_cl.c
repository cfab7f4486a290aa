#include "ops/matrix_cl.h"

enum { GROUP = 64 };

dcm_status cl_embed(backend *b, const embed_args *args)
{
    const matrix_cl *m = matrix_cl_of(args->table);
    const size_t local[] = {GROUP, 1}, global[] = {(m->base.cols + GROUP - 1) / GROUP * GROUP, args->step->n};
    const cl_ulong tile_bytes = m->tile_bytes, ids_offset = args->step->tokens;
    const cl_uint cols = m->base.cols;
    cl_kernel kernel;
    dcm_status status = clop_kernel(b, m->family, m->options, "embed", &kernel);
    for (uint32_t i = 0; i < m->n_parts && status == DCM_OK; i++) {
        const matrix_part *part = &m->part[i];
        const clop_arg a[] = {CLOP_MEM(part->data),  CLOP_VAR(tile_bytes), CLOP_VAR(part->tile0),
                              CLOP_VAR(part->tiles), CLOP_VAR(cols),       CLOP_MEM(args->step->data),
                              CLOP_VAR(ids_offset),  CLOP_MEM(args->x)};
        status = clop_launch(b, kernel, a, sizeof a / sizeof *a, 2, global, local);
    }
    return status;
}
