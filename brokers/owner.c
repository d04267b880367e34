/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Life of an owner, its events and its clock. What an event means is decided in the file of its
 * noun (owner_int.h lists them); to-dos are worked out in owner_todo.c.
 */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "brokers/owner_int.h"
#include "schema/job_id.h"

#define LEASE_CHECK_US 20000 /* leases are aged this often; finer costs time and tells nothing */

const struct owner_options owner_options_default = {
    .row_delay_us = 100000,
    .row_delay_bulk_us = 400000,
    .run_ahead_us = 1000000,
    .run_ahead_bytes = 64u << 20,
    .lease_us = 4000000,
    .caught_up_us = 500000,
    .publish_idle_us = 1000000,
    .flush_busy_jobs = 16,
    .flush_gap_us = 8000,
    .flush_full_jobs = 256,
    .window_jobs = 20000,
    .window_bytes = 64u << 20,
    .load_jobs = 1000,
    .commands = 1000,
    .command_poll_us = 5000000,
    .workers_max = 1024,
    .run_grace_us = 30000000,
    .ageing_percent = 5,
    .ageing_after_us = 30000000,
    .flush_jobs = FLUSH_JOBS_MAX,
    .delayed_jobs = 100000,
    .delayed_bytes = 256u << 20,
    .seed = 1,
};

static void owner_take_rows(struct owner *owner, struct ledger_takeover *takeover)
{
    for (size_t i = 0; i < takeover->lane_count; i++)
        lane_adopt_takeover(owner, &takeover->lanes[i]);
    for (size_t i = 0; i < takeover->row_count; i++) {
        struct job *job = job_add_row(owner, &takeover->rows[i]);

        if (job->place == JOB_HELD)
            job_wait(owner, job);
    }
}

struct owner *owner_new(const struct owner_options *options, struct ledger_takeover *takeover,
                        struct owner_ends ends, uint64_t now_mono_us, uint64_t now_wall_us)
{
    struct owner *owner = xcalloc(1, sizeof(*owner));

    owner->options = *options;
    owner->ends = ends;
    owner->shard = takeover->shard;
    owner->epoch = takeover->epoch;
    owner->now_us = owner->leases_us = owner->flushed_us = now_mono_us;
    owner->wall_us = now_wall_us;
    owner->intake.next = takeover->intake_floor < 0 ? 0 : takeover->intake_floor;
    owner->outcome.next = takeover->outcome_floor < 0 ? 0 : takeover->outcome_floor;
    owner->flushed_intake = owner->intake.next;
    owner->flushed_outcome = owner->outcome.next;
    owner->commands.next = owner->flushed_commands = (int64_t)takeover->command_floor;
    owner->commands_noticed = true; /* what came before: a notification is heard by who is there */
    owner->published_epoch = takeover->published_epoch;
    owner->published_number = owner->flushed_published = takeover->published_number;
    owner->decoder = wire_decoder_new();
    buf_init(&owner->scratch, FLUSH_BYTES_MAX);
    rng_seed(&owner->rng, options->seed);
    TAILQ_INIT(&owner->busy);
    TAILQ_INIT(&owner->spilled);
    TAILQ_INIT(&owner->barring);
    TAILQ_INIT(&owner->lazy);
    TAILQ_INIT(&owner->lazy_bulk);
    TAILQ_INIT(&owner->urgent);
    TAILQ_INIT(&owner->parked);
    TAILQ_INIT(&owner->unpublished);
    TAILQ_INIT(&owner->cancels);
    TAILQ_INIT(&owner->unpublished_cancels);
    TAILQ_INIT(&owner->commands_unsent);
    owner->acks_tail = &owner->acks;
    TAILQ_INIT(&owner->todos);
    owner->unknown = worker_new(owner, (struct wire_text){0}, 0);
    owner_take_rows(owner, takeover);
    publish_takeover(owner, takeover);
    return owner;
}

static void owner_free_jobs(struct owner *owner)
{
    struct job *job, *next;
    struct sent *sent, *next_sent;

    cancel_free_all(owner);
    HASH_ITER(hh, owner->sent, sent, next_sent)
    {
        HASH_DEL(owner->sent, sent);
        worker_unref(&sent->worker);
        free(sent);
    }
    HASH_ITER(hh, owner->jobs, job, next)
    {
        job->in_flush = false;
        job->sent = NULL;
        job_remove(owner, job);
    }
    heap_done(&owner->timers);
}

