#include "io/safetensors.h"

#include "base/error.h"
#include "base/file.h"
#include "base/half.h"
#include "base/memory.h"
#include "io/json_members.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    LENGTH_BYTES = 8,      /* the header's length, before it */
    MAX_HEADER = 100000000 /* as the format's own reader has it */
};

struct safetensors {
    char *path;   /* as given, for messages */
    file_map map; /* zero where the bytes are the caller's */
    const unsigned char *data;
    size_t size;
    size_t start;       /* of the arrays */
    json_t *metadata;   /* NULL: none */
    st_tensor *tensors; /* by place */
    size_t count, room;
    const st_tensor **by_name;
};

static dcm_status fail_at(const safetensors *file, size_t at, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static dcm_status fail_at(const safetensors *file, size_t at, const char *format, ...)
{
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return dcm_fail(DCM_ERR_FILE, "%s: offset %zu: %s", file->path, at, text);
}

/* Something wrong with a header's entry; where its text begins is not known any more, so the offset is the header's. */
static dcm_status fail_tensor(const safetensors *file, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static dcm_status fail_tensor(const safetensors *file, const char *name, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return fail_at(file, LENGTH_BYTES, "tensor \"%.96s\": %s", name, text);
}

/* Bits of one item, and dcm's type. */
typedef struct type_info {
    const char *name;
    st_type type;
    uint32_t bits;
} type_info;

static const type_info *find_type(const char *name)
{
    static const type_info types[] = {
        {"F32", ST_F32, 32},          {"F16", ST_F16, 16},          {"BF16", ST_BF16, 16},    {"F64", ST_OTHER, 64},
        {"I64", ST_OTHER, 64},        {"U64", ST_OTHER, 64},        {"I32", ST_OTHER, 32},    {"U32", ST_OTHER, 32},
        {"I16", ST_OTHER, 16},        {"U16", ST_OTHER, 16},        {"I8", ST_OTHER, 8},      {"U8", ST_OTHER, 8},
        {"BOOL", ST_OTHER, 8},        {"F8_E5M2", ST_OTHER, 8},     {"F8_E4M3", ST_OTHER, 8}, {"F8_E8M0", ST_OTHER, 8},
        {"F8_E4M3FNUZ", ST_OTHER, 8}, {"F8_E5M2FNUZ", ST_OTHER, 8}, {"F6_E2M3", ST_OTHER, 6}, {"F6_E3M2", ST_OTHER, 6},
        {"F4", ST_OTHER, 4},          {"C64", ST_OTHER, 64},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(types[i].name, name) == 0)
            return &types[i];
    }
    return NULL;
}

static dcm_status read_shape(const safetensors *file, const json_t *entry, st_tensor *t)
{
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape))
        return fail_tensor(file, t->name, "\"shape\" is missing or no array");
    const size_t n = json_array_size(shape);
    if (n > ST_MAX_DIMS)
        return fail_tensor(file, t->name, "%zu dimensions (at most %d are supported)", n, ST_MAX_DIMS);
    t->n_dims = (uint32_t)n;
    t->items = 1;
    for (size_t i = 0; i < n; i++) {
        const json_t *dim = json_array_get(shape, i);
        if (json_typeof(dim) != JSON_INTEGER || json_integer_value(dim) < 0)
            return fail_tensor(file, t->name, "dimension %zu of \"shape\" is no count", i);
        t->dims[i] = (uint64_t)json_integer_value(dim);
        if (!size_mul(t->items, t->dims[i], &t->items))
            return fail_tensor(file, t->name, "the product of its dimensions overflows");
    }
    return DCM_OK;
}

static dcm_status read_place(const safetensors *file, const json_t *entry, st_tensor *t)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || json_typeof(first) != JSON_INTEGER || json_typeof(last) != JSON_INTEGER ||
        json_integer_value(first) < 0 || json_integer_value(last) < json_integer_value(first))
        return fail_tensor(file, t->name, "\"data_offsets\" is no pair of places [begin, end]");
    const size_t begin = (size_t)json_integer_value(first), end = (size_t)json_integer_value(last);
    const size_t room = file->size - file->start;
    if (end > room)
        return fail_tensor(file, t->name, "data ends at %zu bytes past the end of the file (truncated?)", end - room);
    t->data = file->data + file->start + begin;
    t->bytes = end - begin;
    return DCM_OK;
}

