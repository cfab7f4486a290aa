/* Buffers of devices: side by side without overlap, whatever is released first, and their memory given back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/memory.h"
#include "device/device.h"

#include "each_device.h"

enum { BUFFERS = 24, LARGE = 20 << 20, SLACK = 8 << 20 };

static const size_t sizes[] = {1, 4096, 345600, 4097, 3 << 20, 0, LARGE, 552961};

static size_t size_of(size_t i) { return sizes[i % (sizeof sizes / sizeof *sizes)]; }

static size_t resident(void)
{
    size_t pages = 0, all;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f && fscanf(f, "%zu %zu", &all, &pages) != 2)
        pages = 0;
    if (f)
        fclose(f);
    return pages * (size_t)sysconf(_SC_PAGESIZE);
}

/* Drivers let go of a buffer on a thread of their own, some time after clFinish. */
static bool falls_below(size_t bytes)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    for (int i = 0; i < 10000 && resident() >= bytes; i++)
        nanosleep(&pause, NULL);
    return resident() < bytes;
}

static void put(cldev *d, cl_mem buffer, size_t bytes, uint8_t value)
{
    if (bytes)
        assert_int_equal(clEnqueueFillBuffer(d->queue, buffer, &value, 1, 0, bytes, 0, NULL, NULL), CL_SUCCESS);
}

static void holds(cldev *d, cl_mem buffer, size_t bytes, uint8_t value)
{
    uint8_t *data;
    size_t wrong = 0;
    if (!bytes)
        return;
    assert_int_equal(mem_new(&data, bytes, 1, "data"), DCM_OK);
    assert_int_equal(clEnqueueReadBuffer(d->queue, buffer, CL_TRUE, 0, bytes, data, 0, NULL, NULL), CL_SUCCESS);
    for (size_t i = 0; i < bytes; i++)
        wrong += data[i] != value;
    assert_int_equal(wrong, 0);
    mem_free(&data);
}

/* Every second one is lasting; even ones are released first, and the device's own hold before the odd ones. */
static void check_apart(backend *b)
{
    cldev *d = clop_device(b);
    cl_mem buffer[BUFFERS];
    for (size_t i = 0; i < BUFFERS; i++) {
        assert_int_equal(cldev_buffer_new(d, size_of(i), i / 2 % 2 == 0, &buffer[i]), DCM_OK);
        put(d, buffer[i], size_of(i), (uint8_t)(i + 1));
    }
    for (size_t i = 0; i < BUFFERS; i++)
        holds(d, buffer[i], size_of(i), (uint8_t)(i + 1));
    for (size_t i = 0; i < BUFFERS; i += 2)
        assert_int_equal(clReleaseMemObject(buffer[i]), CL_SUCCESS);
    cldev_buffers_close(d);
    for (size_t i = 1; i < BUFFERS; i += 2) {
        holds(d, buffer[i], size_of(i), (uint8_t)(i + 1));
        assert_int_equal(clReleaseMemObject(buffer[i]), CL_SUCCESS);
    }
}

static void apart(void **state)
{
    (void)state;
    on_every_device(check_apart);
}

/* Of CPUs; others' memory is not this process's. */
static void check_given_back(backend *b)
{
    cldev *d = clop_device(b);
    if (!(d->limits.type & CL_DEVICE_TYPE_CPU) || !resident())
        return;
    for (int lasting = 0; lasting < 2; lasting++) {
        cl_mem buffer[4];
        const size_t before = resident();
        for (size_t i = 0; i < 4; i++) {
            assert_int_equal(cldev_buffer_new(d, LARGE / (lasting ? 4 : 1), lasting, &buffer[i]), DCM_OK);
            put(d, buffer[i], LARGE / (lasting ? 4 : 1), 1);
        }
        assert_int_equal(clFinish(d->queue), CL_SUCCESS);
        assert_true(resident() > before + LARGE / 2);
        for (size_t i = 0; i < 4; i++)
            assert_int_equal(clReleaseMemObject(buffer[i]), CL_SUCCESS);
        cldev_buffers_close(d);
        assert_true(falls_below(before + SLACK));
    }
}

static void given_back(void **state)
{
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    skip(); /* ASan keeps what is freed, to see it used */
#endif
    on_every_device(check_given_back);
}

/* More than any address space. */
static void check_too_large(backend *b)
{
    cl_mem buffer;
    for (int lasting = 0; lasting < 2; lasting++) {
        assert_int_not_equal(cldev_buffer_new(clop_device(b), SIZE_MAX - 5, lasting, &buffer), DCM_OK);
        assert_null(buffer);
    }
}

static void too_large(void **state)
{
    (void)state;
    on_every_device(check_too_large);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(apart),
        cmocka_unit_test(given_back),
        cmocka_unit_test(too_large),
    };
    /* Or what a driver's thread frees stays in that thread's heap, once blocks of its size were freed before. */
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
