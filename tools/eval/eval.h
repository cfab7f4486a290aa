/* Parts of `dcm eval`: what its measures share. Each measure is one file beside this one. */
#ifndef EVAL_H
#define EVAL_H

#include "bootstrap.h"
#include "policies.h"
#include "reader.h"
#include "runtime.h"
#include "table.h"

/* ---- Measures: exit codes from their own arguments ---- */

int eval_ppl(int argc, char **argv);

/* ---- Set-up (setup.c) ---- */

/* Options of all measures. */
typedef struct eval_options {
    const char *model, *policies;
    int format;
    cache_options cache;
    device_options device;
    verbosity_options words;
    bootstrap_options intervals;
} eval_options;

#define EVAL_OPTIONS_DEFAULT ((eval_options){.cache = CACHE_OPTIONS_DEFAULT, .intervals = BOOTSTRAP_OPTIONS_DEFAULT})

/* A measure's run: the model, and the policies that are compared. */
typedef struct eval {
    const eval_options *o;
    runtime r;
    policy_list policies;
} eval;

/* Add -m; and all others, behind the measure's own. */
void eval_add_model(args *a, eval_options *o);
void eval_add_options(args *a, eval_options *o);

/* Check the parsed options and read the policies: nothing is opened yet. 0, or 2 after a message. */
int eval_take_options(eval *e, const args *a);

void eval_close(eval *e);

/* What every result of a measure tells of its run: `test` is the measure's name. */
json_t *eval_meta(const eval *e, const char *test);

/* Tell below a table what its intervals are: `size` each of `what` was drawn. */
void eval_note(const eval *e, table_format format, const char *what, size_t size);

/* Parameters of the full cache that the policies are held against. */
dcm_cache_params eval_full_params(const eval *e);

/* ---- Texts (text.c) ---- */

typedef struct eval_text {
    const char *name; /* of the file; NULL for none */
    int32_t *ids;     /* BOS, where the model asks for one, and the text's tokens */
    size_t count;
    size_t tokens; /* of the text itself */
} eval_text;

/* The tokens from `offset` on, at most `wanted` (0: all), fewer being an error. 0, or 3 after a message; free ids. */
int eval_read_text(eval_text *t, const eval *e, text_reader *reader, uint64_t offset, uint64_t wanted);

#endif