static dcm_status read_tensor(const safetensors *file, const char *name, const json_t *entry, st_tensor *t)
{
    dcm_status status;
    size_t bits;
    *t = (st_tensor){.name = name};
    if (json_typeof(entry) != JSON_OBJECT)
        return fail_tensor(file, name, "its entry is no object");
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    if (!dtype)
        return fail_tensor(file, name, "\"dtype\" is missing or no string");
    const type_info *info = find_type(dtype);
    if (!info)
        return fail_tensor(file, name, "unknown \"dtype\" %.32s", dtype);
    t->type = info->type;
    DCM_TRY(status, fail, read_shape(file, entry, t));
    DCM_TRY(status, fail, read_place(file, entry, t));
    if (!size_mul(t->items, info->bits, &bits) || bits % 8 != 0 || bits / 8 != t->bytes)
        return fail_tensor(file, name,
                           "\"data_offsets\" hold %zu bytes, its shape and dtype %s make %zu items of %u bits",
                           t->bytes, info->name, t->items, info->bits);
    return DCM_OK;
fail:
    return status;
}

static int compare_places(const void *a, const void *b)
{
    const st_tensor *x = a, *y = b;
    const unsigned char *p = x->data, *q = y->data;
    return p != q ? (p > q) - (p < q) : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const st_tensor *const *)a)->name, (*(const st_tensor *const *)b)->name);
}

/* The arrays cover the data without a gap or an overlap, as the format demands. */
static dcm_status check_cover(const safetensors *file)
{
    size_t covered = file->start;
    for (size_t i = 0; i < file->count; i++) {
        const st_tensor *t = &file->tensors[i];
        const size_t begin = (size_t)((const unsigned char *)t->data - file->data);
        if (begin < covered)
            return fail_tensor(file, t->name, "its data overlaps that of \"%.64s\"", t[-1].name);
        if (begin > covered)
            return fail_tensor(file, t->name, "%zu bytes before its data belong to no tensor", begin - covered);
        covered += t->bytes;
    }
    if (covered != file->size)
        return fail_at(file, covered, "%zu bytes at the end of the file belong to no tensor", file->size - covered);
    return DCM_OK;
}

static dcm_status check_metadata(const safetensors *file, json_t *metadata)
{
    if (json_typeof(metadata) != JSON_OBJECT)
        return fail_at(file, LENGTH_BYTES, "\"__metadata__\" is no object");
    for (void *i = json_object_iter(metadata); i; i = json_object_iter_next(metadata, i))
        if (json_typeof(json_object_iter_value(i)) != JSON_STRING)
            return fail_at(file, LENGTH_BYTES, "\"__metadata__\": the value of \"%.64s\" is no string",
                           json_object_iter_key(i));
    return DCM_OK;
}

/* One member of the header. */
static dcm_status read_member(safetensors *file, json_t *member)
{
    void *first = json_object_iter(member);
    const char *name = json_object_iter_key(first);
    json_t *entry = json_object_iter_value(first);
    dcm_status status;
    if (strcmp(name, "__metadata__") == 0) {
        if (file->metadata)
            return fail_at(file, LENGTH_BYTES, "header: duplicate object key \"__metadata__\"");
        file->metadata = json_incref(entry);
        return check_metadata(file, entry);
    }
    if (file->count == file->room) {
        const size_t room = file->room ? file->room + file->room / 2 : 16;
        DCM_TRY(status, fail, mem_resize(&file->tensors, room, sizeof *file->tensors, "safetensors entries"));
        file->room = room;
    }
    st_tensor *t = &file->tensors[file->count];
    char *copy = NULL;
    DCM_TRY(status, fail, read_tensor(file, name, entry, t));
    DCM_TRY(status, fail, mem_new(&copy, strlen(name) + 1, 1, "a safetensors name"));
    t->name = strcpy(copy, name);
    file->count++;
    return DCM_OK;
fail:
    return status;
}

static dcm_status read_members(safetensors *file, json_members *members)
{
    json_t *member;
    dcm_status status;
    do {
        status = json_members_next(members, &member);
        if (status == DCM_ERR_FILE)
            return fail_at(file, LENGTH_BYTES + members->at, "header: %s", members->fault);
        if (status == DCM_ERR_MEMORY)
            return dcm_fail_in(status, "%s", file->path);
        if (member)
            status = read_member(file, member);
        json_decref(member);
    } while (member && status == DCM_OK);
    return status;
}

