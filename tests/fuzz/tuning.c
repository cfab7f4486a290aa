/* A device's tuning file. */
#include "fuzz/fuzz.h"

#include "device/tuning.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const cldev_limits limits = {.wide_items = true, .vector_floats = 8, .name = "a device"};
    tuning standard, t;
    tuning_defaults(&limits, &standard);
    t = standard;
    const char *fault = tuning_parse(data, size, 0x0123456789abcdef, &t);
    fuzz_check(!fault || !memcmp(&t, &standard, sizeof t), "a refused file changes a choice");
    for (int what = 0; what < TUNE_CHOICES; what++)
        fuzz_check(t.choice[what].value < TUNING_VALUES && tuning_text(&t, (tuning_what)what), "a choice of none");
    return 0;
}
