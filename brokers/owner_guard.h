/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The rules that the protocol stands on (PROTOCOL 3.3), each with a bit. tests/sim removes one at a
 * time and must find seeds that break an invariant; nothing else ever sets a bit.
 *
 * Bits that the owner does not read belong to the simulated store, worker or gateway.
 */

#define OWNER_GUARDS(GUARD)                                                                        \
    GUARD(FENCE_MEMORY, 0, "fence in memory")                                                      \
    GUARD(FENCE_SQL, 1, "fence < token in SQL")                                                    \
    GUARD(EPOCH, 2, "epoch guard")                                                                 \
    GUARD(EPOCH_WAIT, 3, "epoch raise waits for the open flush")                                   \
    GUARD(INTAKE_FLOOR, 4, "floor of intake")                                                      \
    GUARD(OUTCOME_FLOOR, 5, "floor of outcome")                                                    \
    GUARD(LOOKUP, 6, "lookup at takeover")                                                         \
    GUARD(FIRST_ONLY, 7, "first attempt only ahead of the row")                                    \
    GUARD(RETURNING, 8, "RETURNING before publish")                                                \
    GUARD(REPUBLISH, 9, "outbox republish")                                                        \
    GUARD(RESERVATION, 10, "reservation before produce")                                           \
    GUARD(CAUGHT_UP, 11, "caught-up rule of leases")                                               \
    GUARD(BOOT, 12, "boot check of Attempts")                                                      \
    GUARD(COMMIT_FIRST, 13, "final key written after commit")                                      \
    GUARD(CURSOR, 14, "forward-only cursor")                                                       \
    GUARD(VERDICT, 15, "verdict after flush")                                                      \
    GUARD(EXPIRY, 16, "deadlines of jobs that are not in memory")                                  \
    GUARD(REPLAY, 17, "replay after publish")                                                      \
    GUARD(ROUND, 18, "a replay names its round")                                                   \
    GUARD(CHAIN, 24, "a flush follows the one before it")                                          \
    GUARD(COLLECTOR, 25, "collector by day, not by missing row")

enum owner_guard {
#define GUARD(name, bit, text) OWNER_GUARD_##name = 1 << (bit),
    OWNER_GUARDS(GUARD)
#undef GUARD
};
