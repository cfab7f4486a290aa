/* Merge models: what a file says of itself, and what a scorer decided. */
#ifndef DCM_MERGE_H
#define DCM_MERGE_H

#include <dcm/status.h>

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dcm_merge_info {
    char arch[16];   /* "score", "gate" or "direct" */
    uint32_t depth;  /* of gate and direct: linear maps before the head; 0 for a scorer */
    char groups[64]; /* group lengths that it was trained with, "64,128"; empty: the file does not say */
    char mode[16];   /* dcm_train_mode: "tai" or "chunked"; empty: the file does not say */
    double boundary; /* weight of the boundary term in training; NAN: the file does not say */
} dcm_merge_info;

/*
 * Read the header of a merge file; whether its weights are whole is found when a session opens it. DCM_ERR_FILE: it
 * cannot be read or is no merge model.
 */
DCM_API dcm_status dcm_merge_get_info(const char *path, dcm_merge_info *info);

/*
 * What a scorer decided for one KV head of one layer of a merge: the older unit's key, and its value, counts
 * 1 / (1 + exp(-sharp * gap)), the newer one's counts the rest. So it can be told how far the result moves where the
 * gap is off by a little: near 0 much, elsewhere hardly at all.
 */
typedef struct dcm_merge_choice {
    uint32_t level;  /* of both units */
    float gap;       /* of their scores, older less newer, the level's prior added */
    float sharp[2];  /* keys', values' */
    float spread[2]; /* most that a channel of both keys, of both values, differs by, keys in any common rotation */
} dcm_merge_choice;

/* Told of one layer of one merge; `choice` is (kv_heads) and gone afterwards. */
typedef void dcm_merge_seen(void *context, uint32_t layer, const dcm_merge_choice *choice);

#ifdef __cplusplus
}
#endif

#endif
