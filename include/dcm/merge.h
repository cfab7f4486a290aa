/* Files of merge models: what one says of itself. */
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
} dcm_merge_info;

/*
 * Read the header of a merge file; whether its weights are whole is found when a session opens it. DCM_ERR_FILE: it
 * cannot be read or is no merge model.
 */
DCM_API dcm_status dcm_merge_get_info(const char *path, dcm_merge_info *info);

#ifdef __cplusplus
}
#endif

#endif
