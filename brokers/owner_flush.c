/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Flushes: one ledger transaction at a time.
 *
 * A change is staged lazily (a new job, a new token: it waits row_delay for the job to end, so that
 * a short job costs one write; a line of a bulk job, for which nobody waits, row_delay_bulk) or
 * urgently (final, an attempt ended, an insert that must be answered before a dispatch). A flush
 * goes out as soon as something is urgent or old and the previous one is answered; it takes what is
 * urgent and what is old, up to its caps. A flush costs Postgres as much as dozens of rows do, so
 * at a high rate it keeps a gap to the one before.
 *
 * Once composed, a flush commits or this owner ends: FLUSH_RETRY sends the same one again, and a
 * refused row is replaced by its failure under the same number. So what went into it (pins,
 * results, verdicts) belongs to it from then on.
 */

#include <stdlib.h>
#include <string.h>

#include "brokers/owner_int.h"

#define FLOOR_NEWS_US 10000000 /* an idle shard writes how far it has read this often */

static size_t job_change_size(const struct job *job)
{
    return job_spec_size(job->spec) + (job->finish != NULL ? job->finish->size : 0);
}

/* Jobs of a stage, oldest change first. */
static struct job_list *stage_list(struct owner *owner, enum stage stage, size_t **ret_count)
{
    *ret_count = stage == STAGE_URGENT ? &owner->urgent_count : &owner->lazy_count;
    return stage == STAGE_URGENT ? &owner->urgent
           : stage == STAGE_LAZY ? &owner->lazy
                                 : &owner->lazy_bulk;
}

void flush_unstage(struct owner *owner, struct job *job)
{
    struct job_list *list;
    size_t *count;

    if (job->stage == STAGE_NONE)
        return;
    list = stage_list(owner, job->stage, &count);
    TAILQ_REMOVE(list, job, stage_link);
    (*count)--;
    owner->unflushed_bytes -= job->stage_size;
    job->stage = STAGE_NONE;
}

void job_changed(struct owner *owner, struct job *job, enum stage stage)
{
    enum stage before = job->stage;
    struct job_list *list;
    size_t *count;

    if (stage == STAGE_LAZY && job->spec->rank == JOB_RANK_BULK)
        stage = STAGE_LAZY_BULK;
    if (before == STAGE_NONE)
        job->changed_us = owner->now_us;
    if (before >= stage) {
        stage = before;
    }
    if (before == stage && stage != STAGE_URGENT)
        return;
    flush_unstage(owner, job);
    job->stage = stage;
    job->stage_size = job_change_size(job);
    owner->unflushed_bytes += job->stage_size;
    list = stage_list(owner, stage, &count);
    TAILQ_INSERT_TAIL(list, job, stage_link);
    (*count)++;
}

static uint64_t oldest_of(const struct job_list *list)
{
    const struct job *job = TAILQ_FIRST(list);

    return job == NULL ? UINT64_MAX : job->changed_us;
}

/* When the oldest change that is lazy is to be written; UINT64_MAX: there is none. */
static uint64_t lazy_due_us(const struct owner *owner)
{
    uint64_t due = oldest_of(&owner->lazy), due_bulk = oldest_of(&owner->lazy_bulk);

    if (owner->draining)
        return owner->lazy_count > 0 ? owner->now_us : UINT64_MAX;
    if (due != UINT64_MAX)
        due += owner->options.row_delay_us;
    if (due_bulk != UINT64_MAX)
        due_bulk += owner->options.row_delay_bulk_us;
    return due < due_bulk ? due : due_bulk;
}

uint64_t flush_oldest_us(const struct owner *owner)
{
    const struct job_list *const lists[] = {&owner->urgent, &owner->lazy, &owner->lazy_bulk};
    uint64_t oldest = owner->batch != NULL ? owner->batch->oldest_us : UINT64_MAX;

    for (size_t i = 0; i < COUNT_OF(lists); i++) {
        if (oldest_of(lists[i]) < oldest)
            oldest = oldest_of(lists[i]);
    }
    return oldest;
}

/* What is worth a flush without rows, so that the next owner starts later and publishes less. The
 * time up to which intake is written counts too, slowly: without it an id that never arrived would
 * be QUEUED for ever on an idle shard. */
static bool flush_has_news(const struct owner *owner)
{
    return pin_floor(&owner->intake) != owner->flushed_intake ||
           pin_floor(&owner->commands) != owner->flushed_commands ||
           pin_floor(&owner->outcome) != owner->flushed_outcome ||
           owner->published_number != owner->flushed_published ||
           pin_floor_us(&owner->intake) >= owner->flushed_floor_us + FLOOR_NEWS_US;
}

