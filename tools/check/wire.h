/* What `dcm check` and the processes of its devices say to each other, over a pair of sockets (side.c, process.c). */
#ifndef CHECK_WIRE_H
#define CHECK_WIRE_H

#include "check.h"

/* ASK_FEED: `count` tokens, whose ids follow. ASK_UNITS: of a cache. ASK_LAYER: its values. */
typedef enum request_kind { ASK_FEED, ASK_UNITS, ASK_LAYER } request_kind;

typedef struct request {
    request_kind kind;
    check_form form;
    uint32_t count, layer;
} request;

/* What stands before the bytes of an answer; with a code other than 0 they are a message. */
typedef struct answer {
    int code;
    size_t size;
} answer;

/* What a process says first; a description of its device follows. */
typedef struct greeting {
    check_model model;
    bool is_ref;
} greeting;

/* All of it, whatever interrupts. False when nobody is there any more. */
bool check_send(int socket, const void *data, size_t size);

/* The process of a device: open everything, say so, and answer until nobody asks any more. */
void check_serve(int socket, const check_job *job, const char *name);

#endif
