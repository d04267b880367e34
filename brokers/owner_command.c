/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Commands: rows that SQL functions and programs append, since only the owner writes a job's row.
 *
 *   COMMANDS ─▶ cancel, wake      go the way of a Cancel from intake (owner_cancel.c)
 *           └─▶ replay, priority ─▶ PLACE: a record in intake[s] ─▶ its offset is the job's new seq
 *
 * Why a record: the cursors of the lanes only move forward (PROTOCOL 23), so a job that comes back
 * needs a seq above all of them, that no other job has, and that a later owner finds in the same
 * order. The end of intake is that, and brings Kafka's time for the new deadlines along. A command
 * may be read twice and its record produced twice (a crash, a report that was lost): a replay names
 * the round that it ends, so the second finds another round and does nothing.
 *
 * A command's row is pinned like a record until its effect is in a flush, or until Kafka has its
 * Place, which is pinned itself from then on. The lowest pin, command_floor, is where the next
 * owner begins to read. Its acknowledgement is written in the flush of the effect, and only once:
 * what is acknowledged is not read again.
 *
 * A replay waits until the end of the round before was published: a takeover makes what is to be
 * published again from the row, which then speaks of the new round (PROTOCOL 1, 11). Its row is
 * committed before it is dispatched. A Cancel that lies behind its Place waits with it, since it is
 * of the new round.
 */

#include <stdlib.h>
#include <string.h>

#include "brokers/owner_int.h"

#define PLACE_PAUSE_US 1000000 /* after Kafka has refused one */

/* A command whose Place Kafka has not reported. */
struct command {
    UT_hash_handle hh;
    TAILQ_ENTRY(command) link; /* while unsent */
    struct ledger_command row;
    struct pin *pin;
};

/* ---- acknowledgements ---- */

static struct ack *ack_new(struct owner *owner, struct cancel *cancel, bool applied,
                           const char *reason)
{
    struct ack *ack = xcalloc(1, sizeof(*ack));

    ack->command = (struct flush_command){
        .id = cancel->command,
        .job = cancel->id,
        .round = applied && cancel->kind == COMMAND_REPLAY ? cancel->round + 1 : 0,
        .applied = applied,
        .reason = reason,
    };
    ack->pin = cancel->pin;
    owner->ack_count++;
    free(cancel);
    return ack;
}

/* Takes the cancel. Told without a change of a job. */
static void ack_rest(struct owner *owner, struct ack *ack)
{
    *owner->acks_tail = ack;
    owner->acks_tail = &ack->next;
}

void ack_job(struct owner *owner, struct job *job, struct cancel *cancel, bool applied,
             const char *reason)
{
    struct ack *ack = ack_new(owner, cancel, applied, reason);

    ack->next = job->acks;
    job->acks = ack;
}

void ack_compose(struct owner *owner, struct flush_batch *batch, struct ack **list)
{
    while (*list != NULL) {
        struct ack *ack = *list;

        *list = ack->next;
        batch->commands[batch->flush.command_count++] = ack->command;
        pin_write(&ack->pin);
        owner->ack_count--;
        free(ack);
    }
}

void ack_compose_rest(struct owner *owner, struct flush_batch *batch)
{
    ack_compose(owner, batch, &owner->acks);
    owner->acks_tail = &owner->acks;
}

void ack_keep_all(struct owner *owner, struct job *job)
{
    while (job->acks != NULL) {
        struct ack *ack = job->acks;

        job->acks = TAKE(ack->next);
        ack->command.applied = false;
        ack->command.reason = "the job left before its change was written";
        ack_rest(owner, ack);
    }
}

void command_refuse(struct owner *owner, struct cancel *cancel, const char *reason)
{
    ack_rest(owner, ack_new(owner, cancel, false, reason));
}

static const char *already(enum job_state state)
{
    switch (state) {
    case JOB_QUEUED:
        return "the job waits, it is QUEUED";
    case JOB_IN_PROGRESS:
        return "the job runs, it is IN_PROGRESS";
    case JOB_SUCCEEDED:
        return "the job is SUCCEEDED already";
    case JOB_FAILED:
        return "the job is FAILED already";
    case JOB_EXPIRED:
        return "the job is EXPIRED already";
    case JOB_CANCELED:
        return "the job is CANCELED already";
    }
    NEVER("job state is out of range");
}

/* ---- priority ---- */