/* Something is urgent: at once, or behind the gap when rows come fast enough to fill it. */
static uint64_t urgent_due_us(const struct owner *owner)
{
    bool busy = owner->flushed_jobs >= owner->options.flush_busy_jobs &&
                owner->urgent_count < owner->options.flush_full_jobs;

    return busy && !owner->draining ? owner->flushed_us + owner->options.flush_gap_us
                                    : owner->now_us;
}

uint64_t flush_due_us(const struct owner *owner)
{
    uint64_t due;

    if (owner->batch != NULL)
        return UINT64_MAX;
    if (owner->urgent_count > 0 || owner->acks != NULL)
        return urgent_due_us(owner);
    due = lazy_due_us(owner);
    if (flush_has_news(owner) && owner->flushed_us + owner->options.publish_idle_us < due)
        due = owner->flushed_us + owner->options.publish_idle_us;
    return due;
}

/* ---- composing ---- */

static struct wire_text job_error_text(const struct job *job, const struct finish *finish)
{
    if (job->error_text != NULL)
        return WIRE_TEXT_OF(job->error_text);
    return finish != NULL ? finish->message.error_message : (struct wire_text){0};
}

static void compose_attempt(struct flush_batch *batch, const struct job *job,
                            const struct flush_item *item)
{
    const struct ended *ended = &job->ended;

    batch->attempts[batch->flush.attempt_count++] = (struct flush_attempt){
        .job = item->spec->submit.id,
        .round = item->spec->round,
        .number = ended->number,
        .token = ended->token,
        .boot = ended->boot,
        .worker = item->worker != NULL ? WIRE_TEXT_OF(item->worker->key.name)
                                       : (struct wire_text){0},
        .device = item->finish != NULL   ? item->finish->message.device
                  : item->worker != NULL ? WIRE_TEXT_OF(item->worker->device)
                                         : (struct wire_text){0},
        .error_message = job_error_text(job, item->finish),
        .dispatched_us = ended->dispatched_us,
        .started_us = ended->started_us,
        .ended_us = ended->ended_us,
        .error_class = ended->class,
        .batch_count = ended->batch_count,
    };
}

static void compose_row(struct flush_job *row, const struct job *job, const struct flush_item *item)
{
    bool answered = job->state == JOB_SUCCEEDED || (job->state == JOB_FAILED && job->told_end);
    const struct message_finished *finished = answered && item->finish != NULL
                                                  ? &item->finish->message
                                                  : NULL;

    *row = (struct flush_job){
        .spec = item->spec,
        .action = job->row      ? FLUSH_UPDATE
                  : job->replay ? FLUSH_REPLAY
                                : FLUSH_INSERT,
        .placed = job->placed,
        .state = job->state,
        .token = job->token,
        .fence = job->fence,
        .final_token = job->final_token,
        .attempt_count = job->attempt_count,
        .user_failures = job->user_failures,
        .oom_failures = job->oom_failures,
        .lost_failures = job->lost_failures,
        .due_us = job->due_us,
        .state_us = job->state_us,
        .started_us = job->started_us,
        .worker = item->worker != NULL ? WIRE_TEXT_OF(item->worker->key.name)
                                       : (struct wire_text){0},
        .error_class = job->error_class,
        .error_message = job_error_text(job, item->finish),
    };
    if (finished != NULL) {
        row->output = finished->output;
        row->output_blob = finished->output_blob;
        row->output_size = finished->output_size;
        row->output_type = finished->output_type;
        row->http_status = finished->http_status;
    }
}

/* Moves the job's change into the flush. */
static void compose_job(struct owner *owner, struct flush_batch *batch, struct job *job)
{
    size_t index = batch->flush.job_count++;
    struct flush_item *item = &batch->items[index];

    batch->item_count = batch->flush.job_count;
    if (job->changed_us < batch->oldest_us)
        batch->oldest_us = job->changed_us;
    batch->size += job->stage_size;
    flush_unstage(owner, job);
    owner->unflushed_bytes += job_change_size(job); /* in flight still counts */
    item->job = job;
    item->spec = job_spec_ref(job->spec);
    item->finish = TAKE(job->finish);
    item->worker = job->worker != NULL ? worker_ref(job->worker) : NULL;
    item->verdicts = TAKE(job->verdicts);
    if (job->revoke)
        item->revoke_token = job->fence;
    compose_row(&batch->jobs[index], job, item);
    if (job->ended.present)
        compose_attempt(batch, job, item);
    ack_compose(owner, batch, &job->acks);
    job->ended.present = false;
    job->revoke = job->placed = false;
    job->in_flush = true;
    pin_write(&job->pins);
}

