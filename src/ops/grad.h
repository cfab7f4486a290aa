/*
 * The op table of training: gradients of a loss with respect to what ops.h computes. Every op has a reference (sums in
 * double) and an OpenCL form. All gradients are f32; `d` before a name is the gradient with respect to it. Nothing here
 * uses atomic sums: the same inputs give the same bits.
 *
 * A sequence is one step of n tokens from an empty cache (chunk >= n), so that every unit that it ever made, merged or
 * not, is in the pool when the forward pass ends. Weights are frozen: products go backward through `linear` with a
 * transposed matrix (train/transposed.h).
 */
#ifndef OPS_GRAD_H
#define OPS_GRAD_H

#include "ops/ops.h"

enum { GRAD_UNIT_WORDS = 8 };

/*
 * A unit of the sequence and who sees it; GRAD_UNIT_WORDS words. Units are numbered: unit t < n is token t's, then
 * merged ones in the order of the step's merges (unit n + m is merge m's result). A unit is seen by a run of queries.
 */
typedef struct grad_unit {
    uint32_t slot;
    uint32_t ring;       /* view_range.ring of its level (or the sinks') */
    uint32_t first, end; /* queries first .. end - 1 see it */
    uint32_t rotation;   /* of its anchor: word in the step's data */
    uint32_t level;
    uint32_t a, b; /* numbers of the units merged into it; both UINT32_MAX for a token's */
} grad_unit;

/* The units of a step on the device. */
typedef struct grad_units {
    buffer *list; /* (count) grad_unit */
    uint32_t count;
} grad_units;

/* dx (+)= the gradient of y = x / sqrt(mean(x^2) + eps) * gain, row by row. */
typedef struct norm_back_args {
    uint32_t n, cols;
    buffer *x; /* (n, cols) */
    size_t x_offset;
    buffer *gain; /* (cols) */
    float eps;
    buffer *dy; /* (n, cols) */
    buffer *dx; /* (n, cols) */
    size_t dx_offset;
    bool add; /* add to what dx holds */
} norm_back_args;

/* y = silu(x[:cols]) * x[cols:], row by row. */
typedef struct swiglu_back_args {
    uint32_t n, cols;
    buffer *x;  /* (n, 2 cols) */
    buffer *dy; /* (n, cols) */
    buffer *dx; /* (n, 2 cols), written; may be x */
} swiglu_back_args;

/*
 * Attention of one layer. Written: the queries' part of dqkv (rows as qkv), and of all units dscores and dunits:
 * (count, 2, kv_heads, head_dim), keys (0) with the rotation undone and values (1), channels in the cache's order.
 * `lse` is scratch of (n, heads, 2) floats: the log of the sum of exp(scores), and dout . out.
 * Boundary term (weight 0: none): adds boundary x (1/Z) sum over tokens, heads and neighbouring ranges of a view of
 * |exp(s_a - s_b) - 1| to the loss, s_a the score of the older range's newest unit and s_b that of the newer range's
 * oldest one, Z the number of such terms; pairs whose ratio is over 1e3 or under 1e-3 are skipped. Sinks are no such
 * neighbour: no merge changes them.
 */
typedef struct attention_back_args {
    kv_pool *pool;
    const step *step;
    const grad_units *units;
    uint32_t layer;
    rope_kind rope;
    buffer *qkv; /* (n, (heads + 2 kv_heads) head_dim) */
    uint32_t heads;
    buffer *out, *dout; /* (n, heads head_dim) */
    float boundary;     /* weight / Z */
    bool sinks;         /* a view's first range is that of the sinks */
    buffer *lse;
    buffer *dqkv;
    buffer *dunits;
    buffer *dscores; /* (count, kv_heads): of each unit, the sum of its scores' gradients */
} attention_back_args;

/* The keys' and values' part of dqkv, written from dunits of the tokens' own units. */
typedef struct kv_store_back_args {
    const step *step;
    uint32_t heads, kv_heads, head_dim;
    buffer *dunits, *dqkv;
} kv_store_back_args;

/*
 * KL(p || q), row by row, p = softmax(target), q = softmax(logits). `loss` gets the rows' values; logits are replaced
 * by scale x (q - p). Exponentials are relative to the row's maximum; rows are independent.
 */
