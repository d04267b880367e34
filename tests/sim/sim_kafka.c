/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Kafka as the protocol needs it: logs with offsets and append times; one producer's records reach
 * one partition in order, or, when it dies, up to some record; reports come later, or never.
 */

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tests/sim/sim.h"

#define STALL_CHECK_US (20 * MS)

void kafka_producer_init(struct sim_producer *producer, struct process *process)
{
    producer->process = process;
    for (int i = 0; i < SIM_LOGS_MAX; i++)
        producer->pipes[i] = (struct sim_pipe){.tail = &producer->pipes[i].head};
}

enum sim_topic kafka_topic(int log)
{
    return log >= LOG_DISPATCH(0) ? SIM_DISPATCH : (enum sim_topic)(log / SIM_SHARDS_MAX);
}

bool kafka_stalled(const struct sim *sim, int log)
{
    return sim->logs[log].stalled_until_us > sim->now_us;
}

static int64_t log_append(struct sim *sim, int index, struct sim_record record)
{
    struct sim_log *log = &sim->logs[index];

    if (log->count == log->room) {
        log->room = log->room == 0 ? 64 : 2 * log->room;
        log->records = xrealloc(log->records, log->room, sizeof(*log->records));
    }
    record.append_us = sim->now_us;
    log->records[log->count++] = record;
    return (int64_t)log->count - 1;
}

struct sim_report {
    sim_report_fn *fn;
    void *opaque;
    int64_t offset;
};

static void report_arrives(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_report *report = opaque;

    report->fn(sim, report->opaque, number, report->offset);
}

static void readers_wake(struct sim *sim, int log)
{
    if (log < LOG_COMPLETED(0)) {
        for (int i = 0; i < SIM_BROKERS; i++)
            seat_wake(sim, &sim->brokers[i].seats[log % SIM_SHARDS_MAX]);
    }
    if (kafka_topic(log) == SIM_COMPLETED)
        webhook_wake(sim, log - LOG_COMPLETED(0));
    if (log < LOG_DISPATCH(0))
        return;
    for (int i = 0; i < sim->worker_count; i++) {
        if (sim->workers[i].log == log)
            worker_wake(sim, &sim->workers[i]);
    }
}

static int pipe_log(const struct sim_producer *producer, const struct sim_pipe *pipe)
{
    return (int)(pipe - producer->pipes);
}

struct duplicate {
    int log;
    struct sim_record record;
};

static void duplicate_arrives(struct sim *sim, void *opaque, uint64_t number)
{
    struct duplicate *duplicate = opaque;

    (void)number;
    if (kafka_stalled(sim, duplicate->log))
        return;
    check_append(sim, duplicate->log, log_append(sim, duplicate->log, duplicate->record));
    readers_wake(sim, duplicate->log);
}

/* A second copy of a record, as a producer without idempotence leaves one. Of a Submit it may come
 * late; of what a worker says at once, since heartbeats are ordered by their place. */
static void duplicate_soon(struct sim *sim, int log, const struct sim_record *record)
{
    struct duplicate *duplicate = sim_alloc(sim, sizeof(*duplicate));

    sim_hit(sim, FAULT_KAFKA_DUPLICATE);
    *duplicate = (struct duplicate){log, *record};
    if (kafka_topic(log) == SIM_OUTCOME)
        duplicate_arrives(sim, duplicate, 0);
    else
        sim_post(sim, NULL, sim_between(sim, 0, 3 * SEC), duplicate_arrives, duplicate, 0);
}

static void report_later(struct sim *sim, const struct sim_producer *producer,
                         const struct sim_pending *pending, int64_t offset)
{
    struct sim_report *report;

    if (pending->report == NULL)
        return;
    report = sim_alloc(sim, sizeof(*report));
    *report = (struct sim_report){pending->report, pending->opaque, offset};
    sim_post(sim, producer->process, sim_between(sim, 50, 2 * MS), report_arrives, report,
             pending->number);
}

static void arrives(struct sim *sim, const struct sim_producer *producer, int log,
                    const struct sim_pending *pending, bool told)
{
    int64_t offset = log_append(sim, log, pending->record);

    check_append(sim, log, offset);
    readers_wake(sim, log);
    if (sim->faults.kafka_duplicate && log < LOG_COMPLETED(0) && sim_percent(sim, 3))
        duplicate_soon(sim, log, &pending->record);
    report_later(sim, producer, pending, told ? offset : -1);
}

