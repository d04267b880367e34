/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Our own programs as `headrace dev` starts them: which, in what order, with which settings; and
 * what people get of a new platform: an API key, a webhook secret and a client file.
 *
 * Thread: one.   Tests: tests/stack/test_dev_roles.py
 */

#include "cli/dev.h"

/* The once-only steps and roles of this binary, in order of start; returns how many. */
size_t dev_role_kinds(const struct dev_kind **ret_kinds, size_t room);

/* Makes the first tenant, an API key and a webhook secret, unless a run before this one did, and
 * writes DATA/client.json, by which a second shell finds the gateway. */
int dev_introduce(struct dev *dev, struct err *err) MUST_CHECK;
