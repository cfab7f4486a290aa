#include "record.h"

#include "regular.h"
#include "tool.h"

#include <dcm/session.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char magic[8] = "DCMCHECK";
enum { HEADER_MAX = 48 << 10, PARTS_MAX = 256, STEPS_MAX = 1 << 24, UNITS_MAX = 1 << 28 };

typedef struct file_head {
    char magic[8];
    uint32_t version, header;
    uint64_t body, checksum;
} file_head;

_Static_assert(sizeof(file_head) == 32 && sizeof(record_step) == 24 + 8 * RECORD_TOP && sizeof(record_unit) == 16,
               "as in the file");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "as in the file");

static const uint64_t hash_start = 0xcbf29ce484222325u;

static uint64_t hash(uint64_t h, const void *data, size_t size)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < size; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

/* ---- What is in it ---- */

uint64_t record_checksum(const float *logits, size_t vocab) { return hash(hash_start, logits, vocab * sizeof *logits); }

void record_sketch(record_step *s, const float *logits, size_t vocab)
{
    size_t count = 0;
    for (size_t i = 0; i < vocab; i++) {
        if (count == RECORD_TOP && !(logits[i] > s->value[count - 1]))
            continue;
        size_t at = count < RECORD_TOP ? count++ : count - 1;
        for (; at && logits[i] > s->value[at - 1]; at--) {
            s->id[at] = s->id[at - 1];
            s->value[at] = s->value[at - 1];
        }
        s->id[at] = (int32_t)i;
        s->value[at] = logits[i];
    }
    for (; count < RECORD_TOP; count++) {
        s->id[count] = -1;
        s->value[count] = 0;
    }
    double sum = 0;
    for (size_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - s->value[0]);
    s->log_sum = s->value[0] + log(sum);
    s->checksum = record_checksum(logits, vocab);
}

float record_digest(const float *values, size_t n)
{
    double sum = 0;
    uint64_t signs = 0;
    for (size_t i = 0; i < n; i++) {
        if (i % 64 == 0) {
            signs = (i / 64 + 1) * 0x9e3779b97f4a7c15u;
            signs = (signs ^ signs >> 30) * 0xbf58476d1ce4e5b9u;
            signs = (signs ^ signs >> 27) * 0x94d049bb133111ebu;
            signs ^= signs >> 31;
        }
        sum += signs >> i % 64 & 1 ? values[i] : -(double)values[i];
    }
    return (float)sum;
}

void record_release(record *r)
{
    json_decref(r->header);
    free(r->step);
    for (size_t i = 0; i < RECORD_CACHES; i++) {
        free(r->cache[i].unit);
        free(r->cache[i].bound);
        free(r->cache[i].digest);
    }
    *r = (record){0};
}

/* ---- Parts of the body ---- */

/* The parts in their order: address and bytes of the i-th; false behind the last. */
static bool part_of(const record *r, size_t i, void **data, size_t *bytes)
{
    if (i == 0) {
        *data = r->step;
        *bytes = r->steps * sizeof *r->step;
        return true;
    }
    if ((i - 1) / 3 >= r->caches)
        return false;
    const record_cache *c = &r->cache[(i - 1) / 3];
    void *const parts[] = {c->unit, c->bound, c->digest};
    const size_t sums = 2 * (size_t)r->layers * sizeof(float);
    const size_t sizes[] = {c->units * sizeof *c->unit, c->units * sums, c->units * sums};
    *data = parts[(i - 1) % 3];
    *bytes = sizes[(i - 1) % 3];
    return true;
}

bool record_write(record *r, FILE *out)
{
    json_t *caches = json_array();
    void *data;
    size_t bytes;
    file_head head = {.version = RECORD_VERSION, .checksum = hash_start};
    memcpy(head.magic, magic, sizeof magic);
    for (size_t i = 0; i < r->caches; i++)
        json_array_append_new(caches, json_pack("[I,I]", (json_int_t)r->cache[i].step, (json_int_t)r->cache[i].units));
    json_object_set_new(r->header, "steps", json_integer((json_int_t)r->steps));
    json_object_set_new(r->header, "caches", caches);
    char *header = json_dumps(r->header, JSON_COMPACT | JSON_ENSURE_ASCII);
    if (!header || strlen(header) > HEADER_MAX) {
        free(header);
        return false;
    }
    head.header = (uint32_t)strlen(header);
    head.checksum = hash(head.checksum, header, head.header);
    for (size_t i = 0; part_of(r, i, &data, &bytes); i++) {
        head.body += bytes;
        head.checksum = hash(head.checksum, data, bytes);
    }
    fwrite(&head, sizeof head, 1, out);
    fwrite(header, head.header, 1, out);
    for (size_t i = 0; part_of(r, i, &data, &bytes); i++)
        fwrite(data, 1, bytes, out);
    free(header);
    return true;
}

/* ---- Reading ---- */

static int bad(const char *path, const char *what)
{
    return tool_fail(DCM_ERR_FILE, "%s: %s: make it again with `dcm check --save`", path, what);
}

static bool number(const json_t *object, const char *name, int64_t max, int64_t *out)
{
    const json_t *n = json_object_get(object, name);
    *out = json_integer_value(n);
    return json_is_integer(n) && *out >= 1 && *out <= max;
}

