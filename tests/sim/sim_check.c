/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The invariants, by their numbers in PROTOCOL 3.1. Each is looked at where it can break: at a
 * commit, at an append, at an effect outside; the end is looked at when all has come to rest.
 */

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "schema/job_id.h"
#include "tests/sim/sim.h"

#define CLOCKS_US (2 * SEC)  /* as far as clocks may differ (gateway_view.c) */
#define LIMITED_JOBS_MAX 256 /* larger worlds are not counted at each commit */

static bool bytes_equal(struct wire_bytes a, struct wire_bytes b)
{
    return a.size == b.size && (a.size == 0 || memcmp(a.bytes, b.bytes, a.size) == 0);
}

static bool decode(struct sim *sim, int log, int64_t offset, struct message *ret_message)
{
    const struct sim_record *record = &sim->logs[log].records[offset];
    struct err err;

    return message_decode(sim->decoder, record->bytes, record->size, ret_message, &err) == 0;
}

/* ---- a commit ---- */

static const struct sim_shard *shard_of(const struct sim *sim, int shard)
{
    return &sim->ledger.shards[shard];
}

static void check_numbers(struct sim *sim, const struct sim_flush *flush)
{
    const struct sim_shard *shard = shard_of(sim, flush->shard);
    const struct sim_flush *newest = shard->newest;
    uint64_t before = newest != NULL && newest->epoch == flush->epoch ? newest->number : 0;

    if (flush->epoch != shard->epoch)
        sim_fail(sim, "invariant 5: a flush of epoch %u is committed in epoch %u", flush->epoch,
                 shard->epoch);
    if (newest != NULL && newest->epoch > flush->epoch)
        sim_fail(sim, "invariant 5: the committed epoch falls from %u to %u", newest->epoch,
                 flush->epoch);
    if (flush->number != before + 1)
        sim_fail(sim, "invariant 5: flush %llu of epoch %u follows %llu",
                 (unsigned long long)flush->number, flush->epoch, (unsigned long long)before);
}

/* Inline, or by the key of its blob. */
static bool output_is_of(const struct sim_row *row, uint64_t token)
{
    char text[64], key[32];

    (void)snprintf(text, sizeof(text), "result of %llx", (unsigned long long)token);
    (void)snprintf(key, sizeof(key), "r%llx", (unsigned long long)token);
    if (row->output_blob.size > 0)
        return wire_text_equal(row->output_blob, key);
    return row->output.size == strlen(text) && memcmp(row->output.bytes, text, strlen(text)) == 0;
}

/* What every `completed` record of this round must be. */
static void commit_round(struct sim *sim, int job)
{
    OWNED(buf_done) struct buf buf = BUF_WITH_LIMIT(1 << 20);
    struct message_completed completed = ledger_completed(sim, job);
    struct err err;

    if (message_encode(MESSAGE_COMPLETED, &completed, &buf, &err) < 0)
        NEVER("a committed row cannot be encoded");
    sim->jobs[job].rounds[completed.round - 1].committed = sim_copy(sim, buf.bytes, buf.size);
}

static void check_rows(struct sim *sim, const struct sim_flush *flush)
{
    for (size_t i = 0; i < flush->change_count; i++) {
        const struct sim_change *change = &flush->changes[i];
        const struct sim_row *old = &change->before, *now = &sim->ledger.rows[change->job];

        if (!flush->applied[i])
            continue;
        if (change->action == FLUSH_REPLAY && !command_asked_for(sim, change->job, old->round))
            sim_fail(sim, "promise 2: nobody asked for round %u of job %d", now->round,
                     change->job);
        if (old->present && job_state_final(old->state) && change->action != FLUSH_REPLAY)
            sim_fail(sim, "promise 2: job %d was %s and becomes %s", change->job,
                     job_state_name(old->state), job_state_name(now->state));
        if (now->fence < old->fence)
            sim_fail(sim, "invariant 6: the fence of job %d falls", change->job);
        if (change->final_token != 0 && change->final_token <= old->fence)
            sim_fail(sim, "invariant 6: job %d is made final by a token that had ended",
                     change->job);
        if (change->final_token != 0 && now->state == JOB_SUCCEEDED &&
            !output_is_of(now, change->final_token))
            sim_fail(sim, "invariant 6: job %d has the result of another attempt", change->job);
        if (!sim->worker_faulted && now->lost_failures > 0)
            sim_fail(sim, "invariant 10: job %d is charged for a lost worker; none was",
                     change->job);
        if (change->action == FLUSH_REPLAY)
            sim->jobs[change->job].seen_final = false;
        if (job_state_final(now->state))
            commit_round(sim, change->job);
    }
}

