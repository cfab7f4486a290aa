/* Words to the user on stderr, by level. */
#ifndef DCM_LOG_H
#define DCM_LOG_H

#include <dcm/status.h>

#ifdef __cplusplus
extern "C" {
#endif

/* DCM_LOG_QUIET: only what belongs to an error, such as the log of a build that failed. */
typedef enum dcm_log_level { DCM_LOG_QUIET, DCM_LOG_WARN, DCM_LOG_INFO, DCM_LOG_DEBUG } dcm_log_level;

/* Messages above `level` are dropped; the default is DCM_LOG_WARN. Set it before threads start. */
DCM_API void dcm_log_set_level(dcm_log_level level);
DCM_API dcm_log_level dcm_log_get_level(void);

/* Print "dcm: TEXT" and a newline on stderr if `level` is on. */
#if defined(__GNUC__)
__attribute__((format(printf, 2, 3)))
#endif
DCM_API void
dcm_log(dcm_log_level level, const char *format, ...);

#ifdef __cplusplus
}
#endif

#endif
