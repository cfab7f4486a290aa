#include "harness.h"

#include "base/clock.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/rng.h"

#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Bytes before and after each buffer; a multiple of every device's base address alignment. */
enum { MARGIN = 4096 };

static size_t margin(const ck *c) { return c->small ? 0 : MARGIN; }

static _Noreturn void stop(const ck *c, const char *what)
{
    fprintf(stderr, "checkcl: %s: %s: %s\n", c->name, what, dcm_error());
    exit(EXIT_FAILURE);
}

bool ck_case(ck *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int used = vsnprintf(c->name, sizeof c->name, format, args);
    va_end(args);
    if (*c->variant)
        snprintf(c->name + used, sizeof c->name - (size_t)used, "/%s", c->variant);
    if (c->filter && fnmatch(c->filter, c->name, 0) != 0 && !strstr(c->name, c->filter))
        return false;
    if (c->small && !ck_is_small(c->name))
        return false;
    c->n_cases++;
    if (c->count)
        return false;
    if (c->list) {
        printf("%s\n", c->name);
        return false;
    }
    printf("ck\tbegin\t%s\n", c->name);
    fflush(stdout);
    c->rng = hash_bytes(hash_bytes(HASH_START, &c->seed, sizeof c->seed), c->name, strlen(c->name));
    c->traffic = 0;
    return true;
}

/* ---- Buffers ---- */

static ck_buf *find(ck *c, const char *name)
{
    for (size_t i = 0; i < c->n_bufs; i++)
        if (!strcmp(c->buf[i].name, name))
            return c->buf + i;
    return NULL;
}

/* The device's buffer as a part of a larger one, so that what is beside it can be read. */
static void make_device_side(ck *c, ck_buf *b)
{
    const size_t all = b->bytes + 2 * margin(c);
    const cl_buffer_region region = {margin(c), b->bytes};
    cl_int error;
    b->whole = clCreateBuffer(c->device->context, CL_MEM_READ_WRITE, all, NULL, &error);
    if (cldev_check(error, "clCreateBuffer") != DCM_OK)
        stop(c, b->name);
    b->side[CK_CL].handle =
        clCreateSubBuffer(b->whole, CL_MEM_READ_WRITE, CL_BUFFER_CREATE_TYPE_REGION, &region, &error);
    if (cldev_check(error, "clCreateSubBuffer") != DCM_OK ||
        cldev_check(clEnqueueWriteBuffer(c->device->queue, b->whole, CL_TRUE, 0, all, b->before, 0, NULL, NULL),
                    "clEnqueueWriteBuffer") != DCM_OK)
        stop(c, b->name);
}

buffer *ck_buffer(ck *c, int side, const char *name, const void *data, size_t bytes, unsigned item)
{
    ck_buf *b = find(c, name);
    if (b)
        return b->side + side;
    if (c->n_bufs == CK_BUFFERS)
        stop(c, "too many buffers");
    const size_t all = bytes + 2 * margin(c);
    b = c->buf + c->n_bufs++;
    *b = (ck_buf){.bytes = bytes, .item = item};
    snprintf(b->name, sizeof b->name, "%s", name);
    b->before = fx_alloc(all);
    fx_pattern(b->before, all);
    memcpy(b->before + margin(c), data, bytes);
    for (int s = 0; s < CK_SIDES; s++) {
        b->after[s] = fx_alloc(all);
        memcpy(b->after[s], b->before, all);
        b->side[s] = (buffer){.owner = c->side[s], .bytes = bytes, .category = MEM_SCRATCH};
    }
    b->side[CK_REF].handle = b->after[CK_REF] + margin(c);
    make_device_side(c, b);
    return b->side + side;
}

buffer *ck_make(void *maker, const char *name, const void *data, size_t bytes, unsigned item)
{
    const ck_maker *m = maker;
    return ck_buffer(m->c, m->side, name, data, bytes, item);
}

matrix *ck_matrix(ck *c, int side, quant_type type, uint32_t rows, uint32_t cols, const void *data)
{
    if (!c->matrix[side] &&
        c->side[side]->ops->matrix_new(c->side[side], type, rows, cols, data, &c->matrix[side]) != DCM_OK)
        stop(c, "matrix");
    return c->matrix[side];
}