/* What runs of tenant t0, as the ledger knows it. Over a takeover a worker may bring back an
 * attempt that nobody knew of while others were given its place, so this is for the first owner
 * alone. */
static void check_running(struct sim *sim, const struct sim_flush *flush)
{
    uint64_t running = 0;

    if (sim->running_max == 0 || sim->worker_faulted || flush->epoch > SIM_EPOCH_FIRST + 1 ||
        sim->job_count > LIMITED_JOBS_MAX)
        return;
    for (int i = 0; i < sim->job_count; i++)
        running += sim->jobs[i].tenant == 0 && sim->jobs[i].shard == flush->shard &&
                   sim->ledger.rows[i].present && sim->ledger.rows[i].state == JOB_IN_PROGRESS;
    if (running > sim->running_max)
        sim_fail(sim, "limits: %llu jobs of t0 run, %llu may", (unsigned long long)running,
                 (unsigned long long)sim->running_max);
}

/* Nothing is started for a tenant that has, with what was adopted, as many running as it may. */
void check_dispatch(struct sim *sim, const struct sim_seat *seat,
                    const struct message_attempt *attempt)
{
    uint64_t running = owner_running(seat->owner, OWNER_PARTY_TENANT, WIRE_TEXT_OF("t0"));

    if (sim->running_max > 0 && running > sim->running_max &&
        wire_text_equal(attempt->tenant, "t0"))
        sim_fail(sim, "limits: job %d of t0 is started as number %llu, %llu may run",
                 sim_job_of(sim, &attempt->job), (unsigned long long)running,
                 (unsigned long long)sim->running_max);
}

static void check_intake_record(struct sim *sim, const struct sim_flush *flush, int64_t offset)
{
    struct message message;
    const struct sim_row *row;
    int job;

    if (!decode(sim, LOG_INTAKE(flush->shard), offset, &message))
        return; /* kept aside */
    if (message.type == MESSAGE_PLACE) {
        if (!sim->ledger.commands[message.place.command - 1].done)
            sim_fail(sim, "invariant 7: the intake floor passes the Place of command %llu",
                     (unsigned long long)message.place.command);
        return;
    }
    job = sim_job_of(sim, message.type == MESSAGE_SUBMIT ? &message.submit.id : &message.cancel.id);
    row = &sim->ledger.rows[job];
    if (sim->jobs[job].dead)
        return;
    if (message.type == MESSAGE_SUBMIT && !row->present)
        sim_fail(sim, "invariant 7: the intake floor passes job %d at %lld, which has no row", job,
                 (long long)offset);
    /* A Submit that came twice may have met the cancel in memory; its row is then asked for. */
    if (message.type == MESSAGE_CANCEL && row->present && !job_state_final(row->state) &&
        sim->jobs[job].copies == 1 && row->round == 1)
        sim_fail(sim, "invariant 7: the intake floor passes the cancel of job %d at %lld", job,
                 (long long)offset);
}

/* Where the token is kept, or would be. */
static struct sim_token *token_place(struct sim *sim, uint64_t token, int shard)
{
    size_t at = (size_t)((token * 0x9e3779b97f4a7c15u) >> 40) % SIM_TOKENS_MAX;

