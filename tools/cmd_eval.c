#include "eval.h"
#include "tool.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *full_name, *about;
    command_main *run;
} measures[] = {
    {"metrics", "dcm eval metrics", "how far attention is from the full cache's, layer by layer", eval_metrics},
    {"needle", "dcm eval needle", "a sentence hidden in a text, asked for at its end: a grid of depths and lengths",
     eval_needle},
    {"ppl", "dcm eval ppl", "perplexity of a text, and the divergence from the full cache", eval_ppl},
    {"recall", "dcm eval recall", "how well a passage is predicted that was read before, some distance back",
     eval_recall},
    {"table", "dcm eval table", "the paper's tables 1, 2 and 3, of merge files on the model at hand", eval_table},
};
enum { MEASURES = sizeof measures / sizeof *measures };

static int print_help(void)
{
    puts("usage: dcm eval MEASURE [options]\n\nMeasures:");
    for (size_t i = 0; i < MEASURES; i++)
        printf("  %-10s %s\n", measures[i].name, measures[i].about);
    puts("\n`dcm eval MEASURE --help` says more.");
    return tool_flush();
}

int cmd_eval(int argc, char **argv)
{
    if (argc < 2)
        return tool_fail(DCM_ERR_USAGE, "no measure; see dcm eval --help");
    if (args_is_help(argv[1]))
        return print_help();
    for (size_t i = 0; i < MEASURES; i++) {
        if (strcmp(argv[1], measures[i].name) != 0)
            continue;
        tool_set_name(measures[i].full_name);
        return measures[i].run(argc - 1, argv + 1);
    }
    return tool_fail(DCM_ERR_USAGE, "unknown measure \"%s\"; see dcm eval --help", argv[1]);
}
