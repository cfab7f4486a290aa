/*
 * A training step of the scorer and of pair MLPs on tiny random models (tests/golden/train) against PyTorch's autograd,
 * on `ref` and on every OpenCL device: the loss's terms, and the gradient of every parameter through the frozen layers,
 * attention and all levels of merges, for each term alone and for all of them with weights.
 */
#include "golden.h"

#include "base/memory.h"
#include "io/safetensors.h"
#include "train/sequence.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER TEST_GOLDEN "/train"

/*
 * An array's gradients may be off by SLACK times what float32 in PyTorch was off in the worst array, as a part of the
 * array's largest gradient: the same roundings in another order. A loss, of which few sums are taken, by LOSS_BOUND of
 * itself.
 */
enum { TERMS = 4, MAGNITUDE = 2, ARRAYS_MAX = 32, SLACK = 4 };
#define LOSS_BOUND 1e-5

static const char *const term_names[TERMS] = {"kl", "il", "magnitude", "boundary"};
static const loss_weights alone[TERMS] = {{.kl = 1}, {.il = 1}, {.magnitude = 1}, {.boundary = 1}},
                          together = {.kl = 0.5f, .il = 2, .magnitude = 30, .boundary = 0.125f};

static const char *const cases[] = {"llama", "qwen2"};

typedef struct train_golden {
    uint32_t group, sinks;
    dcm_train_params params_of;           /* what makes a learner of this shape */
    size_t rows, row;                     /* rows of parameters; floats of one */
    size_t count;                         /* of all of them */
    size_t arrays, start[ARRAYS_MAX + 1]; /* where a row's trained arrays begin, and where the last one ends */
    float *params, *kl, *terms, *rounding, *grad[TERMS];
} train_golden;

/* What the gradients of one pass are held against. */
typedef struct expected {
    double *gradient; /* as params */
    double part;      /* of the largest in an array that they may be off, before SLACK */
} expected;

static bool read_array(const safetensors *file, const char *name, size_t items, float **out)
{
    const st_tensor *t = safetensors_find(file, name);
    if (!t || t->items != items || mem_new(out, items, sizeof **out, name) != DCM_OK ||
        safetensors_to_float(file, t, *out) != DCM_OK)
        return golden_fail("no array %s of %zu items", name, items);
    return true;
}

static void score_arrays(train_golden *g, const dcm_model_info *m, const float *facts)
{
    const score_shape shape = {m->head_dim, (uint32_t)facts[2], (uint32_t)facts[3]};
    const score_layout l = score_layout_of(shape);
    const size_t all[] = {l.w1,   l.b1,        l.w2,      l.u,       l.r,          l.prior,
                          l.bias, l.deviation, l.sharp_k, l.sharp_v, l.sharp_v + 1};
    g->params_of = (dcm_train_params){.hidden = shape.hidden, .levels = shape.levels};
    g->rows = (size_t)m->layers * m->kv_heads;
    g->row = l.row;
    g->arrays = sizeof all / sizeof *all - 1;
    memcpy(g->start, all, sizeof all);
}

static void pair_arrays(train_golden *g, const dcm_model_info *m, const float *facts)
{
    const pair_shape shape = {m->head_dim, (uint32_t)facts[2], facts[3] > 0};
    g->params_of = (dcm_train_params){.arch = shape.direct ? DCM_TRAIN_DIRECT : DCM_TRAIN_GATE,
                                      .depth = shape.blocks * MERGE_LINEARS};
    g->rows = 1;
    g->row = pair_count(shape);
    for (uint32_t i = 0; i < pair_linears(shape) && g->arrays + 2 <= ARRAYS_MAX; i++) {
        const pair_linear map = pair_linear_of(shape, i);
        g->start[g->arrays++] = map.at;
        g->start[g->arrays++] = map.at + (size_t)map.out * map.in;
    }
    g->start[g->arrays] = g->row;
}

/* Facts: L, sinks, and of a scorer its hidden units and levels, of a pair MLP its blocks and 1 for a direct head. */
static bool golden_read(train_golden *g, const char *path, const dcm_model_info *m, size_t tokens, bool pair)
{
    safetensors *file = NULL;
    float *facts = NULL;
    char name[32];
    if (safetensors_open(&file, path) != DCM_OK)
        return golden_fail("%s", dcm_error());
    bool ok = read_array(file, "facts", 4, &facts);
    if (ok) {
        g->group = (uint32_t)facts[0];
        g->sinks = (uint32_t)facts[1];
        (pair ? pair_arrays : score_arrays)(g, m, facts);
        g->params_of.tokens = (uint32_t)tokens;
        g->count = g->rows * g->row;
    }
    ok = ok && read_array(file, "params", g->count, &g->params) && read_array(file, "kl", tokens, &g->kl) &&
         read_array(file, "terms", TERMS, &g->terms) && read_array(file, "rounding", TERMS, &g->rounding);
    for (size_t i = 0; i < TERMS; i++) {
        snprintf(name, sizeof name, "grad.%s", term_names[i]);
        ok = ok && ((pair && i == MAGNITUDE) || read_array(file, name, g->count, &g->grad[i]));
    }
    mem_free(&facts);
    safetensors_close(&file);
    return ok;
}

