/* Inside the OpenCL back end: the ops of training, one launcher file a family of kernels. */
#ifndef OPS_GRAD_CL_H
#define OPS_GRAD_CL_H

#include "ops/grad.h"
#include "ops/ops_cl.h"

/* grad_rows_cl.c */
dcm_status cl_norm_back(backend *b, const norm_back_args *args);
dcm_status cl_swiglu_back(backend *b, const swiglu_back_args *args);
dcm_status cl_kl_back(backend *b, const kl_back_args *args);
dcm_status cl_square_back(backend *b, const square_back_args *args);
/* dy (n, cols) *= the slope of ELU where its value is y. */
dcm_status grad_elu_back(backend *b, uint32_t n, uint32_t cols, const buffer *y, const buffer *dy);

/* dense_back_cl.c */
dcm_status cl_dense_back(backend *b, const dense_back_args *args);

/* merge_back_cl.c */
dcm_status cl_merge_apply_back(backend *b, const merge_apply_back_args *args);
dcm_status cl_merge_gather_back(backend *b, const merge_gather_back_args *args);

/* attention_back_cl.c */
dcm_status cl_attention_back(backend *b, const attention_back_args *args);
dcm_status cl_kv_store_back(backend *b, const kv_store_back_args *args);

/* merge_score_back_cl.c */
dcm_status cl_merge_score_back(backend *b, const merge_score_back_args *args);

#endif
