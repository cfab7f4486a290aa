/*
 * What is chosen for a device: its family's defaults, or what was measured because somebody asked, and kept in the
 * cache folder under a key of device, driver, and dcm's own kernels. A choice is one value of a short list; a file with
 * anything else in it is refused as a whole.
 */
#ifndef DEVICE_TUNING_H
#define DEVICE_TUNING_H

#include "device/device.h"

typedef enum tuning_what {
    TUNE_MANY,   /* engine of the product of many vectors: decides the order of its sums */
    TUNE_PANEL,  /* wide shape: tokens of a panel of it; changes no result */
    TUNE_SHARES, /* wide shape: work-items a compute unit of the product of single vectors; changes no result */
    TUNE_CHOICES
} tuning_what;

enum { TUNING_VALUES = 5 }; /* most of a choice, and NULL */

typedef struct tuning_choice {
    const char *name, *about;
    const char *value[TUNING_VALUES];
} tuning_choice;

extern const tuning_choice tuning_choices[TUNE_CHOICES];

typedef enum tuning_origin { TUNING_DEFAULT, TUNING_FILE, TUNING_MEASURED } tuning_origin;

typedef struct tuning {
    struct {
        uint8_t value; /* index into the choice's values */
        uint8_t origin;
    } choice[TUNE_CHOICES];
} tuning;

/* The chosen value's text, and its number. */
const char *tuning_text(const tuning *t, tuning_what what);
uint32_t tuning_number(const tuning *t, tuning_what what);

/* Choose `text`; false where it is none of the choice's values. */
bool tuning_set(tuning *t, tuning_what what, const char *text, tuning_origin origin);

/* What fits the device's family, from a table. */
void tuning_defaults(const cldev_limits *limits, tuning *t);

/* NULL, or what is wrong with the bytes of a file made for a device of `key`, for a message; *t is changed only where
 * nothing is. */
const char *tuning_parse(const void *data, size_t size, uint64_t key, tuning *t);

/*
 * The choices of the device's file over those of *t. No file: nothing changes. A file that is broken, was made for
 * something else, or belongs to another user is refused with a warning, and nothing changes.
 */
void tuning_load(const cldev_limits *limits, tuning *t);

/* Keep all choices that are not defaults; what prevents it is logged as a warning. */
void tuning_store(const cldev_limits *limits, const tuning *t);

/* Path of the device's file. DCM_ERR_FILE where there is no cache folder. */
dcm_status tuning_path(const cldev_limits *limits, char *path, size_t size, bool create);

#endif
