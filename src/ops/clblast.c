#include "ops/clblast.h"

#include "base/error.h"

#include <clblast_c.h>

dcm_status clblast_product(backend *b, const dense_args *args)
{
    cl_event event;
    const size_t n = args->n, in = args->in, out = args->out;
    const CLBlastStatusCode code = CLBlastSgemm(
        CLBlastLayoutRowMajor, CLBlastTransposeNo, CLBlastTransposeYes, n, out, in, 1.0f, buffer_mem(args->x), 0, in,
        buffer_mem(args->w), 0, in, 0.0f, buffer_mem(args->y), 0, out, &clop_device(b)->queue, clop_event(b, &event));
    if (code == CLBlastSuccess) /* the event is that of its last kernel, which makes the product */
        return clop_count(b, "dense", "CLBlastSgemm", 0, event);
    /* CLBlast's own codes start at -1007; those of OpenCL end before -100. */
    const dcm_status status = code > -100 ? cldev_check((cl_int)code, "CLBlastSgemm")
                                          : dcm_fail(DCM_ERR_DEVICE, "CLBlastSgemm: code %d", (int)code);
    return dcm_fail_in(status, "dense product %zu x %zu x %zu", n, out, in);
}

void clblast_clear(void) { CLBlastClearCache(); }
