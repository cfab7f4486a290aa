/* Building programs and keeping their binaries: damage, foreign folders, several processes at once. */
#define _GNU_SOURCE
#include "build_probe.h"

#include <dcm/log.h>

#include <fcntl.h>
#include <time.h>

#include "base/file.h"
#include "device/build.h"

static size_t occurrences(const char *text, const char *part)
{
    size_t n = 0;
    for (const char *p = text; (p = strstr(p, part)); p += strlen(part))
        n++;
    return n;
}

/* Line of the first `part` in a family's source, from 1. */
static int line_of(const char *family, const char *part)
{
    for (const cl_source *s = cl_sources; s->family; s++)
        if (strcmp(s->family, family) == 0) {
            int line = 1;
            const char *found = memmem(s->text, s->size, part, strlen(part));
            assert_non_null(found);
            for (const char *p = (const char *)s->text; p < found; p++)
                line += *p == '\n';
            return line;
        }
    return 0;
}

/* The build log reaches the user, with the family's own file and line. */
static void build_failure(void **state)
{
    (void)state;
    size_t count;
    char place[64];
    snprintf(place, sizeof place, "cl/probe.cl:%d:", line_of("probe", "float4 sum"));
    cldev_entry *entries = all_devices(&count);
    for (size_t i = 0; i < count; i++) {
        cldev *device = open_with_cache(&entries[i]);
        cl_program program = (cl_program)&count;
        char expected[1024];
        capture_begin();
        const dcm_status status = cldev_build(device, "probe", "-Dsum=1+", &program);
        const char *said = capture_end();
        assert_int_equal(status, DCM_ERR_DEVICE);
        assert_null(program);
        snprintf(expected, sizeof expected,
                 "kernel family probe does not build on %s (%s, driver %s): clBuildProgram(...): ", device->limits.name,
                 device->limits.platform, device->limits.driver);
        assert_memory_equal(dcm_error(), expected, strlen(expected));
        assert_non_null(strstr(said, "dcm: kernel family probe on "));
        assert_non_null(strstr(said, "-Dsum=1+"));
        assert_non_null(strstr(said, "\ndcm: | "));
        assert_non_null(strstr(said, place));
        assert_null(strstr(said, "tiers"));
        assert_int_equal(cldev_probe_tiers(device), DCM_OK);
        cldev_tiers_used(device, expected, sizeof expected);
        capture_begin();
        assert_int_equal(cldev_build(device, "probe", "-Dsum=1+", &program), DCM_ERR_DEVICE);
        said = capture_end();
        assert_true(*expected ? strstr(said, expected) != NULL : strstr(said, "tiers") == NULL);
        assert_int_equal(cldev_build(device, "no_such_family", NULL, &program), DCM_ERR_DEVICE);
        assert_string_equal(dcm_error(), "kernel family no_such_family is not part of this build of dcm");
        cldev_close(&device);
    }
    mem_free(&entries);
}

static void options_of_builds(void **state)
{
    (void)state;
    cldev device = {0};
    program_source source;
    char longest[2000];
    assert_int_equal(program_source_init(&source, &device, "probe", "-DA=1"), DCM_OK);
    assert_string_equal(source.options, "-cl-std=CL1.2 -w -DA=1");
    device.limits.exact_divide = true;
    assert_int_equal(program_source_init(&source, &device, "probe", NULL), DCM_OK);
    assert_string_equal(source.options, "-cl-std=CL1.2 -w -cl-fp32-correctly-rounded-divide-sqrt");
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(program_source_init(&source, &device, "probe", longest), DCM_ERR_DEVICE);
    assert_int_equal(program_source_init(&source, &device, "probe+probe+probe+probe+probe+probe", NULL), DCM_OK);
    assert_int_equal(program_source_init(&source, &device, "probe+probe+probe+probe+probe+probe+probe", NULL),
                     DCM_ERR_DEVICE);
}

