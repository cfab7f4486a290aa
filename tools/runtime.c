#include "runtime.h"

#include "input.h"
#include "tool.h"
#include "version.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int runtime_open(runtime *r, const device_options *device, const char *model)
{
    char path[4096];
    *r = (runtime){0};
    int code = input_model_path(model, path, sizeof path);
    if (code)
        return code;
    dcm_status status = dcm_tokenizer_open(&r->tokenizer, path);
    if (status != DCM_OK)
        return tool_fail_library(status);
    code = options_open_device(device, &r->device);
    if (code)
        return code;
    status = dcm_model_open(&r->model, r->device, path);
    if (status != DCM_OK)
        return tool_fail_library(status);
    dcm_model_get_info(r->model, &r->info);
    if (dcm_vocab_size(r->tokenizer) > r->info.vocab)
        return tool_fail(DCM_ERR_FILE, "%s: the tokenizer has %zu tokens, the model's vocabulary only %u rows", path,
                         dcm_vocab_size(r->tokenizer), r->info.vocab);
    return 0;
}

void runtime_close(runtime *r)
{
    dcm_model_close(&r->model);
    dcm_device_close(&r->device);
    dcm_tokenizer_close(&r->tokenizer);
}

/* The processor's name as the kernel tells it. */
static void host_cpu(char *out, size_t size)
{
    char line[512];
    snprintf(out, size, "unknown");
    FILE *in = fopen("/proc/cpuinfo", "r");
    if (!in)
        return;
    while (fgets(line, sizeof line, in)) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon) {
            line[strcspn(line, "\n")] = 0;
            snprintf(out, size, "%s", colon + 1 + strspn(colon + 1, " "));
            break;
        }
    }
    fclose(in);
}

json_t *runtime_text(const char *text)
{
    json_t *json = json_string(text ? text : "");
    char *copy = json ? NULL : strdup(text);
    if (!copy)
        return json;
    for (char *c = copy; *c; c++)
        if ((unsigned char)*c >= 0x80)
            *c = '?';
    json = json_string(copy);
    free(copy);
    return json;
}

json_t *runtime_host_meta(void)
{
    char cpu[256], date[32] = "";
    struct tm utc;
    const time_t now = time(NULL);
    if (gmtime_r(&now, &utc))
        strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &utc);
    host_cpu(cpu, sizeof cpu);
    return json_pack("{s:s,s:o,s:s,s:o}", "commit", DCM_COMMIT, "host_cpu", runtime_text(cpu), "date", date,
                     "command_line", runtime_text(tool_command_line()));
}

void runtime_add_device(json_t *meta, dcm_device *device)
{
    char tuning[128] = "", tiers[128] = "";
    dcm_device_tier tier[DCM_DEVICE_TIERS];
    dcm_tuning_choice choice[DCM_TUNING_CHOICES];
    dcm_device_info info;
    const size_t count = dcm_device_tuning(device, choice);
    dcm_device_get_info(device, &info);
    for (size_t i = 0, used = 0; i < count && used < sizeof tuning; i++)
        used += (size_t)snprintf(tuning + used, sizeof tuning - used, "%s%s=%s", i ? " " : "", choice[i].choice,
                                 choice[i].value);
    const size_t n_tiers = dcm_device_tiers(device, tier);
    for (size_t i = 0, used = 0; i < n_tiers && used < sizeof tiers; i++)
        if (tier[i].used)
            used += (size_t)snprintf(tiers + used, sizeof tiers - used, "%s%s", used ? " " : "", tier[i].name);
    json_t *own =
        json_pack("{s:o,s:o,s:o,s:s,s:s}", "device", runtime_text(info.name), "driver", runtime_text(info.driver),
                  "platform", runtime_text(info.platform), "tuning", tuning, "tiers", tiers);
    json_object_update(meta, own);
    json_decref(own);
}

json_t *runtime_meta(const runtime *r)
{
    char digest[32];
    json_t *meta = runtime_host_meta();
    runtime_add_device(meta, r->device);
    snprintf(digest, sizeof digest, "%016llx", (unsigned long long)r->info.digest);
    json_object_set_new(meta, "model", runtime_text(r->info.name));
    json_object_set_new(meta, "model_digest", json_string(digest));
    return meta;
}

dcm_cache_params runtime_same_cache(const dcm_cache_params *params, const dcm_session *session)
{
    dcm_session_stats stats;
    dcm_cache_params same = *params;
    dcm_session_get_stats(session, &stats);
    if (params->kind == DCM_CACHE_DCM && !params->merge && !strcmp(stats.merge, "newer"))
        same.merge = stats.merge;
    return same;
}

double runtime_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double per_second(uint64_t tokens, double seconds) { return seconds > 0 ? (double)tokens / seconds : 0; }

void runtime_print_stats(const runtime *r, const dcm_session *session, const runtime_times *times)
{
    dcm_session_stats s;
    dcm_device_info device;
    dcm_session_get_stats(session, &s);
    dcm_device_get_info(r->device, &device);
    fprintf(stderr, "device:         %s (%s)\n", device.name, device.platform);
    fprintf(stderr, "tokens in:      %llu, %.1f tokens/s\n", (unsigned long long)times->tokens_in,
            per_second(times->tokens_in, times->prefill_seconds));
    fprintf(stderr, "tokens out:     %llu, %.1f tokens/s\n", (unsigned long long)times->tokens_out,
            per_second(times->decoded, times->decode_seconds));
    fprintf(stderr, "units:          %zu for %llu tokens, %zu bytes each\n", s.units, (unsigned long long)s.tokens,
            s.unit_bytes);
    fprintf(stderr, "merges:         %llu%s%s\n", (unsigned long long)s.merges, s.merge && *s.merge ? ", by " : "",
            s.merge ? s.merge : "");
    fprintf(stderr, "cache bytes:    %zu (the full cache of these tokens: %llu)\n", s.cache_bytes,
            (unsigned long long)s.tokens * s.unit_bytes);
    fprintf(stderr, "table bytes:    %zu\n", s.table_bytes);
    fprintf(stderr, "scratch bytes:  %zu\n", s.scratch_bytes);
    fprintf(stderr, "weight bytes:   %zu\n", s.weight_bytes);
    fprintf(stderr, "peak bytes:     %zu\n", s.peak_bytes);
    fprintf(stderr, "written bytes:  %llu a token\n", (unsigned long long)(s.tokens ? s.cache_written / s.tokens : 0));
}
