/* Inside of an open GGUF file; private to src/io/gguf*.c. */
#ifndef IO_GGUF_FILE_H
#define IO_GGUF_FILE_H

#include "base/file.h"
#include "io/gguf.h"

/* Value types of metadata; the values are GGUF's own numbers. */
typedef enum gguf_type {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPES
} gguf_type;

/* One key. A scalar is `count` = 1 item. Kept small: GGUF_MIN_ENTRY bytes of a file cost one of these, and half as much
 * to grow. */
typedef struct gguf_entry {
    const char *key;
    const unsigned char *value; /* the first item; strings begin with their length, 8 bytes */
    size_t count;
    uint16_t key_size;
    uint8_t type; /* GGUF_ARRAY or the item's */
    uint8_t item; /* type of the items */
} gguf_entry;

struct gguf {
    char *path;   /* as given, for messages */
    file_map map; /* zero where the bytes are the caller's */
    const unsigned char *data;
    size_t size;
    uint32_t version;
    size_t header_bytes;
    gguf_entry *entries; /* sorted by key */
    size_t entry_count;
    gguf_tensor *tensors; /* in file order */
    size_t tensor_count;
    const gguf_tensor **by_name; /* sorted by name */
};

enum { GGUF_SHOWN_BYTES = 96 };

/* A name as messages show it: shortened, unprintable bytes as '?'. `out` holds GGUF_SHOWN_BYTES; returns `out`. */
const char *gguf_show(char *out, const char *data, size_t size);

/* "PATH: offset AT: TEXT" as DCM_ERR_FILE. */
dcm_status gguf_fail_at(const gguf *file, size_t at, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Name of a value type ("uint32"), and bytes of one item, 0 for strings and arrays. */
const char *gguf_type_name(unsigned type);
size_t gguf_type_bytes(unsigned type);

/* Order of strings: as memcmp, a prefix first. */
int gguf_compare_strings(const char *a, size_t a_size, const char *b, size_t b_size);

/* NULL when there is no such key. */
const gguf_entry *gguf_find_entry(const gguf *file, const char *key);

#endif
