/* Finding, choosing and opening devices; features and measurements; what errors say. */
#include "apart.h"

#include <dcm/device.h>

#include "device/list.h"

/* ---- Errors ---- */

static void errors(void **state)
{
    (void)state;
    assert_string_equal(cldev_error_name(CL_SUCCESS), "CL_SUCCESS");
    assert_string_equal(cldev_error_name(-5), "CL_OUT_OF_RESOURCES");
    assert_string_equal(cldev_error_name(-54), "CL_INVALID_WORK_GROUP_SIZE");
    assert_string_equal(cldev_error_name(-1001), "CL_PLATFORM_NOT_FOUND_KHR");
    assert_string_equal(cldev_error_name(-4321), "OpenCL error -4321");

    assert_int_equal(cldev_check(CL_SUCCESS, "clFlush(q)"), DCM_OK);
    assert_int_equal(cldev_check(-54, "clEnqueueNDRangeKernel(q, k, 1, NULL, &n)"), DCM_ERR_DEVICE);
    assert_string_equal(dcm_error(), "clEnqueueNDRangeKernel(...): CL_INVALID_WORK_GROUP_SIZE");
    assert_int_equal(cldev_check(-61, "clCreateBuffer"), DCM_ERR_MEMORY);
    assert_string_equal(dcm_error(), "clCreateBuffer: CL_INVALID_BUFFER_SIZE");
    assert_int_equal(cldev_check(-4, "f()"), DCM_ERR_MEMORY);
    assert_int_equal(cldev_check(-5, "f()"), DCM_ERR_MEMORY);
    assert_int_equal(cldev_check(-6, "f()"), DCM_ERR_MEMORY);
    for (cl_int e = -3; e > -80; e--)
        if (e != -4 && e != -5 && e != -6 && e != -61)
            assert_int_equal(cldev_check(e, "f()"), DCM_ERR_DEVICE);
}

/* ---- Choosing, among invented devices ---- */

static cldev_entry invented(unsigned platform, unsigned index, const char *name, const char *platform_name,
                            cl_device_type type)
{
    cldev_entry e = {.platform = platform, .index = index};
    snprintf(e.limits.name, sizeof e.limits.name, "%s", name);
    snprintf(e.limits.platform, sizeof e.limits.platform, "%s", platform_name);
    e.limits.type = type;
    e.limits.usable = true;
    return e;
}

