/* Status codes and error messages: what every fallible call of libdcm returns. */
#ifndef DCM_STATUS_H
#define DCM_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define DCM_API __attribute__((visibility("default")))
#else
#define DCM_API
#endif

/* Result of a call. The values are the exit codes of the `dcm` program, so that a tool can `return status`. */
typedef enum dcm_status {
    DCM_OK = 0,
    DCM_ERR_USAGE = 2,        /* an argument is out of its range, or the call is not allowed in this state */
    DCM_ERR_FILE = 3,         /* an input is missing, malformed or unsupported, or an output cannot be written */
    DCM_ERR_DEVICE = 4,       /* OpenCL is missing or failed: no platform, build error, lost device */
    DCM_ERR_MEMORY = 5,       /* host or device memory does not suffice */
    DCM_ERR_INTERRUPTED = 130 /* the caller asked for a stop while work was going on */
} dcm_status;

/* Short constant name, such as "file"; never NULL. */
DCM_API const char *dcm_status_name(dcm_status status);

/*
 * One line that says what failed, where, and what to do: the message of the last call on this thread that did
 * not return DCM_OK. Owned by the library; valid until the thread's next call, whose own attempts that fail may leave
 * theirs here even where the call itself does not. Never NULL; "" before the first failure.
 */
DCM_API const char *dcm_error(void);

/* Free what a function of this library returned for its caller to free with this; NULL is accepted. */
DCM_API void dcm_free(void *pointer);

#ifdef __cplusplus
}
#endif

#endif
