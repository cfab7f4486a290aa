/* Random numbers of a seed, the same on every POSIX system: erand48. */
#ifndef RANDOM_H
#define RANDOM_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef struct eval_random {
    unsigned short state[3];
} eval_random;

/* The seed's lower 32 bits, its upper ones folded into them, above 0x330e. */
static inline eval_random random_begin(uint64_t seed)
{
    seed ^= seed >> 32;
    return (eval_random){{0x330e, (unsigned short)seed, (unsigned short)(seed >> 16)}};
}

/* Uniform in 0 .. count - 1. */
static inline size_t random_below(eval_random *random, size_t count)
{
    return (size_t)(erand48(random->state) * (double)count);
}

#endif
