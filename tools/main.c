#include "args.h"
#include "tool.h"
#include "version.h"

#include <stdio.h>
#include <string.h>

typedef struct command {
    const char *name;
    command_main *run;
    const char *help;
} command;

static const command commands[] = {
    {"run", cmd_run, "continue a text, or answer in a chat"},
    {"eval", cmd_eval, "measure quality: perplexity, divergence from the full cache"},
    {"bench", cmd_bench, "measure speed, step by step, and memory"},
    {"check", cmd_check, "do devices compute the same as the reference?"},
    {"devices", cmd_devices, "OpenCL devices, what they can do, how fast they are"},
    {"tune", cmd_tune, "measure what suits a device, and keep it"},
    {"train", cmd_train, "train how units merge, for one model"},
    {"tokenize", cmd_tokenize, "a text's tokens, and back"},
    {"plan", cmd_plan, "units and bytes of a compressed cache; the schedule step by step"},
};
enum { COMMANDS = sizeof commands / sizeof *commands };

static int help(void)
{
    printf("usage: dcm COMMAND [options]\n\n"
           "Language models with a distance-compressed key-value cache: the older, the more tokens share a unit.\n\n"
           "Commands:\n");
    for (size_t i = 0; i < COMMANDS; i++)
        printf("  %-10s %s\n", commands[i].name, commands[i].help);
    printf("\n`dcm COMMAND --help` says more. `dcm --version` prints the version.\n\n"
           "Exit codes: 0 done; 1 the answer is \"no\"; 2 wrong usage; 3 a bad or missing file; 4 device or OpenCL "
           "trouble;\n"
           "5 not enough memory; 130 interrupted; 143 terminated.\n");
    return tool_flush();
}

int main(int argc, char **argv)
{
    tool_install_signals();
    tool_set_command_line(argc, argv);
    if (argc < 2)
        return tool_fail(DCM_ERR_USAGE, "no command; see dcm --help");
    if (args_is_help(argv[1]))
        return help();
    if (strcmp(argv[1], "--version") == 0) {
        printf("dcm %s (%s)\n", DCM_VERSION, DCM_COMMIT);
        return tool_flush();
    }
    for (size_t i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            char name[64];
            snprintf(name, sizeof name, "dcm %s", commands[i].name);
            tool_set_name(name);
            const int code = commands[i].run(argc - 1, argv + 1);
            const int written = tool_flush();
            return code ? code : written;
        }
    }
    return tool_fail(DCM_ERR_USAGE, "unknown command \"%s\"; see dcm --help", argv[1]);
}