static void pick(void **state)
{
    (void)state;
    cldev_entry list[] = {
        invented(0, 0, "Xeon", "Acme CPU", CL_DEVICE_TYPE_CPU),
        invented(0, 1, "Emulator", "Acme CPU", CL_DEVICE_TYPE_ACCELERATOR),
        invented(1, 0, "Simulator", "Oclgrind", CL_DEVICE_TYPE_ALL & 0xf),
        invented(2, 0, "Radiant 9", "Bolt", CL_DEVICE_TYPE_GPU),
        invented(2, 1, "Radiant 90", "Bolt", CL_DEVICE_TYPE_GPU | CL_DEVICE_TYPE_DEFAULT),
    };
    const size_t n = sizeof list / sizeof *list;
    const cldev_entry *chosen;
    static const struct {
        const char *name;
        int expected; /* place in the list */
    } found[] = {{NULL, 3},   {"auto", 3}, {"0.0", 0},      {"2.1", 4}, {"xeon", 0},
                 {"EMUL", 1}, {"90", 4},   {"oclgrind", 2}, {"tor", -1}};
    for (size_t i = 0; i + 1 < sizeof found / sizeof *found; i++) {
        assert_int_equal(cldev_pick(found[i].name, list, n, 3, &chosen), DCM_OK);
        assert_ptr_equal(chosen, &list[found[i].expected]);
    }
    assert_int_equal(cldev_pick("acme", list, n, 3, &chosen), DCM_ERR_USAGE);
    assert_null(chosen);
    assert_string_equal(dcm_error(),
                        "several OpenCL devices fit \"acme\": 0.0 Xeon (Acme CPU), 0.1 Emulator (Acme CPU); name "
                        "one by its number");
    assert_int_equal(cldev_pick("tor", list, n, 3, &chosen), DCM_ERR_USAGE);
    assert_int_equal(cldev_pick("", list, n, 3, &chosen), DCM_ERR_USAGE);
    static const char *const none[] = {"2.2", "3.0", "1.", "0.0 ", ".0", "0.0x", "radiant  9", "autor"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        assert_int_equal(cldev_pick(none[i], list, n, 3, &chosen), DCM_ERR_DEVICE);
    assert_int_equal(cldev_pick("cuda", list, 2, 1, &chosen), DCM_ERR_DEVICE);
    assert_string_equal(dcm_error(),
                        "no OpenCL device fits \"cuda\"; there are: 0.0 Xeon (Acme CPU), 0.1 Emulator (Acme CPU)");

    /* GPU, then accelerator, then CPU; what cannot be used is not chosen unless named. */
    list[3].limits.usable = list[4].limits.usable = false;
    assert_int_equal(cldev_pick("auto", list, n, 3, &chosen), DCM_OK);
    assert_ptr_equal(chosen, &list[1]);
    assert_int_equal(cldev_pick("2.0", list, n, 3, &chosen), DCM_OK);
    assert_ptr_equal(chosen, &list[3]);
    list[1].limits.usable = false;
    assert_int_equal(cldev_pick("auto", list, n, 3, &chosen), DCM_OK);
    assert_ptr_equal(chosen, &list[0]);
    list[0].limits.usable = list[2].limits.usable = false;
    assert_int_equal(cldev_pick("auto", list, n, 3, &chosen), DCM_ERR_DEVICE);
    assert_string_equal(dcm_error(),
                        "OpenCL platforms: 3, and no usable device on any; see `dcm devices`, or use --device ref");
}

static void no_platform(void **state)
{
    (void)state;
    cldev_entry *entries, entry;
    dcm_device_entry *listed;
    dcm_device *device;
    dcm_device_info info;
    size_t count = 7;
    bool found = true;
    assert_int_equal(cldev_list(&entries, &count), DCM_OK);
    assert_int_equal(count, 0);
    assert_int_equal(dcm_device_list(&listed, &count), DCM_OK);
    assert_int_equal(count, 0);
    assert_null(listed);
    assert_int_equal(cldev_choose("auto", &entry, &found), DCM_OK);
    assert_false(found);
    assert_int_equal(cldev_choose("pocl", &entry, &found), DCM_ERR_DEVICE);
    assert_string_equal(dcm_error(),
                        "no OpenCL device fits \"pocl\": there is no OpenCL platform; install a driver or PoCL, or use "
                        "--device ref");
    capture_begin();
    const dcm_status status = dcm_device_open(&device, NULL);
    const char *said = capture_end();
    assert_int_equal(status, DCM_OK);
    assert_string_equal(said, "dcm: no OpenCL platform on this machine: computing with the C reference\n");
    dcm_device_get_info(device, &info);
    assert_true(info.is_ref);
    assert_string_equal(info.type, "cpu");
    assert_string_equal(info.pci, "");
    dcm_device_close(&device);
    assert_null(device);
    assert_int_equal(dcm_device_open(&device, &(dcm_device_params){.name = "0.0"}), DCM_ERR_DEVICE);
    assert_null(device);
}

/* ---- Real devices ---- */

/* Against queries made here. */
static void limits(void **state)
{
    (void)state;
    size_t count;
    dcm_device_entry *listed;
    cldev_entry *entries = all_devices(&count);
    cl_platform_id platform[16];
    cl_uint platforms;
    assert_int_equal(clGetPlatformIDs(16, platform, &platforms), CL_SUCCESS);
    size_t k = 0;
    for (cl_uint p = 0; p < platforms; p++) {
        cl_device_id id[16];
        cl_uint n = 0;
        clGetDeviceIDs(platform[p], CL_DEVICE_TYPE_ALL, 16, id, &n);
        for (cl_uint d = 0; d < n; d++, k++) {
            cl_ulong memory, alloc;
            cl_uint units;
            char name[256] = "";
            clGetDeviceInfo(id[d], CL_DEVICE_GLOBAL_MEM_SIZE, sizeof memory, &memory, NULL);
            clGetDeviceInfo(id[d], CL_DEVICE_MAX_MEM_ALLOC_SIZE, sizeof alloc, &alloc, NULL);
            clGetDeviceInfo(id[d], CL_DEVICE_MAX_COMPUTE_UNITS, sizeof units, &units, NULL);
            clGetDeviceInfo(id[d], CL_DEVICE_NAME, sizeof name - 1, name, NULL);
            assert_true(k < count);
            assert_int_equal(entries[k].platform, p);
            assert_int_equal(entries[k].index, d);
            assert_ptr_equal(entries[k].id, id[d]);
            assert_int_equal(entries[k].limits.memory, memory);
            assert_int_equal(entries[k].limits.max_alloc, alloc);
            assert_int_equal(entries[k].limits.compute_units, units);
            assert_non_null(strstr(name, entries[k].limits.name));
            assert_true(entries[k].limits.name[0] != ' ' && entries[k].limits.name[0] != '\0');
        }
    }
    assert_int_equal(k, count);
    size_t n = 0;
    assert_int_equal(dcm_device_list(&listed, &n), DCM_OK);
    assert_int_equal(n, count);
    for (size_t i = 0; i < n; i++) {
        assert_string_equal(listed[i].name, entries[i].limits.name);
        assert_int_equal(listed[i].max_alloc_bytes, entries[i].limits.max_alloc);
        assert_int_equal(listed[i].platform_index, entries[i].platform);
        assert_int_equal(listed[i].device_index, entries[i].index);
    }
    mem_free(&listed);
    mem_free(&entries);
}

/* Two PoCL devices of one name: the platform's name is ambiguous, the numbers are not. */
static void twins(void **state)
{
    (void)state;
    size_t count, pocl = 0;
    cldev_entry *entries = all_devices(&count), entry;
    dcm_device *device;
    char expected[2048], number[32];
    bool found;
    while (pocl < count && strcmp(entries[pocl].limits.platform, "Portable Computing Language") != 0)
        pocl++;
    if (pocl == count)
        skip_case();
    assert_true(pocl + 1 < count);
    const cldev_entry *a = &entries[pocl], *b = a + 1;
    snprintf(expected, sizeof expected,
             "several OpenCL devices fit \"PORTABLE\": %u.0 %s (%s), %u.1 %s (%s); name one by its number", a->platform,
             a->limits.name, a->limits.platform, b->platform, b->limits.name, b->limits.platform);
    assert_int_equal(cldev_choose("PORTABLE", &entry, &found), DCM_ERR_USAGE);
    assert_string_equal(dcm_error(), expected);
    assert_int_equal(dcm_device_open(&device, &(dcm_device_params){.name = "PORTABLE"}), DCM_ERR_USAGE);
    assert_null(device);
    snprintf(number, sizeof number, "%u.1", b->platform);
    assert_int_equal(cldev_choose(number, &entry, &found), DCM_OK);
    assert_true(found);
    assert_ptr_equal(entry.id, b->id);
    mem_free(&entries);
}

static void memory_limit(void **state)
{
    (void)state;
    size_t count, seen = 0;
    cldev_entry *entries = all_devices(&count);
    for (size_t i = 0; i < count; i++)
        if (strcmp(entries[i].limits.platform, "Portable Computing Language") == 0) {
            assert_int_equal(entries[i].limits.max_alloc, (size_t)256 << 20);
            seen++;
        }
    mem_free(&entries);
    if (!seen)
        skip_case();
}

static void open_close(void **state)
{
    (void)state;
    size_t count;
    cldev_entry *entries = all_devices(&count), *again;
    cldev *device = NULL;
    dcm_device *none = NULL;
    cldev_close(NULL);
    cldev_close(&device);
    dcm_device_close(NULL);
    dcm_device_close(&none);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(cldev_open(&device, &entries[i], true), DCM_OK);
        cl_command_queue_properties properties = 0;
        clGetCommandQueueInfo(device->queue, CL_QUEUE_PROPERTIES, sizeof properties, &properties, NULL);
        assert_int_equal(properties, CL_QUEUE_PROFILING_ENABLE);
        cldev_close(&device);
        assert_null(device);
    }
    cldev_entry broken = entries[0];
    broken.limits.usable = false;
    assert_int_equal(cldev_open(&device, &broken, false), DCM_ERR_DEVICE);
    assert_null(device);
    mem_fail_at(1);
    assert_int_equal(cldev_open(&device, &entries[0], false), DCM_ERR_MEMORY);
    assert_null(device);
    /* Every allocation of a listing fails in turn, until one listing needs fewer. */
    for (long n = 1;; n++) {
        size_t listed = 1;
        mem_fail_at(n);
        const dcm_status status = cldev_list(&again, &listed);
        mem_fail_at(0);
        if (status == DCM_OK) {
            assert_true(n > 2);
            break;
        }
        assert_int_equal(status, DCM_ERR_MEMORY);
        assert_null(again);
        assert_int_equal(listed, 0);
    }
    mem_free(&again);
    mem_free(&entries);
}

