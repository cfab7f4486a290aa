#define _GNU_SOURCE
#include "args.h"

#include "tool.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HELP_COLUMN = 30, HELP_WIDTH = 100 };

void args_add(args *a, const char *title, const arg_option *options, size_t count)
{
    for (size_t i = 0; i < count && a->count < ARG_OPTIONS_MAX; i++, a->count++) {
        a->list[a->count].title = i ? NULL : title;
        a->list[a->count].option = options[i];
        a->list[a->count].seen = false;
    }
}

bool args_is_help(const char *word) { return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0; }

bool args_seen(const args *a, const char *name)
{
    for (size_t i = 0; i < a->count; i++)
        if (strcmp(a->list[i].option.name, name) == 0)
            return a->list[i].seen;
    return false;
}

/* ---- Values ---- */

bool args_read_int(const char *text, int64_t min, int64_t max, int64_t *out)
{
    char *end;
    if (!(*text >= '0' && *text <= '9') && *text != '-' && *text != '+')
        return false;
    errno = 0;
    const long long n = strtoll(text, &end, 10);
    if (errno || end == text || *end || n < min || n > max)
        return false;
    *out = n;
    return true;
}

bool args_read_real(const char *text, double min, double max, double *out)
{
    char *end;
    if (strspn(text, "+-.0123456789eE") != strlen(text))
        return false;
    const double x = strtod(text, &end);
    if (end == text || *end || !isfinite(x) || x < min || x > max)
        return false;
    *out = x;
    return true;
}

int args_choice(const char *choices, const char *text)
{
    const size_t length = strlen(text);
    for (int i = 0;; i++) {
        const size_t size = strcspn(choices, "|");
        if (size == length && memcmp(choices, text, size) == 0)
            return i;
        if (!choices[size])
            return -1;
        choices += size + 1;
    }
}

void args_make_unique(arg_ints *list)
{
    size_t n = 0;
    for (size_t i = 0, k; i < list->count; i++) {
        for (k = 0; k < n && list->item[k] != list->item[i];)
            k++;
        list->item[k] = list->item[i];
        n += k == n;
    }
    list->count = n;
}

/* "in 2 .. 4096", "a power of two in 2 .. 4096", "at least 1". */
static const char *range_text(const arg_option *o, char *out, size_t size)
{
    const char *power = o->power_of_two ? "a power of two in " : "in ";
    if (o->max == INT64_MAX)
        snprintf(out, size, "at least %" PRId64, o->min);
    else
        snprintf(out, size, "%s%" PRId64 " .. %" PRId64, power, o->min, o->max);
    return out;
}

static int wrong_value(const arg_option *o, const char *text)
{
    char range[96];
    range_text(o, range, sizeof range);
    const char *what = o->kind == ARG_REAL ? "a number" : o->power_of_two ? "an integer," : "an integer";
    return tool_fail(DCM_ERR_USAGE, "--%s: \"%s\" is not %s %s", o->name, text, what, range);
}

static int read_int(const arg_option *o, const char *text, int64_t *out)
{
    if (!args_read_int(text, o->min, o->max, out) || (o->power_of_two && (*out & (*out - 1))))
        return wrong_value(o, text);
    return ARGS_GO;
}

static int read_ints(const arg_option *o, const char *text, arg_ints *out)
{
    out->count = 0;
    for (;;) {
        char item[32];
        const size_t size = strcspn(text, ",");
        if (size >= sizeof item)
            return wrong_value(o, text);
        memcpy(item, text, size);
        item[size] = 0;
        if (out->count == ARG_LIST_MAX)
            return tool_fail(DCM_ERR_USAGE, "--%s: more than %d values", o->name, ARG_LIST_MAX);
        const int code = read_int(o, item, &out->item[out->count++]);
        if (code != ARGS_GO)
            return code;
        if (!text[size])
            return ARGS_GO;
        text += size + 1;
    }
}

static int read_memory(const arg_option *o, const char *text, arg_memory *out)
{
    char *end;
    *out = (arg_memory){0};
    if (*text >= '0' && *text <= '9') {
        errno = 0;
        const unsigned long long n = strtoull(text, &end, 10);
        const bool overflow = errno != 0;
        const double fraction = strtod(text, &end); /* "12.5%" */
        if (end[0] == '%' && !end[1] && fraction > 0 && fraction <= 100) {
            out->percent = fraction;
            return ARGS_GO;
        }
        const size_t digits = strspn(text, "0123456789");
        const char *units = "KMG", *unit = text[digits] ? strchr(units, text[digits]) : NULL;
        const unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
        if (!overflow && n > 0 && !text[digits + (unit ? 1 : 0)] && n <= UINT64_MAX >> shift) {
            out->bytes = n << shift;
            return ARGS_GO;
        }
    }
    return tool_fail(
        DCM_ERR_USAGE,
        "--%s: \"%s\" is not a number of bytes (a K, M or G may follow) nor a percentage over 0 and up to 100%%",
        o->name, text);
}

