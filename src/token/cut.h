/* Where a text may be cut so that its parts' tokens are the whole text's. */
#ifndef DCM_TOKEN_CUT_H
#define DCM_TOKEN_CUT_H

#include "token/vocab.h"

typedef struct cut_rule {
    bool spaces;    /* before a space behind anything but white space */
    bool lines;     /* behind a line feed that stands alone */
    bool shut[256]; /* no cut behind this byte */
} cut_rule;

/* The rule of a vocabulary: of a pre-tokenizer's words where `words`, else of SentencePiece's merges. */
void cut_open(cut_rule *rule, const vocab *v, bool words);

/*
 * The last place in `text` where it may be cut, whatever follows its end; 0 where there is none.
 *
 * Every pre-tokenizer of split.c ends a word before a space that follows something else, and behind a line feed
 * between two characters that are no white space; none looks back, and only runs of white space look ahead.
 */
size_t cut_last(const cut_rule *rule, const char *text, size_t size);

#endif
