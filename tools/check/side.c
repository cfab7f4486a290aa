#define _GNU_SOURCE
#include "check.h"
#include "tool.h"

#include <dcm/log.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

typedef enum request_kind { ASK_FEED, ASK_CACHE } request_kind;

typedef struct request {
    request_kind kind;
    uint32_t count;
    int32_t ids[CHECK_BLOCK];
} request;

/* What stands before the bytes of an answer; with a code other than 0 they are a message. */
typedef struct answer {
    int code;
    size_t size;
} answer;

/* ---- The process of a device ---- */

typedef struct process {
    int socket;
    dcm_device *device;
    dcm_model *model;
    dcm_session *session;
    dcm_device_info info;
    dcm_model_info shape;
    float *logits; /* (CHECK_BLOCK, vocab) */
    dcm_unit *units;
    float *values;
    size_t room;          /* of units and values, in units */
    check_chosen *chosen; /* since the last answer */
    size_t n_chosen, chosen_room;
    bool lost_choices; /* no room for one */
} process;

static bool send_all(int socket, const void *data, size_t size)
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

static bool tell(const process *p, const void *data, size_t size)
{
    const answer a = {0, size};
    return send_all(p->socket, &a, sizeof a) && send_all(p->socket, data, size);
}

/* Tell what failed; false. */
static bool tell_error(const process *p, int code, const char *text)
{
    const answer a = {code, strlen(text)};
    if (send_all(p->socket, &a, sizeof a))
        send_all(p->socket, text, a.size);
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
        status = dcm_session_open(&p->session, p->model, &job->cache);
    return status == DCM_OK ? 0 : tool_fail((int)status, "%s: %s", name, dcm_error());
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
    dcm_session_get_stats(p->session, &stats);
    return !p->info.is_ref || job->device.strict || strcmp(stats.merge, "score") != 0 ||
           dcm_session_watch(p->session, take_choice, p) == DCM_OK;
}

/* Say what the model and the device are. */
static bool hello(process *p)
{
    dcm_model_get_info(p->model, &p->shape);
    dcm_device_get_info(p->device, &p->info);
    check_model model = {p->shape.vocab, p->shape.layers, p->shape.kv_heads, p->shape.head_dim, p->shape.digest};
    dcm_session_stats stats;
    dcm_session_get_stats(p->session, &stats);
    snprintf(model.merge, sizeof model.merge, "%s", stats.merge);
    const dcm_status status = dcm_session_merge_digest(p->session, &model.merge_digest);
    if (status != DCM_OK)
        return tell_error(p, (int)status, dcm_error());
    json_t *facts = json_object();
    runtime_add_device(facts, p->device);
    char *text = json_dumps(facts, JSON_COMPACT);
    json_decref(facts);
    p->logits = malloc((size_t)CHECK_BLOCK * p->shape.vocab * sizeof *p->logits);
    const bool told = text && p->logits ? tell(p, &model, sizeof model) && tell(p, text, strlen(text)) : no_room(p);
    free(text);
    return told;
}

/* One by one as when decoding; the reference makes the same bits of several together, in less time. */
static bool feed(process *p, const request *r)
{
    const size_t vocab = p->shape.vocab;
    dcm_status status = DCM_OK;
    if (p->info.is_ref && r->count > 1)
        status = dcm_session_feed_each(p->session, r->ids, r->count, p->logits);
    else
        for (uint32_t i = 0; i < r->count && status == DCM_OK; i++)
            status = dcm_session_feed(p->session, r->ids + i, 1, p->logits + i * vocab);
    if (status != DCM_OK)
        return tell_error(p, (int)status, dcm_error());
    if (p->lost_choices)
        return no_room(p);
    const size_t chosen = p->n_chosen;
    p->n_chosen = 0;
    return tell(p, p->logits, r->count * vocab * sizeof *p->logits) && tell(p, p->chosen, chosen * sizeof *p->chosen);
}

