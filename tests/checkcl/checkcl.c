/*
 * checkcl: every kernel of every OpenCL device present against the C reference. See harness.h.
 *
 *     checkcl [--list] [--filter PATTERN] [--family NAME] [--device P.D|NAME] [--seed N] [--bench] [--small]
 *             [--timeout S] [--jobs N] [--verbose]
 *
 * On Mesa's rusticl (Debian: mesa-opencl-icd), one family at a time:
 *
 *     RUSTICL_ENABLE=llvmpipe OCL_ICD_VENDORS=/etc/OpenCL/vendors/rusticl.icd \
 *         build/tests/checkcl/checkcl --device rusticl --family embed --small
 *
 * With Mesa 22.3.6 (Debian 12) that one passes but for its strict case: subnormal numbers are taken for 0. kv_store
 * crashes within Mesa ("Treating load_kernel_arg in control flow as uniform"); others are not known to work.
 */
#include "child.h"

#include "base/clock.h"

#include <ctype.h>
#include <getopt.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { SKIPPED = 77 /* meson's exit code of a test that had nothing to do */ };

static const char usage[] = "usage: checkcl [OPTION]...\n"
                            "Check every OpenCL kernel on every device against the C reference.\n"
                            "  --list            print the cases and stop\n"
                            "  --filter PATTERN  only cases that match (shell pattern, or part of the name)\n"
                            "  --family NAME     only one family\n"
                            "  --device DEVICE   only this device: P.D, or part of its or its platform's name\n"
                            "  --seed N          seed of all inputs (printed by every run)\n"
                            "  --bench           time each case too\n"
                            "  --small           few and small cases that launch every kernel\n"
                            "  --timeout S       seconds for one family on one device (default 1200)\n"
                            "  --jobs N          families at a time (default: the processors; with --bench 1)\n"
                            "  --verbose         a line for each case\n";

static bool parse(int argc, char **argv, ck_options *o)
{
    static const struct option options[] = {
        {"list", no_argument, NULL, 'l'},
        {"filter", required_argument, NULL, 'f'},
        {"family", required_argument, NULL, 'a'},
        {"device", required_argument, NULL, 'd'},
        {"seed", required_argument, NULL, 's'},
        {"bench", no_argument, NULL, 'b'},
        {"small", no_argument, NULL, 'm'},
        {"timeout", required_argument, NULL, 't'},
        {"jobs", required_argument, NULL, 'j'},
        {"verbose", no_argument, NULL, 'v'},
        {"child", no_argument, NULL, 'c'},
        {"check", no_argument, NULL, 'k'},
        {0},
    };
    *o = (ck_options){.self = argv[0], .seed = clock_ns() % 1000000, .timeout = 1200};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'l': o->list = true; break;
        case 'f': o->filter = optarg; break;
        case 'a': o->family = optarg; break;
        case 'd': o->device = optarg; break;
        case 's': o->seed = strtoull(optarg, NULL, 10); break;
        case 'b': o->bench = true; break;
        case 'm': o->small = true; break;
        case 't': o->timeout = atof(optarg); break;
        case 'j': o->jobs = atoi(optarg); break;
        case 'v': o->verbose = true; break;
        case 'c': o->child = true; break;
        case 'k': break;
        default: return false;
        }
    }
    if (!o->jobs)
        o->jobs = o->bench ? 1 : omp_get_num_procs();
    return optind == argc && o->jobs > 0;
}

/* Families that end badly on purpose. */
static bool deadly(const ck_family *f) { return f->run == check_hang || f->run == check_crash; }

static bool wanted(const ck_options *o, const ck_family *f) { return !o->family || !strcmp(o->family, f->name); }

/* False where a pattern of small.c fits no case. */
static bool list(const ck_options *o)
{
    static ck c;
    c.filter = o->filter;
    c.small = o->small;
    c.list = true;
    for (const ck_family *f = ck_families; f->name; f++)
        if (wanted(o, f))
            ck_run_family(&c, f);
    const char *unmet = o->small && !o->filter && !o->family ? ck_small_unmet() : NULL;
    if (unmet)
        fprintf(stderr, "checkcl: small.c: no case fits %s\n", unmet);
    return !unmet;
}

static bool contains(const char *text, const char *part)
{
    const size_t size = strlen(part);
    for (; *text; text++)
        if (!strncasecmp(text, part, size))
            return true;
    return size == 0;
}

static bool device_wanted(const ck_options *o, const cldev_entry *e, const char *number)
{
    return !o->device || !strcmp(o->device, number) || contains(e->limits.name, o->device) ||
           contains(e->limits.platform, o->device);
}

static void add_jobs(const ck_options *o, const char *device, bool expect_death, ck_job *jobs, size_t *count)
{
    for (const ck_family *f = ck_families; f->name; f++) {
        ck_job *job = jobs + *count;
        if (!wanted(o, f) || deadly(f) != expect_death)
            continue;
        *job = (ck_job){.family = f, .expect_death = expect_death};
        strcpy(job->device, device);
        ++*count;
    }
}

