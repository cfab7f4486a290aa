#define _GNU_SOURCE
#include "base/file.h"

#include <dcm/folder.h>

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, LINKS_MAX = 40 };

static long fail_countdown;

long file_fail_at(long n)
{
    const long left = fail_countdown;
    fail_countdown = n;
    return left;
}

/* True where the call to come is to fail. */
static bool injected(void)
{
    if (fail_countdown <= 0 || --fail_countdown > 0)
        return false;
    errno = EIO;
    return true;
}

/* Map the open file, whose facts are `st`, and close it. */
static dcm_status map_and_close(file_map *map, int fd, const struct stat *st, const char *path)
{
    dcm_status status = DCM_OK;
    if (!S_ISREG(st->st_mode))
        status = dcm_fail(DCM_ERR_FILE, "%s: not a regular file", path);
    else if (st->st_size == 0)
        status = dcm_fail(DCM_ERR_FILE, "%s: the file is empty", path);
    if (status == DCM_OK) {
        void *data = injected() ? MAP_FAILED : mmap(NULL, (size_t)st->st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data == MAP_FAILED)
            status = dcm_fail(DCM_ERR_MEMORY, "%s: cannot map %lld bytes: %s", path, (long long)st->st_size,
                              strerror(errno));
        else
            *map = (file_map){data, (size_t)st->st_size};
    }
    close(fd);
    return status;
}

/* Open without waiting for a pipe's writer; -1 after a message. */
static int open_file(const char *path, int flags, struct stat *st)
{
    const int fd = injected() ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags);
    if (fd >= 0 && !injected() && fstat(fd, st) == 0)
        return fd;
    dcm_fail(DCM_ERR_FILE, "%s: %s", path, flags & O_NOFOLLOW && errno == ELOOP ? "a link" : strerror(errno));
    if (fd >= 0)
        close(fd);
    return -1;
}

dcm_status file_map_open(file_map *map, const char *path)
{
    struct stat st;
    *map = (file_map){0};
    const int fd = open_file(path, 0, &st);
    return fd < 0 ? DCM_ERR_FILE : map_and_close(map, fd, &st, path);
}

/* The user's, and with none of the bits `others` of the mode. */
static bool is_own(const struct stat *st, mode_t others) { return st->st_uid == geteuid() && !(st->st_mode & others); }

