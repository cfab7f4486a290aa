#include "merge/score_file.h"

#include "base/error.h"
#include "base/memory.h"

#include <dcm/plan.h>

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { ARRAYS = 12, ARRAY_SCALE = 1, MEASURED = 2 /* the first ones are not part of the network */ };

static const char format_name[] = "dcm-merge", arch_name[] = "score";

/* One array of a row: `rows` of `cols` items; n_dims says which of them its dimensions name. */
typedef struct row_array {
    const char *name;
    size_t at;
    uint32_t n_dims, rows, cols;
    bool channels; /* items are a unit's channels */
    bool optional; /* zeros where a file has none, as from before there was such an array */
} row_array;

/* mean, scale, and the network. */
static void describe(score_shape s, row_array *arrays)
{
    const score_layout l = score_layout_of(s);
    const uint32_t x = 2 * s.head_dim, h = s.hidden, g = s.levels;
    const row_array all[ARRAYS] = {
        {"mean", l.mean, 1, 1, x, .channels = true},
        {"scale", l.scale, 1, 1, x, .channels = true},
        {"w1", l.w1, 2, h, x, .channels = true},
        {"b1", l.b1, 2, g, h},
        {"w2", l.w2, 1, 1, h},
        {"u", l.u, 2, h, x, .channels = true},
        {"r", l.r, 2, g, x, .channels = true},
        {"prior", l.prior, 1, 1, g},
        {"bias", l.bias, 1, 1, g, .optional = true},
        {"deviation", l.deviation, 0, 1, 1},
        {"sharp_k", l.sharp_k, 0, 1, 1},
        {"sharp_v", l.sharp_v, 0, 1, 1},
    };
    memcpy(arrays, all, sizeof all);
}

/* Place in memory of item i of an array's row in the file: of a unit's channels keys are permuted. */
static uint32_t place(const merge_facts *f, const row_array *a, uint32_t i)
{
    const uint32_t d = f->head_dim;
    if (!a->channels || f->rope == ROPE_HALF || i >= d)
        return i;
    return i < d / 2 ? 2 * i : 2 * (i - d / 2) + 1;
}

bool score_is_ours(const safetensors *file)
{
    const char *format = safetensors_metadata(file, "format");
    return format && strcmp(format, format_name) == 0;
}

/* ---- Loading ---- */

static dcm_status check_arch(const safetensors *file)
{
    const char *arch = safetensors_metadata(file, "arch");
    if (arch && strcmp(arch, arch_name) == 0)
        return DCM_OK;
    return dcm_fail(DCM_ERR_FILE, "a merge model of arch \"%.32s\"; this dcm knows \"%s\"", arch ? arch : "",
                    arch_name);
}

dcm_status merge_check_version(const safetensors *file)
{
    const char *version = safetensors_metadata(file, "version");
    if (version && strcmp(version, MERGE_FILE_VERSION) == 0)
        return DCM_OK;
    return dcm_fail(DCM_ERR_FILE, "version \"%.32s\" of its format; this dcm knows \"%s\": train it again",
                    version ? version : "", MERGE_FILE_VERSION);
}

digest_text merge_model_digest(const merge_facts *facts)
{
    digest_text digest;
    snprintf(digest.text, sizeof digest.text, "%016" PRIx64, facts->digest);
    return digest;
}

dcm_status merge_check_digest(const safetensors *file, const merge_facts *facts)
{
    const char *digest = safetensors_metadata(file, "model_digest");
    const digest_text wanted = merge_model_digest(facts);
    if (digest && strcmp(digest, wanted.text) == 0)
        return DCM_OK;
    return dcm_fail(DCM_ERR_FILE, "made for the model with digest %.32s; this model's is %s", digest ? digest : "?",
                    wanted.text);
}

/* Dimension i of an array whose number of dimensions is right. */
static dcm_status dimension(const safetensors *file, const char *name, uint32_t n_dims, uint32_t i, uint64_t *out)
{
    const st_tensor *t = safetensors_find(file, name);
    *out = 0;
    if (!t)
        return dcm_fail(DCM_ERR_FILE, "no array %s", name);
    if (t->n_dims != n_dims)
        return dcm_fail(DCM_ERR_FILE, "%s has %u dimensions, not %u", name, t->n_dims, n_dims);
    *out = t->dims[i];
    return DCM_OK;
}

