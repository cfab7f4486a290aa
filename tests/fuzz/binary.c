/* An entry of the program cache, as it is and with a checksum that fits. */
#include "fuzz/fuzz.h"

#include "base/hash.h"
#include "device/build.h"

#include <stdlib.h>
#include <string.h>

static const uint64_t key = 0x0123456789abcdef;

static void check(const uint8_t *data, size_t size)
{
    binary_header header;
    if (binary_check(data, size, key, &header))
        return;
    fuzz_check(header.size == size - sizeof header && header.key == key, "a header that does not fit");
    fuzz_check(header.checksum == hash_bytes(HASH_START, data + sizeof header, header.size), "a checksum");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    binary_header header;
    check(data, size);
    if (size < sizeof header)
        return 0;
    uint8_t *copy = malloc(size);
    fuzz_check(copy != NULL, "no memory");
    memcpy(copy, data, size);
    memcpy(&header, copy, sizeof header);
    header.checksum = hash_bytes(HASH_START, copy + sizeof header, size - sizeof header);
    memcpy(copy, &header, sizeof header);
    check(copy, size);
    free(copy);
    return 0;
}
