/* Seeds of model files: facts that lie (config), and whole models with tensors of wrong shapes (model). */
#include "fuzz/corpus.h"

#include "io/quant.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { HIDDEN = 16, FFN = 16, VOCAB = 5, ROWS = 64 };

static float data[ROWS * HIDDEN];

/* A fact of other bytes than the right one has, or none. */
typedef struct lie {
    const char *name, *key;
    uint32_t type;
    double value;
} lie;

static void put_value(gguf_writer *w, const char *key, uint32_t type, double value)
{
    const int64_t i = type == GW_F32 || type == GW_F64 ? 0 : (int64_t)value;
    switch (type) {
    case GW_F32: gw_f32(w, key, (float)value); break;
    case GW_F64: gw_value(w, key, type, &value, 8); break;
    case GW_STRING: gw_string(w, key, "8"); break;
    case GW_ARRAY: gw_array(w, key, GW_U32, 1, &i, 4); break;
    case GW_U8:
    case GW_I8:
    case GW_BOOL: gw_value(w, key, type, &i, 1); break;
    case GW_U64:
    case GW_I64: gw_value(w, key, type, &i, 8); break;
    default: gw_value(w, key, type, &i, 4);
    }
}

static void put_facts(gguf_writer *w, const char *arch, const lie *l)
{
    static const struct {
        const char *key;
        uint32_t type;
        double value;
    } facts[] = {{"block_count", GW_U32, 1},
                 {"embedding_length", GW_U32, HIDDEN},
                 {"feed_forward_length", GW_U32, FFN},
                 {"context_length", GW_U32, 64},
                 {"attention.head_count", GW_U32, 2},
                 {"attention.head_count_kv", GW_U32, 1},
                 {"attention.layer_norm_rms_epsilon", GW_F32, 1e-5}};
    char key[64];
    bool lied = false;
    gw_open(w);
    gw_string(w, "general.architecture", arch);
    gw_string(w, "general.name", "seed");
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
        const bool here = l && !strcmp(l->key, facts[i].key);
        snprintf(key, sizeof key, "%s.%s", arch, facts[i].key);
        put_value(w, key, here ? l->type : facts[i].type, here ? l->value : facts[i].value);
        lied = lied || here;
    }
    if (l && !lied) {
        snprintf(key, sizeof key, "%s.%s", arch, l->key);
        put_value(w, key, l->type, l->value);
    }
}

static void put_tensor(gguf_writer *w, const char *name, uint32_t n_dims, uint32_t cols, uint32_t rows)
{
    gw_tensor(w, name, QUANT_F32, n_dims, (const uint64_t[]){cols, rows}, data,
              (size_t)cols * (n_dims > 1 ? rows : 1) * sizeof *data);
}

static void put_embedding(gguf_writer *w) { put_tensor(w, "token_embd.weight", 2, HIDDEN, VOCAB); }

static void configs(void)
{
    static const lie lies[] = {
        {"layers-as-text", "block_count", GW_STRING, 0},
        {"layers-as-list", "block_count", GW_ARRAY, 3},
        {"layers-as-bool", "block_count", GW_BOOL, 1},
        {"layers-negative", "block_count", GW_I32, -1},
        {"layers-absurd", "block_count", GW_U32, 4294967295.0},
        {"layers-of-64-bits", "block_count", GW_U64, 68719476736.0},
        {"layers-zero", "block_count", GW_U32, 0},
        {"hidden-absurd", "embedding_length", GW_U32, 4294967288.0},
        {"heads-zero", "attention.head_count", GW_U32, 0},
        {"heads-more-than-hidden", "attention.head_count", GW_U32, 4096},
        {"heads-no-divisor", "attention.head_count", GW_U32, 3},
        {"kv-heads-no-divisor", "attention.head_count_kv", GW_U32, 3},
        {"kv-heads-negative", "attention.head_count_kv", GW_I8, -2},
        {"head-size-absurd", "attention.key_length", GW_U32, 1048576},
        {"head-size-of-values-other", "attention.value_length", GW_U32, 16},
        {"epsilon-zero", "attention.layer_norm_rms_epsilon", GW_F32, 0},
        {"epsilon-nan", "attention.layer_norm_rms_epsilon", GW_F32, NAN},
        {"epsilon-outside-float", "attention.layer_norm_rms_epsilon", GW_F64, 1e-320},
        {"rope-base-infinite", "rope.freq_base", GW_F32, INFINITY},
        {"rope-base-tiny", "rope.freq_base", GW_F32, 1e-45},
        {"rope-part", "rope.dimension_count", GW_U32, 4},
        {"rope-scaling-unknown", "rope.scaling.type", GW_STRING, 0},
        {"rope-factor-negative", "rope.scaling.factor", GW_F32, -1},
        {"experts", "expert_count", GW_U32, 8},
        {"experts-negative", "expert_count", GW_I64, -8},
        {"unknown-arithmetic", "logit_scale", GW_F32, 2},
    };
    gguf_writer w;
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        put_facts(&w, i % 2 ? "qwen2" : "llama", &lies[i]);
        put_embedding(&w);
        corpus_put("config", lies[i].name, gw_finish(&w));
    }
    put_facts(&w, "llama", NULL);
    put_embedding(&w);
    put_tensor(&w, "rope_freqs.weight", 1, 4, 1);
    corpus_put("config", "rope-factors-zero", gw_finish(&w));
    put_facts(&w, "llama", NULL);
    put_embedding(&w);
    put_tensor(&w, "rope_freqs.weight", 1, 3, 1);
    corpus_put("config", "rope-factors-short", gw_finish(&w));
    put_facts(&w, "llama", NULL);
    put_tensor(&w, "token_embd.weight", 1, HIDDEN, 1);
    corpus_put("config", "embedding-no-matrix", gw_finish(&w));
    put_facts(&w, "llama\nfake: text", NULL);
    corpus_put("config", "architecture-of-two-lines", gw_finish(&w));
    put_facts(&w, "llama", NULL);
    corpus_put("config", "embedding-missing", gw_finish(&w));
    put_facts(&w, "qwen2", NULL);
    put_embedding(&w);
    corpus_put("config", "right", gw_finish(&w));
}

