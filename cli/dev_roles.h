/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Our own programs as `headrace dev` starts them: which, in what order, with which settings.
 * Thread: one.
 */

#include "cli/dev.h"

/* Makes the first API key and the client file once everything runs; no work without a gateway. */
int dev_roles_introduce(struct dev *dev, struct err *err) MUST_CHECK;
