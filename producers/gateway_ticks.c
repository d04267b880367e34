/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Ticks of schedules: what is due becomes a job.
 *
 *   each second: claim what is due (a row a tick, with its job's id and deployment, in one
 *   transaction) -> Submit to intake[s], marked as a repeat: it may be one -> Kafka's report ->
 *   the tick is done
 *
 * Every gateway looks; a claim skips what another one has just claimed. Crash at any point: the
 * claim lapses after half a minute, and whoever claims the tick next finds the id that it had, so
 * the ledger has one job. A tick that a limit refuses is tried again until it is LATE_S old; one
 * that a kill switch or a missing model refuses is over.
 *
 * The time arithmetic is in Postgres: cron_next() and schedule_claim() of the migrations.
 */

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/pg.h"
#include "brokers/queue.h"
#include "producers/gateway.h"
#include "producers/gateway_body.h"
#include "schema/message.h"

#define CLAIM_MAX 100
#define UNDER_WAY_MAX 1000
#define LATE_S 600
#define RECORD_SIZE_MAX (128u << 10)
#define TICK_KEY_SIZE (CONFIG_NAME_SIZE + CLOCK_TEXT_SIZE + 16)

PG_STATEMENT(
    schedule_claim,
    "SELECT schedule_id, tick_at, tenant, name, model_id, environment, body, job_id, "
    "deployment_id, pool, run_limit_ms, slot_count, created_by FROM schedule_claim(now(), $1)");
PG_STATEMENT(schedule_done, "SELECT 1 FROM schedule_done($1, $2, $3)");

enum claim_column {
    CLAIM_SCHEDULE,
    CLAIM_TICK,
    CLAIM_TENANT,
    CLAIM_NAME,
    CLAIM_MODEL,
    CLAIM_ENVIRONMENT,
    CLAIM_BODY,
    CLAIM_JOB,
    CLAIM_DEPLOYMENT,
    CLAIM_POOL,
    CLAIM_RUN_LIMIT,
    CLAIM_SLOTS,
    CLAIM_BY,
};

/* A tick from its claim to Kafka's report. */
struct tick {
    LIST_ENTRY(tick) link;
    struct ticks *ticks;
    struct wire_id schedule, job;
    uint64_t at_us;
    char tenant[CONFIG_NAME_SIZE], name[CONFIG_NAME_SIZE];
};

struct ticks {
    struct gateway *gateway;
    LIST_HEAD(, tick) all;
    uint32_t count;
    bool asking;
};

static void tick_free(struct tick **tick_p)
{
    struct tick *tick = TAKE(*tick_p);

    LIST_REMOVE(tick, link);
    tick->ticks->count--;
    free(tick);
}

static void on_done(void *opaque, const struct pg_answer *answer)
{
    (void)opaque;
    if (answer->err.code != ERR_OK) /* it is claimed again, and has the same job */
        log_warn("tick_not_noted", LOG_ERR(&answer->err));
}

/* Ends the tick. reason "": it has its job. */
static void tick_end(struct tick **tick_p, const char *reason)
{
    struct tick *tick = *tick_p;
    struct gateway *gateway = tick->ticks->gateway;
    struct pg_batch *batch = pg_batch_new();
    const char *const outcome[] = {*reason == '\0' ? "submitted" : "refused"};
    char job[JOB_ID_TEXT_SIZE];
    struct err err;

    metric_add(
        metrics_series(gateway->metrics, GATEWAY_METRIC_gateway_schedule_ticks_total, outcome), 1);
    job_id_format(&tick->job, job);
    if (*reason == '\0')
        log_debug("tick_submitted", LOG_STR("schedule", tick->name), LOG_STR("job", job),
                  LOG_STR("tenant", tick->tenant));
    else
        log_info("tick_refused", LOG_STR("schedule", tick->name), LOG_STR("tenant", tick->tenant),
                 LOG_STR("reason", reason));
    pg_add(batch, &schedule_done);
    pg_bind_id(batch, &tick->schedule);
    pg_bind_time(batch, tick->at_us);
    pg_bind_c(batch, reason);
    if (pg_pool_send(gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_done, NULL, &err) < 0) {
        log_warn("tick_not_noted", LOG_ERR(&err));
        pg_batch_free(&batch);
    }
    tick_free(tick_p);
}

