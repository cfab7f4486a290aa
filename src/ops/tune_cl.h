/* Measuring the choices of a device (src/device/tuning.h) on its back end. */
#ifndef OPS_TUNE_CL_H
#define OPS_TUNE_CL_H

#include <dcm/device.h>

#include "ops/ops_cl.h"

/* The choices that the device has, as in use. */
size_t tune_list(backend *b, dcm_tuning_choice *out);

/*
 * Measure the candidates of the choices that change no bit, with `engines` also those of the engine for products of
 * many vectors, each checked against sums in double before it can be chosen; set and keep what is best. What would go
 * past 15 s is not begun. *rows is freed with mem_free. Errors: DCM_ERR_MEMORY, DCM_ERR_DEVICE where not even the
 * default works; nothing is kept then.
 */
dcm_status tune_measure(backend *b, bool engines, dcm_tuning_row **rows, size_t *count);

/* The engine for products of many vectors: the chosen one, or the first that the device can use where it cannot use
 * that. WIDE by clop_wide and where groups are too small for the others. */
clop_many tune_engine(backend *b);

#endif
