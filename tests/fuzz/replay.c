/*
 * Runs a fuzz target without libFuzzer: replay [--changes N] FILE|FOLDER... For every file, in an exact copy so that a
 * sanitiser sees each read outside: the file, the file cut off at every length (at 256 of them if it is longer), and N
 * seeded changes of it (bytes set, numbers of all ones, pieces moved or repeated). Prints how many inputs it ran; the
 * target aborts on a fault.
 */
#include "fuzz/fuzz.h"

#include "base/rng.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { CUTS = 256, LONGEST = 1 << 20 };

static size_t inputs, files;

static void run(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    fuzz_check(copy != NULL, "no memory");
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
    inputs++;
}

/* One to four changes of a copy of the data; `changed` has room for twice as much. */
static size_t change(const uint8_t *data, size_t size, uint8_t *changed, uint64_t *rng)
{
    memcpy(changed, data, size);
    for (uint64_t n = 1 + rng_next(rng) % 4; n > 0 && size > 0; n--) {
        const size_t at = rng_next(rng) % size, length = 1 + rng_next(rng) % 8, rest = size - at;
        const size_t from = rng_next(rng) % size, piece = length < size - from ? length : size - from;
        switch (rng_next(rng) % 5) {
        case 0: changed[at] = (uint8_t)rng_next(rng); break;
        case 1: changed[at] ^= (uint8_t)(1 << rng_next(rng) % 8); break;
        case 2: memset(changed + at, rng_next(rng) % 2 ? 0xff : 0, length < rest ? length : rest); break;
        case 3: memmove(changed + at, changed + from, piece < rest ? piece : rest); break;
        default: /* repeat a piece */
            if (size + piece <= LONGEST) {
                uint8_t copy[8];
                memcpy(copy, changed + from, piece);
                memmove(changed + at + piece, changed + at, rest);
                memcpy(changed + at, copy, piece);
                size += piece;
            }
        }
    }
    return size;
}

static void run_file(const char *path, unsigned changes)
{
    FILE *in = fopen(path, "rb");
    uint8_t *data = malloc(LONGEST), *changed = malloc(2 * LONGEST);
    fuzz_check(in && data && changed, "a file cannot be read");
    const size_t size = fread(data, 1, LONGEST, in), cuts = size < CUTS ? size : CUTS;
    uint64_t rng = size;
    run(data, size);
    for (size_t i = 0; changes && i < cuts; i++)
        run(data, i * size / cuts);
    for (unsigned i = 0; i < changes; i++)
        run(changed, change(data, size, changed, &rng));
    fclose(in);
    free(data);
    free(changed);
    files++;
}

static void run_path(const char *path, unsigned changes)
{
    struct stat st;
    struct dirent **names;
    fuzz_check(stat(path, &st) == 0, "a path is not there");
    if (!S_ISDIR(st.st_mode)) {
        run_file(path, changes);
        return;
    }
    const int n = scandir(path, &names, NULL, alphasort);
    fuzz_check(n >= 0, "a folder cannot be read");
    for (int i = 0; i < n; i++) {
        char file[4096];
        snprintf(file, sizeof file, "%s/%s", path, names[i]->d_name);
        if (names[i]->d_name[0] != '.')
            run_file(file, changes);
        free(names[i]);
    }
    free(names);
}

int main(int argc, char **argv)
{
    unsigned changes = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--changes") && i + 1 < argc)
            changes = (unsigned)atoi(argv[++i]);
        else
            run_path(argv[i], changes);
    }
    printf("%zu inputs of %zu files\n", inputs, files);
    return files == 0;
}
