/*
 * The truth: every operation of a model in plain C on host arrays, written to be read against its formula. Sums, norms,
 * exponentials and rotations are in double; a result is rounded to float once, and to half once more where it is stored
 * so. Work is shared among threads by outputs alone and every sum has a fixed order, so that no bit depends on the
 * number of threads or on the instruction set. Shapes are (rows, columns), row-major; arrays do not overlap unless
 * said. Arguments are trusted.
 */
#ifndef REF_REF_H
#define REF_REF_H

#include <dcm/status.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "io/quant.h"

/* Threads to use when `asked` were asked for: itself, or all processors for 0 and less. At least 1. */
int ref_threads(int asked);

/* Products up to which a loop has one thread: waking others would cost more than it saves (0 in tests/sanitize). */
#ifndef REF_SHARED_MIN
#define REF_SHARED_MIN (1 << 15)
#endif

/* Number of the calling thread in a parallel loop, from 0. */
int ref_thread(void);

/* sum w[i] x[i], in 16 lanes of double that are added pairwise: lane j takes the terms i with i mod 16 = j, in order.
 */
double ref_dot(const float *w, const double *x, size_t n);

/* sums[r] = ref_dot of row r of w, (rows, n), and x. */
void ref_dots(const float *w, size_t rows, const double *x, size_t n, double *sums);

/*
 * What ends in _float is the same with its sums in float: how far it is from the truth is what the rounding of sums
 * alone does to a model. They are added term by term, in order: n - 1 roundings one after another, which no order of
 * additions exceeds. Exponentials and rotations stay in double and are rounded once.
 */
float ref_dot_float(const float *w, const float *x, size_t n);
void ref_dots_float(const float *w, size_t rows, const float *x, size_t n, float *sums);

/* Halves to floats, exactly. */
void ref_half_to_float(const uint16_t *src, float *dst, size_t n);

/* ---- Linear maps ---- */

typedef enum ref_input {
    REF_PLAIN,
    REF_RMSNORM, /* x / sqrt(mean(x^2) + eps) * gain */
    REF_SWIGLU   /* x is (n, 2 cols): z / (1 + exp(-z)) * x[cols:], z = x[:cols] */
} ref_input;

/* y = act(f(x) w^T + bias + (add ? y : 0)); f(x) is kept in double. */
typedef struct ref_linear_args {
    quant_type type;
    const void *w; /* (rows, cols) as in a file: rows of quant_row_bytes(type, cols) */
    uint32_t rows, cols;
    uint32_t n; /* tokens */
    ref_input input;
    const float *x;    /* (n, cols), or (n, 2 cols) for REF_SWIGLU */
    const float *gain; /* (cols), REF_RMSNORM only */
    float eps;
    const float *bias; /* (rows), or NULL */
    float *y;          /* (n, ldy), of which the first `rows` of each row are written */
    size_t ldy;
    bool add;
    bool elu; /* act is ELU: z for z > 0, expm1(z) below; else none */
} ref_linear_args;

/* DCM_ERR_MEMORY when the buffers for f(x) and a row of w a thread do not fit. */
dcm_status ref_linear(const ref_linear_args *args, int threads);
dcm_status ref_linear_float(const ref_linear_args *args, int threads);

/* x[i] = row ids[i] of the table (any number of rows, cols); x is (n, cols). */
void ref_embed(quant_type type, const void *table, uint32_t cols, const int32_t *ids, uint32_t n, float *x);

/* ---- The cache ---- */

enum {
    REF_SLOT_BITS = 26, /* a slot is block << REF_SLOT_BITS | unit within the block */
    REF_HEAD_MAX = 1024 /* most channels of a head */
};

/*
 * Unit slots in blocks. In a block of U units, channel c of KV head h of keys (w = 0) or values (w = 1) of layer l of
 * unit u is element (((l * 2 + w) * kv_heads + h) * U + u) * head_dim + c.
 */
typedef struct ref_pool {
    uint32_t layers, kv_heads, head_dim; /* head_dim is even, at most REF_HEAD_MAX */
    bool half;                           /* elements are IEEE halves; else floats */
    bool half_split;                     /* RoPE pairs are channels (i, i + head_dim/2); else (2i, 2i+1) */
    void *const *block;
    const uint32_t *block_units;
} ref_pool;

/* A rotation: head_dim / 2 pairs (cos, sin); pair i turns the i-th channel pair: (x c - y s, x s + y c). */

/*
 * Token t's keys, turned by key_rot[t], and its values, into unit slots[t] of `layer`. qkv is (n, (heads + 2 kv_heads)
 * * head_dim); key_rot is (n, head_dim). Stored halves are rounded from the float result, ties to even.
 */
void ref_kv_store(const ref_pool *pool, uint32_t layer, const float *qkv, uint32_t heads, uint32_t n,
                  const uint32_t *slots, const float *key_rot, int threads);

