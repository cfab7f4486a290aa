#include "io/gguf_file.h"

#include "base/error.h"

#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

dcm_status gguf_fail_at(const gguf *file, size_t at, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return dcm_fail(DCM_ERR_FILE, "%s: offset %zu: %s", file->path, at, text);
}

int gguf_compare_strings(const char *a, size_t a_size, const char *b, size_t b_size)
{
    const int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order ? order : (a_size > b_size) - (a_size < b_size);
}

const char *gguf_show(char *out, const char *data, size_t size)
{
    const size_t room = GGUF_SHOWN_BYTES - sizeof "...", shown = size < room ? size : room;
    for (size_t i = 0; i < shown; i++)
        out[i] = data[i] >= ' ' && data[i] <= '~' ? data[i] : '?';
    strcpy(out + shown, shown < size ? "..." : "");
    return out;
}

static const struct {
    const char *name;
    size_t bytes;
} types[GGUF_TYPES] = {
    [GGUF_U8] = {"uint8", 1},      [GGUF_I8] = {"int8", 1},     [GGUF_U16] = {"uint16", 2},  [GGUF_I16] = {"int16", 2},
    [GGUF_U32] = {"uint32", 4},    [GGUF_I32] = {"int32", 4},   [GGUF_F32] = {"float32", 4}, [GGUF_BOOL] = {"bool", 1},
    [GGUF_STRING] = {"string", 0}, [GGUF_ARRAY] = {"array", 0}, [GGUF_U64] = {"uint64", 8},  [GGUF_I64] = {"int64", 8},
    [GGUF_F64] = {"float64", 8},
};

const char *gguf_type_name(unsigned type) { return types[type].name; }

size_t gguf_type_bytes(unsigned type) { return types[type].bytes; }

const char *gguf_path(const gguf *file) { return file->path; }

uint32_t gguf_version(const gguf *file) { return file->version; }

size_t gguf_header_bytes(const gguf *file) { return file->header_bytes; }

