/* Measuring the choices of a device (src/device/tuning.h) on its back end. */
#ifndef OPS_TUNE_CL_H
#define OPS_TUNE_CL_H

#include <dcm/device.h>

#include "ops/ops_cl.h"

/* Read the device's file, and measure at need what is not in it. */
void tune_begin(backend *b);

/* The choices that the device has, as in use. */
size_t tune_list(backend *b, dcm_tuning_choice *out);

/*
 * Measure the candidates of every choice that the device has, each checked against sums in double before it can be
 * chosen, set and keep what is best. What would go past 15 s is not begun. *rows is freed with mem_free. Errors:
 * DCM_ERR_MEMORY, DCM_ERR_DEVICE where not even the default works.
 */
dcm_status tune_all(backend *b, dcm_tuning_row **rows, size_t *count);

/*
 * The engine for products of many vectors with weights of a type: WIDE by clop_wide and where groups are too small for
 * the others; else what is chosen. Where nothing is, it is decided now, and measured where the back end may: with
 * weights of that type, so that the programs serve later.
 */
dcm_status tune_many(backend *b, quant_type type, clop_many *engine);

#endif
