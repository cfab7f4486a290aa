#include "ops/grad_cl.h"

const grad_ops cl_grad_ops = {
    .merge_score_back = cl_merge_score_back,
    .norm_back = cl_norm_back,
    .swiglu_back = cl_swiglu_back,
    .kl_back = cl_kl_back,
    .square_back = cl_square_back,
    .dense_back = cl_dense_back,
    .merge_apply_back = cl_merge_apply_back,
    .merge_gather_back = cl_merge_gather_back,
    .attention_back = cl_attention_back,
    .kv_store_back = cl_kv_store_back,
};
