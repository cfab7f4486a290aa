/* A text of any size, read and tokenized in pieces: the ids are those of the whole text. */
#ifndef READER_H
#define READER_H

#include <dcm/tokenizer.h>

#include "input.h"

typedef struct text_reader {
    const char *name; /* of the source, for messages */
    int file;         /* -1: the text is in memory */
    bool again;       /* can be read a second time */
    int64_t start;    /* where in the file the text begins */
    const char *memory;
    size_t memory_size;
    char *data;         /* read, but not yet tokenized; a NUL behind it */
    size_t size, room;  /* of data */
    uint64_t read, cut; /* bytes of the text that were read, that were tokenized */
    bool ended;
} text_reader;

/*
 * Open what -p, -f or - names and read its first piece. 0, or the exit code after a message: 2 when none or more than
 * one of them was given, 3 when the file cannot be opened or read, or is no text. Close in any case.
 */
int reader_open(text_reader *r, const args *a, const input_source *source);

/* A text in memory, which must outlive the reader. */
void reader_open_text(text_reader *r, const char *text, size_t size);

void reader_close(text_reader *r);

/*
 * The next piece's ids, *count of them, to be freed with dcm_free(); *count 0 at the end. `flags`: DCM_TOKENIZE_SPECIAL
 * or 0. 0, or the exit code after a message: 3 for a NUL byte, which would be a sign of a file that is no text, and
 * for what cannot be read or tokenized; that of a signal that came while waiting for bytes.
 */
int reader_next(text_reader *r, const dcm_tokenizer *tokenizer, unsigned flags, int32_t **ids, size_t *count);

/* Tokens of the whole text, and back to its start: *count 0 where that is not possible (a pipe). Errors as above. */
int reader_count(text_reader *r, const dcm_tokenizer *tokenizer, unsigned flags, uint64_t *count);

/* The whole text instead, owned by the reader, with a NUL behind it. Errors as above. */
int reader_all(text_reader *r, const char **text, size_t *size);

#endif
