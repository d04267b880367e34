/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Workers: they read their dispatch partition from its end, say Hello, grant credit, run, and tell.
 * One producer, one partition: a Finished stands before any heartbeat that does not hold its token.
 */

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "tests/sim/sim.h"

#define BEAT_US (500 * MS)

int worker_outcome(const struct sim *sim, const struct sim_worker *worker)
{
    return LOG_OUTCOME(worker->pool % sim->shard_count);
}

static uint64_t partition_of(const struct sim_worker *worker)
{
    return (uint64_t)(worker->log - LOG_DISPATCH(0));
}

static uint64_t running_count(const struct sim_worker *worker)
{
    uint64_t count = 0;

    for (size_t i = 0; i < worker->held_count; i++)
        count += worker->held[i].state != HELD_UNREPORTED;
    return count;
}

static void worker_beat(struct sim *sim, struct sim_worker *worker)
{
    uint64_t tokens[COUNT_OF(worker->held)];
    uint8_t jobs[sizeof(tokens) / sizeof(tokens[0]) * WIRE_ID_SIZE];
    uint64_t free_slots = worker->slots - running_count(worker);
    struct message_heartbeat beat = {.worker = WIRE_TEXT_OF(worker->name),
                                     .boot = worker->boot,
                                     .pool = sim_pool_name(worker->pool),
                                     .partition = partition_of(worker),
                                     .slots = worker->slots,
                                     .granted = worker->received + free_slots,
                                     .received = worker->received,
                                     .position = worker->position,
                                     .tokens = {tokens, worker->held_count},
                                     .jobs = {jobs, worker->held_count * WIRE_ID_SIZE}};

    for (size_t i = 0; i < worker->held_count; i++) {
        tokens[i] = worker->held[i].token;
        memcpy(jobs + i * WIRE_ID_SIZE, &worker->held[i].job, WIRE_ID_SIZE);
    }
    if (beat.granted < worker->granted_told)
        beat.granted = worker->granted_told; /* what was granted stays granted */
    worker->granted_told = beat.granted;
    kafka_produce(sim, &worker->producer, worker_outcome(sim, worker), MESSAGE_HEARTBEAT, &beat,
                  NULL, NULL, 0);
}

static void worker_beats(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_worker *worker = opaque;

    (void)number;
    worker_beat(sim, worker);
    sim_post(sim, &worker->process, BEAT_US, worker_beats, worker, 0);
}

static struct sim_held *held_find(struct sim_worker *worker, uint64_t token)
{
    for (size_t i = 0; i < worker->held_count; i++) {
        if (worker->held[i].token == token)
            return &worker->held[i];
    }
    return NULL;
}

static void held_drop(struct sim_worker *worker, uint64_t token)
{
    struct sim_held *held = held_find(worker, token);

    if (held != NULL)
        *held = worker->held[--worker->held_count];
}

static void finish_reported(struct sim *sim, void *opaque, uint64_t token, int64_t offset)
{
    struct sim_worker *worker = opaque;

    (void)sim;
    (void)offset;
    held_drop(worker, token);
}

static enum error_class run_result(struct sim *sim, const struct sim_job *job, bool alone)
{
    static const enum error_class classes[] = {
        ERROR_CLASS_MODEL_ERROR, ERROR_CLASS_MODEL_ERROR,  ERROR_CLASS_MODEL_UNAVAILABLE,
        ERROR_CLASS_OOM,         ERROR_CLASS_BAD_INPUT,    ERROR_CLASS_MODEL_TIMEOUT,
        ERROR_CLASS_OOM,         ERROR_CLASS_DEVICE_FAULT,
    };

    enum error_class class;

    if (alone || !sim_percent(sim, job->fail_percent))
        return ERROR_CLASS_NONE;
    class = classes[sim_between(sim, 0, COUNT_OF(classes) - 1)];
    if (class == ERROR_CLASS_DEVICE_FAULT)
        sim->worker_faulted = true; /* it pays from the same budget */
    return class;
}

static void worker_finish(struct sim *sim, struct sim_worker *worker, struct sim_held *held,
                          enum error_class class)
{
    char output[64];
    struct message_finished finished = {.job = held->job,
                                        .token = held->token,
                                        .worker = WIRE_TEXT_OF(worker->name),
                                        .boot = worker->boot,
                                        .error_class = class,
                                        .started_us = sim->now_us,
                                        .finished_us = sim->now_us,
                                        .number = held->number};

