/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which gateways are lost, by what one of them has seen of the others: pure.
 *
 *     look: every boot that has a row, with its beat, or callers and no row (beat 0)
 *     a beat that changes, or a boot that is new    its lease begins anew
 *     the same beat for a whole lease               lost: told once, and again after another lease
 *     a gap between two looks                       all leases begin anew: nobody was watching
 *
 * A lease is counted on the watcher's clock between what it saw itself, so no two clocks are
 * compared, and while Postgres is away nobody is lost.
 *
 * Thread: one.   Tests: tests/unit/test_gateway_lease.c
 */

#include <stdbool.h>
#include <stdint.h>

#define LEASE_BOOT_SIZE 65
#define LEASE_BOOT_COUNT_MAX 10000 /* more than that are not watched at once */

struct leases;

struct leases *leases_new(const char *own_boot, uint64_t lease_ms);
void leases_free(struct leases **leases_p);

/* A look was answered: begin, then each boot of it once, then end, which forgets the others. */
void leases_begin(struct leases *leases, uint64_t now_ms);
/* True: it is lost. */
bool leases_see(struct leases *leases, const char *boot, int64_t beat);
void leases_end(struct leases *leases);
