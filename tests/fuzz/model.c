/* A whole model file: opened on the reference, two tokens fed. */
#include "fuzz/fuzz.h"

#include <dcm/dcm.h>
#include <dcm/log.h>

#include <math.h>
#include <stdlib.h>

static void feed(dcm_model *model)
{
    const dcm_cache_params params = {.kind = DCM_CACHE_DCM, .group = 2, .sinks = 1, .merge = "newer"};
    dcm_model_info info;
    dcm_session *session;
    dcm_model_get_info(model, &info);
    float *logits = malloc(info.vocab * sizeof *logits);
    if (logits && dcm_session_open(&session, model, &params) == DCM_OK) {
        for (int32_t i = 0; i < 9; i++)
            fuzz_check_status(dcm_session_feed(session, &(int32_t){i % (int32_t)info.vocab}, 1, logits));
        dcm_session_close(&session);
    }
    free(logits);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static dcm_device *device;
    const dcm_device_params params = {.name = "ref", .threads = 1, .max_memory = 64 << 20};
    dcm_model *model;
    dcm_log_set_level(DCM_LOG_QUIET);
    if (!device)
        fuzz_check(dcm_device_open(&device, &params) == DCM_OK, "the reference does not open");
    const dcm_status status = dcm_model_open(&model, device, fuzz_file(data, size));
    fuzz_check_status(status);
    if (status == DCM_OK)
        feed(model);
    dcm_model_close(&model);
    return 0;
}
