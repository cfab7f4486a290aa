#include "train/learner.h"

#include "base/error.h"

#include <string.h>

static const learner_arch *const all[] = {&learner_score, &learner_gate, &learner_direct};

/* A file of dcm's own names its architecture; a published one is told by its head. */
static const learner_arch *arch_of(const safetensors *file)
{
    if (score_is_ours(file) && !pair_is_ours(file))
        return &learner_score;
    return safetensors_find(file, "merge.weight") ? &learner_direct : &learner_gate;
}

static dcm_status open_from(learner *l, const dcm_train_params *params)
{
    safetensors *file = NULL;
    dcm_status status = safetensors_open(&file, params->from);
    if (status != DCM_OK)
        return status;
    if (arch_of(file) == l->arch)
        status = l->arch->open(l, params, file);
    else
        status =
            dcm_fail(DCM_ERR_FILE, "of arch \"%s\", where \"%s\" is asked for", arch_of(file)->name, l->arch->name);
    safetensors_close(&file);
    return status == DCM_OK ? DCM_OK : dcm_fail_in(status, "%s", params->from);
}

dcm_status learner_open(learner *l, const dcm_model *model, const dcm_train_params *params)
{
    if ((size_t)params->arch >= sizeof all / sizeof *all)
        return dcm_fail(DCM_ERR_USAGE, "no merge architecture %d", (int)params->arch);
    *l = (learner){.arch = all[params->arch], .ops = model->ops, .facts = model_merge_facts(model)};
    const dcm_status status = params->from ? open_from(l, params) : l->arch->open(l, params, NULL);
    l->used = l->param;
    return status;
}

void learner_close(learner *l)
{
    if (l->arch)
        l->arch->close(l);
    merge_close(&l->merge);
    mem_free(&l->param);
    mem_free(&l->kind);
    memset(l, 0, sizeof *l);
}

dcm_status learner_use(learner *l, const float *params)
{
    l->used = params;
    return l->arch->upload(l, params);
}

dcm_status learner_room(learner *l)
{
    const dcm_status status = mem_new(&l->param, l->count, sizeof *l->param, "parameters");
    return status == DCM_OK ? mem_new(&l->kind, l->count, 1, "kinds of parameters") : status;
}

dcm_status learner_zero(learner *l, buffer *b)
{
    float *zeros = NULL;
    dcm_status status = mem_new(&zeros, b->bytes, 1, "zeros");
    if (status == DCM_OK)
        status = l->ops->ops->write(b, 0, zeros, b->bytes);
    mem_free(&zeros);
    return status;
}
