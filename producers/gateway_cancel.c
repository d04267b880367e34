/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Cancel: a record in intake[s], behind the job's Submit; the owner's order decides.
 *
 *   look the job up -> (final already: answer) -> produce Cancel -> verdict -> answer
 *
 * The verdict comes as a wake-up, which is a hint that may be lost: every LOOK_MS Postgres is asked
 * for all that wait. A job that Postgres does not know yet is canceled all the same, its Submit
 * comes first in the partition. With Postgres away the wake-up alone must do.
 *
 * Whose job it is, only the owner and the row know: what a wake-up says of an id is not passed on
 * unless it is the verdict of this very cancel. The job of another tenant is one that there is not.
 *
 * Failures: no verdict within cancel_wait is 504: perhaps it is canceled, perhaps it will be.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "brokers/pg.h"
#include "brokers/queue.h"
#include "producers/gateway.h"
#include "producers/gateway_body.h"
#include "producers/gateway_view.h"
#include "schema/message.h"

#define LOOK_MS 250
#define WAITING_MAX 10000

PG_STATEMENT(cancel_find, "SELECT state, tenant FROM job WHERE id = $1");
PG_STATEMENT(cancel_floor, "SELECT floor_at FROM flush WHERE shard = $1 "
                           "ORDER BY epoch DESC, number DESC LIMIT 1");
/* Of one that waits for its run_at, and that no gateway is sending: then nobody else has to do with
 * it. The second statement also tells of one that was canceled before. */
PG_STATEMENT(cancel_plan,
             "UPDATE planned SET canceled_at = now() WHERE job_id = $1 AND tenant = $2 "
             "AND canceled_at IS NULL AND (claimed_until > now()) IS NOT TRUE AND NOT "
             "EXISTS (SELECT FROM job WHERE id = $1)");
PG_STATEMENT(cancel_planned, "SELECT canceled_at IS NOT NULL FROM planned WHERE job_id = $1 AND "
                             "tenant = $2 AND NOT EXISTS (SELECT FROM job WHERE id = $1)");
PG_STATEMENT(cancel_look, "SELECT id, state, tenant FROM job WHERE id = ANY($1)");

struct cancel {
    TAILQ_ENTRY(cancel) link;
    struct call *call; /* NULL: answered, its report or answer is still due */
    struct gateway *gateway;
    struct wire_id id;
    uint64_t request; /* its number on the wire */
    uint64_t give_up_ms;
    bool reported; /* Kafka has said something about the record */
    bool refused;  /* the verdict was no: the row says why, if there is one */
    bool asked;    /* refused before the question that is out */
    bool found;    /* the answer to it has the row */
};

int gateway_cancel_produce(struct gateway *gateway, const struct wire_id *id, const char *tenant,
                           struct err *err)
{
    const struct message_cancel cancel = {.id = *id, .tenant = WIRE_TEXT_OF(tenant)};
    OWNED(buf_done) struct buf record = BUF_WITH_LIMIT(1024);
    struct queue_message message;
    int r = message_encode(MESSAGE_CANCEL, &cancel, &record, err);

    message = (struct queue_message){.topic = gateway->intake,
                                     .partition = job_id_shard(id),
                                     .bytes = record.bytes,
                                     .size = record.size};
    return r < 0 ? r : queue_produce(gateway->producer, &message, err);
}

void gateway_cancel_silently(struct gateway *gateway, const struct wire_id *id, const char *tenant)
{
    char text[JOB_ID_TEXT_SIZE];
    struct err err;

    if (gateway_cancel_produce(gateway, id, tenant, &err) == 0)
        return;
    job_id_format(id, text);
    log_warn("cancel_not_sent", LOG_STR("job", text), LOG_STR("tenant", tenant), LOG_ERR(&err));
}

struct cancels {
    struct gateway *gateway;
    TAILQ_HEAD(, cancel) waiting;
    struct loop_timer *look; /* runs while something waits */
    uint64_t last_request;
    uint32_t count;
    bool looking;
};

static void cancel_answer(struct call *call, bool canceled, const char *why)
{
    struct buf to = BUF_WITH_LIMIT(4096);

    buf_printf(&to, "{\"request_id\":\"%s\",\"canceled\":%s,\"message\":", call->job,
               canceled ? "true" : "false");
    json_append_string(&to, why, strlen(why));
    buf_append_byte(&to, '}');
    call_answer(&call, 200, &to);
}

static void answer_not_found(struct call *call)
{
    call_fail_as(&call, 404, "client_error", "there is no such request");
}

static void answer_final(struct call *call, enum job_state state)
{
    char text[96];

    (void)snprintf(text, sizeof(text), "the request is %s", job_state_name(state));
    cancel_answer(call, state == JOB_CANCELED, text);
}

/* Frees it once nobody will call back with it any more. */
static void cancel_settle(struct cancel *cancel)
{
    struct cancels *cancels = cancel->gateway->cancels;

    if (cancel->call != NULL || !cancel->reported)
        return;
    TAILQ_REMOVE(&cancels->waiting, cancel, link);
    cancels->count--;
    free(cancel);
}