static void golden_close(train_golden *g)
{
    mem_free(&g->params);
    mem_free(&g->kl);
    mem_free(&g->terms);
    mem_free(&g->rounding);
    for (size_t i = 0; i < TERMS; i++)
        mem_free(&g->grad[i]);
}

/* The largest part of its bound that a gradient is off; infinity for NaN. */
static double worst_of(const train_golden *g, const expected *e, const float *got)
{
    const size_t row = g->row, *start = g->start;
    double worst = 0;
    for (size_t a = 0; a < g->arrays; a++) {
        double largest = 0;
        for (size_t i = 0; i < g->rows; i++)
            for (size_t c = start[a]; c < start[a + 1]; c++)
                largest = fmax(largest, fabs(e->gradient[i * row + c]));
        for (size_t i = 0; i < g->rows; i++)
            for (size_t c = start[a]; c < start[a + 1]; c++) {
                const double off = fabs(got[i * row + c] - e->gradient[i * row + c]);
                const double share = off / (SLACK * e->part * largest);
                if (!(share <= worst))
                    worst = share >= 0 ? share : INFINITY;
            }
    }
    return worst;
}

/* One pass over one sequence: the terms and the gradient. */
static bool learn(sequence *s, learner *l, const train_golden *g, const int32_t *ids, loss_weights weights, float *got,
                  loss_terms *terms)
{
    return l->arch->forget(l) == DCM_OK &&
           sequence_learn(s, ids, l, g->group, weights, (loss_positions){0}, terms) == DCM_OK &&
           l->arch->read(l, got) == DCM_OK;
}

static bool close_to(double got, double wanted, double bound) { return fabs(got - wanted) <= bound; }

/* The terms that have weights; the boundary term's queries are all looked at, as there are at most 64. */
static bool check_terms(const train_golden *g, const loss_weights *w, const loss_terms *t)
{
    const double got[TERMS] = {t->kl, t->il, t->magnitude, t->boundary};
    const bool wanted[TERMS] = {true, w->il > 0, w->magnitude > 0, w->boundary > 0};
    for (size_t i = 0; i < TERMS; i++) {
        const double value = wanted[i] ? (double)g->terms[i] : 0;
        if (!close_to(got[i], value, LOSS_BOUND * value))
            return golden_fail("the term %s is %.9g, not %.9g", term_names[i], got[i], value);
    }
    return true;
}

/* KL at each token that sees merged units. */
static bool check_kl(sequence *s, learner *l, const train_golden *g, const int32_t *ids)
{
    float kl[GOLDEN_TOKENS];
    const uint32_t first = 2 * g->group - 1 + g->sinks, n = s->n - first;
    double mean;
    if (sequence_test(s, ids, l, g->group, &mean) != DCM_OK ||
        s->ops->ops->read(s->loss, 0, kl, n * sizeof *kl) != DCM_OK)
        return golden_fail("%s", dcm_error());
    for (uint32_t i = 0; i < n; i++)
        if (!close_to(kl[i], g->kl[first + i], LOSS_BOUND * (double)g->terms[0]))
            return golden_fail("KL at token %u is %.9g, not %.9g", first + i, (double)kl[i], (double)g->kl[first + i]);
    return true;
}

