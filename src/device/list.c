#include "device/device.h"

#include "base/hash.h"
#include "base/memory.h"
#include "device/list.h"
#include "device/quirks.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define PLATFORM_NOT_FOUND_KHR (-1001) /* cl_khr_icd: the loader found no platform */
#define PCI_BUS_INFO_KHR 0x410F        /* cl_khr_pci_bus_info: domain, bus, device, function */
#define PCI_BUS_ID_NV 0x4008           /* cl_nv_device_attribute_query; beside it: slot (device and function), domain */
#define PCI_SLOT_ID_NV 0x4009
#define PCI_DOMAIN_ID_NV 0x400A

/* Drivers pad names with blanks. */
static void trim(char *text)
{
    size_t begin = 0, end = strlen(text);
    while (end && isspace((unsigned char)text[end - 1]))
        end--;
    while (begin < end && isspace((unsigned char)text[begin]))
        begin++;
    memmove(text, text + begin, end - begin);
    text[end - begin] = '\0';
}

/* A text that the driver does not give, or that is longer than `out`, is cut: it is for people and keys only. */
static void device_text(cl_device_id id, cl_device_info what, char *out, size_t size)
{
    char text[4096] = "";
    if (clGetDeviceInfo(id, what, sizeof text - 1, text, NULL) != CL_SUCCESS)
        text[0] = '\0';
    trim(text);
    snprintf(out, size, "%.*s", (int)size - 1, text);
}

static void platform_text(cl_platform_id id, cl_platform_info what, char *out, size_t size)
{
    char text[4096] = "";
    if (clGetPlatformInfo(id, what, sizeof text - 1, text, NULL) != CL_SUCCESS)
        text[0] = '\0';
    trim(text);
    snprintf(out, size, "%.*s", (int)size - 1, text);
}

static cl_ulong device_number(cl_device_id id, cl_device_info what, size_t size)
{
    cl_ulong wide = 0;
    cl_uint narrow = 0;
    if (size == sizeof narrow)
        return clGetDeviceInfo(id, what, size, &narrow, NULL) == CL_SUCCESS ? narrow : 0;
    return clGetDeviceInfo(id, what, sizeof wide, &wide, NULL) == CL_SUCCESS ? wide : 0;
}

bool cldev_claims(cl_device_id id, const char *const *extensions)
{
    size_t size = 0;
    char *text = NULL;
    bool claimed = false;
    if (clGetDeviceInfo(id, CL_DEVICE_EXTENSIONS, 0, NULL, &size) != CL_SUCCESS ||
        mem_new(&text, size + 1, 1, "extensions") != DCM_OK)
        return false;
    if (clGetDeviceInfo(id, CL_DEVICE_EXTENSIONS, size, text, NULL) == CL_SUCCESS) {
        char *rest = text;
        for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
            for (const char *const *e = extensions; *e; e++)
                claimed = claimed || strcmp(word, *e) == 0;
    }
    mem_free(&text);
    return claimed;
}

/* Two extensions tell where a device is plugged in; most CPU drivers have neither. */
static void query_pci(cl_device_id id, char *out, size_t size)
{
    static const char *const khr[] = {"cl_khr_pci_bus_info", NULL};
    static const char *const nv[] = {"cl_nv_device_attribute_query", NULL};
    cl_uint at[4] = {0}, slot = 0;
    out[0] = '\0';
    if (!cldev_claims(id, khr) || clGetDeviceInfo(id, PCI_BUS_INFO_KHR, sizeof at, at, NULL) != CL_SUCCESS) {
        if (!cldev_claims(id, nv) ||
            clGetDeviceInfo(id, PCI_BUS_ID_NV, sizeof at[1], &at[1], NULL) != CL_SUCCESS ||
            clGetDeviceInfo(id, PCI_SLOT_ID_NV, sizeof slot, &slot, NULL) != CL_SUCCESS)
            return;
        if (clGetDeviceInfo(id, PCI_DOMAIN_ID_NV, sizeof at[0], &at[0], NULL) != CL_SUCCESS)
            at[0] = 0;
        at[2] = slot >> 3;
        at[3] = slot & 7;
    }
    snprintf(out, size, "%04x:%02x:%02x.%x", at[0], at[1], at[2], at[3]);
}

static bool at_least_1_2(const char *version)
{
    unsigned major = 0, minor = 0;
    return sscanf(version, "OpenCL %u.%u", &major, &minor) == 2 && (major > 1 || minor >= 2);
}

