#include "io/safetensors_write.h"

#include "base/error.h"
#include "base/file.h"
#include "base/half.h"
#include "base/memory.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTH_BYTES = 8, ALIGN = 8 /* of the data: the header is padded with spaces */ };

size_t st_item_bytes(st_type type) { return type == ST_F32 ? 4 : 2; }

static uint16_t float_to_bf16(float f)
{
    const uint32_t bits = float_to_bits(f);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void st_from_float(st_type type, const float *src, size_t n, void *out)
{
    uint16_t *half = out;
    if (type == ST_F32)
        memcpy(out, src, n * sizeof *src);
    else
        for (size_t i = 0; i < n; i++)
            half[i] = type == ST_F16 ? float_to_half(src[i]) : float_to_bf16(src[i]);
}

/* DCM_ERR_MEMORY where their product does not fit. */
static dcm_status array_bytes(const st_array *a, size_t *bytes)
{
    *bytes = st_item_bytes(a->type);
    for (uint32_t i = 0; i < a->n_dims; i++)
        if (!size_mul(*bytes, a->dims[i], bytes))
            return dcm_fail(DCM_ERR_MEMORY, "array %s: the product of its dimensions overflows", a->name);
    return DCM_OK;
}

/* Put `value`, which is taken over, under a name that is not there yet. */
static dcm_status put(json_t *object, const char *name, json_t *value)
{
    if (value && !json_object_get(object, name) && json_object_set(object, name, value) == 0) {
        json_decref(value);
        return DCM_OK;
    }
    json_decref(value);
    return dcm_fail(DCM_ERR_FILE, "\"%s\" cannot be written: there twice, not UTF-8, or no memory for it", name);
}

/* NULL where there is no memory. */
static json_t *describe(const st_array *a, size_t begin, size_t end)
{
    static const char *const names[] = {[ST_F32] = "F32", [ST_F16] = "F16", [ST_BF16] = "BF16"};
    json_t *shape = json_array();
    int lacking = 0;
    for (uint32_t i = 0; i < a->n_dims; i++)
        lacking |= json_array_append_new(shape, json_integer((json_int_t)a->dims[i]));
    if (lacking) {
        json_decref(shape);
        return NULL;
    }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", names[a->type], "shape", shape, "data_offsets", (json_int_t)begin,
                     (json_int_t)end);
}

/* The header's object; *bytes: of all arrays. */
static dcm_status make_header(json_t *header, const st_array *arrays, size_t n_arrays, const st_note *notes,
                              size_t n_notes, size_t *bytes)
{
    json_t *metadata = n_notes ? json_object() : NULL;
    dcm_status status = n_notes ? put(header, "__metadata__", json_incref(metadata)) : DCM_OK;
    for (size_t i = 0; status == DCM_OK && i < n_notes; i++)
        status = put(metadata, notes[i].key, json_string(notes[i].value));
    *bytes = 0;
    for (size_t i = 0; status == DCM_OK && i < n_arrays; i++) {
        const size_t begin = *bytes;
        size_t size = 0;
        status = array_bytes(arrays + i, &size);
        if (status == DCM_OK && !size_add(begin, size, bytes))
            status = dcm_fail(DCM_ERR_MEMORY, "array %s: the arrays' sizes overflow", arrays[i].name);
        if (status == DCM_OK)
            status = put(header, arrays[i].name, describe(arrays + i, begin, *bytes));
    }
    json_decref(metadata);
    return status;
}

/* `text` and the arrays' data as the bytes of a file. */
static dcm_status write_bytes(const char *path, const char *text, const st_array *arrays, size_t n_arrays, size_t bytes)
{
    const size_t used = strlen(text), length = (used + ALIGN - 1) / ALIGN * ALIGN;
    const uint64_t stored = length;
    unsigned char *file = NULL;
    size_t size, at = LENGTH_BYTES + length;
    if (!size_add(bytes, at, &size))
        return dcm_fail(DCM_ERR_MEMORY, "the arrays' sizes overflow");
    dcm_status status = mem_new(&file, size, 1, "a safetensors file to write");
    if (status != DCM_OK)
        return status;
    memcpy(file, &stored, sizeof stored);
    memset(file + LENGTH_BYTES, ' ', length);
    memcpy(file + LENGTH_BYTES, text, used);
    for (size_t i = 0; i < n_arrays; i++) {
        size_t part = 0;
        array_bytes(arrays + i, &part);
        memcpy(file + at, arrays[i].data, part);
        at += part;
    }
    status = file_write_output(path, file, size);
    mem_free(&file);
    return status;
}

dcm_status safetensors_write(const char *path, const st_array *arrays, size_t n_arrays, const st_note *notes,
                             size_t n_notes)
{
    json_t *header = json_object();
    size_t bytes;
    char *text = NULL;
    dcm_status status = make_header(header, arrays, n_arrays, notes, n_notes, &bytes);
    if (status == DCM_OK && !(text = json_dumps(header, JSON_COMPACT)))
        status = dcm_fail(DCM_ERR_MEMORY, "no room for the header");
    status = status == DCM_OK ? write_bytes(path, text, arrays, n_arrays, bytes) : dcm_fail_in(status, "%s", path);
    free(text);
    json_decref(header);
    return status;
}
