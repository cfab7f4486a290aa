/*
 * Before every family: constants shared with src/ops/ops.h, storage types of the cache, and the table of its blocks.
 * OpenCL C 1.2, float accumulation; each kernel file compiles with this one before it and nothing else.
 */
#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif
#ifndef ROPE_HALF
#define ROPE_HALF 0 /* 0: channel pairs (2i, 2i+1); 1: (i, i + HEAD_DIM/2) */
#endif
#ifndef KV_F32
#define KV_F32 0
#endif

#define KV_BLOCKS 64
#define KV_SLOT_BITS 26
#define VIEW_RANGES 14
#define VIEW_RANGE_WORDS 8
#define VIEW_WORDS (8 + VIEW_RANGES * VIEW_RANGE_WORDS)
#define MERGE_WORDS 4
