#include "support/tiny_model.h"

#include "base/rng.h"
#include "support/quantize.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BYTES = 256, NORMAL = 1, CONTROL = 3, UNUSED = 5, ROPE_BASE = 10000 };

/* In order of rank; "\u0120" is how the byte-level alphabet writes a space. */
static const char *const merges[] = {
    "\u0120 t", "\u0120 a", "h e", "i n", "r e", "o n", "\u0120t he", "e r", "\u0120 s", "a t", "n d", "\u0120a nd",
};
enum { MERGES = sizeof merges / sizeof *merges };

static const char chatml[] = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
                             "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
                             "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

static tiny_params with_defaults(const tiny_params *params)
{
    tiny_params p = params ? *params : (tiny_params){0};
    p.arch = p.arch ? p.arch : "llama";
    p.layers = p.layers ? p.layers : 2;
    p.hidden = p.hidden ? p.hidden : 64;
    p.heads = p.heads ? p.heads : 4;
    p.kv_heads = p.kv_heads ? p.kv_heads : 2;
    p.ffn = p.ffn ? p.ffn : 96;
    p.vocab = p.vocab ? p.vocab : tiny_vocab_min(&p);
    p.context = p.context ? p.context : 512;
    return p;
}

uint32_t tiny_vocab_min(const tiny_params *params) { return BYTES + MERGES + (params && params->chatml ? 3 : 1); }

const char *tiny_model_check(const tiny_params *params)
{
    const tiny_params p = with_defaults(params);
    if (strcmp(p.arch, "llama") != 0 && strcmp(p.arch, "qwen2") != 0)
        return "the architecture is neither llama nor qwen2";
    if (!quantize_knows(p.type))
        return "the type is none of F32, F16, BF16, Q8_0, Q4_0, Q4_1";
    const uint32_t block = quant_get(p.type)->items;
    if (p.hidden % block != 0 || p.ffn % block != 0)
        return "hidden and ffn must be multiples of the type's block (32)";
    if (p.hidden % (2 * p.heads) != 0)
        return "hidden must be a multiple of twice the heads";
    if (p.heads % p.kv_heads != 0)
        return "the KV heads must divide the heads";
    if (p.vocab < tiny_vocab_min(&p))
        return "the vocabulary is smaller than the tokenizer";
    return NULL;
}

/* How the byte-level alphabet writes a byte: printable ones of Latin-1 as themselves, the others as U+0100, U+0101, ...
 * in order. */
static void byte_text(unsigned byte, char *out)
{
    unsigned code = 0x100;
    for (unsigned b = 0; b <= byte; b++) {
        const bool printable = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
        if (b == byte && printable)
            code = b;
        else if (b < byte && !printable)
            code++;
    }
    if (code < 0x80) {
        *out++ = (char)code;
    } else {
        *out++ = (char)(0xc0 | code >> 6);
        *out++ = (char)(0x80 | (code & 0x3f));
    }
    *out = '\0';
}

