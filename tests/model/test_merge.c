/*
 * Merge MLPs with random weights (tests/golden/merge) against PyTorch, on `ref` and on every OpenCL device, each value
 * within the bound that its golden derives. Many rows and one row take different routes, so both are run.
 */
#include "golden.h"

#include "base/memory.h"
#include "device/device.h"
#include "io/safetensors.h"
#include "merge/merge.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER TEST_GOLDEN "/merge"

static const struct {
    const char *name;
    uint32_t head_dim;
} cases[] = {{"gate_d16_b1", 16},   {"gate_d16_b3", 16},   {"gate_d16_b6", 16}, {"direct_d16_b1", 16},
             {"direct_d16_b3", 16}, {"direct_d16_b6", 16}, {"gate_d64_b1", 64}};

/* Rows of NAME.rows.safetensors as floats. */
typedef struct rows {
    size_t count, width; /* width of head and bound */
    float *x, *head, *bound;
} rows;

static void rows_free(rows *r)
{
    mem_free(&r->x);
    mem_free(&r->head);
    mem_free(&r->bound);
}

static bool read_array(const safetensors *file, const char *name, size_t *count, size_t *width, float **out)
{
    const st_tensor *t = safetensors_find(file, name);
    if (!t || t->n_dims != 2 || mem_new(out, t->items, sizeof **out, name) != DCM_OK ||
        safetensors_to_float(file, t, *out) != DCM_OK)
        return golden_fail("no usable array %s", name);
    *count = t->dims[0];
    *width = t->dims[1];
    return true;
}

static bool rows_read(rows *r, const char *path, uint32_t head_dim)
{
    safetensors *file = NULL;
    size_t x_width = 0, bounds = 0, bound_width = 0, heads = 0;
    *r = (rows){0};
    if (safetensors_open(&file, path) != DCM_OK)
        return golden_fail("%s", dcm_error());
    bool ok = read_array(file, "x", &r->count, &x_width, &r->x) &&
              read_array(file, "head", &heads, &r->width, &r->head) &&
              read_array(file, "bound", &bounds, &bound_width, &r->bound);
    safetensors_close(&file);
    ok = ok && x_width == 2 * head_dim && heads == r->count && bounds == r->count && bound_width == r->width;
    return ok || golden_fail("%s: arrays do not fit each other", path);
}

/* Rows first .. first + n - 1 through the model; the largest share of a bound that was used, infinity for NaN. */
static bool run_rows(merge_model *m, const rows *r, size_t first, size_t n, double *used)
{
    buffer *head = NULL;
    float *got = NULL;
    const size_t in = 2 * m->head_dim;
    bool ok = mem_new(&got, n * r->width, sizeof *got, "outputs") == DCM_OK && merge_reserve(m, n) == DCM_OK &&
              m->ops->ops->write(m->x, 0, r->x + first * in, n * in * sizeof *got) == DCM_OK &&
              merge_rows(m, n, &head) == DCM_OK &&
              m->ops->ops->read(head, 0, got, n * r->width * sizeof *got) == DCM_OK;
    for (size_t i = 0; ok && i < n * r->width; i++) {
        const size_t at = first * r->width + i;
        const double share = fabs((double)got[i] - (double)r->head[at]) / (double)r->bound[at];
        if (!(share <= *used))
            *used = share >= 0 ? share : INFINITY;
    }
    mem_free(&got);
    return ok || golden_fail("rows %zu + %zu: %s", first, n, dcm_error());
}

static bool test_case(backend *ops, const char *device, const char *name, uint32_t head_dim)
{
    char path[1024];
    merge_model m = {0};
    rows r;
    double used = 0;
    snprintf(path, sizeof path, "%s/%s.rows.safetensors", FOLDER, name);
    bool ok = rows_read(&r, path, head_dim);
    snprintf(path, sizeof path, "%s/%s.safetensors", FOLDER, name);
    if (ok && merge_open(&m, ops, path, &(merge_facts){.head_dim = head_dim}) != DCM_OK)
        ok = golden_fail("%s", dcm_error());
    ok = ok && run_rows(&m, &r, 0, r.count, &used);
    for (size_t i = 0; ok && i < r.count; i++)
        ok = run_rows(&m, &r, i, 1, &used);
    ok = ok && used <= 1;
    printf("%s %s: %.4f of the bound: %s\n", device, name, used, ok ? "ok" : "FAILED");
    merge_close(&m);
    rows_free(&r);
    return ok;
}

/* `cl` stays NULL for ref. */
static bool open_backend(const char *name, struct cldev **cl, backend **ops)
{
    cldev_entry entry;
    bool found = false;
    if (!strcmp(name, "ref"))
        return backend_ref_open(ops, 0, 0) == DCM_OK || golden_fail("ref: %s", dcm_error());
    if (cldev_choose(name, &entry, &found) != DCM_OK || !found || cldev_open(cl, &entry, false) != DCM_OK ||
        backend_cl_open(ops, *cl, 0) != DCM_OK)
        return golden_fail("%s: %s", name, found ? dcm_error() : "no such device");
    return true;
}

int main(void)
{
    char names[DEVICE_NAMES][DEVICE_NAME];
    size_t devices;
    bool ok = true;
    if (!golden_devices(names, &devices))
        return EXIT_FAILURE;
    for (size_t i = 0; i < devices; i++) {
        struct cldev *cl = NULL;
        backend *ops = NULL;
        bool fine = open_backend(names[i], &cl, &ops);
        for (size_t c = 0; fine && c < sizeof cases / sizeof *cases; c++)
            ok = test_case(ops, names[i], cases[c].name, cases[c].head_dim) && ok;
        ok = ok && fine;
        backend_close(&ops);
        cldev_close(&cl);
    }
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
