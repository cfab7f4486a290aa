/* Results that are no numbers: what a model computes whose weights hold NaN. Nothing that is made of them means a
 * thing. */
#ifndef NUMBERS_H
#define NUMBERS_H

#include <dcm/session.h>

/*
 * Are the logits that a session gave after its token number `token`, from 1 on, all finite? 0; or 3, that of a bad
 * model file, after a message that names token and policy.
 */
int numbers_check(const float *logits, size_t vocab, const dcm_session *session, const dcm_cache_params *params,
                  uint64_t token);

/* 3 after that message for something else than a token: `what` and its number. */
int numbers_fail(const char *what, uint64_t number, const dcm_session *session, const dcm_cache_params *params);

#endif
