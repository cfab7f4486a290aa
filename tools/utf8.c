#include "utf8.h"

int utf8_length(const unsigned char *p, size_t size)
{
    const unsigned c = p[0];
    if (c < 0x80)
        return 1;
    if (c < 0xc2 || c > 0xf4)
        return -1;
    const size_t length = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    if (size < 2)
        return 0;
    /* The second byte of E0, ED, F0 and F4 is narrower: no overlong forms, surrogates or values past U+10FFFF. */
    const unsigned low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80, high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    if (p[1] < low || p[1] > high)
        return -1;
    for (size_t i = 2; i < length; i++) {
        if (i >= size)
            return 0;
        if ((p[i] & 0xc0) != 0x80)
            return -1;
    }
    return (int)length;
}