static void priority_apply(struct owner *owner, struct job *job, struct cancel *cancel)
{
    enum job_rank rank = (enum job_rank)(JOB_RANK_PRIORITY_0 + cancel->priority);
    struct job_spec *spec;
    bool waited = job->place == JOB_WAITING || job->place == JOB_PARKED || job->place == JOB_BARRED;

    if (job->place == JOB_ENDED || job->place == JOB_RUNNING) {
        command_refuse(owner, cancel, already(job->state));
        return;
    }
    if (job->spec->rank == JOB_RANK_SYNC) {
        command_refuse(owner, cancel, "a caller waits: it is first");
        return;
    }
    if (rank == job->spec->rank && job->stage != STAGE_NONE) {
        ack_job(owner, job, cancel, true, ""); /* the move that made it so may still be unwritten */
        return;
    }
    if (rank == job->spec->rank) {
        ack_rest(owner, ack_new(owner, cancel, true, ""));
        return;
    }
    spec = job_spec_placed(owner->decoder, job->spec, cancel->seq, job->spec->queued_us);
    spec->rank = rank;
    spec->submit.priority = cancel->priority;
    job_change_lane(owner, job, spec);
    if (!lane_admits(owner, job->lane))
        lane_spill(owner, job->lane, (int64_t)spec->seq - 1);
    job->placed = true;
    ack_job(owner, job, cancel, true, "");
    job_changed(owner, job, STAGE_URGENT);
    /* Into a lane that is spilled it goes by way of the ledger. */
    if (waited && !(job->lane->spilled && job->attempt_count == 0))
        job_wait(owner, job);
}

/* ---- wake ---- */

/* What a job waits for, between two attempts, has come about. One that runs may be about to be put
 * off: it is not, then. */
static void wake_apply(struct owner *owner, struct job *job, struct cancel *cancel)
{
    bool put_off = job->due_us > 0;

    if (job->place == JOB_ENDED) {
        command_refuse(owner, cancel, already(job->state));
        return;
    }
    job->woken = job->place == JOB_RUNNING;
    if (!put_off) {
        ack_rest(owner, ack_new(owner, cancel, true, ""));
        return;
    }
    job->due_us = 0;
    ack_job(owner, job, cancel, true, "");
    job_changed(owner, job, STAGE_URGENT);
    if (job->place == JOB_DELAYED)
        job_wait(owner, job);
}

/* ---- replay ---- */

static const char *replay_refusal(const struct ledger_row *row, const struct cancel *cancel,
                                  bool round_counts)
{
    const struct message_submit *submit = &row->spec->submit;

    if (row->spec->round > cancel->round && round_counts)
        return "that round was replayed already";
    if (row->spec->round < cancel->round)
        return "the job never had that round";
    if (!job_state_dead(row->state))
        return already(row->state);
    if (submit->input.size == 0 && submit->input_blob.size == 0)
        return "the input of the job is gone";
    return NULL;
}

static bool is_published(const struct owner *owner, uint64_t number)
{
    return owner->published_epoch == owner->epoch && owner->published_number >= number;
}

static void replay_begin(struct owner *owner, struct cancel *cancel, const struct ledger_row *row)
{
    struct job_spec *spec = job_spec_placed(owner->decoder, row->spec, cancel->seq,
                                            cancel->append_us);
    struct job *job;

    spec->round = row->spec->round + 1;
    job = job_add(owner, spec);
    job->replay = true;
    /* No token until now is of this round: a second copy of the Submit may still run somewhere. */
    job->fence = TOKEN_MAKE(owner->epoch, owner->token_count);
    if (row->fence > job->fence)
        job->fence = row->fence;
    if (!lane_admits(owner, job->lane))
        lane_spill(owner, job->lane, (int64_t)spec->seq - 1);
    ack_job(owner, job, cancel, true, "");
    job_changed(owner, job, STAGE_URGENT);
}

/* The job is not in memory, and its row says that it is over. */
static void replay_decide(struct owner *owner, struct cancel *cancel, const struct ledger_row *row)
{
    uint64_t committed = owner->flush_count - (owner->batch != NULL);
    const char *refusal = replay_refusal(row, cancel, owner_guarded(owner, OWNER_GUARD_ROUND));

    if (refusal != NULL) {
        command_refuse(owner, cancel, refusal);
    } else if (cancel->barrier > 0 || is_published(owner, committed) ||
               !owner_guarded(owner, OWNER_GUARD_REPLAY)) {
        replay_begin(owner, cancel, row);
    } else {
        cancel->barrier = committed + 1;
        TAILQ_INSERT_TAIL(&owner->unpublished_cancels, cancel, link);
    }
}

