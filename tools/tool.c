#define _GNU_SOURCE
#include "tool.h"

#include "output.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *name = "dcm";
static char *command_line;
static sigset_t ending; /* SIGINT and SIGTERM */
static atomic_int catching, stopped;

void tool_set_name(const char *text) { name = text; }
const char *tool_name(void) { return name; }

int tool_fail(int code, const char *format, ...)
{
    char text[8192];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f) /* texts of files say nothing to a terminal */
            *c = '?';
    fflush(stdout);
    fprintf(stderr, "%s: %s\n", name, text);
    return code;
}

int tool_fail_library(dcm_status status) { return tool_fail((int)status, "%s", dcm_error()); }

int tool_flush(void)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return 0;
    return tool_fail(DCM_ERR_FILE, "standard output cannot be written: %s", strerror(errno));
}

/* Handlers that libraries put before this one run first: PoCL's compiler removes its files, the line editor mends the
 * terminal. */
static void on_signal(int number)
{
    output_discard();
    _exit(128 + number);
}

/* A closed pipe ends quietly, even where the parent ignores it. */
static void on_pipe(int number)
{
    output_discard();
    raise(number); /* by the default, which SA_RESETHAND brought back */
}

/*
 * Note the first signal while they are caught; any other one takes its course. One that is only noted must reach no
 * other thread: LLVM's handler would remove what PoCL is compiling.
 */
static void *wait_for_signals(void *begun)
{
    int number = 0;
    sem_post(begun);
    while (sigwait(&ending, &number) == 0 && catching && !stopped)
        stopped = 128 + number;
    pthread_sigmask(SIG_UNBLOCK, &ending, NULL);
    raise(number);
    return NULL;
}

void tool_install_signals(void)
{
    static sem_t begun;
    pthread_t waiter;
    const struct sigaction action = {.sa_handler = on_signal};
    const struct sigaction pipe = {.sa_handler = on_pipe, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGPIPE, &pipe, NULL);
    sigemptyset(&ending);
    sigaddset(&ending, SIGINT);
    sigaddset(&ending, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &ending, NULL);
    sem_init(&begun, 0, 0);
    if (pthread_create(&waiter, NULL, wait_for_signals, &begun) == 0) {
        pthread_detach(waiter);
        /* A process that is forked while the thread begins would inherit the allocator's locks as they are then. */
        while (sem_wait(&begun) != 0)
            ;
    } else { /* each ends the program */
        pthread_sigmask(SIG_UNBLOCK, &ending, NULL);
    }
}

void tool_catch(bool on)
{
    stopped = 0;
    catching = on;
}

int tool_stopped(void) { return stopped; }

/* Append one word, quoted for a shell where it needs it. */
static void append_word(FILE *out, const char *word)
{
    const char *plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=,+%@";
    if (*word && strspn(word, plain) == strlen(word)) {
        fputs(word, out);
        return;
    }
    fputc('\'', out);
    for (; *word; word++) {
        if (*word == '\'')
            fputs("'\\''", out);
        else
            fputc(*word, out);
    }
    fputc('\'', out);
}

void tool_set_command_line(int argc, char **argv)
{
    size_t size;
    FILE *out = open_memstream(&command_line, &size);
    if (!out)
        return;
    for (int i = 0; i < argc; i++) {
        if (i)
            fputc(' ', out);
        append_word(out, argv[i]);
    }
    fclose(out);
}

const char *tool_command_line(void) { return command_line ? command_line : ""; }
