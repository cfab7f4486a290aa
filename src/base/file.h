/* Files: read-only mappings, the cache folder, writes that are whole or not at all. */
#ifndef BASE_FILE_H
#define BASE_FILE_H

#include <dcm/status.h>

#include <stdbool.h>
#include <stddef.h>

/* A file mapped read-only. */
typedef struct file_map {
    const unsigned char *data;
    size_t size;
} file_map;

/* Map the regular file at `path`. DCM_ERR_FILE too for an empty one, and at once for a pipe or a device. */
dcm_status file_map_open(file_map *map, const char *path);

/* Unmap; a zeroed map is accepted, and the map is zeroed. */
void file_map_close(file_map *map);

/*
 * As dcm_cache_path; with `create` the folder is made. DCM_ERR_FILE too where it cannot be, or is not to be trusted:
 * what file_map_own would not read is not written.
 */
dcm_status file_cache_path(char *path, size_t size, const char *name, int create);

/*
 * DCM_OK where a folder is to be trusted: it is the user's, and others cannot write it. The group may: each file in it
 * still has to be the user's.
 */
dcm_status file_check_folder(const char *path);

/*
 * Map a file of the cache folder where it can be trusted as far as the user: it is a regular file (no link), it and its
 * folder are the user's, others can write neither, and the group not the file. Where there is none, DCM_OK and an
 * empty map; DCM_ERR_FILE where it is not to be trusted.
 */
dcm_status file_map_own(file_map *map, const char *path);

/*
 * Fault injection for tests: the n-th call of the system from now fails with EIO (1: the next), 0 turns it off. Returns
 * what was left of an earlier count, 0 where it ran out. Not thread-safe.
 */
long file_fail_at(long n);

/*
 * Write to a temporary name in the same folder, flush, then rename over `path`: readers see the old bytes or the new,
 * also after a crash. Whatever has that name, a link too, is replaced: for files of the cache folder.
 */
dcm_status file_write_atomic(const char *path, const void *data, size_t size);

/*
 * The same for a name that a user gave: links are followed, so that the file behind them is replaced (it need not be
 * there), and what is no regular file is left as it is: DCM_ERR_FILE.
 */
dcm_status file_write_output(const char *path, const void *data, size_t size);

#endif