static bool compose_has_room(const struct flush_batch *batch, const struct job *job, size_t limit)
{
    return batch->flush.job_count < limit &&
           (batch->flush.job_count == 0 || batch->size + job->stage_size <= FLUSH_BYTES_MAX);
}

/* Those of the list whose change waits for longer than that. */
static void compose_list(struct owner *owner, struct flush_batch *batch, size_t limit,
                         struct job_list *list, uint64_t delay_us)
{
    uint64_t old_us = owner->draining ? owner->now_us : owner->now_us - delay_us;
    struct job *job;

    while ((job = TAILQ_FIRST(list)) != NULL && job->changed_us <= old_us &&
           compose_has_room(batch, job, limit))
        compose_job(owner, batch, job);
}

static void compose_jobs(struct owner *owner, struct flush_batch *batch, size_t limit)
{
    compose_list(owner, batch, limit, &owner->urgent, 0);
    if (owner->urgent_count > 0)
        return;
    compose_list(owner, batch, limit, &owner->lazy, owner->options.row_delay_us);
    compose_list(owner, batch, limit, &owner->lazy_bulk, owner->options.row_delay_bulk_us);
}

static void flush_send(struct owner *owner)
{
    todo_add(owner, OWNER_TODO_FLUSH)->todo.flush = &owner->batch->flush;
}

static struct flush_batch *batch_new(size_t limit, size_t command_limit)
{
    struct flush_batch *batch = xcalloc(1, sizeof(*batch));

    batch->oldest_us = UINT64_MAX;
    batch->commands = xcalloc(command_limit + 1, sizeof(*batch->commands));
    if (limit > 0) {
        batch->jobs = xcalloc(limit, sizeof(*batch->jobs));
        batch->items = xcalloc(limit, sizeof(*batch->items));
        batch->attempts = xcalloc(limit, sizeof(*batch->attempts));
    }
    return batch;
}

static void compose(struct owner *owner)
{
    size_t limit = owner->urgent_count + owner->lazy_count;
    struct flush_batch *batch;

    if (limit > owner->options.flush_jobs)
        limit = owner->options.flush_jobs;
    batch = batch_new(limit, owner->ack_count);
    compose_jobs(owner, batch, limit);
    ack_compose_rest(owner, batch);
    pin_trim(&owner->intake);
    pin_trim(&owner->outcome);
    pin_trim(&owner->commands);
    batch->flush.shard = owner->shard;
    batch->flush.epoch = owner->epoch;
    batch->flush.number = ++owner->flush_count;
    batch->flush.intake_floor = owner_guarded(owner, OWNER_GUARD_INTAKE_FLOOR)
                                    ? pin_floor(&owner->intake)
                                    : owner->intake.next;
    batch->flush.outcome_floor = owner_guarded(owner, OWNER_GUARD_OUTCOME_FLOOR)
                                     ? pin_floor(&owner->outcome)
                                     : owner->outcome.next;
    batch->flush.command_floor = (uint64_t)pin_floor(&owner->commands);
    batch->flush.floor_us = pin_floor_us(&owner->intake);
    batch->flush.published_epoch = owner->published_epoch;
    batch->flush.published_number = owner->published_number;
    batch->flush.jobs = batch->jobs;
    batch->flush.attempts = batch->attempts;
    batch->flush.commands = batch->commands;
    owner->batch = batch;
    owner->flushed_us = owner->now_us;
    owner->flushed_jobs = (uint32_t)batch->flush.job_count;
    owner->flushed_intake = batch->flush.intake_floor;
    owner->flushed_outcome = batch->flush.outcome_floor;
    owner->flushed_commands = (int64_t)batch->flush.command_floor;
    owner->flushed_published = owner->published_number;
    owner->flushed_floor_us = batch->flush.floor_us;
    flush_send(owner);
}

static bool publish_lags(const struct owner *owner)
{
    return owner->unpublished_bytes > OWNER_UNPUBLISHED_BYTES_MAX ||
           owner->unpublished_count > OWNER_UNPUBLISHED_FLUSHES_MAX;
}

