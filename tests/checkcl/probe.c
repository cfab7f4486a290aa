/* The device's own probes, which compare their numbers themselves; both shapes of the bandwidth kernel. */
#include "harness.h"

#include <stdio.h>

enum { SMALL_BYTES = 128 << 10 };

static void measured(ck *c, bool wide)
{
    const bool was = c->device->limits.wide_items;
    c->device->limits.wide_items = wide;
    cldev_probe probe = {0};
    const dcm_status status = c->small ? cldev_measure_read(c->device, 0, SMALL_BYTES, &probe.read_gb_s)
                                       : cldev_measure(c->device, &probe);
    c->device->limits.wide_items = was;
    if (status != DCM_OK) {
        ck_fail(c, dcm_error());
        return;
    }
    char note[200];
    snprintf(note, sizeof note, "%.2f GB/s, launch %.2f us, round trip %.2f us", probe.read_gb_s, probe.launch_us,
             probe.round_trip_us);
    ck_pass(c, 0, note);
}

void check_probe(ck *c)
{
    if (ck_case(c, "probe/read_slices"))
        measured(c, true);
    if (ck_case(c, "probe/read_strided"))
        measured(c, false);
    if (ck_case(c, "probe/tiers")) {
        if (cldev_probe_tiers(c->device) == DCM_OK)
            ck_pass(c, 0, cldev_has(c->device, CLDEV_SUBGROUPS) ? "subgroups" : "no subgroups");
        else
            ck_fail(c, dcm_error());
    }
}
