#include "bench.h"
#include "mix.h"
#include "tool.h"

#include <string.h>

static const char prefix[] = "shape:";

static const dcm_model_info shapes[] = {
    {.name = "smollm2-135m",
     .layers = 30,
     .hidden = 576,
     .heads = 9,
     .kv_heads = 3,
     .ffn = 1536,
     .vocab = 49152,
     .tied = true},
    {.name = "llama-1b",
     .layers = 16,
     .hidden = 2048,
     .heads = 32,
     .kv_heads = 8,
     .ffn = 8192,
     .vocab = 128256,
     .tied = true},
    {.name = "llama-8b", .layers = 32, .hidden = 4096, .heads = 32, .kv_heads = 8, .ffn = 14336, .vocab = 128256},
};

bool bench_is_shape(const char *model) { return strncmp(model, prefix, sizeof prefix - 1) == 0; }

static int unknown(const char *name)
{
    return tool_fail(DCM_ERR_USAGE,
                     "--model: unknown shape \"%s\"; there are smollm2-135m, llama-1b, llama-8b and "
                     "layers=N,hidden=N,heads=N,kv=N,ffn=N,vocab=N",
                     name);
}

/* "layers=2,hidden=64,...": each key once; `tied` may be left out. */
static int read_list(const char *text, dcm_model_info *shape)
{
    int64_t tied = 1;
    struct {
        const char *key;
        uint32_t *value;
    } keys[] = {{"layers", &shape->layers}, {"hidden", &shape->hidden}, {"heads", &shape->heads},
                {"kv", &shape->kv_heads},   {"ffn", &shape->ffn},       {"vocab", &shape->vocab}};
    enum { KEYS = sizeof keys / sizeof *keys };
    uint32_t seen = 0; /* a bit each; tied has the one behind them */
    for (const char *at = text; *at;) {
        char item[64], *equals;
        const size_t size = strcspn(at, ",");
        int64_t n = 0;
        size_t k = 0;
        snprintf(item, sizeof item, "%.*s", (int)size, at);
        equals = strchr(item, '=');
        if (!equals || size >= sizeof item)
            return unknown(text);
        *equals = 0;
        const bool is_tied = strcmp(item, "tied") == 0;
        while (k < KEYS && strcmp(keys[k].key, item) != 0)
            k++;
        if (k == KEYS && !is_tied)
            return tool_fail(DCM_ERR_USAGE,
                             "--model: shape: \"%s\" is none of layers, hidden, heads, kv, ffn, vocab, "
                             "tied",
                             item);
        if (!args_read_int(equals + 1, is_tied ? 0 : 1, is_tied ? 1 : UINT32_MAX, &n))
            return tool_fail(DCM_ERR_USAGE, "--model: shape: %s: \"%s\" is not an integer in %s", item, equals + 1,
                             is_tied ? "0 .. 1" : "1 .. 4294967295");
        if (seen & 1u << k)
            return tool_fail(DCM_ERR_USAGE, "--model: shape: %s is given twice", item);
        seen |= 1u << k;
        if (is_tied)
            tied = n;
        else
            *keys[k].value = (uint32_t)n;
        at += size + (at[size] == ',');
    }
    for (size_t k = 0; k < KEYS; k++)
        if (!*keys[k].value)
            return tool_fail(DCM_ERR_USAGE, "--model: shape: %s is missing", keys[k].key);
    shape->tied = tied;
    return 0;
}

size_t bench_shape_weight_bytes(const dcm_model_info *s, dcm_weights weights)
{
    static const struct {
        size_t items, bytes; /* of a block */
    } types[] = {{1, 2}, {32, 34}, {32, 20}};
    const size_t hidden = s->hidden, kv = hidden / s->heads * s->kv_heads;
    const size_t layer = hidden * (2 * hidden + 2 * kv + 3 * (size_t)s->ffn);
    const size_t numbers = s->layers * layer + (s->tied ? 1 : 2) * hidden * s->vocab;
    return numbers / types[weights].items * types[weights].bytes + (1 + 2 * (size_t)s->layers) * hidden * sizeof(float);
}

int bench_shape_read(const char *model, dcm_model_info *shape)
{
    const char *name = model + sizeof prefix - 1;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (strcmp(shapes[i].name, name) == 0) {
            *shape = shapes[i];
            return 0;
        }
    }
    *shape = (dcm_model_info){.name = name};
    return strchr(name, '=') ? read_list(name, shape) : unknown(name);
}

int32_t bench_token(uint64_t seed, uint64_t i, uint32_t vocab)
{
    return (int32_t)(mix64((i + 1) * MIX_STEP + seed * 0xd1342543de82ef95u) % vocab);
}
