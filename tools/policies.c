#define _GNU_SOURCE
#include "policies.h"

#include "tool.h"

#include <dcm/plan.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NEWER "newer"

static int wrong(const char *item, const char *why)
{
    return tool_fail(DCM_ERR_USAGE, "--policies: \"%s\": %s", item, why);
}

static int read_number(const char *item, const char *key, const char *text, int64_t min, int64_t max, int64_t *out)
{
    if (args_read_int(text, min, max, out))
        return 0;
    return tool_fail(DCM_ERR_USAGE, "--policies: \"%s\": %s=%s is not an integer in %" PRId64 " .. %" PRId64, item, key,
                     text, min, max);
}

static int read_setting(policy *p, const char *item, char *key)
{
    char *value = strchr(key, '=');
    if (!value)
        return wrong(item, "a setting is KEY=VALUE, after a colon");
    *value++ = 0;
    const dcm_cache_kind kind = p->params.kind;
    int64_t n = 0;
    int code = 0;
    if (strcmp(key, "L") == 0 && kind == DCM_CACHE_DCM) {
        code = read_number(item, key, value, DCM_GROUP_MIN, DCM_GROUP_MAX, &n);
        p->params.group = (uint32_t)n;
        if (code == 0 && (n & (n - 1)))
            code = wrong(item, "L is not a power of two");
    } else if (strcmp(key, "S") == 0 && kind != DCM_CACHE_FULL) {
        code = read_number(item, key, value, 0, 65536, &n);
        p->params.sinks = n ? (int32_t)n : -1;
    } else if (strcmp(key, "W") == 0 && kind == DCM_CACHE_WINDOW) {
        p->auto_window = strcmp(value, "auto") == 0;
        if (!p->auto_window)
            code = read_number(item, key, value, 1, 1 << 28, &n);
        p->params.window = (uint32_t)n;
    } else if (strcmp(key, "merge") == 0 && kind == DCM_CACHE_DCM) {
        free(p->merge);
        p->merge = strdup(value);
        p->params.merge = p->merge && strcmp(value, "auto") != 0 ? p->merge : NULL;
    } else if (strcmp(key, "log-r") == 0 && kind == DCM_CACHE_DCM) {
        double x = 0;
        code = args_read_real(value, -100, 100, &x) ? 0 : wrong(item, "log-r is not a number in -100 .. 100");
        p->params.log_r = (float)x;
    } else if (strcmp(key, "far-limit") == 0 && kind == DCM_CACHE_DCM) {
        code = read_number(item, key, value, 0, INT32_MAX, &n);
        p->params.far_limit = n ? (int32_t)n : -1;
    } else if (strcmp(key, "kv") == 0) {
        const int kv = args_choice("f16|f32", value);
        code = kv < 0 ? wrong(item, "kv is none of f16|f32") : 0;
        p->params.kv = (dcm_kv_type)kv;
    } else {
        code = wrong(item, "settings are L, S, merge, log-r and far-limit for dcm, W and S for window, kv for all");
    }
    return code;
}

/* `item` goes to the policy, to be freed with it; `text`, a copy, is cut up. */
static int read_policy(policy *p, char *item, char *text, dcm_kv_type kv)
{
    enum { SETTINGS_MAX = 8 };
    char *rest, *word = strtok_r(text, ":", &rest), *seen[SETTINGS_MAX];
    const int kind = word ? args_choice("dcm|full|window", word) : -1;
    *p = (policy){.params = {.kind = (dcm_cache_kind)kind, .kv = kv}, .text = item};
    if (kind < 0)
        return wrong(item, "a policy begins with dcm, full or window");
    if (kind == DCM_CACHE_DCM)
        p->params.group = 256;
    if (kind != DCM_CACHE_FULL)
        p->params.sinks = DCM_DEFAULT_SINKS;
    for (size_t i = 0; (word = strtok_r(NULL, ":", &rest)); i++) {
        const int code = i < SETTINGS_MAX ? read_setting(p, item, word) : wrong(item, "too many settings");
        if (code)
            return code;
        for (size_t k = 0; k < i; k++)
            if (strcmp(seen[k], word) == 0)
                return wrong(item, "a setting is given twice");
        seen[i] = word;
    }
    if (kind == DCM_CACHE_WINDOW && !p->auto_window && !p->params.window)
        return wrong(item, "a window needs W=UNITS or W=auto");
    return 0;
}