static dcm_status read_shape(const safetensors *file, const merge_facts *facts, score_shape *shape)
{
    uint64_t layers, heads, x, hidden, levels;
    dcm_status status;
    DCM_TRY(status, fail, dimension(file, "mean", 3, 0, &layers));
    DCM_TRY(status, fail, dimension(file, "mean", 3, 1, &heads));
    DCM_TRY(status, fail, dimension(file, "mean", 3, 2, &x));
    DCM_TRY(status, fail, dimension(file, "w2", 3, 2, &hidden));
    DCM_TRY(status, fail, dimension(file, "prior", 3, 2, &levels));
    if (layers != facts->layers)
        return dcm_fail(DCM_ERR_FILE, "for %" PRIu64 " layers; the model has %u", layers, facts->layers);
    if (heads != facts->kv_heads)
        return dcm_fail(DCM_ERR_FILE, "for %" PRIu64 " KV heads; the model has %u", heads, facts->kv_heads);
    if (x != 2 * (uint64_t)facts->head_dim)
        return dcm_fail(DCM_ERR_FILE, "for a head size of %" PRIu64 "; the model's is %u", x / 2, facts->head_dim);
    if (hidden == 0 || hidden % 16 != 0 || hidden > SCORE_HIDDEN_MAX)
        return dcm_fail(DCM_ERR_FILE, "%" PRIu64 " hidden units; a multiple of 16 up to %d is wanted", hidden,
                        SCORE_HIDDEN_MAX);
    if (levels == 0 || levels > DCM_LEVELS_MAX)
        return dcm_fail(DCM_ERR_FILE, "%" PRIu64 " levels; 1 to %d are wanted", levels, DCM_LEVELS_MAX);
    *shape = (score_shape){facts->head_dim, (uint32_t)hidden, (uint32_t)levels};
fail:
    return status;
}

static dcm_status check_names(const safetensors *file, const row_array *arrays)
{
    for (size_t i = 0; i < safetensors_count(file); i++) {
        bool known = false;
        for (size_t k = 0; k < ARRAYS; k++)
            known = known || strcmp(safetensors_at(file, i)->name, arrays[k].name) == 0;
        if (!known)
            return dcm_fail(DCM_ERR_FILE, "array %.64s is not part of a scorer", safetensors_at(file, i)->name);
    }
    return DCM_OK;
}

static dcm_status check_array(const safetensors *file, const merge_facts *facts, const row_array *a)
{
    const uint64_t dims[4] = {facts->layers, facts->kv_heads, a->n_dims == 2 ? a->rows : a->cols, a->cols};
    for (uint32_t i = 0; i < 2 + a->n_dims; i++) {
        uint64_t got;
        const dcm_status status = dimension(file, a->name, 2 + a->n_dims, i, &got);
        if (status != DCM_OK)
            return status;
        if (got != dims[i])
            return dcm_fail(DCM_ERR_FILE, "dimension %u of %s is %" PRIu64 ", the other arrays ask for %" PRIu64, i,
                            a->name, got, dims[i]);
    }
    return a->n_dims == 0 ? dimension(file, a->name, 2, 0, &(uint64_t){0}) : DCM_OK;
}

static bool left_out(const safetensors *file, const row_array *a)
{
    return a->optional && !safetensors_find(file, a->name);
}

/* A value read, or one to be written in a type that holds no more than `largest`. */
static dcm_status check_value(const row_array *arrays, size_t array, float value, float largest, size_t row,
                              const merge_facts *facts)
{
    const char *why = "";
    if (isfinite(value)) {
        if (fabsf(value) > largest)
            why = ", more than the file's type can hold";
        else if (array == ARRAY_SCALE && value <= 0)
            why = ", but must be positive";
        else
            return DCM_OK;
    }
    return dcm_fail(DCM_ERR_FILE, "layer %zu, KV head %zu: %s holds %g%s", row / facts->kv_heads, row % facts->kv_heads,
                    arrays[array].name, (double)value, why);
}

