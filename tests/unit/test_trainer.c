/*
 * The training interface as a library's user has it: every wrong use is refused with its reason and changes nothing,
 * and numbers that are no longer finite end a step, not the parameters. What training learns is test_train's.
 */
#include <dcm/dcm.h>
#include <dcm/train.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/rng.h"
#include "io/gguf.h"
#include "support/tiny_model.h"
#include "train/trainer.h"

enum { TOKENS = 64, GROUP = 4 };

static dcm_device *device;
static dcm_model *model;
static int32_t tokens[TOKENS], no_number; /* the last id, whose embedding is NaN and which is not in `tokens` */
static char folder[] = "/tmp/dcm-trainer-XXXXXX", path[64], other[64];

/* Write NaN over the last row of a model file's embedding. */
static void spoil_embedding(const char *model_path)
{
    gguf *file = NULL;
    assert_int_equal(gguf_open(&file, model_path), DCM_OK);
    const gguf_tensor *t = gguf_find_tensor(file, "token_embd.weight");
    const size_t row = t->dims[0] * sizeof(float), at = gguf_tensor_offset(file, t) + t->bytes - row;
    float *values = malloc(row);
    assert_non_null(values);
    for (size_t i = 0; i < t->dims[0]; i++)
        values[i] = NAN;
    gguf_close(&file);
    FILE *out = fopen(model_path, "r+b");
    assert_non_null(out);
    assert_int_equal(fseek(out, (long)at, SEEK_SET), 0);
    assert_int_equal(fwrite(values, row, 1, out), 1);
    assert_int_equal(fclose(out), 0);
    free(values);
}

static int setup(void **state)
{
    (void)state;
    dcm_model_info info;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/model.gguf", folder);
    snprintf(other, sizeof other, "%s/other", folder);
    assert_true(tiny_model_save(&(tiny_params){.untied = true}, path)); /* of a NaN row no logit is one */
    spoil_embedding(path);
    assert_int_equal(dcm_device_open(&device, &(dcm_device_params){.name = "ref", .threads = 1}), DCM_OK);
    assert_int_equal(dcm_model_open(&model, device, path), DCM_OK);
    dcm_model_get_info(model, &info);
    uint64_t seed = 5;
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = (int32_t)(rng_next(&seed) % (info.vocab - 1));
    no_number = (int32_t)info.vocab - 1;
    snprintf(path, sizeof path, "%s/file", folder);
    return 0;
}

static int teardown(void **state)
{
    char command[64];
    (void)state;
    dcm_model_close(&model);
    dcm_device_close(&device);
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static dcm_trainer *open_trainer(dcm_train_params params)
{
    dcm_trainer *t = NULL;
    params.tokens = TOKENS;
    if (dcm_trainer_open(&t, model, &params) != DCM_OK)
        fail_msg("%s", dcm_error());
    return t;
}

static void assert_refused(dcm_status status, dcm_status wanted, const char *why)
{
    assert_int_equal(status, wanted);
    if (!strstr(dcm_error(), why))
        fail_msg("\"%s\" is not said: %s", why, dcm_error());
}

/* The state of training, for assert_kept. */
static void keep(const dcm_trainer *t) { assert_int_equal(dcm_trainer_checkpoint(t, path, "kept"), DCM_OK); }

/* The bytes of the state are those of `keep`. */
static void assert_kept(const dcm_trainer *t)
{
    file_map a, b;
    assert_int_equal(dcm_trainer_checkpoint(t, other, "kept"), DCM_OK);
    assert_int_equal(file_map_open(&a, path), DCM_OK);
    assert_int_equal(file_map_open(&b, other), DCM_OK);
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.data, b.data, a.size);
    file_map_close(&a);
    file_map_close(&b);
}

static double learn(dcm_trainer *t)
{
    dcm_train_losses losses;
    if (dcm_trainer_learn(t, GROUP, 1, &losses) != DCM_OK)
        fail_msg("%s", dcm_error());
    return losses.kl;
}

