/* Turns of a generation: feed a text, sample, print as it comes. */
#ifndef GENERATE_H
#define GENERATE_H

#include "reader.h"
#include "runtime.h"
#include "stream.h"
#include "verify.h"

typedef struct generator {
    const runtime *r;
    const device_options *device;
    const dcm_cache_params *params;
    dcm_session *session;
    dcm_sample_params sample;
    uint64_t rng;
    int64_t tokens; /* most to generate a turn */
    bool ignore_end;
    bool quiet;       /* no progress */
    bool interactive; /* an interrupted reading is not the end */
    stream out;
    runtime_times times;
    float *logits; /* after the last token fed */
    int32_t *ends; /* the end tokens, for ignore_end */
    size_t n_ends;
    int32_t unfed;  /* the turn's last token where it was printed but not fed, else -1 */
    bool begun;     /* something has been fed */
    verifier watch; /* opened and closed by the caller */
    bool warned;    /* of more units than trained positions */
} generator;

/* Allocate what a generator needs; r, device, params and session are set. 0 or the exit code after a message;
 * generator_close in any case. */
int generator_open(generator *g);
void generator_close(generator *g);

/*
 * Feed a text: with `first`, BOS goes before it where the model asks for one and it is not there. Special tokens are
 * read as such. Where the text's length can be known, a cache that cannot hold it is refused (5) before anything is
 * fed. Ctrl-C and SIGTERM end it between two steps with their exit codes; the session can go on from what was fed.
 */
int generator_feed_text(generator *g, text_reader *text, bool first);

/* Generate a turn. 0, the exit code of a failure, or that of the signal that stopped it. */
int generator_turn(generator *g);

#endif
