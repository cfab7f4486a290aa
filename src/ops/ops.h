/*
 * The op table: everything a model does on a device, implemented twice: by the C reference (ops_ref.c over src/ref) and
 * by OpenCL (ops_cl.c and one launcher file a kernel family). Arguments are checked by the callers; back ends trust
 * them.
 *
 * Shapes are written (rows, columns), row-major. Activations are f32. `n` is the number of tokens in the step.
 * Ops of one back end run in the order they are issued; only `read` and `sync` wait. One thread at a time.
 */
#ifndef OPS_OPS_H
#define OPS_OPS_H

#include <dcm/merge.h>
#include <dcm/status.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/memory.h"
#include "io/quant.h"
#include "ops/score.h"

typedef struct backend backend;
typedef struct ops ops;
struct profile;

/* Memory of one back end. `handle` is the back end's own: host memory (ref) or a cl_mem. */
typedef struct buffer {
    backend *owner;
    size_t bytes;
    mem_category category;
    void *handle;
} buffer;

/* A weight matrix (rows, cols) in a layout of the back end's choosing; the values are exactly quant_to_float's. */
typedef struct matrix {
    backend *owner;
    quant_type type; /* as in the file */
    uint32_t rows, cols;
    size_t bytes; /* on the device */
} matrix;

/* ---- The cache as ops see it ---- */

typedef enum kv_type { KV_F16, KV_F32 } kv_type;

enum {
    KV_BLOCKS = 64,    /* most blocks of a pool */
    KV_SLOT_BITS = 26, /* a slot is block << KV_SLOT_BITS | unit within the block */
    VIEW_RANGES = 14,  /* sinks and DCM_LEVELS_MAX levels */
    VIEW_RANGE_WORDS = 8,
    VIEW_WORDS = 8 + VIEW_RANGES * VIEW_RANGE_WORDS,
    MERGE_WORDS = 4
};

static inline uint32_t kv_slot(uint32_t block, uint32_t unit) { return block << KV_SLOT_BITS | unit; }

/*
 * Unit slots in blocks. In a block of U units, channel c of KV head h of keys (w = 0) or values (w = 1) of layer l of
 * unit u is element (((l * 2 + w) * kv_heads + h) * U + u) * head_dim + c.
 */
typedef struct kv_pool {
    uint32_t layers, kv_heads, head_dim;
    kv_type type;
    uint32_t n_blocks;
    buffer *block[KV_BLOCKS];
    uint32_t block_units[KV_BLOCKS];
    buffer *table; /* uint32 slots: the rings of all levels, one after another */
} kv_pool;

/*
 * A run of units of one level in a query's view; 8 words of 4 bytes. Unit j of the range (0 <= j < count, oldest first)
 * is in slot table[ring + ((begin + j) & mask)] and at place `place` + j of the view.
 */
typedef struct view_range {
    uint32_t ring, mask, begin, count, place;
    uint32_t bias; /* word in the step's data: of each layer and KV head, what is added to the range's scores */
    uint32_t reserved[2];
} view_range;

/*
 * What one query sees: its ranges, oldest first; VIEW_WORDS words. Places run from 0 to units - 1 without a gap. The
 * ranges are of different rings, in falling order of `ring`; all that the queries of a step see of a ring is in it at
 * once.
 */
typedef struct view {
    uint32_t n_ranges, units;
    uint32_t reserved[6];
    view_range range[VIEW_RANGES];
} view;

/* One merge: units a (older) and b, both of `level`, into slot `out`; MERGE_WORDS words. */
typedef struct merge_pair {
    uint32_t a, b, out, level;
} merge_pair;

/*
 * Per-step data, uploaded once a step; offsets in 4-byte words into `data`. A rotation is head_dim / 2 pairs (cos,
 * sin), f32, rounded from doubles; pair i turns the i-th channel pair of the model's RoPE kind.
 */
typedef struct step {
    buffer *data;
    uint32_t n; /* tokens */
    uint32_t n_merges;
    uint32_t max_units; /* most units any query of the step sees */
    size_t tokens;      /* (n) int32 ids */
    size_t slots;       /* (n) uint32: the slot of each new unit */
    size_t key_rot;     /* (n) rotations: each new key's anchor */
    size_t views;       /* (n) views */
    size_t query_rot;   /* (n, VIEW_RANGES) rotations: of the query for each range of its view */
    size_t merges;      /* (n_merges) merge_pairs */
    size_t merge_rot;   /* (n_merges, 3) rotations: the anchors of a, of b and of the result */
} step;

/* Which channels form a RoPE pair: (2i, 2i+1), or (i, i + head_dim/2). */
typedef enum rope_kind { ROPE_INTERLEAVED, ROPE_HALF } rope_kind;

/* ---- Arguments ---- */

