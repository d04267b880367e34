/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A broker process: it is assigned the shard, takes over, reads, and carries out the owner's
 * to-dos. It may die or stand still between any two events, and it may go on as a zombie.
 */

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tests/sim/sim.h"

#define TICK_US (100 * MS)
#define FETCH_RECORDS 8

static void broker_work(struct sim *sim, struct sim_broker *broker);
static void broker_fetch(struct sim *sim, void *opaque, uint64_t number);
static void broker_take_over(struct sim *sim, void *opaque, uint64_t session);

static void owner_now(struct sim *sim, struct sim_broker *broker)
{
    owner_tick(broker->owner, sim->now_us, sim->now_us);
}

static bool session_is(const struct sim_broker *broker, uint64_t session)
{
    return broker->owner != NULL && broker->session == session;
}

/* ---- reading ---- */

void broker_wake(struct sim *sim, struct sim_broker *broker)
{
    if (!broker->process.alive || broker->owner == NULL || broker->fetching)
        return;
    broker->fetching = true;
    sim_post(sim, &broker->process, sim_between(sim, 50, 1 * MS), broker_fetch, broker,
             broker->session);
}

static bool fetch_intake(struct sim *sim, struct sim_broker *broker)
{
    struct sim_log *log = &sim->logs[SIM_INTAKE];

    if (kafka_stalled(sim, SIM_INTAKE) || broker->intake_paused)
        return false;
    for (int i = 0; i < FETCH_RECORDS && broker->intake_at < (int64_t)log->count; i++) {
        const struct sim_record *record = &log->records[broker->intake_at];

        owner_on_intake(broker->owner, broker->intake_at++, record->append_us, record->bytes,
                        record->size);
    }
    if (broker->intake_at >= (int64_t)log->count)
        owner_on_intake_end(broker->owner, sim->now_us);
    return broker->intake_at < (int64_t)log->count;
}

static bool fetch_outcome(struct sim *sim, struct sim_broker *broker)
{
    struct sim_log *log = &sim->logs[SIM_OUTCOME];

    if (kafka_stalled(sim, SIM_OUTCOME))
        return false;
    for (int i = 0; i < FETCH_RECORDS && broker->outcome_at < (int64_t)log->count; i++) {
        const struct sim_record *record = &log->records[broker->outcome_at];

        owner_on_outcome(broker->owner, broker->outcome_at++, record->bytes, record->size);
    }
    if (broker->outcome_at >= (int64_t)log->count)
        owner_on_outcome_end(broker->owner, sim->now_us);
    return broker->outcome_at < (int64_t)log->count;
}

static void broker_fetch(struct sim *sim, void *opaque, uint64_t session)
{
    struct sim_broker *broker = opaque;
    bool more;

    if (!session_is(broker, session))
        return;
    broker->fetching = false;
    owner_now(sim, broker);
    more = fetch_intake(sim, broker);
    if (fetch_outcome(sim, broker) || more)
        broker_wake(sim, broker);
    broker_work(sim, broker);
}

static void broker_tick(struct sim *sim, void *opaque, uint64_t session)
{
    struct sim_broker *broker = opaque;

    if (!session_is(broker, session))
        return;
    owner_now(sim, broker);
    if (!kafka_stalled(sim, SIM_OUTCOME) &&
        broker->outcome_at >= (int64_t)sim->logs[SIM_OUTCOME].count)
        owner_on_outcome_end(broker->owner, sim->now_us);
    broker_wake(sim, broker);
    broker_work(sim, broker);
    if (broker->owner != NULL)
        sim_post(sim, &broker->process, TICK_US, broker_tick, broker, session);
}

/* A tick at the time that the owner asked for, so that short delays are seen too. */
static void broker_due(struct sim *sim, void *opaque, uint64_t session)
{
    struct sim_broker *broker = opaque;

    if (!session_is(broker, session))
        return;
    broker->ticking = false;
    owner_now(sim, broker);
    broker_work(sim, broker);
}

/* ---- to-dos ---- */

struct attempt_report {
    struct sim_broker *broker;
    uint64_t session, token;
};

static void attempt_reported(struct sim *sim, void *opaque, uint64_t number, int64_t offset)
{
    struct attempt_report *report = opaque;

    (void)number;
    if (!session_is(report->broker, report->session))
        return;
    owner_now(sim, report->broker);
    owner_on_attempt_reported(report->broker->owner, report->token, offset);
    broker_work(sim, report->broker);
}