    for (size_t i = 0; i < SIM_TOKENS_MAX; i++, at = (at + 1) % SIM_TOKENS_MAX) {
        struct sim_token *place = &sim->tokens[at];

        if (place->token == 0 || (place->token == token && place->shard == shard))
            return place;
    }
    NEVER("a world has more Attempts than it can remember");
}

/* Its worker left before Kafka took its last words: Gone may have ended it first. */
static bool left_unheard(struct sim *sim, int job, uint64_t token)
{
    uint64_t boot = token_place(sim, token, sim->jobs[job].shard)->boot;

    for (int i = 0; i < sim->worker_count; i++) {
        if (sim->workers[i].unheard_boot == boot)
            return true;
    }
    return false;
}

static void check_outcome_record(struct sim *sim, const struct sim_flush *flush, int64_t offset)
{
    struct message message;
    const struct sim_row *row;
    int job;

    if (!decode(sim, LOG_OUTCOME(flush->shard), offset, &message) ||
        message.type != MESSAGE_FINISHED)
        return;
    job = sim_job_of(sim, &message.finished.job);
    row = &sim->ledger.rows[job];
    /* What an earlier owner's attempt brought may be given up, and what a job brings that was
     * ended before, for a reason that is still to be written: the next owner ends it again. One
     * that was handed back costs nobody anything. */
    if (sim->jobs[job].dead || message.finished.error_class == ERROR_CLASS_HANDED_BACK ||
        message.finished.token != sim->jobs[job].token_max ||
        TOKEN_EPOCH(message.finished.token) != flush->epoch || sim->worker_faulted ||
        sim->jobs[job].cancels_sent > 0 || sim->jobs[job].commanded ||
        sim->jobs[job].attempt_given_up || left_unheard(sim, job, message.finished.token) ||
        sim->jobs[job].total_limit_ms > 0 || sim->jobs[job].service_us > 3 * SEC)
        return;
    if (!row->present || (!job_state_final(row->state) && row->fence < message.finished.token))
        sim_fail(sim, "invariant 7: the outcome floor passes the end of job %d at %lld", job,
                 (long long)offset);
}

static void check_floors(struct sim *sim, const struct sim_flush *flush)
{
    struct sim_shard *shard = &sim->ledger.shards[flush->shard];

    if (flush->intake_floor > (int64_t)sim->logs[LOG_INTAKE(flush->shard)].count ||
        flush->outcome_floor > (int64_t)sim->logs[LOG_OUTCOME(flush->shard)].count) {
        sim_fail(sim, "invariant 7: a floor lies behind the end of its topic");
        return;
    }
    if (flush->intake_floor < shard->intake_floor || flush->outcome_floor < shard->outcome_floor)
        sim_fail(sim, "invariant 7: a floor falls");
    if (flush->command_floor < shard->command_floor)
        sim_fail(sim, "invariant 7: the floor of the commands falls");
    shard->command_floor = flush->command_floor;
    for (; shard->intake_floor < flush->intake_floor; shard->intake_floor++)
        check_intake_record(sim, flush, shard->intake_floor);
    for (; shard->outcome_floor < flush->outcome_floor; shard->outcome_floor++)
        check_outcome_record(sim, flush, shard->outcome_floor);
}

/* From here on the job must be in intake at or above the floor, or in the ledger: the floor is
 * checked against it when it moves. */
void check_accept(struct sim *sim, int index)
{
    const struct sim_job *job = &sim->jobs[index];

    if (!sim->ledger.rows[index].present && !job->dead &&
        job->offset < shard_of(sim, job->shard)->intake_floor)
        sim_fail(sim, "invariant 1: accepted job %d is neither in intake nor in the ledger", index);
}

/* This very commit wrote its row: a replay may be written behind its deadline, by an owner that
 * came late, and expires next. */
static bool is_written_by(const struct sim_flush *flush, int job)
{
    for (size_t i = 0; i < flush->change_count; i++) {
        if (flush->changes[i].job == job)
            return true;
    }
    return false;
}

