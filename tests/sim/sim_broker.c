/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A broker process and its seats, one a shard: it is assigned the shard, takes over, reads, and
 * carries out the owner's to-dos. It may die or stand still between any two events and at the
 * points of enum sim_point, and it may go on as a zombie.
 */

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tests/sim/sim.h"

#define TICK_US (100 * MS)
#define FETCH_RECORDS 8

static void seat_work(struct sim *sim, struct sim_seat *seat);
static void seat_fetch(struct sim *sim, void *opaque, uint64_t number);
static void seat_take_over(struct sim *sim, void *opaque, uint64_t session);

static uint64_t mono_us(const struct sim *sim, const struct sim_seat *seat)
{
    return sim->now_us - seat->broker->asleep_us;
}

static uint64_t wall_us(const struct sim *sim, const struct sim_seat *seat)
{
    return (uint64_t)((int64_t)sim->now_us + seat->broker->wall_us);
}

void seat_now(struct sim *sim, struct sim_seat *seat)
{
    owner_tick(seat->owner, mono_us(sim, seat), wall_us(sim, seat));
}

static bool session_is(const struct sim_seat *seat, uint64_t session)
{
    return seat->owner != NULL && seat->session == session;
}

/* ---- points ---- */

/* The broker comes to a point. True: it goes on; false: it was killed there. One that stands still
 * there does nothing more until it is resumed. */
bool broker_passes(struct sim *sim, struct sim_broker *broker, enum sim_point point)
{
    unsigned percent = point == POINT_REVOKED ? 25 : 2; /* that one is rare */

    if (!sim->faults.broker_points || sim->faults_over || !broker->process.alive ||
        !sim_percent(sim, percent))
        return broker->process.alive;
    if (sim_percent(sim, 50)) {
        sim_hit(sim, (enum sim_fault)(FAULT_KILL_CONSUMED + (int)point));
        broker_dies(sim, broker);
        return false;
    }
    sim_hit(sim, (enum sim_fault)(FAULT_PAUSE_CONSUMED + (int)point));
    broker_stands_still(sim, broker, sim_between(sim, 500 * MS, 8 * SEC));
    return true;
}

/* ---- reading ---- */

void seat_wake(struct sim *sim, struct sim_seat *seat)
{
    if (!seat->broker->process.alive || seat->owner == NULL || seat->fetching)
        return;
    seat->fetching = true;
    sim_post(sim, &seat->broker->process, sim_between(sim, 50, 1 * MS), seat_fetch, seat,
             seat->session);
}

/* The same record as a newer program writes it: its version is one that this one does not know. */
static void newer_arrives(struct sim *sim, struct sim_seat *seat, const struct sim_record *record)
{
    uint8_t *bytes = (uint8_t *)sim_copy(sim, record->bytes, record->size).bytes;

    sim_hit(sim, FAULT_NEWER_VERSION);
    bytes[1]++; /* [version, type, fields] */
    owner_on_intake(seat->owner, seat->intake_at++, record->append_us, bytes, record->size);
}

static bool fetch_intake(struct sim *sim, struct sim_seat *seat)
{
    struct sim_log *log = &sim->logs[LOG_INTAKE(seat->shard)];

    if (kafka_stalled(sim, LOG_INTAKE(seat->shard)) || seat->intake_paused)
        return false;
    for (int i = 0; i < FETCH_RECORDS && seat->intake_at < (int64_t)log->count; i++) {
        const struct sim_record *record = &log->records[seat->intake_at];

        if (record->newer && !seat->broker->upgraded)
            newer_arrives(sim, seat, record);
        else
            owner_on_intake(seat->owner, seat->intake_at++, record->append_us, record->bytes,
                            record->size);
    }
    if (seat->intake_at >= (int64_t)log->count)
        owner_on_intake_end(seat->owner, wall_us(sim, seat));
    return seat->intake_at < (int64_t)log->count;
}

static bool fetch_outcome(struct sim *sim, struct sim_seat *seat)
{
    struct sim_log *log = &sim->logs[LOG_OUTCOME(seat->shard)];

    if (kafka_stalled(sim, LOG_OUTCOME(seat->shard)))
        return false;
    for (int i = 0; i < FETCH_RECORDS && seat->outcome_at < (int64_t)log->count; i++) {
        const struct sim_record *record = &log->records[seat->outcome_at];

        owner_on_outcome(seat->owner, seat->outcome_at++, record->bytes, record->size);
    }
    if (seat->outcome_at >= (int64_t)log->count)
        owner_on_outcome_end(seat->owner, mono_us(sim, seat));
    return seat->outcome_at < (int64_t)log->count;
}

