/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How often somebody without a key may be wrong: so many guesses a minute from one address, and of
 * one public prefix of a token from all addresses together.
 *
 *     guesses_take(address, prefix)    before it is known whether the token is right
 *     guesses_give_back(…)             it was, or nobody could tell: it was no guess
 *
 * Who is right is never held back, unless somebody at its address, or with its prefix, is wrong too
 * often. An address is a network of 64 bits in IPv6, since one household has that many. Memory is
 * fixed: an address and a prefix have each one of 16,384 places, by a keyed hash. Who shares a
 * place shares its guesses, so there are never more of them for it.
 *
 * Pure.   Thread: any, one at a time.   Tests: tests/unit/test_gateway_guess.c
 */

#include <stdbool.h>
#include <stdint.h>

#define GUESS_KEY_SIZE 16

struct guesses;

/* The key makes nobody know who shares a place with whom. 0 per minute: no limit. */
struct guesses *guesses_new(uint32_t per_minute, const uint8_t key[GUESS_KEY_SIZE]);
void guesses_free(struct guesses **guesses_p);

/* False: there were too many; ret_wait_us says when the next one may come. The address is numeric;
 * prefix "": the token has none. */
bool guesses_take(struct guesses *guesses, const char *address, const char *prefix, double now_us,
                  double *ret_wait_us);
void guesses_give_back(struct guesses *guesses, const char *address, const char *prefix);
