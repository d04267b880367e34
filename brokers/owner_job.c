/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Jobs in memory: where each one waits, its timer, and what the end of an attempt means.
 *
 *             insert or retry out            due               taken
 *   arrival ─▶ HELD ───────────▶ DELAYED ─────────▶ WAITING ─────────▶ RUNNING
 *               ▲  └────────────────────────────────▲                    │
 *               └── attempt ended, budget left ──────────────────────────┤
 *        taken while a kill switch is on: PARKED until it is off          │
 *                                            ENDED ◀── final ────────────┘
 *
 * The class of an error decides (schema/error_classes.def): which budget pays, and whether the job
 * goes back to waiting. Attempt n+1 is dispatched only after the flush that ended attempt n
 * (PROTOCOL 20), so an ended job is HELD until its flush is back.
 */

#include <stdlib.h>
#include <string.h>

#include "brokers/owner_int.h"

#define FREE_LOSS_DELAY_MS 50 /* a job that is lost again and again slows down */
#define FREE_LOSS_DELAY_MS_MAX 5000

struct job *job_find(struct owner *owner, const struct wire_id *id)
{
    struct job *job;

    HASH_FIND(hh, owner->jobs, id, sizeof(*id), job);
    return job;
}

static bool place_waits(enum job_place place)
{
    return place == JOB_HELD || place == JOB_DELAYED || place == JOB_WAITING ||
           place == JOB_BARRED || place == JOB_PARKED;
}

/* Adds the job to the counts of its place, or takes it out of them (sign -1). */
static void job_count(struct owner *owner, const struct job *job, int sign)
{
    struct lane *lane = job->lane;
    enum job_rank rank = lane->sched.rank;
    uint64_t one = (uint64_t)(int64_t)sign;
    uint64_t size = one * job_spec_size(job->spec);

    if (place_waits(job->place)) {
        lane->waiting += one;
        lane->waiting_bytes += size;
        lane->pool->waiting[rank] += one;
        owner->stats.waiting_in_memory += one;
        owner->stats.waiting_bytes += size;
        if (job->attempt_count > 0 && job->place != JOB_WAITING)
            delayed_count(owner, lane->delayer, sign, job_spec_size(job->spec));
        owner->stats.barred += job->place == JOB_BARRED ? one : 0;
    }
    if (job->place == JOB_DELAYED)
        owner->stats.delayed += one;
    if (job->place == JOB_PARKED)
        owner->stats.parked += one;
    if (job->place == JOB_RUNNING) {
        lane->pool->running[rank] += one;
        owner->stats.running += one;
        limit_count(owner, job, sign);
    }
}

static uint64_t job_due_us(const struct owner *owner, const struct job *job)
{
    uint64_t due = job->spec->total_deadline_us;
    uint64_t run;

    if (!job->certain || job->place == JOB_ENDED)
        return UINT64_MAX;
    if (job->place == JOB_RUNNING) {
        run = job->run_us + owner->options.run_grace_us;
        if (job->spec->submit.run_limit_ms < (UINT64_MAX - run) / 1000)
            run += job->spec->submit.run_limit_ms * 1000;
        else
            run = UINT64_MAX;
        return run < due ? run : due;
    }
    if (!job->started && job->spec->start_deadline_us < due)
        due = job->spec->start_deadline_us;
    if (job->place == JOB_DELAYED && job->due_us < due)
        due = job->due_us;
    return due;
}

static void job_set_timer(struct owner *owner, struct job *job)
{
    uint64_t due = job_due_us(owner, job);

    heap_remove(&owner->timers, &job->timer);
    if (due != UINT64_MAX)
        heap_push(&owner->timers, &job->timer, due, job->spec->seq);
}

void job_move(struct owner *owner, struct job *job, enum job_place place)
{
    struct pool *pool = job->lane->pool;

    if (job->place == JOB_WAITING)
        sched_remove(&pool->sched, &job->sched);
    if (job->place == JOB_BARRED)
        delayed_unbar(owner, job);
    if (job->place == JOB_PARKED)
        TAILQ_REMOVE(&owner->parked, job, parked_link);
    job_count(owner, job, -1);
    job->place = place;
    job_count(owner, job, 1);
    if (place == JOB_PARKED)
        TAILQ_INSERT_TAIL(&owner->parked, job, parked_link);
    if (place == JOB_WAITING) {
        job->sched.accepted_us = job->spec->queued_us;
        sched_push(&pool->sched, &job->flow->sched, &job->sched, job->spec->start_deadline_us,
                   job->spec->seq);
    }
    job_set_timer(owner, job);
    pool_check_busy(owner, pool);
}