/* The driver itself says how many units the opened part has; kernels build and run there. A part outlives those who
 * used it: PoCL's worker reads it after the last of them has closed. */
static void some_threads(void **state)
{
    (void)state;
    size_t count, seen = 0;
    cldev_entry *entries = all_devices(&count);
    for (size_t i = 0; i < count; i++) {
        cl_uint units = 0;
        cldev *device;
        if (!(entries[i].limits.type & CL_DEVICE_TYPE_CPU) || entries[i].limits.compute_units < 2)
            continue;
        seen++;
        entries[i].threads = 1;
        device = open_with_cache(&entries[i]);
        assert_int_equal(clGetDeviceInfo(device->id, CL_DEVICE_MAX_COMPUTE_UNITS, sizeof units, &units, NULL),
                         CL_SUCCESS);
        assert_int_equal(units, 1);
        assert_int_equal(device->limits.compute_units, 1);
        assert_int_equal(cldev_probe_tiers(device), DCM_OK);
        cldev *other = open_with_cache(&entries[i]);
        assert_ptr_equal(other->id, device->id);
        cldev_close(&other);
        cldev_close(&device);
        entries[i].threads = entries[i].limits.compute_units; /* nothing to divide */
        device = open_with_cache(&entries[i]);
        assert_ptr_equal(device->id, entries[i].id);
        cldev_close(&device);
    }
    mem_free(&entries);
    if (!seen)
        skip_case();
}

