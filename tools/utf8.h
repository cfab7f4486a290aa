/* UTF-8, character by character. */
#ifndef UTF8_H
#define UTF8_H

#include <stddef.h>

/* Bytes of the character at `p`, of which `size` (not 0) are there; 0: more are needed to tell, -1: it is none. */
int utf8_length(const unsigned char *p, size_t size);

#endif
