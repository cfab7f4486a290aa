/* Inside src/device: the sources of a program and its binaries in the cache folder. */
#ifndef DEVICE_BUILD_H
#define DEVICE_BUILD_H

#include "device/device.h"

/* Texts of a program: common.cl and the files its family names; each comes behind a #line of its own. */
enum { PROGRAM_TEXTS = 7, PROGRAM_PARTS = 2 * PROGRAM_TEXTS };

/* All that a program is made of. Strings are not NUL-terminated where they are texts of cl/. */
typedef struct program_source {
    const char *family;
    const char *part[PROGRAM_PARTS];
    size_t size[PROGRAM_PARTS];
    const char *file[PROGRAM_TEXTS]; /* for messages; NULL where there are fewer */
    char line[PROGRAM_TEXTS][128];
    char options[1024];
} program_source;

/* The parts of `family` and its full options for `device`. DCM_ERR_DEVICE for a family that is not embedded or options
 * too long. */
dcm_status program_source_init(program_source *source, const cldev *device, const char *family, const char *options);

/* cldev_build; with `quiet` a failed build's log goes to DCM_LOG_DEBUG. */
dcm_status program_build(cldev *device, const program_source *source, bool quiet, cl_program *program);

/*
 * A cached binary: the file's header, then the driver's bytes. All fields are in the machine's own byte order: the
 * cache folder is not moved between machines, and a foreign one fails the check of `magic`.
 */
typedef struct binary_header {
    uint32_t magic, version;
    uint64_t key;      /* also in the file's name */
    uint64_t size;     /* bytes behind the header */
    uint64_t checksum; /* of those bytes */
} binary_header;

/* NULL and the header, or what is wrong with a file's bytes, for a message. */
const char *binary_check(const void *data, size_t size, uint64_t key, binary_header *header);

/* What must be the same for a binary to be used: sources, options, platform, device, driver, version of the format. */
uint64_t binary_key(const cldev *device, const program_source *source);

/* The file's path. Fails without a message to the user where there is no cache folder. */
dcm_status binary_path(char *path, size_t size, const program_source *source, uint64_t key, bool create);

/*
 * The program built from the cached binary, or NULL in *program: there is none, or it is not to be trusted, or it was
 * corrupt or refused by the driver and has been removed. The process's first such finding is a warning, also of
 * binary_store's; later ones are logged.
 */
void binary_load(cldev *device, const program_source *source, uint64_t key, cl_program *program);

/* Keep a built program's binary. What prevents it is logged; a folder that cannot be used, as above. */
void binary_store(const program_source *source, uint64_t key, cl_program program);

#endif
