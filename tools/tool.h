/* What every command needs: errors to the user, signals, an output that was really written. */
#ifndef TOOL_H
#define TOOL_H

#include <dcm/status.h>

#include <stdbool.h>

/* A command: its exit code from its own arguments; argv[0] is the command's name. */
typedef int command_main(int argc, char **argv);

command_main cmd_bench, cmd_check, cmd_devices, cmd_eval, cmd_plan, cmd_run, cmd_tokenize, cmd_train, cmd_tune;

/* Name of the running command for messages ("dcm plan"); set by main, refined by commands with subcommands. */
void tool_set_name(const char *name);
const char *tool_name(void);

/* Print "dcm COMMAND: TEXT" and a newline on stderr, control characters as '?'; returns `code`. */
int tool_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same with the library's own message; returns `status`. */
int tool_fail_library(dcm_status status);

/* Flush stdout: 0, or the exit code 3 with a message when something could not be written. */
int tool_flush(void);

/*
 * Ctrl-C and SIGTERM end the program at once with 130 and 143, and nothing is left of output files that are open.
 * Between tool_catch(true) and tool_catch(false) the first one only sets what tool_stopped() returns: 0, or the exit
 * code; a second one ends the program at once. A thread of their own takes them: no call of another thread is
 * interrupted (one that may wait for long asks tool_stopped() now and then), and no library sees a signal that does not
 * end the program. To be called before there are other threads.
 */
void tool_install_signals(void);
void tool_catch(bool on);
int tool_stopped(void);

/* Words of all the arguments as they could be typed, into a string kept for the program's life. */
void tool_set_command_line(int argc, char **argv);
const char *tool_command_line(void);

#endif