static void token_text(const tiny_params *p, uint32_t id, char *out, size_t size, int32_t *type)
{
    static const char *const control[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    *type = NORMAL;
    if (id < BYTES) {
        byte_text(id, out);
    } else if (id < BYTES + MERGES) {
        const char *merge = merges[id - BYTES], *space = strchr(merge, ' ');
        snprintf(out, size, "%.*s%s", (int)(space - merge), merge, space + 1);
    } else if (id < tiny_vocab_min(p)) {
        *type = CONTROL;
        snprintf(out, size, "%s", control[id - BYTES - MERGES]);
    } else {
        *type = UNUSED;
        snprintf(out, size, "<|unused_%u|>", id);
    }
}

static void put_tokenizer(gguf_writer *w, const tiny_params *p)
{
    const uint32_t eos = BYTES + MERGES;
    gw_bytes texts = {0}, types = {0};
    for (uint32_t id = 0; id < p->vocab; id++) {
        char text[64];
        int32_t type;
        token_text(p, id, text, sizeof text, &type);
        gw_put_string(&texts, text);
        gw_put(&types, &type, sizeof type);
    }
    gw_string(w, "tokenizer.ggml.model", "gpt2");
    gw_string(w, "tokenizer.ggml.pre", "gpt-2");
    gw_array(w, "tokenizer.ggml.tokens", GW_STRING, p->vocab, texts.data, texts.size);
    gw_array(w, "tokenizer.ggml.token_type", GW_I32, p->vocab, types.data, types.size);
    gw_strings(w, "tokenizer.ggml.merges", merges, MERGES);
    gw_u32(w, "tokenizer.ggml.bos_token_id", eos);
    gw_u32(w, "tokenizer.ggml.eos_token_id", p->chatml ? eos + 2 : eos);
    gw_bool(w, "tokenizer.ggml.add_bos_token", false);
    if (p->chatml)
        gw_string(w, "tokenizer.chat_template", chatml);
    gw_free(&texts);
    gw_free(&types);
}

static const char *arch_key(const tiny_params *p, const char *name)
{
    static char key[64];
    snprintf(key, sizeof key, "%s.%s", p->arch, name);
    return key;
}

static void put_facts(gguf_writer *w, const tiny_params *p)
{
    gw_string(w, "general.architecture", p->arch);
    gw_string(w, "general.name", "tiny random model");
    gw_u32(w, arch_key(p, "block_count"), p->layers);
    gw_u32(w, arch_key(p, "context_length"), p->context);
    gw_u32(w, arch_key(p, "embedding_length"), p->hidden);
    gw_u32(w, arch_key(p, "feed_forward_length"), p->ffn);
    gw_u32(w, arch_key(p, "attention.head_count"), p->heads);
    gw_u32(w, arch_key(p, "attention.head_count_kv"), p->kv_heads);
    gw_f32(w, arch_key(p, "attention.layer_norm_rms_epsilon"), 1e-5f);
    gw_f32(w, arch_key(p, "rope.freq_base"), ROPE_BASE);
    if (strcmp(p->arch, "llama") == 0) {
        gw_u32(w, "llama.rope.dimension_count", p->hidden / p->heads);
        gw_u32(w, "llama.vocab_size", p->vocab);
    }
    if (p->rope == TINY_ROPE_LINEAR) {
        gw_string(w, arch_key(p, "rope.scaling.type"), "linear");
        gw_f32(w, arch_key(p, "rope.scaling.factor"), 4);
    }
}

/* Uniform numbers in center +- spread. */
static float *random_floats(uint64_t *rng, size_t n, double center, double spread)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; x && i < n; i++)
        x[i] = (float)(center + spread * (2 * rng_uniform(rng) - 1));
    if (!x) {
        fprintf(stderr, "tiny_model: out of memory\n");
        abort();
    }
    return x;
}

static const char *layer_name(uint32_t layer, const char *name)
{
    static char full[64];
    snprintf(full, sizeof full, "blk.%u.%s", layer, name);
    return full;
}

/* A (rows, cols) matrix whose products with unit-size inputs have the standard deviation `gain`. */
static void put_matrix(gguf_writer *w, const tiny_params *p, uint64_t *rng, const char *name, uint32_t rows,
                       uint32_t cols, double gain)
{
    const size_t n = (size_t)rows * cols, bytes = quant_row_bytes(p->type, n);
    float *x = random_floats(rng, n, 0, gain * sqrt(3.0 / cols));
    void *quantized = malloc(bytes);
    if (!quantized)
        abort();
    quantize(p->type, x, n, quantized);
    gw_tensor(w, name, p->type, 2, (const uint64_t[]){cols, rows}, quantized, bytes);
    free(quantized);
    free(x);
}

