/* Joules that a piece of work takes, where this machine counts them. */
#ifndef ENERGY_H
#define ENERGY_H

#include <dcm/device.h>

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ENERGY_TEXT = 512, ENERGY_DOMAINS_MAX = 64 };

/* A counter, or a power that is sampled, and its state. */
typedef struct energy_source {
    const char *method, *scope; /* "RAPL", "CPU package" */
    char name[128];             /* of what is measured: "NVIDIA H100 80GB HBM3", "package-0, package-1" */
    bool is_power;              /* `read` gives watts; else joules since its last call */
    double period;              /* seconds between two readings while work is measured; 0: begin and end are enough */
    double least;               /* seconds of work below which the source's own steps are too coarse */
    /* False when there is nothing to read. The first joules are worthless. */
    bool (*read)(struct energy_source *s, double *value);
    void (*close)(struct energy_source *s);
    struct energy_domain {
        char path[ENERGY_TEXT]; /* RAPL: of the counter's file */
        uint64_t last, range;   /* microjoules; the counter begins anew at `range` */
    } domain[ENERGY_DOMAINS_MAX];
    size_t domains;
    void *library, *device; /* NVML */
    uint64_t last;          /* NVML: millijoules */
} energy_source;

/* Zero-initialised: no source. Used by one thread. */
typedef struct energy {
    energy_source source;      /* source.read NULL: none */
    char missing[ENERGY_TEXT]; /* why there is none */
    double idle_watts;         /* 0: not measured */
    bool running, sampling, stopping, failed;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    double joules, watts, began, sampled; /* watts of the last sample, seconds of the clock */
} energy;

/* "RAPL, CPU package (package-0)"; "" for none. */
void energy_text(const energy *e, char *out, size_t size);

/*
 * Find what counts the energy of `device`: NVML for a GPU, RAPL for a CPU. Nothing found is no error: `missing` says
 * why. Close in any case.
 */
void energy_open(energy *e, const dcm_device_info *device);
void energy_close(energy *e);

/* Measure the power drawn while this program waits. A source that counts nothing meanwhile is given up. */
void energy_measure_idle(energy *e, double seconds);

/* Joules from start to stop, and the seconds between them; NAN without a source or when it failed meanwhile. */
void energy_start(energy *e);
double energy_stop(energy *e, double *seconds);

/* The sources (energy_rapl.c, energy_nvml.c): true, or false with the reason in `missing`. */
bool energy_open_rapl(energy_source *s, char *missing, size_t size);
bool energy_open_nvml(energy_source *s, const dcm_device_info *device, char *missing, size_t size);

#endif
