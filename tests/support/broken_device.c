/*
 * A driver that fails, for `dcm check`: put before the library by LD_PRELOAD. In a process that opened an OpenCL device
 * by its number, $BROKEN says what the 12th feed of its first session does: "logit" (one is a hundredth off), "nan",
 * "error", "crash", "hang"; "cache": one value of the second layer is a tenth off.
 */
#define _GNU_SOURCE
#include <dcm/session.h>

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TOKEN = 12 };

static bool chosen;
static unsigned fed;
static dcm_session *first;

/* The library's own function of a name. */
static void next(const char *name, void *function)
{
    void *found = dlsym(RTLD_NEXT, name);
    memcpy(function, &found, sizeof found);
}

static bool breaks(const char *how)
{
    const char *given = getenv("BROKEN");
    return chosen && given && !strcmp(given, how);
}

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

DCM_API dcm_status dcm_session_read_layer(dcm_session *session, uint32_t layer, dcm_unit *units, float *values)
{
    dcm_status (*read)(dcm_session *, uint32_t, dcm_unit *, float *);
    next("dcm_session_read_layer", &read);
    const dcm_status status = read(session, layer, units, values);
    if (status == DCM_OK && layer == 1 && breaks("cache"))
        values[5] += 0.1f;
    return status;
}
