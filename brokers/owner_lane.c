/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Pools, their lanes, and the window: how many waiting jobs are in memory.
 *
 * A lane may keep a new job while it holds fewer than the window has room left (dynamic queue
 * thresholds: some room always stays for lanes that just begin, so that a pool without workers
 * cannot pin the window). Past that the lane is spilled: a new job leaves memory once its row is
 * committed, and comes back by a LOAD.
 *
 * While a lane is spilled this holds: each job of it that waits for its first attempt and has
 * seq <= cursor is in memory, each above is in the ledger or on its way there. The cursor only
 * moves forward (PROTOCOL 23).
 *
 * Source of the thresholds: A. Choudhury, E. Hahne, "Dynamic Queue Length Thresholds for
 * Shared-Memory Packet Switches", IEEE/ACM Transactions on Networking 6(2), 1998.
 */

#include <stdlib.h>
#include <string.h>

#include "brokers/owner_int.h"

static void name_copy(char to[OWNER_NAME_SIZE], struct wire_text name)
{
    size_t size = name.size < OWNER_NAME_SIZE - 1 ? name.size : OWNER_NAME_SIZE - 1;

    memset(to, 0, OWNER_NAME_SIZE);
    if (size > 0)
        memcpy(to, name.text, size);
}

struct pool *pool_get(struct owner *owner, struct wire_text name)
{
    char key[OWNER_NAME_SIZE];
    struct pool *pool;

    name_copy(key, name);
    HASH_FIND(hh, owner->pools, key, OWNER_NAME_SIZE, pool);
    if (pool != NULL)
        return pool;
    pool = xcalloc(1, sizeof(*pool));
    memcpy(pool->name, key, OWNER_NAME_SIZE);
    sched_pool_init(&pool->sched);
    TAILQ_INIT(&pool->ready);
    HASH_ADD(hh, owner->pools, name, OWNER_NAME_SIZE, pool);
    return pool;
}

void pool_check_busy(struct owner *owner, struct pool *pool)
{
    bool busy = !TAILQ_EMPTY(&pool->ready) && sched_can(&pool->sched);

    if (busy && !pool->busy)
        TAILQ_INSERT_TAIL(&owner->busy, pool, busy_link);
    if (!busy && pool->busy)
        TAILQ_REMOVE(&owner->busy, pool, busy_link);
    pool->busy = busy;
}

static void lane_free(struct owner *owner, struct lane *lane)
{
    struct pool *pool = lane->pool;

    if (lane->spilled)
        TAILQ_REMOVE(&owner->spilled, lane, spilled_link);
    HASH_DEL(pool->lanes, lane);
    pool->lane_count--;
    limit_leave_lane(owner, lane);
    delayed_leave(owner, &lane->delayer);
    sched_lane_done(&lane->sched);
    free(lane);
}

/* Lanes outlive their jobs, because they remember what their tenant was served; too many idle
 * ones are forgotten together. */
static void pool_forget_idle_lanes(struct owner *owner, struct pool *pool)
{
    struct lane *lane, *next;

    if (pool->lane_count < OWNER_IDLE_LANES_MAX)
        return;
    HASH_ITER(hh, pool->lanes, lane, next)
    {
        if (lane->jobs == 0 && !lane->spilled && !lane->loading)
            lane_free(owner, lane);
    }
}

static struct lane *lane_get_by_name(struct owner *owner, struct pool *pool,
                                     struct wire_text tenant, enum job_rank rank)
{
    char key[OWNER_NAME_SIZE + 1];
    struct lane *lane;

    name_copy(key, tenant);
    key[OWNER_NAME_SIZE] = (char)rank;
    HASH_FIND(hh, pool->lanes, key, sizeof(key), lane);
    if (lane != NULL)
        return lane;
    pool_forget_idle_lanes(owner, pool);
    lane = xcalloc(1, sizeof(*lane));
    memcpy(lane->key, key, sizeof(key));
    lane->pool = pool;
    lane->delayer = delayed_join(owner, key);
    lane->cursor = -1;
    sched_lane_init(&lane->sched, rank, ++owner->lane_count_ever);
    limit_join_lane(owner, lane, tenant);
    HASH_ADD(hh, pool->lanes, key, sizeof(lane->key), lane);
    pool->lane_count++;
    return lane;
}

struct lane *lane_get(struct owner *owner, const struct job_spec *spec)
{
    return lane_get_by_name(owner, pool_get(owner, spec->submit.pool), spec->submit.tenant,
                            spec->rank);
}

static uint64_t room_of(uint64_t limit, uint64_t used)
{
    return limit > used ? limit - used : 0;
}

/* The new job is counted already, on both sides. */
bool lane_admits(const struct owner *owner, const struct lane *lane)
{
    uint64_t jobs = room_of(owner->options.window_jobs, owner->stats.waiting_in_memory);
    uint64_t bytes = room_of(owner->options.window_bytes, owner->stats.waiting_bytes);

    return !lane->spilled && lane->waiting <= jobs && lane->waiting_bytes <= bytes;
}

void lane_spill(struct owner *owner, struct lane *lane, int64_t cursor)
{
    if (lane->spilled)
        return;
    lane->spilled = true;
    if (cursor > lane->cursor) /* after a takeover intake repeats what a LOAD has passed */
        lane->cursor = cursor;
    TAILQ_INSERT_TAIL(&owner->spilled, lane, spilled_link);
}

static void lane_unspill(struct owner *owner, struct lane *lane)
{
    lane->spilled = false;
    TAILQ_REMOVE(&owner->spilled, lane, spilled_link);
}

bool lane_must_forget(const struct lane *lane, const struct job *job)
{
    return lane->spilled && job->row && job->attempt_count == 0 &&
           (int64_t)job->spec->seq > lane->cursor;
}

