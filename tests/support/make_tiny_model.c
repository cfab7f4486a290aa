/* Command line of tiny_model.h: writes a tiny random model that every program can run. */
#include "support/tiny_model.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char usage[] =
    "usage: make_tiny_model OUT.gguf [--arch llama|qwen2] [--type f32|f16|bf16|q8_0|q4_0|q4_1] [--layers N] [--hidden "
    "N]\n"
    "           [--heads N] [--kv-heads N] [--ffn N] [--vocab N] [--context N] [--rope none|linear|llama3] [--untied]\n"
    "           [--chatml] [--seed N]\n";

static int complain(const char *what, const char *value)
{
    fprintf(stderr, "make_tiny_model: %s: %s\n%s", what, value, usage);
    return 2;
}

static bool parse_number(const char *text, uint64_t most, uint64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == '\0' && errno == 0 && *out <= most;
}

static bool parse_type(const char *text, quant_type *out)
{
    static const quant_type types[] = {QUANT_F32, QUANT_F16, QUANT_BF16, QUANT_Q8_0, QUANT_Q4_0, QUANT_Q4_1};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcasecmp(quant_get(types[i])->name, text) == 0) {
            *out = types[i];
            return true;
        }
    }
    return false;
}

static bool parse_rope(const char *text, tiny_rope *out)
{
    static const char *const names[] = {
        [TINY_ROPE_NONE] = "none", [TINY_ROPE_LINEAR] = "linear", [TINY_ROPE_LLAMA3] = "llama3"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i], text) == 0) {
            *out = (tiny_rope)i;
            return true;
        }
    }
    return false;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"layers", 1, NULL, 0},   {"hidden", 1, NULL, 0}, {"heads", 1, NULL, 0},   {"kv-heads", 1, NULL, 0},
        {"ffn", 1, NULL, 0},      {"vocab", 1, NULL, 0},  {"context", 1, NULL, 0}, {"seed", 1, NULL, 's'},
        {"arch", 1, NULL, 'a'},   {"type", 1, NULL, 't'}, {"rope", 1, NULL, 'r'},  {"untied", 0, NULL, 'u'},
        {"chatml", 0, NULL, 'c'}, {NULL, 0, NULL, 0},
    };
    tiny_params p = {0};
    uint32_t *const numbers[] = {&p.layers, &p.hidden, &p.heads, &p.kv_heads, &p.ffn, &p.vocab, &p.context};
    uint64_t number;
    int option, index;
    while ((option = getopt_long(argc, argv, "", options, &index)) != -1) {
        switch (option) {
        case 0:
            if (!parse_number(optarg, 1 << 20, &number))
                return complain("not a number up to 1048576", optarg);
            *numbers[index] = (uint32_t)number;
            break;
        case 's':
            if (!parse_number(optarg, UINT64_MAX, &p.seed))
                return complain("not a number", optarg);
            break;
        case 'a': p.arch = optarg; break;
        case 't':
            if (!parse_type(optarg, &p.type))
                return complain("unknown type", optarg);
            break;
        case 'r':
            if (!parse_rope(optarg, &p.rope))
                return complain("unknown rope scaling", optarg);
            break;
        case 'u': p.untied = true; break;
        case 'c': p.chatml = true; break;
        default: fputs(usage, stderr); return 2;
        }
    }
    if (optind + 1 != argc)
        return complain("one output file is needed", optind < argc ? argv[optind + 1] : "none given");
    const char *wrong = tiny_model_check(&p);
    if (wrong)
        return complain("wrong parameters", wrong);
    if (!tiny_model_save(&p, argv[optind])) {
        fprintf(stderr, "make_tiny_model: %s: %s\n", argv[optind], strerror(errno));
        return 3;
    }
    return 0;
}