/* Whatever could change the binary changes the key. */
static void keys(void **state)
{
    (void)state;
    enum { CHANGES = 9 };
    uint64_t key[CHANGES];
    for (int i = 0; i < CHANGES; i++) {
        cldev device = {0};
        program_source source;
        char other[32] = "other text, as long as you like";
        assert_int_equal(program_source_init(&source, &device, i == 1 ? "common" : "probe", i == 2 ? "-DA" : "-DB"),
                         DCM_OK);
        strcpy(device.limits.name, i == 3 ? "n1" : "n");
        strcpy(device.limits.platform, i == 4 ? "p1" : "p");
        strcpy(device.limits.driver, i == 5 ? "d1" : "d");
        strcpy(device.limits.version, i == 6 ? "v1" : "v");
        if (i == 7) /* the same bytes, cut elsewhere */
            source.part[0] = other, source.size[0] = 4, source.part[1] = other + 4, source.size[1] = 6;
        if (i == 8)
            source.part[0] = other, source.size[0] = 5, source.part[1] = other + 5, source.size[1] = 5;
        key[i] = binary_key(&device, &source);
        for (int k = 0; k < i; k++)
            assert_true(key[i] != key[k]);
    }
}

static void make_old(const char *path)
{
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = time(NULL) - 91 * 24 * 3600}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

/* A binary is read where it is right, which keeps it; one that was not read for long goes when another is written. */
static void cache_used(void **state)
{
    (void)state;
    size_t count;
    char path[1024];
    cldev_entry *entries = all_devices(&count);
    for (size_t i = 0; i < count; i++) {
        clear_folder();
        cldev *device = open_with_cache(&entries[i]);
        assert_true(build_and_run(device));
        assert_int_equal(count_files(path, sizeof path), 1);
        make_old(path);
        assert_false(build_and_run(device));
        strcat(device->limits.driver, "+"); /* an update of the driver */
        assert_true(build_and_run(device));
        assert_int_equal(count_files(path, sizeof path), 2);
        make_old(path);
        strcat(device->limits.driver, "+");
        assert_true(build_and_run(device));
        assert_int_equal(count_files(path, sizeof path), 2);
        device->limits.own_cache = true;
        assert_true(build_and_run(device));
        cldev_close(&device);
    }
    mem_free(&entries);
}

typedef struct damaged {
    const char *what; /* as logged */
    long truncate;    /* bytes kept; negative: bytes cut off; 0: all kept */
    long flip;        /* byte to change; negative: from the end; 0: none */
    size_t garbage;   /* bytes put instead of the binary, with a header that is right */
} damaged;

/* Change the file at `path` as `d` says. */
static void damage(const char *path, const damaged *d)
{
    file_map map;
    unsigned char *data = NULL;
    binary_header header;
    assert_int_equal(file_map_open(&map, path), DCM_OK);
    size_t size = map.size;
    assert_int_equal(mem_new(&data, size + d->garbage + sizeof header, 1, "file"), DCM_OK);
    memcpy(data, map.data, size);
    memcpy(&header, data, sizeof header);
    file_map_close(&map);
    if (d->truncate)
        size = d->truncate < 0 ? size - (size_t)-d->truncate : (size_t)d->truncate;
    if (d->flip)
        data[d->flip < 0 ? size - (size_t)-d->flip : (size_t)d->flip] ^= 0x10;
    if (d->garbage) {
        header.size = d->garbage;
        header.checksum = 0xcbf29ce484222325u; /* FNV-1a, written out */
        for (size_t i = 0; i < d->garbage; i++) {
            data[sizeof header + i] = (unsigned char)(i * 37);
            header.checksum = (header.checksum ^ (unsigned char)(i * 37)) * 0x100000001b3u;
        }
        memcpy(data, &header, sizeof header);
        size = sizeof header + d->garbage;
    }
    assert_int_equal(file_write_atomic(path, data, size), DCM_OK);
    mem_free(&data);
}

static void cache_damaged(void **state)
{
    (void)state;
    static const damaged kinds[] = {
        {"truncated", 10, 0, 0},
        {"truncated", sizeof(binary_header), 0, 0},
        {"truncated", -1, 0, 0},
        {"not a program of this version", 0, 1, 0},
        {"not a program of this version", 0, 4, 0},
        {"the binary of another program", 0, 8, 0},
        {"truncated", 0, 16, 0},
        {"damaged", 0, 24, 0},
        {"damaged", 0, sizeof(binary_header), 0},
        {"damaged", 0, -1, 0},
        {"refused by the driver", 0, 0, 500},
    };
    size_t count;
    char path[1024], expected[2048];
    cldev_entry *entries = all_devices(&count);
    dcm_log_set_level(DCM_LOG_INFO);
    for (size_t i = 0; i < count; i++) {
        clear_folder();
        cldev *device = open_with_cache(&entries[i]);
        assert_true(build_and_run(device));
        assert_int_equal(count_files(path, sizeof path), 1);
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            damage(path, &kinds[k]);
            capture_begin();
            const bool source = build_and_run(device);
            const char *said = capture_end();
            snprintf(expected, sizeof expected, "dcm: %s: cached program is %s: removed, building again\n", path,
                     kinds[k].what);
            if (!source || !strstr(said, expected))
                print_error("%s: case %zu: %s\n", device->limits.name, k, said);
            assert_true(source);
            assert_non_null(strstr(said, expected));
            assert_false(build_and_run(device)); /* and the new one is good */
        }
        assert_int_equal(truncate(path, 0), 0);
        assert_true(build_and_run(device));
        assert_int_equal(chmod(path, 0666), 0); /* anybody could have written it */
        assert_true(build_and_run(device));
        assert_false(build_and_run(device));
        cldev_close(&device);
    }
    mem_free(&entries);
}