static void cancel_finish(struct cancel *cancel, enum job_state state)
{
    struct call *call = TAKE(cancel->call);

    if (call != NULL)
        answer_final(call, state);
    cancel_settle(cancel);
}

/* ---- verdicts ---- */

void gateway_cancels_on_wake(struct cancels *cancels, const void *bytes, size_t size)
{
    struct message message;
    struct cancel *cancel, *next;
    bool refused = false;
    struct err err;

    if (message_decode(cancels->gateway->decoder, bytes, size, &message, &err) < 0 ||
        message.type != MESSAGE_WAKE)
        return; /* a hint that cannot be read is none */
    for (cancel = TAILQ_FIRST(&cancels->waiting); cancel != NULL; cancel = next) {
        next = TAILQ_NEXT(cancel, link);
        if (cancel->call == NULL || !job_id_equal(&cancel->id, &message.wake.id))
            continue;
        if (message.wake.request != cancel->request)
            continue;
        if (message.wake.canceled)
            cancel_finish(cancel, JOB_CANCELED);
        else
            cancel->refused = refused = true;
    }
    if (refused)
        gateway_cancels_look(cancels);
}

static void cancel_finish_not_found(struct cancel *cancel)
{
    answer_not_found(TAKE(cancel->call));
    cancel_settle(cancel);
}

/* What its row says. It may turn out to be somebody else's, when it was not in the ledger at first.
 */
static void cancel_see(struct cancel *cancel, enum job_state state, const char *tenant)
{
    cancel->found = true;
    if (strcmp(tenant, cancel->call->tenant) != 0)
        cancel_finish_not_found(cancel);
    else if (job_state_final(state) || cancel->asked)
        cancel_finish(cancel, state);
}

static void on_look(void *opaque, const struct pg_answer *answer)
{
    struct cancels *cancels = opaque;
    struct cancel *cancel, *next;

    cancels->looking = false;
    if (answer->err.code != ERR_OK)
        return;
    for (size_t i = 0; i < pg_row_count(answer, 0); i++) {
        enum job_state state = (enum job_state)pg_i64(answer, 0, i, 1);
        struct wire_id id = pg_id(answer, 0, i, 0);

        for (cancel = TAILQ_FIRST(&cancels->waiting); cancel != NULL; cancel = next) {
            next = TAILQ_NEXT(cancel, link);
            if (cancel->call != NULL && job_id_equal(&cancel->id, &id))
                cancel_see(cancel, state, pg_c(answer, 0, i, 2));
        }
    }
    for (cancel = TAILQ_FIRST(&cancels->waiting); cancel != NULL; cancel = next) {
        next = TAILQ_NEXT(cancel, link);
        if (cancel->call != NULL && cancel->asked && !cancel->found)
            cancel_finish_not_found(cancel);
    }
}

void gateway_cancels_look(struct cancels *cancels)
{
    struct gateway *gateway = cancels->gateway;
    struct pg_batch *batch;
    struct cancel *cancel;
    struct err err;

    if (cancels->looking || cancels->count == 0 || !pg_pool_connected(gateway->pg))
        return;
    batch = pg_batch_new();
    pg_add(batch, &cancel_look);
    pg_bind_array(batch, PG_ID, cancels->count);
    TAILQ_FOREACH(cancel, &cancels->waiting, link)
    {
        cancel->asked = cancel->refused;
        cancel->found = false;
        pg_bind_id(batch, &cancel->id);
    }
    cancels->looking = pg_pool_send(gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_look, cancels,
                                    &err) == 0;
    pg_batch_free(&batch);
}

static void on_timer(void *opaque)
{
    struct cancels *cancels = opaque;
    uint64_t now_ms = loop_now_ms(cancels->gateway->loop);
    struct cancel *cancel, *next;

    for (cancel = TAILQ_FIRST(&cancels->waiting); cancel != NULL; cancel = next) {
        next = TAILQ_NEXT(cancel, link);
        if (cancel->call == NULL || cancel->give_up_ms > now_ms)
            continue;
        call_fail_as(&cancel->call, 504, "timeout",
                     "no verdict came in time; the request may still be canceled: ask for its "
                     "status");
        cancel_settle(cancel);
    }
    if (cancels->count == 0)
        loop_timer_stop(cancels->look);
    else
        gateway_cancels_look(cancels);
}

/* ---- the request ---- */

static void on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct cancel *cancel = opaque;
    struct err err;

    (void)tag;
    cancel->reported = true;
    if (report->code != ERR_OK && cancel->call != NULL) {
        (void)err_set(&err, ERR_UNAVAILABLE, "Kafka did not take the cancel: %s", report->why);
        call_fail(&cancel->call, &err);
    }
    cancel_settle(cancel);
}

