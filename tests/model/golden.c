#include "golden.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "device/device.h"

bool golden_fail(const char *format, ...)
{
    va_list args;
    fputs("test: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    return false;
}

const char *golden_kv_name(dcm_kv_type kv) { return kv == DCM_KV_F32 ? "f32" : "f16"; }

bool golden_read_ids(const char *folder, int32_t *ids, size_t *count)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/ids.txt", folder);
    FILE *file = fopen(path, "r");
    if (!file)
        return golden_fail("cannot open %s", path);
    *count = 0;
    while (*count < GOLDEN_TOKENS && fscanf(file, "%" SCNd32, &ids[*count]) == 1) {
        ++*count;
        if (fgetc(file) != ',')
            break;
    }
    fclose(file);
    return *count > 1 || golden_fail("%s: no ids", path);
}

/* Row i - 1 holds index i: its token must be ids[i]. `expected` takes tokens - 1 values. */
static bool read_expected(const char *path, const int32_t *ids, size_t tokens, double *expected)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return golden_fail("cannot open %s", path);
    size_t rows = 0, index;
    int32_t token;
    double value;
    bool ok = !fscanf(file, "index,token,logprob\n");
    while (ok && fscanf(file, "%zu,%" SCNd32 ",%lf\n", &index, &token, &value) == 3) {
        ok = rows + 1 < tokens && index == rows + 1 && token == ids[index];
        if (ok)
            expected[rows++] = value;
    }
    ok = ok && feof(file) && rows + 1 == tokens;
    fclose(file);
    return ok || golden_fail("%s: row %zu does not fit ids.txt of %zu tokens", path, rows + 1, tokens);
}

static double log_prob(const float *logits, size_t vocab, int32_t token)
{
    double high = -INFINITY, sum = 0;
    for (size_t i = 0; i < vocab; i++)
        high = fmax(high, (double)logits[i]);
    for (size_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - high);
    return (double)logits[token] - high - log(sum);
}

typedef struct difference {
    double sum, max;
    size_t count, worst; /* index of the token that is furthest off */
} difference;

/* A NaN or an infinity counts as infinitely far off. */
static void difference_add(difference *d, double value, double expected, size_t index)
{
    double off = fabs(value - expected);
    if (!(off <= 1e30))
        off = INFINITY;
    d->sum += off;
    d->count++;
    if (off > d->max || d->count == 1) {
        d->max = off;
        d->worst = index;
    }
}

static bool feed_and_compare(dcm_session *session, size_t vocab, const int32_t *ids, const double *expected,
                             size_t tokens, size_t chunk, difference *d)
{
    float *logits = malloc(vocab * sizeof *logits);
    bool ok = logits != NULL;
    for (size_t i = 0; ok && i + chunk < tokens; i += chunk) {
        ok = dcm_session_feed(session, ids + i, chunk, logits) == DCM_OK;
        if (ok)
            difference_add(d, log_prob(logits, vocab, ids[i + chunk]), expected[i + chunk - 1], i + chunk);
    }
    free(logits);
    return ok || golden_fail("feeding failed: %s", dcm_error());
}

/* All tokens by dcm_session_feed_each, in steps of the session's own choosing. */
static bool feed_each_and_compare(dcm_session *session, size_t vocab, const int32_t *ids, const double *expected,
                                  size_t tokens, difference *d)
{
    float *logits = malloc((tokens - 1) * vocab * sizeof *logits);
    const bool ok = logits && dcm_session_feed_each(session, ids, tokens - 1, logits) == DCM_OK;
    for (size_t i = 0; ok && i + 1 < tokens; i++)
        difference_add(d, log_prob(logits + i * vocab, vocab, ids[i + 1]), expected[i], i + 1);
    free(logits);
    return ok || golden_fail("feeding failed: %s", dcm_error());
}

