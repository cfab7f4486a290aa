/* Weights of a merge model, for a head size of 8. */
#include "fuzz/fuzz.h"

#include "merge/merge.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static backend *ops;
    static merge_model model;
    fuzz_file file;
    buffer *head;
    if (!ops)
        fuzz_check(backend_ref_open(&ops, 1, 64 << 20) == DCM_OK, "the reference does not open");
    fuzz_file_open(&file, data, size);
    const dcm_status status = merge_open(&model, ops, file.path, 8);
    fuzz_check_status(status);
    if (status == DCM_OK && model.blocks) {
        fuzz_check(merge_bytes(&model) <= size, "more weights than the file has");
        fuzz_check_status(merge_reserve(&model, 3));
        fuzz_check_status(merge_rows(&model, 3, &head));
    }
    merge_close(&model);
    fuzz_file_close(&file);
    return 0;
}