/* The dispatch log of the worker: partitions of all pools are counted through here. */
static int worker_log(const struct sim *sim, struct wire_text name)
{
    for (int i = 0; i < sim->worker_count; i++) {
        if (wire_text_equal(name, sim->workers[i].name))
            return sim->workers[i].log;
    }
    return SIM_DISPATCH;
}

static void do_attempt(struct sim *sim, struct sim_broker *broker, const struct owner_todo *todo)
{
    const struct message_attempt *attempt = &todo->attempt.message;
    struct attempt_report *report = sim_alloc(sim, sizeof(*report));

    *report = (struct attempt_report){broker, broker->session, attempt->token};
    sim_trace(sim, "%s sends attempt %llu of job %d, token %u/%u, to %.*s", broker->process.name,
              (unsigned long long)attempt->number, sim_job_of(sim, &attempt->job),
              TOKEN_EPOCH(attempt->token), (uint32_t)attempt->token, (int)attempt->worker.size,
              attempt->worker.text);
    if (attempt->token > sim->jobs[sim_job_of(sim, &attempt->job)].token_max)
        sim->jobs[sim_job_of(sim, &attempt->job)].token_max = attempt->token;
    kafka_produce(sim, &broker->producer, worker_log(sim, attempt->worker), MESSAGE_ATTEMPT,
                  attempt, attempt_reported, report, 0);
}

struct publishing {
    struct sim_broker *broker;
    uint64_t session, flush_number;
    size_t left;
};

static void completed_reported(struct sim *sim, void *opaque, uint64_t number, int64_t offset)
{
    struct publishing *publishing = opaque;

    (void)number;
    (void)offset;
    if (--publishing->left > 0 || !session_is(publishing->broker, publishing->session))
        return;
    owner_now(sim, publishing->broker);
    owner_on_published(publishing->broker->owner, publishing->flush_number);
    broker_work(sim, publishing->broker);
}

static void do_publish(struct sim *sim, struct sim_broker *broker, const struct owner_todo *todo)
{
    struct publishing *publishing = sim_alloc(sim, sizeof(*publishing));

    *publishing = (struct publishing){broker, broker->session, todo->publish.flush_number,
                                      todo->publish.final_count};
    for (size_t i = 0; i < todo->publish.final_count; i++) {
        const struct message_completed *completed = &todo->publish.finals[i].completed;
        int job = sim_job_of(sim, &completed->id);

        redis_set_final(sim, job, completed);
        kafka_produce(sim, &broker->producer, SIM_COMPLETED, MESSAGE_COMPLETED, completed,
                      completed_reported, publishing, 0);
    }
}

static void early_final_keys(struct sim *sim, const struct flush *flush)
{
    for (size_t i = 0; i < flush->job_count; i++) {
        struct message_completed completed = {.id = flush->jobs[i].spec->submit.id,
                                              .state = flush->jobs[i].state,
                                              .output = flush->jobs[i].output};

        if (job_state_final(flush->jobs[i].state))
            redis_set_final(sim, sim_job_of(sim, &completed.id), &completed);
    }
}

static void do_flush(struct sim *sim, struct sim_broker *broker, const struct owner_todo *todo)
{
    struct sim_request *request = sim_alloc(sim, sizeof(*request));

    if (!sim_guarded(sim, OWNER_GUARD_COMMIT_FIRST))
        early_final_keys(sim, todo->flush);
    request->type = SIM_FLUSH;
    request->flush = ledger_copy_flush(sim, todo->flush);
    ledger_ask(sim, broker, request);
}

/* The owner's cursors only move forward: what a LOAD brought is not asked for again. */
static struct ledger_lane *lane_seen(struct sim_broker *broker, const struct ledger_lane *lane)
{
    for (size_t i = 0; i < broker->lane_count; i++) {
        struct ledger_lane *seen = &broker->lanes[i].lane;

        if (seen->rank == lane->rank && strcmp(seen->pool, lane->pool) == 0 &&
            strcmp(seen->tenant, lane->tenant) == 0)
            return seen;
    }
    assert(broker->lane_count < COUNT_OF(broker->lanes));
    broker->lanes[broker->lane_count].lane = *lane;
    broker->lanes[broker->lane_count].lane.after_seq = -1;
    return &broker->lanes[broker->lane_count++].lane;
}