/* The sizes that the header tells; their parts have not been made yet. */
static bool take_sizes(record *r)
{
    const json_t *caches = json_object_get(r->header, "caches"), *options = json_object_get(r->header, "options");
    int64_t steps, layers, vocab;
    if (!json_is_object(options) || !number(r->header, "steps", STEPS_MAX, &steps) ||
        !number(options, "layers", UINT16_MAX, &layers) || !number(options, "vocab", INT32_MAX, &vocab) ||
        !json_is_array(caches) || json_array_size(caches) > RECORD_CACHES)
        return false;
    r->steps = (size_t)steps;
    r->layers = (uint32_t)layers;
    r->vocab = (int32_t)vocab;
    r->caches = json_array_size(caches);
    for (size_t i = 0; i < r->caches; i++) {
        const json_t *pair = json_array_get(caches, i);
        const json_int_t step = json_integer_value(json_array_get(pair, 0));
        const json_int_t units = json_integer_value(json_array_get(pair, 1));
        if (step < 1 || step > steps || units < 1 || units > UNITS_MAX)
            return false;
        r->cache[i].step = (uint64_t)step;
        r->cache[i].units = (size_t)units;
    }
    return true;
}

/* Does the body have the bytes that the parts take? No product passes 2^50, nor their sum 2^57. */
static bool sizes_fit(const record *r, uint64_t body)
{
    void *data;
    size_t bytes;
    uint64_t sum = 0;
    for (size_t i = 0; part_of(r, i, &data, &bytes); i++)
        sum += bytes;
    return sum == body;
}

static bool make_parts(record *r)
{
    const size_t sums = 2 * (size_t)r->layers;
    bool made = (r->step = malloc(r->steps * sizeof *r->step)) != NULL;
    for (size_t i = 0; i < r->caches && made; i++) {
        record_cache *c = &r->cache[i];
        c->unit = malloc(c->units * sizeof *c->unit);
        c->bound = malloc(sums * c->units * sizeof *c->bound);
        c->digest = malloc(sums * c->units * sizeof *c->digest);
        made = c->unit && c->bound && c->digest;
    }
    return made;
}

/* Ids are used as indices; with a bound that is no number everything would pass. */
static bool is_right(const record_step *s, int32_t vocab)
{
    bool right = s->bound > 0 && isfinite(s->bound) && s->token >= 0 && s->token < vocab && s->id[0] >= 0;
    for (size_t i = 0; i < RECORD_TOP; i++)
        right = right && s->id[i] >= -1 && s->id[i] < vocab;
    return right;
}

static bool contents_are_right(const record *r)
{
    bool right = true;
    for (size_t i = 0; i < r->steps; i++)
        right = right && is_right(&r->step[i], r->vocab);
    for (size_t i = 0; i < r->caches; i++)
        for (size_t k = 0; k < 2 * (size_t)r->layers * r->cache[i].units; k++)
            right = right && r->cache[i].bound[k] >= 0 && isfinite(r->cache[i].bound[k]);
    return right;
}

/* Lists and objects in a text: a record's has one for each of its caches and a few more. */
static size_t count_parts(const char *text, size_t size)
{
    size_t parts = 0;
    bool inside = false;
    for (size_t i = 0; i < size; i++) {
        if (text[i] == '"')
            inside = !inside;
        else if (inside)
            i += text[i] == '\\';
        else
            parts += text[i] == '{' || text[i] == '[';
    }
    return parts;
}

/* `sum`: the checksum as far as it is known then. */
static int read_header(record *r, const char *path, FILE *in, uint64_t size, file_head *head, uint64_t *sum)
{
    char text[HEADER_MAX];
    if (fread(head, sizeof *head, 1, in) != 1 || memcmp(head->magic, magic, sizeof magic) != 0)
        return bad(path, "not a record of dcm check");
    if (head->version != RECORD_VERSION)
        return bad(path, "a record of another version of dcm");
    if (head->header > HEADER_MAX || head->body > size || size != sizeof *head + head->header + head->body)
        return bad(path, "truncated, or longer than it says");
    if (fread(text, 1, head->header, in) != head->header)
        return bad(path, "cannot be read");
    if (count_parts(text, head->header) > PARTS_MAX)
        return bad(path, "damaged: its header makes no sense");
    r->header = json_loadb(text, head->header, JSON_REJECT_DUPLICATES, NULL);
    if (!r->header || !take_sizes(r) || !sizes_fit(r, head->body))
        return bad(path, "damaged: its header makes no sense");
    *sum = hash(hash_start, text, head->header);
    return 0;
}

static int read_body(record *r, const char *path, FILE *in, uint64_t sum, uint64_t checksum)
{
    void *data;
    size_t bytes;
    if (!make_parts(r))
        return tool_fail(DCM_ERR_MEMORY, "%s: no room for its %zu steps", path, r->steps);
    for (size_t i = 0; part_of(r, i, &data, &bytes); i++) {
        if (fread(data, 1, bytes, in) != bytes)
            return bad(path, "cannot be read");
        sum = hash(sum, data, bytes);
    }
    if (sum != checksum)
        return bad(path, "damaged: its checksum is another");
    return contents_are_right(r) ? 0 : bad(path, "damaged: an id or a bound is out of range");
}

int record_read(record *r, const char *path)
{
    file_head head;
    uint64_t size, sum;
    FILE *in = regular_open(path, &size);
    if (!in)
        return DCM_ERR_FILE;
    int code = read_header(r, path, in, size, &head, &sum);
    if (code == 0)
        code = read_body(r, path, in, sum, head.checksum);
    fclose(in);
    return code;
}