/* While nothing is wrong, what waits for its first attempt expires in time, in memory or not. */
static void check_deadlines(struct sim *sim, const struct sim_flush *flush)
{
    const int shard = flush->shard;
    const struct sim_seat *seat = sim->assigned[shard] < 0
                                      ? NULL
                                      : &sim->brokers[sim->assigned[shard]].seats[shard];

    if (!sim->faults_over || seat == NULL || seat->live_us == 0 ||
        sim->now_us < seat->live_us + 500 * MS)
        return;
    for (int i = 0; i < sim->job_count; i++) {
        const struct sim_row *row = &sim->ledger.rows[i];

        if (sim->jobs[i].shard == shard && row->present && row->state == JOB_QUEUED &&
            row->attempt_count == 0 && ledger_deadline_us(sim, row) + 500 * MS < sim->now_us &&
            !is_written_by(flush, i))
            sim_fail(sim, "job %d still waits %llu ms behind its deadline", i,
                     (unsigned long long)(sim->now_us - ledger_deadline_us(sim, row)) / 1000);
    }
}

void check_commit(struct sim *sim, const struct sim_flush *flush)
{
    check_numbers(sim, flush);
    check_rows(sim, flush);
    check_running(sim, flush);
    check_floors(sim, flush);
    check_deadlines(sim, flush);
}

/* ---- an append ---- */

/* It tells of what the ledger has, not of what a failover lost. */
static bool completed_is_current(const struct sim *sim, int job,
                                 const struct message_completed *completed)
{
    const struct sim_row *row = &sim->ledger.rows[job];

    return row->present && row->state == completed->state &&
           row->state_us == completed->finished_us;
}

static void check_completed(struct sim *sim, int log, int64_t offset)
{
    const struct sim_record *record = &sim->logs[log].records[offset];
    struct wire_bytes own = {record->bytes, record->size};
    struct wire_bytes committed;
    struct message message;
    uint64_t round;
    int job;

    if (!decode(sim, log, offset, &message))
        NEVER("a completed record cannot be decoded");
    job = sim_job_of(sim, &message.completed.id);
    round = message.completed.round;
    if (round == 0 || round > COUNT_OF(sim->jobs[job].rounds))
        NEVER("round of a completed record is out of range");
    committed = sim->jobs[job].rounds[round - 1].committed;
    if (sim->jobs[job].rewound && (committed.bytes == NULL || !bytes_equal(own, committed)))
        return; /* of a commit that was lost */
    if (committed.bytes == NULL)
        sim_fail(sim, "invariant 4: round %llu of job %d is told completed before its row is final",
                 (unsigned long long)round, job);
    else if (!bytes_equal(own, committed))
        sim_fail(sim,
                 "invariant 3: a completed record of job %d, round %llu (%s, %zu bytes of output, "
                 "at %llu, %llu attempts) differs from its committed row",
                 job, (unsigned long long)round,
                 job_state_name((enum job_state)message.completed.state),
                 message.completed.output.size, (unsigned long long)message.completed.finished_us,
                 (unsigned long long)message.completed.attempts);
    sim->jobs[job].rounds[round - 1].told = true;
}

/* False: that token was seen in that shard before. */
static bool token_is_new(struct sim *sim, uint64_t token, int shard, uint64_t boot)
{
    struct sim_token *place = token_place(sim, token, shard);

    if (place->token != 0)
        return false;
    *place = (struct sim_token){.token = token, .boot = boot, .shard = shard};
    return true;
}

static uint64_t epoch_began_us(const struct sim *sim, int index, uint64_t token)
{
    const struct sim_shard *shard = shard_of(sim, index);

    for (size_t i = shard->takeover_count; i > 0; i--) {
        if (shard->takeovers[i - 1].epoch == TOKEN_EPOCH(token))
            return shard->takeovers[i - 1].at_us;
    }
    NEVER("an Attempt has a token of no epoch");
}

