/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Limits on a command line: "running_jobs=10 weight=" as the JSON that the gateway takes. What may
 * be set and which values are right is the gateway's to say.
 *
 * Thread: the only one of a command.   Tests: tests/unit/test_cli_limits.c
 */

#include <jansson.h>

#include "base/err.h"

/* NAME=NUMBER sets, NAME= takes away. Numbers may end in k, M, G or T. ERR_USAGE says which operand
 * is wrong. The caller frees. */
int limits_of_operands(char **operands, int operand_count, json_t **ret_limits,
                       struct err *err) MUST_CHECK;
