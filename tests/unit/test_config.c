/* What a model's metadata say of it: read, and refused in one line where dcm would compute something else. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <dcm/log.h>

#include "model/model.h"
#include "unit/gguf_small.h"

static const float ones[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
static const char long_arch[] = "0123456789012345678901234567890123456789012345678901234567890123+";

/* A model of one layer: 16 wide, 2 heads, 2 tokens. Without its embedding where `embedding` is false. */
static void put_model(gguf_writer *w, const char *arch, bool embedding)
{
    gw_open(w);
    gw_string(w, "general.architecture", arch);
    gw_u32(w, "llama.block_count", 1);
    gw_u32(w, "llama.embedding_length", 16);
    gw_u32(w, "llama.feed_forward_length", 32);
    gw_u32(w, "llama.context_length", 64);
    gw_u32(w, "llama.attention.head_count", 2);
    gw_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    if (embedding)
        gw_tensor(w, "token_embd.weight", QUANT_F32, 2, (const uint64_t[]){16, 2}, ones, sizeof ones);
}

static dcm_status read(gguf_writer *w, model_config *c)
{
    gguf *file;
    gw_bytes bytes = gw_finish(w);
    if (gguf_open_memory(&file, "t.gguf", bytes.data, bytes.size) != DCM_OK)
        fail_msg("%s", dcm_error());
    const dcm_status status = model_config_read(c, file);
    gguf_close(&file);
    gw_free(&bytes);
    return status;
}

static void refuse(gguf_writer *w, const char *part)
{
    model_config c;
    assert_int_equal(read(w, &c), DCM_ERR_FILE);
    assert_message("t.gguf: ");
    assert_message(part);
}

static void test_right(void **state)
{
    (void)state;
    gguf_writer w;
    model_config c;
    char name[200];
    memset(name, 'n', sizeof name);
    name[199] = '\0';
    put_model(&w, "llama", true);
    gw_string(&w, "general.name", name);
    gw_string(&w, "llama.rope.scaling.type", "none");
    gw_f32(&w, "llama.rope.scaling.factor", 4); /* of no scaling */
    gw_u32(&w, "llama.attention.sliding_window", 32);
    gw_tensor(&w, "rope_freqs.weight", QUANT_F32, 1, (const uint64_t[]){4}, (const float[]){1, 1, 2, 8}, 16);
    assert_int_equal(read(&w, &c), DCM_OK);
    assert_int_equal(strlen(c.name), 127);
    assert_true(c.info.layers == 1 && c.info.hidden == 16 && c.info.vocab == 2 && c.info.head_dim == 8);
    assert_true(c.info.kv_heads == 2 && c.rope == ROPE_INTERLEAVED);
    const double divide[] = {1, 1, 2, 8};
    for (int i = 0; i < 4; i++)
        assert_true(fabs(c.rope_frequency[i] * divide[i] * pow(10000, 2.0 * i / 8) - 1) < 1e-12);
    put_model(&w, "llama", true);
    gw_string(&w, "llama.rope.scaling.type", "linear");
    gw_f32(&w, "llama.rope.scaling.factor", 4);
    assert_int_equal(read(&w, &c), DCM_OK);
    assert_true(fabs(c.rope_frequency[0] * 4 - 1) < 1e-12);
    put_model(&w, "llama", true);
    gw_u32(&w, "general.name", 7); /* no text: no name */
    assert_int_equal(read(&w, &c), DCM_OK);
    assert_string_equal(c.name, "");
}

static uint64_t digest_of(const char *name, const float *embedding)
{
    gguf_writer w;
    model_config c;
    put_model(&w, "llama", false);
    gw_string(&w, "general.name", name);
    gw_tensor(&w, "token_embd.weight", QUANT_F32, 2, (const uint64_t[]){16, 8}, embedding, 8 * 16 * sizeof *embedding);
    gw_tensor(&w, "rope_freqs.weight", QUANT_F32, 1, (const uint64_t[]){4}, ones, 16); /* less than a sample */
    assert_int_equal(read(&w, &c), DCM_OK);
    return c.info.digest;
}

/* Other weights are another model, also where only the middle of a tensor is another. */
static void test_digest(void **state)
{
    (void)state;
    float embedding[8 * 16] = {1, 2, 3};
    const uint64_t digest = digest_of("a", embedding);
    assert_true(digest_of("a", embedding) == digest);
    assert_true(digest_of("b", embedding) != digest);
    for (size_t i = 32; i < 96; i++) { /* 256 of 512 bytes */
        embedding[i] = 1e-30f;
        if (digest_of("a", embedding) == digest)
            fail_msg("item %zu does not count", i);
        embedding[i] = 0;
    }
    assert_true(digest_of("a", embedding) == digest);
}

