#include "model/model.h"

#include "base/error.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Loading: which tensors have been asked for, so that none is left over unexplained. */
typedef struct loader {
    const gguf *file;
    backend *ops;
    bool *used;
} loader;

static dcm_status shape_error(const loader *l, const gguf_tensor *t, uint64_t rows, uint64_t cols)
{
    return dcm_fail(DCM_ERR_FILE,
                    "%s: offset %zu: tensor \"%.*s\" is %" PRIu64 " x %" PRIu64
                    ", the model's metadata ask for %" PRIu64 " x %" PRIu64,
                    gguf_path(l->file), gguf_tensor_offset(l->file, t), (int)t->name.size, t->name.data, t->dims[1],
                    t->dims[0], rows, cols);
}

/* The tensor `blk.LAYER.NAME` (or NAME where layer is negative) of (rows, cols); rows 1 for vectors. NULL when absent.
 */
static dcm_status find(loader *l, int layer, const char *name, uint64_t rows, uint64_t cols, bool required,
                       const gguf_tensor **out)
{
    char full[96];
    if (layer < 0)
        snprintf(full, sizeof full, "%s", name);
    else
        snprintf(full, sizeof full, "blk.%d.%s", layer, name);
    const gguf_tensor *t = gguf_find_tensor(l->file, full);
    *out = t;
    if (!t)
        return required ? dcm_fail(DCM_ERR_FILE, "%s: no tensor %s", gguf_path(l->file), full) : DCM_OK;
    if (t->dims[0] != cols || t->dims[1] != rows || t->dims[2] != 1 || t->dims[3] != 1)
        return shape_error(l, t, rows, cols);
    l->used[t - gguf_tensor_at(l->file, 0)] = true;
    return DCM_OK;
}

/* A vector on the device as f32, or NULL when it is absent and not required. */
static dcm_status load_vector(loader *l, int layer, const char *name, uint32_t size, bool required, buffer **out)
{
    const gguf_tensor *t;
    float *values = NULL;
    dcm_status status = find(l, layer, name, 1, size, required, &t);
    if (status != DCM_OK || !t)
        return status;
    DCM_TRY(status, done, mem_new(&values, size, sizeof *values, name));
    quant_to_float(t->type, t->data, values, size);
    DCM_TRY(status, done, l->ops->ops->buffer_new(l->ops, size * sizeof *values, MEM_WEIGHTS, out));
    status = l->ops->ops->write(*out, 0, values, size * sizeof *values);
done:
    mem_free(&values);
    return status;
}

static dcm_status load_matrix(loader *l, const char *name, uint32_t rows, uint32_t cols, bool required, matrix **out)
{
    const gguf_tensor *t;
    dcm_status status = find(l, -1, name, rows, cols, required, &t);
    if (status == DCM_OK && t)
        status = l->ops->ops->matrix_new(l->ops, t->type, rows, cols, t->data, out);
    return status;
}

/* qwen2 always has biases on q, k and v; llama files may have some. */
static bool needs_bias(const model_config *c) { return !strcmp(c->arch, "qwen2"); }

/* One tensor of a linear map. */
typedef struct source {
    const char *name;
    uint32_t rows;
} source;

/* Neighbouring tensors of one type as one matrix: one product instead of several. */
static dcm_status load_stack(loader *l, const gguf_tensor *const *tensors, uint32_t count, uint32_t cols, matrix **out)
{
    if (count == 1)
        return l->ops->ops->matrix_new(l->ops, tensors[0]->type, (uint32_t)tensors[0]->dims[1], cols, tensors[0]->data,
                                       out);
    unsigned char *stacked = NULL;
    size_t bytes = 0, at = 0;
    uint32_t rows = 0;
    for (uint32_t i = 0; i < count; i++) {
        bytes += tensors[i]->bytes;
        rows += (uint32_t)tensors[i]->dims[1];
    }
    dcm_status status = mem_new(&stacked, bytes, 1, "stacked weights");
    for (uint32_t i = 0; status == DCM_OK && i < count; i++) {
        memcpy(stacked + at, tensors[i]->data, tensors[i]->bytes);
        at += tensors[i]->bytes;
    }
    if (status == DCM_OK)
        status = l->ops->ops->matrix_new(l->ops, tensors[0]->type, rows, cols, stacked, out);
    mem_free(&stacked);
    return status;
}