static void do_load(struct sim *sim, struct sim_broker *broker, const struct owner_todo *todo)
{
    struct sim_request *request = sim_alloc(sim, sizeof(*request));

    request->type = SIM_LOAD;
    request->lane = todo->load.lane;
    request->limit = todo->load.limit;
    if (todo->load.lane.after_seq < lane_seen(broker, &todo->load.lane)->after_seq)
        sim_fail(sim, "the cursor of a lane moves back to %lld",
                 (long long)todo->load.lane.after_seq);
    ledger_ask(sim, broker, request);
}

static void do_lookup(struct sim *sim, struct sim_broker *broker, const struct owner_todo *todo)
{
    struct sim_request *request = sim_alloc(sim, sizeof(*request));

    request->type = SIM_LOOKUP;
    request->id_count = todo->lookup.id_count;
    request->ids = sim_alloc(sim, request->id_count * sizeof(*request->ids));
    memcpy(request->ids, todo->lookup.ids, request->id_count * sizeof(*request->ids));
    ledger_ask(sim, broker, request);
}

static void broker_stop(struct sim *sim, struct sim_broker *broker, const char *why)
{
    sim_trace(sim, "%s stops: %s", broker->process.name, why);
    owner_free(&broker->owner);
    broker->session++;
    broker->lane_count = 0;
    broker->fetching = broker->ticking = broker->intake_paused = broker->taking_over = false;
    ledger_client_dies(sim, broker);
}

/* False when the owner is over. */
static bool broker_do(struct sim *sim, struct sim_broker *broker, struct owner_todo *todo)
{
    switch (todo->type) {
    case OWNER_TODO_ATTEMPT:
        do_attempt(sim, broker, todo);
        return true;
    case OWNER_TODO_REVOKE:
        kafka_produce(sim, &broker->producer, worker_log(sim, todo->revoke.message.worker),
                      MESSAGE_REVOKE, &todo->revoke.message, NULL, NULL, 0);
        return true;
    case OWNER_TODO_FLUSH:
        do_flush(sim, broker, todo);
        return true;
    case OWNER_TODO_PUBLISH:
        do_publish(sim, broker, todo);
        return true;
    case OWNER_TODO_VERDICT:
        gateway_on_verdict(sim, &todo->verdict.message);
        return true;
    case OWNER_TODO_LOAD:
        do_load(sim, broker, todo);
        return true;
    case OWNER_TODO_LOOKUP:
        do_lookup(sim, broker, todo);
        return true;
    case OWNER_TODO_INTAKE_PAUSE:
    case OWNER_TODO_INTAKE_RESUME:
        broker->intake_paused = todo->type == OWNER_TODO_INTAKE_PAUSE;
        return true;
    case OWNER_TODO_DEAD:
        if (todo->dead.offset < (int64_t)sim->logs[SIM_INTAKE].count) {
            for (int job = 0; job < sim->job_count; job++)
                sim->jobs[job].dead |= sim->jobs[job].offset == todo->dead.offset;
        }
        return true;
    case OWNER_TODO_STOP:
        broker_stop(sim, broker, todo->stop.why);
        if (broker->assigned) /* the group still names it: it takes over again */
            sim_post(sim, &broker->process, 100 * MS, broker_take_over, broker, broker->session);
        return false;
    }
    return true;
}

static void broker_work(struct sim *sim, struct sim_broker *broker)
{
    struct owner_todo todo;
    struct owner_stats stats;
    uint64_t due_us;

    while (broker->owner != NULL && !sim->failed && owner_next_todo(broker->owner, &todo)) {
        if (!broker_do(sim, broker, &todo))
            return;
    }
    if (broker->owner == NULL)
        return;
    stats = owner_stats(broker->owner);
    if (stats.waiting_in_memory > 0 && stats.running > 0 && stats.waiting_in_memory > SIM_JOBS_MAX)
        sim_fail(sim, "invariant 16: %llu jobs wait in memory",
                 (unsigned long long)stats.waiting_in_memory);
    due_us = owner_next_due_us(broker->owner);
    if (broker->ticking || due_us > sim->now_us + TICK_US)
        return;
    broker->ticking = true;
    sim_post(sim, &broker->process, due_us > sim->now_us ? due_us - sim->now_us : 1 * MS,
             broker_due, broker, broker->session);
}

/* ---- life ---- */

