#include "io/gguf_file.h"

#include "base/error.h"
#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "weights are used in place, as the little-endian bytes of the file");
_Static_assert(sizeof(size_t) > sizeof(uint32_t), "a place in memory and an alignment of 32 bits have a sum");

enum {
    MIN_ENTRY = 8 + 1 + 4 + 1,          /* bytes of the shortest metadata entry: a key of one byte, one uint8 */
    MIN_TENSOR = 8 + 1 + 4 + 8 + 4 + 8, /* bytes of the shortest tensor info: a name of one byte, one dimension */
    MIN_ALIGNMENT = 8,
    DEFAULT_ALIGNMENT = 32
};

/* Where reading is, and what is being read ("key \"a\"", "tensor \"b\""). */
typedef struct reader {
    gguf *file;
    size_t at;
    char field[GGUF_SHOWN_BYTES + 16];
} reader;

static void set_field(reader *r, const char *kind, gguf_string name)
{
    char shown[GGUF_SHOWN_BYTES];
    snprintf(r->field, sizeof r->field, "%s \"%s\"", kind, gguf_show(shown, name.data, name.size));
}

static size_t left(const reader *r) { return r->file->size - r->at; }

static dcm_status need(const reader *r, size_t bytes, const char *what)
{
    if (bytes <= left(r))
        return DCM_OK;
    return gguf_fail_at(r->file, r->at, "%s: %s takes %zu bytes, the file has %zu more (truncated?)", r->field, what,
                        bytes, left(r));
}

static dcm_status read_bytes(reader *r, void *out, size_t size, const char *what)
{
    const dcm_status status = need(r, size, what);
    if (status == DCM_OK) {
        memcpy(out, r->file->data + r->at, size);
        r->at += size;
    }
    return status;
}

static dcm_status read_u32(reader *r, uint32_t *out, const char *what) { return read_bytes(r, out, sizeof *out, what); }

static dcm_status read_u64(reader *r, uint64_t *out, const char *what) { return read_bytes(r, out, sizeof *out, what); }

static dcm_status read_string(reader *r, gguf_string *out, const char *what)
{
    uint64_t size;
    const dcm_status status = read_u64(r, &size, what);
    if (status != DCM_OK)
        return status;
    if (size > left(r))
        return gguf_fail_at(r->file, r->at - 8,
                            "%s: the length of %s is %llu, the file has %zu more bytes (truncated?)", r->field, what,
                            (unsigned long long)size, left(r));
    *out = (gguf_string){(const char *)r->file->data + r->at, (size_t)size};
    r->at += (size_t)size;
    return DCM_OK;
}

/* A key or tensor name; sets r->field to it. */
static dcm_status read_name(reader *r, gguf_string *out, const char *kind)
{
    snprintf(r->field, sizeof r->field, "%s", kind);
    const size_t at = r->at;
    const dcm_status status = read_string(r, out, "the name");
    if (status != DCM_OK)
        return status;
    if (out->size == 0 || out->size > UINT16_MAX)
        return gguf_fail_at(r->file, at, "%s: a name of %zu bytes (1 to %d are allowed)", r->field, out->size,
                            UINT16_MAX);
    set_field(r, kind, *out);
    return DCM_OK;
}

/* Make room for one more item. */
static dcm_status grow(void *pointer, size_t *capacity, size_t count, size_t size, const char *what)
{
    if (count < *capacity)
        return DCM_OK;
    const size_t wanted = *capacity ? *capacity + *capacity / 2 : 16;
    const dcm_status status = mem_resize(pointer, wanted, size, what);
    if (status == DCM_OK)
        *capacity = wanted;
    return status;
}

/* Check and pass `count` items of a value. */
static dcm_status skip_items(reader *r, unsigned type, uint64_t count)
{
    const size_t size = type == GGUF_STRING ? 8 : gguf_type_bytes(type);
    if (count > left(r) / size)
        return gguf_fail_at(r->file, r->at,
                            "%s: %llu items of type %s pass the end of the file, which has %zu more bytes (truncated?)",
                            r->field, (unsigned long long)count, gguf_type_name(type), left(r));
    if (type == GGUF_STRING) {
        gguf_string string;
        dcm_status status = DCM_OK;
        for (uint64_t i = 0; i < count && status == DCM_OK; i++)
            status = read_string(r, &string, "a string");
        return status;
    }
    for (size_t i = 0; type == GGUF_BOOL && i < count; i++) {
        if (r->file->data[r->at + i] > 1)
            return gguf_fail_at(r->file, r->at + i, "%s: a bool of value %d (0 or 1 are allowed)", r->field,
                                r->file->data[r->at + i]);
    }
    r->at += (size_t)count * size;
    return DCM_OK;
}