void owner_free(struct owner **owner_p)
{
    struct owner *owner = TAKE(*owner_p);
    struct flush_batch *batch;
    struct todo_node *node;

    if (owner == NULL)
        return;
    owner->phase = OWNER_OVER;
    owner_free_jobs(owner);
    command_free_all(owner);
    switch_free_all(owner);
    takeover_free(owner);
    flush_batch_free(&owner->batch);
    while ((batch = TAILQ_FIRST(&owner->unpublished)) != NULL) {
        TAILQ_REMOVE(&owner->unpublished, batch, link);
        flush_batch_free(&batch);
    }
    todo_free(&owner->last_todo);
    while ((node = TAILQ_FIRST(&owner->todos)) != NULL) {
        TAILQ_REMOVE(&owner->todos, node, link);
        todo_free(&node);
    }
    worker_free_all(owner);
    lane_free_all(owner);
    limit_free_all(owner);
    pin_log_done(&owner->intake);
    pin_log_done(&owner->outcome);
    pin_log_done(&owner->commands);
    buf_done(&owner->scratch);
    wire_decoder_free(&owner->decoder);
    free(owner);
}

void owner_stop(struct owner *owner, int code, const char *fmt, ...)
{
    struct todo_node *node = todo_add(owner, OWNER_TODO_STOP);
    va_list args;

    node->todo.stop.code = code;
    va_start(args, fmt);
    (void)vsnprintf(node->todo.stop.why, sizeof(node->todo.stop.why), fmt, args);
    va_end(args);
    owner->phase = OWNER_OVER;
}

/* ---- intake ---- */

/* A record that is no message of ours: kept aside before the floor passes it. */
static void intake_dead(struct owner *owner, struct pin *pin, const void *bytes, size_t size,
                        const struct err *err)
{
    struct todo_node *node;

    if (err->code == ERR_UNSUPPORTED) {
        owner_stop(owner, ERR_UNSUPPORTED, "intake record %lld: %.120s", (long long)pin->offset,
                   err->text);
        return;
    }
    owner->stats.dead_records++;
    node = todo_add(owner, OWNER_TODO_DEAD);
    node->pin = pin;
    node->memory = xmalloc(size + sizeof(err->text));
    memcpy(node->memory, bytes, size);
    memcpy((char *)node->memory + size, err->text, sizeof(err->text));
    node->todo.dead.offset = pin->offset;
    node->todo.dead.bytes = node->memory;
    node->todo.dead.size = size;
    node->todo.dead.why = (char *)node->memory + size;
}

static int intake_submit(struct owner *owner, struct pin *pin, const void *bytes, size_t size,
                         struct err *err)
{
    OWNED(job_spec_unref) struct job_spec *spec = NULL;
    struct job *job;
    int r;

    r = job_spec_new(owner->decoder, bytes, size, (uint64_t)pin->offset, pin->append_us, &spec,
                     err);
    if (r < 0)
        return r;
    if (job_id_shard(&spec->submit.id) != owner->shard)
        return err_set(err, ERR_MALFORMED, "submit.id belongs to shard %u, not to %u",
                       job_id_shard(&spec->submit.id), owner->shard);
    if (job_find(owner, &spec->submit.id) != NULL) {
        owner->stats.duplicate_records++;
        pin_write(&pin);
        return 0;
    }
    job = job_add(owner, TAKE(spec));
    pin_link(&job->pins, pin);
    if (!lane_admits(owner, job->lane))
        lane_spill(owner, job->lane, pin->offset - 1);
    job->certain = (pin->offset >= owner->ends.intake_end && !job->spec->submit.repeat) ||
                   !owner_guarded(owner, OWNER_GUARD_LOOKUP);
    if (!job->certain) {
        job_changed(owner, job, STAGE_URGENT);
        return 0;
    }
    owner->stats.accepted++;
    job_changed(owner, job, STAGE_LAZY);
    if (!job->lane->spilled)
        job_wait(owner, job);
    return 0;
}

