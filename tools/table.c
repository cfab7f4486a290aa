#define _GNU_SOURCE
#include "table.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    HELD_ROWS = 256,
    SCHEMA = 1,
    JSON_FLAGS = JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(10)
};

arg_option table_format_option(int *format)
{
    return (arg_option){
        "format", 0, ARG_CHOICE, format, .choices = TABLE_FORMATS, .help = "How the result is printed."};
}

/* A cell as text, `none` where it is empty; `digits` < 0: so many significant ones. The caller frees it. */
static char *cell_string(const table_cell *cell, int digits, const char *none)
{
    char *text = NULL;
    int n = 0;
    switch (cell->kind) {
    case CELL_NONE: n = asprintf(&text, "%s", none); break;
    case CELL_TEXT: n = asprintf(&text, "%s", cell->text ? cell->text : ""); break;
    case CELL_INT: n = asprintf(&text, "%" PRId64, cell->integer); break;
    case CELL_BOOL: n = asprintf(&text, "%s", cell->integer ? "yes" : "no"); break;
    case CELL_REAL:
        if (!isfinite(cell->real))
            n = asprintf(&text, "%s", none);
        else if (digits < 0)
            n = asprintf(&text, "%.*g", -digits, cell->real);
        else
            n = asprintf(&text, "%.*f", digits, cell->real);
        break;
    }
    return n < 0 ? NULL : text;
}

/* ---- Text ---- */

/* Columns printed so far: two spaces between cells; bytes of UTF-8 continuation take no place. */
static int display_width(const char *text)
{
    int width = 0;
    for (; *text; text++)
        width += ((unsigned char)*text & 0xc0) != 0x80;
    return width;
}

static void print_text_row(const table *t, char *const *cells)
{
    for (size_t c = 0; c < t->n_columns; c++) {
        const char *text = cells[c] ? cells[c] : "";
        const bool last = c + 1 == t->n_columns;
        printf("%s%s%*s", c ? "  " : "", text,
               last                                    ? 0
               : t->width[c] - display_width(text) > 0 ? t->width[c] - display_width(text)
                                                       : 0,
               "");
    }
    putchar('\n');
}

static void release_held(table *t)
{
    if (!t->held)
        return;
    for (size_t i = 0; i < t->n_held; i++)
        for (size_t c = 0; c < t->n_columns; c++) {
            const int width = display_width(t->held[i * t->n_columns + c] ? t->held[i * t->n_columns + c] : "");
            t->width[c] = width > t->width[c] ? width : t->width[c];
        }
    for (size_t c = 0; c < t->n_columns; c++)
        t->held[t->n_held * t->n_columns + c] = (char *)(uintptr_t)t->columns[c].name;
    print_text_row(t, t->held + t->n_held * t->n_columns);
    for (size_t i = 0; i < t->n_held; i++)
        print_text_row(t, t->held + i * t->n_columns);
    for (size_t i = 0; i < t->n_held * t->n_columns; i++)
        free(t->held[i]);
    free(t->held);
    t->held = NULL;
}

static void text_row(table *t, const table_cell *cells)
{
    char *row[TABLE_COLUMNS_MAX];
    char **to = t->held ? t->held + t->n_held * t->n_columns : row;
    for (size_t c = 0; c < t->n_columns; c++)
        to[c] = cell_string(&cells[c], t->columns[c].digits, "-");
    if (t->held) {
        if (++t->n_held == HELD_ROWS)
            release_held(t);
        return;
    }
    print_text_row(t, row);
    for (size_t c = 0; c < t->n_columns; c++)
        free(row[c]);
}

/* ---- CSV and Markdown ---- */

static void print_csv(const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, stdout);
        return;
    }
    putchar('"');
    for (; *text; text++) {
        if (*text == '"')
            putchar('"');
        putchar(*text);
    }
    putchar('"');
}

static void print_md(const char *text)
{
    for (; *text; text++) {
        if (*text == '|')
            putchar('\\');
        putchar(*text == '\n' ? ' ' : *text);
    }
}

