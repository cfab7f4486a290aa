/* Means and scales of the channels of keys and values, as a merge model may want them. */
#ifndef TRAIN_CHANNELS_H
#define TRAIN_CHANNELS_H

#include <stdint.h>

/*
 * Sums over the tokens after the sinks, and their number, of each channel of a layer's keys (without rotation, the
 * cache's order) and values, and of their squares: (layers, 2, kv_heads, head_dim) each, added to.
 */
typedef struct channel_sums {
    double *sum, *square;
    uint64_t count;
} channel_sums;

#endif
