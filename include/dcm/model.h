/* Models: a GGUF file's weights on a device, and its tokenizer. */
#ifndef DCM_MODEL_H
#define DCM_MODEL_H

#include <dcm/device.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * A loaded model. Immutable after opening; must outlive its sessions and be closed before its device. What computes
 * with it, sessions above all, is under its device's rule: one thread at a time.
 */
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
    uint64_t digest;     /* of the model's facts, its tensors' names and shapes, and a sample of each one's data */
    size_t weight_bytes; /* bytes the weights take on the device */
    size_t step_bytes;   /* of them read for one token: all but an embedding that is not the output matrix too */
    bool tied;           /* the output matrix is the embedding */
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

/* How a synthetic model's matrices are stored. */
typedef enum dcm_weights { DCM_WEIGHTS_F16, DCM_WEIGHTS_Q8_0, DCM_WEIGHTS_Q4_1 } dcm_weights;

/*
 * A model of random weights, for measuring: no file, no tokenizer, no sense in what it says; the same weights every
 * time. Of `shape` these count: layers, hidden, heads, kv_heads, ffn, vocab, tied and, where it is not 0, name; arch is
 * "llama", head_dim hidden / heads. Host memory while it is made: the largest matrix. Errors: DCM_ERR_USAGE (a shape
 * that no model can have), DCM_ERR_MEMORY, DCM_ERR_DEVICE.
 */
DCM_API dcm_status dcm_model_synthetic(dcm_model **model, dcm_device *device, const dcm_model_info *shape,
                                       dcm_weights weights);

#ifdef __cplusplus
}
#endif

#endif
