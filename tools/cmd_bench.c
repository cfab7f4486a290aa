#include "bench.h"
#include "input.h"
#include "output.h"
#include "tool.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static void release(bench *b)
{
    for (size_t i = 0; i < b->count; i++) {
        free(b->cases[i].rate);
        free(b->cases[i].prefill_rate);
        free(b->cases[i].step);
        free(b->cases[i].profile);
    }
    free(b->cases);
    free(b->logits);
    policies_release(&b->policies);
    energy_close(&b->meter);
    runtime_close(&b->r);
}

/* What the model will take, into `shape` too, with what else must be known of one that is not opened. */
static size_t weight_bytes(const bench_options *o, dcm_model_info *shape)
{
    if (bench_is_shape(o->model)) {
        shape->weight_bytes = bench_shape_weight_bytes(shape, (dcm_weights)o->weights);
        shape->head_dim = shape->hidden / shape->heads;
    }
    return shape->weight_bytes;
}

/* Device and model; the bandwidth is measured between, on a device that is still empty. */
static int open_model(bench *b, const bench_options *o)
{
    char path[4096];
    dcm_model_info shape;
    const bool synthetic = bench_is_shape(o->model);
    int code = synthetic ? bench_shape_read(o->model, &shape) : input_model_path(o->model, path, sizeof path);
    if (code)
        return code;
    dcm_status status = synthetic ? DCM_OK : dcm_model_info_read(path, &shape);
    if (status != DCM_OK)
        return tool_fail_library(status);
    code = options_open_device(&o->device, &b->r.device);
    if (code)
        return code;
    bench_meter_open(b);
    b->memory_limit = options_memory_limit(&o->device, b->r.device);
    if (o->table4 && b->memory_limit && weight_bytes(o, &shape) > b->memory_limit) {
        b->r.info = shape;
        bench_refuse_all(b);
        return 0;
    }
    status = dcm_device_read_speed(b->r.device, 0, &b->read_start);
    if (status == DCM_OK)
        status = dcm_device_launch_time(b->r.device, &b->launch_us, &b->round_trip_us);
    if (status == DCM_OK)
        status = synthetic ? dcm_model_synthetic(&b->r.model, b->r.device, &shape, (dcm_weights)o->weights)
                           : dcm_model_open(&b->r.model, b->r.device, path);
    if (status != DCM_OK)
        return tool_fail_library(status);
    dcm_model_get_info(b->r.model, &b->r.info);
    b->logits = malloc(b->r.info.vocab * sizeof *b->logits);
    return b->logits ? 0 : tool_fail(DCM_ERR_MEMORY, "no room for %u logits", b->r.info.vocab);
}

static json_t *meta_of(const bench *b, const bench_options *o)
{
    const dcm_model_info *m = &b->r.info;
    json_t *meta = runtime_meta(&b->r);
    json_t *own = json_pack(
        "{s:b,s:b,s:I,s:b,s:s*,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:o,s:o}", "filled", b->fill, "strict",
        o->device.strict, "threads", (json_int_t)o->device.threads, "synthetic", bench_is_shape(o->model), "weights",
        bench_is_shape(o->model) ? (const char *[]){"f16", "q8_0", "q4_1"}[o->weights] : NULL, "layers",
        (json_int_t)m->layers, "hidden", (json_int_t)m->hidden, "heads", (json_int_t)m->heads, "kv_heads",
        (json_int_t)m->kv_heads, "ffn", (json_int_t)m->ffn, "vocab", (json_int_t)m->vocab, "weight_bytes",
        (json_int_t)m->weight_bytes, "step_weight_bytes", (json_int_t)m->step_bytes, "warmup", (json_int_t)b->warmup,
        "seed", (json_int_t)b->seed, "repetitions", (json_int_t)b->repetitions, "read_gb_s_start",
        b->read_start > 0 ? json_real(b->read_start) : json_null(), "read_gb_s_end",
        b->read_end > 0 ? json_real(b->read_end) : json_null());
    json_object_update(meta, own);
    json_decref(own);
    own = bench_meter_meta(b);
    json_object_update(meta, own);
    json_decref(own);
    return meta;
}

