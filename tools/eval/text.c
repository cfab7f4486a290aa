#include "eval.h"

#include "tool.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Room for `more` ids behind those of the text. */
static int make_room(eval_text *t, size_t *room, size_t more)
{
    if (*room - t->count >= more)
        return 0;
    const size_t grown_room = 2 * (t->count + more);
    int32_t *grown = realloc(t->ids, grown_room * sizeof *grown);
    if (!grown)
        return tool_fail(DCM_ERR_MEMORY, "no room for %zu tokens", grown_room);
    t->ids = grown;
    *room = grown_room;
    return 0;
}

/* Append the piece's ids, less the text's first `offset` and what passes `wanted`; `seen`: tokens before the piece. */
static int append(eval_text *t, size_t *room, const int32_t *ids, size_t count, uint64_t seen, uint64_t offset,
                  uint64_t wanted)
{
    const size_t skipped = seen >= offset ? 0 : offset - seen < count ? (size_t)(offset - seen) : count;
    const uint64_t left = wanted ? wanted - t->tokens : UINT64_MAX;
    const size_t taken = count - skipped < left ? count - skipped : (size_t)left;
    const int code = make_room(t, room, taken);
    if (code || !taken)
        return code;
    memcpy(t->ids + t->count, ids + skipped, taken * sizeof *ids);
    t->count += taken;
    t->tokens += taken;
    return 0;
}

int eval_read_text(eval_text *t, const eval *e, text_reader *reader, uint64_t offset, uint64_t wanted)
{
    const int32_t bos = dcm_bos_token(e->r.tokenizer);
    uint64_t seen = 0;
    size_t room = 0, count = 0;
    int code = make_room(t, &room, 1);
    if (code == 0 && bos >= 0)
        t->ids[t->count++] = bos;
    do {
        int32_t *ids = NULL;
        if (code == 0)
            code = reader_next(reader, e->r.tokenizer, 0, &ids, &count);
        if (code == 0)
            code = append(t, &room, ids, count, seen, offset, wanted);
        seen += count;
        dcm_free(ids);
    } while (code == 0 && count && (!wanted || t->tokens < wanted));
    if (code == 0 && wanted > t->tokens)
        return tool_fail(DCM_ERR_FILE, "%s has %zu tokens after --offset %" PRIu64 ", not the %" PRIu64 " of --tokens",
                         reader->name, t->tokens, offset, wanted);
    return code;
}

void eval_add_source(args *a, eval_source *source)
{
    const arg_option options[] = {
        {"tokens", 'n', ARG_INT, &source->tokens, "TOKENS", "Tokens of the text to take; 0: all.", 0, INT64_C(1) << 40},
        {"offset", 0, ARG_INT, &source->offset, "T", "Leave out the text's first T tokens.", 0, INT64_C(1) << 40},
    };
    input_add_options(a, &source->input);
    args_add(a, "Text", options, sizeof options / sizeof *options);
}

int eval_open_text(eval *e, const args *a, const eval_source *source, eval_text *text)
{
    text_reader reader = {0};
    int code = reader_open(&reader, a, &source->input);
    if (code == 0)
        code = runtime_open(&e->r, &e->o->device, e->o->model);
    if (code == 0)
        code = eval_read_text(text, e, &reader, (uint64_t)source->offset, (uint64_t)source->tokens);
    reader_close(&reader);
    return code;
}

void eval_source_meta(json_t *meta, const eval_source *source, const eval_text *text)
{
    json_object_set_new(meta, "file", runtime_text(source->input.file));
    json_object_set_new(meta, "offset", json_integer(source->offset));
    json_object_set_new(meta, "tokens", json_integer((json_int_t)text->count));
}