    /* Each attempt has a result of its own, so that two published ones cannot be equal. */
    (void)snprintf(output, sizeof(output), "result of %llx", (unsigned long long)held->token);
    if (class == ERROR_CLASS_NONE)
        finished.output = (struct wire_bytes){(const uint8_t *)output, strlen(output)};
    else
        finished.error_message = WIRE_TEXT_OF("it went wrong");
    finished.output_size = finished.output.size;
    held->state = HELD_UNREPORTED;
    kafka_produce(sim, &worker->producer, worker_outcome(sim, worker), MESSAGE_FINISHED, &finished,
                  finish_reported, worker, held->token);
}

static void run_ends(struct sim *sim, void *opaque, uint64_t token)
{
    struct sim_worker *worker = opaque;
    struct sim_held *held = held_find(worker, token);

    if (held == NULL || held->state != HELD_RUNNING)
        return; /* revoked */
    worker_finish(sim, worker, held,
                  run_result(sim, &sim->jobs[sim_job_of(sim, &held->job)], held->alone));
    worker_beat(sim, worker);
}

static void run_starts(struct sim *sim, struct sim_worker *worker, struct sim_held *held)
{
    const struct sim_job *job = &sim->jobs[sim_job_of(sim, &held->job)];
    struct message_started started = {.job = held->job,
                                      .token = held->token,
                                      .worker = WIRE_TEXT_OF(worker->name),
                                      .started_us = sim->now_us,
                                      .number = held->number};

    held->state = HELD_RUNNING;
    check_run(sim, worker, held);
    kafka_produce(sim, &worker->producer, worker_outcome(sim, worker), MESSAGE_STARTED, &started,
                  NULL, NULL, 0);
    sim_post(sim, &worker->process, job->service_us, run_ends, worker, held->token);
}

static void read_attempt(struct sim *sim, struct sim_worker *worker,
                         const struct message_attempt *attempt)
{
    struct sim_held *held;

    if (!wire_text_equal(attempt->worker, worker->name))
        return;
    if (attempt->boot != worker->boot && sim_guarded(sim, OWNER_GUARD_BOOT))
        return;
    if (TOKEN_EPOCH(attempt->token) < worker->epoch_seen)
        return;
    worker->epoch_seen = TOKEN_EPOCH(attempt->token);
    worker->received++;
    if (held_find(worker, attempt->token) != NULL || worker->held_count == COUNT_OF(worker->held)) {
        sim_fail(sim, "%s was sent token %llx twice, or far too much", worker->name,
                 (unsigned long long)attempt->token);
        return;
    }
    held = &worker->held[worker->held_count++];
    *held = (struct sim_held){.token = attempt->token,
                              .job = attempt->job,
                              .state = HELD_WAITING,
                              .number = (uint32_t)attempt->number,
                              .boot = attempt->boot,
                              .alone = attempt->alone};
}

static void read_revoke(struct sim *sim, struct sim_worker *worker,
                        const struct message_revoke *revoke)
{
    struct sim_held *held = held_find(worker, revoke->token);

    if (!wire_text_equal(revoke->worker, worker->name) || revoke->boot != worker->boot ||
        held == NULL || held->state == HELD_UNREPORTED)
        return;
    sim_trace(sim, "%s lets go of token %u/%u", worker->name, TOKEN_EPOCH(revoke->token),
              (uint32_t)revoke->token);
    held_drop(worker, revoke->token);
}

/* All that is fetched is read before anything is started; what exceeds the slots goes back. */
static void worker_fetch(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_worker *worker = opaque;
    struct sim_log *log = &sim->logs[worker->log];
    struct message message;
    struct err err;
    uint64_t running = 0;

    (void)number;
    worker->fetching = false;
    if (kafka_stalled(sim, worker->log)) {
        worker_wake(sim, worker);
        return;
    }
    while (worker->position < log->count) {
        const struct sim_record *record = &log->records[worker->position++];

        if (message_decode(sim->decoder, record->bytes, record->size, &message, &err) < 0)
            NEVER("a dispatch record cannot be decoded");
        if (message.type == MESSAGE_ATTEMPT)
            read_attempt(sim, worker, &message.attempt);
        else
            read_revoke(sim, worker, &message.revoke);
    }
    for (size_t i = 0; i < worker->held_count; i++)
        running += worker->held[i].state == HELD_RUNNING;
    for (size_t i = 0; i < worker->held_count; i++) {
        struct sim_held *held = &worker->held[i];

        if (held->state != HELD_WAITING)
            continue;
        if (running < worker->slots) {
            running++;
            run_starts(sim, worker, held);
        } else {
            worker_finish(sim, worker, held, ERROR_CLASS_HANDED_BACK);
        }
    }
    worker_beat(sim, worker);
}

