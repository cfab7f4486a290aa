/* Files of pair MLPs: which names are read, and that a name which is none of them is refused, never dropped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "merge/pair_file.h"

static const merge_facts facts = {.head_dim = 2};

/* One block for a head size of 2 (maps of 4 x 4, all zeros), the head `head` of so many rows, and `more`. */
static dcm_status load(const char *head, size_t head_rows, const char *more)
{
    static const char *const maps[] = {"layers.0.lin1", "layers.0.lin2", "layers.0.lin3"};
    char header[2048];
    size_t at = 0, n = (size_t)snprintf(header, sizeof header, "{");
    for (size_t i = 0; i < 4; i++) {
        const char *name = i < 3 ? maps[i] : head;
        const size_t rows = i < 3 ? 4 : head_rows, bias = at + rows * 16, end = bias + rows * 4;
        n += (size_t)snprintf(header + n, sizeof header - n,
                              "%s\"%s.weight\":{\"dtype\":\"F32\",\"shape\":[%zu,4],\"data_offsets\":[%zu,%zu]},"
                              "\"%s.bias\":{\"dtype\":\"F32\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}",
                              i ? "," : "", name, rows, at, bias, name, rows, bias, end);
        at = end;
    }
    if (more)
        n += (size_t)snprintf(header + n, sizeof header - n,
                              ",\"%s\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[%zu,%zu]}", more, at, at);
    n += (size_t)snprintf(header + n, sizeof header - n, "}");
    unsigned char *bytes = calloc(1, 8 + n + at);
    safetensors *file;
    pair_shape shape;
    float *params;
    assert_non_null(bytes);
    memcpy(bytes, &(uint64_t){n}, 8);
    memcpy(bytes + 8, header, n);
    assert_int_equal(safetensors_open_memory(&file, "pair", bytes, 8 + n + at), DCM_OK);
    const dcm_status status = pair_file_load(file, &facts, &shape, &params);
    assert_true((status == DCM_OK) == (params != NULL));
    if (status == DCM_OK)
        assert_true(shape.head_dim == 2 && shape.blocks == 1 && shape.direct == (strcmp(head, "merge") == 0));
    mem_free(&params);
    safetensors_close(&file);
    free(bytes);
    return status;
}

static void test_names(void **state)
{
    (void)state;
    assert_int_equal(load("lin1", 1, NULL), DCM_OK);
    assert_int_equal(load("merge", 2, NULL), DCM_OK);
    assert_int_equal(load("lin1", 1, "layers.0.layer_norm.weight"), DCM_OK);
}

static void test_other_names(void **state)
{
    (void)state;
    static const char *const names[] = {"layers.1.lin2.weight",
                                        "layers.-1.lin1.weight",
                                        "layers.00.lin1.weight",
                                        "layers.+0.lin1.weight",
                                        "layers. 0.lin1.weight",
                                        "layers.4294967296.lin1.weight",
                                        "layers.0.lin0.weight",
                                        "layers.0.lin01.bias",
                                        "layers.0.lin4294967297.bias",
                                        "layers.0.lin4.weight",
                                        "layers.0.lin1.scale",
                                        "layers.4294967296.layer_norm.bias",
                                        "lin2.weight",
                                        ""};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_int_equal(load("lin1", 1, names[i]), DCM_ERR_FILE);
        assert_non_null(strstr(dcm_error(), "is not part of a merge model"));
    }
}

static void test_heads(void **state)
{
    (void)state;
    assert_int_equal(load("lin1", 1, "merge.weight"), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "this has both"));
    assert_int_equal(load("lin9", 1, NULL), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "this has none"));
    assert_int_equal(load("merge", 1, NULL), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "needs (2, 4)"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_other_names),
        cmocka_unit_test(test_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
