#define _GNU_SOURCE
#include "tool.h"
#include "wire.h"

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

static bool ask(check_side *s, const void *data, size_t size)
{
    return check_send(s->socket, data, size) || has_ended(s);
}

/* What the process says once it is open. */
static bool meet(check_side *s, const check_job *job)
{
    size_t size;
    char text[4096];
    greeting g;
    if (!take(s, job, &g, sizeof g) || !expect(s, job, &size))
        return false;
    s->model = g.model;
    s->prompts = s->asked_for && !g.is_ref;
    if (size >= sizeof text)
        return is_trouble(s, "a description of %zu bytes", size);
    if (!receive(s, job, text, size))
        return false;
    s->facts = json_loadb(text, size, 0, NULL);
    s->logits = malloc((size_t)(CHECK_BLOCK + 1) * s->model.vocab * sizeof *s->logits);
    return s->facts && s->logits ? true : check_side_end(s, DCM_ERR_MEMORY, "no room for its logits");
}

bool check_side_end(check_side *s, int code, const char *why)
{
    s->code = code;
    return is_trouble(s, "%s", why);
}

int check_side_open(check_side *s, const check_job *job)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
        return tool_fail(DCM_ERR_MEMORY, "no connection to a process for %s: %s", s->name, strerror(errno));
    fflush(NULL);
    s->pid = fork();
    if (s->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a driver that hangs must not outlive the check */
        close(pair[0]);
        dup2(STDERR_FILENO, STDOUT_FILENO); /* what drivers print is no part of the table */
        if (s->quiet)
            dcm_log_set_level(DCM_LOG_QUIET);
        check_job own = *job;
        own.cache.kv = s->in_f32 ? DCM_KV_F32 : job->cache.kv;
        check_serve(pair[1], &own, s->in_f32 ? "ref" : s->name);
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
    return s->code && !*s->trouble ? s->code
                                   : tool_fail(s->code ? s->code : DCM_ERR_DEVICE, "%s: %s", s->name, s->trouble);
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
    for (int form = 0; form < CHECK_FORMS; form++) {
        free(s->cache[form].units);
        free(s->cache[form].values);
    }
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
            return check_side_end(s, DCM_ERR_MEMORY, "no room for what its merges chose");
    }
    return receive(s, job, s->chosen, size);
}

bool check_side_read(check_side *s, check_form form, const int32_t *ids, size_t count)
{
    const request r = {.kind = ASK_FEED, .form = form, .count = (uint32_t)count};
    return ask(s, &r, sizeof r) && ask(s, ids, count * sizeof *ids);
}

size_t check_side_feed(check_side *s, const check_job *job, const int32_t *ids, size_t count)
{
    const size_t vocab = s->model.vocab;
    size_t done = 0;
    if (!check_side_read(s, CHECK_DECODE, ids, count))
        return 0;
    while (done < count && take(s, job, s->logits + done * vocab, vocab * sizeof *s->logits))
        done++;
    if (done == count)
        take_chosen(s, job);
    return done;
}

const float *check_side_row(check_side *s, const check_job *job)
{
    float *row = s->logits + CHECK_BLOCK * (size_t)s->model.vocab;
    return take(s, job, row, s->model.vocab * sizeof *row) ? row : NULL;
}

bool check_side_units(check_side *s, const check_job *job, check_form form)
{
    const request r = {.kind = ASK_UNITS, .form = form};
    const size_t row = 2 * (size_t)s->model.kv_heads * s->model.head_dim;
    check_cache *c = &s->cache[form];
    size_t size;
    if (!ask(s, &r, sizeof r) || !expect(s, job, &size))
        return false;
    c->n_units = size / sizeof *c->units;
    if (c->n_units > c->room) {
        free(c->units);
        free(c->values);
        c->units = malloc(size);
        c->values = malloc(c->n_units * row * sizeof *c->values);
        c->room = c->units && c->values ? c->n_units : 0;
        if (!c->room)
            return check_side_end(s, DCM_ERR_MEMORY, "no room for its cache");
    }
    return receive(s, job, c->units, size);
}

bool check_side_layer(check_side *s, const check_job *job, check_form form, uint32_t layer)
{
    const request r = {.kind = ASK_LAYER, .form = form, .layer = layer};
    const size_t row = 2 * (size_t)s->model.kv_heads * s->model.head_dim;
    return ask(s, &r, sizeof r) &&
           take(s, job, s->cache[form].values, s->cache[form].n_units * row * sizeof *s->cache[form].values);
}