/* Biases `NAME.bias` of a map's tensors as one vector per part; either all of a part's tensors have one or none has. */
static dcm_status load_part_bias(loader *l, int layer, const source *sources, uint32_t count, bool required,
                                 buffer **out)
{
    float *values = NULL;
    uint32_t rows = 0, at = 0, found = 0;
    dcm_status status = DCM_OK;
    for (uint32_t i = 0; i < count; i++)
        rows += sources[i].rows;
    DCM_TRY(status, done, mem_new(&values, rows, sizeof *values, "biases"));
    for (uint32_t i = 0; i < count; i++) {
        char name[64];
        const gguf_tensor *t;
        snprintf(name, sizeof name, "%s.bias", sources[i].name);
        DCM_TRY(status, done, find(l, layer, name, 1, sources[i].rows, required, &t));
        if (t)
            quant_to_float(t->type, t->data, values + at, sources[i].rows);
        found += t != NULL;
        at += sources[i].rows;
    }
    if (!found)
        goto done;
    if (found != count) {
        status = dcm_fail(DCM_ERR_FILE, "%s: block %d: %u of %u biases beside %s.weight are missing",
                          gguf_path(l->file), layer, count - found, count, sources[0].name);
        goto done;
    }
    DCM_TRY(status, done, l->ops->ops->buffer_new(l->ops, rows * sizeof *values, MEM_WEIGHTS, out));
    status = l->ops->ops->write(*out, 0, values, rows * sizeof *values);
done:
    mem_free(&values);
    return status;
}

static dcm_status load_map(loader *l, int layer, const source *sources, uint32_t count, uint32_t cols, bool biased,
                           linear_map *map)
{
    const gguf_tensor *tensors[MODEL_MAX_PARTS];
    dcm_status status = DCM_OK;
    for (uint32_t i = 0; status == DCM_OK && i < count; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s.weight", sources[i].name);
        status = find(l, layer, name, sources[i].rows, cols, true, &tensors[i]);
    }
    for (uint32_t i = 0, next; status == DCM_OK && i < count; i = next) {
        linear_part *part = &map->part[map->parts++];
        part->y_offset = map->rows;
        for (next = i; next < count && tensors[next]->type == tensors[i]->type; next++)
            map->rows += sources[next].rows;
        status = load_stack(l, tensors + i, next - i, cols, &part->w);
        if (status == DCM_OK)
            status = load_part_bias(l, layer, sources + i, next - i, biased, &part->bias);
    }
    return status;
}

static dcm_status load_layer(loader *l, const model_config *c, int i, model_layer *layer)
{
    const dcm_model_info *m = &c->info;
    const bool biased = needs_bias(c);
    const uint32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    const source qkv[] = {{"attn_q", q}, {"attn_k", kv}, {"attn_v", kv}};
    const source out[] = {{"attn_output", m->hidden}}, down[] = {{"ffn_down", m->hidden}};
    const source gate_up[] = {{"ffn_gate", m->ffn}, {"ffn_up", m->ffn}};
    dcm_status status;
    DCM_TRY(status, fail, load_vector(l, i, "attn_norm.weight", m->hidden, true, &layer->attn_norm));
    DCM_TRY(status, fail, load_vector(l, i, "ffn_norm.weight", m->hidden, true, &layer->ffn_norm));
    DCM_TRY(status, fail, load_map(l, i, qkv, 3, m->hidden, biased, &layer->qkv));
    DCM_TRY(status, fail, load_map(l, i, out, 1, q, false, &layer->attn_out));
    DCM_TRY(status, fail, load_map(l, i, gate_up, 2, m->hidden, false, &layer->gate_up));
    DCM_TRY(status, fail, load_map(l, i, down, 1, m->ffn, false, &layer->down));
    return DCM_OK;
fail:
    return status;
}

