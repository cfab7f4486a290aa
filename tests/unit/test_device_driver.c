/*
 * Binaries that a driver does not take, or does not give, and folders and memory that are not there: each time the
 * program is built from source and runs. The driver's answers pass through the test (the linker's --wrap).
 */
#define _GNU_SOURCE
#include "build_probe.h"

#include <dcm/log.h>

#include "device/build.h"

typedef enum driver_fault {
    DRIVER_GOOD,
    NOT_CREATED,  /* clCreateProgramWithBinary fails */
    REFUSED,      /* it succeeds, and says that the binary is invalid */
    NOT_BUILT,    /* the program created from a binary does not build */
    SIZE_UNKNOWN, /* clGetProgramInfo fails */
    SIZE_ZERO,
    SIZE_HUGE,
    NOT_GIVEN, /* the size is told, the bytes are not */
} driver_fault;

static driver_fault fault;
static cl_program from_binary; /* made while a fault is on; the test holds it too */

/* The linker gives these names. */
cl_program __real_clCreateProgramWithBinary(cl_context context, cl_uint count, const cl_device_id *devices,
                                            const size_t *sizes, const unsigned char **binaries, cl_int *refused,
                                            cl_int *error);
cl_program __wrap_clCreateProgramWithBinary(cl_context context, cl_uint count, const cl_device_id *devices,
                                            const size_t *sizes, const unsigned char **binaries, cl_int *refused,
                                            cl_int *error);
cl_int __real_clBuildProgram(cl_program program, cl_uint count, const cl_device_id *devices, const char *options,
                             void (*done)(cl_program, void *), void *data);
cl_int __wrap_clBuildProgram(cl_program program, cl_uint count, const cl_device_id *devices, const char *options,
                             void (*done)(cl_program, void *), void *data);
cl_int __real_clGetProgramInfo(cl_program program, cl_program_info what, size_t room, void *value, size_t *size);
cl_int __wrap_clGetProgramInfo(cl_program program, cl_program_info what, size_t room, void *value, size_t *size);

cl_program __wrap_clCreateProgramWithBinary(cl_context context, cl_uint count, const cl_device_id *devices,
                                            const size_t *sizes, const unsigned char **binaries, cl_int *refused,
                                            cl_int *error)
{
    if (fault == NOT_CREATED) {
        *error = CL_INVALID_BINARY;
        return NULL;
    }
    cl_program program = __real_clCreateProgramWithBinary(context, count, devices, sizes, binaries, refused, error);
    if (fault == REFUSED)
        *refused = CL_INVALID_BINARY;
    if (fault && program) {
        from_binary = program;
        clRetainProgram(program);
    }
    return program;
}

cl_int __wrap_clBuildProgram(cl_program program, cl_uint count, const cl_device_id *devices, const char *options,
                             void (*done)(cl_program, void *), void *data)
{
    if (fault == NOT_BUILT && program == from_binary)
        return CL_BUILD_PROGRAM_FAILURE;
    return __real_clBuildProgram(program, count, devices, options, done, data);
}

cl_int __wrap_clGetProgramInfo(cl_program program, cl_program_info what, size_t room, void *value, size_t *size)
{
    if ((fault == SIZE_UNKNOWN && what == CL_PROGRAM_BINARY_SIZES) ||
        (fault == NOT_GIVEN && what == CL_PROGRAM_BINARIES))
        return CL_OUT_OF_RESOURCES;
    const cl_int error = __real_clGetProgramInfo(program, what, room, value, size);
    if (what == CL_PROGRAM_BINARY_SIZES && (fault == SIZE_ZERO || fault == SIZE_HUGE))
        *(size_t *)value = fault == SIZE_ZERO ? 0 : (size_t)1 << 40;
    return error;
}

/* Build and run with `f`; what was said. */
static const char *build_with(cldev *device, driver_fault f, bool *source)
{
    fault = f;
    capture_begin();
    *source = build_and_run(device);
    const char *said = capture_end();
    fault = DRIVER_GOOD;
    return said;
}

