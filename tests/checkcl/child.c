#define _GNU_SOURCE /* pipe2 */
#include "child.h"

#include "base/clock.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum { HANG_NS = 1000000000 };

/* ---- The child ---- */

static dcm_status open_device(const char *name, bool profiling, cldev **device)
{
    cldev_entry *entries = NULL;
    size_t count = 0;
    dcm_status status;
    DCM_TRY(status, fail, cldev_list(&entries, &count));
    status = dcm_fail(DCM_ERR_DEVICE, "no device %s", name);
    for (size_t i = 0; i < count; i++) {
        char number[32];
        snprintf(number, sizeof number, "%u.%u", entries[i].platform, entries[i].index);
        if (!strcmp(number, name))
            status = cldev_open(device, entries + i, profiling);
    }
fail:
    mem_free(&entries);
    return status;
}

static const ck_family *family_named(const char *name)
{
    for (const ck_family *f = ck_families; f->name; f++)
        if (!strcmp(f->name, name))
            return f;
    return NULL;
}

int ck_child(const ck_options *o)
{
    static ck c;
    cldev_probe probe = {0};
    dcm_status status;
    c.filter = o->filter;
    c.seed = o->seed;
    c.bench = o->bench;
    c.small = o->small;
    DCM_TRY(status, fail, open_device(o->device, o->bench, &c.device));
    if (o->bench) {
        DCM_TRY(status, fail, cldev_measure(c.device, &probe));
        c.read_gb_s = probe.read_gb_s;
        c.launch_us = probe.launch_us;
    }
    DCM_TRY(status, fail, backend_ref_open(&c.side[CK_REF], 0, 0));
    DCM_TRY(status, fail, backend_cl_open(&c.side[CK_CL], c.device, 0));
    ck_run_family(&c, family_named(o->family));
    ck_print_kernels();
    printf("ck\tdone\n");
fail:
    if (status != DCM_OK)
        printf("ck\tfail\t%s\t%s\n", o->family, dcm_error());
    backend_close(&c.side[CK_CL]);
    backend_close(&c.side[CK_REF]);
    cldev_close(&c.device);
    return status;
}

/* ---- The parent ---- */

/* A spawned child and what it has said. */
typedef struct process {
    pid_t pid;
    int from;
    const ck_options *options;
    const ck_job *job;
    FILE *report;
    ck_totals totals;
    char line[8192];
    size_t used;
    char running[160]; /* the case that was begun last */
    size_t passed, failed;
    double worst;
    char worst_name[160];
    bool done;
} process;

static void repeat_with(const process *p, const char *name)
{
    fprintf(p->report, "    repeat: %s --device %s --family %s --filter '%s' --seed %llu%s%s\n", p->options->self,
            p->job->device, p->job->family->name, name, (unsigned long long)p->options->seed,
            p->options->bench ? " --bench" : "", p->options->small ? " --small" : "");
}

static void failed(process *p, const char *name, const char *why)
{
    p->failed++;
    if (p->job->expect_death)
        return;
    fprintf(p->report, "  FAILED %s: %s\n", name, why);
    repeat_with(p, name);
}

static void passed(process *p, const char *name, double ratio, const char *note)
{
    p->passed++;
    if (ratio >= p->worst) {
        p->worst = ratio;
        snprintf(p->worst_name, sizeof p->worst_name, "%s", name);
    }
    if (p->options->verbose || p->options->bench)
        fprintf(p->report, "  %s: error/bound %.3f%s%s\n", name, ratio, *note ? "  " : "", note);
}

static void add_kernel(ck_totals *t, const char *name)
{
    for (size_t i = 0; i < t->n_kernels; i++)
        if (!strcmp(t->kernels[i], name))
            return;
    if (t->n_kernels < sizeof t->kernels / sizeof *t->kernels)
        snprintf(t->kernels[t->n_kernels++], sizeof *t->kernels, "%s", name);
}

/* "ck", a word, a name and more, separated by tabs; other lines are a driver's and are passed on. */
static void take_line(process *p, char *line)
{
    char *field[5] = {0}, *rest = line;
    for (int i = 0; i < 5 && rest; i++)
        field[i] = i == 4 ? rest : strsep(&rest, "\t");
    if (strcmp(field[0], "ck") != 0 || !field[1]) {
        fprintf(p->report, "%s\n", line);
        return;
    }
    const char *word = field[1], *name = field[2] ? field[2] : "", *third = field[3] ? field[3] : "";
    if (!strcmp(word, "begin"))
        snprintf(p->running, sizeof p->running, "%s", name);
    else if (!strcmp(word, "pass"))
        passed(p, name, atof(third), field[4] ? field[4] : "");
    else if (!strcmp(word, "fail"))
        failed(p, name, third);
    else if (!strcmp(word, "kernel"))
        add_kernel(&p->totals, name);
    else if (!strcmp(word, "done"))
        p->done = true;
}