/* A tensor that nothing asks for would be ignored, and the answers be wrong: refuse the file. */
static dcm_status check_all_used(const loader *l)
{
    for (size_t i = 0; i < gguf_tensor_count(l->file); i++) {
        const gguf_tensor *t = gguf_tensor_at(l->file, i);
        const bool known = l->used[i] || (t->name.size == 17 && !memcmp(t->name.data, "rope_freqs.weight", 17));
        if (!known)
            return dcm_fail(DCM_ERR_FILE, "%s: offset %zu: tensor \"%.*s\" is not part of a model dcm knows",
                            gguf_path(l->file), gguf_tensor_offset(l->file, t),
                            (int)(t->name.size < 64 ? t->name.size : 64), t->name.data);
    }
    return DCM_OK;
}

/* Every tensor's presence and shape, before anything is uploaded. */
static dcm_status check_tensors(loader *l, const model_config *c)
{
    const dcm_model_info *m = &c->info;
    const uint64_t q = (uint64_t)m->heads * m->head_dim, kv = (uint64_t)m->kv_heads * m->head_dim;
    const bool biased = needs_bias(c);
    const struct {
        const char *name;
        uint64_t rows, cols;
        bool required;
    } of_layer[] = {
        {"attn_norm.weight", 1, m->hidden, true},
        {"attn_q.weight", q, m->hidden, true},
        {"attn_k.weight", kv, m->hidden, true},
        {"attn_v.weight", kv, m->hidden, true},
        {"attn_q.bias", 1, q, biased},
        {"attn_k.bias", 1, kv, biased},
        {"attn_v.bias", 1, kv, biased},
        {"attn_output.weight", m->hidden, q, true},
        {"attn_output.bias", 1, m->hidden, false},
        {"ffn_norm.weight", 1, m->hidden, true},
        {"ffn_gate.weight", m->ffn, m->hidden, true},
        {"ffn_up.weight", m->ffn, m->hidden, true},
        {"ffn_gate.bias", 1, m->ffn, false},
        {"ffn_up.bias", 1, m->ffn, false},
        {"ffn_down.weight", m->hidden, m->ffn, true},
        {"ffn_down.bias", 1, m->hidden, false},
    };
    const gguf_tensor *t;
    dcm_status status;
    DCM_TRY(status, fail, find(l, -1, "token_embd.weight", m->vocab, m->hidden, true, &t));
    DCM_TRY(status, fail, find(l, -1, "output_norm.weight", 1, m->hidden, true, &t));
    DCM_TRY(status, fail, find(l, -1, "output.weight", m->vocab, m->hidden, false, &t));
    for (int i = 0; i < (int)m->layers; i++)
        for (size_t e = 0; e < sizeof of_layer / sizeof *of_layer; e++)
            DCM_TRY(status, fail,
                    find(l, i, of_layer[e].name, of_layer[e].rows, of_layer[e].cols, of_layer[e].required, &t));
    return check_all_used(l);
fail:
    return status;
}

/* A model that cannot fit is refused before anything is uploaded; the tensors' bytes are a lower bound of what it
 * takes. */
static dcm_status check_memory(const loader *l)
{
    size_t bytes = 0;
    for (size_t i = 0; i < gguf_tensor_count(l->file); i++)
        bytes += gguf_tensor_at(l->file, i)->bytes;
    const size_t left = l->ops->max_memory - l->ops->memory.total;
    if (l->ops->max_memory && bytes > left)
        return dcm_fail(DCM_ERR_MEMORY, "%s: the weights take %zu bytes, and %zu of %zu are left", gguf_path(l->file),
                        bytes, left, l->ops->max_memory);
    return DCM_OK;
}

static dcm_status load_weights(dcm_model *model, loader *l)
{
    const dcm_model_info *m = &model->config.info;
    dcm_status status;
    DCM_TRY(status, fail, mem_new(&model->layer, m->layers, sizeof *model->layer, "layers"));
    DCM_TRY(status, fail, load_matrix(l, "token_embd.weight", m->vocab, m->hidden, true, &model->embedding));
    DCM_TRY(status, fail, load_matrix(l, "output.weight", m->vocab, m->hidden, false, &model->output));
    if (!model->output)
        model->output = model->embedding;
    DCM_TRY(status, fail, load_vector(l, -1, "output_norm.weight", m->hidden, true, &model->output_norm));
    for (uint32_t i = 0; i < m->layers; i++)
        DCM_TRY(status, fail, load_layer(l, &model->config, (int)i, &model->layer[i]));
    return model->ops->ops->sync(model->ops);
fail:
    return status;
}

