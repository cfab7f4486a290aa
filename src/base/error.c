#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MESSAGE_BYTES = 4096 };
static _Thread_local char message[MESSAGE_BYTES];

const char *dcm_error(void) { return message; }

const char *dcm_status_name(dcm_status status)
{
    switch (status) {
    case DCM_OK: return "ok";
    case DCM_ERR_USAGE: return "usage";
    case DCM_ERR_FILE: return "file";
    case DCM_ERR_DEVICE: return "device";
    case DCM_ERR_MEMORY: return "memory";
    case DCM_ERR_INTERRUPTED: return "interrupted";
    }
    return "unknown";
}

/* Texts of files stay on the line, and say nothing to a terminal. */
static void keep(char *text)
{
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f)
            *c = '?';
    memcpy(message, text, sizeof message);
}

dcm_status dcm_fail(dcm_status status, const char *format, ...)
{
    /* Formatted aside: an argument may be the old message. */
    char text[MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    keep(text);
    return status;
}

dcm_status dcm_fail_in(dcm_status status, const char *format, ...)
{
    char text[MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    const int used = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    const size_t at = used < 0 ? 0 : (size_t)used < sizeof text ? (size_t)used : sizeof text - 1;
    snprintf(text + at, sizeof text - at, ": %.*s", (int)(sizeof text / 2), message);
    keep(text);
    return status;
}
