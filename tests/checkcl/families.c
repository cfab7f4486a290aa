#include "harness.h"

const ck_family ck_families[] = {
    {"embed", check_embed, CK_SHAPES | CK_FLOAT | CK_NO_HALF16 | CK_STRICT},
    {"linear", check_linear, CK_SHAPES | CK_FLOAT | CK_CLBLAST | CK_MMA | CK_GROUP_PLAIN | CK_STRICT},
    {"kv_store", check_kv_store, CK_STRICT},
    {"attention", check_attention, CK_SHAPES | CK_NO_HALF16 | CK_GROUP_PLAIN | CK_STRICT},
    {"attention_back", check_attention_back, CK_SHAPES},
    {"merge", check_merge, CK_STRICT},
    {"merge_back", check_merge_back, CK_ONE},
    {"merge_score", check_merge_score, CK_SHAPES | CK_STRICT},
    {"merge_score_back", check_merge_score_back, CK_SHAPES},
    {"dense", check_dense, CK_SHAPES | CK_CLBLAST | CK_STRICT},
    {"dense_back", check_dense_back, CK_SHAPES | CK_CLBLAST},
    {"grad_rows", check_grad_rows, CK_SHAPES},
    {"probe", check_probe, CK_ONE},
    {"broken", check_broken, CK_ONE},
    {"hang", check_hang, CK_ONE},
    {"crash", check_crash, CK_ONE},
    {0},
};
