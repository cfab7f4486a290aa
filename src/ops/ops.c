#include "ops/ops.h"

_Static_assert(sizeof(view_range) == 4 * VIEW_RANGE_WORDS, "kernels read ranges as words");
_Static_assert(sizeof(view) == 4 * VIEW_WORDS, "kernels read views as words");
_Static_assert(sizeof(merge_pair) == 4 * MERGE_WORDS, "kernels read merges as words");

void backend_close(backend **b)
{
    if (b && *b) {
        (*b)->ops->close(*b);
        *b = NULL;
    }
}

void buffer_free(buffer **b)
{
    if (b && *b)
        (*b)->owner->ops->buffer_free(b);
}

void matrix_free(matrix **m)
{
    if (m && *m)
        (*m)->owner->ops->matrix_free(m);
}

dcm_status link_run(backend *b, const op_link *link)
{
    return link->kind == LINK_LINEAR ? b->ops->linear(b, &link->linear) : b->ops->attention(b, &link->attention);
}

dcm_status chain_each(backend *b, const op_link *links, size_t count)
{
    dcm_status status = DCM_OK;
    for (size_t i = 0; i < count && status == DCM_OK; i++)
        status = link_run(b, &links[i]);
    return status;
}
