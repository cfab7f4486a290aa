/* Tiers: their names and settings, forced on and off on every device, the programs and the tuning that follow. */
#define _GNU_SOURCE
#include "apart.h"

#include <dirent.h>
#include <math.h>

#include <dcm/dcm.h>

#include "base/half.h"
#include "device/tuning.h"
#include "ops/open.h"
#include "ops/ops_cl.h"
#include "ops/tune_cl.h"
#include "support/fixture.h"

enum { ROWS = 32, COLS = 256 };

static void parse(void **state)
{
    (void)state;
    uint32_t on, off;
    assert_int_equal(cldev_tiers_parse(NULL, &on, &off), DCM_OK);
    assert_int_equal(on | off, 0);
    assert_int_equal(cldev_tiers_parse("dot4=off,mma=on,half16=on,dot4=on,mma=off,subgroups=off", &on, &off), DCM_OK);
    assert_int_equal(on, 1u << CLDEV_DOT4 | 1u << CLDEV_HALF16); /* the last of a name holds */
    assert_int_equal(off, 1u << CLDEV_MMA | 1u << CLDEV_SUBGROUPS);
    static const char *const wrong[][2] = {
        {"fast=on", "there is no tier \"fast\"; there are: dot4, dot2, half16, fp16, subgroups, mma"},
        {"dot=on", "there is no tier \"dot\"; there are: dot4, dot2, half16, fp16, subgroups, mma"},
        {",dot4=on", "there is no tier \"\"; there are: dot4, dot2, half16, fp16, subgroups, mma"},
        {"dot4=on,DOT4=on", "there is no tier \"DOT4\"; there are: dot4, dot2, half16, fp16, subgroups, mma"},
        {"dot4", "tier \"dot4\" is neither dot4=on nor dot4=off"},
        {"mma=on,dot4=yes", "tier \"dot4=yes\" is neither dot4=on nor dot4=off"},
        {"dot4=onn", "tier \"dot4=onn\" is neither dot4=on nor dot4=off"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(cldev_tiers_parse(wrong[i][0], &on, &off), DCM_ERR_USAGE);
        assert_string_equal(dcm_error(), wrong[i][1]);
    }
}

/* On is an error just where the tier does not work, with the reason; off is always taken. */
static void force(void **state)
{
    (void)state;
    size_t count;
    cldev_entry *entries = all_devices(&count);
    for (size_t i = 0; i < count; i++) {
        cldev *device = open_with_cache(&entries[i]);
        uint32_t on, off, all = 0;
        char used[128];
        for (int t = 0; t < CLDEV_TIERS; t++) {
            const bool works = cldev_tier_probe(device, (cldev_tier)t)->works;
            all |= (uint32_t)works << t;
            assert_int_equal(cldev_has(device, (cldev_tier)t), works);
            assert_true(works == !*device->tier[t].why);
            assert_int_equal(cldev_tiers_force(device, 1u << t, 0), works ? DCM_OK : DCM_ERR_DEVICE);
            if (!works)
                assert_non_null(strstr(dcm_error(), device->tier[t].why));
            assert_int_equal(cldev_tiers_force(device, 0, 1u << t), DCM_OK);
            assert_false(cldev_has(device, (cldev_tier)t));
            assert_int_equal(cldev_tiers_force(device, 0, 0), DCM_OK);
            assert_int_equal(cldev_has(device, (cldev_tier)t), works);
        }
        cldev_tiers_used(device, used, sizeof used);
        assert_int_equal(cldev_tiers_parse(used, &on, &off), DCM_OK);
        assert_true(on == 0 && off == all);
        cldev_close(&device);
    }
    mem_free(&entries);
}

/* A device whose results have one wrong bit has no tier. What is read from devices goes through here (--wrap). */
static bool spoil;
static size_t spoiled_byte;

cl_int __real_clEnqueueReadBuffer(cl_command_queue, cl_mem, cl_bool, size_t, size_t, void *, cl_uint, const cl_event *,
                                  cl_event *);
cl_int __wrap_clEnqueueReadBuffer(cl_command_queue queue, cl_mem buffer, cl_bool block, size_t at, size_t size,
                                  void *to, cl_uint n_wait, const cl_event *wait, cl_event *event);
cl_int __wrap_clEnqueueReadBuffer(cl_command_queue queue, cl_mem buffer, cl_bool block, size_t at, size_t size,
                                  void *to, cl_uint n_wait, const cl_event *wait, cl_event *event)
{
    const cl_int error = __real_clEnqueueReadBuffer(queue, buffer, block, at, size, to, n_wait, wait, event);
    if (spoil)
        ((unsigned char *)to)[spoiled_byte % size] ^= 0x10;
    return error;
}

static void wrong_numbers(void **state)
{
    (void)state;
    size_t count, tried = 0;
    cldev_entry *entries = all_devices(&count);
    for (size_t i = 0; i < count; i++) {
        cldev *device = open_with_cache(&entries[i]);
        for (int t = 0; t < CLDEV_TIERS; t++) {
            if (!cldev_has(device, (cldev_tier)t))
                continue;
            tried++;
            spoil = true;
            for (spoiled_byte = 2; spoiled_byte < 1000; spoiled_byte += 300) { /* none of a NaN of check_half16 */
                device->tier[t] = (cldev_tier_state){0};
                assert_false(cldev_has(device, (cldev_tier)t));
                assert_memory_equal(device->tier[t].why, "wrong numbers: ", strlen("wrong numbers: "));
            }
            spoil = false;
            device->tier[t] = (cldev_tier_state){0};
            assert_true(cldev_has(device, (cldev_tier)t));
        }
        cldev_close(&device);
    }
    mem_free(&entries);
    if (!tried)
        skip_case();
}

static size_t programs(void)
{
    size_t n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        n += !strncmp(e->d_name, "program-", 8) && !strstr(e->d_name, "-probe-");
    if (d)
        closedir(d);
    return n;
}

/* One product of a matrix made now. */
static void multiply(backend *b)
{
    static float x[COLS], y[ROWS];
    uint64_t rng = 1;
    matrix *w = NULL;
    void *data = fx_weights(QUANT_Q4_1, ROWS, COLS, 0.3, &rng);
    buffer *in = fx_make_plain(b, "x", x, sizeof x, 4), *out = fx_make_plain(b, "y", y, sizeof y, 4);
    assert_int_equal(b->ops->matrix_new(b, QUANT_Q4_1, ROWS, COLS, data, &w), DCM_OK);
    const linear_args args = {.w = w, .n = 1, .x = in, .y = out, .ldy = ROWS};
    assert_int_equal(b->ops->linear(b, &args), DCM_OK);
    free(data);
    matrix_free(&w);
    buffer_free(&in);
    buffer_free(&out);
}

/* What is forced off gives other programs, under other keys of the cache folder; forced back, the first ones again. */
static void keys(void **state)
{
    (void)state;
    size_t count;
    cldev_entry *entries = all_devices(&count);
    for (size_t i = 0; i < count; i++) {
        const size_t before = programs();
        size_t first = 0;
        for (int round = 0; round < 3; round++) {
            backend *b = NULL;
            cldev *device = open_with_cache(&entries[i]);
            assert_int_equal(cldev_tiers_force(device, 0, round == 1 ? (1u << CLDEV_TIERS) - 1 : 0), DCM_OK);
            assert_int_equal(backend_cl_open(&b, device, 0), DCM_OK);
            const bool tiers = clop_wide(b) && (cldev_tier_probe(device, CLDEV_DOT4)->works ||
                                                cldev_tier_probe(device, CLDEV_DOT2)->works);
            multiply(b);
            if (round == 0)
                first = programs();
            assert_true(first > before);
            assert_int_equal(programs(), first + (round && tiers));
            backend_close(&b);
            cldev_close(&device);
        }
    }
    mem_free(&entries);
}

/* The sum of 16 as cl/common.cl adds them. */
static float sum16(const float *x)
{
    float a[8];
    for (int i = 0; i < 8; i++)
        a[i] = x[i] + x[i + 8];
    for (int half = 4; half >= 1; half /= 2)
        for (int i = 0; i < half; i++)
            a[i] += a[i + half];
    return a[0];
}

/* One block of a row by the formula of cl/linear_fixed.cl: sum + d * products + m * x's sum. */
static float fixed_block(float sum, float d, float m, const uint8_t *quants, const float *x)
{
    static const float top = 8355000.0f; /* DOT_TOP */
    float most = 0, pairs[16];
    int32_t a = 0, b = 0, c = 0;
    for (int k = 0; k < 32; k++)
        most = fmaxf(most, fabsf(x[k]));
    for (int k = 0; k < 16; k++)
        pairs[k] = x[k] + x[k + 16];
    for (int k = 0; k < 32; k++) {
        const int32_t fixed = (int32_t)nearbyintf(x[k] * (top / most)), low = (int8_t)fixed;
        const int32_t rest = (fixed - low) / 256, middle = (int8_t)rest, high = (rest - middle) / 256;
        const int32_t q = quants[k % 16] >> (k / 16 * 4) & 15;
        a += q * low;
        b += q * middle;
        c += q * high;
    }
    const float products = fmaf((float)c, 65536.0f, fmaf((float)b, 256.0f, (float)a)) * (most / top);
    return fmaf(m, sum16(pairs), fmaf(d, products, sum));
}

static void compare_fixed(backend *b, quant_type type, const uint8_t *data, const float *x)
{
    const size_t heads = type == QUANT_Q4_1 ? 2 : 1;
    float y[ROWS];
    matrix *w = NULL;
    buffer *in = fx_make_plain(b, "x", x, COLS * sizeof *x, 4), *out = fx_make_plain(b, "y", y, sizeof y, 4);
    assert_int_equal(b->ops->matrix_new(b, type, ROWS, COLS, data, &w), DCM_OK);
    assert_int_equal(b->ops->linear(b, &(linear_args){.w = w, .n = 1, .x = in, .y = out, .ldy = ROWS}), DCM_OK);
    assert_int_equal(b->ops->read(out, 0, y, sizeof y), DCM_OK);
    for (int r = 0; r < ROWS; r++) {
        float expected = 0;
        for (int i = 0; i < COLS / 32; i++, data += 2 * heads + 16) {
            uint16_t head[2];
            memcpy(head, data, 2 * heads);
            const float d = half_to_float(head[0]), m = heads == 2 ? half_to_float(head[1]) : -8 * d;
            expected = fixed_block(expected, d, m, data + 2 * heads, x + (ptrdiff_t)(32 * i));
        }
        assert_memory_equal(&y[r], &expected, sizeof expected);
    }
    matrix_free(&w);
    buffer_free(&in);
    buffer_free(&out);
}

/* Made-up weights, but the first row's quants all 15; and x of several kinds, at last with sums as large as they get.
 */
static void fixed_inputs(backend *b, quant_type type)
{
    static float x[COLS];
    uint64_t rng = 1;
    const size_t row_bytes = quant_row_bytes(type, COLS), block_bytes = row_bytes / (COLS / 32);
    uint8_t *data = fx_weights(type, ROWS, COLS, 0.3, &rng);
    for (size_t k = 0; k < row_bytes; k++)
        if (k % block_bytes >= block_bytes - 16)
            data[k] = 255;
    for (int input = 0; input < FX_INPUTS; input++) {
        fx_fill(x, 1, COLS, (fx_input)input, &rng);
        compare_fixed(b, type, data, x);
    }
    for (int k = 0; k < COLS; k++) /* lower two bytes -128, or 127; DOT_TOP, for a scale of 1 */
        x[k] = k % 32 == 31 ? 8355000.0f : k / 32 % 2 ? 127 * 65536 - 128 * 257 : 126 * 65536 + 127 * 257;
    compare_fixed(b, type, data, x);
    free(data);
}

/* Products of weights of 4 bits have the bits of the formula by dot4 and by dot2 (the other one forced off). */
static void fixed_point(void **state)
{
    (void)state;
    static const uint32_t off[] = {1u << CLDEV_DOT4, 1u << CLDEV_DOT2};
    size_t count, tried = 0;
    cldev_entry *entries = all_devices(&count);
    for (size_t i = 0; i < 2 * count; i++) {
        backend *b = NULL;
        cldev *device = open_with_cache(&entries[i / 2]);
        assert_int_equal(cldev_tiers_force(device, 0, off[i % 2]), DCM_OK);
        assert_int_equal(backend_cl_open(&b, device, 0), DCM_OK);
        if (clop_tier(b, CLDEV_DOT4) || clop_tier(b, CLDEV_DOT2)) {
            tried++;
            fixed_inputs(b, QUANT_Q4_0);
            fixed_inputs(b, QUANT_Q4_1);
        }
        backend_close(&b);
        cldev_close(&device);
    }
    mem_free(&entries);
    if (!tried)
        skip_case();
}

/* What was measured without a tier is no choice with it; and mma forced on is taken whatever was measured. */
static void tuning_follows(void **state)
{
    (void)state;
    size_t count;
    tuning t, read;
    cldev_entry *entries = all_devices(&count);
    cldev *device = open_with_cache(&entries[0]);
    cldev_limits *l = &device->limits;
    tuning_defaults(l, &t);
    l->tiers_off = 1u << CLDEV_MMA;
    assert_true(tuning_set(&t, TUNE_MANY, "clblast", TUNING_MEASURED));
    tuning_store(l, &t);
    for (int bits = 0; bits < 3; bits++) {
        l->tiers_off = bits & 1 ? 1u << CLDEV_MMA : 0;
        l->tiers_on = bits & 2 ? 1u << CLDEV_MMA : 0;
        tuning_defaults(l, &read);
        tuning_load(l, &read);
        assert_int_equal(read.choice[TUNE_MANY].origin, bits == 1 ? TUNING_FILE : TUNING_DEFAULT);
    }
    backend *b = NULL;
    l->tiers_on = l->tiers_off = 0;
    assert_int_equal(backend_cl_open(&b, device, 0), DCM_OK);
    clop_set_shape(b, CLOP_SHAPE_GROUP);
    if (l->max_work_group >= 256) {
        clop_tuned_of(b)->tuning = t;
        assert_int_equal(tune_engine(b), CLOP_MANY_CLBLAST);
        l->tiers_on = 1u << CLDEV_MMA; /* as if it worked */
        assert_int_equal(tune_engine(b), CLOP_MANY_MMA);
    }
    backend_close(&b);
    cldev_close(&device);
    mem_free(&entries);
}

enum { VOCAB = 300, TOKENS = 40, PROMPT = 24 };

/* The logits after a prompt and after each of the tokens behind it, by the kernels of GPUs. */
static void logits_of(const char *device_name, const char *tiers, const dcm_model_info *shape, dcm_weights type,
                      bool kv_f32, float (*logits)[VOCAB])
{
    dcm_device *device = NULL;
    dcm_model *model = NULL;
    dcm_session *session = NULL;
    const dcm_cache_params cache = {.group = 4, .sinks = 2, .merge = "newer", .kv = kv_f32 ? DCM_KV_F32 : DCM_KV_F16};
    int32_t tokens[TOKENS];
    for (int i = 0; i < TOKENS; i++)
        tokens[i] = i * i * 7 % VOCAB;
    assert_int_equal(dcm_device_open(&device, &(dcm_device_params){.name = device_name, .tiers = tiers}), DCM_OK);
    clop_set_shape(device->ops, CLOP_SHAPE_GROUP);
    assert_int_equal(dcm_model_synthetic(&model, device, shape, type), DCM_OK);
    assert_int_equal(dcm_session_open(&session, model, &cache), DCM_OK);
    assert_int_equal(dcm_session_feed(session, tokens, PROMPT, logits[0]), DCM_OK);
    for (int i = PROMPT; i < TOKENS; i++)
        assert_int_equal(dcm_session_feed(session, tokens + i, 1, logits[i - PROMPT + 1]), DCM_OK);
    dcm_session_close(&session);
    dcm_model_close(&model);
    dcm_device_close(&device);
}

/*
 * Halves as a type and shuffles are other ways to the same numbers; for head sizes whose sums over work-items are
 * shuffled (32, 64, 128) and not (40).
 */
static void same_bits(void **state)
{
    (void)state;
    static const struct {
        uint32_t head_dim, heads, kv_heads;
        dcm_weights type;
        bool kv_f32;
    } shapes[] = {{64, 6, 2, DCM_WEIGHTS_Q4_1, false},
                  {128, 4, 4, DCM_WEIGHTS_F16, true},
                  {32, 4, 1, DCM_WEIGHTS_Q8_0, true},
                  {40, 8, 4, DCM_WEIGHTS_F16, false}};
    static float with[TOKENS - PROMPT + 1][VOCAB], without[TOKENS - PROMPT + 1][VOCAB];
    size_t count, tried = 0;
    cldev_entry *entries = all_devices(&count);
    for (size_t i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "%u.%u", entries[i].platform, entries[i].index);
        cldev *device = open_with_cache(&entries[i]);
        const bool some = cldev_has(device, CLDEV_FP16) || cldev_has(device, CLDEV_SUBGROUPS);
        cldev_close(&device);
        for (size_t s = 0; some && s < sizeof shapes / sizeof *shapes; s++) {
            const dcm_model_info shape = {.layers = 2,
                                          .hidden = shapes[s].head_dim * shapes[s].heads,
                                          .heads = shapes[s].heads,
                                          .kv_heads = shapes[s].kv_heads,
                                          .ffn = 320,
                                          .vocab = VOCAB};
            tried++;
            logits_of(name, NULL, &shape, shapes[s].type, shapes[s].kv_f32, with);
            logits_of(name, "fp16=off,subgroups=off", &shape, shapes[s].type, shapes[s].kv_f32, without);
            assert_memory_equal(with, without, sizeof with);
        }
    }
    mem_free(&entries);
    if (!tried)
        skip_case();
}

