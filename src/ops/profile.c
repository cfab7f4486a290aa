#include "ops/profile.h"

#include <string.h>

size_t profile_find(profile *p, const char *family, const char *kernel, uint64_t items)
{
    for (size_t i = 0; i < p->count; i++) {
        const dcm_profile_entry *e = &p->entry[i];
        if (e->items == items && e->rows == p->rows && e->cols == p->cols && !strcmp(e->kernel, kernel) &&
            !strcmp(e->family, family))
            return i;
    }
    if (p->count == PROFILE_ENTRIES)
        return PROFILE_ENTRIES - 1;
    p->entry[p->count] =
        (dcm_profile_entry){.family = family, .kernel = kernel, .rows = p->rows, .cols = p->cols, .items = items};
    if (p->count == PROFILE_ENTRIES - 1)
        p->entry[p->count] = (dcm_profile_entry){.family = "other", .kernel = "other"};
    return p->count++;
}

void profile_add(profile *p, size_t entry, uint64_t start_ns, uint64_t end_ns)
{
    p->entry[entry].launches++;
    p->entry[entry].ns += end_ns - start_ns;
    if (!p->last_ns || start_ns < p->first_ns)
        p->first_ns = start_ns;
    if (end_ns > p->last_ns)
        p->last_ns = end_ns;
}
