/* GGUF files: header, metadata and tensor directory. */
#include "fuzz/fuzz.h"

#include "io/gguf_file.h"

#include <string.h>

/* Ask for a key's value as everything it could be. */
static void read_entry(const gguf *file, const gguf_entry *entry)
{
    char key[256];
    uint32_t number;
    float real;
    bool flag;
    gguf_string text, strings[64];
    const void *items;
    size_t count, n;
    if (entry->key_size >= sizeof key || memchr(entry->key, 0, entry->key_size))
        return;
    memcpy(key, entry->key, entry->key_size);
    key[entry->key_size] = 0;
    fuzz_check(gguf_has(file, key), "a key is not found");
    fuzz_check_status(gguf_get_u32(file, key, &number));
    fuzz_check_status(gguf_get_f32(file, key, &real));
    fuzz_check_status(gguf_get_bool(file, key, &flag));
    fuzz_check_status(gguf_get_f32_array(file, key, &items, &count));
    fuzz_check_status(gguf_get_i32_array(file, key, &items, &count));
    if (gguf_get_string(file, key, &text) == DCM_OK)
        fuzz_check(text.size <= file->size - (size_t)((const unsigned char *)text.data - file->data),
                   "a string passes the file's end");
    if (gguf_get_array_size(file, key, &n) != DCM_OK || n > 64 || gguf_get_string_array(file, key, strings, n))
        return;
    for (size_t i = 0; i < n; i++)
        fuzz_check(strings[i].size <= file->size - (size_t)((const unsigned char *)strings[i].data - file->data),
                   "an item passes the file's end");
}

static void read_tensor(const gguf *file, const gguf_tensor *t)
{
    char name[256];
    const size_t at = gguf_tensor_offset(file, t);
    const quant_info *info = quant_get(t->type);
    fuzz_check(info && t->n_dims >= 1 && t->n_dims <= GGUF_MAX_DIMS, "a tensor's type or dimensions");
    fuzz_check(at <= file->size && t->bytes <= file->size - at && at >= gguf_header_bytes(file),
               "a tensor outside the data");
    size_t items = 1;
    for (uint32_t i = 0; i < GGUF_MAX_DIMS; i++)
        items *= t->dims[i];
    fuzz_check(items / info->items * info->bytes == t->bytes, "a tensor's bytes");
    if (t->name.size >= sizeof name || memchr(t->name.data, 0, t->name.size))
        return;
    memcpy(name, t->name.data, t->name.size);
    name[t->name.size] = 0;
    fuzz_check(gguf_find_tensor(file, name) == t, "a tensor is not found");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    gguf *file;
    const dcm_status status = gguf_open_memory(&file, "fuzz", data, size);
    fuzz_check_status(status);
    fuzz_check((status == DCM_OK) == (file != NULL), "a file without success");
    for (size_t i = 0; file && i < file->entry_count; i++)
        read_entry(file, &file->entries[i]);
    for (size_t i = 0; file && i < gguf_tensor_count(file); i++)
        read_tensor(file, gguf_tensor_at(file, i));
    gguf_close(&file);
    return 0;
}