bool golden_compare(dcm_model *model, const char *device, const char *folder, const char *prefix, const golden_case *c,
                    dcm_kv_type kv, size_t chunk, golden_bounds bounds, const int32_t *ids)
{
    char path[1024], label[160];
    double expected[GOLDEN_TOKENS];
    dcm_model_info info;
    dcm_session *session = NULL;
    dcm_cache_params params = c->params;
    difference d = {0};
    params.kv = kv;
    dcm_model_get_info(model, &info);
    snprintf(path, sizeof path, "%s/%s%s.csv", folder, prefix, c->name);
    snprintf(label, sizeof label, "%s %s%s %s by %zu", device, prefix, c->name, golden_kv_name(kv), chunk);
    if (!chunk)
        snprintf(label, sizeof label, "%s %s%s %s in steps", device, prefix, c->name, golden_kv_name(kv));
    if (!read_expected(path, ids, c->tokens, expected))
        return false;
    if (dcm_session_open(&session, model, &params) != DCM_OK)
        return golden_fail("%s: %s", label, dcm_error());
    const bool fed = chunk ? feed_and_compare(session, info.vocab, ids, expected, c->tokens, chunk, &d)
                           : feed_each_and_compare(session, info.vocab, ids, expected, c->tokens, &d);
    dcm_session_close(&session);
    if (!fed || !d.count)
        return golden_fail("%s: nothing compared", label);
    const double mean = d.sum / (double)d.count;
    const bool ok = mean <= bounds.mean && d.max <= bounds.max;
    printf("%s: mean %.2e (at most %.0e), max %.2e (at most %.0e) at token %zu: %s\n", label, mean, bounds.mean, d.max,
           bounds.max, d.worst, ok ? "ok" : "TOO FAR OFF");
    fflush(stdout);
    return ok;
}

bool golden_same_bits(dcm_model *model, const char *device, const char *label, const dcm_cache_params *params,
                      const int32_t *ids, size_t count, size_t same)
{
    dcm_session *session = NULL, *full = NULL;
    const dcm_cache_params plain = {.kind = DCM_CACHE_FULL, .kv = params->kv};
    dcm_model_info info;
    dcm_model_get_info(model, &info);
    float *logits = malloc(2 * sizeof *logits * info.vocab);
    bool ok = logits && dcm_session_open(&session, model, params) == DCM_OK &&
              dcm_session_open(&full, model, &plain) == DCM_OK;
    if (!ok)
        golden_fail("%s %s: %s", device, label, dcm_error());
    for (size_t i = 0; ok && i < count && i <= same; i++) {
        ok = dcm_session_feed(session, ids + i, 1, logits) == DCM_OK &&
             dcm_session_feed(full, ids + i, 1, logits + info.vocab) == DCM_OK;
        if (!ok) {
            golden_fail("%s %s: %s", device, label, dcm_error());
            break;
        }
        const bool equal = !memcmp(logits, logits + info.vocab, sizeof *logits * info.vocab);
        ok = equal == (i < same);
        if (!ok)
            golden_fail("%s %s: after token %zu the logits are %s those of the full cache", device, label, i + 1,
                        equal ? "still" : "not");
    }
    if (ok)
        printf("%s %s %s: the bits of the full cache for %zu tokens: ok\n", device, label, golden_kv_name(params->kv),
               count < same ? count : same);
    free(logits);
    dcm_session_close(&session);
    dcm_session_close(&full);
    return ok;
}

bool golden_devices(char (*names)[DEVICE_NAME], size_t *count)
{
    const char *chosen = getenv("DCM_TEST_DEVICE");
    *count = 1;
    snprintf(names[0], DEVICE_NAME, "%s", chosen && *chosen ? chosen : "ref");
    if (chosen && *chosen)
        return true;
    cldev_entry *entries = NULL;
    size_t found;
    if (cldev_list(&entries, &found) != DCM_OK)
        return golden_fail("cannot list the OpenCL devices: %s", dcm_error());
    for (size_t i = 0; i < found && *count < DEVICE_NAMES; i++)
        snprintf(names[(*count)++], DEVICE_NAME, "%u.%u", entries[i].platform, entries[i].index);
    mem_free(&entries);
    if (!found)
        fprintf(stderr, "test: no OpenCL device here: only ref is tested\n");
    return true;
}
