/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Inside of a chain: chain.c (the whole, what needs what), chain_step.c (the keys of a step). */

#include "schema/chain.h"

/* Everything of a step but the steps that it has to do with. `priority` is set: the chain's. */
int chain_step_read(struct chain_step *step, const char *name, const json_t *json,
                    struct err *err) MUST_CHECK;
