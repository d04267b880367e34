/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Who runs what: while a pool has a waiting job and a worker with credit, the scheduler names the
 * job and the workers take turns.
 *
 * Nothing is dispatched while the ledger lags: an Attempt may go out ahead of its row only as long
 * as the oldest unwritten change is young and small (PROTOCOL 21). A tenant whose jobs fail faster
 * than they come back is held up as well (owner_delayed.c).
 */

#include <stdlib.h>

#include "brokers/owner_int.h"

bool dispatch_allowed(const struct owner *owner)
{
    uint64_t oldest = flush_oldest_us(owner);

    return !owner->draining && (owner->limits_known || !owner->options.await_limits) &&
           owner->unflushed_bytes < owner->options.run_ahead_bytes &&
           (oldest == UINT64_MAX || owner->now_us < oldest + owner->options.run_ahead_us);
}

/* The next worker in turn that has the slots; a job that wants more slots than any worker has gets
 * a whole one. A job that none has the slots for waits, and its pool with it: if smaller ones went
 * ahead it might wait for ever. */
static struct worker *choose_worker(struct pool *pool, const struct job *job)
{
    struct worker *worker;

    TAILQ_FOREACH(worker, &pool->ready, ready_link)
    {
        bool plain = job->spec->slot_count == 1 && worker->used_slots == worker->running;

        if (plain || worker->used_slots == 0 ||
            worker->used_slots + job->spec->slot_count <= worker->slots)
            return worker; /* plain: where each job takes one slot, credit says it all */
    }
    return NULL;
}

static void attempt_fill(struct owner *owner, struct job *job, struct owner_todo *todo)
{
    const struct message_submit *submit = &job->spec->submit;
    const struct worker *worker = job->worker;

    todo->attempt.pool = WIRE_TEXT_OF(worker->pool->name);
    todo->attempt.partition = worker->partition;
    todo->attempt.message = (struct message_attempt){
        .token = job->token,
        .shard = owner->shard,
        .worker = WIRE_TEXT_OF(worker->key.name),
        .boot = worker->key.boot,
        .job = submit->id,
        .number = job->attempt_count,
        .tenant = submit->tenant,
        .model = submit->model,
        .deployment = submit->deployment,
        .input = submit->input,
        .input_blob = submit->input_blob,
        .input_size = submit->input_size,
        .input_digest = submit->input_digest,
        .run_limit_ms = submit->run_limit_ms,
        .deadline_us = job->spec->total_deadline_us == UINT64_MAX ? 0
                                                                  : job->spec->total_deadline_us,
        .trace = submit->trace,
        .alone = job->alone,
        .slot_count = job->spec->slot_count,
        .input_type = submit->input_type,
        .route = submit->route,
        .stream = submit->stream,
        .run = submit->step.size > 0 ? submit->parent : (struct wire_id){{0}},
        .gateway = submit->stream ? submit->gateway : (struct wire_text){0},
    };
}

static void attempt_send(struct owner *owner, struct job *job, struct worker *worker)
{
    struct sent *sent = xcalloc(1, sizeof(*sent));
    uint64_t from_us = job->due_us > job->state_us ? job->due_us : job->state_us;
    struct todo_node *node;

    job_start(owner, job, worker, TOKEN_MAKE(owner->epoch, ++owner->token_count));
    sent->token = job->token;
    sent->job = job;
    sent->worker = worker_ref(worker);
    HASH_ADD(hh, owner->sent, token, sizeof(sent->token), sent);
    job->sent = sent;
    worker->sent++;
    worker->unreported++;
    owner->stats.dispatched++;
    node = todo_add(owner, OWNER_TODO_ATTEMPT);
    node->spec = job_spec_ref(job->spec);
    node->worker = worker_ref(worker);
    attempt_fill(owner, job, &node->todo);
    node->todo.attempt.environment = job->spec->submit.environment;
    node->todo.attempt.round = job->spec->round;
    node->todo.attempt.waited_from_us = from_us;

    if (worker->ready) { /* the next one's turn */
        TAILQ_REMOVE(&worker->pool->ready, worker, ready_link);
        TAILQ_INSERT_TAIL(&worker->pool->ready, worker, ready_link);
    }
    worker_check_ready(owner, worker);
}

/* The job that is to run next and may: those of tenants and keys at their limit step aside. */
static struct job *choose_job(struct owner *owner, struct pool *pool,
                              const struct sched_ageing *ageing)
{
    struct sched_job *first;

    while ((first = sched_peek(&pool->sched, ageing, owner->wall_us)) != NULL) {
        struct job *job = HEAP_ENTRY(first, struct job, sched);

        if (!limit_park(job))
            return job;
    }
    pool_check_busy(owner, pool);
    return NULL;
}

/* One job of the pool; false when none can be sent. */
static bool pool_dispatch(struct owner *owner, struct pool *pool)
{
    struct sched_ageing ageing = {owner->options.ageing_percent, owner->options.ageing_after_us};
    struct worker *worker;
    struct sched_job *taken;
    struct job *job;

    if (TAILQ_EMPTY(&pool->ready))
        return false;
    job = choose_job(owner, pool, &ageing);
    if (job == NULL)
        return false;
    if (job_expire(owner, job))
        return true;
    if (switch_holds(owner, job)) {
        job_move(owner, job, JOB_PARKED);
        return true;
    }
    if (delayed_bars(owner, job)) {
        delayed_bar(owner, job);
        return true;
    }
    worker = choose_worker(pool, job);
    if (worker == NULL)
        return false;
    taken = sched_take(&pool->sched, &ageing, owner->wall_us);
    assert(taken == &job->sched);
    attempt_send(owner, job, worker);
    return true;
}

void dispatch_run(struct owner *owner)
{
    struct pool *pool, *next;

    TAILQ_FOREACH_SAFE(pool, &owner->busy, busy_link, next)
    {
        while (dispatch_allowed(owner)) {
            if (owner->token_count == UINT32_MAX) {
                owner_stop(owner, ERR_STALE, "tokens of epoch %u are used up", owner->epoch);
                return;
            }
            if (!pool_dispatch(owner, pool))
                break;
        }
    }
}

void owner_on_attempt_reported(struct owner *owner, uint64_t token, int64_t offset)
{
    struct sent *sent;

    HASH_FIND(hh, owner->sent, &token, sizeof(token), sent);
    if (sent == NULL)
        return;
    HASH_DEL(owner->sent, sent);
    sent->worker->unreported--;
    if (offset > sent->worker->last_offset)
        sent->worker->last_offset = offset;
    if (sent->job != NULL) {
        sent->job->sent = NULL;
        if (offset >= 0)
            sent->job->dispatch_offset = offset;
        else if (owner->phase != OWNER_OVER)
            job_on_handed_back(owner, sent->job, "its Attempt could not be produced");
    }
    worker_unref(&sent->worker);
    free(sent);
}

void dispatch_revoke(struct owner *owner, uint64_t token, struct worker *worker,
                     const struct wire_id *job)
{
    struct todo_node *node;

    if (worker == NULL || worker->pool == NULL)
        return;
    node = todo_add(owner, OWNER_TODO_REVOKE);
    node->worker = worker_ref(worker);
    node->todo.revoke.pool = WIRE_TEXT_OF(worker->pool->name);
    node->todo.revoke.partition = worker->partition;
    node->todo.revoke.message = (struct message_revoke){
        .token = token,
        .shard = owner->shard,
        .worker = WIRE_TEXT_OF(worker->key.name),
        .boot = worker->key.boot,
        .job = *job,
    };
}
