#include "merge/pair_file.h"

#include "base/error.h"
#include "base/memory.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { NAME_SIZE = 64 };

/* "layers.{i}.lin{1,2,3}", "lin1" or "merge". */
static void name_of(pair_shape s, uint32_t i, char *out)
{
    if (i + 1 < pair_linears(s))
        snprintf(out, NAME_SIZE, "layers.%u.lin%u", i / MERGE_LINEARS, i % MERGE_LINEARS + 1);
    else
        snprintf(out, NAME_SIZE, "%s", s.direct ? "merge" : "lin1");
}

bool pair_is_ours(const safetensors *file)
{
    const char *arch = safetensors_metadata(file, "arch");
    return score_is_ours(file) && arch && (strcmp(arch, "gate") == 0 || strcmp(arch, "direct") == 0);
}

/* ---- Loading ---- */

static dcm_status check_linear(const safetensors *file, pair_shape shape, uint32_t i)
{
    const pair_linear l = pair_linear_of(shape, i);
    char name[NAME_SIZE], key[NAME_SIZE + 16];
    name_of(shape, i, name);
    snprintf(key, sizeof key, "%s.weight", name);
    const st_tensor *w = safetensors_find(file, key);
    if (!w)
        return dcm_fail(DCM_ERR_FILE, "no tensor %s", key);
    if (w->n_dims != 2 || w->dims[0] != l.out || w->dims[1] != l.in)
        return dcm_fail(DCM_ERR_FILE, "%s is (%llu, %llu), but a head size of %u needs (%u, %u)", key,
                        (unsigned long long)w->dims[0], (unsigned long long)(w->n_dims > 1 ? w->dims[1] : 1),
                        shape.head_dim, l.out, l.in);
    snprintf(key, sizeof key, "%s.bias", name);
    const st_tensor *bias = safetensors_find(file, key);
    if (!bias || bias->n_dims != 1 || bias->dims[0] != l.out)
        return dcm_fail(DCM_ERR_FILE, "%s is missing or does not have %u items", key, l.out);
    return DCM_OK;
}

/* A name that the model of so many blocks has. Numbers must stand as they are printed: "00", or one that wraps around,
 * would be taken for another layer's. */
static bool known_name(const char *name, uint32_t blocks)
{
    unsigned layer, lin;
    int end = 0;
    char again[NAME_SIZE];
    if (!strcmp(name, "lin1.weight") || !strcmp(name, "lin1.bias") || !strcmp(name, "merge.weight") ||
        !strcmp(name, "merge.bias"))
        return true;
    if (sscanf(name, "layers.%u.layer_norm.%n", &layer, &end) == 1 && end) {
        snprintf(again, sizeof again, "layers.%u.layer_norm.", layer);
        return layer < blocks && !strncmp(name, again, strlen(again));
    }
    if (sscanf(name, "layers.%u.lin%u.%n", &layer, &lin, &end) != 2 || !end)
        return false;
    snprintf(again, sizeof again, "layers.%u.lin%u.", layer, lin);
    return layer < blocks && lin >= 1 && lin <= MERGE_LINEARS && !strncmp(name, again, strlen(again)) &&
           (!strcmp(name + end, "weight") || !strcmp(name + end, "bias"));
}

/* Refuse what the names of a merge file do not explain: a silent drop would be a wrong answer. */
static dcm_status check_names(const safetensors *file, uint32_t blocks)
{
    for (size_t i = 0; i < safetensors_count(file); i++)
        if (!known_name(safetensors_at(file, i)->name, blocks))
            return dcm_fail(DCM_ERR_FILE, "tensor %s is not part of a merge model", safetensors_at(file, i)->name);
    return DCM_OK;
}

uint32_t pair_file_blocks(const safetensors *file)
{
    char key[NAME_SIZE];
    for (uint32_t b = 0; b < MERGE_MAX_BLOCKS; b++) {
        snprintf(key, sizeof key, "layers.%u.lin1.weight", b);
        if (!safetensors_find(file, key))
            return b;
    }
    return MERGE_MAX_BLOCKS;
}

static dcm_status read_shape(const safetensors *file, const merge_facts *facts, pair_shape *shape)
{
    const bool gate = safetensors_find(file, "lin1.weight") != NULL;
    const bool direct = safetensors_find(file, "merge.weight") != NULL;
    *shape = (pair_shape){facts->head_dim, pair_file_blocks(file), direct};
    if (!shape->blocks)
        return dcm_fail(DCM_ERR_FILE, "no tensor layers.0.lin1.weight: not a merge model");
    if (gate == direct)
        return dcm_fail(DCM_ERR_FILE, "a merge model has one head, lin1 (gate) or merge (direct); this has %s",
                        gate ? "both" : "none");
    dcm_status status = check_names(file, shape->blocks);
    for (uint32_t i = 0; status == DCM_OK && i < pair_linears(*shape); i++)
        status = check_linear(file, *shape, i);
    return status;
}

