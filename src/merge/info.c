#include <dcm/merge.h>

#include "base/error.h"
#include "merge/pair_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void read_note(const safetensors *file, const char *key, char *out, size_t size)
{
    const char *text = safetensors_metadata(file, key);
    snprintf(out, size, "%s", text ? text : "");
}

dcm_status dcm_merge_get_info(const char *path, dcm_merge_info *info)
{
    safetensors *file = NULL;
    dcm_status status;
    memset(info, 0, sizeof *info);
    DCM_TRY(status, done, safetensors_open(&file, path));
    const bool score = score_is_ours(file) && !pair_is_ours(file);
    const uint32_t blocks = pair_file_blocks(file);
    if (!score && !blocks)
        DCM_TRY(status, done, dcm_fail(DCM_ERR_FILE, "%s: not a merge model", path));
    info->depth = score ? 0 : blocks * MERGE_LINEARS;
    const char *head = safetensors_find(file, "merge.weight") ? "direct" : "gate";
    snprintf(info->arch, sizeof info->arch, "%s", score ? "score" : head);
    read_note(file, "groups", info->groups, sizeof info->groups);
    read_note(file, "mode", info->mode, sizeof info->mode);
    const char *boundary = safetensors_metadata(file, "boundary");
    info->boundary = boundary ? strtod(boundary, NULL) : NAN;
done:
    safetensors_close(&file);
    return status;
}