double *ck_bound(ck *c, const char *name)
{
    ck_buf *b = find(c, name);
    if (!b->bound)
        b->bound = fx_alloc(b->bytes / b->item * sizeof *b->bound);
    return b->bound;
}

void ck_bound_unit(ck *c, const fx_cache *cache, uint32_t layer, int w, uint32_t h, uint32_t slot, uint32_t channel,
                   double bound)
{
    char name[24];
    snprintf(name, sizeof name, "block %u", slot >> KV_SLOT_BITS);
    ck_bound(c, name)[fx_element(cache, layer, w, h, slot, channel)] = bound;
}

void ck_release(ck *c)
{
    for (size_t i = 0; i < c->n_bufs; i++) {
        ck_buf *b = c->buf + i;
        clReleaseMemObject(b->side[CK_CL].handle);
        clReleaseMemObject(b->whole);
        free(b->before);
        free(b->after[CK_REF]);
        free(b->after[CK_CL]);
        free(b->bound);
    }
    c->n_bufs = 0;
    for (int s = 0; s < CK_SIDES; s++)
        matrix_free(&c->matrix[s]);
}

/* ---- Comparing ---- */

bool ck_read_back(ck *c, char *why, size_t size)
{
    if (cldev_check(clFinish(c->device->queue), "clFinish") != DCM_OK) {
        snprintf(why, size, "%s", dcm_error());
        return false;
    }
    for (size_t i = 0; i < c->n_bufs; i++) {
        ck_buf *b = c->buf + i;
        if (cldev_check(clEnqueueReadBuffer(c->device->queue, b->whole, CL_TRUE, 0, b->bytes + 2 * margin(c),
                                            b->after[CK_CL], 0, NULL, NULL),
                        "clEnqueueReadBuffer") != DCM_OK) {
            snprintf(why, size, "%s: %s", b->name, dcm_error());
            return false;
        }
    }
    return true;
}

static bool margins_kept(const ck *c, const ck_buf *b, int side, char *why, size_t size)
{
    static const char *const who[] = {"reference", "device"};
    for (size_t i = 0; i < margin(c); i++) {
        const size_t right = margin(c) + b->bytes + i;
        if (b->after[side][i] != b->before[i] || b->after[side][right] != b->before[right]) {
            const bool left = b->after[side][i] != b->before[i];
            snprintf(why, size, "%s: %s wrote past the %s end, %zu bytes away", b->name, who[side],
                     left ? "left" : "right", left ? margin(c) - i : i);
            return false;
        }
    }
    return true;
}

static double value_at(const unsigned char *data, unsigned item, size_t i)
{
    uint16_t half;
    float f;
    memcpy(&half, data + i * 2, item == 2 ? 2 : 0);
    memcpy(&f, data + i * 4, item == 4 ? 4 : 0);
    return item == 2 ? half_to_float(half) : f;
}

static bool element_ok(const ck *c, const ck_buf *b, size_t i, double *worst, char *why, size_t size)
{
    const unsigned char *ref = b->after[CK_REF] + margin(c), *cl = b->after[CK_CL] + margin(c);
    const double bound = b->bound ? b->bound[i] : 0;
    const double want = value_at(ref, b->item, i), got = value_at(cl, b->item, i), diff = fabs(got - want);
    if (bound == 0) {
        if (memcmp(ref + i * b->item, cl + i * b->item, b->item) == 0)
            return true;
        const bool kept = memcmp(ref + i * b->item, b->before + margin(c) + i * b->item, b->item) == 0;
        snprintf(why, size, "%s[%zu]: %.9g, not exactly %.9g%s", b->name, i, got, want,
                 kept ? " (to be left alone)" : "");
        return false;
    }
    if (!(diff <= bound)) {
        snprintf(why, size, "%s[%zu]: %.9g, not %.9g: off by %.3g, bound %.3g", b->name, i, got, want, diff, bound);
        return false;
    }
    if (diff / bound > *worst)
        *worst = diff / bound;
    return true;
}