static int intake_cancel(struct owner *owner, struct pin *pin, const void *bytes, size_t size,
                         struct err *err)
{
    struct message message;
    int r = message_decode(owner->decoder, bytes, size, &message, err);

    if (r < 0)
        return r;
    cancel_on_record(owner, &message.cancel, pin);
    return 0;
}

static int intake_place(struct owner *owner, struct pin *pin, const void *bytes, size_t size,
                        struct err *err)
{
    struct message message;
    int r = message_decode(owner->decoder, bytes, size, &message, err);

    if (r == 0)
        command_on_place(owner, &message.place, pin);
    return r;
}

void owner_on_intake(struct owner *owner, int64_t offset, uint64_t append_us, const void *bytes,
                     size_t size)
{
    struct pin *pin;
    struct err err;
    uint32_t type;
    int r;

    if (owner->phase == OWNER_OVER || offset < owner->intake.next)
        return;
    owner->intake.next = offset + 1;
    owner->intake.append_us = append_us;
    pin = pin_add(&owner->intake, offset, append_us);
    r = wire_peek_type(bytes, size, &type, &err);
    if (r == 0 && type == MESSAGE_SUBMIT)
        r = intake_submit(owner, pin, bytes, size, &err);
    else if (r == 0 && type == MESSAGE_CANCEL)
        r = intake_cancel(owner, pin, bytes, size, &err);
    else if (r == 0 && type == MESSAGE_PLACE)
        r = intake_place(owner, pin, bytes, size, &err);
    else if (r == 0)
        r = err_set(&err, ERR_UNSUPPORTED, "message type %u does not belong into intake", type);
    if (r < 0)
        intake_dead(owner, pin, bytes, size, &err);
}

void owner_on_intake_end(struct owner *owner, uint64_t now_wall_us)
{
    owner->intake_at_end = true;
    if (now_wall_us > owner->intake.append_us)
        owner->intake.append_us = now_wall_us;
}

/* ---- outcome ---- */

static int outcome_finished(struct owner *owner, int64_t offset, const void *bytes, size_t size,
                            struct err *err)
{
    OWNED(mem_free) struct finish *finish = xmalloc(sizeof(*finish) + size);
    struct worker_key key;
    struct worker *worker;
    struct message message;
    int r;

    memcpy(finish + 1, bytes, size);
    r = message_decode(owner->decoder, finish + 1, size, &message, err);
    if (r < 0)
        return r;
    finish->message = message.finished;
    finish->size = sizeof(*finish) + size;
    worker_on_life(owner, message.finished.worker, message.finished.boot);
    key = worker_key_of(message.finished.worker, message.finished.boot);
    HASH_FIND(hh, owner->workers, &key, sizeof(key), worker);
    worker = worker != NULL ? worker_ref(worker)
                            : worker_new(owner, message.finished.worker, message.finished.boot);
    evidence_see(owner, &message.finished.job, message.finished.token, worker, 0, &finish,
                 pin_add(&owner->outcome, offset, 0));
    worker_on_credit(owner, worker, message.finished.granted);
    worker_unref(&worker);
    return 0;
}

static int outcome_other(struct owner *owner, const void *bytes, size_t size, struct err *err)
{
    struct message message;
    int r = message_decode(owner->decoder, bytes, size, &message, err);

    if (r < 0)
        return r;
    switch (message.type) {
    case MESSAGE_HELLO:
        worker_on_hello(owner, &message.hello);
        return 0;
    case MESSAGE_HEARTBEAT:
        worker_on_heartbeat(owner, &message.heartbeat);
        return 0;
    case MESSAGE_STARTED:
        evidence_see(owner, &message.started.job, message.started.token, NULL,
                     message.started.started_us, NULL, NULL);
        return 0;
    case MESSAGE_BYE:
        worker_on_bye(owner, &message.bye);
        return 0;
    case MESSAGE_GONE:
        worker_on_gone(owner, &message.gone);
        return 0;
    default:
        return err_set(err, ERR_MALFORMED, "%s does not belong into outcome",
                       message_type_name(message.type));
    }
}