/* A run of units, oldest first: unit j of `count` is in slot ring[(begin + j) & mask]. */
typedef struct ref_range {
    const uint32_t *ring;
    uint32_t mask, begin, count;
    const float *bias;     /* (kv_heads) added to the scores */
    const float *rotation; /* of the query for this range: (head_dim) */
} ref_range;

/*
 * One query: out = softmax(q . K / sqrt(head_dim) + bias) V over all units of the ranges, in their order; query head h
 * reads KV head h / (heads / kv_heads). q and out are (heads, head_dim). DCM_ERR_MEMORY when the scores do not fit.
 */
dcm_status ref_attention(const ref_pool *pool, uint32_t layer, const ref_range *ranges, uint32_t n_ranges,
                         const float *q, uint32_t heads, float *out, int threads);
dcm_status ref_attention_float(const ref_pool *pool, uint32_t layer, const ref_range *ranges, uint32_t n_ranges,
                               const float *q, uint32_t heads, float *out, int threads);

enum { REF_RANGES = 14 }; /* most of a query */

/* What a query sees, and a unit: its slot and the rotation of its anchor. */
typedef struct ref_query {
    uint32_t n_ranges;
    ref_range range[REF_RANGES];
} ref_query;

typedef struct ref_unit {
    uint32_t slot;
    const float *rotation;
} ref_unit;

/* Gradients of ref_attention for n queries, as attention_back_args of ops/grad.h. Every unit of a range is one of
 * `unit`. */
typedef struct ref_attention_back_args {
    uint32_t layer, heads, n, units;
    const ref_query *query; /* (n) */
    const ref_unit *unit;   /* (units) */
    const float *qkv;       /* (n, (heads + 2 kv_heads) head_dim): queries */
    const float *out, *dout;
    float boundary;
    bool sinks;
    float *lse, *dqkv, *dunits, *dscores;
} ref_attention_back_args;

/* DCM_ERR_MEMORY when the sums do not fit. */
dcm_status ref_attention_back(const ref_pool *pool, const ref_attention_back_args *args, int threads);

/* ---- Merges ---- */

/* Units a (older) and b into slot `out`. The merges of one call touch different units, but for out, which may be a or
 * b. */
typedef struct ref_merge {
    uint32_t a, b, out, level;
} ref_merge;

/* Merges of layers `layer` .. `layer` + layers - 1. */
typedef struct ref_merges {
    const ref_merge *merge; /* (n) */
    const float *rotations; /* (n, 3, head_dim): the anchors of a, of b and of the result */
    uint32_t n, layer, layers;
} ref_merges;

/*
 * Row ((m * layers + l) * 2 + w) * kv_heads + h of x is [a ; b] of merge m, layer `layer` + l, keys (w = 0; turned back
 * by the anchors of a and b, in half-split channel order) or values (w = 1, as stored), KV head h. x is (n * layers * 2
 * * kv_heads, 2 head_dim).
 */
void ref_merge_gather(const ref_pool *pool, const ref_merges *merges, float *x, int threads);

typedef enum ref_merge_mode {
    REF_CONSTANT, /* weight a + (1 - weight) b */
    REF_GATE,     /* s a + (1 - s) b, s = 1 / (1 + exp(-head[row])) */
    REF_DIRECT,   /* head[row]: (rows, head_dim), keys in half-split channel order */
    REF_COPY      /* a as it is stored; rotations are not read */
} ref_merge_mode;

/* Merge into slots `out`: keys are turned back, merged, turned by the result's anchor. Rows as in ref_merge_gather. */
void ref_merge_apply(const ref_pool *pool, const ref_merges *merges, ref_merge_mode mode, float weight,
                     const float *head, int threads);

/* Numbers of the units that a merge is made of. */
typedef struct ref_sources {
    uint32_t a, b;
} ref_sources;

/* Gradients of the units that merges of one layer are made of, and made: (units, 2, kv_heads, head_dim), keys without
 * rotation, channels as stored. Results are units first, first + 1, ... */
typedef struct ref_merge_grads {
    const ref_sources *source; /* (merges) */
    uint32_t first;
    float *dunits;
} ref_merge_grads;

/* The way back through ref_merge_apply: dhead is written, sources' gradients are added to; not for REF_COPY. */
void ref_merge_apply_back(const ref_pool *pool, const ref_merges *merges, ref_merge_mode mode, float weight,
                          const float *head, float *dhead, const ref_merge_grads *grads, int threads);

/* The way back through ref_merge_gather of n merges of one layer: dx is added to the sources' gradients. */
void ref_merge_gather_back(const ref_pool *pool, uint32_t n, const float *dx, const ref_merge_grads *grads,
                           int threads);

#endif
