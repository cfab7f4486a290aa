/* What dcm keeps for itself in the cache folder, built kernels and tuning: read, written, and removed when unused. */
#ifndef DEVICE_KEPT_H
#define DEVICE_KEPT_H

#include "base/file.h"

/* file_map_own. A file that is mapped counts as used: its time of modification, where over a day ago, becomes now. */
dcm_status kept_map(file_map *map, const char *path);

/*
 * file_write_atomic; `path` is file_cache_path's. After a success the folder is swept: programs and tuning (names as
 * binary_path and tuning_path give them) that were not used for 90 days are removed, and what a process left that ended
 * while it wrote one (file_write_atomic's temporary names) after a day. Only regular files of the user's own, in a
 * folder that file_map_own would read; all other names, models first of all, are never touched. What fails there is no
 * failure, and is said at DCM_LOG_DEBUG. Any number of processes may do this at once: one whose file goes builds anew.
 */
dcm_status kept_write(const char *path, const void *data, size_t size);

#endif
