#include "model/model.h"

#include <dcm/log.h>

#include "base/error.h"
#include "base/hash.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* What is plausible for any model of the family: a guard against sizes that no file of this kind means. */
enum { MAX_LAYERS = 1024, MAX_WIDTH = 1 << 20, MAX_HEADS = 4096, MAX_VOCAB = 1 << 24 };

enum { SAMPLE_BYTES = 256 }; /* of each tensor's data, for the digest: a page or two that loading reads anyway */

static bool is_text(gguf_string s, const char *text) { return s.size == strlen(text) && !memcmp(s.data, text, s.size); }

/* Metadata `ARCH.NAME`. */
static dcm_status get_u32(const model_config *c, const gguf *file, const char *name, uint32_t low, uint32_t high,
                          uint32_t *out)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", c->arch, name);
    const dcm_status status = gguf_get_u32(file, key, out);
    if (status != DCM_OK)
        return status;
    if (*out < low || *out > high)
        return dcm_fail(DCM_ERR_FILE, "%s: %s is %u, not in %u .. %u", gguf_path(file), key, *out, low, high);
    return DCM_OK;
}

static bool has(const model_config *c, const gguf *file, const char *name)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", c->arch, name);
    return gguf_has(file, key);
}

static dcm_status get_f32(const model_config *c, const gguf *file, const char *name, float *out)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", c->arch, name);
    const dcm_status status = gguf_get_f32(file, key, out);
    if (status == DCM_OK && !(isfinite(*out) && *out > 0))
        return dcm_fail(DCM_ERR_FILE, "%s: %s is %g, not a positive number", gguf_path(file), key, (double)*out);
    return status;
}

static dcm_status read_arch(model_config *c, const gguf *file)
{
    gguf_string arch, name;
    dcm_status status = gguf_get_string(file, "general.architecture", &arch);
    if (status != DCM_OK)
        return status;
    if (!is_text(arch, "llama") && !is_text(arch, "qwen2"))
        return dcm_fail(DCM_ERR_FILE, "%s: architecture \"%.*s\" is not supported; llama and qwen2 are",
                        gguf_path(file), (int)(arch.size < 64 ? arch.size : 64), arch.data);
    memcpy(c->arch, arch.data, arch.size);
    c->rope = is_text(arch, "qwen2") ? ROPE_HALF : ROPE_INTERLEAVED;
    if (gguf_has(file, "general.name") && gguf_get_string(file, "general.name", &name) == DCM_OK)
        snprintf(c->name, sizeof c->name, "%.*s", (int)(name.size < 127 ? name.size : 127), name.data);
    return DCM_OK;
}

static dcm_status read_heads(model_config *c, const gguf *file)
{
    dcm_model_info *m = &c->info;
    dcm_status status = get_u32(c, file, "attention.head_count", 1, MAX_HEADS, &m->heads);
    m->kv_heads = m->heads;
    if (status == DCM_OK && has(c, file, "attention.head_count_kv"))
        status = get_u32(c, file, "attention.head_count_kv", 1, MAX_HEADS, &m->kv_heads);
    if (status != DCM_OK)
        return status;
    if (m->heads % m->kv_heads)
        return dcm_fail(DCM_ERR_FILE, "%s: %u query heads are no multiple of %u KV heads", gguf_path(file), m->heads,
                        m->kv_heads);
    m->head_dim = m->hidden / m->heads;
    if (has(c, file, "attention.key_length"))
        status = get_u32(c, file, "attention.key_length", 1, MAX_WIDTH, &m->head_dim);
    else if (m->hidden % m->heads)
        status = dcm_fail(DCM_ERR_FILE, "%s: the model dimension %u is no multiple of %u heads", gguf_path(file),
                          m->hidden, m->heads);
    uint32_t value = m->head_dim;
    if (status == DCM_OK && has(c, file, "attention.value_length"))
        status = get_u32(c, file, "attention.value_length", 1, MAX_WIDTH, &value);
    if (status == DCM_OK && (m->head_dim % 8 || m->head_dim > MODEL_MAX_HEAD_DIM || value != m->head_dim))
        status =
            dcm_fail(DCM_ERR_FILE, "%s: head sizes %u (keys) and %u (values): dcm needs one multiple of 8 up to %d",
                     gguf_path(file), m->head_dim, value, MODEL_MAX_HEAD_DIM);
    return status;
}