merge_facts model_merge_facts(const dcm_model *model)
{
    const dcm_model_info *m = &model->config.info;
    return (merge_facts){m->layers, m->kv_heads, m->head_dim, model->config.rope, m->digest};
}

void model_count_bytes(dcm_model *model, size_t before)
{
    dcm_model_info *m = &model->config.info;
    m->tied = model->output == model->embedding;
    m->weight_bytes = model->ops->memory.now[MEM_WEIGHTS] - before;
    m->step_bytes = m->weight_bytes - (m->tied ? 0 : model->embedding->bytes);
}

dcm_status dcm_model_open(dcm_model **out, dcm_device *device, const char *path)
{
    gguf *file = NULL;
    loader l = {0};
    dcm_model *model = NULL;
    dcm_status status;
    *out = NULL;
    DCM_TRY(status, done, gguf_open(&file, path));
    DCM_TRY(status, done, mem_new(&model, 1, sizeof *model, "model"));
    model->device = device;
    model->ops = device->ops;
    DCM_TRY(status, done, model_config_read(&model->config, file));
    model->config.info.arch = model->config.arch;
    model->config.info.name = model->config.name;
    l = (loader){.file = file, .ops = model->ops};
    DCM_TRY(status, done, mem_new(&l.used, gguf_tensor_count(file), sizeof *l.used, "tensor marks"));
    DCM_TRY(status, done, check_tensors(&l, &model->config));
    DCM_TRY(status, done, check_memory(&l));
    const size_t before = model->ops->memory.now[MEM_WEIGHTS];
    DCM_TRY(status, done, load_weights(model, &l));
    model_count_bytes(model, before);
done:
    mem_free(&l.used);
    gguf_close(&file);
    if (status != DCM_OK)
        dcm_model_close(&model);
    *out = model;
    return status;
}

dcm_status dcm_model_info_read(const char *path, dcm_model_info *info)
{
    gguf *file = NULL;
    model_config config;
    dcm_status status = gguf_open(&file, path);
    if (status == DCM_OK)
        status = model_config_read(&config, file);
    if (status == DCM_OK) {
        *info = config.info;
        info->arch = needs_bias(&config) ? "qwen2" : "llama";
        info->name = "";
        for (size_t i = 0; i < gguf_tensor_count(file); i++)
            info->weight_bytes += gguf_tensor_at(file, i)->bytes;
        info->tied = !gguf_find_tensor(file, "output.weight");
        info->step_bytes = info->weight_bytes - (info->tied ? 0 : gguf_find_tensor(file, "token_embd.weight")->bytes);
    }
    gguf_close(&file);
    return status;
}

static void close_map(linear_map *map)
{
    for (uint32_t i = 0; i < map->parts; i++) {
        matrix_free(&map->part[i].w);
        buffer_free(&map->part[i].bias);
    }
}

static void close_layer(model_layer *l)
{
    buffer_free(&l->attn_norm);
    buffer_free(&l->ffn_norm);
    close_map(&l->qkv);
    close_map(&l->attn_out);
    close_map(&l->gate_up);
    close_map(&l->down);
}

void dcm_model_close(dcm_model **out)
{
    if (!out || !*out)
        return;
    dcm_model *model = *out;
    for (uint32_t i = 0; model->layer && i < model->config.info.layers; i++)
        close_layer(&model->layer[i]);
    mem_free(&model->layer);
    buffer_free(&model->output_norm);
    if (model->output != model->embedding)
        matrix_free(&model->output);
    matrix_free(&model->embedding);
    mem_free(out);
}

void dcm_model_get_info(const dcm_model *model, dcm_model_info *info) { *info = model->config.info; }