/* What is wrong with a model's tensors. */
typedef enum fault {
    RIGHT,
    WIDE_Q,
    SHORT_DOWN,
    NO_NORM,
    NORM_OF_TWO_DIMS,
    ONE_BIAS,
    VOCAB_OF_OUTPUT,
    NOT_A_NUMBER,
    FAULTS
} fault;

static void put_model(gguf_writer *w, const char *arch, fault f)
{
    static const char *const biases[] = {"blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias"};
    put_facts(w, arch, NULL);
    for (size_t i = 0; i < sizeof data / sizeof *data; i++)
        data[i] = f == NOT_A_NUMBER && i == 7 ? NAN : (float)(i * 37 % 101) / 101 - 0.5f;
    put_embedding(w);
    put_tensor(w, "blk.0.attn_norm.weight", f == NORM_OF_TWO_DIMS ? 2 : 1, HIDDEN, 2);
    put_tensor(w, "blk.0.attn_q.weight", 2, HIDDEN, f == WIDE_Q ? 2 * HIDDEN : HIDDEN);
    put_tensor(w, "blk.0.attn_k.weight", 2, HIDDEN, HIDDEN / 2);
    put_tensor(w, "blk.0.attn_v.weight", 2, HIDDEN, HIDDEN / 2);
    for (size_t i = 0; i < 3 && (f == ONE_BIAS ? i == 0 : !strcmp(arch, "qwen2")); i++)
        put_tensor(w, biases[i], 1, i ? HIDDEN / 2 : HIDDEN, 1);
    put_tensor(w, "blk.0.attn_output.weight", 2, HIDDEN, HIDDEN);
    put_tensor(w, "blk.0.ffn_norm.weight", 1, HIDDEN, 1);
    put_tensor(w, "blk.0.ffn_gate.weight", 2, HIDDEN, FFN);
    put_tensor(w, "blk.0.ffn_up.weight", 2, HIDDEN, FFN);
    put_tensor(w, "blk.0.ffn_down.weight", 2, FFN, f == SHORT_DOWN ? HIDDEN / 2 : HIDDEN);
    if (f != NO_NORM)
        put_tensor(w, "output_norm.weight", 1, HIDDEN, 1);
    if (f == VOCAB_OF_OUTPUT)
        put_tensor(w, "output.weight", 2, HIDDEN, VOCAB + 1);
}

void corpus_models(void)
{
    static const char *const names[FAULTS] = {"right-llama",           "q-too-wide",       "down-too-short",
                                              "no-output-norm",        "norm-of-two-dims", "one-bias",
                                              "output-of-other-vocab", "not-a-number"};
    gguf_writer w;
    configs();
    for (fault f = RIGHT; f < FAULTS; f++) {
        put_model(&w, "llama", f);
        corpus_put("model", names[f], gw_finish(&w));
    }
    put_model(&w, "qwen2", RIGHT);
    corpus_put("model", "right-qwen2", gw_finish(&w));
}