/* A binary that is whole is refused: the file goes, the next one is good, and the program refused is given back. */
static void not_taken(void **state)
{
    (void)state;
    static const driver_fault kinds[] = {NOT_CREATED, REFUSED, NOT_BUILT};
    size_t count;
    char path[1024];
    cldev_entry *entries = all_devices(&count);
    dcm_log_set_level(DCM_LOG_INFO);
    for (size_t i = 0; i < count; i++) {
        clear_folder();
        cldev *device = open_with_cache(&entries[i]);
        assert_true(build_and_run(device));
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            bool source;
            assert_false(build_and_run(device));
            from_binary = NULL;
            assert_non_null(strstr(build_with(device, kinds[k], &source), "is refused by the driver: removed"));
            assert_true(source);
            assert_int_equal(count_files(path, sizeof path), 1);
            assert_int_equal(from_binary != NULL, kinds[k] != NOT_CREATED);
            if (from_binary) {
                cl_uint holders = 0;
                assert_int_equal(
                    clGetProgramInfo(from_binary, CL_PROGRAM_REFERENCE_COUNT, sizeof holders, &holders, NULL),
                    CL_SUCCESS);
                assert_int_equal(holders, 1); /* the test */
                clReleaseProgram(from_binary);
            }
        }
        assert_false(build_and_run(device));
        cldev_close(&device);
    }
    mem_free(&entries);
}

/* Nothing is kept, and with -v it is said why. */
static void not_given(void **state)
{
    (void)state;
    static const struct {
        driver_fault fault;
        const char *said;
    } kinds[] = {
        {SIZE_UNKNOWN, "kernel family probe: the driver gives no binary to keep (0 bytes)"},
        {SIZE_ZERO, "kernel family probe: the driver gives no binary to keep (0 bytes)"},
        {SIZE_HUGE, "kernel family probe: the driver gives no binary to keep (1099511627776 bytes)"},
        {NOT_GIVEN, "kernel family probe: the driver does not give its binary"},
    };
    size_t count;
    char path[1024];
    cldev_entry *entries = all_devices(&count);
    dcm_log_set_level(DCM_LOG_INFO);
    for (size_t i = 0; i < count; i++) {
        clear_folder();
        cldev *device = open_with_cache(&entries[i]);
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            bool source;
            assert_non_null(strstr(build_with(device, kinds[k].fault, &source), kinds[k].said));
            assert_true(source);
            assert_int_equal(count_files(path, sizeof path), 0);
        }
        assert_true(build_and_run(device));
        assert_int_equal(count_files(path, sizeof path), 1);
        cldev_close(&device);
    }
    mem_free(&entries);
}

static void no_memory(void **state)
{
    (void)state;
    size_t count;
    char path[1024];
    cldev_entry *entries = all_devices(&count);
    cldev *device = open_with_cache(&entries[0]);
    cl_program program = NULL;
    dcm_log_set_level(DCM_LOG_INFO);
    const size_t living = mem_living();
    capture_begin();
    mem_fail_at(1); /* a build from source allocates nothing before */
    const dcm_status status = cldev_build(device, "probe", NULL, &program);
    const long left = mem_fail_at(0);
    const char *said = capture_end();
    assert_int_equal(status, DCM_OK);
    assert_int_equal(left, 0);
    assert_non_null(strstr(said, "kernel family probe: its binary is not kept: host memory: no room for "));
    assert_int_equal(mem_living(), living);
    assert_int_equal(count_files(path, sizeof path), 0);
    clReleaseProgram(program);
    assert_true(build_and_run(device));
    assert_false(build_and_run(device));
    cldev_close(&device);
    mem_free(&entries);
}

/* No variable names a folder: nothing is read, nothing is kept, which is said once. */
static void no_folder(void **state)
{
    (void)state;
    size_t count;
    bool source;
    cldev_entry *entries = all_devices(&count);
    cldev *device = open_with_cache(&entries[0]);
    unsetenv("DCM_CACHE");
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    assert_non_null(strstr(build_with(device, DRIVER_GOOD, &source),
                           "built kernels are not kept, every start will build them anew: no cache folder: set "));
    assert_true(source);
    assert_string_equal(build_with(device, DRIVER_GOOD, &source), "");
    assert_true(source);
    cldev_close(&device);
    mem_free(&entries);
}

static const apart_case cases[] = {
    {"not_taken", not_taken},
    {"not_given", not_given},
    {"no_memory", no_memory},
    {"no_folder", no_folder},
};

int main(int argc, char **argv) { return apart_main(cases, sizeof cases / sizeof *cases, argc, argv); }