static void test_arch(void **state)
{
    (void)state;
    gguf_writer w;
    put_model(&w, "gemma", true);
    refuse(&w, "architecture \"gemma\" is not supported");
    put_model(&w, long_arch, true);
    refuse(&w, "architecture \"0123456789012345678901234567890123456789012345678901234567890123\"");
}

/* Head sizes and rotations that dcm would compute otherwise, and those that are no numbers. */
static void test_heads(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        uint32_t value;
        const char *part;
    } wrong[] = {
        {"llama.attention.head_count_kv", 3, "2 query heads are no multiple of 3 KV heads"},
        {"llama.attention.key_length", 12, "head sizes 12 (keys) and 12 (values)"},
        {"llama.attention.key_length", 4096, "head sizes 4096 (keys)"},
        {"llama.attention.value_length", 16, "head sizes 8 (keys) and 16 (values)"},
        {"llama.rope.dimension_count", 4, "RoPE on 4 of 8 channels is not supported"},
    };
    static const char *const keys[] = {"llama.attention.head_count_kv", "llama.attention.key_length",
                                       "llama.attention.value_length", "llama.rope.dimension_count"};
    gguf_writer w;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        put_model(&w, "llama", true);
        gw_u32(&w, wrong[i].key, wrong[i].value);
        refuse(&w, wrong[i].part);
    }
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        put_model(&w, "llama", true);
        gw_string(&w, keys[i], "eight");
        refuse(&w, keys[i]);
    }
    put_model(&w, "llama", true);
    gw_string(&w, "llama.rope.freq_base", "eight");
    refuse(&w, "llama.rope.freq_base");
}

static void test_rope(void **state)
{
    (void)state;
    static const float wrong[][4] = {{1, 0, 1, 1}, {1, -1, 1, 1}, {1, NAN, 1, 1}, {1, INFINITY, 1, 1}};
    gguf_writer w;
    put_model(&w, "llama", true);
    gw_string(&w, "llama.rope.scaling.type", "yarn, and a name of more than 32 bytes");
    refuse(&w, "RoPE scaling \"yarn, and a name of more than 32\" is not supported");
    put_model(&w, "llama", true);
    gw_string(&w, "llama.rope.scaling.type", "yarn");
    refuse(&w, "RoPE scaling \"yarn\"");
    put_model(&w, "llama", true);
    gw_u32(&w, "llama.rope.scaling.type", 1);
    refuse(&w, "a string is needed");
    put_model(&w, "llama", true);
    gw_tensor(&w, "rope_freqs.weight", QUANT_F16, 1, (const uint64_t[]){4}, ones, 8);
    refuse(&w, "rope_freqs.weight must be 4 items of F32");
    put_model(&w, "llama", true);
    gw_tensor(&w, "rope_freqs.weight", QUANT_F32, 2, (const uint64_t[]){4, 1}, ones, 16);
    refuse(&w, "rope_freqs.weight must be 4 items of F32");
    put_model(&w, "llama", true);
    gw_tensor(&w, "rope_freqs.weight", QUANT_F32, 1, (const uint64_t[]){5}, ones, 20);
    refuse(&w, "rope_freqs.weight must be 4 items of F32");
    for (size_t i = 0; i < 4; i++) {
        put_model(&w, "llama", true);
        gw_tensor(&w, "rope_freqs.weight", QUANT_F32, 1, (const uint64_t[]){4}, wrong[i], 16);
        refuse(&w, "rope_freqs.weight: item 1 is ");
    }
}

static void test_embedding(void **state)
{
    (void)state;
    static float many[1 << 4];
    gguf_writer w;
    put_model(&w, "llama", false);
    refuse(&w, "no tensor token_embd.weight");
    put_model(&w, "llama", false);
    gw_tensor(&w, "token_embd.weight", QUANT_F32, 1, (const uint64_t[]){16}, many, sizeof many);
    refuse(&w, "is not a matrix of 1 .. 16777216 rows");
    put_model(&w, "llama", false);
    const size_t rows = (1 << 24) + 1;
    w.data = (gw_bytes){calloc(rows, 4), rows * 4, rows * 4};
    gw_info(&w, "token_embd.weight", QUANT_F32, 2, (const uint64_t[]){1, rows}, 0);
    refuse(&w, "is not a matrix of 1 .. 16777216 rows");
}

static int quiet(void **state)
{
    (void)state;
    dcm_log_set_level(DCM_LOG_QUIET);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_right), cmocka_unit_test(test_digest), cmocka_unit_test(test_arch),
        cmocka_unit_test(test_heads), cmocka_unit_test(test_rope),   cmocka_unit_test(test_embedding),
    };
    return cmocka_run_group_tests_name("config", tests, quiet, NULL);
}