struct job *job_add(struct owner *owner, struct job_spec *spec)
{
    struct job *job = xcalloc(1, sizeof(*job));

    job->spec = spec;
    job->lane = lane_get(owner, spec);
    job->lane->jobs++;
    job->flow = limit_flow(owner, job->lane, spec->submit.key_prefix);
    job->flow->jobs++;
    job->sched.flow = &job->flow->sched;
    job->sched.slot_count = spec->slot_count;
    job->state = JOB_QUEUED;
    job->state_us = spec->queued_us;
    job->place = JOB_HELD;
    job->dispatch_offset = -1;
    TAILQ_INIT(&job->cancels);
    HASH_ADD_KEYPTR(hh, owner->jobs, &spec->submit.id, sizeof(struct wire_id), job);
    job_count(owner, job, 1);
    return job;
}

void job_take_spec(struct owner *owner, struct job *job, struct job_spec *spec)
{
    bool waited = job->place == JOB_WAITING;

    if (waited)
        job_move(owner, job, JOB_HELD);
    job_count(owner, job, -1);
    HASH_DEL(owner->jobs, job);
    job_spec_unref(&job->spec);
    job->spec = spec;
    HASH_ADD_KEYPTR(hh, owner->jobs, &spec->submit.id, sizeof(struct wire_id), job);
    job_count(owner, job, 1);
    if (waited)
        job_wait(owner, job);
}

void job_change_lane(struct owner *owner, struct job *job, struct job_spec *spec)
{
    if (job->place == JOB_WAITING || job->place == JOB_PARKED || job->place == JOB_BARRED)
        job_move(owner, job, JOB_HELD);
    job_count(owner, job, -1);
    HASH_DEL(owner->jobs, job);
    job->lane->jobs--;
    job->flow->jobs--;
    job_spec_unref(&job->spec);
    job->spec = spec;
    job->lane = lane_get(owner, spec);
    job->lane->jobs++;
    job->flow = limit_flow(owner, job->lane, spec->submit.key_prefix);
    job->flow->jobs++;
    job->sched.flow = &job->flow->sched;
    HASH_ADD_KEYPTR(hh, owner->jobs, &spec->submit.id, sizeof(struct wire_id), job);
    job_count(owner, job, 1);
}

struct job *job_add_row(struct owner *owner, struct ledger_row *row)
{
    struct job *job = job_add(owner, TAKE(row->spec));
    bool runs = row->state == JOB_IN_PROGRESS && row->token > row->fence;

    job_count(owner, job, -1);
    job->row = true;
    job->certain = true;
    job->fence = row->fence;
    job->attempt_count = row->attempt_count;
    if (runs && job->attempt_count > 0)
        job->attempt_count--; /* the attempt that runs is counted when it is adopted */
    job->user_failures = row->user_failures;
    job->oom_failures = row->oom_failures;
    job->lost_failures = row->lost_failures;
    job->alone = row->oom_failures > 0 || row->lost_failures >= JOB_LOST_ATTEMPTS_SHARED;
    job->due_us = row->due_us;
    job->started = row->user_failures + row->oom_failures + row->lost_failures > 0 ||
                   row->due_us > 0; /* put off */
    job_count(owner, job, 1);
    if (runs)
        job_adopt(owner, job, row->token, NULL);
    job_set_timer(owner, job);
    return job;
}

void job_remove(struct owner *owner, struct job *job)
{
    struct pool *pool = job->lane->pool;

    assert(!job->in_flush && TAILQ_EMPTY(&job->cancels));
    job_move(owner, job, JOB_ENDED);
    job_attach(job, NULL);
    flush_unstage(owner, job);
    if (job->sent != NULL)
        job->sent->job = NULL;
    HASH_DEL(owner->jobs, job);
    job->lane->jobs--;
    job->flow->jobs--;
    pin_write(&job->pins);
    ack_keep_all(owner, job);
    verdict_free(&job->verdicts);
    job_spec_unref(&job->spec);
    free(job->finish);
    free(job);
    pool_check_busy(owner, pool);
}

void job_wait(struct owner *owner, struct job *job)
{
    job_move(owner, job, job->due_us > owner->wall_us ? JOB_DELAYED : JOB_WAITING);
}