/* A replay of that job, from before the cancel in intake, whose row is being asked for. */
static bool replay_is_looked_up(const struct owner *owner, const struct cancel *cancel)
{
    const struct cancel *other;

    TAILQ_FOREACH(other, &owner->cancels, link)
    {
        if (other->command != 0 && other->kind == COMMAND_REPLAY &&
            other->append_us <= cancel->append_us &&
            memcmp(&other->id, &cancel->id, sizeof(other->id)) == 0)
            return true;
    }
    return false;
}

bool command_is_awaited(struct owner *owner, struct cancel *cancel)
{
    struct cancel *other;

    if (replay_is_looked_up(owner, cancel)) {
        cancel_look_up(owner, cancel); /* behind it */
        return true;
    }
    if (owner->awaiting_count == OWNER_CANCELS_MAX)
        return false;
    TAILQ_FOREACH(other, &owner->unpublished_cancels, link)
    {
        if (memcmp(&other->id, &cancel->id, sizeof(other->id)) != 0)
            continue;
        cancel->barrier = other->barrier;
        owner->awaiting_count++;
        TAILQ_INSERT_AFTER(&owner->unpublished_cancels, other, cancel, link);
        return true;
    }
    return false;
}

void command_on_published(struct owner *owner)
{
    struct cancel *cancel;

    while ((cancel = TAILQ_FIRST(&owner->unpublished_cancels)) != NULL &&
           is_published(owner, cancel->barrier - 1)) {
        TAILQ_REMOVE(&owner->unpublished_cancels, cancel, link);
        owner->awaiting_count -= cancel->command == 0;
        cancel_decide(owner, &cancel);
    }
}

/* ---- what a command means for its job ---- */

void command_apply(struct owner *owner, struct job *job, struct cancel *cancel)
{
    switch (cancel->kind) {
    case COMMAND_CANCEL:
        if (job->place == JOB_ENDED) {
            command_refuse(owner, cancel, already(job->state));
            return;
        }
        owner->stats.canceled++;
        job_end_final(owner, job, JOB_CANCELED, ERROR_CLASS_CANCELED, "canceled by an operator");
        ack_job(owner, job, cancel, true, "");
        return;
    case COMMAND_REPLAY:
        command_refuse(owner, cancel,
                       job->spec->round > cancel->round ? "that round was replayed already"
                                                        : already(job->state));
        return;
    case COMMAND_PRIORITY:
        priority_apply(owner, job, cancel);
        return;
    case COMMAND_WAKE:
        wake_apply(owner, job, cancel);
        return;
    }
    NEVER("command kind is out of range");
}

void command_give_up(struct owner *owner, struct cancel *cancel, const struct ledger_row *row)
{
    if (row == NULL)
        command_refuse(owner, cancel, "there is no such job");
    else if (cancel->kind == COMMAND_REPLAY)
        replay_decide(owner, cancel, row);
    else
        command_refuse(owner, cancel, already(row->state));
}

void command_on_place(struct owner *owner, const struct message_place *message, struct pin *pin)
{
    struct cancel *cancel = xcalloc(1, sizeof(*cancel));

    cancel->id = message->id;
    cancel->pin = pin;
    cancel->command = message->command;
    cancel->kind = message->round > 0 ? COMMAND_REPLAY : COMMAND_PRIORITY;
    cancel->round = (uint32_t)(message->round < UINT16_MAX ? message->round : UINT16_MAX);
    cancel->priority = (uint32_t)(message->priority < JOB_PRIORITY_MAX ? message->priority
                                                                       : JOB_PRIORITY_MAX);
    cancel->seq = (uint64_t)pin->offset;
    cancel->append_us = pin->append_us;
    cancel_decide(owner, &cancel);
}

/* ---- reading commands, sending Places ---- */

