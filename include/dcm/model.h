/* Models: a GGUF file's weights on a device, and its tokenizer. */
#ifndef DCM_MODEL_H
#define DCM_MODEL_H

#include <dcm/device.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A loaded model. Immutable after opening; must outlive its sessions and be closed before its device. */
typedef struct dcm_model dcm_model;

/* The shape of a transformer of the llama family. */
typedef struct dcm_model_info {
    const char *arch; /* "llama" or "qwen2"; owned by the model */
    const char *name; /* general.name, or "" */
    uint32_t layers;
    uint32_t hidden;   /* model dimension */
    uint32_t heads;    /* query heads */
    uint32_t kv_heads; /* KV heads; heads is a multiple of it */
    uint32_t head_dim;
    uint32_t ffn; /* feed-forward dimension */
    uint32_t vocab;
    uint32_t context;    /* positions the model was trained on */
    uint64_t digest;     /* of the model's facts and tensor directory: names the model a merge file belongs to */
    size_t weight_bytes; /* bytes the weights take on the device */
} dcm_model_info;

/*
 * Open the GGUF file at `path` (version 2 or 3, architecture llama or qwen2) and put its weights on `device`.
 * The whole file is checked before anything large is allocated. Errors: DCM_ERR_FILE (with the field and
 * offset), DCM_ERR_MEMORY, DCM_ERR_DEVICE.
 */
DCM_API dcm_status dcm_model_open(dcm_model **model, dcm_device *device, const char *path);

/* Close and set *model to NULL; NULL and pointers to NULL are accepted. */
DCM_API void dcm_model_close(dcm_model **model);

DCM_API void dcm_model_get_info(const dcm_model *model, dcm_model_info *info);

/*
 * The shape of the model in the GGUF file at `path`, from its header alone: no device, no weights read. `arch` is
 * static, `name` is "", `weight_bytes` the size in the file. Errors as dcm_model_open.
 */
DCM_API dcm_status dcm_model_info_read(const char *path, dcm_model_info *info);

#ifdef __cplusplus
}
#endif

#endif