/* As a program of the library sees them. */
static void public_interface(void **state)
{
    (void)state;
    dcm_device *device = NULL;
    dcm_device_tier tier[DCM_DEVICE_TIERS];
    size_t count;
    dcm_device_params ref = {.name = "ref", .threads = 1, .tiers = "dot4=on"};
    assert_int_equal(dcm_device_open(&device, &ref), DCM_OK);
    assert_int_equal(dcm_device_tiers(device, tier), 0);
    dcm_device_close(&device);
    ref.strict = true;
    assert_int_equal(dcm_device_open(&device, &ref), DCM_ERR_USAGE);
    ref.strict = false;
    ref.tiers = "fast=on";
    assert_int_equal(dcm_device_open(&device, &ref), DCM_ERR_USAGE);
    assert_null(device);
    cldev_entry *entries = all_devices(&count);
    for (size_t i = 0; i < count; i++) {
        char number[32], setting[64];
        dcm_device_params params = {.name = number};
        snprintf(number, sizeof number, "%u.%u", entries[i].platform, entries[i].index);
        for (int t = 0; t < CLDEV_TIERS; t++) {
            params.tiers = NULL;
            assert_int_equal(dcm_device_open(&device, &params), DCM_OK);
            assert_int_equal(dcm_device_tiers(device, tier), CLDEV_TIERS);
            const bool works = tier[t].works, used = tier[t].used;
            assert_true(used == !*tier[t].why && (works || !used));
            dcm_device_close(&device);
            params.tiers = setting;
            snprintf(setting, sizeof setting, "%s=off", tier[t].name);
            assert_int_equal(dcm_device_open(&device, &params), DCM_OK);
            dcm_device_tiers(device, tier);
            assert_true(tier[t].works == works && !tier[t].used);
            assert_true(!works || !strcmp(tier[t].why, "forced off"));
            dcm_device_close(&device);
            snprintf(setting, sizeof setting, "%s=on", tier[t].name);
            assert_int_equal(dcm_device_open(&device, &params), works ? DCM_OK : DCM_ERR_DEVICE);
            dcm_device_close(&device);
        }
    }
    mem_free(&entries);
}

static const apart_case cases[] = {
    {"parse", parse},
    {"force", force},
    {"wrong_numbers", wrong_numbers},
    {"keys", keys},
    {"fixed_point", fixed_point},
    {"tuning_follows", tuning_follows},
    {"same_bits", same_bits},
    {"public_interface", public_interface},
};

int main(int argc, char **argv) { return apart_main(cases, sizeof cases / sizeof *cases, argc, argv); }
