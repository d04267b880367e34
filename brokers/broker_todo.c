/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Carries out what the owner of a shard asks for; each answer goes back to it as an event.
 *
 * Failures: an Attempt that cannot be sent is reported as such, the owner ends its token. A ledger
 * read that fails ends this ownership: it is taken over again. STOP with ERR_STALE: another owner
 * is there, we let go and try again only if Kafka still calls the shard ours after a second. STOP
 * for a record of a newer program: the shard is left to somebody who can read it.
 *
 * An undecodable record of intake goes to intake.dead, and nothing else of the shard happens until
 * Kafka has it: the floor must not pass a record that is nowhere (PROTOCOL 14).
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/broker.h"
#include "brokers/fault.h"
#include "schema/job_id.h"
#include "schema/topics.h"

/* ---- Records to workers */

static void on_attempt_reported(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct shard *shard = opaque;

    if (shard->phase == SHARD_OWNED) {
        fault_point(FAULT_broker_attempt_sent);
        shard_touch(shard);
        owner_on_attempt_reported(shard->owner, tag, report->offset);
        if (report->code != ERR_OK)
            log_warn("attempt_not_sent", LOG_U64("shard", shard->number), LOG_U64("token", tag),
                     LOG_STR("code", err_name(report->code)), LOG_STR("error", report->why));
    }
    shard_unref(&shard);
}

/* Encodes into the scratch buffer and hands it to Kafka. */
static int dispatch_produce(struct shard *shard, struct wire_text pool, enum message_type type,
                            const void *fields, struct queue_message *message, struct err *err)
{
    struct broker *broker = shard->broker;
    char name[TOPIC_NAME_SIZE];
    int r = topic_dispatch_name(pool, name, err);

    buf_clear(&broker->scratch);
    if (r == 0)
        r = message_encode(type, fields, &broker->scratch, err);
    if (r < 0)
        return r;
    message->topic = queue_producer_topic(broker->producer, name);
    message->bytes = broker->scratch.bytes;
    message->size = broker->scratch.size;
    return queue_produce(broker->producer, message, err);
}

static void carry_out_attempt(struct shard *shard, const struct owner_todo *todo)
{
    struct message_attempt attempt = todo->attempt.message;
    char trace[TRACE_PARENT_SIZE], header[64];
    struct queue_message message = {
        .partition = todo->attempt.partition,
        .trace = header,
        .done = on_attempt_reported,
        .opaque = shard_ref(shard),
        .tag = attempt.token,
    };
    char job[JOB_ID_TEXT_SIZE];
    struct err err;

    broker_public_attempt(shard->broker, todo, clock_wall_us());
    broker_trace_attempt(shard->broker, todo, &attempt, trace);
    (void)snprintf(header, sizeof(header), "%.*s", (int)attempt.trace.size, attempt.trace.text);
    if (dispatch_produce(shard, todo->attempt.pool, MESSAGE_ATTEMPT, &attempt, &message, &err) == 0)
        return;
    job_id_format(&attempt.job, job);
    log_warn("attempt_not_sent", LOG_STR("job", job), LOG_U64("attempt", attempt.number),
             LOG_TEXT("tenant", attempt.tenant.text, attempt.tenant.size),
             LOG_TRACE(attempt.trace.text, attempt.trace.size), LOG_U64("shard", shard->number),
             LOG_U64("token", attempt.token), LOG_ERR(&err));
    owner_on_attempt_reported(shard->owner, attempt.token, -1);
    shard_unref(&shard);
}

static void carry_out_revoke(struct shard *shard, const struct owner_todo *todo)
{
    struct queue_message message = {.partition = todo->revoke.partition};
    struct err err;

    if (dispatch_produce(shard, todo->revoke.pool, MESSAGE_REVOKE, &todo->revoke.message, &message,
                         &err) < 0)
        log_warn("revoke_not_sent", LOG_U64("shard", shard->number),
                 LOG_U64("token", todo->revoke.message.token), LOG_ERR(&err));
}