static void broker_take_over(struct sim *sim, void *opaque, uint64_t session)
{
    struct sim_broker *broker = opaque;
    struct sim_request *request;

    if (broker->session != session || !broker->assigned || broker->taking_over ||
        broker->owner != NULL)
        return;
    broker->taking_over = true;
    request = sim_alloc(sim, sizeof(*request));
    request->type = SIM_TAKEOVER;
    ledger_ask(sim, broker, request);
}

void broker_on_takeover(struct sim *sim, struct sim_broker *broker,
                        struct ledger_takeover *takeover)
{
    struct owner_ends ends = {.intake_end = (int64_t)sim->logs[SIM_INTAKE].count,
                              .outcome_end = (int64_t)sim->logs[SIM_OUTCOME].count};

    broker->taking_over = false;
    broker->intake_at = takeover->intake_floor < 0 ? 0 : takeover->intake_floor;
    broker->outcome_at = takeover->outcome_floor < 0 ? 0 : takeover->outcome_floor;
    sim_trace(sim, "%s owns the shard in epoch %u, reads from %lld and %lld up to %lld and %lld",
              broker->process.name, takeover->epoch, (long long)broker->intake_at,
              (long long)broker->outcome_at, (long long)ends.intake_end,
              (long long)ends.outcome_end);
    broker->owner = owner_new(&sim->owner_options, takeover, ends, sim->now_us, sim->now_us);
    broker_wake(sim, broker);
    sim_post(sim, &broker->process, TICK_US, broker_tick, broker, broker->session);
    broker_work(sim, broker);
}

void broker_on_flush(struct sim *sim, struct sim_broker *broker, const struct flush_result *result)
{
    if (broker->owner == NULL)
        return;
    owner_now(sim, broker);
    owner_on_flush(broker->owner, result);
    broker_work(sim, broker);
}

void broker_on_rows(struct sim *sim, struct sim_broker *broker, const struct sim_request *request,
                    struct ledger_row *rows, size_t row_count, bool complete)
{
    if (broker->owner == NULL) {
        for (size_t i = 0; i < row_count; i++)
            job_spec_unref(&rows[i].spec);
        return;
    }
    owner_now(sim, broker);
    if (request->type == SIM_LOAD && row_count > 0)
        lane_seen(broker, &request->lane)->after_seq = (int64_t)rows[row_count - 1].spec->seq;
    if (request->type == SIM_LOAD)
        owner_on_rows(broker->owner, &request->lane, rows, row_count, complete);
    else
        owner_on_lookup(broker->owner, rows, row_count);
    broker_work(sim, broker);
}

void broker_start(struct sim *sim, struct sim_broker *broker)
{
    process_start(&broker->process);
    ledger_client_dies(sim, broker);
}

void broker_crash(struct sim *sim, struct sim_broker *broker)
{
    if (!broker->process.alive)
        return;
    sim_trace(sim, "%s is killed", broker->process.name);
    broker_stop(sim, broker, "killed");
    broker->assigned = false;
    process_kill(&broker->process);
    kafka_producer_dies(sim, &broker->producer);
}

/* The old one hears of it when its session ends; meanwhile it goes on. */
static void broker_hears_of_loss(struct sim *sim, void *opaque, uint64_t session)
{
    struct sim_broker *broker = opaque;

    if (broker->session == session && !broker->assigned && broker->owner != NULL)
        broker_stop(sim, broker, "assignment lost");
}

void broker_assign(struct sim *sim, int index)
{
    struct sim_broker *broker = &sim->brokers[index];

    for (int i = 0; i < SIM_BROKERS; i++) {
        if (i == index || !sim->brokers[i].assigned)
            continue;
        sim->brokers[i].assigned = false;
        if (sim->brokers[i].owner != NULL && sim_percent(sim, 40))
            owner_drain(sim->brokers[i].owner); /* a revoke, not a loss */
        sim_post(sim, &sim->brokers[i].process, sim_between(sim, 0, 3 * SEC), broker_hears_of_loss,
                 &sim->brokers[i], sim->brokers[i].session);
    }
    sim->assigned = index;
    if (broker->owner != NULL || broker->taking_over)
        broker_stop(sim, broker, "assigned anew");
    broker->assigned = true;
    broker->session++;
    sim_post(sim, &broker->process, sim_between(sim, 0, 100 * MS), broker_take_over, broker,
             broker->session);
}