/* Its producer has given it up: nobody knows whether Kafka has it. */
static void given_up(struct sim *sim, const struct sim_producer *producer, int log,
                     const struct sim_pending *pending)
{
    uint32_t type = 0;
    struct err err;

    if (sim_percent(sim, 50)) {
        sim_hit(sim, FAULT_KAFKA_POSSIBLY);
        arrives(sim, producer, log, pending, false);
        return;
    }
    sim_hit(sim, FAULT_KAFKA_REFUSED);
    if (wire_peek_type(pending->record.bytes, pending->record.size, &type, &err) == 0 &&
        type == MESSAGE_HELLO)
        sim_hit(sim, FAULT_HELLO_LOST);
    report_later(sim, producer, pending, -1);
}

/* The first record of the pipe arrives; then the next one. */
static void pipe_pump(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_producer *producer = opaque;
    int log = (int)number;
    struct sim_pipe *pipe = &producer->pipes[log];
    struct sim_pending *pending = pipe->head;

    pipe->pumping = false;
    if (pending == NULL)
        return;
    if (kafka_stalled(sim, log) || pending->at_us > sim->now_us) {
        uint64_t wait_us = pending->at_us > sim->now_us ? pending->at_us - sim->now_us : 0;

        pipe->pumping = true;
        sim_post(sim, NULL, wait_us > STALL_CHECK_US ? wait_us : STALL_CHECK_US, pipe_pump,
                 producer, number);
        return;
    }
    pipe->head = pending->next;
    if (pipe->head == NULL)
        pipe->tail = &pipe->head;
    if (sim->faults.kafka_refuse && sim_percent(sim, 1))
        given_up(sim, producer, log, pending);
    else
        arrives(sim, producer, log, pending, true);
    if (pipe->head != NULL && !pipe->pumping) {
        pipe->pumping = true;
        sim_post(sim, NULL, 0, pipe_pump, producer, number);
    }
}

void kafka_produce_bytes(struct sim *sim, struct sim_producer *producer, int log, const void *bytes,
                         size_t size, sim_report_fn *report, void *opaque, uint64_t number)
{
    struct sim_pipe *pipe = &producer->pipes[log];
    struct sim_pending *pending = sim_alloc(sim, sizeof(*pending));
    struct wire_bytes copy = sim_copy(sim, bytes, size);

    assert(pipe_log(producer, pipe) == log);
    pending->record = (struct sim_record){.bytes = copy.bytes, .size = size};
    pending->record.newer = sim->newer_submits && kafka_topic(log) == SIM_INTAKE &&
                            sim_percent(sim, 30);
    pending->at_us = sim->now_us + sim_between(sim, 100, 2 * MS);
    if (sim_percent(sim, 5)) {
        sim_hit(sim, FAULT_KAFKA_DELAY);
        pending->at_us += sim_between(sim, 0, 300 * MS);
    }
    if (pending->at_us < pipe->last_us)
        pending->at_us = pipe->last_us;
    pipe->last_us = pending->at_us;
    pending->report = report;
    pending->opaque = opaque;
    pending->number = number;
    *pipe->tail = pending;
    pipe->tail = &pending->next;
    if (!pipe->pumping) {
        pipe->pumping = true;
        sim_post(sim, NULL, pending->at_us - sim->now_us, pipe_pump, producer, (uint64_t)log);
    }
}

void kafka_produce(struct sim *sim, struct sim_producer *producer, int log, enum message_type type,
                   const void *fields, sim_report_fn *report, void *opaque, uint64_t number)
{
    OWNED(buf_done) struct buf buf = BUF_WITH_LIMIT(1 << 20);
    struct err err;

    if (message_encode(type, fields, &buf, &err) < 0) {
        sim_fail(sim, "a %s cannot be encoded: %s", message_type_name(type), err.text);
        return;
    }
    kafka_produce_bytes(sim, producer, log, buf.bytes, buf.size, report, opaque, number);
}

/* What was on its way arrives up to some record; nobody hears of it. */
void kafka_producer_dies(struct sim *sim, struct sim_producer *producer)
{
    for (int i = 0; i < SIM_LOGS_MAX; i++) {
        struct sim_pipe *pipe = &producer->pipes[i];
        struct sim_pending **at = &pipe->head;

        while (*at != NULL && sim_percent(sim, 60)) {
            (*at)->report = NULL;
            at = &(*at)->next;
        }
        *at = NULL;
        pipe->tail = at;
    }
}
