#include "token/bpe.h"

#include "base/error.h"
#include "base/memory.h"

#include <string.h>

enum { NO_RANK = UINT32_MAX };

struct bpe_merge {
    uint64_t pair; /* left id << 32 | right id */
    uint32_t rank; /* NO_RANK: free slot */
    int32_t id;    /* of the merged token */
};

/* A part of the word. `rank` is that of the merge with the next part; a part merged away has id -1. */
typedef struct bpe_symbol {
    int32_t id;
    uint32_t previous, next;
    uint32_t rank;
} bpe_symbol;

static const uint32_t none = UINT32_MAX;

static uint64_t pair_of(int32_t left, int32_t right) { return (uint64_t)(uint32_t)left << 32 | (uint32_t)right; }

static size_t slot_of(const bpe *b, uint64_t pair) { return (size_t)(pair * 0x9e3779b97f4a7c15u >> 32) & b->mask; }

static const bpe_merge *find(const bpe *b, int32_t left, int32_t right)
{
    const uint64_t pair = pair_of(left, right);
    size_t at = slot_of(b, pair);
    while (b->slots[at].rank != NO_RANK && b->slots[at].pair != pair)
        at = (at + 1) & b->mask;
    return &b->slots[at];
}

static dcm_status bad_merge(size_t rank, gguf_string text, const char *what)
{
    return dcm_fail(DCM_ERR_FILE, "tokenizer.ggml.merges: item %zu (\"%.*s\") %s", rank,
                    (int)(text.size < 80 ? text.size : 80), text.data, what);
}

/* "a b": the ids of a, b and ab. `buffer` holds text.size bytes. Of two merges of one pair the first counts. */
static dcm_status add_merge(bpe *b, const vocab *v, uint32_t rank, gguf_string text, char *buffer)
{
    const char *space = text.size > 1 ? memchr(text.data + 1, ' ', text.size - 1) : NULL;
    if (!space)
        return bad_merge(rank, text, "is not two parts with a space between");
    const size_t left_size = (size_t)(space - text.data);
    size_t left, right;
    if (!vocab_from_byte_level(text.data, left_size, buffer, &left) ||
        !vocab_from_byte_level(space + 1, text.size - left_size - 1, buffer + left, &right))
        return bad_merge(rank, text, "has a character outside the byte alphabet");
    const int32_t a = vocab_find(v, buffer, left), c = vocab_find(v, buffer + left, right);
    const int32_t whole = vocab_find(v, buffer, left + right);
    if (a < 0 || c < 0 || whole < 0)
        return bad_merge(rank, text, "needs tokens that the vocabulary lacks");
    bpe_merge *slot = &b->slots[find(b, a, c) - b->slots];
    if (slot->rank == NO_RANK)
        *slot = (bpe_merge){pair_of(a, c), rank, whole};
    return DCM_OK;
}

dcm_status bpe_open(bpe *b, const vocab *v, const gguf *file, bool whole_words)
{
    dcm_status status;
    gguf_string *texts = NULL;
    char *buffer = NULL;
    size_t count, slots = 16, longest = 0;
    b->whole_words = whole_words;
    DCM_TRY(status, fail, gguf_get_array_size(file, "tokenizer.ggml.merges", &count));
    if (count >= NO_RANK) {
        status = dcm_fail(DCM_ERR_FILE, "tokenizer.ggml.merges has %zu items", count);
        goto fail;
    }
    DCM_TRY(status, fail, mem_new(&texts, count, sizeof *texts, "merges"));
    DCM_TRY(status, fail, gguf_get_string_array(file, "tokenizer.ggml.merges", texts, count));
    for (size_t i = 0; i < count; i++)
        longest = texts[i].size > longest ? texts[i].size : longest;
    DCM_TRY(status, fail, mem_new(&buffer, longest, 1, "merges"));
    while (slots < count + count / 2)
        slots *= 2;
    DCM_TRY(status, fail, mem_new(&b->slots, slots, sizeof *b->slots, "merges"));
    b->mask = slots - 1;
    for (size_t i = 0; i < slots; i++)
        b->slots[i].rank = NO_RANK;
    for (size_t i = 0; i < count; i++)
        DCM_TRY(status, fail, add_merge(b, v, (uint32_t)i, texts[i], buffer));
fail:
    mem_free(&texts);
    mem_free(&buffer);
    return status;
}

void bpe_close(bpe *b) { mem_free(&b->slots); }

