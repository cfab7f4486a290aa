/* A growing array of token ids. */
#ifndef TOKEN_IDS_H
#define TOKEN_IDS_H

#include "base/memory.h"

#include <stdint.h>

typedef struct token_ids {
    int32_t *data;
    size_t count, room;
} token_ids;

/* Make room for `more` ids behind the present ones. */
static inline dcm_status ids_reserve(token_ids *ids, size_t more)
{
    if (ids->room - ids->count >= more)
        return DCM_OK;
    size_t room = ids->room + ids->room / 2 + 64;
    if (room < ids->count + more)
        room = ids->count + more;
    const dcm_status status = mem_resize(&ids->data, room, sizeof *ids->data, "token ids");
    if (status == DCM_OK)
        ids->room = room;
    return status;
}

#endif
