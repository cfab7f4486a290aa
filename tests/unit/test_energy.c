/*
 * Joules of bench: RAPL in a folder of the test's own, NVML by a library of the test's own (LD_LIBRARY_PATH), and the
 * place on the PCI bus by which a board is told, from a driver that is made to answer.
 */
#define _GNU_SOURCE
#include "energy.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/memory.h"
#include "device/device.h"
#include "support/fake_nvml.h"

static const dcm_device_info cpu = {.name = "Xeon", .platform = "Acme", .type = "cpu", .pci = ""};

static char root[] = "/tmp/dcm-powercap-XXXXXX";

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void wait_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

/* ---- RAPL ---- */

/* Whole or not at all: a sample may be taken meanwhile. */
static void write_file(const char *folder, const char *name, const char *text)
{
    char path[256], part[256];
    snprintf(path, sizeof path, "%s/%s", root, folder);
    mkdir(path, 0700);
    snprintf(path, sizeof path, "%s/%s/%s", root, folder, name);
    snprintf(part, sizeof part, "%s/part", root);
    FILE *out = fopen(part, "w");
    assert_non_null(out);
    fputs(text, out);
    fclose(out);
    assert_int_equal(rename(part, path), 0);
}

static void write_domain(const char *folder, const char *name, const char *counter, const char *range)
{
    write_file(folder, "name", name);
    write_file(folder, "energy_uj", counter);
    write_file(folder, "max_energy_range_uj", range);
}

static int make_tree(void **state)
{
    (void)state;
    if (!mkdtemp(root))
        return 1;
    setenv("DCM_POWERCAP", root, 1);
    write_domain("intel-rapl:0", "package-0\n", "900000000\n", "1000000000\n");
    write_domain("intel-rapl:1", "package-1\n", "5000000\n", "1000000000\n");
    /* What must not be counted twice, or is no package. */
    write_domain("intel-rapl:0:0", "core\n", "1\n", "1000000000\n");
    write_domain("intel-rapl:2", "psys\n", "1\n", "1000000000\n");
    write_domain("intel-rapl-mmio:0", "package-0\n", "1\n", "1000000000\n");
    write_file("intel-rapl", "enabled", "1\n");
    return 0;
}

static int remove_tree(void **state)
{
    char command[256];
    (void)state;
    snprintf(command, sizeof command, "rm -r '%s'", root);
    return system(command);
}

static void count(const char *folder, const char *value) { write_file(folder, "energy_uj", value); }

static void rapl(void **state)
{
    energy e;
    double seconds;
    (void)state;
    const double opened = now();
    energy_open(&e, &cpu);
    assert_non_null(e.source.read);
    assert_string_equal(e.source.method, "RAPL");
    assert_string_equal(e.source.scope, "CPU package");
    assert_true(strstr(e.source.name, "package-0") && strstr(e.source.name, "package-1"));
    assert_int_equal(e.source.domains, 2);
    /* What is used before the start counts for nothing; then 50 J and 7 J. */
    count("intel-rapl:0", "910000000\n");
    energy_start(&e);
    count("intel-rapl:0", "960000000\n");
    count("intel-rapl:1", "12000000\n");
    count("intel-rapl:0:0", "99000000\n");
    count("intel-rapl:2", "99000000\n");
    wait_ms(20);
    assert_float_equal(energy_stop(&e, &seconds), 57, 1e-9);
    assert_true(seconds >= 0.02 && seconds <= now() - opened);
    /* Over the end of the first counter: 40 J up to it, 2 J beyond. */
    energy_start(&e);
    count("intel-rapl:0", "2000000\n");
    assert_float_equal(energy_stop(&e, &seconds), 42, 1e-9);
    energy_close(&e);
    assert_null(e.source.read);
}

/* Between two samples; the time of the first. */
static double count_between(energy *e, const char *value)
{
    pthread_mutex_lock(&e->lock);
    const double before = e->sampled;
    count("intel-rapl:0", value);
    pthread_mutex_unlock(&e->lock);
    return before;
}

static void wait_for_sample(energy *e, double before)
{
    for (bool none = true; none; wait_ms(1)) {
        pthread_mutex_lock(&e->lock);
        none = e->sampled == before;
        pthread_mutex_unlock(&e->lock);
    }
}

