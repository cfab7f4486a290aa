/*
 * A stand-in for NVIDIA's libnvidia-ml.so.1 with boards of the test's making. The test loads it by that name and finds
 * the object `fake_nvml` in it.
 */
#ifndef FAKE_NVML_H
#define FAKE_NVML_H

#include <stdbool.h>

typedef struct fake_board {
    const char *pci, *name;
    bool counts, tells_power; /* what it supports */
    unsigned long long millijoules;
    unsigned milliwatts;
} fake_board;

typedef struct fake_nvml_state {
    fake_board board[4];
    unsigned boards;
    bool broken;                   /* nvmlInit_v2 fails */
    int started, energies, powers; /* nvmlInit_v2 less nvmlShutdown; calls that asked for energy, and for power */
    unsigned asked;                /* number of the board asked last */
} fake_nvml_state;

#endif