dcm_status file_check_folder(const char *path)
{
    struct stat st;
    if (injected() || stat(path, &st) != 0)
        return dcm_fail(DCM_ERR_FILE, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return dcm_fail(DCM_ERR_FILE, "%s: not a folder", path);
    if (!is_own(&st, S_IWOTH))
        return dcm_fail(DCM_ERR_FILE, "%s: the folder belongs to another user, or others can write it", path);
    return DCM_OK;
}

static bool is_there(const char *path) { return access(path, F_OK) == 0 || errno == ELOOP; }

dcm_status file_map_own(file_map *map, const char *path)
{
    char folder[PATH_BYTES];
    struct stat st;
    *map = (file_map){0};
    if (!is_there(path))
        return DCM_OK;
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    if (file_check_folder(folder) != DCM_OK)
        return DCM_ERR_FILE;
    const int fd = open_file(path, O_NOFOLLOW, &st);
    if (fd < 0) /* another process may have removed it meanwhile */
        return is_there(path) ? DCM_ERR_FILE : DCM_OK;
    if (is_own(&st, S_IWGRP | S_IWOTH))
        return map_and_close(map, fd, &st, path);
    close(fd);
    return dcm_fail(DCM_ERR_FILE, "%s: belongs to another user, or others can write it", path);
}

void file_map_close(file_map *map)
{
    if (map->data)
        munmap((void *)(size_t)map->data, map->size);
    *map = (file_map){0};
}

/* Make one folder private to the user, or find it there and to be trusted. */
static dcm_status own_folder(const char *path)
{
    if ((injected() || mkdir(path, 0700) != 0) && errno != EEXIST)
        return dcm_fail(DCM_ERR_FILE, "%s: cannot make the folder: %s", path, strerror(errno));
    return file_check_folder(path);
}

dcm_status file_cache_path(char *path, size_t size, const char *name, int create)
{
    const char *cache = getenv("DCM_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char folder[2048], parent[2048] = "";
    int length;
    if (cache && *cache) {
        length = snprintf(folder, sizeof folder, "%s", cache);
    } else if (xdg && *xdg) {
        length = snprintf(folder, sizeof folder, "%s/dcm", xdg);
        snprintf(parent, sizeof parent, "%s", xdg);
    } else if (home && *home) {
        length = snprintf(folder, sizeof folder, "%s/.cache/dcm", home);
        snprintf(parent, sizeof parent, "%s/.cache", home);
    } else {
        return dcm_fail(DCM_ERR_FILE, "no cache folder: set DCM_CACHE, XDG_CACHE_HOME or HOME");
    }
    if (length < 0 || (size_t)length >= sizeof folder)
        return dcm_fail(DCM_ERR_FILE, "%.64s...: the cache folder's path is too long", folder);
    if (create) {
        if (*parent)
            mkdir(parent, 0700); /* own_folder reports what matters */
        const dcm_status status = own_folder(folder);
        if (status != DCM_OK)
            return status;
    }
    if ((size_t)snprintf(path, size, "%s/%s", folder, name) >= size)
        return dcm_fail(DCM_ERR_FILE, "%s/%s: the path is too long", folder, name);
    return DCM_OK;
}

dcm_status dcm_cache_path(const char *name, char *path, size_t size) { return file_cache_path(path, size, name, 0); }

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        const ssize_t n = injected() ? -1 : write(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

dcm_status file_write_atomic(const char *path, const void *data, size_t size)
{
    char temporary[PATH_BYTES];
    if ((size_t)snprintf(temporary, sizeof temporary, "%s.XXXXXX", path) >= sizeof temporary)
        return dcm_fail(DCM_ERR_FILE, "%s: the path is too long", path);
    const int fd = injected() ? -1 : mkstemp(temporary);
    if (fd < 0)
        return dcm_fail(DCM_ERR_FILE, "%s: cannot write beside it: %s", path, strerror(errno));
    const int failed =
        write_all(fd, data, size) != 0 || injected() || fchmod(fd, 0644) != 0 || injected() || fsync(fd) != 0;
    if (close(fd) != 0 || injected() || failed || injected() || rename(temporary, path) != 0) {
        const int cause = errno;
        unlink(temporary);
        return dcm_fail(DCM_ERR_FILE, "%s: cannot write: %s", path, strerror(cause));
    }
    return DCM_OK;
}

/* Put what the link `name` says in its place: a name of its own, or one in the same folder. */
static bool follow_link(char *name, size_t size)
{
    char to[PATH_BYTES], from[PATH_BYTES];
    const ssize_t n = injected() ? -1 : readlink(name, to, sizeof to - 1);
    if (n < 0)
        return false;
    to[n] = '\0';
    snprintf(from, sizeof from, "%s", name);
    const char *slash = strrchr(from, '/');
    const int folder = *to == '/' || !slash ? 0 : (int)(slash - from) + 1;
    errno = ENAMETOOLONG;
    return (size_t)snprintf(name, size, "%.*s%s", folder, from, to) < size;
}

dcm_status file_write_output(const char *path, const void *data, size_t size)
{
    char name[PATH_BYTES];
    struct stat st = {0};
    if ((size_t)snprintf(name, sizeof name, "%s", path) >= sizeof name)
        return dcm_fail(DCM_ERR_FILE, "%s: the path is too long", path);
    bool there = lstat(name, &st) == 0;
    for (int links = 0; there && S_ISLNK(st.st_mode); links++) {
        errno = ELOOP;
        if (links == LINKS_MAX || !follow_link(name, sizeof name))
            return dcm_fail(DCM_ERR_FILE, "%s: a link that cannot be followed: %s", path, strerror(errno));
        there = lstat(name, &st) == 0;
    }
    if (there && !S_ISREG(st.st_mode))
        return dcm_fail(DCM_ERR_FILE, "%s: not a regular file: it is left as it is", path);
    return file_write_atomic(name, data, size);
}