static bool send_cache(process *p)
{
    const size_t row = 2 * (size_t)p->shape.kv_heads * p->shape.head_dim;
    dcm_session_stats stats;
    dcm_session_get_stats(p->session, &stats);
    if (stats.units > p->room) {
        dcm_unit *units = realloc(p->units, stats.units * sizeof *units);
        p->units = units ? units : p->units;
        float *values = realloc(p->values, stats.units * row * sizeof *values);
        p->values = values ? values : p->values;
        if (!units || !values)
            return no_room(p);
        p->room = stats.units;
    }
    bool ok = true;
    for (uint32_t layer = 0; ok && layer < p->shape.layers; layer++) {
        const dcm_status status = dcm_session_read_layer(p->session, layer, p->units, p->values);
        if (status != DCM_OK)
            return tell_error(p, (int)status, dcm_error());
        ok = (layer || tell(p, p->units, stats.units * sizeof *p->units)) &&
             tell(p, p->values, stats.units * row * sizeof *p->values);
    }
    return ok;
}

static void serve(process *p, const check_job *job, const char *name)
{
    request r;
    const int code = open_all(p, job, name);
    bool ok = code ? tell_error(p, code, "") : hello(p) && watch(p, job);
    while (ok && recv(p->socket, &r, sizeof r, MSG_WAITALL) == (ssize_t)sizeof r)
        ok = r.kind == ASK_FEED ? feed(p, &r) : send_cache(p);
    dcm_session_close(&p->session);
    dcm_model_close(&p->model);
    dcm_device_close(&p->device);
}

/* ---- The program's side ---- */

/* Note what became of the process and end it; false. */
__attribute__((format(printf, 2, 3))) static bool is_trouble(check_side *s, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(s->trouble, sizeof s->trouble, format, args);
    va_end(args);
    if (s->pid) {
        kill(s->pid, SIGKILL);
        waitpid(s->pid, NULL, 0);
        s->pid = 0;
    }
    return false;
}

/* The connection is closed: how did the process end? */
static bool has_ended(check_side *s)
{
    int how = 0;
    const pid_t pid = s->pid;
    s->pid = 0;
    if (pid <= 0 || waitpid(pid, &how, 0) != pid)
        return is_trouble(s, "its process is gone");
    if (WIFSIGNALED(how))
        return is_trouble(s, "crashed: signal %d (%s)", WTERMSIG(how), strsignal(WTERMSIG(how)));
    return is_trouble(s, "its process ended with exit code %d", WEXITSTATUS(how));
}

