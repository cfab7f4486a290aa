/* A record of dcm check, with the checksum that fits. */
#include "fuzz/fuzz.h"

#include "base/hash.h"
#include "check/record.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD = 32, CHECKSUM = 24 }; /* bytes of the file's head; place of the checksum */

static void check(const record *r)
{
    fuzz_check(r->steps > 0 && r->caches <= RECORD_CACHES, "sizes");
    for (size_t i = 0; i < r->steps; i++) {
        fuzz_check(r->step[i].token >= 0 && r->step[i].token < r->vocab, "a token outside the vocabulary");
        fuzz_check(isfinite(r->step[i].bound), "a bound");
        for (size_t k = 0; k < RECORD_TOP; k++)
            fuzz_check(r->step[i].id[k] >= -1 && r->step[i].id[k] < r->vocab, "an id outside the vocabulary");
    }
    float sum = 0;
    for (size_t i = 0; i < r->caches; i++)
        for (size_t k = 0; k < 2 * r->layers * r->cache[i].units; k++)
            sum += r->cache[i].digest[k];
    fuzz_check(sum <= INFINITY || isnan(sum), "digests");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    record r = {0};
    uint8_t *copy = malloc(size ? size : 1);
    fuzz_check(copy != NULL, "no memory");
    memcpy(copy, data, size);
    if (size >= HEAD) {
        const uint64_t sum = hash_bytes(HASH_START, copy + HEAD, size - HEAD);
        memcpy(copy + CHECKSUM, &sum, sizeof sum);
    }
    const int code = record_read(&r, fuzz_file(copy, size));
    fuzz_check(code == 0 || code == DCM_ERR_FILE || code == DCM_ERR_MEMORY, "an unknown exit code");
    if (code == 0)
        check(&r);
    record_release(&r);
    free(copy);
    return 0;
}
