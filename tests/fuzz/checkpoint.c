/* Checkpoints of training: what is refused changes nothing. */
#include "fuzz/fuzz.h"
#include "fuzz/small_trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ARRAYS = 5 };

/* What a checkpoint replaces. */
static void arrays_of(dcm_trainer *t, float *array[ARRAYS], size_t size[ARRAYS])
{
    const size_t n = t->learner.count * sizeof(float);
    float *const arrays[ARRAYS] = {t->learner.param, t->adamw.mean, t->adamw.square, t->adamw.average, t->mean_kl};
    const size_t sizes[ARRAYS] = {n, n, n, n, sizeof t->mean_kl};
    memcpy(array, arrays, sizeof arrays);
    memcpy(size, sizes, sizeof sizes);
}

static void check_finite(const float *array, size_t size)
{
    for (size_t i = 0; i < size / sizeof *array; i++)
        fuzz_check(isfinite(array[i]), "a parameter that is no number");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    float *array[ARRAYS], *before[ARRAYS];
    size_t bytes[ARRAYS];
    char state[16];
    dcm_trainer *t = small_trainer();
    fuzz_check(t != NULL, "no trainer");
    arrays_of(t, array, bytes);
    for (int i = 0; i < ARRAYS; i++) {
        before[i] = malloc(bytes[i]);
        fuzz_check(before[i] != NULL, "no memory");
        memcpy(before[i], array[i], bytes[i]);
    }
    const uint64_t steps = dcm_trainer_steps(t);
    const dcm_status status = dcm_trainer_resume(t, fuzz_file(data, size), state, sizeof state);
    fuzz_check_status(status);
    fuzz_check(status != DCM_OK || memchr(state, 0, sizeof state), "a text without an end");
    fuzz_check(status == DCM_OK || dcm_trainer_steps(t) == steps, "steps of a file that was refused");
    for (int i = 0; i < ARRAYS; i++) {
        check_finite(array[i], bytes[i]);
        fuzz_check(status == DCM_OK || !memcmp(array[i], before[i], bytes[i]), "changed by a file that was refused");
        free(before[i]);
    }
    return 0;
}
