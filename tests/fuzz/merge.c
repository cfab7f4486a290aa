/* Weights of a merge model, pair MLPs and scorers, for a model with a head size of 8. */
#include "fuzz/fuzz.h"

#include "merge/merge.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static backend *ops;
    static merge_model model;
    const merge_facts facts = {.layers = 1, .kv_heads = 1, .head_dim = 8, .digest = 0x0123456789abcdef};
    buffer *head;
    if (!ops)
        fuzz_check(backend_ref_open(&ops, 1, 64 << 20) == DCM_OK, "the reference does not open");
    const dcm_status status = merge_open(&model, ops, fuzz_file(data, size), &facts);
    fuzz_check_status(status);
    if (model.params)
        fuzz_check(merge_bytes(&model) <= 2 * size, "more parameters than the file has");
    if (status == DCM_OK && model.blocks) {
        fuzz_check(merge_bytes(&model) <= size, "more weights than the file has");
        fuzz_check_status(merge_reserve(&model, 3));
        fuzz_check_status(merge_rows(&model, 3, &head));
    }
    merge_close(&model);
    return 0;
}
