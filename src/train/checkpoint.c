#include "train/trainer.h"

#include "base/error.h"
#include "io/safetensors_write.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char format_name[] = "dcm-train", version_name[] = "2";

enum { OPTIONS_SIZE = 2048, ARRAYS = 5 };

/* What a training goes on with, or is another one. */
static void options_text(const dcm_trainer *t, char *out)
{
    const dcm_train_params *p = &t->params;
    char shape[64];
    t->learner.arch->describe(&t->learner, shape, sizeof shape);
    snprintf(out, OPTIONS_SIZE,
             "tokens=%u sinks=%d mode=%s merge-arch=%s %s beta1=%.9g beta2=%.9g eps=%.9g decay=%.9g clip=%.9g kl=%.9g "
             "il=%.9g magnitude=%.9g boundary=%.9g positions=%u%s%s",
             p->tokens, p->sinks, p->mode == DCM_TRAIN_CHUNKED ? "chunked" : "tai", t->learner.arch->name, shape,
             p->beta1, p->beta2, p->eps, p->decay, p->clip, p->kl, p->il, p->magnitude, p->boundary, p->positions,
             p->options ? " " : "", p->options ? p->options : "");
}

static void describe(const dcm_trainer *t, st_array *arrays)
{
    const st_array all[ARRAYS] = {
        {"param", ST_F32, 1, {t->learner.count}, t->learner.param},
        {"mean", ST_F32, 1, {t->learner.count}, t->adamw.mean},
        {"square", ST_F32, 1, {t->learner.count}, t->adamw.square},
        {"average", ST_F32, 1, {t->learner.count}, t->adamw.average},
        {"mean_kl", ST_F32, 1, {DCM_LEVELS_MAX}, t->mean_kl},
    };
    memcpy(arrays, all, sizeof all);
}

dcm_status dcm_trainer_checkpoint(const dcm_trainer *t, const char *path, const char *state)
{
    char digest[17], steps[24], options[OPTIONS_SIZE];
    st_array arrays[ARRAYS];
    snprintf(digest, sizeof digest, "%016" PRIx64, t->model->config.info.digest);
    snprintf(steps, sizeof steps, "%" PRIu64, t->adamw.step);
    options_text(t, options);
    const st_note notes[] = {{"format", format_name}, {"version", version_name}, {"model_digest", digest},
                             {"steps", steps},        {"options", options},      {"state", state ? state : ""}};
    describe(t, arrays);
    return safetensors_write(path, arrays, ARRAYS, notes, sizeof notes / sizeof *notes);
}

static dcm_status check_text(const safetensors *file, const char *key, const char *wanted)
{
    const char *found = safetensors_metadata(file, key);
    if (found && strcmp(found, wanted) == 0)
        return DCM_OK;
    return dcm_fail(DCM_ERR_FILE, "its %s is \"%.64s\", this training's \"%s\"", key, found ? found : "", wanted);
}

/* Two lists of the same names in the same order: the first that differs is told. */
static dcm_status check_options(const char *found, const char *wanted)
{
    while (strcmp(found, wanted) != 0) {
        const size_t old = strcspn(found, " "), new = strcspn(wanted, " ");
        if (old != new || memcmp(found, wanted, old) != 0)
            return dcm_fail(DCM_ERR_FILE, "it was made with %.*s, this training has %.*s", old ? (int)old : 7,
                            old ? found : "nothing", new ? (int)new : 7, new ? wanted : "nothing");
        found += old + (found[old] == ' ');
        wanted += new + (wanted[new] == ' ');
    }
    return DCM_OK;
}

static dcm_status check_facts(const dcm_trainer *t, const safetensors *file)
{
    const char *made_with = safetensors_metadata(file, "options");
    char digest[17], options[OPTIONS_SIZE];
    dcm_status status;
    snprintf(digest, sizeof digest, "%016" PRIx64, t->model->config.info.digest);
    options_text(t, options);
    DCM_TRY(status, fail, check_text(file, "format", format_name));
    DCM_TRY(status, fail, check_text(file, "version", version_name));
    DCM_TRY(status, fail, check_text(file, "model_digest", digest));
    status = check_options(made_with ? made_with : "", options);
fail:
    return status;
}

/* One array into `to`; where `to` is NULL it is only checked. */
static dcm_status load_array(const safetensors *file, const st_array *a, float *to)
{
    const st_tensor *found = safetensors_find(file, a->name);
    if (!found || found->type != ST_F32 || found->n_dims != 1 || found->dims[0] != a->dims[0])
        return dcm_fail(DCM_ERR_FILE, "array %s is missing or not %llu floats", a->name,
                        (unsigned long long)a->dims[0]);
    for (size_t i = 0; i < found->items; i++) {
        float value;
        memcpy(&value, (const char *)found->data + i * sizeof value, sizeof value);
        if (!isfinite(value))
            return dcm_fail(DCM_ERR_FILE, "%s: item %zu is not finite", a->name, i);
    }
    return to ? safetensors_to_float(file, found, to) : DCM_OK;
}

static dcm_status load(dcm_trainer *t, const safetensors *file, char *state, size_t size)
{
    float *const to[ARRAYS] = {t->learner.param, t->adamw.mean, t->adamw.square, t->adamw.average, t->mean_kl};
    const char *steps = safetensors_metadata(file, "steps"), *kept = safetensors_metadata(file, "state");
    st_array arrays[ARRAYS];
    char *end = NULL;
    dcm_status status;
    describe(t, arrays);
    DCM_TRY(status, fail, check_facts(t, file));
    const unsigned long long count = steps ? strtoull(steps, &end, 10) : 0;
    if (!steps || *steps < '0' || *steps > '9' || *end)
        return dcm_fail(DCM_ERR_FILE, "its steps are \"%.32s\"", steps ? steps : "");
    for (size_t i = 0; i < ARRAYS; i++)
        DCM_TRY(status, fail, load_array(file, &arrays[i], NULL));
    for (size_t i = 0; i < ARRAYS; i++)
        DCM_TRY(status, fail, load_array(file, &arrays[i], to[i]));
    t->adamw.step = count;
    snprintf(state, size, "%s", kept ? kept : "");
    memcpy(t->next_kl, t->mean_kl, sizeof t->next_kl);
    status = learner_use(&t->learner, t->learner.param);
fail:
    return status;
}

dcm_status dcm_trainer_resume(dcm_trainer *t, const char *path, char *state, size_t size)
{
    safetensors *file = NULL;
    dcm_status status = safetensors_open(&file, path);
    if (status == DCM_OK) {
        status = load(t, file, state, size);
        if (status != DCM_OK)
            status = dcm_fail_in(status, "%s: not this training's checkpoint", path);
    }
    safetensors_close(&file);
    return status;
}

dcm_status dcm_trainer_save(const dcm_trainer *t, const char *path, const dcm_train_note *notes, size_t n_notes)
{
    st_note *all = NULL;
    dcm_status status;
    DCM_TRY(status, done, mem_new(&all, n_notes + 1, sizeof *all, "notes"));
    for (size_t i = 0; i < n_notes; i++)
        all[i] = (st_note){notes[i].name, notes[i].text};
    all[n_notes] = (st_note){"model", t->model->config.name};
    status = t->learner.arch->save(&t->learner, path, t->adamw.average, all, n_notes + 1);
done:
    mem_free(&all);
    return status;
}
