/* An earlier result for dcm bench --compare. */
#include "fuzz/fuzz.h"

#include "bench.h"
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *old;
    const int code = bench_parse_old("fuzz", (const char *)data, size, &old);
    fuzz_check(code == 0 || code == DCM_ERR_FILE || code == DCM_ERR_MEMORY, "an unknown exit code");
    fuzz_check((code == 0) == (old != NULL), "a result without success");
    fuzz_check(!old || json_is_array(json_object_get(old, "rows")), "a result without rows");
    json_decref(old);
    return 0;
}