static int read_value(const arg_option *o, const char *text)
{
    switch (o->kind) {
    case ARG_FLAG: *(bool *)o->value = true; return ARGS_GO;
    case ARG_TEXT: *(const char **)o->value = text; return ARGS_GO;
    case ARG_TEXTS: {
        arg_texts *texts = o->value;
        if (texts->count == ARG_LIST_MAX)
            return tool_fail(DCM_ERR_USAGE, "--%s: given more than %d times", o->name, ARG_LIST_MAX);
        texts->item[texts->count++] = text;
        return ARGS_GO;
    }
    case ARG_INT: return read_int(o, text, o->value);
    case ARG_INTS: return read_ints(o, text, o->value);
    case ARG_REAL:
        return args_read_real(text, (double)o->min, (double)o->max, o->value) ? ARGS_GO : wrong_value(o, text);
    case ARG_CHOICE: {
        const int choice = args_choice(o->choices, text);
        if (choice < 0)
            return tool_fail(DCM_ERR_USAGE, "--%s: \"%s\" is none of %s", o->name, text, o->choices);
        *(int *)o->value = choice;
        return ARGS_GO;
    }
    case ARG_MEMORY: return read_memory(o, text, o->value);
    }
    return DCM_ERR_USAGE;
}

/* ---- Help ---- */

/* The default as the parser would read it; "" where there is none to show. */
static const char *default_text(const arg_option *o, char *out, size_t size)
{
    *out = 0;
    switch (o->kind) {
    case ARG_TEXT:
        if (*(const char **)o->value)
            snprintf(out, size, "%s", *(const char **)o->value);
        break;
    case ARG_INT:
        if (*(int64_t *)o->value || o->show_zero)
            snprintf(out, size, "%" PRId64, *(int64_t *)o->value);
        break;
    case ARG_INTS: {
        const arg_ints *list = o->value;
        for (size_t i = 0, used = 0; i < list->count && used < size; i++)
            used += (size_t)snprintf(out + used, size - used, "%s%" PRId64, i ? "," : "", list->item[i]);
        break;
    }
    case ARG_REAL:
        if (*(double *)o->value != 0 || o->show_zero)
            snprintf(out, size, "%g", *(double *)o->value);
        break;
    case ARG_CHOICE: {
        const char *at = o->choices;
        for (int i = *(int *)o->value; i > 0; i--)
            at += strcspn(at, "|") + 1;
        snprintf(out, size, "%.*s", (int)strcspn(at, "|"), at);
        break;
    }
    case ARG_FLAG:
    case ARG_TEXTS:
    case ARG_MEMORY: break;
    }
    return out;
}

