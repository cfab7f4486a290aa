/* What a command reads: text from -p, -f or -, and the file behind a model's name. */
#ifndef INPUT_H
#define INPUT_H

#include <stddef.h>

#include "args.h"

/* Where a text comes from; fill by the options of input_options and args.dash. */
typedef struct input_source {
    const char *text; /* -p */
    const char *file; /* -f; "-" is standard input */
} input_source;

enum { INPUT_OPTIONS = 2 };

/* Add -p, --prompt TEXT and -f, --file FILE. Set args.stdin_dash for the lone "-". */
void input_add_options(args *a, input_source *source);

/* True when -p, -f or - was given. */
bool input_given(const args *a, const input_source *source);

/* 0, or 2 after a message when none or more than one of -p, -f and - was given. */
int input_check(const args *a, const input_source *source);

/*
 * Read the text, of a file or a stream: any bytes, NUL included, with a NUL behind them. *data is freed with free().
 * Returns 0 or the exit code after a message: that of input_check, or 3 when the file cannot be read, or is a device
 * that never ends.
 */
int input_read(const args *a, const input_source *source, char **data, size_t *size);

/* Add -m, --model FILE|NAME (required). */
void input_add_model(args *a, const char **model);

/*
 * The file of a model's FILE or short NAME into `path`. Returns 0, or 3 after a message that names the command which
 * fetches the model.
 */
int input_model_path(const char *model, char *path, size_t size);

#endif
