/*
 * Writes GGUF files in memory, for tests: correct ones in a few lines, and wrong ones on purpose. The public fields may
 * be changed before gw_finish() to make a file that lies. Running out of memory ends the process: this is test code.
 *
 *     gguf_writer w;
 *     gw_open(&w);
 *     gw_string(&w, "general.architecture", "llama");
 *     gw_tensor(&w, "a.weight", QUANT_F32, 2, (const uint64_t[]){4, 3}, floats, 48);
 *     gw_bytes file = gw_finish(&w);
 *     ... gguf_open_memory(&gguf, "test", file.data, file.size) ...
 *     gw_free(&file);
 */
#ifndef SUPPORT_GGUF_WRITER_H
#define SUPPORT_GGUF_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that grow. Zero is empty. */
typedef struct gw_bytes {
    unsigned char *data;
    size_t size;
    size_t capacity;
} gw_bytes;

/* Append raw bytes, little-endian numbers, or a string with its length of 8 bytes before it. */
void gw_put(gw_bytes *bytes, const void *data, size_t size);
void gw_put_u32(gw_bytes *bytes, uint32_t value);
void gw_put_u64(gw_bytes *bytes, uint64_t value);
void gw_put_string(gw_bytes *bytes, const char *text);

/* Append zeros up to a multiple of `alignment`. */
void gw_pad(gw_bytes *bytes, size_t alignment);

/* Free and zero. */
void gw_free(gw_bytes *bytes);

/* Value types of metadata: GGUF's numbers. */
enum { GW_U8, GW_I8, GW_U16, GW_I16, GW_U32, GW_I32, GW_F32, GW_BOOL, GW_STRING, GW_ARRAY, GW_U64, GW_I64, GW_F64 };

typedef struct gguf_writer {
    char magic[4];
    uint32_t version;      /* 3 */
    uint64_t tensor_count; /* as the file will say */
    uint64_t entry_count;
    size_t alignment; /* 32; the file's key is gw_u32(w, "general.alignment", ...) and does not change this */
    gw_bytes entries; /* metadata as it goes into the file */
    gw_bytes infos;   /* tensor infos */
    gw_bytes data;    /* tensor data */
} gguf_writer;

void gw_open(gguf_writer *w);

/* Metadata. gw_value: a scalar of any type as its raw bytes. gw_array: `count` items of `item` type in `bytes` raw
 * bytes. */
void gw_value(gguf_writer *w, const char *key, uint32_t type, const void *value, size_t bytes);
void gw_array(gguf_writer *w, const char *key, uint32_t item, uint64_t count, const void *items, size_t bytes);
void gw_u32(gguf_writer *w, const char *key, uint32_t value);
void gw_f32(gguf_writer *w, const char *key, float value);
void gw_bool(gguf_writer *w, const char *key, bool value);
void gw_string(gguf_writer *w, const char *key, const char *value);
void gw_strings(gguf_writer *w, const char *key, const char *const *values, size_t count);

/* A tensor: info, and `bytes` bytes of data at the next aligned place. */
void gw_tensor(gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *dims, const void *data,
               size_t bytes);

/* A tensor's info alone, with any offset. */
void gw_info(gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *dims, uint64_t offset);

/* The file; frees the writer's own bytes. Free the result with gw_free(). */
gw_bytes gw_finish(gguf_writer *w);

#endif