void owner_on_outcome(struct owner *owner, int64_t offset, const void *bytes, size_t size)
{
    struct err err;
    uint32_t type;
    int r;

    if (owner->phase == OWNER_OVER || offset < owner->outcome.next)
        return;
    owner->outcome.next = offset + 1;
    r = wire_peek_type(bytes, size, &type, &err);
    if (r == 0 && type == MESSAGE_FINISHED)
        r = outcome_finished(owner, offset, bytes, size, &err);
    else if (r == 0)
        r = outcome_other(owner, bytes, size, &err);
    if (r == ERR_UNSUPPORTED)
        owner_stop(owner, ERR_UNSUPPORTED, "outcome record %lld: %.120s", (long long)offset,
                   err.text);
    else if (r < 0)
        owner->stats.dead_records++; /* a worker's fault; its attempt ends by lease or run limit */
}

void owner_on_outcome_end(struct owner *owner, uint64_t now_mono_us)
{
    owner->outcome_at_end = true;
    if (now_mono_us - owner->outcome_end_us > owner->options.caught_up_us)
        owner->outcome_known_us = now_mono_us;
    owner->outcome_end_us = now_mono_us;
}

/* ---- time ---- */

void owner_tick(struct owner *owner, uint64_t now_mono_us, uint64_t now_wall_us)
{
    uint64_t elapsed_us;

    if (now_mono_us > owner->now_us)
        owner->now_us = now_mono_us;
    if (now_wall_us > owner->wall_us)
        owner->wall_us = now_wall_us;
    elapsed_us = owner->now_us - owner->leases_us;
    if (owner->phase != OWNER_LIVE || elapsed_us < LEASE_CHECK_US) {
        if (owner->phase == OWNER_LIVE)
            job_run_timers(owner);
        return;
    }
    owner->leases_us = owner->now_us;
    worker_age_leases(owner, elapsed_us);
    job_run_timers(owner);
}

uint64_t owner_next_due_us(const struct owner *owner)
{
    const struct heap_node *timer = heap_first(&owner->timers);
    uint64_t due = flush_due_us(owner);
    uint64_t wait_us;

    if (owner->phase == OWNER_OVER)
        return UINT64_MAX;
    if (timer != NULL && owner->phase == OWNER_LIVE) {
        wait_us = timer->key > owner->wall_us ? timer->key - owner->wall_us : 0;
        if (wait_us < UINT64_MAX - owner->now_us && owner->now_us + wait_us < due)
            due = owner->now_us + wait_us;
    }
    if (expiry_due_us(owner) < due)
        due = expiry_due_us(owner);
    if (owner->phase == OWNER_LIVE && command_due_us(owner) < due)
        due = command_due_us(owner);
    if (owner->stats.workers > 0 && owner->leases_us + LEASE_CHECK_US < due)
        due = owner->leases_us + LEASE_CHECK_US;
    return due;
}

void owner_drain(struct owner *owner)
{
    owner->draining = true;
}

bool owner_drained(const struct owner *owner)
{
    return owner->batch == NULL &&
           owner->urgent_count + owner->lazy_count + owner->ack_count == 0 &&
           TAILQ_EMPTY(&owner->unpublished) && TAILQ_EMPTY(&owner->todos);
}

/* ---- inspection ---- */

struct owner_stats owner_stats(const struct owner *owner)
{
    struct owner_stats stats = owner->stats;

    stats.unflushed = owner->urgent_count + owner->lazy_count +
                      (owner->batch != NULL ? owner->batch->flush.job_count : 0);
    stats.unpublished = owner->unpublished_count;
    stats.live = owner->phase == OWNER_LIVE;
    stats.intake_paused = owner->paused;
    return stats;
}

void owner_each_depth(const struct owner *owner,
                      void (*visit)(void *opaque, struct wire_text pool, enum job_rank rank,
                                    uint64_t waiting, uint64_t running),
                      void *opaque)
{
    const struct pool *pool;

    for (pool = owner->pools; pool != NULL; pool = pool->hh.next) {
        for (int rank = 0; rank < JOB_RANK_COUNT; rank++)
            visit(opaque, WIRE_TEXT_OF(pool->name), (enum job_rank)rank, pool->waiting[rank],
                  pool->running[rank]);
    }
}
