/*
 * The schedule of distance-based compression: which units merge before which token, and how many units there are.
 * Integers only; no device, no model. Source: METHOD of Shen and Hu 2025 (doi 10.3390/app15179482) in the form whose
 * derivation stands in docs/method.md: units of level g are FIFO, and each covers an aligned block of 2^g tokens.
 */
#ifndef DCM_PLAN_H
#define DCM_PLAN_H

#include <dcm/status.h>

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    DCM_GROUP_MIN = 2,
    DCM_GROUP_MAX = 4096,
    DCM_LEVELS_MAX = 13 /* log2(DCM_GROUP_MAX) + 1 */
};

typedef enum dcm_action_kind {
    DCM_ACTION_APPEND, /* nothing but the append itself */
    DCM_ACTION_MERGE,  /* the two oldest units of `level` become the newest of `level` + 1 */
    DCM_ACTION_RETIRE  /* the oldest unit of the near queue joins the far queue; no data moves */
} dcm_action_kind;

/* What is done just before a token is appended. `level`: the level merged from, -1 where none. */
typedef struct dcm_action {
    dcm_action_kind kind;
    int level;
} dcm_action;

/*
 * The schedule's state after n tokens. Level g holds the nodes first[g] .. first[g] + count[g] - 1 of the binary tree:
 * node i of level g covers the tokens sinks + [i 2^g, (i+1) 2^g).
 */
typedef struct dcm_plan {
    uint32_t group;  /* L */
    uint32_t top;    /* k = log2 L, the highest level */
    uint32_t sinks;  /* first tokens that are never merged */
    uint64_t tokens; /* n, sinks counted */
    uint64_t far;    /* units of the far queue: the oldest of level k */
    uint64_t first[DCM_LEVELS_MAX];
    uint64_t count[DCM_LEVELS_MAX]; /* far queue included in level k */
} dcm_plan;

/* Start a schedule. DCM_ERR_USAGE unless `group` is a power of two in DCM_GROUP_MIN .. DCM_GROUP_MAX. */
DCM_API dcm_status dcm_plan_init(dcm_plan *plan, uint32_t group, uint32_t sinks);

/* The action before the next token, in O(log L) from the token count alone; the state is not changed. */
DCM_API dcm_action dcm_plan_peek(const dcm_plan *plan);

/* Do the action and append one token; returns the action done. */
DCM_API dcm_action dcm_plan_step(dcm_plan *plan);

/* Do the actions of `tokens` tokens and append them all, in O(L log L) whatever their number. */
DCM_API void dcm_plan_skip(dcm_plan *plan, uint64_t tokens);

/* Units now, sinks included. */
DCM_API uint64_t dcm_plan_units(const dcm_plan *plan);

/* Units of the near queue now; at most 2L - 1. */
DCM_API uint64_t dcm_plan_near(const dcm_plan *plan);

/* Units after n tokens in closed form, without a state: min(n, S) + N(n - S). `group` must be valid. */
DCM_API uint64_t dcm_units_after(uint32_t group, uint32_t sinks, uint64_t n);

/* T(L) = L (1 + log2 L): the most tokens a full near queue covers. `group` must be valid. */
DCM_API uint64_t dcm_near_coverage(uint32_t group);

#ifdef __cplusplus
}
#endif

#endif