/* The only reason to pause intake: changes pile up faster than the ledger takes them. */
static void pause_or_resume(struct owner *owner)
{
    uint64_t oldest = flush_oldest_us(owner);
    size_t count = owner->urgent_count + owner->lazy_count;
    bool lags = owner->unflushed_bytes >= owner->options.run_ahead_bytes ||
                count >= owner->options.window_jobs ||
                owner->intake.count >= owner->options.window_jobs ||
                (oldest != UINT64_MAX && owner->now_us >= oldest + owner->options.run_ahead_us);

    if (lags == owner->paused)
        return;
    owner->paused = lags;
    (void)todo_add(owner, lags ? OWNER_TODO_INTAKE_PAUSE : OWNER_TODO_INTAKE_RESUME);
}

void flush_run(struct owner *owner)
{
    pin_trim(&owner->intake);
    pin_trim(&owner->outcome);
    pin_trim(&owner->commands);
    pause_or_resume(owner);
    if (owner->batch == NULL && !publish_lags(owner) && flush_due_us(owner) <= owner->now_us)
        compose(owner);
}

/* ---- answers ---- */

void flush_batch_free(struct flush_batch **batch_p)
{
    struct flush_batch *batch = TAKE(*batch_p);

    if (batch == NULL)
        return;
    for (size_t i = 0; i < batch->item_count; i++) {
        struct flush_item *item = &batch->items[i];

        job_spec_unref(&item->spec);
        free(item->finish);
        worker_unref(&item->worker);
        verdict_free(&item->verdicts);
        free(item->refused_why);
        free(item->copy);
        mem_free(&item->gateway.text);
    }
    free(batch->jobs);
    free(batch->items);
    free(batch->attempts);
    free(batch->finals);
    free(batch->commands);
    free(batch);
}

/* The insert met a row that was there before. What is known of it decides. */
static void settle_duplicate(struct owner *owner, struct job *job)
{
    struct wire_id id = job->spec->submit.id;

    owner->stats.duplicate_records++;
    if (job->place == JOB_RUNNING)
        dispatch_revoke(owner, job->token, job->worker, &id);
    evidence_ask_again(owner, &id);
    cancel_postpone_all(owner, job);
    job_remove(owner, job);
}

static void settle_verdicts(struct owner *owner, struct verdict **list, const struct flush_job *row,
                            bool applied)
{
    if (!applied && row->action == FLUSH_INSERT)
        cancel_ask_again(owner, list, row->spec);
    else
        verdict_tell(owner, list, applied);
}

static void settle_job(struct owner *owner, struct job *job, const struct flush_job *row,
                       bool applied)
{
    job->in_flush = false;
    if (job_state_final(row->state)) {
        settle_verdicts(owner, &job->verdicts, row, applied);
        cancel_postpone_all(owner, job);
        job_remove(owner, job);
        return;
    }
    if (!applied && !(row->action == FLUSH_INSERT && job->row)) {
        settle_duplicate(owner, job);
        return;
    }
    job->row = true;
    if (!job->certain) {
        job->certain = true;
        owner->stats.accepted += !job->replay;
        owner->stats.replayed += job->replay;
    }
    job_settle(owner, job);
}

static void flush_committed(struct owner *owner, const bool *applied)
{
    struct flush_batch *batch = TAKE(owner->batch);

    owner->stats.flushes++;
    for (size_t i = 0; i < batch->flush.job_count; i++) {
        struct flush_item *item = &batch->items[i];
        const struct flush_job *row = &batch->jobs[i];
        struct job *job = TAKE(item->job);

        owner->unflushed_bytes -= job_spec_size(item->spec) +
                                  (item->finish != NULL ? item->finish->size : 0);
        settle_verdicts(owner, &item->verdicts, row, applied[i]);
        if (item->revoke_token != 0)
            dispatch_revoke(owner, item->revoke_token, item->worker, &item->spec->submit.id);
        settle_job(owner, job, row, applied[i]);
    }
    publish_batch(owner, batch, applied);
}

/* Takes what belongs to attempts of that job out of the flush: their texts, or all of them. */
static void refuse_attempts(struct flush_batch *batch, const struct wire_id *id, bool texts_only)
{
    size_t kept = 0;

    for (size_t i = 0; i < batch->flush.attempt_count; i++) {
        struct flush_attempt *attempt = &batch->attempts[i];
        bool own = memcmp(&attempt->job, id, sizeof(*id)) == 0;

        if (own)
            attempt->error_message = attempt->device = (struct wire_text){0};
        if (!own || texts_only)
            batch->attempts[kept++] = *attempt;
    }
    batch->flush.attempt_count = kept;
}