static void seat_fetch(struct sim *sim, void *opaque, uint64_t session)
{
    struct sim_seat *seat = opaque;
    bool more;

    if (!session_is(seat, session)) {
        if (seat->owner != NULL)
            sim_hit(sim, FAULT_STALE_RECORDS); /* they carry their assignment, and are dropped */
        return;
    }
    seat->fetching = false;
    seat_now(sim, seat);
    more = fetch_intake(sim, seat);
    if (fetch_outcome(sim, seat) || more)
        seat_wake(sim, seat);
    if (broker_passes(sim, seat->broker, POINT_CONSUMED))
        seat_work(sim, seat);
}

static void seat_tick(struct sim *sim, void *opaque, uint64_t session)
{
    struct sim_seat *seat = opaque;

    if (!session_is(seat, session))
        return;
    seat_now(sim, seat);
    if (!kafka_stalled(sim, LOG_OUTCOME(seat->shard)) &&
        seat->outcome_at >= (int64_t)sim->logs[LOG_OUTCOME(seat->shard)].count)
        owner_on_outcome_end(seat->owner, mono_us(sim, seat));
    seat_wake(sim, seat);
    seat_work(sim, seat);
    if (seat->owner != NULL)
        sim_post(sim, &seat->broker->process, TICK_US, seat_tick, seat, session);
}

/* A tick at the time that the owner asked for, so that short delays are seen too. */
static void seat_due(struct sim *sim, void *opaque, uint64_t session)
{
    struct sim_seat *seat = opaque;

    if (!session_is(seat, session))
        return;
    seat->ticking = false;
    seat_now(sim, seat);
    seat_work(sim, seat);
}

/* ---- to-dos ---- */

struct attempt_report {
    struct sim_seat *seat;
    uint64_t session, token;
    int job;
};

static void attempt_reported(struct sim *sim, void *opaque, uint64_t number, int64_t offset)
{
    struct attempt_report *report = opaque;

    (void)number;
    if (offset < 0)
        sim->jobs[report->job].attempt_given_up = true;
    if (!session_is(report->seat, report->session))
        return;
    seat_now(sim, report->seat);
    owner_on_attempt_reported(report->seat->owner, report->token, offset);
    seat_work(sim, report->seat);
}

/* Limits come to an owner before anything else does. */
static void seat_take_limits(struct sim *sim, struct sim_seat *seat)
{
    const struct owner_limit limit = {
        .kind = OWNER_PARTY_TENANT, .name = WIRE_TEXT_OF("t0"), .running_max = sim->running_max};

    owner_on_limits(seat->owner, &limit, sim->running_max > 0);
}

static bool do_attempt(struct sim *sim, struct sim_seat *seat, const struct owner_todo *todo)
{
    const struct message_attempt *attempt = &todo->attempt.message;
    struct attempt_report *report = sim_alloc(sim, sizeof(*report));
    int job = sim_job_of(sim, &attempt->job);

    *report = (struct attempt_report){seat, seat->session, attempt->token, job};
    sim_trace(sim, "%s sends attempt %llu of job %d, token %u/%u, to %.*s",
              seat->broker->process.name, (unsigned long long)attempt->number, job,
              TOKEN_EPOCH(attempt->token), (uint32_t)attempt->token, (int)attempt->worker.size,
              attempt->worker.text);
    check_dispatch(sim, seat, attempt);
    if (attempt->token > sim->jobs[job].token_max)
        sim->jobs[job].token_max = attempt->token;
    kafka_produce(sim, &seat->broker->producer, LOG_DISPATCH(todo->attempt.partition),
                  MESSAGE_ATTEMPT, attempt, attempt_reported, report, 0);
    return broker_passes(sim, seat->broker, POINT_ATTEMPT_PRODUCED);
}

struct publishing {
    struct sim_seat *seat;
    uint64_t session, flush_number;
    const struct ledger_final *finals;
    size_t count, next, reported;
    bool stopped;
};

static void completed_produce(struct sim *sim, struct publishing *publishing, size_t index);

static void completed_reported(struct sim *sim, void *opaque, uint64_t index, int64_t offset)
{
    struct publishing *publishing = opaque;
    struct sim_seat *seat = publishing->seat;

    if (!session_is(seat, publishing->session))
        return;
    if (offset < 0) { /* sent until it is reported, so that it may be there twice */
        completed_produce(sim, publishing, index);
        return;
    }
    if (++publishing->reported < publishing->count ||
        !broker_passes(sim, seat->broker, POINT_AFTER_COMPLETED))
        return;
    seat_now(sim, seat);
    owner_on_published(seat->owner, publishing->flush_number);
    seat_work(sim, seat);
}

