/*
 * The cache folder: fetched models, built kernels, tuning. Kernels and tuning that nothing read for 90 days are removed
 * when others are written; models and files of other names stay.
 */
#ifndef DCM_FOLDER_H
#define DCM_FOLDER_H

#include <dcm/status.h>

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Where `name` is, or would be, in the cache folder ($DCM_CACHE, else $XDG_CACHE_HOME/dcm, else ~/.cache/dcm), into
 * `path` of `size` bytes. Nothing is made, and nothing needs to be there. Errors: DCM_ERR_FILE (no variable names a
 * folder; no room in `path`).
 */
DCM_API dcm_status dcm_cache_path(const char *name, char *path, size_t size);

#ifdef __cplusplus
}
#endif

#endif