static void refuse_commands(struct flush_batch *batch, const struct wire_id *id)
{
    for (size_t i = 0; i < batch->flush.command_count; i++) {
        struct flush_command *command = &batch->commands[i];

        if (command->applied && memcmp(&command->job, id, sizeof(*id)) == 0) {
            command->applied = false;
            command->reason = "the ledger refused the row of the job";
        }
    }
}

static void refuse_verdicts(struct verdict *verdict)
{
    for (; verdict != NULL; verdict = verdict->next)
        verdict->canceled = false;
}

/* The Submit itself is what no table takes: it goes to intake.dead, reported before the flush that
 * lets the floor pass it. */
static void refuse_submit(struct owner *owner, struct flush_batch *batch, size_t index)
{
    struct flush_item item = batch->items[index];
    struct todo_node *node = todo_add(owner, OWNER_TODO_DEAD);
    size_t after = batch->flush.job_count - index - 1;

    node->spec = TAKE(item.spec);
    node->memory = TAKE(item.refused_why);
    node->todo.dead.offset = (int64_t)node->spec->seq;
    node->todo.dead.bytes = node->spec + 1;
    node->todo.dead.size = node->spec->record_size;
    node->todo.dead.why = node->memory;
    owner->stats.dead_records++;
    owner->unflushed_bytes -= job_spec_size(node->spec) +
                              (item.finish != NULL ? item.finish->size : 0);
    verdict_tell(owner, &item.verdicts, false);
    evidence_ask_again(owner, &item.job->spec->submit.id);
    item.job->in_flush = false;
    cancel_postpone_all(owner, item.job);
    job_remove(owner, item.job);
    free(item.finish);
    worker_unref(&item.worker);
    memmove(&batch->items[index], &batch->items[index + 1], after * sizeof(*batch->items));
    memmove(&batch->jobs[index], &batch->jobs[index + 1], after * sizeof(*batch->jobs));
    batch->flush.job_count--;
    batch->item_count--;
}

/* The row cannot be stored: its texts and its result go, and the job fails, in the same flush,
 * because the floors of that flush count on it. Refused even so: see above. */
static void flush_refused(struct owner *owner, size_t index, const char *why)
{
    struct flush_batch *batch = owner->batch;
    struct flush_job *row = &batch->jobs[index];
    struct flush_item *item = &batch->items[index];
    struct job *job = item->job;

    refuse_attempts(batch, &row->spec->submit.id, !job->refused);
    refuse_commands(batch, &row->spec->submit.id);
    free(item->refused_why);
    item->refused_why = xasprintf("the ledger refused its row: %.200s", why == NULL ? "" : why);
    if (job->refused) {
        refuse_submit(owner, batch, index);
        return;
    }
    job->refused = true;
    job_end_final(owner, job, JOB_FAILED, ERROR_CLASS_UNSTORABLE, NULL);
    flush_unstage(owner, job);
    if (job->revoke)
        item->revoke_token = job->fence;
    job->revoke = false;
    job->ended.present = false;
    pin_write(&job->pins);
    refuse_verdicts(item->verdicts);
    refuse_verdicts(job->verdicts);
    row->state = JOB_FAILED;
    row->state_us = job->state_us;
    row->token = 0;
    row->fence = job->fence;
    row->final_token = 0;
    row->error_class = ERROR_CLASS_UNSTORABLE;
    row->error_message = WIRE_TEXT_OF(item->refused_why);
    row->output = (struct wire_bytes){0};
    row->output_blob = (struct wire_text){0};
    row->output_size = 0;
    row->output_type = (struct wire_text){0};
    row->http_status = 0;
}

void owner_on_flush(struct owner *owner, const struct flush_result *result)
{
    struct flush_batch *batch = owner->batch;

    if (owner->phase == OWNER_OVER || batch == NULL || result->number != batch->flush.number)
        return;
    switch (result->verdict) {
    case FLUSH_COMMITTED:
        flush_committed(owner, result->applied);
        return;
    case FLUSH_STALE:
        owner_stop(owner, ERR_STALE, "shard %u has a newer owner than epoch %u", owner->shard,
                   owner->epoch);
        return;
    case FLUSH_REFUSED:
        assert(result->refused_index < batch->flush.job_count);
        flush_refused(owner, result->refused_index, result->refused_why);
        flush_send(owner);
        return;
    case FLUSH_RETRY:
        flush_send(owner);
        return;
    }
    NEVER("flush verdict is out of range");
}