static void put_vector(gguf_writer *w, uint64_t *rng, const char *name, uint32_t n, double center, double spread)
{
    float *x = random_floats(rng, n, center, spread);
    gw_tensor(w, name, QUANT_F32, 1, (const uint64_t[]){n}, x, n * sizeof *x);
    free(x);
}

static void put_layer(gguf_writer *w, const tiny_params *p, uint64_t *rng, uint32_t i)
{
    const uint32_t kv = p->hidden / p->heads * p->kv_heads;
    put_vector(w, rng, layer_name(i, "attn_norm.weight"), p->hidden, 1, 0.2);
    put_matrix(w, p, rng, layer_name(i, "attn_q.weight"), p->hidden, p->hidden, 1.5);
    put_matrix(w, p, rng, layer_name(i, "attn_k.weight"), kv, p->hidden, 1.5);
    put_matrix(w, p, rng, layer_name(i, "attn_v.weight"), kv, p->hidden, 1);
    if (strcmp(p->arch, "qwen2") == 0) {
        put_vector(w, rng, layer_name(i, "attn_q.bias"), p->hidden, 0, 0.5);
        put_vector(w, rng, layer_name(i, "attn_k.bias"), kv, 0, 0.5);
        put_vector(w, rng, layer_name(i, "attn_v.bias"), kv, 0, 0.5);
    }
    put_matrix(w, p, rng, layer_name(i, "attn_output.weight"), p->hidden, p->hidden, 1);
    put_vector(w, rng, layer_name(i, "ffn_norm.weight"), p->hidden, 1, 0.2);
    put_matrix(w, p, rng, layer_name(i, "ffn_gate.weight"), p->ffn, p->hidden, 1);
    put_matrix(w, p, rng, layer_name(i, "ffn_up.weight"), p->ffn, p->hidden, 1);
    put_matrix(w, p, rng, layer_name(i, "ffn_down.weight"), p->hidden, p->ffn, 1);
}

/* Divisors of the pairs' frequencies, by the formula of Llama 3.1 with an original context of 64 positions. */
static void put_rope_freqs(gguf_writer *w, uint32_t d)
{
    const double factor = 8, low = 1, high = 4, context = 64;
    float *x = malloc(d / 2 * sizeof *x);
    if (!x)
        abort();
    for (uint32_t i = 0; i < d / 2; i++) {
        const double turns = context * pow(ROPE_BASE, -2.0 * i / d) / (2 * 3.14159265358979323846);
        const double smooth = fmin(1, fmax(0, (turns - low) / (high - low)));
        x[i] = (float)(1 / ((1 - smooth) / factor + smooth));
    }
    gw_tensor(w, "rope_freqs.weight", QUANT_F32, 1, (const uint64_t[]){d / 2}, x, d / 2 * sizeof *x);
    free(x);
}

gw_bytes tiny_model_make(const tiny_params *params)
{
    const tiny_params p = with_defaults(params);
    uint64_t rng = p.seed;
    gguf_writer w;
    gw_open(&w);
    put_facts(&w, &p);
    put_tokenizer(&w, &p);
    put_matrix(&w, &p, &rng, "token_embd.weight", p.vocab, p.hidden, 1);
    for (uint32_t i = 0; i < p.layers; i++)
        put_layer(&w, &p, &rng, i);
    if (p.rope == TINY_ROPE_LLAMA3)
        put_rope_freqs(&w, p.hidden / p.heads);
    put_vector(&w, &rng, "output_norm.weight", p.hidden, 1, 0.2);
    if (p.untied)
        put_matrix(&w, &p, &rng, "output.weight", p.vocab, p.hidden, 1);
    return gw_finish(&w);
}

bool tiny_model_save(const tiny_params *params, const char *path)
{
    gw_bytes file = tiny_model_make(params);
    FILE *out = fopen(path, "wb");
    bool done = out && fwrite(file.data, 1, file.size, out) == file.size;
    if (out && fclose(out) != 0)
        done = false;
    gw_free(&file);
    return done;
}