static dcm_status read_type(reader *r, uint32_t *type, const char *what)
{
    const dcm_status status = read_u32(r, type, what);
    if (status == DCM_OK && *type >= GGUF_TYPES)
        return gguf_fail_at(r->file, r->at - 4, "%s: %s has the unknown number %u", r->field, what, *type);
    return status;
}

static dcm_status read_entry(reader *r, gguf_entry *entry)
{
    gguf_string key;
    uint32_t type, item;
    uint64_t count = 1;
    dcm_status status;
    DCM_TRY(status, done, read_name(r, &key, "key"));
    DCM_TRY(status, done, read_type(r, &type, "the value's type"));
    item = type;
    if (type == GGUF_ARRAY) {
        DCM_TRY(status, done, read_type(r, &item, "the array's item type"));
        if (item == GGUF_ARRAY)
            return gguf_fail_at(r->file, r->at - 4, "%s: arrays of arrays are not supported", r->field);
        DCM_TRY(status, done, read_u64(r, &count, "the array's length"));
    }
    *entry =
        (gguf_entry){key.data, r->file->data + r->at, (size_t)count, (uint16_t)key.size, (uint8_t)type, (uint8_t)item};
    status = skip_items(r, item, count);
done:
    return status;
}

static int compare_entries(const void *a, const void *b)
{
    const gguf_entry *x = a, *y = b;
    return gguf_compare_strings(x->key, x->key_size, y->key, y->key_size);
}

static dcm_status read_entries(reader *r, uint64_t count)
{
    gguf *file = r->file;
    size_t capacity = 0;
    dcm_status status;
    for (uint64_t i = 0; i < count; i++) {
        DCM_TRY(status, fail,
                grow(&file->entries, &capacity, file->entry_count, sizeof *file->entries, "GGUF metadata"));
        DCM_TRY(status, fail, read_entry(r, &file->entries[file->entry_count]));
        file->entry_count++;
    }
    if (count)
        qsort(file->entries, file->entry_count, sizeof *file->entries, compare_entries);
    for (size_t i = 1; i < file->entry_count; i++) {
        const gguf_entry *e = &file->entries[i];
        if (compare_entries(e - 1, e) == 0) {
            set_field(r, "key", (gguf_string){e->key, e->key_size});
            return gguf_fail_at(file, (size_t)((const unsigned char *)e->key - file->data), "%s: the same key twice",
                                r->field);
        }
    }
    return DCM_OK;
fail:
    return status;
}

static dcm_status find_alignment(const gguf *file, size_t *alignment)
{
    const gguf_entry *e = gguf_find_entry(file, "general.alignment");
    *alignment = DEFAULT_ALIGNMENT;
    if (!e)
        return DCM_OK;
    const size_t at = (size_t)(e->value - file->data);
    if (e->type != GGUF_U32)
        return gguf_fail_at(file, at, "key \"general.alignment\": its type is %s, not uint32", gguf_type_name(e->type));
    uint32_t value;
    memcpy(&value, e->value, sizeof value);
    if (value < MIN_ALIGNMENT || (value & (value - 1)) != 0)
        return gguf_fail_at(file, at, "key \"general.alignment\": %u is not a power of two of at least %d", value,
                            MIN_ALIGNMENT);
    *alignment = value;
    return DCM_OK;
}

/* Type, block and byte size of a tensor whose dims are read. `at`: of the type. */
static dcm_status check_shape(const reader *r, gguf_tensor *t, uint32_t type, size_t at)
{
    const quant_info *info = quant_get(type);
    if (!info) {
        const char *name = quant_name(type);
        return name ? gguf_fail_at(r->file, at, "%s: type %s is not supported", r->field, name)
                    : gguf_fail_at(r->file, at, "%s: unknown type number %u", r->field, type);
    }
    t->type = (quant_type)type;
    if (t->dims[0] % info->items != 0)
        return gguf_fail_at(r->file, at, "%s: rows of %llu items are no multiple of the block of %s (%u items)",
                            r->field, (unsigned long long)t->dims[0], info->name, info->items);
    bool fits = size_mul(t->dims[0] / info->items, info->bytes, &t->bytes);
    for (uint32_t i = 1; i < t->n_dims; i++)
        fits = fits && size_mul(t->bytes, t->dims[i], &t->bytes);
    if (!fits)
        return gguf_fail_at(r->file, at, "%s: the product of its dimensions overflows", r->field);
    return DCM_OK;
}