/* x[i] = row ids[i] of the table. */
typedef struct embed_args {
    const matrix *table; /* (vocab, hidden) */
    const step *step;
    buffer *x; /* (n, hidden) */
} embed_args;

/* What is done to the input of a linear map before the product. */
typedef enum linear_input {
    INPUT_PLAIN,
    INPUT_RMSNORM, /* x / sqrt(mean(x^2) + eps) * gain */
    INPUT_SWIGLU   /* x is (n, 2 cols): silu(x[:cols]) * x[cols:], silu(z) = z / (1 + exp(-z)) */
} linear_input;

/* y = f(x) W^T (+ bias) (+ y). Rows y_offset .. y_offset + w->rows of each token's y of row stride ldy. */
typedef struct linear_args {
    const matrix *w; /* (rows, cols) */
    uint32_t n;
    bool
        many; /* for whatever n the product of many vectors, whose rounding does not depend on n; else of single ones */
    linear_input input;
    buffer *x;       /* (n, cols), or (n, 2 cols) for INPUT_SWIGLU */
    size_t x_offset; /* first element */
    buffer *gain;    /* (cols), INPUT_RMSNORM only */
    float eps;
    buffer *bias; /* (rows), or NULL */
    buffer *y;
    size_t y_offset, ldy;
    bool add; /* add to what y holds */
} linear_args;

/* Rotate each token's keys at their anchors and write keys and values of one layer into the tokens' slots. */
typedef struct kv_store_args {
    kv_pool *pool;
    const step *step;
    uint32_t layer;
    rope_kind rope;
    buffer *qkv; /* (n, (heads + 2 kv_heads) * head_dim): queries, keys, values */
    uint32_t heads;
} kv_store_args;

/*
 * out = softmax(q . K / sqrt(head_dim) + bias) V over each query's view, bias that of each unit's range, the layer and
 * the KV head; query head h reads KV head h / (heads / kv_heads); the query is rotated once per range. The view is cut
 * into splits whose partial results are combined by their log-sum-exp; they depend on `units` alone, and so does the
 * order of all sums.
 */
typedef struct attention_args {
    kv_pool *pool;
    const step *step;
    uint32_t layer;
    rope_kind rope;
    buffer *qkv; /* as in kv_store_args; only the queries are read, unless `store` */
    uint32_t heads;
    buffer *out; /* (n, heads * head_dim) */
    bool many;   /* for whatever n the kernels for many queries; a query's bits depend on its own view alone */
    bool store;  /* of a step of one token: first do what kv_store does, with the same bits */
} attention_args;

/*
 * Inputs of the merge MLP for `layers` layers from `layer` on: row ((m * layers + l) * 2 + w) * kv_heads + h of x is [a
 * ; b] for merge m, layer `layer` + l, keys (w = 0, rotation undone, channels in half-split order whatever the model's
 * RoPE kind) or values (w = 1, as stored), KV head h.
 */
typedef struct merge_gather_args {
    const kv_pool *pool;
    const step *step;
    uint32_t layer, layers;
    rope_kind rope;
    buffer *x; /* (n_merges * layers * 2 * kv_heads, 2 * head_dim) */
} merge_gather_args;

typedef enum activation { ACT_NONE, ACT_ELU } activation;

/* y = act(x w^T + bias): f32 throughout; the dense product of many rows. */
typedef struct dense_args {
    buffer *x;    /* (n, in) */
    buffer *w;    /* (out, in) */
    buffer *bias; /* (out) */
    buffer *y;    /* (n, out) */
    uint32_t n, in, out;
    activation act;
} dense_args;

typedef enum merge_mode {
    MERGE_CONSTANT, /* out = weight a + (1 - weight) b */
    MERGE_GATE,     /* out = s a + (1 - s) b, s = 1 / (1 + exp(-head[row])) */
    MERGE_DIRECT,   /* out = head[row] */
    MERGE_COPY      /* out = a as it is stored, bit for bit; rotations are not read */
} merge_mode;

/*
 * Apply the step's merges to `layers` layers from `layer` on: undo the keys' rotations, merge, rotate at the result's
 * anchor, write the unit into slot `out` (which may be a or b). Rows and channel order as in merge_gather_args.
 */
typedef struct merge_apply_args {
    kv_pool *pool;
    const step *step;
    uint32_t layer, layers;
    rope_kind rope;
    merge_mode mode;
    float weight;
    buffer *head; /* MERGE_GATE: (rows) ; MERGE_DIRECT: (rows, head_dim) */
} merge_apply_args;

/*
 * Apply the step's merges, to `layers` layers from `layer` on by the scorer of ops/score.h; slots
 * and rotations as in merge_apply_args.
 */
