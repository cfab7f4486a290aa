/* What commands that run a model share: opening everything in the right order, what is printed about a run. */
#ifndef RUNTIME_H
#define RUNTIME_H

#include <dcm/dcm.h>
#include <jansson.h>

#include "options.h"

/* A model on a device, and its tokenizer. */
typedef struct runtime {
    dcm_device *device;
    dcm_tokenizer *tokenizer;
    dcm_model *model;
    dcm_model_info info;
} runtime;

/* Open tokenizer, device and model, what fails soonest first. 0, or the exit code after a message; close in any case.
 */
int runtime_open(runtime *r, const device_options *device, const char *model);
void runtime_close(runtime *r);

/* A JSON string of any bytes, "" for NULL: where they are no UTF-8, a question mark stands for each that is not ASCII.
 */
json_t *runtime_text(const char *text);

/* Commit, host CPU, date and command line: what every measured result carries. */
json_t *runtime_host_meta(void);

/* Members about a device: device, driver, platform, tuning (what is chosen for it, "many=mma") and tiers in use
 * ("dot4 half16"). */
void runtime_add_device(json_t *meta, dcm_device *device);

/* The same with those of the device, and the model. */
json_t *runtime_meta(const runtime *r);

/* Parameters of a second session beside `session`, which was opened with `params`: what "auto" was is not said again.
 */
dcm_cache_params runtime_same_cache(const dcm_cache_params *params, const dcm_session *session);

/* Monotonic seconds. */
double runtime_seconds(void);

/* Tokens and seconds of the two phases of a run. */
typedef struct runtime_times {
    uint64_t tokens_in, tokens_out, decoded; /* `decoded`: generated tokens that were fed */
    double prefill_seconds, decode_seconds;
} runtime_times;

/* What --stats shows, on stderr. */
void runtime_print_stats(const runtime *r, const dcm_session *session, const runtime_times *times);

#endif