static dcm_status load_array(const safetensors *file, const char *name, const char *part, float *to)
{
    char key[NAME_SIZE + 16];
    snprintf(key, sizeof key, "%s.%s", name, part);
    const st_tensor *t = safetensors_find(file, key);
    const dcm_status status = safetensors_to_float(file, t, to);
    for (size_t i = 0; status == DCM_OK && i < t->items; i++)
        if (!isfinite(to[i]))
            return dcm_fail(DCM_ERR_FILE, "%s: item %zu is not finite", key, i);
    return status;
}

dcm_status pair_file_load(const safetensors *file, const merge_facts *facts, pair_shape *shape, float **params)
{
    char name[NAME_SIZE];
    dcm_status status;
    *params = NULL;
    const bool names_model = safetensors_metadata(file, "model_digest") != NULL; /* published files do not */
    if (names_model)
        DCM_TRY(status, fail, merge_check_version(file));
    DCM_TRY(status, fail, read_shape(file, facts, shape));
    if (names_model)
        DCM_TRY(status, fail, merge_check_digest(file, facts));
    DCM_TRY(status, fail, mem_new(params, pair_count(*shape), sizeof **params, "merge weights"));
    for (uint32_t i = 0; i < pair_linears(*shape); i++) {
        const pair_linear l = pair_linear_of(*shape, i);
        name_of(*shape, i, name);
        DCM_TRY(status, fail, load_array(file, name, "weight", *params + l.at));
        DCM_TRY(status, fail, load_array(file, name, "bias", *params + l.at + (size_t)l.out * l.in));
    }
    return DCM_OK;
fail:
    mem_free(params);
    return status;
}

/* ---- Saving ---- */

typedef struct array_name {
    char text[NAME_SIZE + 16];
} array_name;

/* Weight and bias of each linear map: names, shapes, and items out of `data`. */
static void describe(pair_shape shape, st_type type, const char *data, array_name *names, st_array *arrays)
{
    const size_t item = st_item_bytes(type);
    for (uint32_t i = 0; i < pair_linears(shape); i++) {
        const pair_linear l = pair_linear_of(shape, i);
        char name[NAME_SIZE];
        name_of(shape, i, name);
        snprintf(names[2 * i].text, sizeof names->text, "%s.weight", name);
        snprintf(names[2 * i + 1].text, sizeof names->text, "%s.bias", name);
        arrays[2 * i] = (st_array){names[2 * i].text, type, 2, {l.out, l.in}, data + l.at * item};
        arrays[2 * i + 1] =
            (st_array){names[2 * i + 1].text, type, 1, {l.out}, data + (l.at + (size_t)l.out * l.in) * item};
    }
}

static dcm_status convert(const char *path, const float *params, size_t count, st_type type, void **data)
{
    const float largest = type == ST_F16 ? 65519.0f : type == ST_BF16 ? 0x1.fefffep127f : INFINITY; /* rounded down */
    for (size_t i = 0; i < count; i++)
        if (!isfinite(params[i]) || !(fabsf(params[i]) <= largest))
            return dcm_fail(DCM_ERR_FILE, "%s: not written: parameter %zu is %g", path, i, (double)params[i]);
    const dcm_status status = mem_new(data, count, st_item_bytes(type), "merge weights");
    if (status == DCM_OK)
        st_from_float(type, params, count, *data);
    return status;
}

dcm_status pair_file_save(const char *path, const merge_facts *facts, pair_shape shape, const float *params,
                          const st_note *notes, size_t n_notes, st_type type)
{
    const size_t n_arrays = 2 * (size_t)pair_linears(shape), n_own = 4;
    const digest_text digest = merge_model_digest(facts);
    array_name *names = NULL;
    st_array *arrays = NULL;
    st_note *all = NULL;
    void *data = NULL;
    dcm_status status;
    DCM_TRY(status, done, convert(path, params, pair_count(shape), type, &data));
    DCM_TRY(status, done, mem_new(&names, n_arrays, sizeof *names, "names"));
    DCM_TRY(status, done, mem_new(&arrays, n_arrays, sizeof *arrays, "arrays"));
    DCM_TRY(status, done, mem_new(&all, n_own + n_notes, sizeof *all, "notes"));
    describe(shape, type, data, names, arrays);
    const st_note own[] = {{"format", "dcm-merge"},
                           {"arch", pair_name(shape)},
                           {"version", MERGE_FILE_VERSION},
                           {"model_digest", digest.text}};
    memcpy(all, own, sizeof own);
    for (size_t i = 0; i < n_notes; i++)
        all[n_own + i] = notes[i];
    status = safetensors_write(path, arrays, n_arrays, all, n_own + n_notes);
done:
    mem_free(&names);
    mem_free(&arrays);
    mem_free(&all);
    mem_free(&data);
    return status;
}
