/* cl_embed: rows of the table exactly as quant_to_float gives them. */
#include "harness.h"

#include "base/rng.h"

typedef struct embed_case {
    quant_type type;
    uint32_t vocab, cols, n;
    const void *table;
    uint32_t words[64]; /* the step: ids from word 3 */
    float *x;
} embed_case;

static dcm_status run(ck *c, int side, const void *what)
{
    const embed_case *e = what;
    const step s = {.data = ck_buffer(c, side, "step", e->words, sizeof e->words, 4), .n = e->n, .tokens = 3};
    const embed_args args = {.table = ck_matrix(c, side, e->type, e->vocab, e->cols, e->table),
                             .step = &s,
                             .x = ck_buffer(c, side, "x", e->x, (size_t)e->n * e->cols * 4, 4)};
    return c->side[side]->ops->embed(c->side[side], &args);
}

static void exact(ck *c, const void *what)
{
    (void)c;
    (void)what;
}

static void one(ck *c, quant_type type, uint32_t cols, uint32_t n)
{
    embed_case e = {.type = type, .vocab = 67, .cols = cols, .n = n};
    if (!ck_case(c, "embed/%s_c%u_n%u", quant_name(type), cols, n))
        return;
    const size_t bytes = (size_t)n * cols * 4;
    void *table = fx_weights(type, e.vocab, cols, 1, &c->rng);
    e.table = table;
    e.x = fx_alloc(bytes);
    fx_pattern(e.x, bytes);
    fx_pattern(e.words, sizeof e.words);
    for (uint32_t i = 0; i < n; i++)
        e.words[3 + i] = i == 0 ? e.vocab - 1 : i == 1 ? 0 : (uint32_t)(rng_next(&c->rng) % e.vocab);
    c->traffic = n * (quant_row_bytes(type, cols) + cols * sizeof(float));
    ck_run(c, run, exact, &e);
    free(table);
    free(e.x);
}

void check_embed(ck *c)
{
    for (int i = 0; i < FX_TYPES; i++) {
        const uint32_t items = quant_get(fx_types[i])->items;
        one(c, fx_types[i], items, 1);
        one(c, fx_types[i], items > 1 ? 3 * items : 577, 2);
        one(c, fx_types[i], items == 256 ? 1536 : 576, 33);
    }
}