/* Ratios mean little across devices or models. What an earlier version did not write is not compared. */
static void warn_of_difference(const bench_options *o, const json_t *old, const json_t *now)
{
    static const char *const names[] = {"device", "model_digest", "warmup", "seed", "filled", "strict", "threads"};
    for (size_t i = 0; i < sizeof names / sizeof *names && !o->words.quiet; i++) {
        const json_t *before = json_object_get(old, names[i]);
        if (before && !json_equal(before, json_object_get(now, names[i])))
            fprintf(stderr, "%s: %s has another %s: the ratios compare different things\n", tool_name(), o->compare,
                    names[i]);
    }
}

/* Nothing measured because nothing fitted: 5. */
static int result_code(const bench *b)
{
    for (size_t i = 0; i < b->count; i++)
        if (b->cases[i].state != BENCH_NO_MEMORY)
            return 0;
    return DCM_ERR_MEMORY;
}

static bool has_results(const bench *b)
{
    for (size_t i = 0; i < b->count; i++)
        if (b->cases[i].state != BENCH_WAITING)
            return true;
    return false;
}

typedef struct bench_files {
    output_file steps, plot;
} bench_files;

/* Those asked for: before anything is measured, so that it is not in vain. */
static int open_files(bench_files *files, const bench_options *o)
{
    int code = output_check_apart((output_name[]){{"--steps-out", o->steps}, {"--plot", o->plot}}, 2);
    if (code == 0 && o->steps)
        code = output_open(&files->steps, o->steps);
    if (code == 0 && o->plot)
        code = output_open(&files->plot, o->plot);
    return code;
}

static int run(bench *b, const bench_options *o, bench_files *files, const json_t *old)
{
    int code = open_files(files, o);
    if (code == 0 && b->r.model)
        code = bench_run(b);
    if (code && code < 128 && !has_results(b))
        return code;
    bench_judge(b);
    json_t *meta = meta_of(b, o);
    if (old)
        warn_of_difference(o, old, meta);
    if (o->breakdown && o->format == FORMAT_JSON)
        json_object_set_new(meta, "breakdown", bench_breakdown(b));
    if (o->table4)
        bench_print_table4(b, (table_format)o->format, meta);
    else
        bench_print(b, (table_format)o->format, meta, old ? json_object_get(old, "rows") : NULL);
    if (o->breakdown && o->format != FORMAT_JSON)
        bench_print_breakdown(b, (table_format)o->format);
    if (files->steps.out)
        bench_write_steps(b, files->steps.out);
    if (files->plot.out)
        bench_plot(b, files->plot.out);
    const int steps = output_close(&files->steps, true), plot = output_close(&files->plot, true);
    return code ? code : steps ? steps : plot ? plot : result_code(b);
}

int cmd_bench(int argc, char **argv)
{
    bench_options o = {.caches = "dcm",
                       .merge = "auto",
                       .prompts = {{512}, 1},
                       .tokens = {{128}, 1},
                       .depths = {{0}, 1},
                       .groups = {{256}, 1},
                       .sinks = DCM_DEFAULT_SINKS,
                       .repetitions = 3,
                       .warmup = 512,
                       .seed = 1};
    args a = {.usage = "-m FILE|NAME|shape:NAME [options]",
              .about = "Measure: ppN reads a prompt of N tokens, tgN decodes N tokens one by one, each \"@ dD\" with D "
                       "tokens in the cache\nalready. Times are of the model alone: no tokenizer, no sampling; the "
                       "tokens fed are pseudo-random. p50, p90, p99\nand max are times of one decoded token, for ppN "
                       "of the whole prompt. step_bytes is what one token must read (weights,\nand units times bytes a "
                       "unit), gb_s that over p50, share that over the read bandwidth measured in the same run."};
    bench b = {0};
    bench_files files = {0};
    json_t *old = NULL;
    bench_add_options(&a, &o);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    code = bench_take_options(&a, &o, &b);
    if (code == 0 && o.compare)
        code = bench_read_old(o.compare, &old);
    if (code == 0)
        code = open_model(&b, &o);
    tool_catch(true); /* until the files are whole or gone */
    if (code == 0)
        code = run(&b, &o, &files, old);
    output_close(&files.steps, false);
    output_close(&files.plot, false);
    code = code ? code : tool_stopped();
    tool_catch(false);
    json_decref(old);
    release(&b);
    return code;
}