/* ---- The ledger */

static void refused_log(const struct shard *shard, const struct flush_result *result)
{
    const struct message_submit *submit;
    char job[JOB_ID_TEXT_SIZE];

    assert(result->refused_index < shard->flush->job_count);
    submit = &shard->flush->jobs[result->refused_index].spec->submit;
    job_id_format(&submit->id, job);
    log_error("row_refused", LOG_STR("job", job),
              LOG_U64("attempt", shard->flush->jobs[result->refused_index].attempt_count),
              LOG_TEXT("tenant", submit->tenant.text, submit->tenant.size),
              LOG_TRACE(submit->trace.text, submit->trace.size), LOG_U64("shard", shard->number),
              LOG_U64("flush", result->number), LOG_STR("error", result->refused_why));
}

static void on_flush(void *opaque, const struct flush_result *result)
{
    struct shard *shard = opaque;

    if (shard->phase != SHARD_OWNED)
        return;
    metric_observe(shard->broker->flush_seconds,
                   (double)(clock_mono_us() - shard->flush_sent_us) / 1e6);
    if (result->verdict == FLUSH_REFUSED)
        refused_log(shard, result);
    if (result->verdict == FLUSH_COMMITTED && shard->flush->job_count > 0)
        fault_point(FAULT_broker_committed);
    shard->flush = NULL;
    shard_touch(shard);
    owner_on_flush(shard->owner, result);
}

static void carry_out_flush(struct shard *shard, const struct flush *flush)
{
    metric_observe(shard->broker->flush_jobs, (double)flush->job_count);
    shard->flush_sent_us = clock_mono_us();
    shard->flush = flush;
    store_flush(shard->store, flush, on_flush, shard);
    if (shard->broker->election != NULL && flush->intake_floor >= 0)
        queue_election_store(shard->broker->election, shard->number, flush->intake_floor);
}

/* Answers to an owner that is no more. */
static void rows_drop(struct ledger_row *rows, size_t row_count)
{
    for (size_t i = 0; i < row_count; i++)
        job_spec_unref(&rows[i].spec);
}

static void on_rows(void *opaque, const struct ledger_lane *lane, struct ledger_row *rows,
                    size_t row_count, bool complete, struct err *err)
{
    struct shard *shard = opaque;

    if (shard->phase != SHARD_OWNED) {
        rows_drop(rows, row_count);
        return;
    }
    if (err != NULL && err->code != ERR_OK) {
        shard_retry(shard, err);
        return;
    }
    shard_touch(shard);
    if (lane != NULL)
        owner_on_rows(shard->owner, lane, rows, row_count, complete);
    else
        owner_on_lookup(shard->owner, rows, row_count);
}

static void on_due(void *opaque, const struct ledger_due *due, struct ledger_row *rows,
                   size_t row_count, bool complete, struct err *err)
{
    struct shard *shard = opaque;

    if (shard->phase != SHARD_OWNED) {
        rows_drop(rows, row_count);
        return;
    }
    if (err->code != ERR_OK) {
        shard_retry(shard, err);
        return;
    }
    shard_touch(shard);
    owner_on_due(shard->owner, due, rows, row_count, complete);
}

/* ---- Gateways and the dead letter topic */

static void carry_out_verdict(struct shard *shard, const struct owner_todo *todo)
{
    struct buf *scratch = &shard->broker->scratch;
    struct err err;

    buf_clear(scratch);
    if (message_encode(MESSAGE_WAKE, &todo->verdict.message, scratch, &err) == 0)
        (void)cache_wake(shard->broker->cache, todo->verdict.gateway, scratch->bytes,
                         scratch->size); /* a hint: the gateway asks Postgres as well */
}

static void dead_send(struct shard *shard, const struct owner_todo *todo);

