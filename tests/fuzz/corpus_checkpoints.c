#define _GNU_SOURCE
/* Seeds of checkpoints: one that training wrote, its numbers 0, and others with a word of its header exchanged. */
#include "fuzz/corpus.h"
#include "fuzz/small_trainer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static gw_bytes read_whole(const char *path)
{
    char piece[4096];
    gw_bytes bytes = {0};
    FILE *in = fopen(path, "rb");
    for (size_t n = 1; in && n;) {
        n = fread(piece, 1, sizeof piece, in);
        gw_put(&bytes, piece, n);
    }
    if (in)
        fclose(in);
    return bytes;
}

/* What training writes. The parameters that it begins with are not the same bits everywhere. */
static gw_bytes written(void)
{
    char path[] = "/tmp/dcm-checkpoint-XXXXXX";
    const int fd = mkstemp(path);
    gw_bytes bytes = {0};
    uint64_t header = 0;
    if (fd >= 0 && close(fd) == 0 && small_trainer() &&
        dcm_trainer_checkpoint(small_trainer(), path, "1 2 3") == DCM_OK)
        bytes = read_whole(path);
    unlink(path);
    if (bytes.size > sizeof header) {
        memcpy(&header, bytes.data, sizeof header);
        memset(bytes.data + sizeof header + header, 0, bytes.size - sizeof header - header);
    }
    return bytes;
}

/* The file with `word`, which stands in its header, exchanged for another one of its length. */
static void put_changed(const char *name, const char *word, const char *other)
{
    gw_bytes bytes = written();
    char *at = memmem(bytes.data, bytes.size, word, strlen(word));
    if (!at || strlen(word) != strlen(other)) {
        fprintf(stderr, "make_corpus: checkpoint/%s: no \"%s\"\n", name, word);
        exit(1);
    }
    memcpy(at, other, strlen(other));
    corpus_put("checkpoint", name, bytes);
}

void corpus_checkpoints(void)
{
    corpus_put("checkpoint", "right", written());
    put_changed("other-format", "\"dcm-train\"", "\"dcm-merge\"");
    put_changed("other-version", "\"version\":\"2\"", "\"version\":\"1\"");
    put_changed("version-missing", "\"version\"", "\"vorsion\"");
    put_changed("other-options", "beta1=", "beta2=");
    put_changed("steps-negative", "\"steps\":\"0\"", "\"steps\":\"-\"");
    put_changed("array-missing", "\"square\"", "\"squarf\"");
    put_changed("array-of-halves", "\"F32\"", "\"F16\"");
    gw_bytes bytes = written();
    memset(bytes.data + bytes.size - 4, 0xff, 4);
    corpus_put("checkpoint", "not-a-number", bytes);
}
