/*
 * Writes the seeds of the fuzz targets: make_corpus FOLDER. make_corpus --check FOLDER compares instead, and fails
 * where a seed is missing or differs. Files whose name begins with "regression-" are not its own.
 */
#include "fuzz/corpus.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char *folder;
static bool check;
static size_t seeds, wrong, total;

static bool same(const char *path, const gw_bytes *bytes)
{
    FILE *in = fopen(path, "rb");
    unsigned char *found = malloc(bytes->size + 1);
    const bool equal = in && found && fread(found, 1, bytes->size + 1, in) == bytes->size &&
                       (!bytes->size || !memcmp(found, bytes->data, bytes->size));
    if (in)
        fclose(in);
    free(found);
    return equal;
}

static bool save(const char *path, const gw_bytes *bytes)
{
    FILE *out = fopen(path, "wb");
    const bool saved = out && fwrite(bytes->data, 1, bytes->size, out) == bytes->size;
    return out && fclose(out) == 0 && saved;
}

void corpus_put(const char *target, const char *name, gw_bytes bytes)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, target);
    if (!check)
        mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/%s/%s.seed", folder, target, name);
    if (!(check ? same(path, &bytes) : save(path, &bytes))) {
        fprintf(stderr, "make_corpus: %s: %s\n", path, check ? "differs: write the corpus again" : "not written");
        wrong++;
    }
    seeds++;
    total += bytes.size;
    gw_free(&bytes);
}

void corpus_text(const char *target, const char *name, const char *text)
{
    gw_bytes bytes = {0};
    gw_put(&bytes, text, strlen(text));
    corpus_put(target, name, bytes);
}

int main(int argc, char **argv)
{
    check = argc == 3 && !strcmp(argv[1], "--check");
    if (argc != 2 + check) {
        fprintf(stderr, "usage: make_corpus [--check] FOLDER\n");
        return 2;
    }
    folder = argv[1 + check];
    corpus_gguf();
    corpus_models();
    corpus_tokens();
    corpus_checkpoints();
    corpus_others();
    printf("%zu seeds of %zu bytes\n", seeds, total);
    return wrong > 0;
}
