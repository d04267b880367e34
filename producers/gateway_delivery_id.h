/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How people name a delivery and an endpoint. Pure.
 *
 *   msg_019ab2c4-7d51-7c11-8000-5d1f0a6c9e42_2   one round of a job: the webhook-id of its POSTs
 *   019ab2c4-7d51-7c11-8000-5d1f0a6c9e42         the newest round of that job
 *
 *   https://example.com/hook                     an endpoint: a URL; its query does not count
 *
 * Thread: any.   Tests: tests/unit/test_gateway_delivery_id.c, tests/fuzz/fuzz_delivery_id.c
 */

#include <stddef.h>
#include <stdint.h>

#include "base/wire.h"

/* round is 0 for the newest. ERR_MALFORMED says what it must look like. */
int delivery_id_parse(const char *text, struct wire_id *ret_job, uint64_t *ret_round,
                      struct err *err) MUST_CHECK;

/* Copies what is in front of a query or fragment. ERR_RANGE: no http or https URL of printable
 * ASCII, or too long. */
int endpoint_url_read(const char *text, char *to, size_t to_size, struct err *err) MUST_CHECK;