static void features(void **state)
{
    (void)state;
    size_t count;
    cldev_entry *entries = all_devices(&count);
    for (size_t i = 0; i < count; i++) {
        char extensions[16384] = "";
        cldev *device = open_with_cache(&entries[i]);
        clGetDeviceInfo(device->id, CL_DEVICE_EXTENSIONS, sizeof extensions - 1, extensions, NULL);
        assert_int_equal(cldev_probe_tiers(device), DCM_OK);
        const bool fp16 = cldev_has(device, CLDEV_FP16), subgroups = cldev_has(device, CLDEV_SUBGROUPS);
        if (fp16)
            assert_non_null(strstr(extensions, "cl_khr_fp16"));
        if (subgroups)
            assert_true(strstr(extensions, "subgroup") || strstr(extensions, "cl_nv_compiler_options"));
        /* Intel's CPU runtime has both. */
        if (strcmp(device->limits.platform, "Intel(R) OpenCL") == 0)
            assert_true(fp16 && subgroups);
        /* PoCL's compiler takes the instructions where the processor has it. */
        FILE *info = fopen("/proc/cpuinfo", "r");
        bool vnni = false, avx2 = false;
        for (char line[8192]; info && fgets(line, sizeof line, info);)
            vnni = vnni || strstr(line, "avx512_vnni"), avx2 = avx2 || strstr(line, "avx2");
        if (info)
            fclose(info);
        const bool pocl = !strcmp(device->limits.platform, "Portable Computing Language");
        assert_int_equal(cldev_has(device, CLDEV_DOT4), vnni && pocl);
        assert_int_equal(cldev_has(device, CLDEV_DOT2), avx2 && pocl);
        cldev_close(&device);
    }
    mem_free(&entries);
}