/* Each term alone, then all; results into got (TERMS + 1, count). */
static bool check_passes(sequence *s, learner *l, const train_golden *g, const int32_t *ids, const char *label,
                         float *got)
{
    const bool magnitude = g->grad[MAGNITUDE] != NULL;
    const double weight[TERMS] = {together.kl, together.il, magnitude ? together.magnitude : 0, together.boundary};
    expected e = {0};
    bool ok = mem_new(&e.gradient, g->count, sizeof *e.gradient, "gradients") == DCM_OK;
    for (size_t i = 0; ok && i <= TERMS; i++) {
        const loss_weights *w = i < TERMS ? &alone[i] : &together;
        loss_terms terms;
        if (i == MAGNITUDE && !magnitude)
            continue;
        memset(e.gradient, 0, g->count * sizeof *e.gradient);
        e.part = 0;
        for (size_t t = 0; t < TERMS; t++) {
            const double by = i < TERMS ? (double)(i == t) : weight[t];
            for (size_t c = 0; c < g->count && by > 0; c++)
                e.gradient[c] += by * g->grad[t][c];
            e.part = fmax(e.part, by > 0 ? (double)g->rounding[t] : 0);
        }
        if (!learn(s, l, g, ids, *w, got + i * g->count, &terms)) {
            ok = golden_fail("%s: %s", label, dcm_error());
            break;
        }
        const double worst = worst_of(g, &e, got + i * g->count);
        const bool fine = check_terms(g, w, &terms) && worst <= 1;
        printf("%s %s: %.3f of the bound: %s\n", label, i < TERMS ? term_names[i] : "all", worst,
               fine ? "ok" : "FAILED");
        ok = fine && ok;
    }
    mem_free(&e.gradient);
    return ok;
}

/* With activations kept and with layers run again, both the same bits; and a pair MLP's merges in pieces. */
static bool check_case(dcm_model *model, const train_golden *g, const int32_t *ids, size_t n, const char *label)
{
    const size_t results = (TERMS + 1) * g->count;
    learner l = {0};
    float *got = NULL;
    const int passes = g->params_of.arch == DCM_TRAIN_SCORE ? 2 : 3;
    bool ok = mem_new(&got, 3 * results, sizeof *got, "gradients") == DCM_OK &&
              learner_open(&l, model, &g->params_of) == DCM_OK && learner_use(&l, g->params) == DCM_OK;
    if (!ok)
        golden_fail("%s: %s", label, dcm_error());
    for (int pass = 0; ok && pass < passes; pass++) {
        static const char *const kinds[] = {"", " again", " in pieces"};
        sequence s = {0};
        char name[160];
        snprintf(name, sizeof name, "%s%s", label, kinds[pass]);
        l.pair.merges = pass == 2 ? 5 : l.pair.merges;
        ok = (sequence_open(&s, model, (uint32_t)n, g->sinks, pass != 1) == DCM_OK &&
              sequence_read(&s, ids, (uint32_t)n) == DCM_OK) ||
             golden_fail("%s: %s", name, dcm_error());
        ok = ok && check_kl(&s, &l, g, ids);
        ok = ok && check_passes(&s, &l, g, ids, name, got + (size_t)pass * results);
        sequence_close(&s);
    }
    if (ok && memcmp(got, got + results, results * sizeof *got))
        ok = golden_fail("%s: other bits where layers are run again", label);
    learner_close(&l);
    mem_free(&got);
    return ok;
}

static bool test_case(dcm_device *device, const char *device_name, const char *name)
{
    char path[1024], label[128];
    int32_t ids[GOLDEN_TOKENS];
    size_t n;
    dcm_model_info info;
    dcm_model *model = NULL;
    bool ok = true;
    snprintf(path, sizeof path, "%s/%s", FOLDER, name);
    if (!golden_read_ids(path, ids, &n))
        return false;
    snprintf(path, sizeof path, "%s/%s/model.gguf", FOLDER, name);
    snprintf(label, sizeof label, "%s %s", device_name, name);
    if (dcm_model_open(&model, device, path) != DCM_OK)
        return golden_fail("%s: %s", label, dcm_error());
    dcm_model_get_info(model, &info);
    for (int pair = 0; pair < 2; pair++) {
        train_golden g = {0};
        snprintf(path, sizeof path, "%s/%s/%s.safetensors", FOLDER, name, pair ? "pair" : "train");
        snprintf(label, sizeof label, "%s %s%s", device_name, name, pair ? " pair" : "");
        ok = golden_read(&g, path, &info, n, pair) && check_case(model, &g, ids, n, label) && ok;
        golden_close(&g);
    }
    dcm_model_close(&model);
    return ok;
}

int main(void)
{
    char names[DEVICE_NAMES][DEVICE_NAME];
    size_t devices;
    if (!golden_devices(names, &devices))
        return EXIT_FAILURE;
    bool ok = true;
    for (size_t i = 0; i < devices; i++) {
        dcm_device *device = NULL;
        const dcm_device_params params = {.name = names[i], .threads = strcmp(names[i], "ref") ? 0 : 1};
        if (dcm_device_open(&device, &params) != DCM_OK) {
            ok = golden_fail("%s: %s", names[i], dcm_error());
            continue;
        }
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
            ok = test_case(device, names[i], cases[c]) && ok;
        dcm_device_close(&device);
    }
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
