#include "merge/shipped.h"

#include "io/safetensors.h"

#include <string.h>

const merge_file *merge_shipped_for(uint64_t digest)
{
    const digest_text wanted = merge_model_digest(&(merge_facts){.digest = digest});
    for (const merge_file *f = merge_shipped; f->name; f++) {
        safetensors *file = NULL;
        bool same = false;
        if (safetensors_open_memory(&file, f->name, f->data, (size_t)(f->end - f->data)) == DCM_OK) {
            const char *found = safetensors_metadata(file, "model_digest");
            same = found && strcmp(found, wanted.text) == 0;
        }
        safetensors_close(&file);
        if (same)
            return f;
    }
    return NULL;
}