static void on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct tick *tick = opaque;

    (void)tag;
    if (report->code == ERR_OK) {
        tick_end(&tick, "");
        return;
    }
    log_warn("tick_not_sent", LOG_STR("schedule", tick->name), LOG_STR("tenant", tick->tenant),
             LOG_STR("error", report->why));
    tick_free(&tick); /* its claim lapses */
}

static int tick_produce(struct tick *tick, const struct message_submit *fields, struct err *err)
{
    struct gateway *gateway = tick->ticks->gateway;
    OWNED(buf_done) struct buf record = BUF_WITH_LIMIT(RECORD_SIZE_MAX);
    struct queue_message message;
    int r = message_encode(MESSAGE_SUBMIT, fields, &record, err);

    message = (struct queue_message){.topic = gateway->intake,
                                     .partition = job_id_shard(&tick->job),
                                     .bytes = record.bytes,
                                     .size = record.size,
                                     .done = on_report,
                                     .opaque = tick};
    return r < 0 ? r : queue_produce(gateway->producer, &message, err);
}

/* The Submit of a row and the body that was read from it. */
static int tick_submit(struct tick *tick, const struct pg_answer *answer, size_t row,
                       const struct submit_body *body, struct err *err)
{
    uint8_t digest[32];
    char key[TICK_KEY_SIZE], at[CLOCK_TEXT_SIZE];
    struct message_submit fields = {
        .id = tick->job,
        .tenant = WIRE_TEXT_OF(tick->tenant),
        .model = pg_text(answer, 0, row, CLAIM_MODEL),
        .deployment = pg_text(answer, 0, row, CLAIM_DEPLOYMENT),
        .environment = pg_text(answer, 0, row, CLAIM_ENVIRONMENT),
        .pool = pg_text(answer, 0, row, CLAIM_POOL),
        .priority = body->priority,
        .input = {(const uint8_t *)body->input, body->input_size},
        .input_size = body->input_size,
        .input_digest = {digest, sizeof(digest)},
        .max_attempts = body->max_attempts,
        .initial_delay_ms = body->initial_delay_ms,
        .max_delay_ms = body->max_delay_ms,
        .queue_limit_ms = 1000ull * body->queue_limit_s,
        .run_limit_ms = pg_u64(answer, 0, row, CLAIM_RUN_LIMIT),
        .webhook_url = body->webhook_url == NULL ? (struct wire_text){NULL, 0}
                                                 : WIRE_TEXT_OF(body->webhook_url),
        .repeat = true,
        .received_us = clock_wall_us(),
        .slot_count = body->slot_count,
        .key_prefix = pg_text(answer, 0, row, CLAIM_BY),
    };
    int done = EVP_Digest(body->input, body->input_size, digest, NULL, EVP_sha256(), NULL);

    assert(done == 1);
    clock_format_iso(tick->at_us, at);
    (void)snprintf(key, sizeof(key), "schedule/%s/%s", tick->name, at);
    fields.idempotency_key = WIRE_TEXT_OF(key);
    return tick_produce(tick, &fields, err);
}

/* A limit that will let it through later; the tick waits for the next claim. */
static bool tick_is_held(const struct tick *tick, const char *pool, char reason[256])
{
    struct gateway *gateway = tick->ticks->gateway;
    struct refusal refusal;

    if (gateway_caps_admit_tenant(gateway->caps, tick->tenant, &refusal) &&
        gateway_caps_admit_pool(gateway->caps, pool, &refusal))
        return false;
    (void)snprintf(reason, 256, "%s", refusal.text);
    return true;
}

static bool tick_is_switched_off(const struct tick *tick, const char *model, char reason[256])
{
    const struct config *config = gateway_watch_config(tick->ticks->gateway->watch);
    const struct config_switch *on = config == NULL ? NULL
                                                    : gateway_config_find_switch(
                                                          config, tick->tenant, model, "");

    if (on == NULL)
        return false;
    (void)snprintf(reason, 256, "%s '%.60s' is switched off", on->kind, on->value);
    return true;
}

