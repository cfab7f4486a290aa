/*
 * Command-line options: one table describes them, and both the parser and the help are made from it. Ranges and
 * defaults in the help are the ones the parser uses.
 */
#ifndef ARGS_H
#define ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum arg_kind {
    ARG_FLAG,   /* bool; may be given several times */
    ARG_TEXT,   /* const char * */
    ARG_TEXTS,  /* arg_texts: may be given several times */
    ARG_INT,    /* int64_t in min .. max */
    ARG_INTS,   /* arg_ints: N[,N...], each in min .. max */
    ARG_REAL,   /* double in min .. max */
    ARG_CHOICE, /* int: index into `choices` */
    ARG_MEMORY  /* arg_memory: bytes with an optional K, M or G (powers of 1024), or N% */
} arg_kind;

enum { ARG_LIST_MAX = 64, ARG_OPTIONS_MAX = 64 };

typedef struct arg_texts {
    const char *item[ARG_LIST_MAX];
    size_t count;
} arg_texts;

typedef struct arg_ints {
    int64_t item[ARG_LIST_MAX];
    size_t count;
} arg_ints;

/* Both 0: not given. */
typedef struct arg_memory {
    uint64_t bytes;
    double percent;
} arg_memory;

/* One option. `value` points to a variable of the kind's type that holds the default; help shows it unless it is 0,
 * NULL or empty. */
typedef struct arg_option {
    const char *name; /* "group" for --group */
    char letter;      /* 'L' for -L, or 0 */
    arg_kind kind;
    void *value;
    const char *meta; /* the value's name in the help */
    const char *help;
    int64_t min, max;
    const char *choices; /* "dcm|full|window" */
    bool power_of_two;
    bool required;
    bool show_zero; /* the default is worth showing although it is 0 */
} arg_option;

/* A command's arguments. Zero-initialise, set the texts, add options, parse. */
typedef struct args {
    const char *usage; /* what follows "usage: dcm COMMAND " */
    const char *about; /* a paragraph or more */
    bool stdin_dash;   /* a lone "-" is allowed and sets `dash` */
    bool dash;
    size_t count;
    struct {
        const char *title; /* of the group, on its first option only */
        arg_option option;
        bool seen;
    } list[ARG_OPTIONS_MAX];
} args;

/* Add `count` options under a title. */
void args_add(args *a, const char *title, const arg_option *options, size_t count);

enum { ARGS_GO = -1 };

/*
 * Parse argv[1 ..]. ARGS_GO, or the exit code: 0 after --help, 2 after a message about wrong usage, such as a second
 * value for an option that has one.
 */
int args_parse(args *a, int argc, char **argv);

/* --help or -h. */
bool args_is_help(const char *word);

/* True when the option was given on the command line. */
bool args_seen(const args *a, const char *name);

/* Numbers as the parser reads them: the whole text, in range; false otherwise. */
bool args_read_int(const char *text, int64_t min, int64_t max, int64_t *out);
bool args_read_real(const char *text, double min, double max, double *out);

/* Leave each value once, where it stands first. */
void args_make_unique(arg_ints *list);

/* Index of `text` in "a|b|c", or -1. */
int args_choice(const char *choices, const char *text);

#endif