static dcm_status read_rope_scaling(model_config *c, const gguf *file, double *factor)
{
    char key[96];
    gguf_string type;
    float f;
    *factor = 1;
    snprintf(key, sizeof key, "%s.rope.scaling.type", c->arch);
    if (gguf_has(file, key)) {
        const dcm_status status = gguf_get_string(file, key, &type);
        if (status != DCM_OK)
            return status;
        if (is_text(type, "none"))
            return DCM_OK;
        if (!is_text(type, "linear"))
            return dcm_fail(DCM_ERR_FILE, "%s: RoPE scaling \"%.*s\" is not supported; linear and Llama 3's are",
                            gguf_path(file), (int)(type.size < 32 ? type.size : 32), type.data);
    }
    const char *name = has(c, file, "rope.scaling.factor") ? "rope.scaling.factor" : "rope.scale_linear";
    if (!has(c, file, name))
        return DCM_OK;
    const dcm_status status = get_f32(c, file, name, &f);
    *factor = f;
    return status;
}

/* base^(-2i/d), divided by the linear factor and by Llama 3's per-pair factors (the tensor rope_freqs.weight). */
static dcm_status read_rope(model_config *c, const gguf *file)
{
    const uint32_t d = c->info.head_dim;
    float base = 10000;
    uint32_t turned = d;
    double factor;
    dcm_status status = DCM_OK;
    if (has(c, file, "rope.freq_base"))
        status = get_f32(c, file, "rope.freq_base", &base);
    if (status == DCM_OK && has(c, file, "rope.dimension_count"))
        status = get_u32(c, file, "rope.dimension_count", 1, MAX_WIDTH, &turned);
    if (status == DCM_OK)
        status = read_rope_scaling(c, file, &factor);
    if (status != DCM_OK)
        return status;
    if (turned != d)
        return dcm_fail(DCM_ERR_FILE, "%s: RoPE on %u of %u channels is not supported", gguf_path(file), turned, d);
    const gguf_tensor *factors = gguf_find_tensor(file, "rope_freqs.weight");
    if (factors && (factors->type != QUANT_F32 || factors->n_dims != 1 || factors->dims[0] != d / 2))
        return dcm_fail(DCM_ERR_FILE, "%s: offset %zu: rope_freqs.weight must be %u items of F32", gguf_path(file),
                        gguf_tensor_offset(file, factors), d / 2);
    for (uint32_t i = 0; i < d / 2; i++) {
        float divide = 1;
        if (factors)
            memcpy(&divide, (const char *)factors->data + 4 * i, 4);
        if (!(isfinite(divide) && divide > 0))
            return dcm_fail(DCM_ERR_FILE, "%s: rope_freqs.weight: item %u is %g, not a positive number",
                            gguf_path(file), i, (double)divide);
        c->rope_frequency[i] = pow(base, -2.0 * i / d) / factor / divide;
    }
    return DCM_OK;
}

static dcm_status read_vocab(model_config *c, const gguf *file)
{
    const gguf_tensor *t = gguf_find_tensor(file, "token_embd.weight");
    if (!t)
        return dcm_fail(DCM_ERR_FILE, "%s: no tensor token_embd.weight", gguf_path(file));
    if (t->n_dims != 2 || t->dims[1] > MAX_VOCAB)
        return dcm_fail(DCM_ERR_FILE, "%s: offset %zu: token_embd.weight is not a matrix of 1 .. %d rows",
                        gguf_path(file), gguf_tensor_offset(file, t), MAX_VOCAB);
    c->info.vocab = (uint32_t)t->dims[1];
    return DCM_OK;
}

