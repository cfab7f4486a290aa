/* Before a device computes strictly: does it, operation by operation? */
#include "ops/ops_cl.h"

#include "base/error.h"
#include "base/half.h"
#include "base/rng.h"
#include "ref/strict.h"

#include <string.h>

enum { NUMBERS = 1024, READ = NUMBERS + STRICT_TRY_READS, GROUP = 64 };

static const char *const names[STRICT_TRIES] = {
    [STRICT_TRY_MUL_ADD] = "a * b + c", [STRICT_TRY_FMA] = "fma(a, b, c)", [STRICT_TRY_DIVIDE] = "a / b",
    [STRICT_TRY_SQRT] = "sqrt(|a|)",    [STRICT_TRY_HALF] = "half(a)",     [STRICT_TRY_EXP] = "exp(a)",
    [STRICT_TRY_SILU] = "silu(a)",      [STRICT_TRY_ELU] = "elu(a)",       [STRICT_TRY_SUM] = "the sum of a b",
};

/* Numbers of all sizes: about one, of any exponent, subnormal, around halves' limits. */
static float number(uint64_t *rng)
{
    const uint32_t bits = (uint32_t)rng_next(rng), kind = (uint32_t)(rng_next(rng) % 8);
    const uint32_t any = (bits & 0x7f800000) == 0x7f800000 ? bits & 0xbfffffff : bits;
    if (kind == 0)
        return bits_to_float(any);
    if (kind == 1)
        return bits_to_float(bits & 0x807fffff);
    if (kind == 2)
        return bits_to_float((bits & 0x80001fff) | 0x38000000 | (bits & 7) << 23);
    return (float)(rng_uniform(rng) * 32 - 16);
}

typedef struct tries {
    float in[3][READ];
    float out[STRICT_TRIES][NUMBERS];
    buffer *from[3], *to;
} tries;

static dcm_status run(backend *b, tries *t)
{
    const cl_uint count = NUMBERS;
    const size_t global[] = {NUMBERS, STRICT_TRIES}, local[] = {GROUP, 1};
    cl_kernel kernel;
    dcm_status status;
    for (int i = 0; i < 3; i++) {
        DCM_TRY(status, fail, clop_buffer_new(b, sizeof t->in[i], MEM_SCRATCH, &t->from[i]));
        DCM_TRY(status, fail, clop_write(t->from[i], 0, t->in[i], sizeof t->in[i]));
    }
    DCM_TRY(status, fail, clop_buffer_new(b, sizeof t->out, MEM_SCRATCH, &t->to));
    DCM_TRY(status, fail, clop_kernel(b, "strict", "", "strict_try", &kernel));
    const clop_arg args[] = {CLOP_MEM(t->from[0]), CLOP_MEM(t->from[1]), CLOP_MEM(t->from[2]), CLOP_VAR(count),
                             CLOP_MEM(t->to)};
    DCM_TRY(status, fail, clop_launch(b, kernel, args, sizeof args / sizeof *args, 2, global, local));
    status = b->ops->read(t->to, 0, t->out, sizeof t->out);
fail:
    return status;
}

/* Bit for bit, but for a NaN's sign and payload. */
static dcm_status compare(const backend *b, const tries *t)
{
    for (size_t what = 0; what < STRICT_TRIES; what++)
        for (size_t i = 0; i < NUMBERS; i++) {
            const float *a = &t->in[0][i], *y = &t->in[1][i], *c = &t->in[2][i];
            const float want = ref_strict_try((strict_try)what, a, y, c), got = t->out[what][i];
            if (float_to_bits(want) == float_to_bits(got) || (want != want && got != got))
                continue;
            return dcm_fail(DCM_ERR_DEVICE,
                            "%s does not compute strictly: %s is %.9g, not %.9g, for a = %.9g, b = %.9g, c = %.9g",
                            clop_device((backend *)b)->limits.name, names[what], (double)got, (double)want, (double)*a,
                            (double)*y, (double)*c);
        }
    return DCM_OK;
}

dcm_status cl_strict_try(backend *b)
{
    tries *t = NULL;
    uint64_t rng = 1;
    dcm_status status = mem_new(&t, 1, sizeof *t, "operations to try");
    if (status != DCM_OK)
        return status;
    for (size_t i = 0; i < 3; i++)
        for (size_t k = 0; k < READ; k++)
            t->in[i][k] = number(&rng);
    status = run(b, t);
    if (status == DCM_OK)
        status = compare(b, t);
    for (int i = 0; i < 3; i++)
        clop_buffer_free(&t->from[i]);
    clop_buffer_free(&t->to);
    mem_free(&t);
    return status;
}
