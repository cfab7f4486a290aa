#include "device/quirks.h"

#include <string.h>

typedef struct quirk {
    const char *platform; /* a part of its name */
    bool own_cache;
    bool host_code;
    bool not_wide;
    bool no_prefetch;
} quirk;

static const quirk quirks[] = {
    /*
     * PoCL 3.1: asking for a binary compiles every kernel once more, for an unknown work-group size (measured: 180 ms a
     * kernel), while a build from its own cache takes 30 ms a program.
     */
    {.platform = "Portable Computing Language", .own_cache = true, .host_code = true},
    /* An interpreter that says it is a device of every type; it ends the program at llvm.prefetch. */
    {.platform = "Oclgrind", .own_cache = true, .not_wide = true, .no_prefetch = true},
    /* Mesa 22.3: its translator to SPIR-V ends the program at llvm.prefetch. */
    {.platform = "rusticl", .no_prefetch = true},
};

void cldev_apply_quirks(cldev_limits *limits)
{
    for (size_t i = 0; i < sizeof quirks / sizeof *quirks; i++) {
        const quirk *q = &quirks[i];
        if (!strstr(limits->platform, q->platform))
            continue;
        if (q->own_cache)
            limits->own_cache = true;
        if (q->host_code)
            limits->host_code = true;
        if (q->not_wide)
            limits->wide_items = false;
        if (q->no_prefetch)
            limits->prefetch_builtin = false;
    }
}
