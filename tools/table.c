#include "table.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    HELD_ROWS = 256,
    NUMBER_SIZE = 512, /* the largest double has 309 digits before its point */
    SCHEMA = 1,
    JSON_FLAGS = JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(10)
};

arg_option table_format_option(int *format)
{
    return (arg_option){
        "format", 0, ARG_CHOICE, format, .choices = TABLE_FORMATS, .help = "How the result is printed."};
}

/* A cell as text, `none` where it is empty; numbers are written to `room`. `digits` < 0: so many significant ones. */
static const char *cell_string(const table_cell *cell, int digits, const char *none, char room[NUMBER_SIZE])
{
    switch (cell->kind) {
    case CELL_NONE: return none;
    case CELL_TEXT: return cell->text ? cell->text : "";
    case CELL_BOOL: return cell->integer ? "yes" : "no";
    case CELL_INT: snprintf(room, NUMBER_SIZE, "%" PRId64, cell->integer); break;
    case CELL_REAL:
        if (!isfinite(cell->real))
            return none;
        snprintf(room, NUMBER_SIZE, digits < 0 ? "%.*g" : "%.*f", abs(digits), cell->real);
        break;
    }
    return room;
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

static void print_text_cell(const table *t, size_t c, const char *text)
{
    const int space = c + 1 < t->n_columns ? t->width[c] - display_width(text) : 0;
    printf("%s%s%*s%s", c ? "  " : "", text, space > 0 ? space : 0, "", c + 1 < t->n_columns ? "" : "\n");
}

static void text_head(const table *t)
{
    for (size_t c = 0; c < t->n_columns; c++)
        print_text_cell(t, c, t->columns[c].name);
}

static void release_held(table *t)
{
    if (!t->held)
        return;
    for (size_t i = 0; i < t->n_held * t->n_columns; i++) {
        const int width = display_width(t->held[i]);
        int *most = &t->width[i % t->n_columns];
        *most = width > *most ? width : *most;
    }
    text_head(t);
    for (size_t i = 0; i < t->n_held * t->n_columns; i++) {
        print_text_cell(t, i % t->n_columns, t->held[i]);
        free(t->held[i]);
    }
    free(t->held);
    t->held = NULL;
}

/* Keep a row until the widths are known: false where that is over, as it is once there is no room for one. */
static bool hold(table *t, const table_cell *cells)
{
    char room[NUMBER_SIZE];
    if (!t->held)
        return false;
    char **to = t->held + t->n_held * t->n_columns;
    bool kept = true;
    for (size_t c = 0; c < t->n_columns && kept; c++) {
        to[c] = strdup(cell_string(&cells[c], t->columns[c].digits, "-", room));
        kept = to[c] != NULL;
    }
    for (size_t c = 0; c < t->n_columns && !kept; c++)
        free(to[c]);
    t->n_held += kept;
    if (!kept || t->n_held == HELD_ROWS)
        release_held(t);
    return kept;
}

static void text_row(table *t, const table_cell *cells)
{
    char room[NUMBER_SIZE];
    for (size_t c = 0; c < t->n_columns; c++)
        print_text_cell(t, c, cell_string(&cells[c], t->columns[c].digits, "-", room));
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

static void print_separated_cell(const table *t, size_t c, const char *text)
{
    const bool md = t->format == FORMAT_MD, last = c + 1 == t->n_columns;
    fputs(md ? "| " : c ? "," : "", stdout);
    (md ? print_md : print_csv)(text);
    fputs(md ? last ? " |\n" : " " : last ? "\n" : "", stdout);
}

static void separated_row(const table *t, const table_cell *cells)
{
    char room[NUMBER_SIZE];
    for (size_t c = 0; c < t->n_columns; c++)
        print_separated_cell(t, c,
                             cell_string(&cells[c], t->format == FORMAT_MD ? t->columns[c].digits : -10, "", room));
}

static void separated_head(const table *t)
{
    for (size_t c = 0; c < t->n_columns; c++)
        print_separated_cell(t, c, t->columns[c].name);
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
    if (format == FORMAT_TEXT) {
        t->held = calloc(HELD_ROWS * n_columns, sizeof *t->held);
        if (!t->held)
            text_head(t);
    } else if (format == FORMAT_CSV || format == FORMAT_MD)
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
    case FORMAT_TEXT:
        if (!hold(t, cells))
            text_row(t, cells);
        break;
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
