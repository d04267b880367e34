/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_lease.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "base/mem.h"

struct lease {
    UT_hash_handle hh; /* by boot */
    char boot[LEASE_BOOT_SIZE];
    int64_t beat;
    uint64_t since_ms;
    bool seen; /* in this look */
};

struct leases {
    struct lease *all;
    char own_boot[LEASE_BOOT_SIZE];
    uint64_t lease_ms, now_ms;
    bool looked;
};

struct leases *leases_new(const char *own_boot, uint64_t lease_ms)
{
    struct leases *leases = xcalloc(1, sizeof(*leases));

    mem_copy_text(leases->own_boot, own_boot);
    leases->lease_ms = lease_ms;
    return leases;
}

static void lease_free(struct leases *leases, struct lease *lease)
{
    HASH_DEL(leases->all, lease);
    free(lease);
}

void leases_free(struct leases **leases_p)
{
    struct leases *leases = TAKE(*leases_p);
    struct lease *lease, *next;

    if (leases == NULL)
        return;
    HASH_ITER(hh, leases->all, lease, next)
    lease_free(leases, lease);
    free(leases);
}

void leases_begin(struct leases *leases, uint64_t now_ms)
{
    bool gap = leases->looked && now_ms - leases->now_ms > leases->lease_ms / 2;
    struct lease *lease, *next;

    leases->now_ms = now_ms;
    leases->looked = true;
    HASH_ITER(hh, leases->all, lease, next)
    {
        lease->seen = false;
        if (gap)
            lease->since_ms = now_ms;
    }
}

bool leases_see(struct leases *leases, const char *boot, int64_t beat)
{
    struct lease *lease;

    if (strcmp(boot, leases->own_boot) == 0 || strlen(boot) >= LEASE_BOOT_SIZE)
        return false;
    HASH_FIND_STR(leases->all, boot, lease);
    if (lease == NULL && HASH_COUNT(leases->all) >= LEASE_BOOT_COUNT_MAX)
        return false;
    if (lease == NULL) {
        lease = xcalloc(1, sizeof(*lease));
        mem_copy_text(lease->boot, boot);
        HASH_ADD_STR(leases->all, boot, lease);
    } else if (lease->beat == beat) {
        lease->seen = true;
        if (leases->now_ms - lease->since_ms < leases->lease_ms)
            return false;
        lease->since_ms = leases->now_ms;
        return true;
    }
    lease->seen = true;
    lease->beat = beat;
    lease->since_ms = leases->now_ms;
    return false;
}

void leases_end(struct leases *leases)
{
    struct lease *lease, *next;

    HASH_ITER(hh, leases->all, lease, next)
    {
        if (!lease->seen)
            lease_free(leases, lease);
    }
}