static dcm_status read_tensor(reader *r, gguf_tensor *t)
{
    uint32_t type;
    uint64_t offset;
    dcm_status status;
    *t = (gguf_tensor){.dims = {1, 1, 1, 1}};
    DCM_TRY(status, fail, read_name(r, &t->name, "tensor"));
    DCM_TRY(status, fail, read_u32(r, &t->n_dims, "the number of dimensions"));
    if (t->n_dims < 1 || t->n_dims > GGUF_MAX_DIMS)
        return gguf_fail_at(r->file, r->at - 4, "%s: %u dimensions (1 to %d are allowed)", r->field, t->n_dims,
                            GGUF_MAX_DIMS);
    for (uint32_t i = 0; i < t->n_dims; i++) {
        DCM_TRY(status, fail, read_u64(r, &t->dims[i], "a dimension"));
        if (t->dims[i] == 0)
            return gguf_fail_at(r->file, r->at - 8, "%s: dimension %u is 0", r->field, i);
    }
    DCM_TRY(status, fail, read_u32(r, &type, "the type"));
    DCM_TRY(status, fail, check_shape(r, t, type, r->at - 4));
    t->data = r->file->data + r->at; /* the offset's own place, until place_tensor knows where data begins */
    DCM_TRY(status, fail, read_u64(r, &offset, "the data offset"));
    return DCM_OK;
fail:
    return status;
}

/* Turn the offset at t->data into the data's address. `start`: of all tensor data. */
static dcm_status place_tensor(reader *r, gguf_tensor *t, size_t start, size_t alignment)
{
    const gguf *file = r->file;
    const size_t at = (size_t)((const unsigned char *)t->data - file->data);
    uint64_t offset;
    size_t begin, end;
    memcpy(&offset, t->data, sizeof offset);
    set_field(r, "tensor", t->name);
    if (offset % alignment != 0)
        return gguf_fail_at(file, at, "%s: data offset %llu is no multiple of the alignment %zu", r->field,
                            (unsigned long long)offset, alignment);
    if (!size_add(start, offset, &begin) || !size_add(begin, t->bytes, &end))
        return gguf_fail_at(file, at, "%s: data offset %llu overflows", r->field, (unsigned long long)offset);
    if (end > file->size)
        return gguf_fail_at(file, at, "%s: data ends at %zu bytes past the end of the file (truncated?)", r->field,
                            end - file->size);
    t->data = file->data + begin;
    return DCM_OK;
}

static int compare_places(const void *a, const void *b)
{
    const gguf_tensor *x = *(const gguf_tensor *const *)a, *y = *(const gguf_tensor *const *)b;
    const unsigned char *p = x->data, *q = y->data;
    return (p > q) - (p < q);
}

static int compare_names(const void *a, const void *b)
{
    const gguf_tensor *x = *(const gguf_tensor *const *)a, *y = *(const gguf_tensor *const *)b;
    return gguf_compare_strings(x->name.data, x->name.size, y->name.data, y->name.size);
}

/* No two tensors share a byte or a name; leaves file->by_name sorted. */
static dcm_status check_pairs(const gguf *file)
{
    const gguf_tensor **sorted = file->by_name;
    char a[GGUF_SHOWN_BYTES], b[GGUF_SHOWN_BYTES];
    qsort(sorted, file->tensor_count, sizeof *sorted, compare_places);
    for (size_t i = 1; i < file->tensor_count; i++) {
        const gguf_tensor *t = sorted[i - 1], *next = sorted[i];
        if (t->bytes > (size_t)((const unsigned char *)next->data - (const unsigned char *)t->data))
            return gguf_fail_at(file, gguf_tensor_offset(file, next), "tensor \"%s\": its data overlaps that of \"%s\"",
                                gguf_show(a, next->name.data, next->name.size),
                                gguf_show(b, t->name.data, t->name.size));
    }
    qsort(sorted, file->tensor_count, sizeof *sorted, compare_names);
    for (size_t i = 1; i < file->tensor_count; i++) {
        const gguf_string name = sorted[i]->name;
        if (compare_names(&sorted[i - 1], &sorted[i]) == 0)
            return gguf_fail_at(file, (size_t)((const unsigned char *)name.data - file->data),
                                "tensor \"%s\": the same name twice", gguf_show(a, name.data, name.size));
    }
    return DCM_OK;
}

