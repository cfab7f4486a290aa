/* What dcm_device_profile counts: launches and time by kernel, kept by each back end while it is asked to. */
#ifndef OPS_PROFILE_H
#define OPS_PROFILE_H

#include <dcm/device.h>

enum { PROFILE_ENTRIES = 96 };

typedef struct profile {
    dcm_profile_entry entry[PROFILE_ENTRIES];
    size_t count;
    uint32_t rows, cols;        /* of the weights that what comes is about; 0: none */
    const char *family;         /* that what comes is of; NULL: its program's */
    uint64_t first_ns, last_ns; /* start of the first and end of the last thing counted, by the device's clock */
    uint64_t wait_ns;           /* the host's, for the device */
} profile;

/*
 * The entry of a kernel at a size, for weights of p->rows and p->cols, added where there is none; names are kept, not
 * copied. Kernels that find no room share the last entry, "other".
 */
size_t profile_find(profile *p, const char *family, const char *kernel, uint64_t items);

/* One launch of it. */
void profile_add(profile *p, size_t entry, uint64_t start_ns, uint64_t end_ns);

#endif
