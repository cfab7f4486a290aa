/* RAPL as Linux shows it: a folder "intel-rapl:N" a package (AMD's too), with a counter in microjoules. */
#include "energy.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char prefix[] = "intel-rapl:";

/* First line of ROOT/FOLDER/NAME without its end. False with errno set. */
static bool read_line(const char *path, char *out, size_t size)
{
    FILE *in = fopen(path, "r");
    if (!in)
        return false;
    errno = 0;
    const bool good = fgets(out, (int)size, in) != NULL;
    if (!good && !errno)
        errno = ENODATA;
    const int cause = errno;
    fclose(in);
    errno = cause;
    if (good)
        out[strcspn(out, "\n")] = '\0';
    return good;
}

static bool read_number(const char *path, uint64_t *out)
{
    char line[64], *end;
    if (!read_line(path, line, sizeof line))
        return false;
    errno = 0;
    *out = strtoull(line, &end, 10);
    if (errno == 0 && (end == line || *end))
        errno = EINVAL;
    return errno == 0;
}

static bool read_joules(energy_source *s, double *joules)
{
    *joules = 0;
    for (size_t i = 0; i < s->domains; i++) {
        struct energy_domain *d = &s->domain[i];
        uint64_t counter;
        if (!read_number(d->path, &counter))
            return false;
        const uint64_t wrapped = counter < d->last ? d->range : 0;
        if (counter + wrapped < d->last)
            return false;
        *joules += (double)(counter + wrapped - d->last) * 1e-6;
        d->last = counter;
    }
    return true;
}

/* One folder, if it is a package: its parts (cores, memory controller) and the whole platform are none. */
static bool add_domain(energy_source *s, const char *root, const char *folder, char *missing, size_t size)
{
    struct energy_domain *d = &s->domain[s->domains];
    char path[ENERGY_TEXT + 32], name[32];
    if (strncmp(folder, prefix, sizeof prefix - 1) != 0 || s->domains == ENERGY_DOMAINS_MAX ||
        (size_t)snprintf(d->path, sizeof d->path, "%s/%s/energy_uj", root, folder) >= sizeof d->path)
        return true;
    snprintf(path, sizeof path, "%s/%s/name", root, folder);
    if (!read_line(path, name, sizeof name) || strncmp(name, "package", 7) != 0)
        return true;
    snprintf(path, sizeof path, "%s/%s/max_energy_range_uj", root, folder);
    if (!read_number(d->path, &d->last)) {
        snprintf(missing, size, "%.400s: %s", d->path, strerror(errno));
        return false;
    }
    if (!read_number(path, &d->range))
        d->range = 0;
    const size_t used = strlen(s->name);
    snprintf(s->name + used, sizeof s->name - used, "%s%s", used ? ", " : "", name);
    s->domains++;
    return true;
}

bool energy_open_rapl(energy_source *s, char *missing, size_t size)
{
    const char *given = getenv("DCM_POWERCAP"), *root = given && *given ? given : "/sys/class/powercap";
    DIR *folder = opendir(root);
    bool good = true;
    *s = (energy_source){.method = "RAPL", .scope = "CPU package", .period = 1, .least = 0.1, .read = read_joules};
    for (const struct dirent *entry; good && folder && (entry = readdir(folder));)
        good = add_domain(s, root, entry->d_name, missing, size);
    if (folder)
        closedir(folder);
    if (good && !s->domains)
        snprintf(missing, size, "RAPL: no CPU package in %.400s", root);
    return good && s->domains;
}