static void measure(void **state)
{
    (void)state;
    size_t count;
    cldev_entry *entries = all_devices(&count);
    for (size_t i = 0; i < count; i++) {
        cldev *device = open_with_cache(&entries[i]);
        cldev_probe probe;
        device->limits.memory = (size_t)1 << 30; /* keeps the test small */
        device->limits.max_alloc = (size_t)64 << 20;
        assert_int_equal(cldev_measure(device, &probe), DCM_OK);
        assert_true(probe.read_gb_s > 0.01 && probe.read_gb_s < 1e5);
        assert_true(probe.launch_us > 1e-3 && probe.launch_us < 1e6);
        assert_true(probe.round_trip_us > 1e-3 && probe.round_trip_us < 1e6);
        assert_int_equal(probe.largest_alloc, (size_t)64 << 20);
        cldev_close(&device);
    }
    mem_free(&entries);
}

/* ---- Opening for models ---- */

static void open_device(void **state)
{
    (void)state;
    dcm_device *device = NULL;
    dcm_device_info info;
    size_t count;
    assert_int_equal(dcm_device_open(&device, &(dcm_device_params){.name = "ref", .threads = 1}), DCM_OK);
    dcm_device_get_info(device, &info);
    assert_true(info.is_ref);
    assert_string_equal(info.platform, "C reference");
    assert_true(info.memory_bytes > 0 && info.max_alloc_bytes > 0);
    dcm_device_close(&device);
    assert_int_equal(dcm_device_open(&device, &(dcm_device_params){.name = "ref", .threads = -1}), DCM_ERR_USAGE);
    assert_null(device);
    assert_int_equal(dcm_device_open(&device, &(dcm_device_params){.name = "no such device"}), DCM_ERR_DEVICE);
    assert_null(device);
    cldev_entry *entries = all_devices(&count);
    for (size_t i = 0; i < count; i++) {
        char number[32];
        snprintf(number, sizeof number, "%u.%u", entries[i].platform, entries[i].index);
        assert_int_equal(dcm_device_open(&device, &(dcm_device_params){.name = number}), DCM_OK);
        dcm_device_get_info(device, &info);
        assert_false(info.is_ref);
        assert_string_equal(info.name, entries[i].limits.name);
        assert_string_equal(info.type, cldev_type_name(entries[i].limits.type));
        assert_int_equal(info.max_alloc_bytes, entries[i].limits.max_alloc);
        dcm_device_close(&device);
    }
    for (long n = 1; n < 4; n++) {
        mem_fail_at(n);
        assert_int_equal(dcm_device_open(&device, &(dcm_device_params){.name = "0.0"}), DCM_ERR_MEMORY);
        mem_fail_at(0);
        assert_null(device);
    }
    mem_free(&entries);
}

static const apart_case cases[] = {
    {"errors", errors},
    {"pick", pick},
    {"no_platform", no_platform, "OCL_ICD_VENDORS", NULL},
    {"limits", limits},
    {"twins", twins, "POCL_DEVICES", "pthread pthread"},
    {"memory_limit", memory_limit, "POCL_MEMORY_LIMIT", "1"},
    {"open_close", open_close},
    {"some_threads", some_threads},
    {"features", features},
    {"measure", measure},
    {"open_device", open_device},
};

int main(int argc, char **argv) { return apart_main(cases, sizeof cases / sizeof *cases, argc, argv); }