static void on_dead_reported(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct shard *shard = opaque;

    (void)tag;
    if (shard->phase == SHARD_OWNED && report->code == ERR_OK) {
        shard->held = false;
        shard_touch(shard);
    } else if (shard->phase == SHARD_OWNED) {
        struct err err;

        /* The record is still at the floor: the next owner, most likely we, finds it again. */
        (void)err_set(&err, report->code, "send to %s: %s", topic_name(TOPIC_INTAKE_DEAD),
                      report->why);
        shard_retry(shard, &err);
    }
    shard_unref(&shard);
}

static void dead_send(struct shard *shard, const struct owner_todo *todo)
{
    struct broker *broker = shard->broker;
    char key[64];
    const struct queue_message message = {
        .topic = broker->intake_dead,
        .key = key,
        .key_size = (size_t)snprintf(key, sizeof(key), "intake[%u]@%" PRId64, shard->number,
                                     todo->dead.offset),
        .bytes = todo->dead.bytes,
        .size = todo->dead.size,
        .done = on_dead_reported,
        .opaque = shard_ref(shard),
    };
    struct err err;

    log_error("record_dead", LOG_U64("shard", shard->number), LOG_I64("offset", todo->dead.offset),
              LOG_U64("size", todo->dead.size), LOG_STR("error", todo->dead.why));
    shard->held = true;
    if (queue_produce(broker->producer, &message, &err) == 0)
        return;
    shard_retry(shard, &err);
    shard_unref(&shard);
}

static void carry_out_stop(struct shard *shard, const struct owner_todo *todo)
{
    struct err err;

    (void)err_set(&err, todo->stop.code, "%s", todo->stop.why);
    if (todo->stop.code == ERR_STALE)
        shard_retry(shard, &err);
    else
        broker_give_up(shard, &err);
}

/* ---- All of them */

static void carry_out(struct shard *shard, const struct owner_todo *todo)
{
    switch (todo->type) {
    case OWNER_TODO_ATTEMPT:
        carry_out_attempt(shard, todo);
        break;
    case OWNER_TODO_REVOKE:
        carry_out_revoke(shard, todo);
        break;
    case OWNER_TODO_FLUSH:
        carry_out_flush(shard, todo->flush);
        break;
    case OWNER_TODO_PUBLISH:
        publication_add(shard, todo->publish.flush_number, todo->publish.finals,
                        todo->publish.final_count);
        break;
    case OWNER_TODO_VERDICT:
        carry_out_verdict(shard, todo);
        break;
    case OWNER_TODO_LOAD:
        store_load(shard->store, shard->number, &todo->load.lane, todo->load.limit, on_rows, shard);
        break;
    case OWNER_TODO_LOOKUP:
        store_lookup(shard->store, todo->lookup.ids, todo->lookup.id_count, on_rows, shard);
        break;
    case OWNER_TODO_DUE:
        store_due(shard->store, shard->number, &todo->due.cursor, todo->due.limit, on_due, shard);
        break;
    case OWNER_TODO_COMMANDS:
        carry_out_commands(shard, todo);
        break;
    case OWNER_TODO_PLACE:
        carry_out_place(shard, &todo->place);
        break;
    case OWNER_TODO_INTAKE_PAUSE:
        log_warn("intake_paused", LOG_U64("shard", shard->number));
        queue_reader_pause(shard->intake);
        break;
    case OWNER_TODO_INTAKE_RESUME:
        log_info("intake_resumed", LOG_U64("shard", shard->number));
        queue_reader_resume(shard->intake);
        break;
    case OWNER_TODO_DEAD:
        dead_send(shard, todo);
        break;
    case OWNER_TODO_STOP:
        carry_out_stop(shard, todo);
        break;
    }
}

void shard_carry_out(struct shard *shard)
{
    struct owner_todo todo;

    while (shard->phase == SHARD_OWNED && !shard->held && owner_next_todo(shard->owner, &todo))
        carry_out(shard, &todo);
}