typedef struct merge_score_args {
    kv_pool *pool;
    const step *step;
    uint32_t layer, layers;
    rope_kind rope;
    score_shape shape;
    buffer *params;         /* (model's layers, kv_heads, score_layout.row) f32 */
    dcm_merge_choice *seen; /* (n_merges, layers, kv_heads) on the host, filled by the reference alone; may be NULL */
} merge_score_args;

/* One of several operations that follow each other. */
typedef struct op_link {
    enum { LINK_LINEAR, LINK_ATTENTION } kind;
    union {
        linear_args linear;
        attention_args attention;
    };
} op_link;

struct grad_ops;

struct ops {
    /* What training needs beside these: ops/grad.h. */
    const struct grad_ops *grad;

    /* Waits for what runs, then releases the back end. Everything made on it must have been freed. */
    void (*close)(backend *);

    /* DCM_ERR_MEMORY where the device, its largest allocation or max_memory does not allow it, with the bytes asked
     * for. Contents are not set. */
    dcm_status (*buffer_new)(backend *, size_t bytes, mem_category, buffer **);
    void (*buffer_free)(buffer **);
    /* In order with the ops; `data` may be reused on return. */
    dcm_status (*write)(buffer *, size_t offset, const void *data, size_t bytes);
    /* In order with the ops; the two ranges do not overlap. */
    dcm_status (*copy)(buffer *to, size_t to_offset, const buffer *from, size_t from_offset, size_t bytes);
    /* Waits for everything issued before. */
    dcm_status (*read)(buffer *, size_t offset, void *data, size_t bytes);
    dcm_status (*sync)(backend *);

    /* Add what has run to b->profile, waiting for it; from now on count into `to` (NULL: nothing, which costs nothing).
     */
    dcm_status (*profile)(backend *, struct profile *to);

    /* `data`: rows x quant_row_bytes(type, cols) bytes as in the file. Counted as MEM_WEIGHTS. */
    dcm_status (*matrix_new)(backend *, quant_type, uint32_t rows, uint32_t cols, const void *data, matrix **);
    void (*matrix_free)(matrix **);

    dcm_status (*embed)(backend *, const embed_args *);
    dcm_status (*linear)(backend *, const linear_args *);
    dcm_status (*kv_store)(backend *, const kv_store_args *);
    dcm_status (*attention)(backend *, const attention_args *);
    /* `count` links one after another: each may read what those before it wrote; all attentions are of one step,
     * pool, number of heads and RoPE. The same bits as by `linear` and `attention`. */
    dcm_status (*chain)(backend *, const op_link *, size_t count);
    dcm_status (*merge_gather)(backend *, const merge_gather_args *);
    dcm_status (*dense)(backend *, const dense_args *);
    dcm_status (*merge_apply)(backend *, const merge_apply_args *);
    dcm_status (*merge_score)(backend *, const merge_score_args *);
};

/* What is common to all back ends; the first member of each one's own struct. */
struct backend {
    const ops *ops;
    mem_counter memory;
    size_t max_alloc;        /* largest buffer */
    size_t max_memory;       /* most bytes in all */
    uint32_t chunk;          /* what suits the device when a prompt is read: twice the tokens of a step that merges */
    struct profile *profile; /* where launches and times are counted; NULL: nowhere */
};

/* One link by `linear` or `attention`; and `chain` of a back end that gains nothing by it. */
dcm_status link_run(backend *b, const op_link *link);
dcm_status chain_each(backend *b, const op_link *links, size_t count);

/* The C reference with `threads` OpenMP threads (0: all processors). Sums in double, results rounded to float once. */
dcm_status backend_ref_open(backend **out, int threads, size_t max_memory);

/*
 * Let an opened reference add products, norms and attention in float, in the same order, or in double again; a scorer's
 * network is then in float too, as strict computes it.
 */
void backend_ref_sum_floats(backend *b, bool on);

/*
 * Let an opened back end compute strictly, before anything is made on it: the same bits from both kinds and from every
 * OpenCL device, whatever the number of tokens of a step, at the cost of speed; an OpenCL back end's weights are stored
 * as floats. DCM_ERR_DEVICE where an operation tried by itself has other bits on the device than in C: the message has
 * its name and a case. The gradients of ops/grad.h stay as they are.
 */
void backend_ref_strict(backend *b);
dcm_status backend_cl_strict(backend *b);

/* OpenCL on a device that the caller opened and closes after the back end. */
struct cldev;
dcm_status backend_cl_open(backend **out, struct cldev *device, size_t max_memory);

/* Close through the table and set *b to NULL; NULL and pointers to NULL are accepted. */
void backend_close(backend **b);

/* buffer_free and matrix_free through the owner's table; NULL and pointers to NULL are accepted. */
void buffer_free(buffer **b);
void matrix_free(matrix **m);

#endif