/* The counter goes round more than once while work is measured: it is read in between. */
static void rapl_round_twice(void **state)
{
    energy e;
    double seconds;
    (void)state;
    count("intel-rapl:0", "900000000\n");
    energy_open(&e, &cpu);
    e.source.period = 0.02;
    energy_start(&e);
    wait_for_sample(&e, count_between(&e, "100000000\n"));
    wait_for_sample(&e, count_between(&e, "950000000\n"));
    count_between(&e, "150000000\n");
    assert_float_equal(energy_stop(&e, &seconds), 200 + 850 + 200, 1e-9);
    energy_close(&e);
}

static void rapl_fails_meanwhile(void **state)
{
    energy e;
    double seconds;
    (void)state;
    energy_open(&e, &cpu);
    energy_start(&e);
    count("intel-rapl:1", "no number\n");
    assert_true(isnan(energy_stop(&e, &seconds)));
    count("intel-rapl:1", "5000000\n");
    energy_start(&e);
    assert_true(energy_stop(&e, &seconds) >= 0);
    energy_close(&e);
}

static void idle(void **state)
{
    energy e;
    (void)state;
    energy_open(&e, &cpu);
    energy_measure_idle(&e, 0.05);
    assert_null(e.source.read);
    assert_non_null(strstr(e.missing, "the counter stands still"));
    energy_close(&e);
}

static void rapl_none(void **state)
{
    energy e;
    double seconds = 1;
    char path[256];
    (void)state;
    setenv("DCM_POWERCAP", "/nowhere", 1);
    energy_open(&e, &cpu);
    setenv("DCM_POWERCAP", root, 1);
    assert_null(e.source.read);
    assert_string_equal(e.missing, "RAPL: no CPU package in /nowhere");
    energy_measure_idle(&e, 60); /* nothing to wait for */
    energy_start(&e);
    assert_true(isnan(energy_stop(&e, &seconds)) && seconds == 0);
    energy_close(&e);
    /* One package that cannot be read: the others' sum would mislead. A folder stands for what root may read too. */
    snprintf(path, sizeof path, "%s/intel-rapl:1/energy_uj", root);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    energy_open(&e, &cpu);
    assert_null(e.source.read);
    assert_true(strstr(e.missing, path) && strstr(e.missing, "Is a directory"));
    assert_int_equal(rmdir(path), 0);
    count("intel-rapl:1", "5000000\n");
    energy_close(&e);
}

/* ---- NVML ---- */

static fake_nvml_state *fake;

static dcm_device_info gpu(const char *name, const char *platform, const char *pci)
{
    return (dcm_device_info){.name = name, .platform = platform, .type = "gpu", .pci = pci};
}

static int load_fake(void **state)
{
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    (void)state;
    fake = library ? dlsym(library, "fake_nvml") : NULL;
    return fake ? 0 : 1;
}

static int set_boards(void **state)
{
    (void)state;
    *fake = (fake_nvml_state){.boards = 3,
                              .board = {{"0000:17:00.0", "NVIDIA A", true, true, 5000, 70000},
                                        {"0000:65:00.0", "NVIDIA B", true, true, 1000, 90000},
                                        {"0000:ca:00.0", "NVIDIA B", true, true, 1000, 90000}}};
    return 0;
}

static void nvml_counter(void **state)
{
    const dcm_device_info device = gpu("NVIDIA B", "NVIDIA CUDA", "0000:65:00.0");
    energy e;
    double seconds;
    (void)state;
    energy_open(&e, &device);
    assert_non_null(e.source.read);
    assert_string_equal(e.source.method, "NVML energy counter");
    assert_string_equal(e.source.scope, "whole GPU board");
    assert_string_equal(e.source.name, "NVIDIA B");
    fake->board[1].millijoules = 3000;
    energy_start(&e);
    fake->board[0].millijoules = fake->board[2].millijoules = 99999;
    fake->board[1].millijoules = 4500;
    assert_float_equal(energy_stop(&e, &seconds), 1.5, 1e-9);
    assert_int_equal(fake->asked, 1);
    assert_int_equal(fake->powers, 0);
    assert_int_equal(fake->energies, 3);
    assert_int_equal(fake->started, 1);
    energy_close(&e);
    assert_int_equal(fake->started, 0);
}