static void query_limits(cl_platform_id platform, cl_device_id id, cldev_limits *l)
{
    platform_text(platform, CL_PLATFORM_NAME, l->platform, sizeof l->platform);
    device_text(id, CL_DEVICE_NAME, l->name, sizeof l->name);
    device_text(id, CL_DEVICE_VENDOR, l->vendor, sizeof l->vendor);
    device_text(id, CL_DRIVER_VERSION, l->driver, sizeof l->driver);
    device_text(id, CL_DEVICE_VERSION, l->version, sizeof l->version);
    device_text(id, CL_DEVICE_OPENCL_C_VERSION, l->c_version, sizeof l->c_version);
    query_pci(id, l->pci, sizeof l->pci);
    l->type = device_number(id, CL_DEVICE_TYPE, sizeof(cl_ulong));
    l->compute_units = (uint32_t)device_number(id, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof(cl_uint));
    l->memory = device_number(id, CL_DEVICE_GLOBAL_MEM_SIZE, sizeof(cl_ulong));
    l->max_alloc = device_number(id, CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof(cl_ulong));
    l->local_memory = device_number(id, CL_DEVICE_LOCAL_MEM_SIZE, sizeof(cl_ulong));
    l->cache = device_number(id, CL_DEVICE_GLOBAL_MEM_CACHE_SIZE, sizeof(cl_ulong));
    l->max_work_group = device_number(id, CL_DEVICE_MAX_WORK_GROUP_SIZE, sizeof(size_t));
    l->unified = device_number(id, CL_DEVICE_HOST_UNIFIED_MEMORY, sizeof(cl_bool));
    l->exact_divide =
        device_number(id, CL_DEVICE_SINGLE_FP_CONFIG, sizeof(cl_ulong)) & CL_FP_CORRECTLY_ROUNDED_DIVIDE_SQRT;
    /* Without its type a CPU would be given kernels for GPUs, which PoCL 3.1 compiles to wrong ones. */
    const bool known = l->type && l->compute_units && l->memory && l->max_alloc && l->local_memory &&
                       l->max_work_group >= CLDEV_GROUP_LEAST;
    l->usable = known && device_number(id, CL_DEVICE_AVAILABLE, sizeof(cl_bool)) &&
                device_number(id, CL_DEVICE_COMPILER_AVAILABLE, sizeof(cl_bool)) &&
                device_number(id, CL_DEVICE_ENDIAN_LITTLE, sizeof(cl_bool)) && at_least_1_2(l->version);
    l->wide_items = l->type & CL_DEVICE_TYPE_CPU;
    l->prefetch_builtin = l->type & CL_DEVICE_TYPE_CPU;
#if defined(__x86_64__) || defined(__i386__)
    l->ordered = l->type & CL_DEVICE_TYPE_CPU;
#endif
    l->vector_floats = (uint32_t)device_number(id, CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT, sizeof(cl_uint));
    cldev_apply_quirks(l);
}

uint64_t cldev_hash(uint64_t hash, const cldev_limits *l)
{
    const char *const texts[] = {l->platform, l->name, l->vendor, l->version, l->driver};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        hash = hash_text(hash, texts[i]);
    return hash;
}

/* Append the devices of platform number `p`; a platform without devices adds none. */
static dcm_status list_platform(cl_platform_id platform, unsigned p, cldev_entry **entries, size_t *count)
{
    dcm_status status = DCM_OK;
    cl_device_id *ids = NULL;
    cl_uint n = 0;
    const cl_int error = clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 0, NULL, &n);
    if (error == CL_DEVICE_NOT_FOUND || (error == CL_SUCCESS && n == 0))
        return DCM_OK;
    DCM_TRY(status, fail, cldev_check(error, "clGetDeviceIDs(...)"));
    DCM_TRY(status, fail, mem_new(&ids, n, sizeof *ids, "device list"));
    CL_TRY(status, fail, clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, n, ids, NULL));
    DCM_TRY(status, fail, mem_resize(entries, *count + n, sizeof **entries, "device list"));
    for (unsigned i = 0; i < n; i++) {
        cldev_entry *entry = &(*entries)[(*count)++];
        *entry = (cldev_entry){.platform = p, .index = i, .platform_id = platform, .id = ids[i]};
        query_limits(platform, ids[i], &entry->limits);
    }
fail:
    mem_free(&ids);
    if (status != DCM_OK)
        dcm_fail_in(status, "OpenCL platform %u", p);
    return status;
}

static dcm_status list_all(cldev_entry **entries, size_t *count, unsigned *platforms)
{
    dcm_status status = DCM_OK;
    cl_platform_id *ids = NULL;
    cl_uint n = 0;
    *entries = NULL;
    *count = 0;
    *platforms = 0;
    const cl_int error = clGetPlatformIDs(0, NULL, &n);
    if (error == PLATFORM_NOT_FOUND_KHR || (error == CL_SUCCESS && n == 0))
        return DCM_OK;
    DCM_TRY(status, fail, cldev_check(error, "clGetPlatformIDs(...)"));
    DCM_TRY(status, fail, mem_new(&ids, n, sizeof *ids, "platform list"));
    CL_TRY(status, fail, clGetPlatformIDs(n, ids, NULL));
    for (unsigned p = 0; p < n; p++)
        DCM_TRY(status, fail, list_platform(ids[p], p, entries, count));
    *platforms = n;
fail:
    mem_free(&ids);
    if (status != DCM_OK) {
        mem_free(entries);
        *count = 0;
    }
    return status;
}