static void check_attempt(struct sim *sim, int log, int64_t offset)
{
    const struct sim_row *row;
    struct message message;
    uint64_t token, before;
    int job;

    if (!decode(sim, log, offset, &message) || message.type != MESSAGE_ATTEMPT)
        return;
    token = message.attempt.token;
    job = sim_job_of(sim, &message.attempt.job);
    row = &sim->ledger.rows[job];
    if (!token_is_new(sim, token, sim->jobs[job].shard, message.attempt.boot))
        sim_fail(sim, "invariant 6: two Attempts share token %llx", (unsigned long long)token);
    before = sim->jobs[job].token_logged;
    if (before < token && TOKEN_EPOCH(before) == TOKEN_EPOCH(token) && row->present &&
        !sim->jobs[job].rewound && !job_state_final(row->state) && row->fence < before)
        sim_fail(sim, "invariant 8: job %d gets a second Attempt before the first has ended", job);
    if (before < token)
        sim->jobs[job].token_logged = token;
    /* An unmarked second copy of a Submit may run for nothing; its result is not taken. */
    if (row->present && job_state_final(row->state) && sim->jobs[job].copies == 1 &&
        !sim->jobs[job].rewound &&
        row->final_at_us < epoch_began_us(sim, sim->jobs[job].shard, token))
        sim_fail(sim, "invariant 8: job %d was final before the takeover that dispatches it", job);
}

static void trace_intake(struct sim *sim, int64_t offset, const struct message *message)
{
    const struct wire_id *id = message->type == MESSAGE_SUBMIT   ? &message->submit.id
                               : message->type == MESSAGE_CANCEL ? &message->cancel.id
                                                                 : &message->place.id;

    sim_trace(sim, "intake %lld: %s of job %d", (long long)offset, message_type_name(message->type),
              sim_job_of(sim, id));
}

static void note_cancel(struct sim *sim, int64_t offset, const struct message_cancel *cancel)
{
    struct sim_job *job = &sim->jobs[sim_job_of(sim, &cancel->id)];

    if (job->cancels[cancel->request - 1].copies++ == 0)
        job->cancels[cancel->request - 1].offset = offset;
}

static void check_intake(struct sim *sim, int log, int64_t offset)
{
    struct message message;
    struct sim_job *job;

    if (!decode(sim, log, offset, &message))
        return;
    trace_intake(sim, offset, &message);
    if (message.type == MESSAGE_CANCEL)
        note_cancel(sim, offset, &message.cancel);
    if (message.type != MESSAGE_SUBMIT)
        return;
    job = &sim->jobs[sim_job_of(sim, &message.submit.id)];
    job->copies++;
    if (job->offset < 0)
        job->offset = offset;
}

static void trace_outcome(struct sim *sim, int log, int64_t offset)
{
    struct message message;

    if (!sim->options.trace || !decode(sim, log, offset, &message))
        return;
    if (message.type == MESSAGE_FINISHED)
        sim_trace(sim, "outcome %lld: %.*s finished job %d, token %u/%u: %s", (long long)offset,
                  (int)message.finished.worker.size, message.finished.worker.text,
                  sim_job_of(sim, &message.finished.job), TOKEN_EPOCH(message.finished.token),
                  (uint32_t)message.finished.token,
                  error_class_name((enum error_class)message.finished.error_class));
    else if (message.type == MESSAGE_HEARTBEAT)
        sim_trace(sim, "outcome %lld: %.*s holds %zu, granted %llu, received %llu",
                  (long long)offset, (int)message.heartbeat.worker.size,
                  message.heartbeat.worker.text, message.heartbeat.tokens.count,
                  (unsigned long long)message.heartbeat.granted,
                  (unsigned long long)message.heartbeat.received);
    else
        sim_trace(sim, "outcome %lld: %s", (long long)offset, message_type_name(message.type));
}

/* Its next boot is heard before anybody tells that the one before has left: as lost as one that was
 * killed. */
