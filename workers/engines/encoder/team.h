/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A team of threads that runs loops whose turns are independent: team_run() hands out the turns
 * 0 … count-1, and returns when all are done. The caller is member 0 and works with the others.
 *
 * A forward pass is some twenty such loops of a few hundred microseconds, so members wait for the
 * next one by watching a counter, and sleep on it only after a while without work.
 *
 * Thread: one caller at a time.   Tests: tests/unit/test_encoder_math.c
 */

#include <stdint.h>

#include "base/err.h"

#define TEAM_MEMBER_COUNT_MAX 256u

struct team;

/* `start` runs once in each member's thread before any turn; NULL: nothing. */
int team_new(uint32_t member_count, void (*start)(void), struct team **ret_team,
             struct err *err) MUST_CHECK;
void team_free(struct team **team_p);

uint32_t team_member_count(const struct team *team);

void team_run(struct team *team, uint32_t count,
              void (*turn)(void *context, uint32_t member, uint32_t index), void *context);