/* The job is in the ledger as it is in memory: what waited for that goes on. */
void job_settle(struct owner *owner, struct job *job)
{
    evidence_resolve(owner, job);
    cancel_apply_all(owner, job);
    if (job->place != JOB_HELD || job->stage != STAGE_NONE || job->in_flush)
        return;
    if (owner->phase == OWNER_LIVE && owner_guarded(owner, OWNER_GUARD_EXPIRY) &&
        job_expire(owner, job))
        return; /* forgotten now, it would lie behind the cursor of owner_expiry.c */
    if (lane_must_forget(job->lane, job)) {
        job->lane->forgot = true;
        job_remove(owner, job);
        return;
    }
    job_wait(owner, job);
}

/* ---- attempts ---- */

/* Frees the slot; the worker's name stays with the job for its row. */
static void job_leave_worker(struct job *job)
{
    if (!job->on_worker)
        return;
    TAILQ_REMOVE(&job->worker->jobs, job, worker_link);
    job->worker->running--;
    job->worker->used_slots -= job->spec->slot_count;
    job->on_worker = false;
}

void job_attach(struct job *job, struct worker *worker)
{
    struct worker *old = job->worker;

    if (old == worker && job->on_worker)
        return;
    job_leave_worker(job);
    if (old != NULL && job->error_text == old->why) /* which goes with it */
        job->error_text = "its worker's process has ended";
    job->worker = NULL;
    if (worker != NULL) {
        job->worker = worker_ref(worker);
        TAILQ_INSERT_TAIL(&worker->jobs, job, worker_link);
        worker->running++;
        worker->used_slots += job->spec->slot_count;
        job->on_worker = true;
        job->mark = 0;
    }
    worker_unref(&old);
}

/* The token becomes the job's current one. */
static void job_take_token(struct owner *owner, struct job *job, uint64_t token)
{
    job->token = token;
    job->state = JOB_IN_PROGRESS;
    job->state_us = owner->wall_us;
    job->dispatched_us = job->run_us = owner->wall_us;
    job->started_us = 0;
    job->due_us = 0;
    job->dispatch_offset = -1;
    job->adopted = false;
    job->told_end = false;
    job->woken = false;
    job_move(owner, job, JOB_RUNNING);
    job->attempt_count++; /* after the move: counts of waiting jobs go by it */
    job_changed(owner, job, STAGE_LAZY);
}

void job_start(struct owner *owner, struct job *job, struct worker *worker, uint64_t token)
{
    job_take_token(owner, job, token);
    job_attach(job, worker);
}

/* An attempt of an earlier owner goes on as ours; the newest token wins. */
void job_adopt(struct owner *owner, struct job *job, uint64_t token, struct worker *worker)
{
    assert(token > job->fence && token > job->token);
    if (job->token > job->fence)
        job->fence = job->token;
    job_take_token(owner, job, token);
    job->adopted = true;
    job_attach(job, worker == NULL ? owner->unknown : worker);
    owner->unknown->silent_us = 0;
}

/* For how long it had its slot. One that came ahead has waited for it, as its worker can tell. */
static uint64_t job_ran_us(const struct owner *owner, const struct job *job,
                           const struct message_finished *finished)
{
    uint64_t ran_us = owner->wall_us > job->dispatched_us ? owner->wall_us - job->dispatched_us : 0;

    if (finished == NULL || finished->started_us == 0 ||
        finished->finished_us <= finished->started_us)
        return ran_us;
    return finished->finished_us - finished->started_us < ran_us
               ? finished->finished_us - finished->started_us
               : ran_us;
}

/* The token is over: its slot is free, its row in `attempt` is noted. */
static void job_end_attempt(struct owner *owner, struct job *job, enum error_class class,
                            const struct message_finished *finished)
{
    uint64_t ran_us = job_ran_us(owner, job, finished);

    job->ended = (struct ended){
        .present = true,
        .token = job->token,
        .boot = finished != NULL      ? finished->boot
                : job->worker != NULL ? job->worker->key.boot
                                      : 0,
        .dispatched_us = job->dispatched_us,
        .started_us = job->started_us,
        .ended_us = finished != NULL && finished->finished_us > 0 ? finished->finished_us
                                                                  : owner->wall_us,
        .number = job->attempt_count,
        .batch_count = finished != NULL ? (uint32_t)finished->batch_count : 0,
        .class = class,
    };
    sched_settle(&job->lane->pool->sched, &job->sched, ran_us, class == ERROR_CLASS_NONE);
    job->error_class = class;
    job->error_text = NULL;
    job->fence = job->token;
    job->token = 0;
    if (job->sent != NULL) {
        job->sent->job = NULL;
        job->sent = NULL;
    }
    job_leave_worker(job);
}