/* Read what there is, line by line; false at the end. */
static bool take_output(process *p)
{
    const ssize_t got = read(p->from, p->line + p->used, sizeof p->line - 1 - p->used);
    if (got <= 0)
        return false;
    p->used += (size_t)got;
    p->line[p->used] = '\0';
    char *begin = p->line, *end;
    while ((end = strchr(begin, '\n'))) {
        *end = '\0';
        take_line(p, begin);
        begin = end + 1;
    }
    p->used -= (size_t)(begin - p->line);
    memmove(p->line, begin, p->used);
    if (p->used == sizeof p->line - 1)
        p->used = 0; /* a line longer than any of ours */
    return true;
}

static bool spawn(process *p)
{
    char seed[32];
    int ends[2];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)p->options->seed);
    char *args[] = {(char *)p->options->self,
                    "--child",
                    "--device",
                    (char *)p->job->device,
                    "--family",
                    (char *)p->job->family->name,
                    "--seed",
                    seed,
                    p->options->bench ? "--bench" : "--check",
                    p->options->small ? "--small" : "--check",
                    p->options->filter ? "--filter" : NULL,
                    (char *)p->options->filter,
                    NULL};
    posix_spawn_file_actions_t actions;
    if (pipe2(ends, O_CLOEXEC) != 0) /* or a child beside it would hold the pipe open */
        return false;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    const int error = posix_spawn(&p->pid, "/proc/self/exe", &actions, NULL, args, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    p->from = ends[0];
    return error == 0;
}

/* Wait for output until the time is up; true where it was. One that is to hang has little from its case's begin on. */
static bool listen_to(process *p)
{
    uint64_t end = clock_ns() + (uint64_t)(p->options->timeout * 1e9);
    bool begun = false;
    for (;;) {
        const uint64_t now = clock_ns();
        struct pollfd fd = {.fd = p->from, .events = POLLIN};
        if (now >= end)
            return true;
        const uint64_t ms = (end - now) / 1000000 + 1;
        if (poll(&fd, 1, ms > 1000 ? 1000 : (int)ms) > 0 && !take_output(p))
            return false;
        if (p->job->expect_death && !begun && *p->running) {
            begun = true;
            end = clock_ns() + HANG_NS;
        }
    }
}

static void finish(process *p)
{
    const bool late = listen_to(p);
    int state = 0;
    char why[200] = "";
    if (late)
        kill(p->pid, SIGKILL);
    waitpid(p->pid, &state, 0);
    close(p->from);
    if (late)
        snprintf(why, sizeof why, "no end within %g s: killed", p->options->timeout);
    else if (WIFSIGNALED(state))
        snprintf(why, sizeof why, "the process died of signal %d (%s)", WTERMSIG(state), strsignal(WTERMSIG(state)));
    else if (!p->done)
        snprintf(why, sizeof why, "the process ended early with code %d", WEXITSTATUS(state));
    if (*why && (p->failed == 0 || late || WIFSIGNALED(state)))
        failed(p, *p->running ? p->running : p->job->family->name, why);
}

static void report_end(process *p)
{
    const ck_job *job = p->job;
    if (job->expect_death) {
        const bool caught = p->failed == 1 && *p->running;
        fprintf(p->report, "  %s %-16s %s\n", job->device, job->family->name,
                caught ? "1 passed: caught" : "FAILED: not caught");
        p->passed = caught;
        p->failed = !caught;
    } else if (p->passed + p->failed) {
        fprintf(p->report, "  %s %-16s %zu passed, %zu failed; worst error/bound %.3f (%s)\n", job->device,
                job->family->name, p->passed, p->failed, p->worst, p->worst_name);
    }
}

static void run_job(const ck_options *options, const ck_job *job, ck_totals *totals)
{
    char *text = NULL;
    size_t size = 0;
    process p = {.options = options, .job = job, .report = open_memstream(&text, &size)};
    if (!p.report)
        abort();
    if (!spawn(&p))
        failed(&p, job->family->name, "no process");
    else
        finish(&p);
    report_end(&p);
    fclose(p.report);
#pragma omp critical(ck_report)
    {
        fputs(text, stdout);
        fflush(stdout);
        totals->passed += p.passed;
        totals->failed += p.failed;
        for (size_t i = 0; i < p.totals.n_kernels; i++)
            add_kernel(totals, p.totals.kernels[i]);
    }
    free(text);
}

void ck_run_jobs(const ck_options *options, const ck_job *jobs, size_t count, ck_totals *totals)
{
    fflush(stdout);
#pragma omp parallel for schedule(dynamic, 1) num_threads(options->jobs)
    for (size_t i = 0; i < count; i++)
        run_job(options, jobs + i, totals);
}