static void completed_produce(struct sim *sim, struct publishing *publishing, size_t index)
{
    struct sim_seat *seat = publishing->seat;

    kafka_produce(sim, &seat->broker->producer, LOG_COMPLETED(seat->shard), MESSAGE_COMPLETED,
                  &publishing->finals[index].completed, completed_reported, publishing, index);
}

/* False when the broker stands still or is dead: then it goes on later, or never. */
static bool publish_passes(struct sim *sim, struct publishing *publishing, enum sim_point point)
{
    struct sim_seat *seat = publishing->seat;

    return broker_passes(sim, seat->broker, point) && process_runs(sim, &seat->broker->process);
}

/* One final key, one record after the other; who is stopped among them begins with the same one. */
static void publish_goes_on(struct sim *sim, void *opaque, uint64_t number)
{
    struct publishing *publishing = opaque;
    struct sim_seat *seat = publishing->seat;
    enum sim_point before = publishing->flush_number == 0 ? POINT_REPUBLISHING : POINT_BEFORE_REDIS;

    (void)number;
    if (!session_is(seat, publishing->session))
        return;
    while (publishing->next < publishing->count) {
        const struct message_completed *completed = &publishing->finals[publishing->next].completed;

        if (!publish_passes(sim, publishing, before))
            break;
        if (publishing->stopped)
            sim_hit(sim, FAULT_REDIS_LATE);
        publishing->stopped = false;
        redis_set_final(sim, sim_job_of(sim, &completed->id), completed);
        if (!publish_passes(sim, publishing, POINT_BEFORE_COMPLETED))
            break;
        completed_produce(sim, publishing, publishing->next++);
    }
    publishing->stopped = publishing->next < publishing->count;
    if (publishing->stopped)
        sim_post(sim, &seat->broker->process, 0, publish_goes_on, publishing, 0);
}

static bool do_publish(struct sim *sim, struct sim_seat *seat, const struct owner_todo *todo)
{
    struct publishing *publishing = sim_alloc(sim, sizeof(*publishing));

    *publishing = (struct publishing){.seat = seat,
                                      .session = seat->session,
                                      .flush_number = todo->publish.flush_number,
                                      .finals = todo->publish.finals,
                                      .count = todo->publish.final_count};
    publish_goes_on(sim, publishing, 0);
    return seat->owner != NULL;
}

static void early_final_keys(struct sim *sim, const struct flush *flush)
{
    for (size_t i = 0; i < flush->job_count; i++) {
        struct message_completed completed = {.id = flush->jobs[i].spec->submit.id,
                                              .round = flush->jobs[i].spec->round,
                                              .state = flush->jobs[i].state,
                                              .output = flush->jobs[i].output,
                                              .http_status = flush->jobs[i].http_status};

        if (job_state_final(flush->jobs[i].state))
            redis_set_final(sim, sim_job_of(sim, &completed.id), &completed);
    }
}

static bool do_flush(struct sim *sim, struct sim_seat *seat, const struct owner_todo *todo)
{
    struct sim_request *request = sim_alloc(sim, sizeof(*request));

    if (!sim_guarded(sim, OWNER_GUARD_COMMIT_FIRST))
        early_final_keys(sim, todo->flush);
    request->type = SIM_FLUSH;
    request->flush = ledger_copy_flush(sim, todo->flush);
    request->flush->shard = seat->shard;
    ledger_ask(sim, seat, request);
    return broker_passes(sim, seat->broker, POINT_FLUSH_SENT);
}

/* The owner's cursors only move forward: what a LOAD brought is not asked for again. */
static struct ledger_lane *lane_seen(struct sim_seat *seat, const struct ledger_lane *lane)
{
    for (size_t i = 0; i < seat->lane_count; i++) {
        struct ledger_lane *seen = &seat->lanes[i].lane;

        if (seen->rank == lane->rank && strcmp(seen->pool, lane->pool) == 0 &&
            strcmp(seen->tenant, lane->tenant) == 0)
            return seen;
    }
    assert(seat->lane_count < COUNT_OF(seat->lanes));
    seat->lanes[seat->lane_count].lane = *lane;
    seat->lanes[seat->lane_count].lane.after_seq = -1;
    return &seat->lanes[seat->lane_count++].lane;
}

