/* safetensors files. */
#include "fuzz/fuzz.h"

#include "io/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    safetensors *file;
    size_t bytes = 0;
    const dcm_status status = safetensors_open_memory(&file, "fuzz", data, size);
    fuzz_check_status(status);
    fuzz_check((status == DCM_OK) == (file != NULL), "a file without success");
    if (!file)
        return 0;
    safetensors_metadata(file, "format");
    for (size_t i = 0; i < safetensors_count(file); i++) {
        const st_tensor *t = safetensors_at(file, i);
        const size_t at = (size_t)((const uint8_t *)t->data - data);
        fuzz_check(at <= size && t->bytes <= size - at, "a tensor outside the file");
        fuzz_check(safetensors_find(file, t->name) == t, "a tensor is not found");
        bytes += t->bytes;
        if (t->type == ST_OTHER)
            continue;
        float *values = malloc(t->items * sizeof *values + 1);
        fuzz_check(values && safetensors_to_float(file, t, values) == DCM_OK, "a tensor's values");
        free(values);
    }
    fuzz_check(bytes <= size, "more data than the file has");
    safetensors_close(&file);
    return 0;
}