const gguf_entry *gguf_find_entry(const gguf *file, const char *key)
{
    const size_t size = strlen(key);
    size_t low = 0, high = file->entry_count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const gguf_entry *e = &file->entries[middle];
        const int order = gguf_compare_strings(e->key, e->key_size, key, size);
        if (order == 0)
            return e;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

bool gguf_has(const gguf *file, const char *key) { return gguf_find_entry(file, key) != NULL; }

static dcm_status find(const gguf *file, const char *key, const gguf_entry **entry)
{
    *entry = gguf_find_entry(file, key);
    return *entry ? DCM_OK : dcm_fail(DCM_ERR_FILE, "%s: key \"%s\" is missing", file->path, key);
}

static dcm_status wrong_type(const gguf *file, const gguf_entry *e, const char *key, const char *wanted)
{
    const char *array = e->type == GGUF_ARRAY ? "an array of " : "";
    return gguf_fail_at(file, (size_t)(e->value - file->data), "key \"%s\": %s%s was found where %s is needed", key,
                        array, gguf_type_name(e->item), wanted);
}

/* The key's entry when it is an array (or a scalar) of `item`. */
static dcm_status find_as(const gguf *file, const char *key, gguf_type type, gguf_type item, const char *wanted,
                          const gguf_entry **entry)
{
    const dcm_status status = find(file, key, entry);
    if (status == DCM_OK && ((*entry)->type != type || (*entry)->item != item))
        return wrong_type(file, *entry, key, wanted);
    return status;
}

/* A scalar integer's absolute value and sign. */
static bool load_integer(const gguf_entry *e, uint64_t *magnitude, bool *negative)
{
    uint64_t bits = 0;
    const unsigned width = 8 * (unsigned)gguf_type_bytes(e->item);
    switch (e->type) {
    case GGUF_U8:
    case GGUF_U16:
    case GGUF_U32:
    case GGUF_U64:
    case GGUF_I8:
    case GGUF_I16:
    case GGUF_I32:
    case GGUF_I64: break;
    default: return false;
    }
    memcpy(&bits, e->value, width / 8);
    const bool is_signed = e->type == GGUF_I8 || e->type == GGUF_I16 || e->type == GGUF_I32 || e->type == GGUF_I64;
    *negative = is_signed && bits >> (width - 1);
    if (*negative)
        bits = -(width < 64 ? bits | ~(uint64_t)0 << width : bits);
    *magnitude = bits;
    return true;
}

dcm_status gguf_get_u32(const gguf *file, const char *key, uint32_t *out)
{
    const gguf_entry *e;
    uint64_t magnitude;
    bool negative;
    const dcm_status status = find(file, key, &e);
    if (status != DCM_OK)
        return status;
    if (!load_integer(e, &magnitude, &negative))
        return wrong_type(file, e, key, "an integer");
    if (negative || magnitude > UINT32_MAX)
        return gguf_fail_at(file, (size_t)(e->value - file->data), "key \"%s\": %s%llu is outside 0 .. %u", key,
                            negative ? "-" : "", (unsigned long long)magnitude, UINT32_MAX);
    *out = (uint32_t)magnitude;
    return DCM_OK;
}

dcm_status gguf_get_f32(const gguf *file, const char *key, float *out)
{
    const gguf_entry *e;
    double value;
    const dcm_status status = find(file, key, &e);
    if (status != DCM_OK)
        return status;
    if (e->type == GGUF_F32) {
        memcpy(out, e->value, sizeof *out);
        return DCM_OK;
    }
    if (e->type != GGUF_F64)
        return wrong_type(file, e, key, "a float32");
    memcpy(&value, e->value, sizeof value);
    if (isfinite(value) && fabs(value) > (double)FLT_MAX)
        return gguf_fail_at(file, (size_t)(e->value - file->data), "key \"%s\": %g is outside the range of float32",
                            key, value);
    *out = (float)value;
    return DCM_OK;
}

dcm_status gguf_get_bool(const gguf *file, const char *key, bool *out)
{
    const gguf_entry *e;
    const dcm_status status = find_as(file, key, GGUF_BOOL, GGUF_BOOL, "a bool", &e);
    if (status == DCM_OK)
        *out = *e->value != 0;
    return status;
}

/* The string at *at, which moves behind it. */
static gguf_string next_string(const unsigned char **at)
{
    uint64_t size;
    memcpy(&size, *at, sizeof size);
    const gguf_string string = {(const char *)*at + sizeof size, (size_t)size};
    *at += sizeof size + string.size;
    return string;
}

dcm_status gguf_get_string(const gguf *file, const char *key, gguf_string *out)
{
    const gguf_entry *e;
    const dcm_status status = find_as(file, key, GGUF_STRING, GGUF_STRING, "a string", &e);
    if (status == DCM_OK) {
        const unsigned char *at = e->value;
        *out = next_string(&at);
    }
    return status;
}

dcm_status gguf_get_array_size(const gguf *file, const char *key, size_t *count)
{
    const gguf_entry *e;
    const dcm_status status = find(file, key, &e);
    if (status != DCM_OK)
        return status;
    if (e->type != GGUF_ARRAY)
        return wrong_type(file, e, key, "an array");
    *count = e->count;
    return DCM_OK;
}

dcm_status gguf_get_f32_array(const gguf *file, const char *key, const void **data, size_t *count)
{
    const gguf_entry *e;
    const dcm_status status = find_as(file, key, GGUF_ARRAY, GGUF_F32, "an array of float32", &e);
    if (status == DCM_OK) {
        *data = e->value;
        *count = e->count;
    }
    return status;
}

dcm_status gguf_get_i32_array(const gguf *file, const char *key, const void **data, size_t *count)
{
    const gguf_entry *e;
    const dcm_status status = find(file, key, &e);
    if (status != DCM_OK)
        return status;
    if (e->type != GGUF_ARRAY || (e->item != GGUF_I32 && e->item != GGUF_U32))
        return wrong_type(file, e, key, "an array of int32");
    *data = e->value;
    *count = e->count;
    return DCM_OK;
}

dcm_status gguf_get_string_array(const gguf *file, const char *key, gguf_string *strings, size_t count)
{
    const gguf_entry *e;
    const dcm_status status = find_as(file, key, GGUF_ARRAY, GGUF_STRING, "an array of strings", &e);
    if (status != DCM_OK)
        return status;
    if (count != e->count)
        return gguf_fail_at(file, (size_t)(e->value - file->data), "key \"%s\": %zu strings were asked for, it has %zu",
                            key, count, e->count);
    const unsigned char *at = e->value;
    for (size_t i = 0; i < count; i++)
        strings[i] = next_string(&at);
    return DCM_OK;
}

size_t gguf_tensor_count(const gguf *file) { return file->tensor_count; }

const gguf_tensor *gguf_tensor_at(const gguf *file, size_t i) { return &file->tensors[i]; }

const gguf_tensor *gguf_find_tensor(const gguf *file, const char *name)
{
    const size_t size = strlen(name);
    size_t low = 0, high = file->tensor_count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const gguf_tensor *t = file->by_name[middle];
        const int order = gguf_compare_strings(t->name.data, t->name.size, name, size);
        if (order == 0)
            return t;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

size_t gguf_tensor_offset(const gguf *file, const gguf_tensor *tensor)
{
    return (size_t)((const unsigned char *)tensor->data - file->data);
}
