#define _GNU_SOURCE
#include "input.h"

#include <dcm/folder.h>

#include "tool.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Short names of models that dcm-get-model fetches. */
static const struct {
    const char *name, *file;
} models[] = {
    {"smollm2-135m", "smollm2-135m.gguf"},
};
enum { MODELS = sizeof models / sizeof *models };

void input_add_options(args *a, input_source *source)
{
    const arg_option options[INPUT_OPTIONS] = {
        {"prompt", 'p', ARG_TEXT, &source->text, "TEXT", "The text itself."},
        {"file", 'f', ARG_TEXT, &source->file, "FILE", "Read the text from FILE; - is standard input."},
    };
    args_add(a, "Input (one of -p, -f and a lone -)", options, INPUT_OPTIONS);
}

bool input_given(const args *a, const input_source *source) { return a->dash || source->text || source->file; }

/* Everything from `in` into *data, a NUL behind it. */
static int read_all(FILE *in, const char *name, char **data, size_t *size)
{
    size_t room = 0;
    for (;;) {
        if (room - *size < 2) {
            room = room ? 2 * room : 65536;
            char *grown = realloc(*data, room);
            if (!grown)
                return tool_fail(DCM_ERR_MEMORY, "%s: no room for %zu bytes", name, room);
            *data = grown;
        }
        const size_t n = fread(*data + *size, 1, room - *size - 1, in);
        *size += n;
        if (n == 0)
            break;
    }
    (*data)[*size] = 0;
    return ferror(in) ? tool_fail(DCM_ERR_FILE, "%s: cannot read: %s", name, strerror(errno)) : 0;
}

/* A device that is neither a terminal nor /dev/null. */
static bool is_endless(FILE *in)
{
    struct stat st, null;
    return fstat(fileno(in), &st) == 0 && S_ISCHR(st.st_mode) && !isatty(fileno(in)) &&
           !(stat("/dev/null", &null) == 0 && null.st_rdev == st.st_rdev);
}

static int read_file(const char *path, char **data, size_t *size)
{
    const bool standard = strcmp(path, "-") == 0;
    FILE *in = standard ? stdin : fopen(path, "rb");
    if (!in)
        return tool_fail(DCM_ERR_FILE, "%s: %s", path, strerror(errno));
    const char *name = standard ? "standard input" : path;
    const int code = is_endless(in) ? tool_fail(DCM_ERR_FILE, "%s: a device without an end: not a text", name)
                                    : read_all(in, name, data, size);
    if (!standard)
        fclose(in);
    return code;
}

int input_check(const args *a, const input_source *source)
{
    return a->dash + !!source->text + !!source->file == 1
               ? 0
               : tool_fail(DCM_ERR_USAGE, "give the text by exactly one of -p TEXT, -f FILE and -");
}

int input_read(const args *a, const input_source *source, char **data, size_t *size)
{
    *data = NULL;
    *size = 0;
    int code = input_check(a, source);
    if (code)
        return code;
    if (source->text) {
        *size = strlen(source->text);
        *data = strdup(source->text);
        if (!*data)
            code = tool_fail(DCM_ERR_MEMORY, "no room for %zu bytes of text", *size);
    } else {
        code = read_file(a->dash ? "-" : source->file, data, size);
    }
    if (code) {
        free(*data);
        *data = NULL;
    }
    return code;
}

void input_add_model(args *a, const char **model)
{
    const arg_option option = {"model",         'm',
                               ARG_TEXT,        model,
                               "FILE|NAME",     "A GGUF file, or a short name in the cache folder: smollm2-135m.",
                               .required = true};
    args_add(a, "Model", &option, 1);
}

int input_model_path(const char *model, char *path, size_t size)
{
    for (size_t i = 0; i < MODELS; i++) {
        if (strcmp(model, models[i].name) != 0)
            continue;
        const dcm_status status = dcm_cache_path(models[i].file, path, size);
        if (status != DCM_OK)
            return tool_fail_library(status);
        if (access(path, R_OK) == 0)
            return 0;
        return tool_fail(
            DCM_ERR_FILE,
            "model %s is not there (%s): fetch it with `dcm-get-model %s` (tools/get-model in the source tree)", model,
            path, model);
    }
    if ((size_t)snprintf(path, size, "%s", model) >= size)
        return tool_fail(DCM_ERR_FILE, "the model's path is too long");
    struct stat st;
    if (stat(path, &st) == 0)
        return 0;
    const bool bare = errno == ENOENT && !strchr(model, '/') && !strchr(model, '.');
    if (bare)
        return tool_fail(DCM_ERR_FILE, "%s: neither a file nor a known short name (%s)", model, models[0].name);
    return tool_fail(DCM_ERR_FILE, "%s: %s", model, strerror(errno));
}
