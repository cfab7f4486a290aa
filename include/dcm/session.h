/* Sessions: a model reading and writing tokens with a key-value cache of a given policy. */
#ifndef DCM_SESSION_H
#define DCM_SESSION_H

#include <dcm/merge.h>
#include <dcm/model.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * One sequence of tokens and its cache. Used by one thread at a time, and no two sessions of one device at once: they
 * share its queue and its scratch memory.
 */
typedef struct dcm_session dcm_session;

typedef enum dcm_cache_kind {
    DCM_CACHE_DCM,   /* distance-based compression: the older, the more tokens share a unit */
    DCM_CACHE_FULL,  /* one unit a token */
    DCM_CACHE_WINDOW /* sinks and the most recent tokens */
} dcm_cache_kind;

typedef enum dcm_kv_type { DCM_KV_F16, DCM_KV_F32 } dcm_kv_type;

#define DCM_DEFAULT_SINKS 4

/* Zero-initialise for the defaults. */
typedef struct dcm_cache_params {
    dcm_cache_kind kind;
    uint32_t group;    /* dcm: L, a power of two in 2 .. 4096; 0: 256 */
    int32_t sinks;     /* dcm, window: first tokens never merged nor evicted; 0: DCM_DEFAULT_SINKS; -1: none */
    uint32_t window;   /* window: units in all, sinks and the current token included; must exceed sinks */
    const char *merge; /* dcm: "mean", "newer", the path of a safetensors file, or "auto": the weights shipped for this
                          very model, else "newer" with a warning; NULL: "auto" */
    float log_r;       /* dcm: weight of log r in the scores, beside the biases of a trained merge */
    int32_t far_limit; /* dcm: m units of L tokens weigh together in attention as min(m, far_limit) of them: each one's
                          score is less by log(m / far_limit). 0: max(16, L / 8); -1: no limit, as in the paper */
    dcm_kv_type kv;    /* how keys and values are stored */
    /*
     * Most tokens of one step when several are fed at once, and most units that the cache holds meanwhile beyond those
     * that it needs afterwards: a step of dcm holds two for each of its merges, so that it is of chunk / 2 tokens once
     * units merge. The room for them is given back when a single token is fed. 0: what suits the device, and less where
     * there is no memory for it. Units, levels and places are the same for every chunk, and so are the bits of the
     * result. (Tokens fed one by one are computed by other kernels: the same bits on the reference, elsewhere another
     * rounding of sums.)
     */
    uint32_t chunk;
} dcm_cache_params;

/*
 * Counters of a session since it was opened. Bytes are on the device; those of tables, scratch and weights and the peak
 * are the device's own, all its sessions and models together.
 */
typedef struct dcm_session_stats {
    uint64_t tokens; /* fed */
    uint64_t merges;
    size_t units;           /* in the cache now, sinks included */
    size_t unit_bytes;      /* keys and values of one unit, all layers */
    size_t cache_bytes;     /* allocated for units; more while a prompt is read, until a single token is fed */
    size_t table_bytes;     /* allocated for slot tables and per-step data */
    size_t scratch_bytes;   /* allocated for activations and partial results */
    size_t weight_bytes;    /* the model's weights, and the merge model's */
    size_t peak_bytes;      /* most bytes of all categories at one time */
    uint64_t cache_written; /* bytes written into units: appends and merges */
    const char *merge;      /* the merge in use: "newer", "mean", "gate", "direct" or "score"; "" for full and window */
} dcm_session_stats;

/*
 * Open a session with an empty cache. `params` may be NULL. Errors: DCM_ERR_USAGE (a parameter out of range or without
 * effect for this kind), DCM_ERR_FILE (the merge file), DCM_ERR_MEMORY (also where a chunk that was asked for would
 * not fit: the message says which would), DCM_ERR_DEVICE.
 */
DCM_API dcm_status dcm_session_open(dcm_session **session, dcm_model *model, const dcm_cache_params *params);

/* Close and set *session to NULL; NULL and pointers to NULL are accepted. */
DCM_API void dcm_session_close(dcm_session **session);

/*
 * Feed `count` tokens. With `logits` not NULL the logits after the last token are written there: `vocab` floats,
 * natural order of ids. Errors: DCM_ERR_USAGE (an id outside the vocabulary: nothing is fed), DCM_ERR_MEMORY (the
 * message says how many bytes and what would fit), DCM_ERR_DEVICE. After an error other than
 * DCM_ERR_USAGE the session can only be closed or asked for its counters.
 */
DCM_API dcm_status dcm_session_feed(dcm_session *session, const int32_t *tokens, size_t count, float *logits);

