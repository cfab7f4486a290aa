#include "tool.h"
#include "wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

bool check_send(int socket, const void *data, size_t size)
{
    for (const char *at = data; size;) {
        const ssize_t n = send(socket, at, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        at += n;
        size -= (size_t)n;
    }
    return true;
}

typedef struct process {
    int socket;
    dcm_device *device;
    dcm_model *model;
    dcm_session *session[CHECK_FORMS]; /* those of prompts are opened with the first one */
    dcm_cache_params cache;
    dcm_device_info info;
    dcm_model_info shape;
    int32_t *ids;  /* (CHECK_PROMPT_TOKENS) */
    float *logits; /* (CHECK_ROWS, vocab) */
    dcm_unit *units;
    float *values;
    size_t room;          /* of units and values, in units */
    check_chosen *chosen; /* since the last answer */
    size_t n_chosen, chosen_room;
    bool lost_choices; /* no room for one */
} process;

static bool tell(const process *p, const void *data, size_t size)
{
    const answer a = {0, size};
    return check_send(p->socket, &a, sizeof a) && check_send(p->socket, data, size);
}

/* Tell what failed; false. */
static bool tell_error(const process *p, int code, const char *text)
{
    const answer a = {code, strlen(text)};
    if (check_send(p->socket, &a, sizeof a))
        check_send(p->socket, text, a.size);
    return false;
}

static bool no_room(const process *p)
{
    return tell_error(p, DCM_ERR_MEMORY, "no room on the host for what is compared");
}

/* 0, or an exit code after a message. */
static int open_all(process *p, const check_job *job, const char *name)
{
    device_options options = job->device;
    options.device = name;
    const int code = options_open_device(&options, &p->device);
    if (code)
        return code;
    dcm_status status = *job->path ? dcm_model_open(&p->model, p->device, job->path)
                                   : dcm_model_synthetic(&p->model, p->device, &job->shape, job->weights);
    if (status == DCM_OK)
        status = dcm_session_open(&p->session[CHECK_DECODE], p->model, &job->cache);
    if (status != DCM_OK)
        return tool_fail((int)status, "%s: %s", name, dcm_error());
    p->cache = runtime_same_cache(&job->cache, p->session[CHECK_DECODE]);
    return 0;
}

/* dcm_merge_seen: keep it for the next answer. */
static void take_choice(void *context, uint32_t layer, const dcm_merge_choice *choice)
{
    process *p = context;
    const uint32_t heads = p->shape.kv_heads;
    if (p->n_chosen + heads > p->chosen_room) {
        const size_t room = 2 * p->chosen_room + 64 * heads;
        check_chosen *chosen = realloc(p->chosen, room * sizeof *chosen);
        p->lost_choices = p->lost_choices || !chosen;
        if (!chosen)
            return;
        p->chosen = chosen;
        p->chosen_room = room;
    }
    for (uint32_t h = 0; h < heads; h++)
        p->chosen[p->n_chosen++] = (check_chosen){layer, choice[h]};
}

/* The reference tells what a scorer chooses, for the bounds of units; strict ones have none. */
static bool watch(process *p, const check_job *job)
{
    dcm_session_stats stats;
    dcm_session_get_stats(p->session[CHECK_DECODE], &stats);
    return !p->info.is_ref || job->device.strict || strcmp(stats.merge, "score") != 0 ||
           dcm_session_watch(p->session[CHECK_DECODE], take_choice, p) == DCM_OK ||
           tell_error(p, DCM_ERR_USAGE, dcm_error());
}

/* Say what the model and the device are. */
static bool hello(process *p)
{
    dcm_model_get_info(p->model, &p->shape);
    dcm_device_get_info(p->device, &p->info);
    greeting g = {
        .model = {p->shape.vocab, p->shape.layers, p->shape.kv_heads, p->shape.head_dim, p->shape.digest},
        .is_ref = p->info.is_ref,
    };
    dcm_session_stats stats;
    dcm_session_get_stats(p->session[CHECK_DECODE], &stats);
    snprintf(g.model.merge, sizeof g.model.merge, "%s", stats.merge);
    const dcm_status status = dcm_session_merge_digest(p->session[CHECK_DECODE], &g.model.merge_digest);
    if (status != DCM_OK)
        return tell_error(p, (int)status, dcm_error());
    json_t *facts = json_object();
    runtime_add_device(facts, p->device);
    char *text = json_dumps(facts, JSON_COMPACT);
    json_decref(facts);
    p->ids = malloc(CHECK_PROMPT_TOKENS * sizeof *p->ids);
    p->logits = malloc((size_t)CHECK_ROWS * p->shape.vocab * sizeof *p->logits);
    const bool told = text && p->ids && p->logits ? tell(p, &g, sizeof g) && tell(p, text, strlen(text)) : no_room(p);
    free(text);
    return told;
}

/* Tell the first `rows` logits, or what failed. */
static bool tell_logits(const process *p, dcm_status status, uint32_t rows)
{
    const size_t vocab = p->shape.vocab;
    bool ok = status == DCM_OK || tell_error(p, (int)status, dcm_error());
    for (uint32_t i = 0; ok && i < rows; i++)
        ok = tell(p, p->logits + i * vocab, vocab * sizeof *p->logits);
    return ok;
}

/* Together, with the logits after each, as `dcm eval` reads a text. */
static bool read_each(process *p, const request *r)
{
    return tell_logits(p, dcm_session_feed_each(p->session[r->form], p->ids, r->count, p->logits), r->count);
}

/* One by one as when decoding, each told at once; the reference makes the same bits of several together, in less time.
 */
static bool decode(process *p, const request *r)
{
    bool ok = true;
    if (p->info.is_ref)
        ok = read_each(p, r);
    else
        for (uint32_t i = 0; ok && i < r->count; i++)
            ok = tell_logits(p, dcm_session_feed(p->session[r->form], p->ids + i, 1, p->logits), 1);
    if (ok && p->lost_choices)
        return no_room(p);
    const size_t chosen = p->n_chosen;
    p->n_chosen = 0;
    return ok && tell(p, p->chosen, chosen * sizeof *p->chosen);
}

/* Together, with the logits after the last, as `dcm run` reads its prompt. */
static bool read_prompt(process *p, const request *r)
{
    return tell_logits(p, dcm_session_feed(p->session[r->form], p->ids, r->count, p->logits), 1);
}

static bool feed(process *p, const request *r)
{
    const size_t size = r->count * sizeof *p->ids;
    if (r->count > CHECK_PROMPT_TOKENS || recv(p->socket, p->ids, size, MSG_WAITALL) != (ssize_t)size)
        return false;
    dcm_session **session = &p->session[r->form];
    const dcm_status status = *session ? DCM_OK : dcm_session_open(session, p->model, &p->cache);
    if (status != DCM_OK)
        return tell_error(p, (int)status, dcm_error());
    return r->form == CHECK_DECODE ? decode(p, r) : r->form == CHECK_EACH ? read_each(p, r) : read_prompt(p, r);
}

/* Units of a cache, or with `values` those of a layer. */
static bool send_cache(process *p, const request *r, bool values)
{
    const size_t row = 2 * (size_t)p->shape.kv_heads * p->shape.head_dim;
    dcm_session_stats stats;
    dcm_session_get_stats(p->session[r->form], &stats);
    if (stats.units > p->room) {
        dcm_unit *units = realloc(p->units, stats.units * sizeof *units);
        p->units = units ? units : p->units;
        float *room = realloc(p->values, stats.units * row * sizeof *room);
        p->values = room ? room : p->values;
        if (!units || !room)
            return no_room(p);
        p->room = stats.units;
    }
    const dcm_status status =
        dcm_session_read_layer(p->session[r->form], r->layer, values ? NULL : p->units, values ? p->values : NULL);
    if (status != DCM_OK)
        return tell_error(p, (int)status, dcm_error());
    return values ? tell(p, p->values, stats.units * row * sizeof *p->values)
                  : tell(p, p->units, stats.units * sizeof *p->units);
}

void check_serve(int socket, const check_job *job, const char *name)
{
    process state = {.socket = socket}, *p = &state;
    request r;
    const int code = open_all(p, job, name);
    bool ok = code ? tell_error(p, code, "") : hello(p) && watch(p, job);
    while (ok && recv(p->socket, &r, sizeof r, MSG_WAITALL) == (ssize_t)sizeof r)
        ok = r.kind == ASK_FEED ? feed(p, &r) : send_cache(p, &r, r.kind == ASK_LAYER);
    for (int form = 0; form < CHECK_FORMS; form++)
        dcm_session_close(&p->session[form]);
    dcm_model_close(&p->model);
    dcm_device_close(&p->device);
}