/* `size` bytes, or what went wrong instead. */
static bool receive(check_side *s, const check_job *job, void *data, size_t size)
{
    const double deadline = runtime_seconds() + (double)job->seconds;
    for (char *at = data; size;) {
        struct pollfd wait = {.fd = s->socket, .events = POLLIN};
        const double left = deadline - runtime_seconds();
        if (left <= 0)
            return is_trouble(s, "no answer within %lld s: stopped", (long long)job->seconds);
        if (tool_stopped())
            return is_trouble(s, "interrupted");
        if (poll(&wait, 1, left < 1 ? (int)(left * 1000) + 1 : 1000) <= 0)
            continue;
        const ssize_t n = recv(s->socket, at, size, 0);
        if (n == 0 || (n < 0 && errno != EINTR))
            return has_ended(s);
        at += n > 0 ? n : 0;
        size -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

/* The head of an answer, whose message is taken where it tells of an error. */
static bool expect(check_side *s, const check_job *job, size_t *size)
{
    answer a;
    char text[CHECK_TEXT] = "";
    if (!receive(s, job, &a, sizeof a))
        return false;
    *size = a.size;
    if (a.code == 0)
        return true;
    s->code = a.code;
    return receive(s, job, text, a.size < sizeof text - 1 ? a.size : sizeof text - 1) ? is_trouble(s, "%s", text)
                                                                                      : false;
}

/* An answer of a known size. */
static bool take(check_side *s, const check_job *job, void *data, size_t wanted)
{
    size_t size;
    if (!expect(s, job, &size))
        return false;
    return size == wanted ? receive(s, job, data, size)
                          : is_trouble(s, "an answer of %zu bytes, not %zu", size, wanted);
}

static bool ask(check_side *s, const request *r) { return send_all(s->socket, r, sizeof *r) || has_ended(s); }

/* What the process says once it is open. */
static bool meet(check_side *s, const check_job *job)
{
    size_t size;
    char text[4096];
    if (!take(s, job, &s->model, sizeof s->model) || !expect(s, job, &size))
        return false;
    if (size >= sizeof text)
        return is_trouble(s, "a description of %zu bytes", size);
    if (!receive(s, job, text, size))
        return false;
    s->facts = json_loadb(text, size, 0, NULL);
    s->logits = malloc((size_t)CHECK_BLOCK * s->model.vocab * sizeof *s->logits);
    return s->facts && s->logits ? true : is_trouble(s, "no room for its logits");
}

void check_side_end(check_side *s, const char *why) { is_trouble(s, "%s", why); }

int check_side_open(check_side *s, const check_job *job)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return tool_fail(DCM_ERR_MEMORY, "no connection to a process for %s: %s", s->name, strerror(errno));
    fflush(NULL);
    s->pid = fork();
    if (s->pid == 0) {
        process p = {.socket = pair[1]};
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a driver that hangs must not outlive the check */
        close(pair[0]);
        dup2(STDERR_FILENO, STDOUT_FILENO); /* what drivers print is no part of the table */
        if (s->quiet)
            dcm_log_set_level(DCM_LOG_QUIET);
        serve(&p, job, s->name);
        _exit(0);
    }
    close(pair[1]);
    s->socket = pair[0];
    if (s->pid < 0) {
        s->pid = 0;
        return tool_fail(DCM_ERR_MEMORY, "no process for %s: %s", s->name, strerror(errno));
    }
    if (meet(s, job))
        return 0;
    if (tool_stopped())
        return tool_stopped();
    return s->code && !*s->trouble ? s->code : tool_fail(DCM_ERR_DEVICE, "%s: %s", s->name, s->trouble);
}

void check_side_close(check_side *s)
{
    if (s->socket >= 0)
        close(s->socket);
    if (s->pid)
        is_trouble(s, "closed");
    json_decref(s->facts);
    free(s->logits);
    free(s->chosen);
    free(s->units);
    free(s->values);
}

/* What a scorer chose in the steps that were just fed. */
static bool take_chosen(check_side *s, const check_job *job)
{
    size_t size;
    if (!expect(s, job, &size))
        return false;
    s->n_chosen = size / sizeof *s->chosen;
    if (s->n_chosen > s->chosen_room) {
        free(s->chosen);
        s->chosen = malloc(size);
        s->chosen_room = s->chosen ? s->n_chosen : 0;
        if (!s->chosen)
            return is_trouble(s, "no room for what its merges chose");
    }
    return receive(s, job, s->chosen, size);
}

bool check_side_feed(check_side *s, const check_job *job, const int32_t *ids, size_t count)
{
    request r = {ASK_FEED, (uint32_t)count, {0}};
    memcpy(r.ids, ids, count * sizeof *ids);
    return ask(s, &r) && take(s, job, s->logits, count * s->model.vocab * sizeof *s->logits) && take_chosen(s, job);
}

bool check_side_units(check_side *s, const check_job *job)
{
    const request r = {ASK_CACHE, 0, {0}};
    const size_t row = 2 * (size_t)s->model.kv_heads * s->model.head_dim;
    size_t size;
    if (!ask(s, &r) || !expect(s, job, &size))
        return false;
    s->n_units = size / sizeof *s->units;
    if (s->n_units > s->room) {
        free(s->units);
        free(s->values);
        s->units = malloc(size);
        s->values = malloc(s->n_units * row * sizeof *s->values);
        s->room = s->units && s->values ? s->n_units : 0;
        if (!s->room)
            return is_trouble(s, "no room for its cache");
    }
    return receive(s, job, s->units, size);
}

bool check_side_layer(check_side *s, const check_job *job)
{
    const size_t row = 2 * (size_t)s->model.kv_heads * s->model.head_dim;
    return take(s, job, s->values, s->n_units * row * sizeof *s->values);
}