static void note_boots(struct sim *sim, int log, int64_t offset)
{
    const struct sim_record *record = &sim->logs[log].records[offset];
    struct message message;
    struct err err;
    uint32_t type = 0;

    if (wire_peek_type(record->bytes, record->size, &type, &err) < 0 ||
        (type != MESSAGE_HELLO && type != MESSAGE_GONE) || !decode(sim, log, offset, &message))
        return;
    for (int i = 0; i < sim->worker_count; i++) {
        struct sim_worker *worker = &sim->workers[i];

        if (type == MESSAGE_GONE && message.gone.left && message.gone.boot > worker->told_boot &&
            wire_text_equal(message.gone.worker, worker->name))
            worker->told_boot = message.gone.boot;
        if (type == MESSAGE_HELLO && worker->unheard_boot > worker->told_boot &&
            message.hello.boot > worker->unheard_boot &&
            wire_text_equal(message.hello.worker, worker->name))
            sim->worker_faulted = true;
    }
}

void check_append(struct sim *sim, int log, int64_t offset)
{
    switch (kafka_topic(log)) {
    case SIM_INTAKE:
        check_intake(sim, log, offset);
        return;
    case SIM_OUTCOME:
        trace_outcome(sim, log, offset);
        note_boots(sim, log, offset);
        return;
    case SIM_COMPLETED:
        check_completed(sim, log, offset);
        return;
    case SIM_DISPATCH:
        check_attempt(sim, log, offset);
        return;
    }
}

/* ---- effects ---- */

/* A run begins: there is a slot for it, and it was sent to this very boot. */
void check_run(struct sim *sim, const struct sim_worker *worker, const struct sim_engine_run *run)
{
    uint64_t boot = token_place(sim, run->token, sim->jobs[run->job].shard)->boot;

    if (worker->run_count > worker->slots)
        sim_fail(sim, "invariant 9: %s runs %zu jobs in %u slots", worker->name, worker->run_count,
                 worker->slots);
    if (boot != worker->boot)
        sim_fail(sim, "invariant 9: boot %llu of %s runs what was sent to boot %llu",
                 (unsigned long long)worker->boot, worker->name, (unsigned long long)boot);
}

/* "Not canceled" may be told of a round that was over, after the next has begun: the cancel lay
 * before its Place in intake. */
void check_verdict(struct sim *sim, int job, const struct message_wake *wake)
{
    const struct sim_row *row = &sim->ledger.rows[job];
    uint32_t index = (uint32_t)wake->request - 1;
    bool canceled = wake->canceled;
    int64_t offset;

    if (sim->jobs[job].rewound)
        return;
    assert(index < SIM_CANCELS_MAX);
    offset = sim->jobs[job].cancels[index].offset;
    if (canceled && sim->jobs[job].cancels[index].refused &&
        sim->jobs[job].cancels[index].copies == 1 && sim->jobs[job].cancels_sent == 1 &&
        !sim->jobs[job].commanded) /* else another one may have done it */
        sim_fail(sim, "invariant 11: request %u of job %d was told not canceled, now it is",
                 index + 1, job);
    sim->jobs[job].cancels[index].refused |= !canceled;
    if (canceled && (!row->present || row->state != JOB_CANCELED))
        sim_fail(sim, "invariant 4: job %d is told canceled, its row is %s", job,
                 row->present ? job_state_name(row->state) : "not there");
    if (!canceled && row->present && !job_state_final(row->state) &&
        (row->round == 1 || offset > (int64_t)row->seq))
        sim_fail(sim, "invariant 11: job %d is told not canceled, and is not final", job);
}

void check_final_key(struct sim *sim, int job, const struct message_completed *completed)
{
    const struct sim_row *row = &sim->ledger.rows[job];

    if (sim->jobs[job].rewound && !completed_is_current(sim, job, completed))
        return;
    if (row->present && completed->round < row->round)
        return; /* of a round before: another broker's, late */
    if (!row->present || !job_state_final(row->state))
        sim_fail(sim, "invariant 4: job %d has a final key before its row is final", job);
    else if (row->state != completed->state || !bytes_equal(row->output, completed->output) ||
             row->http_status != completed->http_status)
        sim_fail(sim, "promise 2: job %d has a final key that differs from its row", job);
}

