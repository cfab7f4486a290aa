#include "device/tuning.h"

#include <dcm/log.h>

#include "base/hash.h"
#include "device/kept.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TUNING_SCHEMA = 1, FILE_MAX = 64 << 10 /* bytes */ };

/* Changed with the rules of choosing: files made by others are not read. */
static const char RULES[] = "an engine only when asked for";

const tuning_choice tuning_choices[TUNE_CHOICES] = {
    [TUNE_MANY] = {"many", "engine of products with many vectors", {"wide", "group", "mma", "clblast"}},
    [TUNE_PANEL] = {"panel", "vectors that one work-item multiplies at a time", {"4", "6", "8", "12"}},
    [TUNE_SHARES] = {"shares", "work-items a compute unit for single vectors", {"2", "4", "8"}},
};

/* Defaults of the first family that fits. */
static const struct {
    const char *platform; /* part of its name; NULL: any */
    bool wide;
    uint32_t vector_floats; /* at least */
    const char *value[TUNE_CHOICES];
} families[] = {
    {NULL, true, 16, {"wide", "12", "4"}},   /* 24 sums of 16 floats in 32 registers */
    {NULL, true, 0, {"wide", "6", "4"}},     /* 12 sums of 8 in 16 */
    {"NVIDIA", false, 0, {"mma", "4", "4"}}, /* "group" where its matrix units cannot be used */
    {NULL, false, 0, {"group", "4", "4"}},
};

const char *tuning_text(const tuning *t, tuning_what what) { return tuning_choices[what].value[t->choice[what].value]; }

uint32_t tuning_number(const tuning *t, tuning_what what) { return (uint32_t)atoi(tuning_text(t, what)); }

bool tuning_set(tuning *t, tuning_what what, const char *text, tuning_origin origin)
{
    for (uint8_t i = 0; tuning_choices[what].value[i]; i++)
        if (!strcmp(tuning_choices[what].value[i], text)) {
            t->choice[what].value = i;
            t->choice[what].origin = (uint8_t)origin;
            return true;
        }
    return false;
}

void tuning_defaults(const cldev_limits *l, tuning *t)
{
    size_t i = 0;
    memset(t, 0, sizeof *t);
    while (families[i].wide != l->wide_items || families[i].vector_floats > l->vector_floats ||
           (families[i].platform && !strstr(l->platform, families[i].platform)))
        i++;
    for (int what = 0; what < TUNE_CHOICES; what++)
        tuning_set(t, (tuning_what)what, families[i].value[what], TUNING_DEFAULT);
}

/* What must be the same for a choice to hold: device, driver, tiers that are forced, all kernels. */
static uint64_t key_of(const cldev_limits *l)
{
    uint64_t hash = cldev_hash(hash_text(HASH_START, RULES), l);
    if (l->tiers_on | l->tiers_off) {
        hash = hash_bytes(hash, &l->tiers_on, sizeof l->tiers_on);
        hash = hash_bytes(hash, &l->tiers_off, sizeof l->tiers_off);
    }
    for (const cl_source *s = cl_sources; s->family; s++)
        hash = hash_bytes(hash_text(hash, s->family), s->text, s->size);
    return hash;
}

dcm_status tuning_path(const cldev_limits *limits, char *path, size_t size, bool create)
{
    char name[64];
    snprintf(name, sizeof name, "tuning-%016" PRIx64 ".json", key_of(limits));
    return file_cache_path(path, size, name, create);
}

const char *tuning_parse(const void *data, size_t size, uint64_t key_wanted, tuning *t)
{
    char key[24];
    const char *fault = NULL, *name;
    json_error_t error;
    json_t *value;
    tuning found = *t;
    if (size > FILE_MAX)
        return "too large";
    json_t *root = json_loadb(data, size, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return "not JSON";
    snprintf(key, sizeof key, "%016" PRIx64, key_wanted);
    const json_t *schema = json_object_get(root, "schema"), *made_for = json_object_get(root, "key");
    json_t *choices = json_object_get(root, "choices");
    if (!json_is_integer(schema) || json_integer_value(schema) != TUNING_SCHEMA)
        fault = "of another version";
    else if (!json_is_string(made_for) || strcmp(json_string_value(made_for), key))
        fault = "made for another device, driver or dcm";
    else if (!json_is_object(choices))
        fault = "without choices";
    if (!fault) {
        json_object_foreach(choices, name, value)
        {
            int what = 0;
            while (what < TUNE_CHOICES && strcmp(name, tuning_choices[what].name))
                what++;
            if (what == TUNE_CHOICES || !json_is_string(value) ||
                !tuning_set(&found, (tuning_what)what, json_string_value(value), TUNING_FILE))
                fault = "with a choice that there is not";
        }
    }
    json_decref(root);
    if (!fault)
        *t = found;
    return fault;
}

void tuning_load(const cldev_limits *limits, tuning *t)
{
    char path[4096];
    file_map map = {0};
    if (tuning_path(limits, path, sizeof path, false) != DCM_OK)
        return;
    if (kept_map(&map, path) != DCM_OK) {
        dcm_log(DCM_LOG_WARN, "tuning is not read, `dcm tune` makes it anew: %s", dcm_error());
        return;
    }
    const char *fault = map.data ? tuning_parse(map.data, map.size, key_of(limits), t) : NULL;
    file_map_close(&map);
    if (fault)
        dcm_log(DCM_LOG_WARN, "%s: tuning is refused, it is %s; `dcm tune` makes it anew", path, fault);
}

/* A JSON string of a driver's text, whatever its bytes. */
static json_t *plain_text(const char *text)
{
    char plain[256];
    size_t i = 0;
    for (; text[i] && i < sizeof plain - 1; i++)
        plain[i] = text[i] >= ' ' && text[i] <= '~' ? text[i] : '?';
    plain[i] = '\0';
    return json_string(plain);
}

void tuning_store(const cldev_limits *limits, const tuning *t)
{
    char path[4096], key[24];
    dcm_status status = tuning_path(limits, path, sizeof path, true);
    json_t *choices = json_object();
    snprintf(key, sizeof key, "%016" PRIx64, key_of(limits));
    for (int what = 0; what < TUNE_CHOICES; what++)
        if (t->choice[what].origin != TUNING_DEFAULT)
            json_object_set_new(choices, tuning_choices[what].name, json_string(tuning_text(t, (tuning_what)what)));
    json_t *root = json_pack("{s:i,s:s,s:o,s:o,s:o}", "schema", TUNING_SCHEMA, "key", key, "device",
                             plain_text(limits->name), "driver", plain_text(limits->driver), "choices", choices);
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    if (status == DCM_OK)
        status = text ? kept_write(path, text, strlen(text)) : dcm_fail(DCM_ERR_MEMORY, "%s: no memory", path);
    if (status != DCM_OK)
        dcm_log(DCM_LOG_WARN, "what was measured is not kept: %s", dcm_error());
    free(text);
    json_decref(root);
}