/* Print `text` from column HELP_COLUMN on, broken at spaces. */
static void print_wrapped(const char *text, size_t column)
{
    while (*text) {
        const size_t word = strcspn(text, " ");
        if (column > HELP_COLUMN && column + 1 + word > HELP_WIDTH) {
            printf("\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        } else if (column > HELP_COLUMN) {
            putchar(' ');
            column++;
        }
        printf("%.*s", (int)word, text);
        column += word;
        text += word + strspn(text + word, " ");
    }
    putchar('\n');
}

static void print_option(const arg_option *o)
{
    char left[128], text[1024], range[96] = "", value[96], suffix[224] = "";
    const char *meta = o->kind == ARG_FLAG ? "" : o->meta ? o->meta : o->choices;
    char letter[8] = "    ";
    if (o->letter)
        snprintf(letter, sizeof letter, "-%c, ", o->letter);
    const int used = snprintf(left, sizeof left, "  %s--%s%s%s", letter, o->name, *meta ? " " : "", meta);
    if (o->kind == ARG_INT || o->kind == ARG_INTS || o->kind == ARG_REAL)
        range_text(o, range, sizeof range);
    default_text(o, value, sizeof value);
    if (*range || *value || o->required)
        snprintf(suffix, sizeof suffix, " (%s%s%s%s%s)", range, *range && (*value || o->required) ? "; " : "",
                 o->required ? "required" : "", *value && !o->required ? "default " : "", o->required ? "" : value);
    snprintf(text, sizeof text, "%s%s", o->help, suffix);
    printf("%s", left);
    size_t column = (size_t)used;
    if (column + 1 >= HELP_COLUMN) {
        putchar('\n');
        column = 0;
    }
    printf("%*s", (int)(HELP_COLUMN - column), "");
    print_wrapped(text, HELP_COLUMN);
}

static void print_help(const args *a)
{
    printf("usage: %s %s\n\n%s\n", tool_name(), a->usage, a->about);
    for (size_t i = 0; i < a->count; i++) {
        if (a->list[i].title)
            printf("\n%s:\n", a->list[i].title);
        print_option(&a->list[i].option);
    }
    printf("\n  -h, --help                  Show this text and exit.\n");
}

/* ---- Parsing ---- */

static int unknown(const char *what)
{
    return tool_fail(DCM_ERR_USAGE, "unknown option %s; see %s --help", what, tool_name());
}

/* Note that an option is given: twice only where each time adds something, or says the same. */
static int note_seen(args *a, size_t k)
{
    const arg_option *o = &a->list[k].option;
    const bool again = a->list[k].seen && o->kind != ARG_FLAG && o->kind != ARG_TEXTS;
    a->list[k].seen = true;
    return again ? tool_fail(DCM_ERR_USAGE, "--%s is given twice: it takes one %s", o->name,
                             o->kind == ARG_INTS ? "list, with commas" : "value")
                 : ARGS_GO;
}

static int parse_long(args *a, int argc, char **argv, int *i)
{
    const char *name = argv[*i] + 2, *equals = strchr(name, '=');
    const size_t length = equals ? (size_t)(equals - name) : strlen(name);
    for (size_t k = 0; k < a->count; k++) {
        const arg_option *o = &a->list[k].option;
        if (strlen(o->name) != length || memcmp(o->name, name, length) != 0)
            continue;
        const int code = note_seen(a, k);
        if (code != ARGS_GO)
            return code;
        if (o->kind == ARG_FLAG && equals)
            return tool_fail(DCM_ERR_USAGE, "--%s takes no value", o->name);
        if (o->kind == ARG_FLAG)
            return read_value(o, NULL);
        if (equals)
            return read_value(o, equals + 1);
        if (*i + 1 >= argc)
            return tool_fail(DCM_ERR_USAGE, "--%s needs a value: %s", o->name, o->meta ? o->meta : o->choices);
        return read_value(o, argv[++*i]);
    }
    return unknown(argv[*i]);
}

/* A cluster of letters: flags, the last one perhaps with a value, in the same word or the next. */
static int parse_letters(args *a, int argc, char **argv, int *i)
{
    for (const char *p = argv[*i] + 1; *p; p++) {
        size_t k = 0;
        while (k < a->count && a->list[k].option.letter != *p)
            k++;
        if (k == a->count)
            return unknown(argv[*i]);
        const arg_option *o = &a->list[k].option;
        const int code = note_seen(a, k);
        if (code != ARGS_GO)
            return code;
        if (o->kind == ARG_FLAG) {
            read_value(o, NULL);
            continue;
        }
        if (p[1])
            return read_value(o, p + 1);
        if (*i + 1 >= argc)
            return tool_fail(DCM_ERR_USAGE, "-%c (--%s) needs a value: %s", o->letter, o->name,
                             o->meta ? o->meta : o->choices);
        return read_value(o, argv[++*i]);
    }
    return ARGS_GO;
}

static int parse_one(args *a, int argc, char **argv, int *i)
{
    const char *word = argv[*i];
    if (strcmp(word, "-") == 0 && a->stdin_dash) {
        a->dash = true;
        return ARGS_GO;
    }
    if (strncmp(word, "--", 2) == 0)
        return parse_long(a, argc, argv, i);
    if (word[0] == '-' && word[1])
        return parse_letters(a, argc, argv, i);
    return tool_fail(DCM_ERR_USAGE, "unexpected argument \"%s\"; see %s --help", word, tool_name());
}

int args_parse(args *a, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (args_is_help(argv[i])) {
            print_help(a);
            return tool_flush();
        }
        const int code = parse_one(a, argc, argv, &i);
        if (code != ARGS_GO)
            return code;
    }
    for (size_t k = 0; k < a->count; k++) {
        const arg_option *o = &a->list[k].option;
        if (o->required && !a->list[k].seen)
            return tool_fail(DCM_ERR_USAGE, "%s%.1s%s--%s %s is required; see %s --help", o->letter ? "-" : "",
                             o->letter ? &o->letter : "", o->letter ? ", " : "", o->name,
                             o->meta ? o->meta : o->choices, tool_name());
    }
    return ARGS_GO;
}
