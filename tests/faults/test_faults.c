/*
 * Allocations and calls on files that fail, one after the other, while a model is loaded, reads a prompt, answers and
 * is closed: on the reference, and on each OpenCL device. Each run ends with a named error, or with the same logits
 * where what failed can be done without (a cache file); what was open closes, and nothing of ours stays allocated.
 * Every fault on the reference; on a device FAULTS of each kind, or all with DCM_TEST_FAULTS=all.
 */
#include <dcm/dcm.h>
#include <dcm/log.h>

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/memory.h"
#include "support/tiny_model.h"

enum { PROMPT = 40, ANSWER = 6, FAULTS = 20 };

static char folder[] = "/tmp/dcm-faults-XXXXXX", model_path[64];
static const char merge_path[] = TEST_GOLDEN "/merge/gate_d16_b1.safetensors";
static float right[512], logits[512];

/* Everything that was opened; the status of what failed first. */
typedef struct rig {
    dcm_device *device;
    dcm_tokenizer *tokenizer;
    dcm_model *model;
    dcm_session *session;
    int32_t *ids;
    size_t count;
} rig;

static dcm_status begin(rig *r, const char *device)
{
    const dcm_device_params where = {.name = device, .threads = 1};
    const dcm_cache_params cache = {.kind = DCM_CACHE_DCM, .group = 4, .merge = merge_path, .chunk = 16};
    static const char text[] = "the cat and the hat sat on the mat, and then there was more of it all for the reader";
    dcm_status status = dcm_device_open(&r->device, &where);
    if (status == DCM_OK)
        status = dcm_tokenizer_open(&r->tokenizer, model_path);
    if (status == DCM_OK)
        status = dcm_tokenize(r->tokenizer, text, sizeof text - 1, 0, &r->ids, &r->count);
    if (status == DCM_OK)
        status = dcm_model_open(&r->model, r->device, model_path);
    if (status == DCM_OK)
        status = dcm_session_open(&r->session, r->model, &cache);
    return status;
}

/* Feed the prompt at once, then single tokens; logits are those of the last. */
static dcm_status feed(const rig *r)
{
    assert_true(r->count >= PROMPT + ANSWER);
    dcm_status status = dcm_session_feed(r->session, r->ids, PROMPT, logits);
    for (size_t i = 0; i < ANSWER && status == DCM_OK; i++)
        status = dcm_session_feed(r->session, r->ids + PROMPT + i, 1, logits);
    return status;
}

static dcm_status run(const char *device)
{
    rig r = {0};
    dcm_status status = begin(&r, device);
    if (status == DCM_OK)
        status = feed(&r);
    if (status != DCM_OK && r.session) {
        /* As documented: to be closed, or asked for its counters. */
        char message[4096];
        dcm_session_stats stats;
        snprintf(message, sizeof message, "%s", dcm_error());
        dcm_session_get_stats(r.session, &stats);
        assert_true(dcm_session_feed(r.session, r.ids, 1, logits) != DCM_OK);
        dcm_session_close(&r.session);
    }
    dcm_session_close(&r.session);
    dcm_model_close(&r.model);
    dcm_tokenizer_close(&r.tokenizer);
    dcm_device_close(&r.device);
    dcm_free(r.ids);
    return status;
}

/* One line that says what failed. */
static void assert_error(dcm_status status, const char *kind, long n)
{
    const char *text = dcm_error();
    if (status != DCM_ERR_MEMORY && status != DCM_ERR_FILE)
        fail_msg("%s %ld: status %s: %s", kind, n, dcm_status_name(status), text);
    if (strlen(text) < 20 || strchr(text, '\n'))
        fail_msg("%s %ld: not one line that says what failed: %s", kind, n, text);
}

typedef long fail_at(long n);

/* Let the n-th call fail; false where there are fewer. */
static bool fault(const char *device, const char *kind, fail_at *set, long n, size_t size)
{
    const size_t living = mem_living();
    memset(logits, 0, sizeof logits);
    set(n);
    dcm_status status = run(device);
    if (set(0) > 0)
        return false;
    if (status != DCM_OK)
        assert_error(status, kind, n);
    else if (memcmp(logits, right, size))
        fail_msg("%s %ld: other logits", kind, n);
    if (mem_living() != living)
        fail_msg("%s %ld: %zd blocks are not given back: %s", kind, n, (ssize_t)(mem_living() - living), dcm_error());
    return true;
}

static void all_faults(const char *device, long step_of_all)
{
    const bool all = getenv("DCM_TEST_FAULTS") != NULL;
    const struct {
        const char *kind;
        fail_at *set;
    } kinds[] = {{"allocation", mem_fail_at}, {"file call", file_fail_at}};
    const size_t living = mem_living();
    if (run(device) != DCM_OK)
        fail_msg("%s", dcm_error());
    assert_int_equal(mem_living(), living);
    memcpy(right, logits, sizeof right);
    for (size_t k = 0; k < 2; k++) {
        long calls = LONG_MAX, tried = 0;
        kinds[k].set(calls);
        assert_int_equal(run(device), DCM_OK);
        calls -= kinds[k].set(0);
        const long step = all || !step_of_all ? 1 : 1 + calls / step_of_all;
        for (long n = 1; n <= calls; n += step)
            tried += fault(device, kinds[k].kind, kinds[k].set, n, sizeof right);
        print_message("%s: %ld of %ld %ss failed in turn\n", device, tried, calls, kinds[k].kind);
        assert_true(tried > 0);
    }
}

static void test_reference(void **state)
{
    (void)state;
    all_faults("ref", 0);
}

static void test_devices(void **state)
{
    (void)state;
    dcm_device_entry *entries;
    size_t count, used = 0;
    assert_int_equal(dcm_device_list(&entries, &count), DCM_OK);
    for (size_t i = 0; i < count; i++)
        if (entries[i].usable) {
            char index[32];
            snprintf(index, sizeof index, "%u.%u", entries[i].platform_index, entries[i].device_index);
            all_faults(index, FAULTS);
            used++;
        }
    dcm_free(entries);
    if (!used)
        skip();
}

static int setup(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return 1;
    snprintf(model_path, sizeof model_path, "%s/tiny.gguf", folder);
    dcm_log_set_level(DCM_LOG_QUIET);
    return setenv("DCM_CACHE", folder, 1) || !tiny_model_save(NULL, model_path);
}

static int teardown(void **state)
{
    char command[96];
    (void)state;
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_devices)};
    return cmocka_run_group_tests_name("faults", tests, setup, teardown);
}
