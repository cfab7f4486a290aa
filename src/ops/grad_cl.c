#include "ops/grad.h"
#include "ops/ops_cl.h"

const grad_ops cl_grad_ops = {0};
