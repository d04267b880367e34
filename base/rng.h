/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Randomness. Two sources that must not be mixed up: rng_secret_bytes() for keys, secrets and
 * ids (libsodium), and struct rng, a small seeded generator for jitter and simulations, whose
 * every run can be repeated.
 *
 * Source: xoshiro256** 1.0 and splitmix64 by D. Blackman and S. Vigna, 2018, prng.di.unimi.it.
 * Thread: rng_secret_bytes any; a struct rng belongs to one thread.   Tests: tests/unit/test_rng.c
 */

#include <stddef.h>
#include <stdint.h>

struct rng {
    uint64_t state[4];
};

void rng_secret_bytes(void *to, size_t size);

void rng_seed(struct rng *rng, uint64_t seed);
uint64_t rng_next(struct rng *rng);
uint64_t rng_below(struct rng *rng, uint64_t limit); /* 0 … limit-1; limit > 0 */
double rng_unit(struct rng *rng);                    /* 0.0 … below 1.0 */
