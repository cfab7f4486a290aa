/* The members of a JSON object one at a time, so that reading takes memory for one of them and not for all. */
#ifndef IO_JSON_MEMBERS_H
#define IO_JSON_MEMBERS_H

#include <dcm/status.h>

#include <jansson.h>
#include <stddef.h>

/* Bytes of one member's text, and objects and lists in it: jansson takes up to 1 MiB for those for a moment. */
enum { JSON_MEMBER_MAX = 32 << 10, JSON_MEMBER_PARTS = 64 };

/* A zeroed one, with `text` and `size` set, is before the first member. */
typedef struct json_members {
    const char *text;
    size_t size, at;
    char *piece; /* the member in braces */
    int begun;
    char fault[160]; /* what is wrong at `at` */
} json_members;

/*
 * The next member as an object of one, which the caller releases; NULL in *member behind the last one. DCM_ERR_FILE
 * with m->fault and m->at set, no message; DCM_ERR_MEMORY with a message.
 */
dcm_status json_members_next(json_members *m, json_t **member);

/* Free what reading took; a zeroed one is accepted. */
void json_members_end(json_members *m);

#endif