static void do_load(struct sim *sim, struct sim_seat *seat, const struct owner_todo *todo)
{
    struct sim_request *request = sim_alloc(sim, sizeof(*request));

    request->type = SIM_LOAD;
    request->lane = todo->load.lane;
    request->limit = todo->load.limit;
    if (todo->load.lane.after_seq < lane_seen(seat, &todo->load.lane)->after_seq)
        sim_fail(sim, "the cursor of a lane moves back to %lld",
                 (long long)todo->load.lane.after_seq);
    ledger_ask(sim, seat, request);
}

static void do_due(struct sim *sim, struct sim_seat *seat, const struct owner_todo *todo)
{
    struct sim_request *request = sim_alloc(sim, sizeof(*request));

    request->type = SIM_DUE;
    request->due = todo->due.cursor;
    request->limit = (uint32_t)sim_between(sim, 1, 3);
    ledger_ask(sim, seat, request);
}

static void do_lookup(struct sim *sim, struct sim_seat *seat, const struct owner_todo *todo)
{
    struct sim_request *request = sim_alloc(sim, sizeof(*request));

    request->type = SIM_LOOKUP;
    request->id_count = todo->lookup.id_count;
    request->ids = sim_alloc(sim, request->id_count * sizeof(*request->ids));
    memcpy(request->ids, todo->lookup.ids, request->id_count * sizeof(*request->ids));
    ledger_ask(sim, seat, request);
}

static void do_commands(struct sim *sim, struct sim_seat *seat, const struct owner_todo *todo)
{
    struct sim_request *request = sim_alloc(sim, sizeof(*request));

    request->type = SIM_READ_COMMANDS;
    request->from = todo->commands.from;
    request->limit = todo->commands.limit;
    ledger_ask(sim, seat, request);
}

void seat_on_commands(struct sim *sim, struct sim_seat *seat, const struct ledger_command *commands,
                      size_t command_count, bool complete)
{
    if (seat->owner == NULL)
        return;
    seat_now(sim, seat);
    owner_on_commands(seat->owner, commands, command_count, complete);
    seat_work(sim, seat);
}

static void place_reported(struct sim *sim, void *opaque, uint64_t command, int64_t offset)
{
    struct attempt_report *report = opaque;

    if (!session_is(report->seat, report->session))
        return;
    seat_now(sim, report->seat);
    owner_on_place_reported(report->seat->owner, command, offset >= 0);
    seat_work(sim, report->seat);
}

static void do_place(struct sim *sim, struct sim_seat *seat, const struct message_place *place)
{
    struct attempt_report *report = sim_alloc(sim, sizeof(*report));

    *report = (struct attempt_report){.seat = seat, .session = seat->session};
    kafka_produce(sim, &seat->broker->producer, LOG_INTAKE(seat->shard), MESSAGE_PLACE, place,
                  place_reported, report, place->command);
}

static void seat_stop(struct sim *sim, struct sim_seat *seat, const char *why)
{
    sim_trace(sim, "%s stops: %s", seat->broker->process.name, why);
    owner_free(&seat->owner);
    seat->session++;
    seat->live_us = 0;
    seat->lane_count = 0;
    seat->fetching = seat->ticking = seat->intake_paused = seat->taking_over = false;
    ledger_client_dies(sim, seat);
}

/* False when the owner is over. */
static bool seat_do(struct sim *sim, struct sim_seat *seat, struct owner_todo *todo)
{
    switch (todo->type) {
    case OWNER_TODO_ATTEMPT:
        return do_attempt(sim, seat, todo);
    case OWNER_TODO_REVOKE:
        kafka_produce(sim, &seat->broker->producer, LOG_DISPATCH(todo->revoke.partition),
                      MESSAGE_REVOKE, &todo->revoke.message, NULL, NULL, 0);
        return true;
    case OWNER_TODO_FLUSH:
        return do_flush(sim, seat, todo);
    case OWNER_TODO_PUBLISH:
        return do_publish(sim, seat, todo);
    case OWNER_TODO_VERDICT:
        gateway_on_verdict(sim, &todo->verdict.message);
        return true;
    case OWNER_TODO_LOAD:
        do_load(sim, seat, todo);
        return true;
    case OWNER_TODO_DUE:
        do_due(sim, seat, todo);
        return true;
    case OWNER_TODO_LOOKUP:
        do_lookup(sim, seat, todo);
        return true;
    case OWNER_TODO_COMMANDS:
        do_commands(sim, seat, todo);
        return true;
    case OWNER_TODO_PLACE:
        do_place(sim, seat, &todo->place);
        return true;
    case OWNER_TODO_INTAKE_PAUSE:
    case OWNER_TODO_INTAKE_RESUME:
        seat->intake_paused = todo->type == OWNER_TODO_INTAKE_PAUSE;
        return true;
    case OWNER_TODO_DEAD:
        for (int job = 0; job < sim->job_count; job++)
            sim->jobs[job].dead |= sim->jobs[job].shard == seat->shard &&
                                   sim->jobs[job].offset == todo->dead.offset;
        return true;
    case OWNER_TODO_STOP:
        seat_stop(sim, seat, todo->stop.why);
        if (seat->assigned) /* the group still names it: it takes over again */
            sim_post(sim, &seat->broker->process, 100 * MS, seat_take_over, seat, seat->session);
        return false;
    }
    return true;
}

