#include "support/gguf_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void gw_put(gw_bytes *bytes, const void *data, size_t size)
{
    if (size > bytes->capacity - bytes->size) {
        bytes->capacity = 2 * (bytes->capacity + size) + 64;
        bytes->data = realloc(bytes->data, bytes->capacity);
        if (!bytes->data) {
            fprintf(stderr, "gguf_writer: out of memory\n");
            abort();
        }
    }
    if (size)
        memcpy(bytes->data + bytes->size, data, size);
    bytes->size += size;
}

void gw_put_u32(gw_bytes *bytes, uint32_t value) { gw_put(bytes, &value, sizeof value); }

void gw_put_u64(gw_bytes *bytes, uint64_t value) { gw_put(bytes, &value, sizeof value); }

void gw_put_string(gw_bytes *bytes, const char *text)
{
    gw_put_u64(bytes, strlen(text));
    gw_put(bytes, text, strlen(text));
}

void gw_pad(gw_bytes *bytes, size_t alignment)
{
    while (bytes->size % alignment)
        gw_put(bytes, "", 1);
}

void gw_free(gw_bytes *bytes)
{
    free(bytes->data);
    *bytes = (gw_bytes){0};
}

void gw_open(gguf_writer *w) { *w = (gguf_writer){.magic = {'G', 'G', 'U', 'F'}, .version = 3, .alignment = 32}; }

void gw_value(gguf_writer *w, const char *key, uint32_t type, const void *value, size_t bytes)
{
    gw_put_string(&w->entries, key);
    gw_put_u32(&w->entries, type);
    gw_put(&w->entries, value, bytes);
    w->entry_count++;
}

void gw_array(gguf_writer *w, const char *key, uint32_t item, uint64_t count, const void *items, size_t bytes)
{
    gw_value(w, key, GW_ARRAY, &item, sizeof item);
    gw_put_u64(&w->entries, count);
    gw_put(&w->entries, items, bytes);
}

void gw_u32(gguf_writer *w, const char *key, uint32_t value) { gw_value(w, key, GW_U32, &value, sizeof value); }

void gw_f32(gguf_writer *w, const char *key, float value) { gw_value(w, key, GW_F32, &value, sizeof value); }

void gw_bool(gguf_writer *w, const char *key, bool value)
{
    const unsigned char byte = value;
    gw_value(w, key, GW_BOOL, &byte, 1);
}

void gw_string(gguf_writer *w, const char *key, const char *value)
{
    gw_value(w, key, GW_STRING, NULL, 0);
    gw_put_string(&w->entries, value);
}

void gw_strings(gguf_writer *w, const char *key, const char *const *values, size_t count)
{
    gw_array(w, key, GW_STRING, count, NULL, 0);
    for (size_t i = 0; i < count; i++)
        gw_put_string(&w->entries, values[i]);
}

void gw_info(gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *dims, uint64_t offset)
{
    gw_put_string(&w->infos, name);
    gw_put_u32(&w->infos, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        gw_put_u64(&w->infos, dims[i]);
    gw_put_u32(&w->infos, type);
    gw_put_u64(&w->infos, offset);
    w->tensor_count++;
}

void gw_tensor(gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *dims, const void *data,
               size_t bytes)
{
    gw_pad(&w->data, w->alignment);
    gw_info(w, name, type, n_dims, dims, w->data.size);
    gw_put(&w->data, data, bytes);
}

gw_bytes gw_finish(gguf_writer *w)
{
    gw_bytes file = {0};
    gw_put(&file, w->magic, sizeof w->magic);
    gw_put_u32(&file, w->version);
    gw_put_u64(&file, w->tensor_count);
    gw_put_u64(&file, w->entry_count);
    gw_put(&file, w->entries.data, w->entries.size);
    gw_put(&file, w->infos.data, w->infos.size);
    if (w->data.size) {
        gw_pad(&file, w->alignment);
        gw_put(&file, w->data.data, w->data.size);
    }
    gw_free(&w->entries);
    gw_free(&w->infos);
    gw_free(&w->data);
    return file;
}
