/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What metrics.c and metrics_core.cc say to each other. */

#include "base/metrics.h"

#ifdef __cplusplus
extern "C" {
#endif

bool metrics_text_is_utf8(const char *text);
int metrics_core_write(struct metrics *metrics, struct buf *to, struct err *err) MUST_CHECK;

#ifdef __cplusplus
}
#endif