/* Sort the entries, and see that names are different and the data is covered. */
static dcm_status check_directory(safetensors *file)
{
    const dcm_status status =
        mem_new(&file->by_name, file->count, sizeof *file->by_name, "the order of safetensors names");
    if (status != DCM_OK)
        return status;
    if (file->count)
        qsort(file->tensors, file->count, sizeof *file->tensors, compare_places);
    for (size_t i = 0; i < file->count; i++)
        file->by_name[i] = &file->tensors[i];
    if (file->count)
        qsort(file->by_name, file->count, sizeof *file->by_name, compare_names);
    for (size_t i = 1; i < file->count; i++)
        if (!strcmp(file->by_name[i - 1]->name, file->by_name[i]->name))
            return fail_tensor(file, file->by_name[i]->name, "a duplicate name");
    return check_cover(file);
}

static dcm_status read_header(safetensors *file)
{
    uint64_t length;
    if (file->size < LENGTH_BYTES)
        return fail_at(file, 0, "the header's length takes %d bytes, the file has %zu (truncated?)", LENGTH_BYTES,
                       file->size);
    memcpy(&length, file->data, sizeof length);
    if (length > file->size - LENGTH_BYTES)
        return fail_at(
            file, 0, "the header's length is %llu, the file has %zu more bytes (truncated, or not a safetensors file?)",
            (unsigned long long)length, file->size - LENGTH_BYTES);
    if (length > MAX_HEADER)
        return fail_at(file, 0, "the header's length is %llu, more than %d", (unsigned long long)length, MAX_HEADER);
    file->start = LENGTH_BYTES + (size_t)length;
    json_members members = {.text = (const char *)file->data + LENGTH_BYTES, .size = (size_t)length};
    const dcm_status status = read_members(file, &members);
    json_members_end(&members);
    return status == DCM_OK ? check_directory(file) : status;
}

/* Takes over `map`, also when it fails. */
static dcm_status open_bytes(safetensors **out, const char *name, const void *data, size_t size, file_map map)
{
    safetensors *file = NULL;
    dcm_status status;
    *out = NULL;
    DCM_TRY(status, fail, mem_new(&file, 1, sizeof *file, "a safetensors file"));
    file->map = map;
    map = (file_map){0};
    file->data = data;
    file->size = size;
    DCM_TRY(status, fail, mem_new(&file->path, strlen(name) + 1, 1, "a safetensors file's name"));
    strcpy(file->path, name);
    DCM_TRY(status, fail, read_header(file));
    *out = file;
    return DCM_OK;
fail:
    file_map_close(&map);
    safetensors_close(&file);
    return status;
}

dcm_status safetensors_open(safetensors **file, const char *path)
{
    file_map map;
    *file = NULL;
    const dcm_status status = file_map_open(&map, path);
    return status == DCM_OK ? open_bytes(file, path, map.data, map.size, map) : status;
}

dcm_status safetensors_open_memory(safetensors **file, const char *name, const void *data, size_t size)
{
    return open_bytes(file, name, data, size, (file_map){0});
}

void safetensors_close(safetensors **file)
{
    if (!file || !*file)
        return;
    json_decref((*file)->metadata);
    for (size_t i = 0; i < (*file)->count; i++) {
        char *name = (char *)(size_t)(*file)->tensors[i].name; /* made by read_member */
        mem_free(&name);
    }
    mem_free(&(*file)->path);
    mem_free(&(*file)->tensors);
    mem_free(&(*file)->by_name);
    file_map_close(&(*file)->map);
    mem_free(file);
}

size_t safetensors_count(const safetensors *file) { return file->count; }

const st_tensor *safetensors_at(const safetensors *file, size_t i) { return &file->tensors[i]; }

const st_tensor *safetensors_find(const safetensors *file, const char *name)
{
    size_t low = 0, high = file->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int order = strcmp(file->by_name[middle]->name, name);
        if (order == 0)
            return file->by_name[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

const char *safetensors_metadata(const safetensors *file, const char *key)
{
    return json_string_value(json_object_get(file->metadata, key));
}

dcm_status safetensors_to_float(const safetensors *file, const st_tensor *tensor, float *out)
{
    const unsigned char *p = tensor->data;
    uint16_t bits;
    if (tensor->type == ST_OTHER)
        return fail_tensor(file, tensor->name, "its dtype is none of F32, F16, BF16");
    if (tensor->type == ST_F32)
        memcpy(out, p, tensor->bytes);
    else
        for (size_t i = 0; i < tensor->items; i++) {
            memcpy(&bits, p + 2 * i, sizeof bits);
            out[i] = tensor->type == ST_F16 ? half_to_float(bits) : bf16_to_float(bits);
        }
    return DCM_OK;
}