void lane_adopt_takeover(struct owner *owner, const struct ledger_lane *found)
{
    struct pool *pool = pool_get(owner, WIRE_TEXT_OF(found->pool));

    lane_spill(owner, lane_get_by_name(owner, pool, WIRE_TEXT_OF(found->tenant), found->rank),
               found->after_seq);
}

/* How many rows to ask for; 0: not now. */
static uint32_t lane_load_limit(const struct owner *owner, const struct lane *lane)
{
    uint64_t room = room_of(owner->options.window_jobs, owner->stats.waiting_in_memory);
    uint64_t limit = owner->options.load_jobs;

    if (lane->waiting > 0 && lane->waiting >= limit / 2)
        return 0;
    if (owner->stats.waiting_bytes >= owner->options.window_bytes)
        room = 0;
    if (room <= lane->waiting)
        room = lane->waiting == 0 && !TAILQ_EMPTY(&lane->pool->ready) ? OWNER_LOAD_LEAST : 0;
    else
        room -= lane->waiting;
    return (uint32_t)(room < limit ? room : limit);
}

static void lane_load(struct owner *owner, struct lane *lane, uint32_t limit)
{
    struct todo_node *node = todo_add(owner, OWNER_TODO_LOAD);
    struct ledger_lane *name = &node->todo.load.lane;

    mem_copy_text(name->pool, lane->pool->name);
    mem_copy_text(name->tenant, lane->key);
    name->rank = lane->sched.rank;
    name->after_seq = lane->cursor;
    node->todo.load.limit = limit;
    lane->loading = true;
    lane->forgot = false;
    owner->loads++;
}

/* Lanes take turns; those looked at are bounded, so that a turn costs the same with many. */
void lane_plan_loads(struct owner *owner)
{
    struct lane *lane;

    for (int i = 0; i < 2 * OWNER_LOADS_MAX && owner->loads < OWNER_LOADS_MAX; i++) {
        uint32_t limit;

        lane = TAILQ_FIRST(&owner->spilled);
        if (lane == NULL || owner->draining)
            return;
        TAILQ_REMOVE(&owner->spilled, lane, spilled_link);
        TAILQ_INSERT_TAIL(&owner->spilled, lane, spilled_link);
        limit = lane->loading ? 0 : lane_load_limit(owner, lane);
        if (limit > 0)
            lane_load(owner, lane, limit);
    }
}

/* The row is of another round or rank than the Submit that intake repeated, when it was replayed or
 * moved since; its fence counts then. */
void lane_confirm(struct owner *owner, struct job *job, struct ledger_row *row)
{
    bool waited = job->place == JOB_WAITING || job->place == JOB_PARKED || job->place == JOB_BARRED;

    if (row->fence > job->fence)
        job->fence = row->fence;
    if (lane_get(owner, row->spec) == job->lane) {
        job_take_spec(owner, job, TAKE(row->spec));
        return;
    }
    job_change_lane(owner, job, TAKE(row->spec));
    if (waited)
        job_wait(owner, job);
}

/* It ended, and nobody was told. */
static void lane_confirm_ended(struct owner *owner, struct job *job, struct ledger_row *row)
{
    if (job->final_token == 0 && row->fence > job->fence)
        job->fence = row->fence; /* no attempt of ours has ended it, so the fence is the row's */
    job_take_spec(owner, job, TAKE(row->spec));
}

/* A row came back. It may be in memory already: read from intake with its insert still out, or
 * looked up. Then the row only confirms it; but what it says of arrival and deadlines is what was
 * committed, and a repeated Submit came later. */
static void lane_take_row(struct owner *owner, struct ledger_row *row)
{
    struct job *job = job_find(owner, &row->spec->submit.id);

    if (job != NULL) {
        if (!job->row && job->place != JOB_ENDED)
            lane_confirm(owner, job, row);
        else if (!job->row && !job->in_flush &&
                 (row->spec->round == job->spec->round || job->final_token == 0))
            lane_confirm_ended(owner, job, row);
        else
            job_spec_unref(&row->spec);
        job->row = true;
        return;
    }
    job = job_add_row(owner, row);
    job_settle(owner, job);
}

void owner_on_rows(struct owner *owner, const struct ledger_lane *name, struct ledger_row *rows,
                   size_t row_count, bool complete)
{
    struct lane *lane = lane_get_by_name(owner, pool_get(owner, WIRE_TEXT_OF(name->pool)),
                                         WIRE_TEXT_OF(name->tenant), name->rank);

    if (lane->loading) {
        lane->loading = false;
        owner->loads--;
    }
    for (size_t i = 0; i < row_count; i++) {
        int64_t seq = (int64_t)rows[i].spec->seq;

        if (owner->phase == OWNER_OVER || !lane->spilled || seq <= lane->cursor) {
            job_spec_unref(&rows[i].spec);
            continue;
        }
        if (owner_guarded(owner, OWNER_GUARD_CURSOR))
            lane->cursor = seq;
        lane_take_row(owner, &rows[i]);
    }
    /* What was forgotten meanwhile may have missed this load; another one will tell. */
    if (lane->spilled && complete && !lane->forgot)
        lane_unspill(owner, lane);
}

void lane_free_all(struct owner *owner)
{
    struct pool *pool, *next_pool;
    struct lane *lane, *next_lane;

    HASH_ITER(hh, owner->pools, pool, next_pool)
    {
        HASH_ITER(hh, pool->lanes, lane, next_lane)
        {
            lane_free(owner, lane);
        }
        HASH_DEL(owner->pools, pool);
        sched_pool_done(&pool->sched);
        free(pool);
    }
}