/* Readings of the power, 100 W up to the SWITCH-th and 300 W then, and when each was taken. */
enum { READINGS = 4096, SWITCH = 5, ENOUGH = 12 };

static struct {
    bool (*read)(energy_source *s, double *value); /* the source's own */
    size_t count;
    double watts[READINGS], at[READINGS]; /* the last one's time is not known yet */
} noted;

/* In the place of the source's own: the time of the reading before is there. */
static bool note_reading(energy_source *s, double *watts)
{
    const energy *e = (const energy *)s; /* whose first member it is */
    assert_true(noted.count < READINGS);
    if (noted.count)
        noted.at[noted.count - 1] = e->sampled;
    fake->board[0].milliwatts = noted.count < SWITCH ? 100000 : 300000;
    const bool good = noted.read(s, watts);
    noted.watts[noted.count++] = *watts;
    return good;
}

/* Wait for enough readings; then the joules by what was noted: over each interval the mean of its ends. */
static double noted_joules(energy *e, double *joules, double *seconds)
{
    for (bool enough = false; !enough; wait_ms(1)) {
        pthread_mutex_lock(&e->lock);
        enough = noted.count >= ENOUGH;
        pthread_mutex_unlock(&e->lock);
    }
    *joules = energy_stop(e, seconds);
    noted.at[noted.count - 1] = e->sampled;
    double sum = 0;
    for (size_t i = 1; i < noted.count; i++)
        sum += (noted.watts[i - 1] + noted.watts[i]) / 2 * (noted.at[i] - noted.at[i - 1]);
    return sum;
}

static void nvml_power(void **state)
{
    const dcm_device_info device = gpu("NVIDIA A", "NVIDIA CUDA", "");
    energy e;
    double seconds, joules;
    (void)state;
    fake->board[0].counts = false;
    energy_open(&e, &device);
    assert_string_equal(e.source.method, "NVML power, sampled");
    energy_measure_idle(&e, 0.1);
    assert_float_equal(e.idle_watts, 70, 1e-6);
    noted.read = e.source.read;
    e.source.read = note_reading;
    energy_start(&e);
    const double expected = noted_joules(&e, &joules, &seconds);
    assert_true(fabs(joules - expected) <= 1e-9 * expected);
    assert_true(fabs(noted.at[noted.count - 1] - noted.at[0] - seconds) <= 1e-9);
    assert_true(noted.watts[SWITCH - 1] == 100 && noted.watts[SWITCH] == 300);
    for (size_t i = 1; i + 1 < noted.count; i++) /* but for the last, which energy_stop takes */
        assert_true(noted.at[i] - noted.at[i - 1] >= 0.02);
    energy_close(&e);
}

static void nvml_which(void **state)
{
    static const struct {
        const char *name, *platform, *pci;
        unsigned boards;
        int expected; /* board, or -1: none */
    } cases[] = {
        {"NVIDIA B", "NVIDIA CUDA", "0000:ca:00.0", 3, 2},
        {"NVIDIA B", "NVIDIA CUDA", "0000:ff:00.0", 3, -1},
        {"NVIDIA A", "NVIDIA CUDA", "", 3, 0},
        {"NVIDIA B", "NVIDIA CUDA", "", 3, -1},
        {"NVIDIA B", "NVIDIA CUDA", "", 2, 1},
        {"NVIDIA C", "NVIDIA CUDA", "", 2, -1},
        {"GeForce", "nvidia", "", 1, 0},
        {"Radiant", "Bolt", "", 1, -1},
        {"Radiant", "Bolt", "0000:03:00.0", 1, -1},
        {"NVIDIA A", "NVIDIA CUDA", "", 0, -1},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const dcm_device_info device = gpu(cases[i].name, cases[i].platform, cases[i].pci);
        energy e;
        fake->boards = cases[i].boards;
        energy_open(&e, &device);
        if ((e.source.read ? (int)fake->asked : -1) != cases[i].expected)
            fail_msg("case %zu: board %d, not %d", i, e.source.read ? (int)fake->asked : -1, cases[i].expected);
        assert_true(e.source.read || strstr(e.missing, cases[i].name));
        energy_close(&e);
        assert_int_equal(fake->started, 0);
    }
}

