/* Results as tables: text, CSV, JSON, JSON lines or Markdown. Rows are written as they come. */
#ifndef TABLE_H
#define TABLE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "args.h"

typedef enum table_format { FORMAT_TEXT, FORMAT_CSV, FORMAT_JSON, FORMAT_JSONL, FORMAT_MD } table_format;

/* Option --format into an int variable. */
#define TABLE_FORMATS "text|csv|json|jsonl|md"
arg_option table_format_option(int *format);

/*
 * One column. `digits`: after the point for reals in text and Markdown, or where negative so many significant ones;
 * other formats print 10 significant digits.
 */
typedef struct table_column {
    const char *name;
    int digits;
} table_column;

typedef enum cell_kind { CELL_NONE, CELL_TEXT, CELL_INT, CELL_REAL, CELL_BOOL } cell_kind;

/* One value. CELL_NONE: "-" in text, null in JSON, else empty; so is a real that is not finite. */
typedef struct table_cell {
    cell_kind kind;
    const char *text;
    int64_t integer; /* CELL_BOOL too */
    double real;
} table_cell;

static inline table_cell cell_none(void) { return (table_cell){CELL_NONE, 0, 0, 0}; }
static inline table_cell cell_text(const char *text) { return (table_cell){CELL_TEXT, text, 0, 0}; }
static inline table_cell cell_int(int64_t n) { return (table_cell){CELL_INT, 0, n, 0}; }
static inline table_cell cell_real(double x) { return (table_cell){CELL_REAL, 0, 0, x}; }
static inline table_cell cell_bool(bool b) { return (table_cell){CELL_BOOL, 0, b, 0}; }

enum { TABLE_COLUMNS_MAX = 48 };

typedef struct table {
    table_format format;
    const table_column *columns;
    size_t n_columns;
    json_t *meta;
    size_t rows;
    char **held; /* text: cells kept until the widths are known */
    size_t n_held;
    int width[TABLE_COLUMNS_MAX];
} table;

/*
 * Start a table on stdout. `meta`: members put beside "schema" and "rows" in JSON, and into every line of JSON lines;
 * the table takes the reference; NULL for none. `columns` must live until table_end.
 */
void table_begin(table *t, table_format format, const table_column *columns, size_t n_columns, json_t *meta);

/* Write one row of n_columns cells; texts are copied. */
void table_row(table *t, const table_cell *cells);

void table_end(table *t);

/* A paragraph below a finished table, in text and Markdown; the other formats have no place for one. */
void table_note(table_format format, const char *text);

#endif