void check_status(struct sim *sim, int index)
{
    struct sim_job *job = &sim->jobs[index];
    const struct sim_row *row = &sim->ledger.rows[index];
    const struct sim_flush *newest = shard_of(sim, job->shard)->newest;
    /* A state that may be replayed is asked of Postgres (gateway_status.c). */
    bool dead = job->final_key.bytes != NULL && job_state_dead(job->final_key_state);
    bool final = job->final_key.bytes != NULL && !dead;

    if (!sim->ledger.up && !final)
        return; /* 503 */
    if (!final && row->present)
        final = job_state_final(row->state);
    else if (!final && newest != NULL && !job->dead && !job->skewed_id &&
             job_id_time_ms(&job->id) * 1000 + SIM_PROMISE_US + CLOCKS_US < newest->floor_us)
        sim_fail(sim, "invariant 13: the status of accepted job %d is 404", index);
    if (job->seen_final && !final && !job->rewound)
        sim_fail(sim, "invariant 13: job %d was final and is not any more", index);
    job->seen_final = final;
}

/* ---- deliveries ---- */

/* A row is about to be made of that record: its job is final, and the row tells of it. */
void check_delivery(struct sim *sim, int index, const struct message_completed *completed)
{
    const struct sim_row *row = &sim->ledger.rows[index];

    if (sim->jobs[index].rewound || (row->present && completed->round < row->round))
        return; /* the row tells of its newest round alone */
    if (!row->present || row->state != completed->state)
        sim_fail(sim, "invariant 4: the delivery of job %d tells of what is not committed", index);
    if (!sim->jobs[index].webhook)
        sim_fail(sim, "invariant 17: job %d has a delivery that nobody asked for", index);
}

void check_post(struct sim *sim, int index, uint64_t round, int status)
{
    struct sim_job *job = &sim->jobs[index];
    const struct sim_row *row = &sim->ledger.rows[index];

    if (!sim->deliveries[index].present && !job->rewound)
        sim_fail(sim, "invariant 17: job %d is delivered without a row", index);
    if (job->verdict_true && row->state == JOB_CANCELED && !job->rewound && round == row->round)
        sim_fail(sim, "invariant 11: job %d was canceled and is delivered", index);
    job->rounds[round - 1].posts += status >= 200 && status < 300;
}

/* ---- blobs ---- */

/* Of what was promised: a Submit that Kafka took a world's short days after its id was made was
 * answered 503. */
void check_blob_read(struct sim *sim, int index)
{
    if (!sim->jobs[index].accepted)
        return;
    if (!job_state_final(sim->ledger.rows[index].state) || !sim->ledger.rows[index].present)
        sim_fail(sim, "invariant 15: the input of job %d is gone", index);
}

void check_blob_delete(struct sim *sim, int index)
{
    const struct sim_job *job = &sim->jobs[index];
    const struct sim_row *row = &sim->ledger.rows[index];

    if (job->accepted && !job->dead && !(row->present && row->state == JOB_SUCCEEDED))
        sim_fail(sim, "invariant 15: the input of job %d is deleted, and may be needed", index);
}

void check_result_blob(struct sim *sim, int index, uint64_t token)
{
    struct sim_token *place = token_place(sim, token, sim->jobs[index].shard);

    if (place->blob)
        sim_fail(sim, "invariant 15: the result of token %llx is written twice",
                 (unsigned long long)token);
    place->blob = true;
}

/* ---- the end ---- */

static bool job_is_done(const struct sim *sim, int index)
{
    const struct sim_job *job = &sim->jobs[index];
    const struct sim_row *row = &sim->ledger.rows[index];

    if (job->dead || (job->offset < 0 && !job->accepted))
        return true;
    if (job->webhook && !job->rewound &&
        (!sim->deliveries[index].present || sim->deliveries[index].round < row->round))
        return false;
    if (job->webhook && sim->deliveries[index].present &&
        sim->deliveries[index].state == SIM_DELIVERY_PENDING)
        return false;
    if (!row->present || !job_state_final(row->state))
        return false;
    for (uint32_t round = 1; round <= row->round; round++) {
        if (!job->rounds[round - 1].told)
            return false;
    }
    return true;
}