static void wrong_params(void **state)
{
    (void)state;
    static const struct {
        dcm_train_params params;
        const char *why;
    } wrong[] = {
        {{.tokens = 7}, "sequences of 7 tokens: 8 to 1048576 are allowed"},
        {{.tokens = (1 << 20) + 1}, "sequences of 1048577 tokens"},
        {{.tokens = 64, .arch = DCM_TRAIN_GATE, .magnitude = 1}, "the magnitude term is a scorer's alone"},
        {{.tokens = 64, .arch = (dcm_train_arch)3}, "no merge architecture 3"},
        {{.tokens = 64, .hidden = 24}, "24 hidden units: a multiple of 16"},
        {{.tokens = 64, .levels = 100}, "100 levels: at most"},
    };
    const size_t living = mem_living();
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        dcm_trainer *t = (dcm_trainer *)&living;
        assert_refused(dcm_trainer_open(&t, model, &wrong[i].params), DCM_ERR_USAGE, wrong[i].why);
        assert_null(t);
        assert_int_equal(mem_living(), living);
    }
}

/* Calls out of their order, and sequences that do not fit: afterwards the same step gives the same parameters. */
static void wrong_calls(void **state)
{
    (void)state;
    dcm_trainer *t = open_trainer((dcm_train_params){0});
    dcm_train_losses losses;
    dcm_train_gate gate;
    double kl;
    keep(t);
    assert_refused(dcm_trainer_learn(t, GROUP, 1, &losses), DCM_ERR_USAGE, "no sequence was read");
    assert_refused(dcm_trainer_test(t, GROUP, &kl), DCM_ERR_USAGE, "no sequence was read");
    assert_refused(dcm_trainer_test_window(t, GROUP, &kl), DCM_ERR_USAGE, "no sequence was read");
    assert_refused(dcm_trainer_gate(t, &gate), DCM_ERR_USAGE, "nothing was merged yet");
    assert_refused(dcm_trainer_update(t, 1e-3, NULL), DCM_ERR_USAGE, "nothing was learnt since the last update");
    assert_refused(dcm_trainer_read(t, tokens, 0), DCM_ERR_USAGE, "a sequence of 0 tokens, where 1 to 64 are allowed");
    assert_refused(dcm_trainer_read(t, tokens, TOKENS + 1), DCM_ERR_USAGE, "a sequence of 65 tokens");
    assert_int_equal(dcm_trainer_read(t, tokens, TOKENS), DCM_OK);
    assert_refused(dcm_trainer_learn(t, GROUP + 1, 1, &losses), DCM_ERR_USAGE, "power of two");
    assert_refused(dcm_trainer_learn(t, 32, 1, &losses), DCM_ERR_USAGE, "64 tokens are too few for L = 32");

    int32_t wrong[] = {tokens[0], -1};
    assert_refused(dcm_trainer_read(t, wrong, 2), DCM_ERR_USAGE, "token 1 is -1, not an id of the vocabulary");
    wrong[1] = INT32_MAX;
    assert_refused(dcm_trainer_measure(t, wrong, 2), DCM_ERR_USAGE, "token 1 is 2147483647");
    assert_refused(dcm_trainer_learn(t, GROUP, 1, &losses), DCM_ERR_USAGE, "no sequence was read");
    assert_kept(t);
    dcm_trainer_close(&t);
}

/* Channels are measured of a new model alone, and before its first step. */
static void late_measure(void **state)
{
    (void)state;
    static const char why[] = "channels are measured before a new merge model's first step";
    dcm_trainer *t = open_trainer((dcm_train_params){0});
    assert_int_equal(dcm_trainer_read(t, tokens, TOKENS), DCM_OK);
    learn(t);
    assert_refused(dcm_trainer_measure(t, tokens, TOKENS), DCM_ERR_USAGE, why);
    assert_int_equal(dcm_trainer_update(t, 1e-3, NULL), DCM_OK);
    assert_int_equal(dcm_trainer_steps(t), 1);
    assert_refused(dcm_trainer_measure(t, tokens, TOKENS), DCM_ERR_USAGE, why);
    assert_int_equal(dcm_trainer_save(t, path, NULL, 0), DCM_OK);
    dcm_trainer_close(&t);
    t = open_trainer((dcm_train_params){.from = path});
    assert_refused(dcm_trainer_measure(t, tokens, TOKENS), DCM_ERR_USAGE, why);
    dcm_trainer_close(&t);
}

