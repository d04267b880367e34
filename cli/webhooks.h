/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * headrace webhooks: what was delivered, to whom, and how it is signed. One action a table entry.
 *
 *   webhooks_deliveries.c  ls, show, replay      webhooks_endpoints.c  endpoints
 *   webhooks_secret.c      secret
 *
 * Thread: the only one of a command.   Tests: tests/stack/test_webhook.py
 */

#include "cli/verb.h"

extern const struct verb_action webhooks_ls_action, webhooks_show_action, webhooks_replay_action;
extern const struct verb_action webhooks_endpoints_action;
extern const struct verb_action webhooks_secret_action;
