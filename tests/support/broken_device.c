/*
 * A driver that fails, for `dcm check`: put before the library by LD_PRELOAD. In a process that opened an OpenCL device
 * by its number, $BROKEN says what the 12th feed of its first session does: "logit" (one is a hundredth off), "nan",
 * "error", "crash", "hang"; "cache": one value of the second layer is a tenth off; "each": dcm_session_feed_each
 * crashes. In every process: "watch": no session tells of its merges; "compiler": in programs the text $BROKEN_TEXT is
 * replaced by $BROKEN_BY.
 */
#define _GNU_SOURCE
#define CL_TARGET_OPENCL_VERSION 120
#include <CL/cl.h>
#include <dcm/session.h>

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TOKEN = 12, PARTS_MAX = 16 };

static bool chosen;
static unsigned fed;
static dcm_session *first;

/* The library's own function of a name. */
static void next(const char *name, void *function)
{
    void *found = dlsym(RTLD_NEXT, name);
    memcpy(function, &found, sizeof found);
}

static bool asked(const char *how)
{
    const char *given = getenv("BROKEN");
    return given && !strcmp(given, how);
}

static bool breaks(const char *how) { return chosen && asked(how); }

DCM_API dcm_status dcm_device_open(dcm_device **device, const dcm_device_params *params)
{
    dcm_status (*open)(dcm_device **, const dcm_device_params *);
    next("dcm_device_open", &open);
    chosen = chosen || (params && params->name && params->name[0] >= '0' && params->name[0] <= '9');
    return open(device, params);
}

DCM_API dcm_status dcm_session_feed(dcm_session *session, const int32_t *tokens, size_t count, float *logits)
{
    dcm_status (*feed)(dcm_session *, const int32_t *, size_t, float *);
    next("dcm_session_feed", &feed);
    const dcm_status status = feed(session, tokens, count, logits);
    first = first ? first : session;
    if (session != first || ++fed != TOKEN || status != DCM_OK)
        return status;
    if (breaks("logit"))
        logits[7] += 0.01f;
    if (breaks("nan"))
        logits[7] = NAN;
    if (breaks("crash"))
        abort();
    while (breaks("hang"))
        pause();
    /* an id that there is not: a real error */
    return breaks("error") ? feed(session, &(const int32_t){-1}, 1, logits) : status;
}

DCM_API dcm_status dcm_session_feed_each(dcm_session *session, const int32_t *tokens, size_t count, float *logits)
{
    dcm_status (*feed)(dcm_session *, const int32_t *, size_t, float *);
    next("dcm_session_feed_each", &feed);
    if (breaks("each"))
        abort();
    return feed(session, tokens, count, logits);
}

DCM_API dcm_status dcm_session_read_layer(dcm_session *session, uint32_t layer, dcm_unit *units, float *values)
{
    dcm_status (*read)(dcm_session *, uint32_t, dcm_unit *, float *);
    next("dcm_session_read_layer", &read);
    const dcm_status status = read(session, layer, units, values);
    if (status == DCM_OK && layer == 1 && (!first || session == first) && breaks("cache"))
        values[5] += 0.1f;
    return status;
}

DCM_API dcm_status dcm_session_watch(dcm_session *session, dcm_merge_seen *seen, void *context)
{
    dcm_status (*watch)(dcm_session *, dcm_merge_seen *, void *);
    next("dcm_session_watch", &watch);
    return asked("watch") ? DCM_OK : watch(session, seen, context);
}

/* `text` with all of $BROKEN_TEXT replaced; the caller frees it. */
static char *changed(const char *text, size_t size)
{
    const char *from = getenv("BROKEN_TEXT"), *by = getenv("BROKEN_BY");
    char *out = malloc((size + 1) * (strlen(by) + 1)), *end = out, *copy = strndup(text, size), *at = copy;
    for (char *found; (found = strstr(at, from)); at = found + strlen(from)) {
        end = mempcpy(end, at, (size_t)(found - at));
        end = stpcpy(end, by);
    }
    strcpy(end, at);
    free(copy);
    return out;
}

DCM_API cl_program clCreateProgramWithSource(cl_context context, cl_uint count, const char **parts, const size_t *sizes,
                                             cl_int *error)
{
    cl_program (*create)(cl_context, cl_uint, const char **, const size_t *, cl_int *);
    char *part[PARTS_MAX];
    next("clCreateProgramWithSource", &create);
    if (!asked("compiler") || count > PARTS_MAX)
        return create(context, count, parts, sizes, error);
    for (cl_uint i = 0; i < count; i++)
        part[i] = changed(parts[i], sizes && sizes[i] ? sizes[i] : strlen(parts[i]));
    const cl_program program = create(context, count, (const char **)part, NULL, error);
    for (cl_uint i = 0; i < count; i++)
        free(part[i]);
    return program;
}
