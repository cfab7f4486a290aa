/* What the tests of GGUF files share. Include after cmocka.h. */
#ifndef UNIT_GGUF_SMALL_H
#define UNIT_GGUF_SMALL_H

#include "base/error.h"
#include "io/quant.h"
#include "support/gguf_writer.h"

#include <string.h>

enum { F32_BYTES = 48 };
static const uint64_t dims_4_3[] = {4, 3};
static const float twelve[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

/* A small file with a few keys and two tensors, which the wrong ones are made from. */
static inline void put_small(gguf_writer *w)
{
    gw_open(w);
    gw_string(w, "general.architecture", "llama");
    gw_u32(w, "llama.block_count", 3);
    gw_strings(w, "list", (const char *const[]){"a", "", "ccc"}, 3);
    gw_bool(w, "flag", true);
    gw_tensor(w, "first", QUANT_F32, 2, dims_4_3, twelve, F32_BYTES);
    gw_tensor(w, "second", QUANT_F32, 1, dims_4_3, twelve, 16);
}

/* The last error is one line that has `part`. */
static inline void assert_message(const char *part)
{
    if (!strstr(dcm_error(), part))
        fail_msg("message \"%s\" lacks \"%s\"", dcm_error(), part);
    if (strchr(dcm_error(), '\n'))
        fail_msg("message of several lines: %s", dcm_error());
}

#endif
