/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which texts were seen before: a set of 64-bit hashes under a secret key, 22 bytes a text at most.
 * Two different texts are taken for one with a chance of n²/2^65: one in 37 million at a million.
 *
 * Thread: its owner's.   Tests: tests/unit/test_bulk_seen.c
 */

#include <stdbool.h>
#include <stddef.h>

struct bulk_seen;

struct bulk_seen *bulk_seen_new(void);
void bulk_seen_free(struct bulk_seen **seen_p);
bool bulk_seen_add(struct bulk_seen *seen, const void *text, size_t size); /* false: it was there */
