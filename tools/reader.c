#define _GNU_SOURCE
#include "reader.h"

#include "tool.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Bytes read before a piece is tokenized: some ten thousand tokens. */
enum { PIECE = 1 << 16, WAIT_MS = 100 /* between two looks for a stop */ };

void reader_open_text(text_reader *r, const char *text, size_t size)
{
    *r = (text_reader){.name = "the prompt", .file = -1, .again = true, .memory = text, .memory_size = size};
}

void reader_close(text_reader *r)
{
    if (r->file > STDIN_FILENO)
        close(r->file);
    free(r->data);
    *r = (text_reader){.file = -1};
}

/* Up to `size` bytes into `to`; *got 0 at the text's end. */
static int read_some(text_reader *r, char *to, size_t size, size_t *got)
{
    if (r->file < 0) {
        const size_t left = r->memory_size - r->read;
        *got = left < size ? left : size;
        memcpy(to, r->memory + r->read, *got);
        return 0;
    }
    struct pollfd wait = {.fd = r->file, .events = POLLIN};
    while (poll(&wait, 1, WAIT_MS) == 0)
        if (tool_stopped())
            return tool_stopped();
    const ssize_t n = read(r->file, to, size);
    if (n < 0)
        return tool_fail(DCM_ERR_FILE, "%s: cannot read: %s", r->name, strerror(errno));
    *got = (size_t)n;
    return 0;
}

/* Read until `data` has `wanted` bytes, or the text ends. */
static int fill(text_reader *r, size_t wanted)
{
    while (!r->ended && r->size < wanted) {
        if (r->room - r->size < 2) {
            const size_t room = r->room ? 2 * r->room : PIECE + 1;
            char *grown = realloc(r->data, room);
            if (!grown)
                return tool_fail(DCM_ERR_MEMORY, "%s: no room for %zu bytes", r->name, room);
            r->data = grown;
            r->room = room;
        }
        size_t got = 0;
        char *to = r->data + r->size;
        const int code = read_some(r, to, r->room - r->size - 1, &got);
        if (code)
            return code;
        const char *nul = got ? memchr(to, 0, got) : NULL;
        if (nul)
            return tool_fail(DCM_ERR_FILE, "%s: a NUL byte at offset %" PRIu64 ": not a text", r->name,
                             r->read + (uint64_t)(nul - to));
        r->size += got;
        r->read += got;
        r->ended = got == 0;
        r->data[r->size] = 0;
    }
    return 0;
}

int reader_open(text_reader *r, const args *a, const input_source *source)
{
    *r = (text_reader){.file = -1};
    const int code = input_check(a, source);
    if (code)
        return code;
    if (source->text) {
        reader_open_text(r, source->text, strlen(source->text));
        return 0;
    }
    const bool standard = a->dash || strcmp(source->file, "-") == 0;
    r->name = standard ? "standard input" : source->file;
    r->file = standard ? STDIN_FILENO : open(source->file, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (r->file < 0 || fstat(r->file, &st) != 0)
        return tool_fail(DCM_ERR_FILE, "%s: %s", r->name, strerror(errno));
    r->start = lseek(r->file, 0, SEEK_CUR);
    r->again = S_ISREG(st.st_mode) && r->start >= 0;
    return fill(r, PIECE);
}

/* `status` of the tokenizer; it counts offsets from the start of the piece. */
static int fail_piece(const text_reader *r, dcm_status status)
{
    if (!r->cut)
        return tool_fail_library(status);
    return tool_fail((int)status, "%s, counted from byte %" PRIu64 " of %s", dcm_error(), r->cut, r->name);
}

int reader_next(text_reader *r, const dcm_tokenizer *tokenizer, unsigned flags, int32_t **ids, size_t *count)
{
    *ids = NULL;
    *count = 0;
    size_t cut = 0;
    for (size_t wanted = PIECE; !cut; wanted = 2 * r->size) {
        const int code = fill(r, wanted);
        if (code)
            return code;
        if (r->ended && !r->size)
            return 0;
        cut = r->ended ? r->size : dcm_tokenize_cut(tokenizer, r->data, r->size);
    }
    const dcm_status status =
        dcm_tokenize(tokenizer, r->data, cut, r->cut ? flags | DCM_TOKENIZE_REST : flags, ids, count);
    if (status != DCM_OK)
        return fail_piece(r, status);
    memmove(r->data, r->data + cut, r->size - cut);
    r->size -= cut;
    r->cut += cut;
    return 0;
}

int reader_count(text_reader *r, const dcm_tokenizer *tokenizer, unsigned flags, uint64_t *total)
{
    *total = 0;
    if (!r->again)
        return 0;
    for (;;) {
        int32_t *ids;
        size_t count;
        const int code = reader_next(r, tokenizer, flags, &ids, &count);
        dcm_free(ids);
        if (code)
            return code;
        if (!count)
            break;
        *total += count;
    }
    r->size = 0;
    r->read = r->cut = 0;
    r->ended = false;
    if (r->file >= 0 && lseek(r->file, r->start, SEEK_SET) < 0)
        return tool_fail(DCM_ERR_FILE, "%s: cannot read it again: %s", r->name, strerror(errno));
    return 0;
}

int reader_all(text_reader *r, const char **text, size_t *size)
{
    const int code = fill(r, SIZE_MAX);
    *text = r->data;
    *size = r->size;
    return code;
}