int policies_read(policy_list *list, const char *text, dcm_kv_type kv)
{
    int code = 0;
    *list = (policy_list){0};
    for (;;) {
        const size_t size = strcspn(text, ",");
        char *item = strndup(text, size), *copy = strndup(text, size);
        if (!item || !copy)
            code = tool_fail(DCM_ERR_MEMORY, "no room for the policies");
        else if (list->count == POLICIES_MAX)
            code = tool_fail(DCM_ERR_USAGE, "--policies: more than %d", POLICIES_MAX);
        else
            code = read_policy(&list->item[list->count++], item, copy, kv);
        if (!list->count || list->item[list->count - 1].text != item)
            free(item);
        free(copy);
        if (code || !text[size])
            return code;
        text += size + 1;
    }
}

void policies_release(policy_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->item[i].text);
        free(list->item[i].merge);
    }
    *list = (policy_list){0};
}

int policies_find(const policy_list *list, const char *name, const char *option, int *index)
{
    static const char *const kinds[] = {
        [DCM_CACHE_DCM] = "dcm", [DCM_CACHE_FULL] = "full", [DCM_CACHE_WINDOW] = "window"};
    int64_t number = 0;
    *index = args_read_int(name, 1, (int64_t)list->count, &number) ? (int)number - 1 : -1;
    for (size_t i = 0; i < list->count && *index < 0; i++)
        if (strcmp(name, kinds[list->item[i].params.kind]) == 0 ||
            (list->item[i].text && strcmp(name, list->item[i].text) == 0))
            *index = (int)i;
    if (*index >= 0)
        return 0;
    return tool_fail(DCM_ERR_USAGE, "--%s: \"%s\" is no policy of this run: give its number, 1 .. %zu, or its text",
                     option, name, list->count);
}

static uint32_t sinks_of(const dcm_cache_params *p)
{
    return p->sinks < 0 ? 0 : p->sinks ? (uint32_t)p->sinks : DCM_DEFAULT_SINKS;
}

/* Units of a policy after n tokens. */
static uint64_t units_after(const dcm_cache_params *p, uint64_t n)
{
    if (p->kind == DCM_CACHE_DCM)
        return dcm_units_after(p->group, sinks_of(p), n);
    return p->kind == DCM_CACHE_WINDOW && p->window < n ? p->window : n;
}

int policies_resolve(policy_list *list, uint64_t n)
{
    if (list->item[0].auto_window)
        return tool_fail(DCM_ERR_USAGE,
                         "--policies: W=auto takes the units of the first policy, so it cannot be the first");
    for (size_t i = 0; i < list->count; i++) {
        dcm_cache_params *p = &list->item[i].params;
        if (list->item[i].auto_window)
            p->window = (uint32_t)units_after(&list->item[0].params, n);
        if (p->kind == DCM_CACHE_WINDOW && p->window <= sinks_of(p))
            return tool_fail(DCM_ERR_USAGE, "--policies: a window of %u units must exceed its %u sinks", p->window,
                             sinks_of(p));
    }
    return 0;
}

void policies_settle_merge(policy_list *list, const dcm_cache_params *params, const dcm_session *session)
{
    dcm_session_stats stats;
    dcm_session_get_stats(session, &stats);
    const bool settled = params->kind == DCM_CACHE_DCM && !params->merge && strcmp(stats.merge, NEWER) == 0;
    for (size_t i = 0; i < list->count && settled; i++)
        if (list->item[i].params.kind == DCM_CACHE_DCM && !list->item[i].params.merge)
            list->item[i].params.merge = NEWER;
}

void policy_text(const dcm_cache_params *p, const char *merge, char *out, size_t size)
{
    const char *kv = p->kv == DCM_KV_F32 ? ":kv=f32" : "";
    char weight[64] = "", limit[32] = "";
    if (p->log_r != 0)
        snprintf(weight, sizeof weight, ":log-r=%g", (double)p->log_r);
    if (p->far_limit)
        snprintf(limit, sizeof limit, ":far-limit=%d", p->far_limit > 0 ? p->far_limit : 0);
    if (p->kind == DCM_CACHE_FULL)
        snprintf(out, size, "full%s", kv);
    else if (p->kind == DCM_CACHE_WINDOW && !p->window)
        snprintf(out, size, "window:W=auto:S=%u%s", sinks_of(p), kv);
    else if (p->kind == DCM_CACHE_WINDOW)
        snprintf(out, size, "window:W=%u:S=%u%s", p->window, sinks_of(p), kv);
    else
        snprintf(out, size, "dcm:L=%u:S=%u:merge=%s%s%s%s", p->group, sinks_of(p), p->merge ? p->merge : merge, weight,
                 limit, kv);
}
