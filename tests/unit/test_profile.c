/* Counting what runs on a device, through the public interface, on the reference and every OpenCL device. */
#include <dcm/dcm.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/tiny_model.h"

enum { MANY = 800 }; /* steps whose launches are more than the events kept at a time */

typedef struct subject {
    dcm_device *device;
    dcm_model *model;
    dcm_model_info info;
    float *logits;
} subject;

static char path[] = "/tmp/dcm-profile-XXXXXX";

static int setup(void **state)
{
    (void)state;
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_true(tiny_model_save(NULL, path));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unlink(path);
    return 0;
}

static void must(dcm_status status)
{
    if (status != DCM_OK)
        fail_msg("%s", dcm_error());
}

static void on_device(const char *name, void (*run)(subject *))
{
    subject s = {0};
    must(dcm_device_open(&s.device, &(dcm_device_params){.name = name}));
    must(dcm_model_open(&s.model, s.device, path));
    dcm_model_get_info(s.model, &s.info);
    s.logits = malloc(2 * s.info.vocab * sizeof *s.logits);
    assert_non_null(s.logits);
    run(&s);
    free(s.logits);
    dcm_model_close(&s.model);
    dcm_device_close(&s.device);
}

static void everywhere(void (*run)(subject *))
{
    dcm_device_entry *entries;
    size_t count;
    on_device("ref", run);
    must(dcm_device_list(&entries, &count));
    for (size_t i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "%u.%u", entries[i].platform_index, entries[i].device_index);
        if (entries[i].usable)
            on_device(name, run);
    }
    dcm_free(entries);
}

static dcm_session *open_session(const subject *s, dcm_cache_kind kind)
{
    dcm_session *session = NULL;
    must(dcm_session_open(
        &session, s->model,
        &(dcm_cache_params){.kind = kind, .group = kind == DCM_CACHE_DCM ? 4 : 0, .merge = kind ? NULL : "newer"}));
    return session;
}

static void step(const subject *s, dcm_session *session, int i, float *logits)
{
    const int32_t id = (int32_t)((uint32_t)i * 7919u % s->info.vocab);
    must(dcm_session_feed(session, &id, 1, logits));
}

static uint64_t launches(const dcm_profile *p, const char *family)
{
    uint64_t n = 0;
    for (size_t i = 0; i < p->count; i++)
        n += !family || !strcmp(p->entries[i].family, family) ? p->entries[i].launches : 0;
    return n;
}

static uint64_t busy(const dcm_profile *p)
{
    uint64_t ns = 0;
    for (size_t i = 0; i < p->count; i++)
        ns += p->entries[i].ns;
    return ns;
}

/* One step: each layer attends and multiplies; only a step with a merge has one; times lie within the span. */
static void check_step(subject *s)
{
    dcm_session *session = open_session(s, DCM_CACHE_DCM);
    dcm_device_info info;
    dcm_profile p;
    dcm_device_get_info(s->device, &info);
    for (int i = 0, merges = 0; i < 24; i++) {
        dcm_session_stats stats;
        must(dcm_device_profile(s->device, true, NULL));
        step(s, session, i, s->logits);
        must(dcm_device_profile(s->device, false, &p));
        dcm_session_get_stats(session, &stats);
        assert_true(launches(&p, "attention") >= s->info.layers);
        assert_true(launches(&p, "linear") >= (info.is_ref ? 4 : 1) * s->info.layers + 1); /* or chains of them */
        assert_int_equal(launches(&p, "merge"), stats.merges - (uint64_t)merges);
        assert_true(busy(&p) > 0 && p.span_ns >= busy(&p));
        if (info.is_ref) {
            assert_int_equal(launches(&p, "attention"), s->info.layers);
            assert_int_equal(p.wait_ns, 0);
        } else {
            assert_true(launches(&p, "transfer") >= 2 && p.wait_ns > 0);
        }
        merges = (int)stats.merges;
    }
    dcm_session_close(&session);
}

/* A prompt's keys and values are stored by an operation of their own. */
static void check_prompt(subject *s)
{
    const int32_t ids[5] = {1, 2, 3, 4, 5};
    dcm_session *session = open_session(s, DCM_CACHE_FULL);
    dcm_profile p;
    must(dcm_device_profile(s->device, true, NULL));
    must(dcm_session_feed(session, ids, 5, s->logits));
    must(dcm_device_profile(s->device, false, &p));
    assert_true(launches(&p, "cache") >= s->info.layers && launches(&p, "attention") >= s->info.layers);
    dcm_session_close(&session);
}

/* But for transfers: what is on the device already is not written again. */
static uint64_t kernels(const dcm_profile *p) { return launches(p, NULL) - launches(p, "transfer"); }

/* Taken after every step or once at the end, it is the same count; nothing is counted while it is off. */
static void check_sums(subject *s)
{
    uint64_t each = 0;
    dcm_profile p;
    for (int often = 1; often >= 0; often--) {
        dcm_session *session = open_session(s, DCM_CACHE_FULL);
        step(s, session, 0, s->logits);
        must(dcm_device_profile(s->device, true, &p));
        assert_int_equal(p.count, 0);
        for (int i = 0; i < MANY; i++) {
            step(s, session, i, s->logits);
            if (often) {
                must(dcm_device_profile(s->device, true, &p));
                each += kernels(&p);
            }
        }
        must(dcm_device_profile(s->device, false, &p));
        if (often)
            assert_int_equal(launches(&p, NULL), 0);
        else
            assert_int_equal(kernels(&p), each);
        step(s, session, MANY, s->logits);
        must(dcm_device_profile(s->device, false, &p));
        assert_int_equal(p.count, 0);
        dcm_session_close(&session);
    }
    assert_true(each > 4096);
}

/* The same bits with and without. */
static void check_results(subject *s)
{
    const size_t bytes = s->info.vocab * sizeof *s->logits;
    for (int on = 0; on < 2; on++) {
        dcm_session *session = open_session(s, DCM_CACHE_DCM);
        for (int i = 0; i < 20; i++) {
            must(dcm_device_profile(s->device, on && i % 3 == 1, NULL));
            step(s, session, i, s->logits + on * s->info.vocab);
        }
        must(dcm_device_profile(s->device, false, NULL));
        dcm_session_close(&session);
    }
    assert_memory_equal(s->logits, s->logits + s->info.vocab, bytes);
}

/* A device is closed with events still pending. */
static void check_left(subject *s)
{
    dcm_session *session = open_session(s, DCM_CACHE_FULL);
    must(dcm_device_profile(s->device, true, NULL));
    step(s, session, 0, s->logits);
    dcm_session_close(&session);
}

static void steps(void **state) { (void)state, everywhere(check_step); }
static void prompt(void **state) { (void)state, everywhere(check_prompt); }
static void sums(void **state) { (void)state, everywhere(check_sums); }
static void results(void **state) { (void)state, everywhere(check_results); }
static void left(void **state) { (void)state, everywhere(check_left); }

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(steps), cmocka_unit_test(prompt), cmocka_unit_test(sums),
                                       cmocka_unit_test(results), cmocka_unit_test(left)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
