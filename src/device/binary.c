#define _GNU_SOURCE
#include "device/build.h"

#include <dcm/log.h>

#include "base/hash.h"
#include "base/memory.h"
#include "device/kept.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BINARY_MAGIC = 0x424d4344 /* "DCMB" */, BINARY_VERSION = 1, BINARY_MAX = 64 << 20 /* bytes */ };

uint64_t binary_key(const cldev *device, const program_source *source)
{
    const uint32_t version = BINARY_VERSION;
    uint64_t hash = hash_bytes(HASH_START, &version, sizeof version);
    for (int i = 0; i < PROGRAM_PARTS; i++) {
        hash = hash_bytes(hash, &source->size[i], sizeof source->size[i]);
        hash = hash_bytes(hash, source->part[i], source->size[i]);
    }
    return cldev_hash(hash_text(hash, source->options), &device->limits);
}

dcm_status binary_path(char *path, size_t size, const program_source *source, uint64_t key, bool create)
{
    char name[256];
    snprintf(name, sizeof name, "program-%s-%016" PRIx64 ".bin", source->family, key);
    return file_cache_path(path, size, name, create);
}

const char *binary_check(const void *data, size_t size, uint64_t key, binary_header *header)
{
    if (size < sizeof *header)
        return "truncated";
    memcpy(header, data, sizeof *header);
    if (header->magic != BINARY_MAGIC || header->version != BINARY_VERSION)
        return "not a program of this version";
    if (header->key != key)
        return "the binary of another program";
    if (header->size != size - sizeof *header)
        return "truncated";
    if (header->checksum != hash_bytes(HASH_START, (const char *)data + sizeof *header, header->size))
        return "damaged";
    return NULL;
}

/* NULL where the driver refuses the binary. */
static cl_program create_built(cldev *device, const program_source *source, const unsigned char *data, size_t size)
{
    cl_int error, refused = CL_SUCCESS;
    cl_program program = clCreateProgramWithBinary(device->context, 1, &device->id, &size, &data, &refused, &error);
    if (error == CL_SUCCESS && refused == CL_SUCCESS &&
        clBuildProgram(program, 1, &device->id, source->options, NULL, NULL) == CL_SUCCESS)
        return program;
    if (program) /* NULL where it could not be created */
        clReleaseProgram(program);
    return NULL;
}

/* The level of what the user should know: a warning, but one a process, as each kernel family finds the same anew. */
static dcm_log_level once(void)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    return atomic_flag_test_and_set(&said) ? DCM_LOG_INFO : DCM_LOG_WARN;
}

void binary_load(cldev *device, const program_source *source, uint64_t key, cl_program *program)
{
    char path[4096];
    file_map map = {0};
    binary_header header;
    *program = NULL;
    if (binary_path(path, sizeof path, source, key, false) != DCM_OK)
        return;
    if (kept_map(&map, path) != DCM_OK) {
        dcm_log(once(), "a cached program is not used, building again: %s", dcm_error());
        return;
    }
    if (!map.data)
        return;
    const char *fault = binary_check(map.data, map.size, key, &header);
    if (!fault) {
        *program = create_built(device, source, map.data + sizeof header, header.size);
        fault = *program ? NULL : "refused by the driver";
    }
    file_map_close(&map);
    if (fault) {
        dcm_log(once(), "%s: cached program is %s: removed, building again", path, fault);
        unlink(path);
    }
}

static void say_not_kept(void)
{
    dcm_log(once(), "built kernels are not kept, every start will build them anew: %s", dcm_error());
}

void binary_store(const program_source *source, uint64_t key, cl_program program)
{
    char path[4096];
    unsigned char *file = NULL;
    size_t size = 0;
    if (clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, NULL) != CL_SUCCESS || size == 0 ||
        size > BINARY_MAX) {
        dcm_log(DCM_LOG_INFO, "kernel family %s: the driver gives no binary to keep (%zu bytes)", source->family, size);
        return;
    }
    if (binary_path(path, sizeof path, source, key, true) != DCM_OK) {
        say_not_kept();
        return;
    }
    if (mem_new(&file, sizeof(binary_header) + size, 1, "program binary") != DCM_OK) {
        dcm_log(DCM_LOG_INFO, "kernel family %s: its binary is not kept: %s", source->family, dcm_error());
        return;
    }
    unsigned char *binary = file + sizeof(binary_header);
    if (clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof binary, &binary, NULL) == CL_SUCCESS) {
        const binary_header header = {BINARY_MAGIC, BINARY_VERSION, key, size, hash_bytes(HASH_START, binary, size)};
        memcpy(file, &header, sizeof header);
        if (kept_write(path, file, sizeof header + size) != DCM_OK)
            say_not_kept();
    } else {
        dcm_log(DCM_LOG_INFO, "kernel family %s: the driver does not give its binary", source->family);
    }
    mem_free(&file);
}
