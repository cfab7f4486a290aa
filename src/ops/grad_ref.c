#include "ops/grad.h"
#include "ops/ops_ref.h"

const grad_ops ref_grad_ops = {0};