/* A sequence that the model itself makes NaN of is refused, and is as if it had not been. */
static void model_is_nan(void **state)
{
    (void)state;
    static const char why[] = "the predictions of the model itself are no numbers: its weights may hold NaN";
    int32_t spoilt[TOKENS];
    dcm_train_losses losses;
    dcm_trainer *t = open_trainer((dcm_train_params){0});
    memcpy(spoilt, tokens, sizeof tokens);
    spoilt[TOKENS / 2] = no_number;
    keep(t);
    assert_refused(dcm_trainer_measure(t, spoilt, TOKENS), DCM_ERR_FILE, why);
    assert_kept(t);
    assert_int_equal(dcm_trainer_read(t, tokens, TOKENS), DCM_OK);
    learn(t);
    assert_refused(dcm_trainer_read(t, spoilt, TOKENS), DCM_ERR_FILE, why);
    assert_refused(dcm_trainer_learn(t, GROUP, 1, &losses), DCM_ERR_USAGE, "no sequence was read");
    assert_int_equal(dcm_trainer_update(t, 1e-3, NULL), DCM_OK);
    keep(t);
    dcm_trainer_close(&t);
    t = open_trainer((dcm_train_params){0});
    assert_int_equal(dcm_trainer_read(t, tokens, TOKENS), DCM_OK);
    learn(t);
    assert_int_equal(dcm_trainer_update(t, 1e-3, NULL), DCM_OK);
    assert_kept(t);
    dcm_trainer_close(&t);
}

/* A trainer whose merges of units of 4 tokens overflow: there are none with GROUP = 4, some with twice that. */
static dcm_trainer *open_overflowing(void)
{
    dcm_trainer *t = open_trainer((dcm_train_params){0});
    const score_layout l = score_layout_of(t->learner.score);
    const size_t x = 2 * (size_t)t->learner.score.head_dim;
    for (size_t at = l.r + 2 * x; at < t->learner.count; at += l.row)
        for (size_t c = 0; c < x; c++)
            t->learner.param[at + c] = 3e38f;
    assert_int_equal(trainer_begin(t), DCM_OK);
    return t;
}

/* A loss that is not finite drops what was learnt before it, and the next one is as if neither had been. */
static void loss_is_nan(void **state)
{
    (void)state;
    dcm_train_losses losses;
    dcm_trainer *t = open_overflowing();
    assert_int_equal(dcm_trainer_read(t, tokens, TOKENS), DCM_OK);
    keep(t);
    const double before = learn(t);
    assert_refused(dcm_trainer_learn(t, 2 * GROUP, 1, &losses), DCM_ERR_DEVICE, "the loss is not finite (KL ");
    assert_refused(dcm_trainer_update(t, 1e-3, NULL), DCM_ERR_USAGE, "nothing was learnt since the last update");
    assert_kept(t);

    assert_true(learn(t) == before);
    assert_int_equal(dcm_trainer_update(t, 1e-3, NULL), DCM_OK);
    keep(t);
    dcm_trainer_close(&t);
    t = open_overflowing();
    assert_int_equal(dcm_trainer_read(t, tokens, TOKENS), DCM_OK);
    learn(t);
    assert_int_equal(dcm_trainer_update(t, 1e-3, NULL), DCM_OK);
    assert_kept(t);
    dcm_trainer_close(&t);
}

/* A gate's shares are shares; a direct head has none, but what it makes of pairs differs. */
static void gates(void **state)
{
    (void)state;
    for (dcm_train_arch arch = DCM_TRAIN_SCORE; arch <= DCM_TRAIN_DIRECT; arch++) {
        dcm_trainer *t = open_trainer((dcm_train_params){.arch = arch, .depth = 3});
        dcm_train_gate gate;
        assert_int_equal(dcm_trainer_read(t, tokens, TOKENS), DCM_OK);
        learn(t);
        assert_int_equal(dcm_trainer_gate(t, &gate), DCM_OK);
        assert_true(gate.variety > 0.01 && gate.variety < 2);
        if (arch == DCM_TRAIN_DIRECT) {
            assert_true(isnan(gate.mean) && isnan(gate.spread) && isnan(gate.sure));
        } else {
            assert_true(gate.mean > 0 && gate.mean < 1 && gate.spread > 0 && gate.spread <= 0.5);
            assert_true(gate.sure >= 0 && gate.sure <= 1);
        }
        dcm_trainer_close(&t);
    }
}