/*
 * Every family on every device that is asked for; of a whole run also those that end badly, on the first device, by
 * which the time limit and the watch over children are tried. The caller frees the jobs.
 */
static ck_job *make_jobs(const ck_options *o, const cldev_entry *entries, size_t n_entries, size_t *count)
{
    size_t n_families = 0;
    while (ck_families[n_families].name)
        n_families++;
    ck_job *jobs = fx_alloc((n_entries * n_families + 1) * sizeof *jobs);
    char number[sizeof jobs->device] = "", first[sizeof jobs->device] = "";
    *count = 0;
    for (size_t i = 0; i < n_entries; i++) {
        snprintf(number, sizeof number, "%u.%u", entries[i].platform, entries[i].index);
        if (!device_wanted(o, entries + i, number))
            continue;
        printf("%s %s (%s)\n", number, entries[i].limits.name, entries[i].limits.platform);
        add_jobs(o, number, false, jobs, count);
        if (!*first)
            strcpy(first, number);
    }
    if (*first && !o->filter && !o->small)
        add_jobs(o, first, true, jobs, count);
    return jobs;
}

/* ---- Completeness ---- */

/* Kernels that only some devices can build: not demanded of a run where no device launched them. */
static const char *const optional[] = {"probe_fp16",   "probe_subgroups", "probe_dot4", "probe_dot2",
                                       "probe_half16", "probe_mma",       NULL};

static bool is_optional(const char *name)
{
    const char *const *o = optional;
    while (*o && strcmp(*o, name) != 0)
        o++;
    return *o;
}

static bool launched(const char *name, const ck_totals *totals)
{
    size_t i = 0;
    while (i < totals->n_kernels && strcmp(totals->kernels[i], name) != 0)
        i++;
    return i < totals->n_kernels;
}

/* The name after the next "__kernel ... void"; moves *text past it. False where there is no more. */
static bool next_kernel(const char **text, char *name, size_t size)
{
    const char *at = strstr(*text, "__kernel ");
    const char *type = at ? strstr(at, "void") : NULL;
    if (!type)
        return false;
    type += strlen("void");
    while (isspace((unsigned char)*type))
        type++;
    const size_t length = strspn(type, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
    snprintf(name, size, "%.*s", (int)length, type);
    *text = type + length;
    return true;
}

/* Every __kernel of the embedded sources must have been launched by some case; their names, file by file. */
static void check_complete(ck_totals *totals)
{
    size_t count = 0, run = 0;
    printf("kernels launched\n");
    for (const cl_source *s = cl_sources; s->family; s++) {
        char *text = fx_alloc(s->size + 1), name[64];
        const size_t before = count;
        memcpy(text, s->text, s->size);
        for (const char *at = text; next_kernel(&at, name, sizeof name); count++) {
            const bool was_run = launched(name, totals);
            printf("%s%s%s", count == before ? "  " : ", ", name,
                   was_run ? "" : is_optional(name) ? " (not on these devices)" : " (FAILED: by no case)");
            run += was_run;
            totals->failed += !was_run && !is_optional(name);
        }
        if (count > before)
            printf(" (%s)\n", s->file);
        free(text);
    }
    printf("  %zu of %zu\n", run, count);
    totals->passed += count > 0;
    totals->failed += count == 0;
}

static int check(const ck_options *o)
{
    static ck_totals totals;
    cldev_entry *entries = NULL;
    size_t n_entries = 0, count;
    if (cldev_list(&entries, &n_entries) != DCM_OK) {
        fprintf(stderr, "checkcl: %s\n", dcm_error());
        return EXIT_FAILURE;
    }
    printf("seed %llu\n", (unsigned long long)o->seed);
    ck_job *jobs = make_jobs(o, entries, n_entries, &count);
    mem_free(&entries);
    if (!count) {
        fprintf(stderr, "checkcl: no %sOpenCL device: nothing was checked\n", o->device ? "such " : "");
        free(jobs);
        return o->device ? EXIT_FAILURE : SKIPPED;
    }
    ck_run_jobs(o, jobs, count, &totals);
    free(jobs);
    if (!o->filter && !o->family)
        check_complete(&totals);
    printf("%zu passed, %zu failed\n", totals.passed, totals.failed);
    return totals.failed || !totals.passed ? EXIT_FAILURE : EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    ck_options options;
    if (!parse(argc, argv, &options)) {
        fputs(usage, stderr);
        return DCM_ERR_USAGE;
    }
    const ck_family *f = ck_families;
    while (options.family && f->name && !wanted(&options, f))
        f++;
    if (!f->name) {
        fprintf(stderr, "checkcl: no family %s\n", options.family);
        return DCM_ERR_USAGE;
    }
    if (options.child)
        return ck_child(&options);
    if (options.list)
        return list(&options) ? EXIT_SUCCESS : EXIT_FAILURE;
    return check(&options);
}
