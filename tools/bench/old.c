/* The earlier result of --compare: text that anybody may have written. */
#include "bench.h"
#include "regular.h"
#include "tool.h"

#include <stdlib.h>
#include <string.h>

enum { SCHEMA = 1, FILE_MAX_BYTES = 64 << 20, SPARE = 1 << 20 };

/* At least what jansson takes for the values of this text: what lists of numbers without names would make 20 times the
 * text, a result takes 6 times. */
static size_t cost_of(const char *text, size_t size)
{
    enum { STRING = 80, MEMBER = 112, ITEM = 56, OBJECT = 208, ARRAY = 128 };
    size_t cost = size;
    bool inside = false;
    for (size_t i = 0; i < size; i++) {
        const char c = text[i];
        if (c == '"') {
            inside = !inside;
            cost += inside ? 0 : STRING;
        } else if (inside) {
            i += c == '\\';
        } else {
            cost += c == ':' ? MEMBER - STRING : c == ',' ? ITEM : c == '{' ? OBJECT : c == '[' ? ARRAY : 0;
        }
    }
    return cost;
}

/* Rows of other commands and of --table4 have neither. */
static int check_rows(const char *path, const json_t *rows)
{
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row)
    {
        if (!json_is_string(json_object_get(row, "test")) || !json_is_string(json_object_get(row, "policy")))
            return tool_fail(DCM_ERR_FILE,
                             "%s: row %zu has no \"test\" and \"policy\": not a result of dcm bench --format json",
                             path, i + 1);
    }
    return 0;
}

static int check_result(const char *path, const json_t *old)
{
    const json_t *schema = json_object_get(old, "schema");
    if (!json_is_integer(schema))
        return tool_fail(DCM_ERR_FILE, "%s: no \"schema\": not a result of dcm bench --format json", path);
    if (json_integer_value(schema) != SCHEMA)
        return tool_fail(DCM_ERR_FILE, "%s: schema %lld, this program compares with schema %d", path,
                         (long long)json_integer_value(schema), SCHEMA);
    if (!json_is_array(json_object_get(old, "rows")))
        return tool_fail(DCM_ERR_FILE, "%s: no \"rows\": not a result of dcm bench --format json", path);
    return check_rows(path, json_object_get(old, "rows"));
}

int bench_parse_old(const char *path, const char *text, size_t size, json_t **old)
{
    json_error_t error;
    *old = NULL;
    if (cost_of(text, size) > 8 * size + SPARE)
        return tool_fail(DCM_ERR_FILE, "%s: too many values for its size: not a result of dcm bench --format json",
                         path);
    json_t *root = json_loadb(text, size, 0, &error);
    if (!root && !error.text[0]) /* of memory jansson says nothing */
        return tool_fail(DCM_ERR_MEMORY, "%s: host memory: no room for its %zu bytes", path, size);
    if (!root)
        return tool_fail(DCM_ERR_FILE, "%s: not readable as JSON: line %d: %s", path, error.line, error.text);
    const int code = check_result(path, root);
    if (code)
        json_decref(root);
    else
        *old = root;
    return code;
}

/* All of a file, NUL not added; NULL after a message with its exit code. */
static char *read_file(const char *path, size_t *size, int *code)
{
    uint64_t bytes;
    FILE *in = regular_open(path, &bytes);
    *code = in ? 0 : DCM_ERR_FILE;
    if (!in)
        return NULL;
    char *text = NULL;
    *size = (size_t)bytes;
    if (bytes > FILE_MAX_BYTES)
        *code = tool_fail(DCM_ERR_FILE, "%s: over %d bytes: not a result of dcm bench --format json", path,
                          FILE_MAX_BYTES);
    else if (!(text = malloc(*size + 1)))
        *code = tool_fail(DCM_ERR_MEMORY, "%s: host memory: no room for %zu bytes", path, *size);
    else if (fread(text, 1, *size, in) != *size)
        *code = tool_fail(DCM_ERR_FILE, "%s: cannot be read", path);
    fclose(in);
    if (*code) {
        free(text);
        text = NULL;
    }
    return text;
}

int bench_read_old(const char *path, json_t **old)
{
    size_t size;
    int code;
    char *text = read_file(path, &size, &code);
    *old = NULL;
    if (!code)
        code = bench_parse_old(path, text, size, old);
    free(text);
    return code;
}
