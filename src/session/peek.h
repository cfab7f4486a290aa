/* A look into a session, for tests. */
#ifndef SESSION_PEEK_H
#define SESSION_PEEK_H

#include <dcm/session.h>

#include "cache/cache.h"

const cache *session_cache(const dcm_session *session);

#endif