typedef struct kl_back_args {
    uint32_t n, vocab;
    buffer *logits, *target; /* (n, vocab) */
    float scale;
    buffer *loss; /* (n) floats */
    size_t loss_offset;
} kl_back_args;

/* dx += scale x 2 (x - y), and the squared differences' sum of each row into `loss`. */
typedef struct square_back_args {
    uint32_t n, cols;
    buffer *x, *y, *dx; /* (n, cols) */
    float scale;
    buffer *loss; /* (n) floats */
} square_back_args;

/*
 * The merges of `step`, all of one level and of one layer, which made units first .. first + n_merges - 1: the
 * gradients of the units they merged are added to from those of the results, parameters' gradients of the layer too,
 * that of `bias` from the results' dscores.
 * Levels go from the highest down. With `magnitude` m > 0 the loss has the sum over merges and KV heads of m x (|k| /
 * t - 1)^2, t = (|k_a| + |k_b|) / 2 taken as a constant, and its value is added to *loss.
 */
typedef struct merge_score_back_args {
    kv_pool *pool;
    const step *step;
    const grad_units *units;
    uint32_t first;
    uint32_t layer;
    rope_kind rope;
    score_shape shape;
    buffer *params;  /* as in merge_score_args */
    buffer *dparams; /* the same shape */
    buffer *dunits;  /* (units, 2, kv_heads, head_dim) */
    buffer *dscores; /* (units, kv_heads) */
    float magnitude;
    buffer *loss; /* (kv_heads) floats */
} merge_score_back_args;

/*
 * The way back through `dense`: dy is replaced by its product with act', of y's values (1 where y > 0, else y + 1);
 * with that, dx = dy w is written, dy^T x is added to dw and the sums of dy's columns to dbias.
 */
typedef struct dense_back_args {
    uint32_t n, in, out;
    activation act;
    buffer *x;          /* (n, in) */
    buffer *w;          /* (out, in) */
    buffer *y;          /* (n, out); ACT_ELU only */
    buffer *dy;         /* (n, out) */
    buffer *dx;         /* (n, in), or NULL */
    buffer *dw, *dbias; /* (out, in), (out) */
} dense_back_args;

/*
 * The way back through merge_apply of one layer, for merges as in merge_score_back_args: shares of the results'
 * gradients are added to those of the units that they were merged of (none for MERGE_DIRECT), and dhead is written.
 */
typedef struct merge_apply_back_args {
    const kv_pool *pool;
    const step *step;
    const grad_units *units;
    uint32_t first;
    uint32_t layer;
    rope_kind rope;
    merge_mode mode;
    float weight;
    buffer *head, *dhead; /* as merge_apply_args.head; NULL for other modes */
    buffer *dunits;       /* (units, 2, kv_heads, head_dim) */
} merge_apply_back_args;

/* The way back through merge_gather of one layer, for such merges: dx is added to the gradients of their units. */
typedef struct merge_gather_back_args {
    const kv_pool *pool; /* for its shape */
    const step *step;
    const grad_units *units;
    uint32_t first;
    rope_kind rope;
    buffer *dx;     /* (n_merges * 2 * kv_heads, 2 * head_dim) */
    buffer *dunits; /* (units, 2, kv_heads, head_dim) */
} merge_gather_back_args;

typedef struct grad_ops {
    dcm_status (*merge_score_back)(backend *, const merge_score_back_args *);
    dcm_status (*norm_back)(backend *, const norm_back_args *);
    dcm_status (*swiglu_back)(backend *, const swiglu_back_args *);
    dcm_status (*attention_back)(backend *, const attention_back_args *);
    dcm_status (*kv_store_back)(backend *, const kv_store_back_args *);
    dcm_status (*kl_back)(backend *, const kl_back_args *);
    dcm_status (*square_back)(backend *, const square_back_args *);
    dcm_status (*dense_back)(backend *, const dense_back_args *);
    dcm_status (*merge_apply_back)(backend *, const merge_apply_back_args *);
    dcm_status (*merge_gather_back)(backend *, const merge_gather_back_args *);
} grad_ops;

#endif