static void seat_work(struct sim *sim, struct sim_seat *seat)
{
    struct owner_todo todo;
    struct owner_stats stats;
    uint64_t due_us;

    /* One that stands still goes on with its next tick. */
    while (seat->owner != NULL && !sim->failed && process_runs(sim, &seat->broker->process) &&
           owner_next_todo(seat->owner, &todo)) {
        if (!seat_do(sim, seat, &todo))
            return;
    }
    if (seat->owner == NULL || !process_runs(sim, &seat->broker->process))
        return;
    stats = owner_stats(seat->owner);
    if (stats.live && seat->live_us == 0)
        seat->live_us = sim->now_us;
    if (stats.waiting_in_memory > 0 && stats.running > 0 && stats.waiting_in_memory > SIM_JOBS_MAX)
        sim_fail(sim, "invariant 16: %llu jobs wait in memory",
                 (unsigned long long)stats.waiting_in_memory);
    due_us = owner_next_due_us(seat->owner);
    if (due_us != UINT64_MAX)
        due_us += seat->broker->asleep_us;
    if (seat->ticking || due_us > sim->now_us + TICK_US)
        return;
    seat->ticking = true;
    sim_post(sim, &seat->broker->process, due_us > sim->now_us ? due_us - sim->now_us : 1 * MS,
             seat_due, seat, seat->session);
}

/* ---- life ---- */

static void seat_take_over(struct sim *sim, void *opaque, uint64_t session)
{
    struct sim_seat *seat = opaque;
    struct sim_request *request;

    if (seat->session != session || !seat->assigned || seat->taking_over || seat->owner != NULL)
        return;
    seat->taking_over = true;
    request = sim_alloc(sim, sizeof(*request));
    request->type = SIM_TAKEOVER;
    ledger_ask(sim, seat, request);
}

/* The log does not hold the floor: nobody skips silently. It is tried again until somebody has
 * brought the log back. */
static bool floor_is_lost(struct sim *sim, struct sim_seat *seat)
{
    if (!sim->faults.log_lost || sim->faults_over || !sim_percent(sim, 20))
        return false;
    sim_trace(sim, "%s waits: the log of shard %d does not hold the floor",
              seat->broker->process.name, seat->shard);
    sim_hit(sim, FAULT_FLOOR_PASSED);
    sim_post(sim, &seat->broker->process, 200 * MS, seat_take_over, seat, seat->session);
    return true;
}

void seat_on_takeover(struct sim *sim, struct sim_seat *seat, struct ledger_takeover *takeover)
{
    struct owner_ends ends = {.intake_end = (int64_t)sim->logs[LOG_INTAKE(seat->shard)].count,
                              .outcome_end = (int64_t)sim->logs[LOG_OUTCOME(seat->shard)].count};

    seat->taking_over = false;
    if (!broker_passes(sim, seat->broker, POINT_OFFSETS_READ) || floor_is_lost(sim, seat)) {
        for (size_t i = 0; i < takeover->row_count; i++)
            job_spec_unref(&takeover->rows[i].spec);
        return;
    }
    seat->intake_at = takeover->intake_floor < 0 ? 0 : takeover->intake_floor;
    seat->outcome_at = takeover->outcome_floor < 0 ? 0 : takeover->outcome_floor;
    sim_trace(sim, "%s owns shard %d in epoch %u, reads from %lld and %lld up to %lld and %lld",
              seat->broker->process.name, seat->shard, takeover->epoch, (long long)seat->intake_at,
              (long long)seat->outcome_at, (long long)ends.intake_end, (long long)ends.outcome_end);
    seat->owner = owner_new(&sim->owner_options, takeover, ends, mono_us(sim, seat),
                            wall_us(sim, seat));
    seat_take_limits(sim, seat);
    seat_wake(sim, seat);
    sim_post(sim, &seat->broker->process, TICK_US, seat_tick, seat, seat->session);
    seat_work(sim, seat);
}

