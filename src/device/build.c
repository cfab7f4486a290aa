#include "device/build.h"

#include <dcm/log.h>

#include "base/memory.h"

#include <stdio.h>
#include <string.h>

/* The embedded text whose name is the first `size` bytes of `name`. */
static const cl_source *find_source(const char *name, size_t size)
{
    for (const cl_source *s = cl_sources; s->family; s++)
        if (strlen(s->family) == size && memcmp(s->family, name, size) == 0)
            return s;
    return NULL;
}

/* Add text `i`: its #line, then itself. */
static dcm_status add_text(program_source *source, int i, const char *name, size_t size)
{
    const cl_source *file = find_source(name, size);
    if (!file)
        return dcm_fail(DCM_ERR_DEVICE, "kernel family %.*s is not part of this build of dcm", (int)size, name);
    const int n = snprintf(source->line[i], sizeof source->line[i], "\n#line 1 \"%s\"\n", file->file);
    source->file[i] = file->file;
    source->part[2 * i] = source->line[i];
    source->size[2 * i] = (size_t)n;
    source->part[2 * i + 1] = (const char *)file->text;
    source->size[2 * i + 1] = file->size;
    return DCM_OK;
}

dcm_status program_source_init(program_source *source, const cldev *device, const char *family, const char *options)
{
    memset(source, 0, sizeof *source);
    for (int i = 0; i < PROGRAM_PARTS; i++)
        source->part[i] = "";
    source->family = family;
    dcm_status status = add_text(source, 0, "common", strlen("common"));
    const char *name = family;
    for (int i = 1; i < PROGRAM_TEXTS && *name && status == DCM_OK; i++) {
        const size_t size = strcspn(name, "+");
        status = add_text(source, i, name, size);
        name += size + (name[size] == '+');
    }
    if (status != DCM_OK)
        return status;
    if (*name)
        return dcm_fail(DCM_ERR_DEVICE, "kernel family %s: more than %d files", family, PROGRAM_TEXTS - 1);
    /*
     * Never fast-math: the bounds of the kernels' tests count on IEEE arithmetic. No warnings (-w): for a CPU without
     * AVX-512 PoCL's compiler counts them on stderr, one for each function that returns a vector of 16.
     */
    const int n = snprintf(source->options, sizeof source->options, "-cl-std=CL1.2 -w%s%s%s%s",
                           device->limits.exact_divide ? " -cl-fp32-correctly-rounded-divide-sqrt" : "",
                           device->limits.prefetch_builtin ? " -DPREFETCH_BUILTIN=1" : "",
                           options && *options ? " " : "", options ? options : "");
    if (n < 0 || (size_t)n >= sizeof source->options)
        return dcm_fail(DCM_ERR_DEVICE, "kernel family %s: its build options are too long", family);
    return DCM_OK;
}

/* File and line of the line `n` of all the parts together, from 1; both parts' texts follow a line feed and a #line. */
static bool locate(const program_source *source, size_t n, const char **file, size_t *line)
{
    size_t before = 0; /* line feeds of the parts before */
    for (int i = 0; i < PROGRAM_PARTS; i++) {
        size_t feeds = 0;
        for (size_t k = 0; k < source->size[i]; k++)
            feeds += source->part[i][k] == '\n';
        if (i % 2 == 1 && n > before && n <= before + feeds) {
            *file = source->file[i / 2];
            *line = n - before;
            return true;
        }
        before += feeds;
    }
    return false;
}

/* One line of a log. A compiler that passes over #line says "<kernel>:N" or the like: the place is put before it. */
static void show_line(const program_source *source, const char *text, dcm_log_level level)
{
    const char *end = strchr(text, '>'), *file;
    size_t n, line;
    if (text[0] == '<' && end && sscanf(end, ">:%zu:", &n) == 1 && locate(source, n, &file, &line))
        dcm_log(level, "| %s:%zu: %s", file, line, text);
    else
        dcm_log(level, "| %s", text);
}

/* The build log line by line, each as one message. */
static void show_log(const cldev *device, const program_source *source, cl_program program, dcm_log_level level)
{
    size_t size = 0;
    char *text = NULL;
    if (clGetProgramBuildInfo(program, device->id, CL_PROGRAM_BUILD_LOG, 0, NULL, &size) != CL_SUCCESS || size == 0)
        return;
    if (mem_new(&text, size + 1, 1, "build log") != DCM_OK)
        return;
    if (clGetProgramBuildInfo(program, device->id, CL_PROGRAM_BUILD_LOG, size, text, NULL) == CL_SUCCESS) {
        char *rest = text;
        for (char *line = strtok_r(text, "\r\n", &rest); line; line = strtok_r(NULL, "\r\n", &rest))
            show_line(source, line, level);
    }
    mem_free(&text);
}

static dcm_status build_from_source(cldev *device, const program_source *source, bool quiet, cl_program *out)
{
    dcm_status status = DCM_OK;
    cl_int error;
    const char *part[PROGRAM_PARTS];
    memcpy(part, source->part, sizeof part);
    cl_program program = clCreateProgramWithSource(device->context, PROGRAM_PARTS, part, source->size, &error);
    DCM_TRY(status, fail, cldev_check(error, "clCreateProgramWithSource(...)"));
    error = clBuildProgram(program, 1, &device->id, source->options, NULL, NULL);
    if (error != CL_SUCCESS) {
        const dcm_log_level level = quiet ? DCM_LOG_DEBUG : DCM_LOG_QUIET;
        dcm_log(level, "kernel family %s on %s: build with \"%s\" failed, the compiler says:", source->family,
                device->limits.name, source->options);
        show_log(device, source, program, level);
        char tiers[128];
        cldev_tiers_used(device, tiers, sizeof tiers);
        if (*tiers)
            dcm_log(level, "it may build without some of the device's tiers (--tier, params.tiers): %s", tiers);
        /* Whatever the error's name: a build that fails is the device's trouble. */
        cldev_check(error, "clBuildProgram(...)");
        status = dcm_fail_in(DCM_ERR_DEVICE, "kernel family %s does not build on %s (%s, driver %s)", source->family,
                             device->limits.name, device->limits.platform, device->limits.driver);
        goto fail;
    }
    *out = program;
    return DCM_OK;
fail:
    if (program)
        clReleaseProgram(program);
    return status;
}

dcm_status program_build(cldev *device, const program_source *source, bool quiet, cl_program *program)
{
    const bool cached = !device->limits.own_cache;
    const uint64_t key = cached ? binary_key(device, source) : 0;
    *program = NULL;
    if (cached)
        binary_load(device, source, key, program);
    if (*program)
        return DCM_OK;
    const dcm_status status = build_from_source(device, source, quiet, program);
    if (status == DCM_OK && cached)
        binary_store(source, key, *program);
    return status;
}

dcm_status cldev_build(cldev *device, const char *family, const char *options, cl_program *program)
{
    program_source source;
    *program = NULL;
    const dcm_status status = program_source_init(&source, device, family, options);
    return status == DCM_OK ? program_build(device, &source, false, program) : status;
}
