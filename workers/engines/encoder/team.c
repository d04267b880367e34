/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One generation counter and one turn counter do all the work:
 *
 *   caller   writes the loop, resets `next` and `busy`, raises `generation`, wakes sleepers,
 *            takes turns itself, then waits until `busy` members have left the loop
 *   member   waits for `generation` to move, takes turns while there are any, lowers `busy`
 *
 * `busy` counts members in the loop, not turns left, so that none can still look at the loop's
 * context after team_run() has returned. Waiting is a short spin, then a futex.
 */

#include "workers/engines/encoder/team.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/assert.h"

/* About 50 microseconds: longer than the pause between two loops of one forward pass. */
#define SPIN_COUNT 2000

struct member {
    struct team *team;
    pthread_t thread;
    uint32_t index;
};

struct team {
    _Atomic uint32_t generation; /* one more for each loop */
    _Atomic uint32_t busy;
    _Atomic uint32_t next;
    _Atomic uint32_t sleeper_count;
    _Atomic bool closing;
    uint32_t count;
    void (*turn)(void *context, uint32_t member, uint32_t index);
    void *context;
    void (*start)(void);
    uint32_t member_count;
    uint32_t thread_count; /* started; member_count - 1 once team_new is through */
    struct member members[];
};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Returns once *word is not `seen`. The sleeper is announced before the last look, and the
 * waker looks for sleepers after its change: one of the two sees the other. */
static void wait_change(struct team *team, _Atomic uint32_t *word, uint32_t seen)
{
    for (int i = 0; i < SPIN_COUNT; i++) {
        if (atomic_load(word) != seen)
            return;
        relax();
    }
    atomic_fetch_add(&team->sleeper_count, 1);
    while (atomic_load(word) == seen)
        futex_wait(word, seen);
    atomic_fetch_sub(&team->sleeper_count, 1);
}

static void wake(struct team *team, _Atomic uint32_t *word)
{
    if (atomic_load(&team->sleeper_count) > 0)
        futex_wake(word);
}

static void take_turns(struct team *team, uint32_t member)
{
    uint32_t index;

    while ((index = atomic_fetch_add(&team->next, 1)) < team->count)
        team->turn(team->context, member, index);
}

static void *run_member(void *arg)
{
    struct member *member = arg;
    struct team *team = member->team;
    uint32_t seen = 0;

    if (team->start != NULL)
        team->start();
    for (;;) {
        wait_change(team, &team->generation, seen);
        seen = atomic_load(&team->generation);
        if (atomic_load(&team->closing))
            return NULL;
        take_turns(team, member->index);
        if (atomic_fetch_sub(&team->busy, 1) == 1)
            wake(team, &team->busy);
    }
}

void team_run(struct team *team, uint32_t count,
              void (*turn)(void *context, uint32_t member, uint32_t index), void *context)
{
    uint32_t busy;

    assert(count <= UINT32_MAX - TEAM_MEMBER_COUNT_MAX);
    if (team->member_count == 1 || count <= 1) {
        for (uint32_t i = 0; i < count; i++)
            turn(context, 0, i);
        return;
    }
    team->count = count;
    team->turn = turn;
    team->context = context;
    atomic_store(&team->next, 0);
    atomic_store(&team->busy, team->member_count - 1);
    atomic_fetch_add(&team->generation, 1);
    wake(team, &team->generation);
    take_turns(team, 0);
    while ((busy = atomic_load(&team->busy)) != 0)
        wait_change(team, &team->busy, busy);
}

void team_free(struct team **team_p)
{
    struct team *team = TAKE(*team_p);

    if (team == NULL)
        return;
    atomic_store(&team->closing, true);
    atomic_fetch_add(&team->generation, 1);
    futex_wake(&team->generation);
    for (uint32_t i = 0; i < team->thread_count; i++)
        (void)pthread_join(team->members[i].thread, NULL);
    free(team);
}

int team_new(uint32_t member_count, void (*start)(void), struct team **ret_team, struct err *err)
{
    OWNED(team_free) struct team *team = NULL;

    assert(member_count >= 1 && member_count <= TEAM_MEMBER_COUNT_MAX);
    team = xcalloc(1, sizeof(*team) + member_count * sizeof(team->members[0]));
    team->member_count = member_count;
    team->start = start;
    if (start != NULL)
        start();
    for (uint32_t i = 0; i + 1 < member_count; i++) {
        struct member *member = &team->members[i];
        int e;

        *member = (struct member){.team = team, .index = i + 1};
        e = pthread_create(&member->thread, NULL, run_member, member);
        if (e != 0)
            return err_set(err, ERR_MEMORY, "thread %u of %u: %s", i + 1, member_count,
                           strerror(e));
        (void)pthread_setname_np(member->thread, "encoder-team");
        team->thread_count++;
    }
    *ret_team = TAKE(team);
    return 0;
}

uint32_t team_member_count(const struct team *team)
{
    return team->member_count;
}
