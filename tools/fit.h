/* Whether a cache will fit, before any work is done. */
#ifndef FIT_H
#define FIT_H

#include "runtime.h"

/*
 * Caches of `count` policies, each holding `tokens` tokens, beside what is allocated on the device now: 0, or 5 after a
 * message with the bytes needed and the group length of the dcm cache that would fit. `session` is any open one of the
 * device.
 */
int fit_check(const runtime *r, const device_options *device, const dcm_session *session,
              const dcm_cache_params *const *params, size_t count, uint64_t tokens);

#endif