dcm_status cldev_list(cldev_entry **entries, size_t *count)
{
    unsigned platforms;
    return list_all(entries, count, &platforms);
}

/* A device of several types, as simulators are, counts as a CPU. */
int cldev_type_rank(cl_device_type type)
{
    return type & CL_DEVICE_TYPE_CPU ? 1 : type & CL_DEVICE_TYPE_GPU ? 3 : type & CL_DEVICE_TYPE_ACCELERATOR ? 2 : 0;
}

static bool contains(const char *text, const char *part)
{
    const size_t n = strlen(part);
    for (; *text; text++)
        if (strncasecmp(text, part, n) == 0)
            return true;
    return false;
}

/* "P.D" and nothing behind it. */
static bool parse_numbers(const char *name, unsigned long *platform, unsigned long *index)
{
    char *end;
    if (!isdigit((unsigned char)name[0]))
        return false;
    *platform = strtoul(name, &end, 10);
    if (*end != '.' || !isdigit((unsigned char)end[1]))
        return false;
    *index = strtoul(end + 1, &end, 10);
    return *end == '\0';
}

static bool fits(const cldev_entry *entry, const char *name)
{
    unsigned long platform, index;
    if (parse_numbers(name, &platform, &index))
        return entry->platform == platform && entry->index == index;
    return contains(entry->limits.name, name) || contains(entry->limits.platform, name);
}

/* "0.0 NAME (PLATFORM), 1.0 ...": all entries, or those that fit `name`. */
static void describe(const cldev_entry *entries, size_t count, const char *name, char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < count && used < size; i++) {
        const cldev_entry *e = &entries[i];
        if (!name || fits(e, name))
            used += (size_t)snprintf(out + used, size - used, "%s%u.%u %s (%s)", used ? ", " : "", e->platform,
                                     e->index, e->limits.name, e->limits.platform);
    }
}

static const cldev_entry *best_device(const cldev_entry *entries, size_t count)
{
    const cldev_entry *best = NULL;
    for (size_t i = 0; i < count; i++)
        if (entries[i].limits.usable &&
            (!best || cldev_type_rank(entries[i].limits.type) > cldev_type_rank(best->limits.type)))
            best = &entries[i];
    return best;
}

static dcm_status pick_named(const char *name, const cldev_entry *entries, size_t count, const cldev_entry **chosen)
{
    char text[2048];
    size_t matches = 0;
    for (size_t i = 0; i < count; i++)
        if (fits(&entries[i], name)) {
            *chosen = &entries[i];
            matches++;
        }
    if (matches == 1)
        return DCM_OK;
    *chosen = NULL;
    describe(entries, count, matches ? name : NULL, text, sizeof text);
    if (matches)
        return dcm_fail(DCM_ERR_USAGE, "several OpenCL devices fit \"%s\": %s; name one by its number", name, text);
    return dcm_fail(DCM_ERR_DEVICE, "no OpenCL device fits \"%s\"; there are: %s", name, text);
}

dcm_status cldev_pick(const char *name, const cldev_entry *entries, size_t count, unsigned platforms,
                      const cldev_entry **chosen)
{
    *chosen = NULL;
    if (name && !*name)
        return dcm_fail(DCM_ERR_USAGE, "the name of the device is empty: give auto, ref, a name or a number");
    if (!name || strcmp(name, "auto") == 0) {
        *chosen = best_device(entries, count);
        if (*chosen || !platforms)
            return DCM_OK;
        return dcm_fail(DCM_ERR_DEVICE,
                        "OpenCL platforms: %u, and no usable device on any; see `dcm devices`, or use "
                        "--device ref",
                        platforms);
    }
    if (!count)
        return dcm_fail(DCM_ERR_DEVICE,
                        "no OpenCL device fits \"%s\": there is no OpenCL %s; install a driver or PoCL, "
                        "or use --device ref",
                        name, platforms ? "device" : "platform");
    return pick_named(name, entries, count, chosen);
}

dcm_status cldev_choose(const char *name, cldev_entry *entry, bool *found)
{
    dcm_status status = DCM_OK;
    cldev_entry *entries = NULL;
    const cldev_entry *chosen = NULL;
    size_t count = 0;
    unsigned platforms = 0;
    *found = false;
    DCM_TRY(status, fail, list_all(&entries, &count, &platforms));
    DCM_TRY(status, fail, cldev_pick(name, entries, count, platforms, &chosen));
    if (chosen) {
        *entry = *chosen;
        *found = true;
    }
fail:
    mem_free(&entries);
    return status;
}