/* In one pass that the compiler makes vectors of: value by value it took 2 % of the time that loading SmolLM2 takes. */
static bool all_finite(const float *values, size_t count)
{
    int32_t most = 0;
    for (size_t i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    return most < 0x7f800000;
}

static dcm_status check_values(const row_array *arrays, size_t array, const float *values, const merge_facts *facts)
{
    const size_t row = (size_t)arrays[array].rows * arrays[array].cols, count = row * facts->layers * facts->kv_heads;
    dcm_status status = DCM_OK;
    if (array != ARRAY_SCALE && all_finite(values, count))
        return DCM_OK;
    for (size_t i = 0; status == DCM_OK && i < count; i++)
        status = check_value(arrays, array, values[i], INFINITY, i / row, facts);
    return status;
}

static dcm_status load_array(const safetensors *file, const merge_facts *facts, const row_array *arrays, size_t array,
                             size_t row_size, float *params)
{
    const row_array *a = arrays + array;
    const size_t rows = (size_t)facts->layers * facts->kv_heads;
    float *values = NULL;
    dcm_status status;
    const st_tensor *t = safetensors_find(file, a->name);
    DCM_TRY(status, done, mem_new(&values, t->items, sizeof *values, "merge weights"));
    DCM_TRY(status, done, safetensors_to_float(file, t, values));
    DCM_TRY(status, done, check_values(arrays, array, values, facts));
    for (size_t i = 0; i < rows * a->rows; i++)
        for (uint32_t c = 0; c < a->cols; c++) {
            float *to = params + i / a->rows * row_size + a->at + i % a->rows * a->cols;
            to[place(facts, a, c)] = values[i * a->cols + c];
        }
done:
    mem_free(&values);
    return status;
}

dcm_status score_file_load(const safetensors *file, const merge_facts *facts, score_shape *shape, float **params)
{
    row_array arrays[ARRAYS];
    dcm_status status;
    *params = NULL;
    DCM_TRY(status, fail, check_arch(file));
    DCM_TRY(status, fail, merge_check_version(file));
    DCM_TRY(status, fail, read_shape(file, facts, shape));
    DCM_TRY(status, fail, merge_check_digest(file, facts));
    describe(*shape, arrays);
    DCM_TRY(status, fail, check_names(file, arrays));
    for (size_t i = 0; i < ARRAYS; i++)
        if (!left_out(file, &arrays[i]))
            DCM_TRY(status, fail, check_array(file, facts, &arrays[i]));
    const size_t row = score_layout_of(*shape).row;
    DCM_TRY(status, fail,
            mem_new(params, (size_t)facts->layers * facts->kv_heads * row, sizeof **params, "merge weights"));
    for (size_t i = 0; i < ARRAYS; i++)
        if (!left_out(file, &arrays[i]))
            DCM_TRY(status, fail, load_array(file, facts, arrays, i, row, *params));
    return DCM_OK;
fail:
    mem_free(params);
    return status;
}

/* ---- Saving ---- */

/* One array of all rows in the file's order and type; freed by mem_free. */
static dcm_status save_array(const merge_facts *facts, const row_array *arrays, size_t array, size_t row_size,
                             const float *params, st_type type, void **out)
{
    const row_array *a = arrays + array;
    const size_t rows = (size_t)facts->layers * facts->kv_heads, items = rows * a->rows * a->cols;
    const float largest = type == ST_F16 ? 65519.0f : type == ST_BF16 ? 0x1.fefffep127f : INFINITY; /* rounded down */
    float *values = NULL;
    dcm_status status;
    DCM_TRY(status, done, mem_new(&values, items, sizeof *values, "merge weights"));
    for (size_t i = 0; i < rows * a->rows; i++)
        for (uint32_t c = 0; c < a->cols; c++) {
            const size_t row = i / a->rows;
            const float value = params[row * row_size + a->at + i % a->rows * a->cols + place(facts, a, c)];
            DCM_TRY(status, done, check_value(arrays, array, value, largest, row, facts));
            values[i * a->cols + c] = value;
        }
    DCM_TRY(status, done, mem_new(out, items, st_item_bytes(type), "merge weights"));
    st_from_float(type, values, items, *out);
done:
    mem_free(&values);
    return status;
}

static dcm_status write_file(const char *path, const merge_facts *facts, const st_array *arrays, const st_note *notes,
                             size_t n_notes)
{
    st_note *all = NULL;
    const digest_text digest = merge_model_digest(facts);
    const st_note own[] = {
        {"format", format_name}, {"arch", arch_name}, {"version", MERGE_FILE_VERSION}, {"model_digest", digest.text}};
    const size_t n_own = sizeof own / sizeof *own;
    dcm_status status = mem_new(&all, n_own + n_notes, sizeof *all, "a file's notes");
    if (status != DCM_OK)
        return status;
    memcpy(all, own, sizeof own);
    for (size_t i = 0; i < n_notes; i++)
        all[n_own + i] = notes[i];
    status = safetensors_write(path, arrays, ARRAYS, all, n_own + n_notes);
    mem_free(&all);
    return status;
}

dcm_status score_file_save(const char *path, const merge_facts *facts, score_shape shape, const float *params,
                           const st_note *notes, size_t n_notes, st_type network)
{
    const size_t row = score_layout_of(shape).row;
    row_array of[ARRAYS];
    st_array arrays[ARRAYS] = {0};
    void *data[ARRAYS] = {0};
    dcm_status status = DCM_OK;
    describe(shape, of);
    for (size_t i = 0; i < ARRAYS; i++) {
        const st_type type = i < MEASURED ? ST_F32 : network;
        status = save_array(facts, of, i, row, params, type, &data[i]);
        if (status != DCM_OK) {
            status = dcm_fail_in(status, "%s: not written", path);
            goto done;
        }
        arrays[i] = (st_array){of[i].name, type, 2 + of[i].n_dims, {facts->layers, facts->kv_heads}, data[i]};
        arrays[i].dims[2] = of[i].n_dims == 2 ? of[i].rows : of[i].cols;
        arrays[i].dims[3] = of[i].cols;
    }
    status = write_file(path, facts, arrays, notes, n_notes);
done:
    for (size_t i = 0; i < ARRAYS; i++)
        mem_free(&data[i]);
    return status;
}