void seat_on_flush(struct sim *sim, struct sim_seat *seat, const struct flush_result *result)
{
    if (seat->owner == NULL)
        return;
    seat_now(sim, seat);
    owner_on_flush(seat->owner, result);
    seat_work(sim, seat);
}

void seat_on_rows(struct sim *sim, struct sim_seat *seat, const struct sim_request *request,
                  struct ledger_row *rows, size_t row_count, bool complete)
{
    if (seat->owner == NULL) {
        for (size_t i = 0; i < row_count; i++)
            job_spec_unref(&rows[i].spec);
        return;
    }
    seat_now(sim, seat);
    if (request->type == SIM_LOAD && row_count > 0)
        lane_seen(seat, &request->lane)->after_seq = (int64_t)rows[row_count - 1].spec->seq;
    if (request->type == SIM_LOAD)
        owner_on_rows(seat->owner, &request->lane, rows, row_count, complete);
    else if (request->type == SIM_DUE)
        owner_on_due(seat->owner, &request->due, rows, row_count, complete);
    else
        owner_on_lookup(seat->owner, rows, row_count);
    seat_work(sim, seat);
}

void broker_start(struct sim *sim, struct sim_broker *broker)
{
    process_start(&broker->process);
    for (int shard = 0; shard < SIM_SHARDS_MAX; shard++)
        ledger_client_dies(sim, &broker->seats[shard]);
}

void broker_crash(struct sim *sim, struct sim_broker *broker)
{
    if (!broker->process.alive)
        return;
    sim_trace(sim, "%s is killed", broker->process.name);
    for (int shard = 0; shard < sim->shard_count; shard++) {
        seat_stop(sim, &broker->seats[shard], "killed");
        broker->seats[shard].assigned = false;
    }
    process_kill(&broker->process);
    kafka_producer_dies(sim, &broker->producer);
}

static void broker_restarts(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_broker *broker = opaque;

    (void)number;
    if (broker->process.alive)
        return;
    broker_start(sim, broker);
    group_look(sim, sim_between(sim, 10 * MS, 1 * SEC));
}

void broker_dies(struct sim *sim, struct sim_broker *broker)
{
    broker_crash(sim, broker);
    sim_post(sim, NULL, sim_between(sim, 100 * MS, 3 * SEC), broker_restarts, broker, 0);
    group_look(sim, sim_between(sim, 10 * MS, 2 * SEC));
}

/* SIGSTOP: its session ends while it stands still; then it goes on as a zombie. */
void broker_stands_still(struct sim *sim, struct sim_broker *broker, uint64_t long_us)
{
    sim_trace(sim, "%s stands still for %llu ms", broker->process.name,
              (unsigned long long)(long_us / MS));
    broker->process.paused_until_us = sim->now_us + long_us;
    if (long_us > 1 * SEC)
        group_look(sim, sim_between(sim, 300 * MS, 3 * SEC));
}

/* The old one hears of a loss when its session ends; meanwhile it goes on. */
static void seat_hears_of_loss(struct sim *sim, void *opaque, uint64_t session)
{
    struct sim_seat *seat = opaque;

    if (seat->session == session && !seat->assigned && seat->owner != NULL)
        seat_stop(sim, seat, "assignment lost");
}

void seat_revoke(struct sim *sim, struct sim_seat *seat)
{
    const struct sim_request *request = seat->store.requests;

    seat->assigned = false;
    if (request != NULL && request->type == SIM_FLUSH)
        broker_passes(sim, seat->broker, POINT_REVOKED);
    if (seat->owner != NULL && process_runs(sim, &seat->broker->process) && sim_percent(sim, 40))
        owner_drain(seat->owner); /* a revoke, not a loss */
    sim_post(sim, &seat->broker->process, sim_between(sim, 0, 3 * SEC), seat_hears_of_loss, seat,
             seat->session);
}

void seat_assign(struct sim *sim, struct sim_seat *seat)
{
    if (seat->owner != NULL || seat->taking_over)
        seat_stop(sim, seat, "assigned anew");
    seat->assigned = true;
    seat->session++;
    sim_post(sim, &seat->broker->process, sim_between(sim, 0, 100 * MS), seat_take_over, seat,
             seat->session);
}