/* What the row's schedule asks for now; ends or keeps the tick. */
static void tick_begin(struct tick *tick, const struct pg_answer *answer, size_t row)
{
    const struct gateway *gateway = tick->ticks->gateway;
    struct wire_text text = pg_text(answer, 0, row, CLAIM_BODY);
    struct submit_body body;
    char reason[256];
    struct err err;
    int r;

    if (pg_is_null(answer, 0, row, CLAIM_DEPLOYMENT)) {
        (void)snprintf(reason, sizeof(reason), "environment '%.64s' of the model has no deployment",
                       pg_c(answer, 0, row, CLAIM_ENVIRONMENT));
        tick_end(&tick, reason);
        return;
    }
    if (tick_is_switched_off(tick, pg_c(answer, 0, row, CLAIM_MODEL), reason)) {
        tick_end(&tick, reason);
        return;
    }
    if (tick_is_held(tick, pg_c(answer, 0, row, CLAIM_POOL), reason)) {
        if (clock_wall_us() > tick->at_us + LATE_S * 1000000ull)
            tick_end(&tick, reason);
        else
            tick_free(&tick);
        return;
    }
    r = body_read_submit(gateway->reader, text.text, text.size, false,
                         gateway->settings.loopback_webhooks, &body, &err);
    if (r == 0 && body.slot_count > pg_u64(answer, 0, row, CLAIM_SLOTS) && body.slot_count > 1)
        r = err_set(&err, ERR_RANGE, "slot_count is %u; the deployment has %u", body.slot_count,
                    (uint32_t)pg_u64(answer, 0, row, CLAIM_SLOTS));
    if (r < 0) {
        tick_end(&tick, err.text);
        return;
    }
    r = tick_submit(tick, answer, row, &body, &err);
    submit_body_done(&body);
    if (r < 0) {
        log_warn("tick_not_sent", LOG_STR("schedule", tick->name), LOG_STR("tenant", tick->tenant),
                 LOG_ERR(&err));
        tick_free(&tick);
    }
}

static void on_claimed(void *opaque, const struct pg_answer *answer)
{
    struct ticks *ticks = opaque;

    ticks->asking = false;
    if (answer->err.code != ERR_OK) {
        log_debug("schedules_not_claimed", LOG_ERR(&answer->err));
        return;
    }
    for (size_t i = 0; i < pg_row_count(answer, 0); i++) {
        struct tick *tick = xcalloc(1, sizeof(*tick));

        tick->ticks = ticks;
        tick->schedule = pg_id(answer, 0, i, CLAIM_SCHEDULE);
        tick->job = pg_id(answer, 0, i, CLAIM_JOB);
        tick->at_us = pg_time_us(answer, 0, i, CLAIM_TICK);
        mem_copy_text(tick->tenant, pg_c(answer, 0, i, CLAIM_TENANT));
        mem_copy_text(tick->name, pg_c(answer, 0, i, CLAIM_NAME));
        LIST_INSERT_HEAD(&ticks->all, tick, link);
        ticks->count++;
        tick_begin(tick, answer, i);
    }
}

void gateway_ticks_look(struct ticks *ticks)
{
    struct gateway *gateway = ticks->gateway;
    struct pg_batch *batch;
    struct err err;

    if (ticks->asking || gateway->draining || ticks->count > UNDER_WAY_MAX ||
        !pg_pool_connected(gateway->pg))
        return;
    batch = pg_batch_new();
    pg_add(batch, &schedule_claim);
    pg_bind_i32(batch, CLAIM_MAX);
    if (pg_pool_send(gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_claimed, ticks, &err) < 0)
        pg_batch_free(&batch);
    else
        ticks->asking = true;
}

int gateway_ticks_open(struct gateway *gateway, struct err *err)
{
    (void)err;
    gateway->ticks = xcalloc(1, sizeof(*gateway->ticks));
    gateway->ticks->gateway = gateway;
    LIST_INIT(&gateway->ticks->all);
    return 0;
}

void gateway_ticks_close(struct ticks **ticks_p)
{
    struct ticks *ticks = *ticks_p; /* tick_free() still looks at it */
    struct tick *tick;

    if (ticks == NULL)
        return;
    while ((tick = LIST_FIRST(&ticks->all)) != NULL)
        tick_free(&tick);
    mem_free(ticks_p);
}
