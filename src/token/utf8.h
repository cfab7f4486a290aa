/* UTF-8, as the Unicode standard defines it: no overlong forms, no surrogates, nothing above U+10FFFF. */
#ifndef TOKEN_UTF8_H
#define TOKEN_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Bytes of the character at `p` (1 to 4) and its code point into *code, or 0 where the `n` bytes there do not start
 * with a valid one. */
static inline size_t utf8_read(const char *p, size_t n, uint32_t *code)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)p;
    if (n == 0)
        return 0;
    if (s[0] < 0x80) {
        *code = s[0];
        return 1;
    }
    const size_t size = s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf5 ? 4 : 0;
    if (size == 0 || n < size)
        return 0;
    uint32_t c = s[0] & (0x7fu >> size);
    for (size_t i = 1; i < size; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3f);
    }
    if (c < least[size] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
        return 0;
    *code = c;
    return size;
}

#endif
