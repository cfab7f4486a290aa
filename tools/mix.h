/* 64 well mixed bits of a number: splitmix64's finalizer (Steele, Lea and Flood 2014). */
#ifndef TOOLS_MIX_H
#define TOOLS_MIX_H

#include <stdint.h>

#define MIX_STEP 0x9e3779b97f4a7c15u /* between numbers: 2^64 over the golden ratio */

static inline uint64_t mix64(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

#endif
