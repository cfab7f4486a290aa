/* A model's facts in GGUF metadata. */
#include "fuzz/fuzz.h"

#include <dcm/log.h>

#include "model/model.h"

#include <math.h>
#include <string.h>

static void check(const model_config *c)
{
    const dcm_model_info *m = &c->info;
    fuzz_check(m->layers && m->hidden && m->ffn && m->vocab && m->context, "a size of 0");
    fuzz_check(m->heads && m->kv_heads && m->heads % m->kv_heads == 0, "heads");
    fuzz_check(m->head_dim >= 8 && m->head_dim <= MODEL_MAX_HEAD_DIM && m->head_dim % 8 == 0, "the head size");
    fuzz_check(memchr(c->arch, 0, sizeof c->arch) && memchr(c->name, 0, sizeof c->name), "a text without an end");
    fuzz_check(isfinite(c->norm_eps) && c->norm_eps > 0, "the norm's epsilon");
    for (uint32_t i = 0; i < m->head_dim / 2; i++)
        fuzz_check(isfinite(c->rope_frequency[i]) && c->rope_frequency[i] >= 0, "a rotation's frequency");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    gguf *file;
    model_config config;
    dcm_log_set_level(DCM_LOG_QUIET);
    if (gguf_open_memory(&file, "fuzz", data, size) != DCM_OK)
        return 0;
    const dcm_status status = model_config_read(&config, file);
    fuzz_check_status(status);
    if (status == DCM_OK)
        check(&config);
    gguf_close(&file);
    return 0;
}