void job_end_final(struct owner *owner, struct job *job, enum job_state state,
                   enum error_class class, const char *why)
{
    if (job->token > job->fence) {
        job_end_attempt(owner, job, class, NULL);
        job->revoke = true;
    }
    job->state = state;
    job->state_us = owner->wall_us;
    job->error_class = class;
    job->error_text = why;
    job->due_us = 0;
    job_move(owner, job, JOB_ENDED);
    job_changed(owner, job, STAGE_URGENT);
}

static void job_retry(struct owner *owner, struct job *job, uint64_t delay_ms)
{
    job->state = JOB_QUEUED;
    job->state_us = owner->wall_us;
    job->due_us = delay_ms == 0 ? 0 : owner->wall_us + delay_ms * 1000;
    job_move(owner, job, JOB_HELD);
    job_changed(owner, job, STAGE_URGENT);
    owner->stats.retried++;
    if (!owner_guarded(owner, OWNER_GUARD_FIRST_ONLY))
        job_wait(owner, job);
}

static void job_fail(struct owner *owner, struct job *job)
{
    job->state = JOB_FAILED;
    job->state_us = owner->wall_us;
    job->due_us = 0;
    job_move(owner, job, JOB_ENDED);
    job_changed(owner, job, STAGE_URGENT);
}

static uint64_t user_delay_ms(struct owner *owner, const struct job *job, uint64_t retry_after_ms)
{
    const struct message_submit *submit = &job->spec->submit;
    uint64_t initial = submit->initial_delay_ms, most = submit->max_delay_ms;
    uint64_t delay;

    if (initial > JOB_INITIAL_DELAY_MS_MAX)
        initial = JOB_INITIAL_DELAY_MS_MAX;
    if (most > JOB_MAX_DELAY_MS_MAX)
        most = JOB_MAX_DELAY_MS_MAX;
    delay = job_backoff_ms(initial, most, job->user_failures, rng_unit(&owner->rng));
    if (retry_after_ms > JOB_MAX_DELAY_MS_MAX)
        retry_after_ms = JOB_MAX_DELAY_MS_MAX;
    return delay > retry_after_ms ? delay : retry_after_ms;
}

/* An attempt that nobody is to blame for: the job waits a little longer each time. */
static void job_retry_free(struct owner *owner, struct job *job)
{
    job->free_losses++;
    job_retry(owner, job,
              job->free_losses == 1 ? 0
                                    : job_backoff_ms(FREE_LOSS_DELAY_MS, FREE_LOSS_DELAY_MS_MAX,
                                                     job->free_losses - 1, rng_unit(&owner->rng)));
}

/* An attempt that has nothing to do before a time gives its slot back until then: a run of a chain
 * that waits. One that an earlier owner began may have been woken, of which only that owner knew:
 * it has another attempt, which finds out. */
static void job_put_off(struct owner *owner, struct job *job, uint64_t delay_ms)
{
    if (job->woken || job->adopted)
        delay_ms = 0;
    job_retry(owner, job, delay_ms > JOB_PUT_OFF_MS_MAX ? JOB_PUT_OFF_MS_MAX : delay_ms);
}

/* Who waits for a sync call is told what its model says; only a model that could not take it is
 * tried again (SURFACE 2.6). */
static bool answers_at_once(const struct job *job, enum error_class class)
{
    return job->spec->submit.sync && class != ERROR_CLASS_MODEL_UNAVAILABLE &&
           class != ERROR_CLASS_MODEL_NOT_READY;
}

/* The attempt has ended with this class: charge, then retry or fail. */
static void job_charge(struct owner *owner, struct job *job, enum error_class class,
                       uint64_t retry_after_ms)
{
    uint64_t most = job->spec->submit.max_attempts;

    if (error_class_final(class)) {
        job_fail(owner, job);
        return;
    }
    switch (error_class_budget(class)) {
    case ERROR_BUDGET_NONE:
        job_retry_free(owner, job);
        return;
    case ERROR_BUDGET_USER:
        if (++job->user_failures >= (most > JOB_ATTEMPTS_MAX ? JOB_ATTEMPTS_MAX : most) ||
            answers_at_once(job, class))
            job_fail(owner, job);
        else
            job_retry(owner, job, user_delay_ms(owner, job, retry_after_ms));
        return;
    case ERROR_BUDGET_OOM:
        job->alone = true;
        if (++job->oom_failures >= JOB_OOM_ATTEMPTS_MAX)
            job_fail(owner, job);
        else
            job_retry(owner, job, 0);
        return;
    case ERROR_BUDGET_LOST:
        job->alone = job->alone || job->lost_failures + 1 >= JOB_LOST_ATTEMPTS_SHARED;
        if (++job->lost_failures >= JOB_LOST_ATTEMPTS_MAX)
            job_fail(owner, job);
        else
            job_retry(owner, job, 0);
        return;
    }
    NEVER("error budget is out of range");
}

