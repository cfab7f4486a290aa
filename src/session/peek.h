/* Inside of a session, for measures and tests. */
#ifndef SESSION_PEEK_H
#define SESSION_PEEK_H

#include <dcm/session.h>

#include "cache/cache.h"
#include "model/model.h"

const cache *session_cache(const dcm_session *session);
const dcm_model *session_model(const dcm_session *session);
activations *session_activations(dcm_session *session);

#endif
