#include <dcm/log.h>

#include <stdarg.h>
#include <stdio.h>

static dcm_log_level current = DCM_LOG_WARN;

void dcm_log_set_level(dcm_log_level level) { current = level; }
dcm_log_level dcm_log_get_level(void) { return current; }

void dcm_log(dcm_log_level level, const char *format, ...)
{
    if (level > current)
        return;
    char text[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "dcm: %s\n", text); /* one call: lines of several threads do not mix */
}
