#include "ops/clblast.h"

#include "base/error.h"

#include <clblast_c.h>
#include <pthread.h>

enum { CLBLAST_DEVICES = 64 };

/* CLBlast's own codes start at -1007; those of OpenCL end before -100. */
static dcm_status check(CLBlastStatusCode code, const char *call)
{
    if (code == CLBlastSuccess)
        return DCM_OK;
    return code > -100 ? cldev_check((cl_int)code, call) : dcm_fail(DCM_ERR_DEVICE, "%s: code %d", call, (int)code);
}

/*
 * A row's bits must not depend on the number of rows: no choice of another kernel by the product of the sizes. CLBlast
 * takes the old choice away before it puts in the new one, for the whole process: done before a device's first product,
 * which other threads wait for.
 */
static dcm_status never_direct(backend *b)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static cl_device_id done[CLBLAST_DEVICES];
    static size_t count;
    const cl_device_id id = clop_device(b)->id;
    const char *name = "XGEMM_MIN_INDIRECT_SIZE";
    const size_t size = 0;
    dcm_status status = DCM_OK;
    size_t i = 0;
    pthread_mutex_lock(&mutex);
    while (i < count && done[i] != id)
        i++;
    if (i == count) {
        status = check(CLBlastOverrideParameters(id, "GemmRoutine", CLBlastPrecisionSingle, 1, &name, &size),
                       "CLBlastOverrideParameters");
        if (status == DCM_OK && count < CLBLAST_DEVICES)
            done[count++] = id;
    }
    pthread_mutex_unlock(&mutex);
    return status;
}

static dcm_status multiply(backend *b, const char *family, CLBlastTranspose turn_b, const clblast_gemm_args *g)
{
    const CLBlastTranspose turn_a = g->a_transposed ? CLBlastTransposeYes : CLBlastTransposeNo;
    const size_t lda = g->a_transposed ? g->m : g->k;
    cl_event event;
    dcm_status status;
    DCM_TRY(status, fail, never_direct(b));
    DCM_TRY(status, fail,
            check(CLBlastSgemm(CLBlastLayoutRowMajor, turn_a, turn_b, g->m, g->n, g->k, 1.0f, buffer_mem(g->a),
                               g->a_offset, lda, buffer_mem(g->b), 0, g->ldb, g->add ? 1.0f : 0.0f, buffer_mem(g->c),
                               g->c_offset, g->ldc, &clop_device(b)->queue, clop_event(b, &event)),
                  "CLBlastSgemm"));
    /* The event is that of its last kernel, which makes the product. */
    DCM_TRY(status, fail, clop_count(b, family, "CLBlastSgemm", 0, event));
    return DCM_OK;
fail:
    return dcm_fail_in(status, "%s product %zu x %zu x %zu", family, g->m, g->n, g->k);
}

dcm_status clblast_product(backend *b, const dense_args *args)
{
    const clblast_gemm_args g = {.m = args->n,
                                 .n = args->out,
                                 .k = args->in,
                                 .a = args->x,
                                 .b = args->w,
                                 .c = args->y,
                                 .ldb = args->in,
                                 .ldc = args->out};
    return multiply(b, "dense", CLBlastTransposeYes, &g);
}

dcm_status clblast_gemm(backend *b, const clblast_gemm_args *g)
{
    return multiply(b, "matmul", CLBlastTransposeNo, g);
}

void clblast_clear(void) { CLBlastClearCache(); }
