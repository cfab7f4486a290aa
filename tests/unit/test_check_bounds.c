/* Bounds in `dcm check`: of a tree of merges by gaps, exact and disturbed as far as the bounds allow; what references
 * tell. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "check.h"

enum { D = 8, TOKENS = 16, LEVELS = 4, SINKS = 3, HEADS = 2, TRIALS = 400 };

static const double token = 1e-6, gap_noise = 0x1p-18, sharp = 4;

/* One head's units, level by level: (LEVELS + 1, TOKENS >> level, D), and the gaps that they were merged by. */
typedef struct tree {
    double unit[LEVELS + 1][TOKENS][D], gap[LEVELS][TOKENS];
} tree;

static double between(uint64_t *rng, double most) { return (2 * rng_uniform(rng) - 1) * most; }

static double length(const double *x)
{
    double squares = 0;
    for (int c = 0; c < D; c++)
        squares += x[c] * x[c];
    return sqrt(squares);
}

/* Merge all levels; with `disturb` every token is off by at most `token` and every gap of `exact` by 8 * gap_noise. */
static void build(tree *t, const tree *exact, uint64_t *disturb)
{
    for (int u = 0; disturb && u < TOKENS; u++)
        for (int c = 0; c < D; c++)
            t->unit[0][u][c] = exact->unit[0][u][c] + between(disturb, token);
    for (int g = 0; g < LEVELS; g++)
        for (int u = 0; u < TOKENS >> (g + 1); u++) {
            const double *a = t->unit[g][2 * u], *b = t->unit[g][2 * u + 1];
            const double sign = disturb && rng_uniform(disturb) < 0.5 ? -1 : 1;
            t->gap[g][u] = disturb ? exact->gap[g][u] + sign * CHECK_FACTOR * gap_noise : length(a) - length(b);
            const double w = 1 / (1 + exp(-sharp * t->gap[g][u]));
            for (int c = 0; c < D; c++)
                t->unit[g + 1][u][c] = w * a[c] + (1 - w) * b[c];
        }
}

/* What both references tell of the merges, head by head; the second's gaps are off by at most gap_noise. */
static void tell(check_run *run, const tree *heads)
{
    for (int g = 0; g < LEVELS; g++)
        for (int u = 0; u < TOKENS >> (g + 1); u++) {
            check_chosen ref[HEADS], floats[HEADS];
            for (int h = 0; h < HEADS; h++) {
                const tree *t = &heads[h];
                double spread = 0;
                for (int c = 0; c < D; c++)
                    spread = fmax(spread, fabs(t->unit[g][2 * u][c] - t->unit[g][2 * u + 1][c]));
                ref[h] = (check_chosen){0, {(uint32_t)g, (float)t->gap[g][u], {0, sharp}, {0, (float)spread}}};
                floats[h] = ref[h];
                floats[h].choice.gap += g + u + h ? 0 : (float)gap_noise;
            }
            run->side[run->ref].chosen = ref;
            run->side[run->with_floats].chosen = floats;
            run->side[run->ref].n_chosen = run->side[run->with_floats].n_chosen = HEADS;
            assert_true(check_take_choices(run));
        }
}

static double bound_of(const check_run *run, int g, int u, int h)
{
    const dcm_unit unit = {SINKS + ((uint64_t)u << g), (uint64_t)1 << g, (uint32_t)g};
    return check_unit_bound(run, &unit, 0, (uint32_t)h, 1, token);
}

/* Largest difference of two trees' units, as a part of their bounds. */
static double worst_of(const check_run *run, const tree *a, const tree *b, int h)
{
    double worst = 0;
    for (int g = 0; g <= LEVELS; g++)
        for (int u = 0; u < TOKENS >> g; u++)
            for (int c = 0; c < D; c++)
                worst = fmax(worst, fabs(a->unit[g][u][c] - b->unit[g][u][c]) / bound_of(run, g, u, h));
    return worst;
}

static void bounds_hold(void **state)
{
    check_run *run = calloc(1, sizeof *run);
    tree exact[HEADS];
    uint64_t rng = 1;
    double worst = 0, blind = 0;
    (void)state;
    assert_non_null(run);
    run->ref = 1;
    run->with_floats = 2;
    run->job.cache.sinks = SINKS;
    run->side[0].model = (check_model){.layers = 1, .kv_heads = HEADS, .head_dim = D};
    assert_true(bound_of(run, 2, 1, 0) == token); /* no scorer: nothing was told */
    for (int h = 0; h < HEADS; h++) {
        for (int i = 0; i < TOKENS * D; i++)
            exact[h].unit[0][i / D][i % D] = between(&rng, 3);
        build(&exact[h], NULL, NULL);
    }
    tell(run, exact);
    assert_true(run->gap_off[0] == CHECK_FACTOR * gap_noise);
    const double known = run->gap_off[0];
    for (int i = 0; i < TRIALS; i++) {
        tree off;
        build(&off, &exact[i % HEADS], &rng);
        worst = fmax(worst, worst_of(run, &exact[i % HEADS], &off, i % HEADS));
        run->gap_off[0] = 0; /* as if a gap were always exact */
        blind = fmax(blind, worst_of(run, &exact[i % HEADS], &off, i % HEADS));
        run->gap_off[0] = known;
    }
    assert_true(worst <= 1 && worst > 0.8);
    assert_true(blind > 2);
    check_free_choices(run);
    free(run);
}

/* check_apart: another number of each reference. */
static double told(const check_run *run, size_t other, size_t at)
{
    (void)run;
    return (double)(10 * other + at);
}

static void references_tell(void **state)
{
    check_run *run = calloc(1, sizeof *run);
    (void)state;
    assert_non_null(run);
    run->sides = 4;
    run->with_floats = 2;
    assert_true(check_allowed(run, told, 1) == 8 * 21);
    run->side[3].in_f32 = true;
    assert_true(check_allowed(run, told, 1) == 8 * 21 + 2 * 31);
    const float values[] = {1, -3, 2};
    assert_true(check_bound(DCM_KV_F32, 0, values, 3) == 3 * 0x1p-23);
    assert_true(check_bound(DCM_KV_F16, 0, values, 3) == 3 * 0x1p-10);
    assert_true(check_bound(DCM_KV_F16, 1, values, 3) == 1);
    free(run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(bounds_hold), cmocka_unit_test(references_tell)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
