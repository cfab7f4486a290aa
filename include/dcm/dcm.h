/* libdcm: language models with a distance-compressed key-value cache. Includes the whole public interface. */
#ifndef DCM_DCM_H
#define DCM_DCM_H

#include <dcm/device.h>
#include <dcm/eval.h>
#include <dcm/folder.h>
#include <dcm/log.h>
#include <dcm/merge.h>
#include <dcm/model.h>
#include <dcm/plan.h>
#include <dcm/session.h>
#include <dcm/status.h>
#include <dcm/tokenizer.h>
#include <dcm/train.h>

#endif
