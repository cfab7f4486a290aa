/* Parts of `dcm eval`: what its measures share. Each measure is one file beside this one. */
#ifndef EVAL_H
#define EVAL_H

#include <dcm/eval.h>

#include "bootstrap.h"
#include "policies.h"
#include "progress.h"
#include "reader.h"
#include "runtime.h"
#include "table.h"

/* ---- Measures: exit codes from their own arguments ---- */

int eval_metrics(int argc, char **argv);
int eval_needle(int argc, char **argv);
int eval_ppl(int argc, char **argv);
int eval_recall(int argc, char **argv);
int eval_table(int argc, char **argv);

/* The mean of layers' metrics; that of BSD is over all boundaries (metrics.c). */
dcm_attention_metrics eval_mean_metrics(const dcm_attention_metrics *layer, size_t layers);

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
/* Without those of intervals. */
void eval_add_plain_options(args *a, eval_options *o);

/* Check the parsed options and read the policies: nothing is opened yet. 0, or 2 after a message. */
int eval_take_options(eval *e, const args *a);

void eval_close(eval *e);

/* What every result of a measure tells of its run: `test` is the measure's name. */
json_t *eval_meta(const eval *e, const char *test);

/* Tell below a table what its intervals are: `what` was drawn. */
void eval_note(const eval *e, table_format format, const char *what);

/* Parameters of the full cache that the policies are held against. */
dcm_cache_params eval_full_params(const eval *e);

/* The policies' place of that full cache, put behind them where it is not among them. 0, or 2 after a message. */
int eval_add_full(eval *e, size_t *index);

/* ---- Caches (setup.c) ---- */

/* A policy's cache after a text. Zero-initialise. */
typedef struct eval_cache {
    char name[POLICY_TEXT], merge[16];
    dcm_cache_params params;
    size_t units, bytes; /* bytes: of those units; 0: not the same in all texts */
} eval_cache;

void eval_cache_note(eval_cache *cache, const dcm_cache_params *params, const dcm_session *session);

/* Several texts' caches of one policy as one: where windows differ, the name has W=auto. */
void eval_cache_join(eval_cache *all, const eval_cache *one);

/* Cells of units and bytes. */
table_cell eval_cache_units(const eval_cache *cache);
table_cell eval_cache_bytes(const eval_cache *cache);

/* A value and its interval, into three cells. */
void eval_cells(table_cell *cells, double value, bootstrap_interval interval);

/* ---- Texts (text.c) ---- */

typedef struct eval_text {
    const char *name; /* of the file; NULL for none */
    int32_t *ids;     /* BOS, where the model asks for one, and the text's tokens */
    size_t count;
    size_t tokens; /* of the text itself */
} eval_text;

/* The tokens from `offset` on, at most `wanted` (0: all), fewer being an error. 0, or 3 after a message; free ids. */
int eval_read_text(eval_text *t, const eval *e, text_reader *reader, uint64_t offset, uint64_t wanted);

/* -p, -f or -, --tokens and --offset: one text that a measure takes its own texts from. */
typedef struct eval_source {
    input_source input;
    int64_t tokens, offset;
} eval_source;

void eval_add_source(args *a, eval_source *source);

/* Open the model of the options, and read the source's tokens with it. 0, or the exit code after a message. */
int eval_open_text(eval *e, const args *a, const eval_source *source, eval_text *text);

/* Members file, offset and tokens (those read, BOS among them) of a result. */
void eval_source_meta(json_t *meta, const eval_source *source, const eval_text *text);

/* ---- Sequences (sequence.c) ---- */

/* Tokens that one session reads from the first to the last, with scores where they are asked for. */
typedef struct eval_sequence {
    const eval *e;
    const int32_t *ids;
    size_t count, fed, step;
    dcm_session *session;
    const dcm_cache_params *params;
    float *logits; /* (rows, vocab) */
    progress *line;
    uint64_t *done; /* tokens fed since the line began */
} eval_sequence;

/* Begin with an empty cache of a policy; ids, count, line and done are set. 0, or the exit code after a message; close
 * in any case. */
int eval_sequence_open(eval_sequence *s, eval *e, size_t policy);

/* Log-probabilities of `count` tokens from `first` on, which is behind those fed, into `logprob`. */
int eval_sequence_score(eval_sequence *s, size_t first, size_t count, double *logprob);

/* Read to the end: s->logits has those after the last token. */
int eval_sequence_end(eval_sequence *s);

void eval_sequence_close(eval_sequence *s);

#endif