static void print_separated_row(const table *t, char *const *cells)
{
    const bool md = t->format == FORMAT_MD;
    for (size_t c = 0; c < t->n_columns; c++) {
        fputs(md ? "| " : c ? "," : "", stdout);
        (md ? print_md : print_csv)(cells[c] ? cells[c] : "");
        if (md)
            putchar(' ');
    }
    puts(md ? "|" : "");
}

static void separated_row(const table *t, const table_cell *cells)
{
    char *row[TABLE_COLUMNS_MAX];
    for (size_t c = 0; c < t->n_columns; c++)
        row[c] = cell_string(&cells[c], t->format == FORMAT_MD ? t->columns[c].digits : -10, "");
    print_separated_row(t, row);
    for (size_t c = 0; c < t->n_columns; c++)
        free(row[c]);
}

static void separated_head(const table *t)
{
    char *names[TABLE_COLUMNS_MAX];
    for (size_t c = 0; c < t->n_columns; c++)
        names[c] = (char *)(uintptr_t)t->columns[c].name;
    print_separated_row(t, names);
    if (t->format != FORMAT_MD)
        return;
    for (size_t c = 0; c < t->n_columns; c++)
        fputs("| --- ", stdout);
    puts("|");
}

/* ---- JSON ---- */

static json_t *cell_json(const table_cell *cell)
{
    switch (cell->kind) {
    case CELL_NONE: break;
    case CELL_TEXT: return json_string(cell->text ? cell->text : "");
    case CELL_INT: return json_integer(cell->integer);
    case CELL_BOOL: return json_boolean(cell->integer);
    case CELL_REAL: return isfinite(cell->real) ? json_real(cell->real) : json_null();
    }
    return json_null();
}

static json_t *head_json(const table *t)
{
    json_t *head = json_pack("{s:i}", "schema", SCHEMA);
    if (t->meta)
        json_object_update(head, t->meta);
    return head;
}

static void json_row(const table *t, const table_cell *cells)
{
    json_t *row = t->format == FORMAT_JSONL ? head_json(t) : json_object();
    for (size_t c = 0; c < t->n_columns; c++) {
        json_t *value = cell_json(&cells[c]);
        json_object_set_new(row, t->columns[c].name, value ? value : json_null());
    }
    if (t->format == FORMAT_JSON && t->rows)
        fputs(",\n", stdout);
    json_dumpf(row, stdout, JSON_FLAGS);
    if (t->format == FORMAT_JSONL)
        putchar('\n');
    json_decref(row);
}

/* ---- Tables ---- */

void table_begin(table *t, table_format format, const table_column *columns, size_t n_columns, json_t *meta)
{
    *t = (table){.format = format, .columns = columns, .n_columns = n_columns, .meta = meta};
    for (size_t c = 0; c < n_columns; c++)
        t->width[c] = display_width(columns[c].name);
    if (format == FORMAT_TEXT)
        t->held = calloc((HELD_ROWS + 1) * n_columns, sizeof *t->held);
    else if (format == FORMAT_CSV || format == FORMAT_MD)
        separated_head(t);
    if (format != FORMAT_JSON)
        return;
    json_t *head = head_json(t);
    char *text = json_dumps(head, JSON_FLAGS);
    if (text) /* the object's closing brace comes after the rows */
        printf("%.*s,\"rows\":[\n", (int)strlen(text) - 1, text);
    free(text);
    json_decref(head);
}

void table_row(table *t, const table_cell *cells)
{
    switch (t->format) {
    case FORMAT_TEXT: text_row(t, cells); break;
    case FORMAT_CSV:
    case FORMAT_MD: separated_row(t, cells); break;
    case FORMAT_JSON:
    case FORMAT_JSONL: json_row(t, cells); break;
    }
    t->rows++;
}

void table_end(table *t)
{
    release_held(t);
    if (t->format == FORMAT_JSON)
        puts("\n]}");
    json_decref(t->meta);
    t->meta = NULL;
}

void table_note(table_format format, const char *text)
{
    if (format == FORMAT_TEXT || format == FORMAT_MD)
        printf("\n%s\n", text);
}