/*
 * The same with the logits after each token: `logits` is (count, vocab), row i after tokens[i]. For scoring a text; the
 * vocabulary product is done for many tokens of a step together, as many as fit into 32 MiB of the device.
 */
DCM_API dcm_status dcm_session_feed_each(dcm_session *session, const int32_t *tokens, size_t count, float *logits);

/*
 * For measuring at a depth without reading up to it: put an empty session into the state that it has after `tokens`
 * tokens fed one by one. Units, their places and levels, slots and bytes are those of that state, and feeding goes on
 * from there by the schedule; what the units hold is random, between -1 and 1, from `seed`, so that results mean
 * nothing. Counters are as if the tokens had been fed. Errors: DCM_ERR_USAGE (something was fed before), DCM_ERR_MEMORY
 * (as when feeding), DCM_ERR_DEVICE; after the last two the session can only be closed or asked for its counters.
 */
DCM_API dcm_status dcm_session_fill(dcm_session *session, uint64_t tokens, uint64_t seed);

/*
 * Tokens that one step of this session takes at most. With full and window caches, feeds of a multiple of it are split
 * into steps of full length; a dcm cache takes about half as many at a time once units merge, and all take less where
 * memory is short.
 */
DCM_API uint32_t dcm_session_chunk(const dcm_session *session);

/*
 * Let a session hold what another one holds, whatever it held before: the same tokens have been fed, the same units are
 * in its cache. Of the same model (by its digest) and policy, but perhaps on another device, and of units in f16 also
 * into f32: for a second opinion on the next steps. Room that `from` has for reading is given back first. Errors:
 * DCM_ERR_USAGE (another model or policy, a session that failed), DCM_ERR_MEMORY, DCM_ERR_DEVICE; after the last two
 * both sessions can only be closed or asked for their counters.
 */
DCM_API dcm_status dcm_session_copy(dcm_session *to, dcm_session *from);

/* What one unit of the cache stands for. */
typedef struct dcm_unit {
    uint64_t first, tokens; /* its first token, from 0, and how many */
    uint32_t level;         /* tokens is 2^level; 0 for all units of full and window, and for sinks */
} dcm_unit;

/*
 * Read one layer of the cache, for comparing devices: its units by their places, oldest first, as many as
 * dcm_session_stats.units. `units` (may be NULL) gets what each stands for; `values` (may be NULL) is (units, 2,
 * kv_heads, head_dim): keys as stored, turned by RoPE at the unit's anchor, then values. Waits for the device. Errors:
 * DCM_ERR_USAGE (no such layer, a session that failed), DCM_ERR_MEMORY, DCM_ERR_DEVICE; the session can be used on.
 */
DCM_API dcm_status dcm_session_read_layer(dcm_session *session, uint32_t layer, dcm_unit *units, float *values);

/*
 * Have `seen` told of every merge from now on; NULL: no more. Of one layer and level, merges come in the order of their
 * units, the oldest first. Errors: DCM_ERR_USAGE (not a scorer's merges, or not on the reference).
 */
DCM_API dcm_status dcm_session_watch(dcm_session *session, dcm_merge_seen *seen, void *context);

DCM_API void dcm_session_get_stats(const dcm_session *session, dcm_session_stats *stats);

/*
 * A digest of the parameters of the merge in use, whatever file they came from: equal on every device, 0 where it has
 * none. They are read back from the device. Errors: DCM_ERR_MEMORY, DCM_ERR_DEVICE; the session can be used on.
 */
DCM_API dcm_status dcm_session_merge_digest(dcm_session *session, uint64_t *digest);

/* Bytes a cache of these parameters takes after n tokens (units only); also usable before anything is opened. */
DCM_API dcm_status dcm_cache_bytes(const dcm_model_info *model, const dcm_cache_params *params, uint64_t n,
                                   size_t *units, size_t *bytes);

/* How to choose a token from logits. Zero-initialised: greedy. */
typedef struct dcm_sample_params {
    float temperature; /* 0: the most probable token, the lowest id among equals */
    uint32_t top_k;    /* keep the k most probable; 0: all */
    float top_p;       /* keep the smallest set whose probability reaches p; 0 or 1: all */
} dcm_sample_params;

/*
 * Choose a token. `rng` is the caller's generator state, any value to begin with; the same state and logits give the
 * same token. A logit that is NaN counts as impossible; where the highest is infinite, or all are impossible, the
 * greedy choice is taken. -1 where memory runs out (never when greedy).
 */
DCM_API int32_t dcm_sample(const float *logits, size_t vocab, const dcm_sample_params *params, uint64_t *rng);

#ifdef __cplusplus
}
#endif

#endif
