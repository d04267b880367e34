/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Waits for one job and says how it goes: one moving line on a terminal, a line for each change of
 * state elsewhere. Both go to standard error, so that standard output holds the result alone.
 *
 * Thread: the only one of a command.
 */

#include "cli/client.h"

/* Returns when the job is final; *ret_status is the gateway's last status object. */
int watch_job(const struct client *client, const char *id, bool quiet, json_t **ret_status,
              struct err *err) MUST_CHECK;

/* "SUCCEEDED", … as the wire says it. */
bool watch_is_final(const char *status);