bool ck_compare(ck *c, double *worst, char *why, size_t size)
{
    *worst = 0;
    for (size_t i = 0; i < c->n_bufs; i++) {
        const ck_buf *b = c->buf + i;
        if (!margins_kept(c, b, CK_REF, why, size) || !margins_kept(c, b, CK_CL, why, size))
            return false;
        for (size_t k = 0; k < b->bytes / b->item; k++)
            if (!element_ok(c, b, k, worst, why, size))
                return false;
    }
    return true;
}

double ck_stored(kv_type type, double value, double error)
{
    const double most = fabs(value) + error;
    return type == KV_F16 ? error + 2 * CK_U * most + most * 0x1p-10 + 0x1p-24 : error + 2 * CK_U * most + FLT_MIN;
}

/* ---- Running ---- */

void ck_pass(const ck *c, double worst, const char *note) { printf("ck\tpass\t%s\t%.3f\t%s\n", c->name, worst, note); }

void ck_fail(const ck *c, const char *why)
{
    printf("ck\tfail\t%s\t%s\n", c->name, why);
    fflush(stdout);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median, 5th and 95th percentile of `n` times, as a text. */
static int describe(char *out, size_t size, const char *what, double *us, size_t n)
{
    qsort(us, n, sizeof *us, ascending);
    return snprintf(out, size, "%s %.1f us (p5 %.1f, p95 %.1f)", what, us[n / 2], us[n / 20], us[n - 1 - n / 20]);
}

/* Times of the op on the device: events where launches are ours, and wall time to the end of the queue. */
static void bench(ck *c, ck_op op, const void *what, char *note, size_t size)
{
    enum { TIMES = 101, WARM_UPS = 3 };
    double event[TIMES], wall[TIMES];
    size_t n = 0, launches = 0;
    const uint64_t begin = clock_ns();
    for (int i = 0; i < WARM_UPS; i++)
        op(c, CK_CL, what);
    c->side[CK_CL]->ops->sync(c->side[CK_CL]);
    for (; n < TIMES && (n < 5 || clock_ns() - begin < 1000000000u); n++) {
        ck_events_start();
        const uint64_t from = clock_ns();
        op(c, CK_CL, what);
        c->side[CK_CL]->ops->sync(c->side[CK_CL]);
        wall[n] = (double)(clock_ns() - from) * 1e-3;
        event[n] = ck_events_us(&launches);
    }
    int used = describe(note, size, "events", event, n);
    used += snprintf(note + used, size - (size_t)used, ", %zu launches, ", launches);
    used += describe(note + used, size - (size_t)used, "wall", wall, n);
    /* CLBlast's own launches do not pass through here. */
    const bool all_seen = launches > 0 && clop_get_dense(c->side[CK_CL]) != CLOP_DENSE_CLBLAST;
    const double us = all_seen ? event[n / 2] : wall[n / 2], gb_s = (double)c->traffic / us * 1e-3;
    snprintf(note + used, size - (size_t)used, ", %.2f GB/s (%.0f %% of %.1f), empty launch %.1f us", gb_s,
             100 * gb_s / c->read_gb_s, c->read_gb_s, c->launch_us);
}

void ck_run(ck *c, ck_op op, ck_bounds bounds, const void *what)
{
    char why[4096] = "", note[512] = "";
    double worst;
    if (op(c, CK_REF, what) != DCM_OK) {
        snprintf(why, sizeof why, "reference: %s", dcm_error());
        ck_fail(c, why);
        ck_release(c);
        return;
    }
    if (!c->strict)
        bounds(c, what);
    if (op(c, CK_CL, what) != DCM_OK) {
        ck_fail(c, dcm_error());
    } else if (!ck_read_back(c, why, sizeof why) || !ck_compare(c, &worst, why, sizeof why)) {
        ck_fail(c, why);
    } else {
        if (c->bench)
            bench(c, op, what, note, sizeof note);
        ck_pass(c, worst, note);
    }
    ck_release(c);
}

/* Whether any case of the family, in the variant at hand, is asked for. */
static bool wanted(ck *c, const ck_family *family)
{
    c->count = true;
    c->n_cases = 0;
    family->run(c);
    c->count = false;
    return c->n_cases > 0;
}

/* The family with strict back ends, whose results have to be the same bit for bit. */
static void run_strict(ck *c, const ck_family *family)
{
    backend *const side[CK_SIDES] = {c->side[CK_REF], c->side[CK_CL]};
    dcm_status status = DCM_OK;
    c->variant = "strict";
    if (!wanted(c, family)) /* or the device would have to prove its arithmetic for nothing */
        return;
    c->strict = true;
    if (!c->list) {
        status = backend_ref_open(&c->side[CK_REF], 0, 0);
        if (status == DCM_OK)
            status = backend_cl_open(&c->side[CK_CL], c->device, 0);
        if (status == DCM_OK) {
            backend_ref_strict(c->side[CK_REF]);
            status = backend_cl_strict(c->side[CK_CL]);
        }
        snprintf(c->name, sizeof c->name, "%s/strict", family->name);
    }
    if (status == DCM_OK)
        family->run(c);
    else
        ck_fail(c, dcm_error());
    for (int s = 0; !c->list && s < CK_SIDES; s++) {
        backend_close(&c->side[s]);
        c->side[s] = side[s];
    }
    c->strict = false;
}

static bool has_one(cldev *device, uint32_t tiers)
{
    for (int t = 0; t < CLDEV_TIERS; t++)
        if (tiers & 1u << t && cldev_has(device, (cldev_tier)t))
            return true;
    return false;
}

void ck_run_family(ck *c, const ck_family *family)
{
    static const struct {
        const char *name;
        clop_shape shape;
        clop_dense dense;
        clop_many many;
        uint32_t off;    /* tiers that are forced off, a bit each: only where the device has one of them */
        uint32_t floats; /* of a vector register, as if the device's had so many; 0: as they are */
    } variants[] = {{"wide", CLOP_SHAPE_WIDE, CLOP_DENSE_OWN, CLOP_MANY_AUTO, 0, 0},
                    {"group", CLOP_SHAPE_GROUP, CLOP_DENSE_OWN, CLOP_MANY_GROUP, 0, 0},
                    {"clblast", CLOP_SHAPE_GROUP, CLOP_DENSE_CLBLAST, CLOP_MANY_CLBLAST, 0, 0},
                    {"float", CLOP_SHAPE_WIDE, CLOP_DENSE_OWN, CLOP_MANY_AUTO, 1u << CLDEV_DOT4 | 1u << CLDEV_DOT2, 0},
                    {"mma", CLOP_SHAPE_GROUP, CLOP_DENSE_OWN, CLOP_MANY_MMA, 0, 0},
                    {"wide-plain", CLOP_SHAPE_WIDE, CLOP_DENSE_OWN, CLOP_MANY_AUTO, 1u << CLDEV_HALF16, 8},
                    {"group-plain", CLOP_SHAPE_GROUP, CLOP_DENSE_OWN, CLOP_MANY_GROUP,
                     1u << CLDEV_FP16 | 1u << CLDEV_SUBGROUPS, 0}};
    const uint32_t floats = c->list ? 0 : c->device->limits.vector_floats;
    c->variant = "";
    if ((family->variants & ~CK_STRICT) == CK_ONE)
        family->run(c);
    for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
        const uint32_t off = variants[i].off, needed = variants[i].many == CLOP_MANY_MMA ? 1u << CLDEV_MMA : off;
        if (!(family->variants & 1u << i) || (needed && !c->list && !has_one(c->device, needed)))
            continue;
        c->variant = variants[i].name;
        if (!c->list) {
            clop_set_shape(c->side[CK_CL], variants[i].shape);
            clop_set_dense(c->side[CK_CL], variants[i].dense);
            clop_set_many(c->side[CK_CL], variants[i].many);
            c->device->limits.tiers_off = off;
            c->device->limits.vector_floats = variants[i].floats ? variants[i].floats : floats;
        }
        family->run(c);
        if (!c->list) {
            c->device->limits.tiers_off = 0;
            c->device->limits.vector_floats = floats;
        }
    }
    if (family->variants & CK_STRICT)
        run_strict(c, family);
}