static dcm_status read_tensors(reader *r, uint64_t count, size_t alignment)
{
    gguf *file = r->file;
    size_t capacity = 0;
    dcm_status status;
    for (uint64_t i = 0; i < count; i++) {
        DCM_TRY(status, fail,
                grow(&file->tensors, &capacity, file->tensor_count, sizeof *file->tensors, "GGUF tensors"));
        DCM_TRY(status, fail, read_tensor(r, &file->tensors[file->tensor_count]));
        file->tensor_count++;
    }
    const size_t start = (r->at + alignment - 1) & ~(alignment - 1);
    file->header_bytes = start < file->size ? start : file->size;
    DCM_TRY(status, fail, mem_new(&file->by_name, file->tensor_count, sizeof *file->by_name, "GGUF tensor names"));
    for (size_t i = 0; i < file->tensor_count; i++) {
        DCM_TRY(status, fail, place_tensor(r, &file->tensors[i], start, alignment));
        file->by_name[i] = &file->tensors[i];
    }
    return check_pairs(file);
fail:
    return status;
}

static dcm_status read_version(reader *r)
{
    gguf *file = r->file;
    char magic[4];
    dcm_status status;
    DCM_TRY(status, fail, read_bytes(r, magic, sizeof magic, "the magic number"));
    if (memcmp(magic, "GGUF", 4) != 0)
        return gguf_fail_at(file, 0, "magic number: not a GGUF file (it should begin with \"GGUF\")");
    DCM_TRY(status, fail, read_u32(r, &file->version, "the version"));
    const uint32_t swapped = __builtin_bswap32(file->version);
    if (file->version == 2 || file->version == 3)
        return DCM_OK;
    if (swapped >= 1 && swapped <= 3)
        return gguf_fail_at(file, 4, "version: a big-endian file; convert it to little-endian");
    return gguf_fail_at(file, 4, "version: %u is not supported (2 and 3 are)", file->version);
fail:
    return status;
}

static dcm_status read_header(gguf *file)
{
    reader r = {.file = file, .field = "header"};
    uint64_t tensors, entries;
    size_t alignment;
    dcm_status status;
    DCM_TRY(status, fail, read_version(&r));
    DCM_TRY(status, fail, read_u64(&r, &tensors, "the number of tensors"));
    DCM_TRY(status, fail, read_u64(&r, &entries, "the number of metadata entries"));
    if (tensors > left(&r) / MIN_TENSOR)
        return gguf_fail_at(file, 8, "header: %llu tensors do not fit the file's %zu bytes (truncated?)",
                            (unsigned long long)tensors, file->size);
    if (entries > left(&r) / MIN_ENTRY)
        return gguf_fail_at(file, 16, "header: %llu metadata entries do not fit the file's %zu bytes (truncated?)",
                            (unsigned long long)entries, file->size);
    DCM_TRY(status, fail, read_entries(&r, entries));
    DCM_TRY(status, fail, find_alignment(file, &alignment));
    DCM_TRY(status, fail, read_tensors(&r, tensors, alignment));
    return DCM_OK;
fail:
    return status;
}

/* Takes over `map`, also when it fails. */
static dcm_status open_bytes(gguf **out, const char *name, const void *data, size_t size, file_map map)
{
    gguf *file = NULL;
    dcm_status status;
    *out = NULL;
    DCM_TRY(status, fail, mem_new(&file, 1, sizeof *file, "a GGUF file"));
    file->map = map;
    map = (file_map){0};
    file->data = data;
    file->size = size;
    DCM_TRY(status, fail, mem_new(&file->path, strlen(name) + 1, 1, "a GGUF file's name"));
    strcpy(file->path, name);
    DCM_TRY(status, fail, read_header(file));
    *out = file;
    return DCM_OK;
fail:
    file_map_close(&map);
    gguf_close(&file);
    return status;
}

dcm_status gguf_open(gguf **file, const char *path)
{
    file_map map;
    *file = NULL;
    const dcm_status status = file_map_open(&map, path);
    return status == DCM_OK ? open_bytes(file, path, map.data, map.size, map) : status;
}

dcm_status gguf_open_memory(gguf **file, const char *name, const void *data, size_t size)
{
    return open_bytes(file, name, data, size, (file_map){0});
}

void gguf_close(gguf **file)
{
    if (!file || !*file)
        return;
    mem_free(&(*file)->path);
    mem_free(&(*file)->entries);
    mem_free(&(*file)->tensors);
    mem_free(&(*file)->by_name);
    file_map_close(&(*file)->map);
    mem_free(file);
}
