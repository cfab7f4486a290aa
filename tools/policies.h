/* Cache policies as texts: "dcm:L=64:S=4:merge=newer", "window:W=auto", "full". */
#ifndef POLICIES_H
#define POLICIES_H

#include <dcm/session.h>

#include "options.h"

enum { POLICIES_MAX = 16, POLICY_TEXT = 512 };

typedef struct policy {
    dcm_cache_params params;
    bool auto_window; /* W is the units of the first policy */
    char *text;       /* owned: as it was given */
    char *merge;      /* owned; params.merge may point to it */
} policy;

typedef struct policy_list {
    policy item[POLICIES_MAX];
    size_t count;
} policy_list;

/*
 * Read --policies: items separated by commas, settings by colons. `kv` where an item does not set it. 0, or 2 after a
 * message; release in any case.
 */
int policies_read(policy_list *list, const char *text, dcm_kv_type kv);
void policies_release(policy_list *list);

/*
 * Index of the policy that --OPTION names by its number from 1 on, its kind (the first of it) or its text. 0, or 2
 * after a message.
 */
int policies_find(const policy_list *list, const char *name, const char *option, int *index);

/* Set every W=auto to the units of the first policy after n tokens. 0, or 2 after a message. */
int policies_resolve(policy_list *list, uint64_t n);

/*
 * What "auto" came to in a session that was opened with `params`, for every policy that has it where that is "newer":
 * it is the same for all of a model, and is said once.
 */
void policies_settle_merge(policy_list *list, const dcm_cache_params *params, const dcm_session *session);

/* The policy with all its settings, into `out`; `merge` as the session names it. A window of 0 units is "auto". */
void policy_text(const dcm_cache_params *params, const char *merge, char *out, size_t size);

#endif
