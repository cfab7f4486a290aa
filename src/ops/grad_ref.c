#include "ops/grad.h"
#include "ops/ops_ref.h"
#include "ref/grad.h"

static dcm_status op_norm_back(backend *b, const norm_back_args *a)
{
    ref_norm_back((ref_rows){a->n, a->cols, threads_of(b)}, floats_of(a->x) + a->x_offset, floats_of(a->gain), a->eps,
                  floats_of(a->dy), floats_of(a->dx) + a->dx_offset, a->add);
    return DCM_OK;
}

static dcm_status op_swiglu_back(backend *b, const swiglu_back_args *a)
{
    ref_swiglu_back((ref_rows){a->n, a->cols, threads_of(b)}, floats_of(a->x), floats_of(a->dy), floats_of(a->dx));
    return DCM_OK;
}

static dcm_status op_kl_back(backend *b, const kl_back_args *a)
{
    ref_kl_back((ref_rows){a->n, a->vocab, threads_of(b)}, floats_of(a->logits), floats_of(a->target), a->scale,
                floats_of(a->loss) + a->loss_offset);
    return DCM_OK;
}

static dcm_status op_square_back(backend *b, const square_back_args *a)
{
    ref_square_back((ref_rows){a->n, a->cols, threads_of(b)}, floats_of(a->x), floats_of(a->y), a->scale,
                    floats_of(a->dx), floats_of(a->loss));
    return DCM_OK;
}

const grad_ops ref_grad_ops = {
    .norm_back = op_norm_back,
    .swiglu_back = op_swiglu_back,
    .kl_back = op_kl_back,
    .square_back = op_square_back,
};
