/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/bulk_seen.h"

#include <sodium.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/rng.h"

#define ROOM_MIN 1024 /* a power of two, as all rooms are */

struct bulk_seen {
    uint8_t key[crypto_shorthash_KEYBYTES];
    uint64_t *hashes; /* 0: empty */
    size_t count, room;
};

struct bulk_seen *bulk_seen_new(void)
{
    struct bulk_seen *seen = xcalloc(1, sizeof(*seen));

    rng_secret_bytes(seen->key, sizeof(seen->key));
    seen->room = ROOM_MIN;
    seen->hashes = xcalloc(seen->room, sizeof(*seen->hashes));
    return seen;
}

void bulk_seen_free(struct bulk_seen **seen_p)
{
    struct bulk_seen *seen = TAKE(*seen_p);

    if (seen == NULL)
        return;
    free(seen->hashes);
    free(seen);
}

/* Its place, or the empty one where it belongs. */
static uint64_t *place_of(const struct bulk_seen *seen, uint64_t hash)
{
    size_t at = hash & (seen->room - 1);

    while (seen->hashes[at] != 0 && seen->hashes[at] != hash)
        at = (at + 1) & (seen->room - 1);
    return &seen->hashes[at];
}

static void grow(struct bulk_seen *seen)
{
    uint64_t *old = TAKE(seen->hashes);
    size_t old_room = seen->room;

    seen->room *= 2;
    seen->hashes = xcalloc(seen->room, sizeof(*seen->hashes));
    for (size_t i = 0; i < old_room; i++) {
        if (old[i] != 0)
            *place_of(seen, old[i]) = old[i];
    }
    free(old);
}

bool bulk_seen_add(struct bulk_seen *seen, const void *text, size_t size)
{
    uint64_t hash, *place;

    (void)crypto_shorthash((uint8_t *)&hash, text, size, seen->key);
    hash += hash == 0;
    place = place_of(seen, hash);
    if (*place != 0)
        return false;
    *place = hash;
    if (++seen->count > seen->room / 4 * 3)
        grow(seen);
    return true;
}
