#include "stream.h"

#include "utf8.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Print the first `size` held bytes as far as they are whole characters; what is none becomes U+FFFD. */
static void print_held(stream *s, size_t size)
{
    size_t at = 0;
    while (at < size) {
        const int length = utf8_length((const unsigned char *)s->held + at, s->size - at);
        if (length == 0 || at + (size_t)(length > 0 ? length : 1) > size)
            break;
        if (length > 0)
            fwrite(s->held + at, 1, (size_t)length, stdout);
        else
            fputs("\xef\xbf\xbd", stdout);
        s->last = s->held[at];
        at += length > 0 ? (size_t)length : 1;
    }
    if (at) /* else nothing may be held, and `held` NULL */
        memmove(s->held, s->held + at, s->size - at);
    s->size -= at;
    fflush(stdout);
}

/* Where the first complete stop text begins in the held bytes, or their end. */
static size_t find_stop(const stream *s)
{
    for (size_t at = 0; at < s->size; at++)
        for (size_t k = 0; k < s->stops->count; k++) {
            const size_t length = strlen(s->stops->item[k]);
            if (length <= s->size - at && memcmp(s->held + at, s->stops->item[k], length) == 0)
                return at;
        }
    return s->size;
}

/* How many of the last held bytes may be the beginning of a stop text. */
static size_t begun_stop(const stream *s)
{
    for (size_t at = 0; at < s->size; at++)
        for (size_t k = 0; k < s->stops->count; k++) {
            const size_t left = s->size - at;
            if (left < strlen(s->stops->item[k]) && memcmp(s->held + at, s->stops->item[k], left) == 0)
                return left;
        }
    return 0;
}

bool stream_put(stream *s, const char *bytes, size_t size)
{
    if (s->size + size > s->room) {
        const size_t room = 2 * (s->size + size) + 64;
        char *grown = realloc(s->held, room);
        if (!grown)
            return false;
        s->held = grown;
        s->room = room;
    }
    if (size)
        memcpy(s->held + s->size, bytes, size);
    s->size += size;
    const size_t stop = find_stop(s);
    if (stop < s->size) {
        s->stopped = true;
        s->size = stop;
        return true;
    }
    print_held(s, s->size - begun_stop(s));
    return true;
}

void stream_end(stream *s)
{
    print_held(s, s->size);
    if (s->last && s->last != '\n')
        putchar('\n');
    fflush(stdout);
}

void stream_reset(stream *s)
{
    free(s->held);
    *s = (stream){.stops = s->stops};
}