/* The class that we take a worker's word for. */
static enum error_class finished_class(const struct message_finished *finished)
{
    if (!error_class_known(finished->error_class))
        return ERROR_CLASS_MODEL_ERROR; /* of a newer worker */
    if (finished->error_class == ERROR_CLASS_CANCELED)
        return ERROR_CLASS_HANDED_BACK; /* nobody but us cancels */
    return (enum error_class)finished->error_class;
}

void job_on_finish(struct owner *owner, struct job *job, struct finish **finish_p)
{
    struct finish *finish = TAKE(*finish_p);
    enum error_class class = finished_class(&finish->message);

    free(job->finish);
    job->finish = finish;
    if (finish->message.started_us > 0) {
        job->started_us = finish->message.started_us;
        job->started = true;
    }
    job_end_attempt(owner, job, class, &finish->message);
    job->told_end = true;
    owner->stats.finished++;
    if (class == ERROR_CLASS_NONE) {
        job->state = JOB_SUCCEEDED;
        job->state_us = owner->wall_us;
        job->final_token = job->fence;
        job_move(owner, job, JOB_ENDED);
        job_changed(owner, job, STAGE_URGENT);
        return;
    }
    if (class == ERROR_CLASS_HANDED_BACK)
        owner->stats.handed_back++;
    if (class == ERROR_CLASS_EXPIRED) {
        job_end_final(owner, job, JOB_EXPIRED, class, NULL);
    } else if (class == ERROR_CLASS_HANDED_BACK && finish->message.retry_after_ms > 0) {
        job_put_off(owner, job, finish->message.retry_after_ms);
    } else {
        job_charge(owner, job, class, finish->message.retry_after_ms);
    }
    if (job->place == JOB_ENDED)
        job->final_token = job->fence;
}

void job_on_lost(struct owner *owner, struct job *job, bool counts, const char *why)
{
    enum error_class class = job->worker != NULL && job->worker->resumes
                                 ? ERROR_CLASS_LOST_COORDINATOR
                                 : ERROR_CLASS_LOST_WORKER;

    job_end_attempt(owner, job, class, NULL);
    job->revoke = true;
    owner->stats.lost++;
    if (counts)
        job_charge(owner, job, class, 0);
    else
        job_retry_free(owner, job);
    job->error_text = why;
}

void job_on_handed_back(struct owner *owner, struct job *job, const char *why)
{
    job_end_attempt(owner, job, ERROR_CLASS_HANDED_BACK, NULL);
    job->revoke = true;
    owner->stats.handed_back++;
    job_retry_free(owner, job);
    job->error_text = why;
}

/* ---- time ---- */

bool job_expire(struct owner *owner, struct job *job)
{
    const char *why;

    if (job->spec->total_deadline_us <= owner->wall_us)
        why = "total deadline has passed";
    else if (job->place != JOB_RUNNING && !job->started &&
             job->spec->start_deadline_us <= owner->wall_us)
        why = "start deadline has passed";
    else
        return false;
    owner->stats.expired++;
    job_end_final(owner, job, JOB_EXPIRED, ERROR_CLASS_EXPIRED, why);
    return true;
}

static void job_on_timer(struct owner *owner, struct job *job)
{
    if (job_due_us(owner, job) > owner->wall_us) {
        job_set_timer(owner, job); /* it was moved since */
        return;
    }
    if (job_expire(owner, job))
        return;
    if (job->place == JOB_RUNNING && !worker_words_stay_known(owner)) { /* it may be over */
        heap_push(&owner->timers, &job->timer, owner->wall_us + owner->options.caught_up_us,
                  job->spec->seq);
        return;
    }
    if (job->place == JOB_RUNNING) {
        job_end_attempt(owner, job, ERROR_CLASS_MODEL_TIMEOUT, NULL);
        job->revoke = true;
        job_charge(owner, job, ERROR_CLASS_MODEL_TIMEOUT, 0);
        job->error_text = "run limit has passed and the worker did not end the run";
        return;
    }
    assert(job->place == JOB_DELAYED);
    job_wait(owner, job);
}

void job_run_timers(struct owner *owner)
{
    struct heap_node *node;

    while ((node = heap_first(&owner->timers)) != NULL && node->key <= owner->wall_us) {
        struct job *job = HEAP_ENTRY(node, struct job, timer);

        heap_remove(&owner->timers, node);
        job_on_timer(owner, job);
    }
}