static void nvml_none(void **state)
{
    const dcm_device_info device = gpu("NVIDIA A", "NVIDIA CUDA", "");
    energy e;
    (void)state;
    fake->board[0].counts = fake->board[0].tells_power = false;
    energy_open(&e, &device);
    assert_null(e.source.read);
    assert_string_equal(e.missing, "NVML: NVIDIA A tells neither energy nor power");
    assert_int_equal(fake->started, 0);
    energy_close(&e);
    fake->broken = true;
    energy_open(&e, &device);
    assert_null(e.source.read);
    assert_string_equal(e.missing, "NVML: libnvidia-ml.so.1 does not start");
    energy_close(&e);
}

/* ---- The place on the bus ---- */

static enum { PCI_NONE, PCI_KHR, PCI_NV, PCI_NV_OLD } pci;

/* The driver's answers, with those about PCI made up. */
cl_int CL_API_CALL clGetDeviceInfo(cl_device_id id, cl_device_info what, size_t size, void *out, size_t *size_out)
{
    static cl_int(CL_API_CALL * real)(cl_device_id, cl_device_info, size_t, void *, size_t *);
    const cl_uint khr[] = {1, 0x65, 0x1f, 7}, nv[] = {0xca, 0x0b, 2}; /* slot: device 1, function 3 */
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "clGetDeviceInfo");
    if (what == CL_DEVICE_EXTENSIONS) { /* what is not claimed is not to be asked for */
        const char *claimed = pci == PCI_NONE  ? "cl_khr_spir"
                              : pci == PCI_KHR ? "cl_khr_spir cl_khr_pci_bus_info"
                                               : "cl_nv_device_attribute_query cl_khr_spir";
        if (out && size > strlen(claimed))
            strcpy(out, claimed);
        if (size_out)
            *size_out = strlen(claimed) + 1;
        return CL_SUCCESS;
    }
    assert_true(pci != PCI_NONE || (what != 0x410F && (what < 0x4008 || what > 0x400A)));
    if (what == 0x410F && pci == PCI_KHR && size >= sizeof khr) {
        memcpy(out, khr, sizeof khr);
        return CL_SUCCESS;
    }
    if (what >= 0x4008 && what <= (pci == PCI_NV ? 0x400Au : 0x4009u) && pci >= PCI_NV) {
        memcpy(out, &nv[what - 0x4008], sizeof *nv);
        return CL_SUCCESS;
    }
    if (what == 0x410F || (what >= 0x4008 && what <= 0x400A))
        return CL_INVALID_VALUE;
    return real(id, what, size, out, size_out);
}

static void place_on_the_bus(void **state)
{
    static const char *const expected[] = {"", "0001:65:1f.7", "0002:ca:01.3", "0000:ca:01.3"};
    (void)state;
    for (int i = PCI_NONE; i <= PCI_NV_OLD; i++) {
        dcm_device *device = NULL;
        dcm_device_info info;
        pci = i;
        assert_int_equal(dcm_device_open(&device, &(dcm_device_params){.name = "0.0"}), DCM_OK);
        dcm_device_get_info(device, &info);
        assert_string_equal(info.pci, expected[i]);
        dcm_device_close(&device);
    }
}

int main(void)
{
    const struct CMUnitTest counters[] = {
        cmocka_unit_test(rapl), cmocka_unit_test(rapl_round_twice), cmocka_unit_test(rapl_fails_meanwhile),
        cmocka_unit_test(idle), cmocka_unit_test(rapl_none),
    };
    const struct CMUnitTest boards[] = {
        cmocka_unit_test_setup(nvml_counter, set_boards),
        cmocka_unit_test_setup(nvml_power, set_boards),
        cmocka_unit_test_setup(nvml_which, set_boards),
        cmocka_unit_test_setup(nvml_none, set_boards),
        cmocka_unit_test(place_on_the_bus),
    };
    const int failed = cmocka_run_group_tests(counters, make_tree, remove_tree);
    return failed + cmocka_run_group_tests(boards, load_fake, NULL);
}