/* Any byte of a file changed, and any length of it, is seen. */
static void every_byte(void **state)
{
    (void)state;
    enum { BODY = 300 };
    unsigned char file[sizeof(binary_header) + BODY], changed[sizeof file];
    binary_header header = {.size = BODY}, found;
    size_t count;
    char path[1024];
    cldev_entry *entries = all_devices(&count);
    cldev *device = open_with_cache(&entries[0]);
    assert_true(build_and_run(device));
    assert_int_equal(count_files(path, sizeof path), 1);
    file_map map;
    assert_int_equal(file_map_open(&map, path), DCM_OK);
    memcpy(&header, map.data, sizeof header); /* the format's own numbers, over a body that is quickly read */
    header.size = BODY;
    header.checksum = 0xcbf29ce484222325u;
    for (size_t i = 0; i < BODY; i++) {
        file[sizeof header + i] = map.data[sizeof header + i % (map.size - sizeof header)];
        header.checksum = (header.checksum ^ file[sizeof header + i]) * 0x100000001b3u;
    }
    memcpy(file, &header, sizeof header);
    file_map_close(&map);
    assert_null(binary_check(file, sizeof file, header.key, &found));
    for (size_t i = 0; i < sizeof file; i++)
        for (int bit = 0; bit < 8; bit++) {
            memcpy(changed, file, sizeof file);
            changed[i] ^= (unsigned char)(1 << bit);
            assert_non_null(binary_check(changed, sizeof changed, header.key, &found));
        }
    for (size_t size = 0; size < sizeof file; size++)
        assert_non_null(binary_check(file, size, header.key, &found));
    cldev_close(&device);
    mem_free(&entries);
}

/* A folder that is none, or in which nobody can write (DCM_CACHE): kernels are built, and it is said once. */
static void cache_unwritable(void **state)
{
    (void)state;
    size_t count;
    cldev_entry *entries = all_devices(&count);
    cldev *device = open_with_cache(&entries[0]);
    capture_begin();
    const bool first = build_and_run(device), second = build_and_run(device);
    const char *said = capture_end();
    assert_true(first && second);
    assert_int_equal(occurrences(said, "built kernels are not kept"), 1);
    assert_non_null(strstr(said, strcmp(folder, "/proc/self/fd") ? "not a folder" : "cannot write beside it"));
    cldev_close(&device);
    mem_free(&entries);
}

/* What the user is told of damaged files: one line a process, none where all is quiet. */
static void damage_is_said(void **state)
{
    static const damaged flip = {"damaged", 0, -1, 0};
    const bool quiet = getenv("TEST_QUIET") != NULL;
    (void)state;
    size_t count;
    char path[1024];
    cldev_entry *entries = all_devices(&count);
    cldev *device = open_with_cache(&entries[0]);
    assert_true(build_and_run(device));
    assert_int_equal(count_files(path, sizeof path), 1);
    if (quiet)
        dcm_log_set_level(DCM_LOG_QUIET);
    for (int i = 0; i < 2; i++) {
        damage(path, &flip);
        capture_begin();
        const bool source = build_and_run(device);
        const char *said = capture_end();
        assert_true(source);
        assert_int_equal(occurrences(said, "dcm: "), !quiet && i == 0);
        assert_int_equal(occurrences(said, "cached program is damaged: removed, building again"), !quiet && i == 0);
    }
    cldev_close(&device);
    mem_free(&entries);
}