/* Of the middle: the first rows may be of ids that no training has touched. */
static uint64_t hash_sample(uint64_t hash, const gguf_tensor *t)
{
    const size_t size = t->bytes < SAMPLE_BYTES ? t->bytes : SAMPLE_BYTES;
    return hash_bytes(hash, (const char *)t->data + (t->bytes - size) / 2, size);
}

/* FNV-1a of the facts a merge model depends on and of every tensor's name, type, shape and a sample of its data. */
static uint64_t digest(const model_config *c, const gguf *file)
{
    const dcm_model_info *m = &c->info;
    const uint32_t facts[] = {m->layers, m->hidden, m->heads, m->kv_heads, m->head_dim, m->ffn, m->vocab};
    uint64_t hash = hash_bytes(HASH_START, c->arch, strlen(c->arch));
    hash = hash_bytes(hash, c->name, strlen(c->name));
    hash = hash_bytes(hash, facts, sizeof facts);
    hash = hash_bytes(hash, c->rope_frequency, m->head_dim / 2 * sizeof *c->rope_frequency);
    for (size_t i = 0; i < gguf_tensor_count(file); i++) {
        const gguf_tensor *t = gguf_tensor_at(file, i);
        const uint32_t type = t->type;
        hash = hash_bytes(hash, t->name.data, t->name.size);
        hash = hash_bytes(hash, &type, sizeof type);
        hash = hash_bytes(hash, t->dims, sizeof t->dims);
        hash = hash_sample(hash, t);
    }
    return hash;
}

/* Keys of related models whose meaning dcm does not compute: ignoring them would give wrong answers. */
static dcm_status refuse_unknown_arithmetic(const model_config *c, const gguf *file)
{
    static const char *const keys[] = {
        "logit_scale",         "residual_scale",         "embedding_scale",         "attention.scale",
        "attention.clamp_kqv", "attn_logit_softcapping", "final_logit_softcapping", "rope.scaling.attn_factor"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (has(c, file, keys[i]))
            return dcm_fail(DCM_ERR_FILE, "%s: %s.%s is not supported", gguf_path(file), c->arch, keys[i]);
    if (has(c, file, "attention.sliding_window"))
        dcm_log(DCM_LOG_WARN, "%s: the model was trained with a sliding window; its tokens see the whole cache here",
                gguf_path(file));
    return DCM_OK;
}

dcm_status model_config_read(model_config *c, const gguf *file)
{
    dcm_model_info *m = &c->info;
    uint32_t experts = 0;
    dcm_status status;
    memset(c, 0, sizeof *c);
    DCM_TRY(status, fail, read_arch(c, file));
    DCM_TRY(status, fail, get_u32(c, file, "block_count", 1, MAX_LAYERS, &m->layers));
    DCM_TRY(status, fail, get_u32(c, file, "embedding_length", 1, MAX_WIDTH, &m->hidden));
    DCM_TRY(status, fail, get_u32(c, file, "feed_forward_length", 1, MAX_WIDTH, &m->ffn));
    DCM_TRY(status, fail, get_u32(c, file, "context_length", 1, UINT32_MAX, &m->context));
    DCM_TRY(status, fail, get_f32(c, file, "attention.layer_norm_rms_epsilon", &c->norm_eps));
    DCM_TRY(status, fail, refuse_unknown_arithmetic(c, file));
    if (has(c, file, "expert_count"))
        DCM_TRY(status, fail, get_u32(c, file, "expert_count", 0, UINT32_MAX, &experts));
    if (experts) {
        status =
            dcm_fail(DCM_ERR_FILE, "%s: mixtures of experts (%u here) are not supported", gguf_path(file), experts);
        goto fail;
    }
    DCM_TRY(status, fail, read_heads(c, file));
    DCM_TRY(status, fail, read_rope(c, file));
    DCM_TRY(status, fail, read_vocab(c, file));
    m->digest = digest(c, file);
    return DCM_OK;
fail:
    return status;
}