static int cancel_produce(struct cancel *cancel, struct err *err)
{
    struct gateway *gateway = cancel->gateway;
    OWNED(buf_done) struct buf record = BUF_WITH_LIMIT(1024);
    const struct message_cancel fields = {.id = cancel->id,
                                          .tenant = WIRE_TEXT_OF(cancel->call->tenant),
                                          .gateway = WIRE_TEXT_OF(gateway->boot),
                                          .request = cancel->request};
    struct queue_message message;
    int r = message_encode(MESSAGE_CANCEL, &fields, &record, err);

    if (r < 0)
        return r;
    message = (struct queue_message){.topic = gateway->intake,
                                     .partition = job_id_shard(&cancel->id),
                                     .bytes = record.bytes,
                                     .size = record.size,
                                     .done = on_report,
                                     .opaque = cancel};
    return queue_produce(gateway->producer, &message, err);
}

static void cancel_send(struct call *call, const struct wire_id *id)
{
    struct gateway *gateway = call->gateway;
    struct cancels *cancels = gateway->cancels;
    struct cancel *cancel;
    struct err err;

    if (cancels->count >= WAITING_MAX) {
        (void)err_set(&err, ERR_FULL, "%d cancels wait for their verdict", WAITING_MAX);
        call_fail(&call, &err);
        return;
    }
    cancel = xcalloc(1, sizeof(*cancel));
    cancel->call = call;
    cancel->gateway = gateway;
    cancel->id = *id;
    cancel->request = ++cancels->last_request;
    cancel->give_up_ms = loop_now_ms(gateway->loop) + gateway->settings.cancel_wait_ms;
    TAILQ_INSERT_TAIL(&cancels->waiting, cancel, link);
    cancels->count++;
    if (cancel_produce(cancel, &err) < 0) {
        call_fail(&cancel->call, &err);
        cancel->reported = true;
        cancel_settle(cancel);
    } else if (!loop_timer_is_running(cancels->look)) {
        loop_timer_start(cancels->look, LOOK_MS, LOOK_MS);
    }
}

/* Results of the question. The floor comes first, as in gateway_status.h. */
#define FOUND_FLOOR 0
#define FOUND_ROW 1
#define FOUND_PLANNED 3

static void on_found(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct wire_id id;
    struct err err;
    uint64_t floor_us = 0;
    enum job_state state;

    if (call_job_id(call, &id, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    if (answer->err.code != ERR_OK) { /* the owner knows more than we do */
        cancel_send(call, &id);
        return;
    }
    if (pg_row_count(answer, FOUND_ROW) == 1 &&
        strcmp(pg_c(answer, FOUND_ROW, 0, 1), call->tenant) != 0) {
        answer_not_found(call);
    } else if (pg_row_count(answer, FOUND_ROW) == 1) {
        state = (enum job_state)pg_i64(answer, FOUND_ROW, 0, 0);
        if (job_state_final(state))
            answer_final(call, state);
        else
            cancel_send(call, &id);
    } else if (pg_row_count(answer, FOUND_PLANNED) == 1 && pg_bool(answer, FOUND_PLANNED, 0, 0)) {
        answer_final(call, JOB_CANCELED);
    } else {
        if (pg_row_count(answer, FOUND_FLOOR) == 1)
            floor_us = pg_time_us(answer, FOUND_FLOOR, 0, 0);
        if (view_may_be_queued(&id, floor_us, clock_wall_us()))
            cancel_send(call, &id);
        else
            answer_not_found(call);
    }
}

void cancel_begin(struct call *call)
{
    static const struct pg_statement *const of_plans[] = {&cancel_plan, &cancel_planned};
    struct gateway *gateway = call->gateway;
    uint32_t shards = gateway_watch_shard_count(gateway->watch);
    struct pg_batch *batch;
    struct wire_id id;
    struct err err;
    int r = call_job_id(call, &id, &err);

    if (r < 0) {
        call_fail(&call, &err);
        return;
    }
    if (shards > 0 && job_id_shard(&id) >= shards) {
        answer_not_found(call);
        return;
    }
    if (!pg_pool_connected(gateway->pg)) {
        cancel_send(call, &id);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &cancel_floor);
    pg_bind_i16(batch, job_id_shard(&id));
    pg_add(batch, &cancel_find);
    pg_bind_id(batch, &id);
    for (size_t i = 0; i < COUNT_OF(of_plans); i++) {
        pg_add(batch, of_plans[i]);
        pg_bind_id(batch, &id);
        pg_bind_c(batch, call->tenant);
    }
    r = pg_pool_send(gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_found, call, &err);
    pg_batch_free(&batch);
    if (r < 0)
        call_fail(&call, &err);
}

int gateway_cancels_open(struct gateway *gateway, struct err *err)
{
    struct cancels *cancels = xcalloc(1, sizeof(*cancels));

    (void)err;
    cancels->gateway = gateway;
    TAILQ_INIT(&cancels->waiting);
    cancels->look = loop_timer_new(gateway->loop, on_timer, cancels);
    gateway->cancels = cancels;
    return 0;
}

void gateway_cancels_close(struct cancels **cancels_p)
{
    struct cancels *cancels = TAKE(*cancels_p);
    struct cancel *cancel;

    if (cancels == NULL)
        return;
    while ((cancel = TAILQ_FIRST(&cancels->waiting)) != NULL) {
        TAILQ_REMOVE(&cancels->waiting, cancel, link);
        free(cancel);
    }
    loop_timer_free(&cancels->look);
    free(cancels);
}