/* A folder that everybody can write: nothing is read from it or written into it, which is said once. */
static void folder_of_all(void **state)
{
    (void)state;
    size_t count;
    char path[1024];
    cldev_entry *entries = all_devices(&count);
    assert_int_equal(mkdir(folder, 0700) | chmod(folder, 0777), 0);
    cldev *device = open_with_cache(&entries[0]);
    capture_begin();
    const bool first = build_and_run(device), second = build_and_run(device);
    const char *said = capture_end();
    assert_true(first && second);
    assert_int_equal(occurrences(said, "dcm: "), 1);
    assert_int_equal(occurrences(said, "others can write it"), 1);
    assert_int_equal(count_files(path, sizeof path), 0);
    cldev_close(&device);
    mem_free(&entries);
}

/* Built from source, with `why` said. */
static void assert_not_used(cldev *device, const char *why)
{
    capture_begin();
    const bool source = build_and_run(device);
    const char *said = capture_end();
    assert_true(source);
    if (!strstr(said, why))
        fail_msg("\"%s\" is not said: %s", why, said);
}

/* Good binaries that somebody else could have put there: not used, and nothing of others' is removed. */
static void cache_foreign(void **state)
{
    (void)state;
    enum { OTHER = 12345 };
    size_t count;
    char path[1024], away[1040];
    struct stat st;
    cldev_entry *entries = all_devices(&count);
    cldev *device = open_with_cache(&entries[0]);
    dcm_log_set_level(DCM_LOG_INFO);
    assert_true(build_and_run(device));
    assert_int_equal(count_files(path, sizeof path), 1);
    assert_false(build_and_run(device));

    snprintf(away, sizeof away, "%s.away", folder);
    assert_int_equal(rename(path, away), 0);
    assert_int_equal(symlink(away, path), 0);
    assert_not_used(device, "building again"); /* a link: a file takes its place */
    assert_true(lstat(path, &st) == 0 && S_ISREG(st.st_mode) && lstat(away, &st) == 0);
    assert_false(build_and_run(device));

    assert_int_equal(chmod(folder, 0777), 0);
    assert_not_used(device, "others can write it");
    assert_int_equal(chmod(folder, 0700), 0);
    assert_false(build_and_run(device));

    if (geteuid() == 0) { /* only root can give files away */
        assert_int_equal(chown(path, OTHER, OTHER), 0);
        assert_not_used(device, "belongs to another user");
        assert_int_equal(lstat(path, &st), 0);
        assert_int_equal(st.st_uid, 0); /* the new one */
        assert_int_equal(chown(folder, OTHER, OTHER), 0);
        assert_not_used(device, "belongs to another user");
        assert_int_equal(chown(path, OTHER, OTHER), 0);
        assert_not_used(device, "belongs to another user");
        assert_int_equal(count_files(path, sizeof path), 1);
        assert_true(lstat(path, &st) == 0 && st.st_uid == OTHER);
    }
    cldev_close(&device);
    mem_free(&entries);
}

/* One of the ten of `ten_at_once`. */
static void build_once(void **state)
{
    (void)state;
    size_t count;
    cldev_entry *entries = all_devices(&count);
    cldev *device = open_with_cache(&entries[0]);
    for (int i = 0; i < 3; i++)
        build_and_run(device);
    assert_false(build_and_run(device));
    cldev_close(&device);
    mem_free(&entries);
}

static void ten_at_once(void **state)
{
    (void)state;
    pid_t child[10];
    char path[1024];
    for (int i = 0; i < 10; i++)
        child[i] = start_case("build_once", NULL, NULL);
    int failed = 0;
    for (int i = 0; i < 10; i++) {
        int status = -1;
        waitpid(child[i], &status, 0);
        failed += status != 0;
    }
    assert_int_equal(failed, 0);
    size_t count;
    mem_free(&(cldev_entry *){all_devices(&count)});
    assert_int_equal(count_files(path, sizeof path), 1); /* no temporary file is left */
}

static const apart_case cases[] = {
    {"build_failure", build_failure},
    {"options_of_builds", options_of_builds},
    {"keys", keys},
    {"cache_used", cache_used},
    {"cache_damaged", cache_damaged},
    {"every_byte", every_byte},
    {"cache_unwritable", cache_unwritable, "DCM_CACHE", "/proc/self/status"},
    {"cache_unwritable", cache_unwritable, "DCM_CACHE", "/proc/self/fd"},
    {"damage_is_said", damage_is_said},
    {"damage_is_said", damage_is_said, "TEST_QUIET", "1"},
    {"folder_of_all", folder_of_all},
    {"cache_foreign", cache_foreign},
    {"ten_at_once", ten_at_once},
    {.name = "build_once", .run = build_once, .hidden = true},
};

int main(int argc, char **argv) { return apart_main(cases, sizeof cases / sizeof *cases, argc, argv); }
