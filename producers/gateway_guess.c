/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_guess.h"

#include <arpa/inet.h>
#include <math.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "producers/gateway_rate_core.h"

#define PLACES 16384
#define NETWORK_SIZE 8 /* bytes of an IPv6 address that say whose it is */

_Static_assert(GUESS_KEY_SIZE == crypto_shorthash_KEYBYTES, "the hash's key");

struct guesses {
    struct rate rate;
    uint8_t key[GUESS_KEY_SIZE];
    double addresses[PLACES], prefixes[PLACES]; /* theoretical arrival times */
};

struct guesses *guesses_new(uint32_t per_minute, const uint8_t key[GUESS_KEY_SIZE])
{
    struct guesses *guesses = xcalloc(1, sizeof(*guesses));

    if (per_minute > 0)
        guesses->rate = (struct rate){.interval_us = 60e6 / per_minute, .burst = per_minute};
    memcpy(guesses->key, key, sizeof(guesses->key));
    return guesses;
}

void guesses_free(struct guesses **guesses_p)
{
    free(TAKE(*guesses_p));
}

static size_t place_of(const struct guesses *guesses, const void *bytes, size_t size)
{
    uint64_t hash;

    _Static_assert(sizeof(hash) == crypto_shorthash_BYTES, "the hash");
    (void)crypto_shorthash((uint8_t *)&hash, bytes, size, guesses->key);
    return hash % PLACES;
}

static double *address_place(struct guesses *guesses, const char *address)
{
    struct in6_addr v6;
    struct in_addr v4;

    if (inet_pton(AF_INET6, address, &v6) != 1)
        return &guesses->addresses[inet_pton(AF_INET, address, &v4) == 1
                                       ? place_of(guesses, &v4, sizeof(v4))
                                       : place_of(guesses, address, strlen(address))];
    if (IN6_IS_ADDR_V4MAPPED(&v6)) {
        memcpy(&v4, v6.s6_addr + sizeof(v6) - sizeof(v4), sizeof(v4));
        return &guesses->addresses[place_of(guesses, &v4, sizeof(v4))];
    }
    return &guesses->addresses[place_of(guesses, &v6, NETWORK_SIZE)];
}

/* NULL: the token has none. */
static double *prefix_place(struct guesses *guesses, const char *prefix)
{
    return prefix[0] == '\0' ? NULL : &guesses->prefixes[place_of(guesses, prefix, strlen(prefix))];
}

bool guesses_take(struct guesses *guesses, const char *address, const char *prefix, double now_us,
                  double *ret_wait_us)
{
    double *const places[] = {address_place(guesses, address), prefix_place(guesses, prefix)};
    double after[2], wait_us, wait_us_max = 0;
    bool passed = true;

    for (size_t i = 0; i < 2; i++) {
        if (places[i] == NULL)
            continue;
        after[i] = *places[i];
        passed = rate_take(&guesses->rate, &after[i], now_us, 1, &wait_us) == 1 && passed;
        wait_us_max = fmax(wait_us_max, wait_us);
    }
    for (size_t i = 0; passed && i < 2; i++) {
        if (places[i] != NULL)
            *places[i] = after[i];
    }
    *ret_wait_us = wait_us_max;
    return passed;
}

void guesses_give_back(struct guesses *guesses, const char *address, const char *prefix)
{
    double *const places[] = {address_place(guesses, address), prefix_place(guesses, prefix)};

    for (size_t i = 0; i < 2; i++) {
        if (places[i] != NULL)
            *places[i] = fmax(0, *places[i] - guesses->rate.interval_us);
    }
}
