#include "fuzz/small_trainer.h"

dcm_trainer *small_trainer(void)
{
    static const dcm_model_info shape = {
        .layers = 1, .hidden = 16, .heads = 2, .kv_heads = 1, .ffn = 16, .vocab = 8, .tied = true};
    static const dcm_train_params params = {.tokens = 32, .arch = DCM_TRAIN_GATE, .depth = 3};
    static dcm_device *device;
    static dcm_model *model;
    static dcm_trainer *trainer;
    if (!trainer && dcm_device_open(&device, &(dcm_device_params){.name = "ref", .threads = 1}) == DCM_OK &&
        dcm_model_synthetic(&model, device, &shape, DCM_WEIGHTS_F16) == DCM_OK)
        dcm_trainer_open(&trainer, model, &params);
    return trainer;
}