static void command_take(struct owner *owner, const struct ledger_command *row)
{
    struct pin *pin = pin_add(&owner->commands, (int64_t)row->id, 0);

    owner->commands.next = (int64_t)row->id + 1;
    owner->stats.commands++;
    if (row->kind == COMMAND_CANCEL || row->kind == COMMAND_WAKE) {
        struct cancel *cancel = xcalloc(1, sizeof(*cancel));

        cancel->id = row->job;
        cancel->pin = pin;
        cancel->command = row->id;
        cancel->kind = row->kind;
        cancel_decide(owner, &cancel);
    } else {
        struct command *command = xcalloc(1, sizeof(*command));

        command->row = *row;
        command->pin = pin;
        TAILQ_INSERT_TAIL(&owner->commands_unsent, command, link);
    }
}

void owner_on_commands(struct owner *owner, const struct ledger_command *commands,
                       size_t command_count, bool complete)
{
    owner->commands_asked = false;
    if (owner->phase == OWNER_OVER)
        return;
    for (size_t i = 0; i < command_count; i++) {
        if ((int64_t)commands[i].id >= owner->commands.next)
            command_take(owner, &commands[i]);
    }
    owner->commands_noticed = owner->commands_noticed || !complete;
}

void owner_on_command_notice(struct owner *owner)
{
    owner->commands_noticed = true;
}

static void places_send(struct owner *owner)
{
    struct command *command;

    if (owner->now_us < owner->places_us)
        return;
    while ((command = TAILQ_FIRST(&owner->commands_unsent)) != NULL) {
        const struct ledger_command *row = &command->row;

        TAILQ_REMOVE(&owner->commands_unsent, command, link);
        HASH_ADD(hh, owner->commands_sent, row.id, sizeof(row->id), command);
        todo_add(owner, OWNER_TODO_PLACE)->todo.place = (struct message_place){
            .id = row->job,
            .command = row->id,
            .round = row->kind == COMMAND_REPLAY ? row->round : 0,
            .priority = row->priority,
        };
    }
}

void owner_on_place_reported(struct owner *owner, uint64_t id, bool ok)
{
    struct command *command;

    HASH_FIND(hh, owner->commands_sent, &id, sizeof(id), command);
    if (command == NULL || owner->phase == OWNER_OVER)
        return;
    HASH_DEL(owner->commands_sent, command);
    if (!ok) { /* Kafka may have it all the same: a second copy does nothing */
        TAILQ_INSERT_TAIL(&owner->commands_unsent, command, link);
        owner->places_us = owner->now_us + PLACE_PAUSE_US;
        return;
    }
    pin_write(&command->pin);
    free(command);
}

/* How many commands may be asked for. */
static uint32_t commands_limit(const struct owner *owner)
{
    size_t known = owner->commands.count;

    if (owner->commands_asked || owner->draining || known >= owner->options.commands)
        return 0;
    return owner->options.commands - (uint32_t)known;
}

static uint64_t ask_due_us(const struct owner *owner)
{
    if (commands_limit(owner) == 0)
        return UINT64_MAX;
    return owner->commands_noticed ? owner->now_us
                                   : owner->commands_us + owner->options.command_poll_us;
}

uint64_t command_due_us(const struct owner *owner)
{
    uint64_t due = ask_due_us(owner);

    if (!owner->draining && !TAILQ_EMPTY(&owner->commands_unsent) && owner->places_us < due)
        due = owner->places_us;
    return due;
}

void command_plan(struct owner *owner)
{
    struct todo_node *node;
    uint32_t limit;

    if (owner->draining)
        return;
    pin_trim(&owner->commands);
    places_send(owner);
    if (ask_due_us(owner) > owner->now_us)
        return;
    limit = commands_limit(owner);
    owner->commands_noticed = false;
    owner->commands_asked = true;
    owner->commands_us = owner->now_us;
    node = todo_add(owner, OWNER_TODO_COMMANDS);
    node->todo.commands.from = (uint64_t)owner->commands.next;
    node->todo.commands.limit = limit;
}

void command_free_all(struct owner *owner)
{
    struct command *command, *next;
    struct ack *ack;

    HASH_ITER(hh, owner->commands_sent, command, next)
    {
        HASH_DEL(owner->commands_sent, command);
        free(command);
    }
    while ((command = TAILQ_FIRST(&owner->commands_unsent)) != NULL) {
        TAILQ_REMOVE(&owner->commands_unsent, command, link);
        free(command);
    }
    while ((ack = owner->acks) != NULL) {
        owner->acks = TAKE(ack->next);
        free(ack);
    }
}
