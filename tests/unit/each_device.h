/* Tests of the OpenCL back end on every usable device. Included behind cmocka.h. */
#ifndef EACH_DEVICE_H
#define EACH_DEVICE_H

#include "ops/ops_cl.h"

typedef void device_test(backend *b);

/* Run in shapes first .. last; the test is skipped where there is no device. */
static inline void in_shapes(device_test *run, clop_shape first, clop_shape last)
{
    cldev_entry *entries;
    size_t count, used = 0;
    assert_int_equal(cldev_list(&entries, &count), DCM_OK);
    for (size_t i = 0; i < count; i++) {
        cldev *device;
        backend *b;
        if (!entries[i].limits.usable)
            continue;
        used++;
        assert_int_equal(cldev_open(&device, &entries[i], false), DCM_OK);
        assert_int_equal(backend_cl_open(&b, device, 0), DCM_OK);
        for (clop_shape shape = first; shape <= last; shape++) {
            clop_set_shape(b, shape);
            run(b);
        }
        backend_close(&b);
        assert_null(b);
        cldev_close(&device);
    }
    mem_free(&entries);
    if (!used)
        skip();
}

/* In the shape that suits the device; in both. */
static inline void on_every_device(device_test *run) { in_shapes(run, CLOP_SHAPE_AUTO, CLOP_SHAPE_AUTO); }
static inline void in_every_shape(device_test *run) { in_shapes(run, CLOP_SHAPE_WIDE, CLOP_SHAPE_GROUP); }

#endif