void bpe_work_free(bpe_work *work)
{
    mem_free(&work->symbols);
    mem_free(&work->queue);
    work->room = 0;
}

/*
 * A binary heap of rank << 32 | place of the left symbol, the least on top. At most n - 1 pairs at the start and two
 * more per merge: 3 n entries in all.
 */
static void push(uint64_t *queue, size_t *count, uint64_t entry)
{
    size_t at = (*count)++;
    while (at > 0 && queue[(at - 1) / 2] > entry) {
        queue[at] = queue[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    queue[at] = entry;
}

static uint64_t pop(uint64_t *queue, size_t *count)
{
    const uint64_t top = queue[0], last = queue[--*count];
    size_t at = 0;
    for (size_t child = 1; child < *count; child = 2 * at + 1) {
        if (child + 1 < *count && queue[child + 1] < queue[child])
            child++;
        if (queue[child] >= last)
            break;
        queue[at] = queue[child];
        at = child;
    }
    queue[at] = last;
    return top;
}

static dcm_status reserve(bpe_work *work, size_t size)
{
    dcm_status status = DCM_OK;
    if (work->room >= size)
        return DCM_OK;
    const size_t room = size + 256;
    DCM_TRY(status, fail, mem_resize(&work->symbols, room, sizeof *work->symbols, "a word's parts"));
    DCM_TRY(status, fail, mem_resize(&work->queue, room, 3 * sizeof *work->queue, "a word's merges"));
    work->room = room;
fail:
    return status;
}

/* One symbol a byte; *count of them. */
static dcm_status start_word(const vocab *v, const char *word, size_t size, bpe_work *work, uint32_t *count)
{
    uint32_t n = 0;
    for (size_t i = 0; i < size; i++) {
        const unsigned char byte = (unsigned char)word[i];
        if (v->byte[byte] >= 0) {
            work->symbols[n] = (bpe_symbol){v->byte[byte], n - 1, n + 1, NO_RANK};
            n++;
        } else if (!work->lossy) {
            work->lacking = word + i;
            return dcm_fail(DCM_ERR_FILE, "byte 0x%02x has no token", byte);
        }
    }
    if (n > 0)
        work->symbols[n - 1].next = none;
    *count = n;
    return DCM_OK;
}

/* Rank the pair that starts at `at` and queue it where it has one. */
static void queue_pair(const bpe *b, bpe_work *work, size_t *queued, uint32_t at)
{
    bpe_symbol *s = &work->symbols[at];
    s->rank = s->next == none ? NO_RANK : find(b, s->id, work->symbols[s->next].id)->rank;
    if (s->rank != NO_RANK)
        push(work->queue, queued, (uint64_t)s->rank << 32 | at);
}

static void merge_all(const bpe *b, bpe_work *work, uint32_t count)
{
    bpe_symbol *symbols = work->symbols;
    size_t queued = 0;
    for (uint32_t i = 0; i + 1 < count; i++)
        queue_pair(b, work, &queued, i);
    while (queued > 0) {
        const uint64_t entry = pop(work->queue, &queued);
        const uint32_t at = (uint32_t)entry;
        bpe_symbol *left = &symbols[at];
        if (left->id < 0 || left->rank != entry >> 32) /* an older pair of this place */
            continue;
        bpe_symbol *right = &symbols[left->next];
        left->id = find(b, left->id, right->id)->id;
        right->id = -1;
        left->next = right->next;
        if (left->next != none)
            symbols[left->next].previous = at;
        queue_pair(b, work, &queued, at);
        if (at > 0)
            queue_pair(b, work, &queued, left->previous);
    }
}

dcm_status bpe_encode(const bpe *b, const vocab *v, const char *word, size_t size, bpe_work *work, token_ids *ids)
{
    dcm_status status;
    uint32_t count = 0;
    DCM_TRY(status, fail, ids_reserve(ids, size));
    const int32_t whole = b->whole_words || size == 1 ? vocab_find(v, word, size) : -1;
    if (whole >= 0) {
        ids->data[ids->count++] = whole;
        return DCM_OK;
    }
    DCM_TRY(status, fail, reserve(work, size));
    DCM_TRY(status, fail, start_word(v, word, size, work, &count));
    merge_all(b, work, count);
    for (uint32_t i = 0; i < count; i = work->symbols[i].next)
        ids->data[ids->count++] = work->symbols[i].id;
fail:
    return status;
}