void worker_wake(struct sim *sim, struct sim_worker *worker)
{
    if (!worker->process.alive || worker->fetching)
        return;
    worker->fetching = true;
    sim_post(sim, &worker->process,
             sim_between(sim, 50, 2 * MS) +
                 (kafka_stalled(sim, worker->log)
                      ? sim->logs[worker->log].stalled_until_us - sim->now_us
                      : 0),
             worker_fetch, worker, 0);
}

static void worker_is_up(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_worker *worker = opaque;
    struct message_hello hello = {.worker = WIRE_TEXT_OF(worker->name),
                                  .boot = worker->boot,
                                  .pool = sim_pool_name(worker->pool),
                                  .partition = partition_of(worker),
                                  .slots = worker->slots};

    (void)number;
    if (worker->position < sim->logs[worker->log].count && worker->position > 0)
        sim_hit(sim, FAULT_WORKER_REBOOT_UNREAD);
    worker->position = sim->logs[worker->log].count;
    hello.position = worker->position;
    kafka_produce(sim, &worker->producer, worker_outcome(sim, worker), MESSAGE_HELLO, &hello, NULL,
                  NULL, 0);
    worker_beats(sim, worker, 0);
}

void worker_start(struct sim *sim, struct sim_worker *worker)
{
    process_start(&worker->process);
    worker->boot++;
    worker->received = worker->granted_told = 0;
    worker->epoch_seen = 0;
    worker->held_count = 0;
    worker->fetching = false;
    sim_post(sim, &worker->process, sim_between(sim, 0, 50 * MS), worker_is_up, worker, 0);
}

static void worker_restarts(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_worker *worker = opaque;

    (void)number;
    if (!worker->process.alive)
        worker_start(sim, worker);
}

static void agent_tells_gone(struct sim *sim, struct sim_worker *worker)
{
    struct message_gone gone = {.worker = WIRE_TEXT_OF(worker->name), .boot = worker->boot};
    struct sim_producer *producer = &sim->machines[worker->machine].producer;

    sim_hit(sim, FAULT_GONE_PROMPT);
    kafka_produce(sim, producer, worker_outcome(sim, worker), MESSAGE_GONE, &gone, NULL, NULL, 0);
    if (!sim_percent(sim, 20))
        return;
    sim_hit(sim, FAULT_GONE_TWICE);
    kafka_produce(sim, producer, worker_outcome(sim, worker), MESSAGE_GONE, &gone, NULL, NULL, 0);
}

void worker_crash(struct sim *sim, struct sim_worker *worker, bool agent_tells)
{
    if (!worker->process.alive)
        return;
    sim_trace(sim, "%s is killed", worker->name);
    if (worker->held_count > 0)
        sim_hit(sim, FAULT_WORKER_CRASH);
    process_kill(&worker->process);
    kafka_producer_dies(sim, &worker->producer);
    if (agent_tells)
        agent_tells_gone(sim, worker);
    sim_post(sim, NULL, sim_between(sim, 10 * MS, 3 * SEC), worker_restarts, worker, 0);
}

/* SIGTERM: what runs goes back, and it says Bye; all that it said arrives. */
void worker_leave(struct sim *sim, struct sim_worker *worker)
{
    struct message_bye bye = {.worker = WIRE_TEXT_OF(worker->name), .boot = worker->boot};

    if (!worker->process.alive || worker->process.paused_until_us > sim->now_us)
        return;
    sim_trace(sim, "%s leaves", worker->name);
    sim_hit(sim, FAULT_WORKER_LEAVE);
    for (size_t i = 0; i < worker->held_count; i++) {
        if (worker->held[i].state != HELD_UNREPORTED)
            worker_finish(sim, worker, &worker->held[i], ERROR_CLASS_HANDED_BACK);
    }
    kafka_produce(sim, &worker->producer, worker_outcome(sim, worker), MESSAGE_BYE, &bye, NULL,
                  NULL, 0);
    process_kill(&worker->process);
    sim_post(sim, NULL, sim_between(sim, 10 * MS, 3 * SEC), worker_restarts, worker, 0);
}
