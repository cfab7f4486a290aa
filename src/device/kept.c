#define _GNU_SOURCE
#include "device/kept.h"

#include <dcm/log.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { DAY = 24 * 3600 /* seconds */, FILE_DAYS = 90, TEMPORARY_DAYS = 1 };

#define HEX4 "[0-9a-f][0-9a-f][0-9a-f][0-9a-f]"
#define HEX16 HEX4 HEX4 HEX4 HEX4
#define LETTERS3 "[0-9A-Za-z][0-9A-Za-z][0-9A-Za-z]"
#define TEMPORARY "." LETTERS3 LETTERS3 /* mkstemp's */

/* Names that dcm gives, and how long such a file is kept after its last use. */
static const struct {
    const char *pattern;
    int days;
} names[] = {
    {"program-*-" HEX16 ".bin", FILE_DAYS},
    {"program-*-" HEX16 ".bin" TEMPORARY, TEMPORARY_DAYS},
    {"tuning-" HEX16 ".json", FILE_DAYS},
    {"tuning-" HEX16 ".json" TEMPORARY, TEMPORARY_DAYS},
};

/* 0: none of dcm's names. */
static int days_of(const char *name)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (fnmatch(names[i].pattern, name, 0) == 0)
            return names[i].days;
    return 0;
}

/* A regular file of the user's own, changed at least `days` ago. */
static bool is_old(const struct stat *st, int days)
{
    return S_ISREG(st->st_mode) && st->st_uid == geteuid() && time(NULL) - st->st_mtime >= (time_t)days * DAY;
}

static void sweep(const char *folder)
{
    struct stat st;
    DIR *dir = file_check_folder(folder) == DCM_OK ? opendir(folder) : NULL;
    if (!dir) {
        dcm_log(DCM_LOG_DEBUG, "%s: unused files are not looked for", folder);
        return;
    }
    for (const struct dirent *entry; (entry = readdir(dir));) {
        const char *name = entry->d_name;
        const int days = days_of(name);
        if (!days || fstatat(dirfd(dir), name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !is_old(&st, days))
            continue;
        const bool removed = unlinkat(dirfd(dir), name, 0) == 0;
        dcm_log(DCM_LOG_DEBUG, "%s/%s: not used for %d days: %s", folder, name, days,
                removed ? "removed" : strerror(errno));
    }
    closedir(dir);
}

dcm_status kept_map(file_map *map, const char *path)
{
    struct stat st;
    const dcm_status status = file_map_own(map, path);
    if (map->data && lstat(path, &st) == 0 && is_old(&st, 1) &&
        utimensat(AT_FDCWD, path, NULL, AT_SYMLINK_NOFOLLOW) != 0)
        dcm_log(DCM_LOG_DEBUG, "%s: its use is not noted: %s", path, strerror(errno));
    return status;
}

dcm_status kept_write(const char *path, const void *data, size_t size)
{
    char folder[4096];
    const dcm_status status = file_write_atomic(path, data, size);
    if (status != DCM_OK)
        return status;
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(path, '/') - path), path);
    sweep(folder);
    return DCM_OK;
}
