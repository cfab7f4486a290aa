/* A growing text. */
#ifndef TOKEN_BUFFER_H
#define TOKEN_BUFFER_H

#include "base/memory.h"

#include <string.h>

/* `data` has a NUL behind its `size` bytes once anything was added; the first failure is kept and later additions do
 * nothing. */
typedef struct buffer {
    char *data;
    size_t size, room;
    dcm_status status;
} buffer;

static inline void buffer_add(buffer *b, const char *text, size_t size)
{
    if (b->status == DCM_OK && b->room - b->size <= size) {
        const size_t room = b->size + size + b->size / 2 + 256;
        b->status = mem_resize(&b->data, room, 1, "text");
        if (b->status == DCM_OK)
            b->room = room;
    }
    if (b->status != DCM_OK)
        return;
    if (size > 0)
        memcpy(b->data + b->size, text, size);
    b->size += size;
    b->data[b->size] = '\0';
}

static inline void buffer_text(buffer *b, const char *text) { buffer_add(b, text, strlen(text)); }

#endif
