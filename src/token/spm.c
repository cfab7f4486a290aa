#include "token/spm.h"

#include "base/error.h"
#include "base/memory.h"
#include "token/utf8.h"

#include <string.h>

/* A part of the text; one merged away has size 0. */
typedef struct spm_symbol {
    uint32_t start, size;
    uint32_t previous, next;
} spm_symbol;

/* A merge to be: of the symbol at `left` with the next one, `size` bytes in all. */
typedef struct spm_pair {
    float score;
    uint32_t left, size;
} spm_pair;

static const uint32_t none = UINT32_MAX;

static bool tokens_start_words(const vocab *v)
{
    for (size_t id = 0; id < v->count; id++) {
        size_t size;
        const char *text = vocab_text(v, (int32_t)id, &size);
        for (size_t i = 1; v->type[id] == TOKEN_NORMAL && i < size; i++)
            if (text[i] == ' ' && text[i - 1] != ' ')
                return false;
    }
    return true;
}

dcm_status spm_open(spm *s, const vocab *v, const gguf *file, int32_t unknown)
{
    dcm_status status;
    const void *data;
    size_t count;
    DCM_TRY(status, fail, gguf_get_f32_array(file, "tokenizer.ggml.scores", &data, &count));
    if (count != v->count) {
        status =
            dcm_fail(DCM_ERR_FILE, "tokenizer.ggml.scores has %zu items, tokenizer.ggml.tokens %zu", count, v->count);
        goto fail;
    }
    DCM_TRY(status, fail, mem_new(&s->score, count, sizeof *s->score, "token scores"));
    memcpy(s->score, data, count * sizeof *s->score);
    for (size_t i = 0; i < count; i++) {
        if (s->score[i] != s->score[i]) {
            status = dcm_fail(DCM_ERR_FILE, "tokenizer.ggml.scores: item %zu is not a number", i);
            goto fail;
        }
    }
    s->unknown = unknown;
    s->split_at_spaces = tokens_start_words(v);
fail:
    return status;
}

void spm_close(spm *s) { mem_free(&s->score); }

void spm_work_free(spm_work *work)
{
    mem_free(&work->symbols);
    mem_free(&work->queue);
    work->room = 0;
}

static bool before(const spm_pair *a, const spm_pair *b)
{
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

/* A binary heap; at most 3 n entries for n symbols, as in bpe.c. */
static void push(spm_pair *queue, size_t *count, spm_pair entry)
{
    size_t at = (*count)++;
    while (at > 0 && before(&entry, &queue[(at - 1) / 2])) {
        queue[at] = queue[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    queue[at] = entry;
}

static spm_pair pop(spm_pair *queue, size_t *count)
{
    const spm_pair top = queue[0], last = queue[--*count];
    size_t at = 0;
    for (size_t child = 1; child < *count; child = 2 * at + 1) {
        if (child + 1 < *count && before(&queue[child + 1], &queue[child]))
            child++;
        if (!before(&queue[child], &last))
            break;
        queue[at] = queue[child];
        at = child;
    }
    queue[at] = last;
    return top;
}

static dcm_status reserve(spm_work *work, size_t size)
{
    dcm_status status = DCM_OK;
    if (work->room >= size)
        return DCM_OK;
    const size_t room = size + 256;
    DCM_TRY(status, fail, mem_resize(&work->symbols, room, sizeof *work->symbols, "a text's parts"));
    DCM_TRY(status, fail, mem_resize(&work->queue, room, 3 * sizeof *work->queue, "a text's merges"));
    work->room = room;
fail:
    return status;
}

static void queue_pair(const spm *s, const vocab *v, const char *text, spm_work *work, size_t *queued, uint32_t at)
{
    const spm_symbol *left = &work->symbols[at];
    if (left->next == none)
        return;
    const uint32_t size = left->size + work->symbols[left->next].size;
    const int32_t id = vocab_find(v, text + left->start, size);
    if (id >= 0)
        push(work->queue, queued, (spm_pair){s->score[id], at, size});
}

/* One symbol a character, or a byte that starts none. */
static uint32_t start_text(const char *text, size_t size, spm_work *work)
{
    uint32_t n = 0;
    for (size_t at = 0; at < size; n++) {
        uint32_t code;
        const size_t step = utf8_read(text + at, size - at, &code);
        work->symbols[n] = (spm_symbol){(uint32_t)at, step ? (uint32_t)step : 1, n - 1, n + 1};
        at += work->symbols[n].size;
    }
    work->symbols[n - 1].next = none;
    return n;
}

static void merge_all(const spm *s, const vocab *v, const char *text, spm_work *work, uint32_t count)
{
    spm_symbol *symbols = work->symbols;
    size_t queued = 0;
    for (uint32_t i = 0; i + 1 < count; i++)
        queue_pair(s, v, text, work, &queued, i);
    while (queued > 0) {
        const spm_pair best = pop(work->queue, &queued);
        spm_symbol *left = &symbols[best.left];
        if (left->size == 0 || left->next == none || left->size + symbols[left->next].size != best.size)
            continue;
        spm_symbol *right = &symbols[left->next];
        right->size = 0;
        left->size = best.size;
        left->next = right->next;
        if (left->next != none)
            symbols[left->next].previous = best.left;
        queue_pair(s, v, text, work, &queued, best.left);
        if (best.left > 0)
            queue_pair(s, v, text, work, &queued, left->previous);
    }
}

/* The token of one final symbol, or its bytes' tokens. */
static dcm_status emit(const spm *s, const vocab *v, const char *text, spm_symbol symbol, spm_work *work,
                       token_ids *ids)
{
    const int32_t id = vocab_find(v, text + symbol.start, symbol.size);
    if (id >= 0) {
        ids->data[ids->count++] = id;
        return DCM_OK;
    }
    for (uint32_t i = 0; i < symbol.size; i++) {
        const unsigned char byte = (unsigned char)text[symbol.start + i];
        if (v->byte[byte] >= 0) {
            ids->data[ids->count++] = v->byte[byte];
            continue;
        }
        if (!work->lossy) {
            work->lacking = text + symbol.start + i;
            return dcm_fail(DCM_ERR_FILE, "byte 0x%02x has no token", byte);
        }
        ids->data[ids->count++] = s->unknown;
        return DCM_OK;
    }
    return DCM_OK;
}

static dcm_status encode_part(const spm *s, const vocab *v, const char *text, size_t size, spm_work *work,
                              token_ids *ids)
{
    dcm_status status;
    DCM_TRY(status, fail, reserve(work, size));
    const uint32_t count = start_text(text, size, work);
    merge_all(s, v, text, work, count);
    for (uint32_t i = 0; i != none; i = work->symbols[i].next)
        DCM_TRY(status, fail, emit(s, v, text, work->symbols[i], work, ids));
fail:
    return status;
}

dcm_status spm_encode(const spm *s, const vocab *v, const char *text, size_t size, spm_work *work, token_ids *ids)
{
    dcm_status status;
    DCM_TRY(status, fail, ids_reserve(ids, size));
    for (size_t start = 0, end; start < size; start = end) {
        for (end = start + 1; end < size; end++)
            if (s->split_at_spaces && text[end] == ' ' && text[end - 1] != ' ')
                break;
        DCM_TRY(status, fail, encode_part(s, v, text + start, end - start, work, ids));
    }
fail:
    return status;
}