static const struct owner *owner_of(const struct sim *sim, int shard)
{
    return sim->brokers[sim->assigned[shard]].seats[shard].owner;
}

bool check_is_quiet(struct sim *sim)
{
    if (sim->event_count % 64 != 0 && sim->quiet_us == 0)
        return false;
    for (int i = 0; i < sim->job_count; i++) {
        if (!job_is_done(sim, i) || (i >= sim->options.jobs && !sim->jobs[i].accepted)) {
            sim->quiet_us = 0;
            return false;
        }
    }
    if (command_first_open(sim) != UINT64_MAX) {
        sim->quiet_us = 0;
        return false;
    }
    for (int shard = 0; shard < sim->shard_count; shard++) {
        if (owner_of(sim, shard) == NULL || owner_stats(owner_of(sim, shard)).running > 0)
            return false;
    }
    if (sim->quiet_us == 0)
        sim->quiet_us = sim->now_us;
    return sim->now_us > sim->quiet_us + 2 * SEC;
}

static void check_keys(struct sim *sim)
{
    for (int i = 0; i < sim->job_count; i++) {
        for (int j = i + 1; j < sim->job_count; j++) {
            if (sim->jobs[i].key >= 0 && sim->jobs[i].key == sim->jobs[j].key &&
                sim->jobs[i].accepted && sim->jobs[j].accepted && !sim->jobs[i].rewound &&
                !sim->jobs[j].rewound)
                sim_fail(sim, "invariant 12: jobs %d and %d have one key", i, j);
        }
    }
}

static void check_end_job(struct sim *sim, int index)
{
    const struct sim_job *job = &sim->jobs[index];
    const struct sim_row *row = &sim->ledger.rows[index];

    if (!job_is_done(sim, index))
        sim_fail(sim, "invariant 2: job %d ends as %s, %s", index,
                 row->present ? job_state_name(row->state) : "no row",
                 "or one of its rounds is never told completed");
    if (job->verdict_true && row->state != JOB_CANCELED)
        sim_fail(sim, "invariant 11: job %d was told canceled and ends as %s", index,
                 job_state_name(row->state));
    if (job->verdict_false && !job->verdict_true && row->state == JOB_CANCELED &&
        job->cancels_sent < 2 && job->cancels[0].copies < 2 && !job->commanded && !job->rewound)
        sim_fail(sim, "invariant 11: job %d was told not canceled and is", index);
    if (job->webhook && sim->deliveries[index].state == SIM_DELIVERY_SUCCEEDED &&
        sim->deliveries[index].present && job->rounds[sim->deliveries[index].round - 1].posts == 0)
        sim_fail(sim, "invariant 17: job %d counts as delivered, nobody took it", index);
}

static void check_end_owner(struct sim *sim, const struct owner *owner)
{
    struct owner_stats stats = owner_stats(owner);

    if (stats.waiting_in_memory + stats.running + stats.delayed + stats.unpublished > 0)
        sim_fail(sim, "invariant 16: at rest %llu wait, %llu run, %llu flushes are untold",
                 (unsigned long long)stats.waiting_in_memory, (unsigned long long)stats.running,
                 (unsigned long long)stats.unpublished);
}

void check_end(struct sim *sim)
{
    for (int i = 0; i < sim->job_count; i++)
        check_end_job(sim, i);
    check_keys(sim);
    if (command_first_open(sim) != UINT64_MAX)
        sim_fail(sim, "command %llu is never acknowledged",
                 (unsigned long long)command_first_open(sim));
    for (int shard = 0; shard < sim->shard_count && !sim->failed; shard++) {
        if (owner_of(sim, shard) != NULL)
            check_end_owner(sim, owner_of(sim, shard));
    }
}
