/* Failing: one status, one line of text for the user, kept per thread. */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <dcm/status.h>

/* Set this thread's message and return `status`. Control characters (of names in files) become '?'. */
dcm_status dcm_fail(dcm_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Put "TEXT: " before this thread's message (what was being done when a lower layer failed) and return `status`. */
dcm_status dcm_fail_in(dcm_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Run EXPR; when it fails, leave its status in STATUS and go to LABEL. */
#define DCM_TRY(STATUS, LABEL, EXPR)                                                                                   \
    do {                                                                                                               \
        (STATUS) = (EXPR);                                                                                             \
        if ((STATUS) != DCM_OK)                                                                                        \
            goto LABEL;                                                                                                \
    } while (0)

#endif