/* What the caller's steps depend on is part of a checkpoint: the first that differs is told, old and new. */
static void other_options(void **state)
{
    (void)state;
    static const struct {
        dcm_train_params params;
        const char *why;
    } wrong[] = {
        {{.options = "rate=1 seed=3"}, "it was made with seed=2, this training has seed=3"},
        {{.options = "rate=10 seed=3"}, "it was made with rate=1, this training has rate=10"},
        {{.il = 0.5f, .options = "rate=1 seed=3"}, "it was made with il=0, this training has il=0.5"},
        {{.options = "rate=1 seed=2 more=1"}, "it was made with nothing, this training has more=1"},
        {{0}, "it was made with rate=1, this training has nothing"},
    };
    dcm_trainer *t = open_trainer((dcm_train_params){.options = "rate=1 seed=2"});
    keep(t);
    dcm_trainer_close(&t);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        t = open_trainer(wrong[i].params);
        assert_refused(dcm_trainer_resume(t, path, other, 1), DCM_ERR_FILE, wrong[i].why);
        dcm_trainer_close(&t);
    }
    t = open_trainer((dcm_train_params){.seed = 7, .again = true, .options = "rate=1 seed=2"});
    char text[16];
    assert_int_equal(dcm_trainer_resume(t, path, text, sizeof text), DCM_OK);
    assert_string_equal(text, "kept");
    dcm_trainer_close(&t);
}

/* Parameters that have left the numbers' range: the loss says so, and what was saved before stays. */
static void loss_overflows(void **state)
{
    (void)state;
    char saved[64];
    dcm_trainer *t = open_trainer((dcm_train_params){0});
    dcm_train_losses losses;
    file_map before, after;
    snprintf(saved, sizeof saved, "%s/saved", folder);
    assert_int_equal(dcm_trainer_save(t, saved, NULL, 0), DCM_OK);
    assert_int_equal(file_map_open(&before, saved), DCM_OK);
    assert_int_equal(dcm_trainer_read(t, tokens, TOKENS), DCM_OK);
    keep(t);
    learn(t);
    assert_refused(dcm_trainer_update(t, INFINITY, NULL), DCM_ERR_USAGE, "a learning rate of inf");
    assert_refused(dcm_trainer_update(t, NAN, NULL), DCM_ERR_USAGE, "a learning rate of");
    assert_kept(t);
    assert_int_equal(dcm_trainer_update(t, 1e30, NULL), DCM_OK);
    keep(t);
    assert_refused(dcm_trainer_learn(t, GROUP, 1, &losses), DCM_ERR_DEVICE, "the loss is not finite (KL ");
    assert_false(isfinite(losses.kl));
    assert_kept(t);
    assert_refused(dcm_trainer_update(t, 1e-3, NULL), DCM_ERR_USAGE, "nothing was learnt since the last update");
    assert_refused(dcm_trainer_save(t, saved, NULL, 0), DCM_ERR_FILE, "more than the file's type can hold");
    assert_int_equal(file_map_open(&after, saved), DCM_OK);
    assert_int_equal(after.size, before.size);
    assert_memory_equal(after.data, before.data, before.size);
    file_map_close(&before);
    file_map_close(&after);
    dcm_trainer_close(&t);
}

/* A gradient that overflows: the step is dropped, and there is nothing to update with. */
static void gradient_overflows(void **state)
{
    (void)state;
    dcm_trainer *t = open_trainer((dcm_train_params){.il = 3e38f});
    double norm = 0;
    assert_int_equal(dcm_trainer_read(t, tokens, TOKENS), DCM_OK);
    keep(t);
    const double before = learn(t);
    assert_refused(dcm_trainer_update(t, 1e-3, &norm), DCM_ERR_DEVICE, "the gradient of step 1 is not finite");
    assert_false(isfinite(norm));
    assert_int_equal(dcm_trainer_steps(t), 0);
    assert_kept(t);
    assert_refused(dcm_trainer_update(t, 1e-3, NULL), DCM_ERR_USAGE, "nothing was learnt since the last update");
    assert_true(learn(t) == before);
    dcm_trainer_close(&t);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(wrong_params),
    cmocka_unit_test(wrong_calls),
    cmocka_unit_test(late_measure),
    cmocka_unit_test(model_is_nan),
    cmocka_unit_test(loss_is_nan),
    cmocka_unit_test(gates),
    cmocka_unit_test(other_options),
    cmocka_unit_test(loss_overflows),
    cmocka_unit_test(gradient_overflows),
};

int main(void) { return cmocka_run_group_tests_name("trainer", tests, setup, teardown); }
