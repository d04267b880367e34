/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Requests with a run_at: accepted now, in intake when their time has come.
 *
 *   accept: the Submit that would go to Kafka becomes a row (`planned`) -> 201
 *   each second: rows that are due are claimed -> their records to intake[s] -> Kafka's report ->
 *   the row goes
 *
 * Until then the row is all there is of it: status and cancel look there where the ledger has
 * nothing. The id carries the time at which it runs, so that it belongs to that day's rows.
 *
 * Failures: Postgres away while accepting: 503, nothing is promised. Every gateway looks; one that
 * dies between claim and report leaves a claim that lapses, and the record goes out again under the
 * same id, marked as a repeat: the ledger has one job.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "brokers/pg.h"
#include "brokers/queue.h"
#include "producers/gateway.h"
#include "producers/gateway_plan.h"
#include "schema/job.h"
#include "schema/job_id.h"
#include "schema/message.h"

#define CLAIM_MAX 500
#define UNDER_WAY_MAX 5000
#define FULL_RETRY_S 60
#define AHEAD_DAYS 366
#define DAY_US (24 * 3600 * UINT64_C(1000000))

PG_STATEMENT(plan_insert,
             "INSERT INTO planned (job_id, tenant, model, deployment, environment, key_prefix, "
             "run_at, record) SELECT $1, $2, $3, $4, $5, $6, $7, $8 WHERE (SELECT count(*) FROM "
             "(SELECT FROM planned WHERE tenant = $2 AND canceled_at IS NULL LIMIT $9) x) < $9 ON "
             "CONFLICT DO NOTHING");
PG_STATEMENT(plan_there, "SELECT count(*) FROM planned WHERE job_id = $1");
PG_STATEMENT(plan_claim, "SELECT job_id, tenant, record FROM planned_claim(now(), $1)");
PG_STATEMENT(plan_sent, "DELETE FROM planned WHERE job_id = $1");

/* One that is on its way to Kafka. */
struct plan {
    LIST_ENTRY(plan) link;
    struct plans *plans;
    struct wire_id job;
};

struct plans {
    struct gateway *gateway;
    LIST_HEAD(, plan) all;
    uint32_t count;
    bool asking;
};

/* ---- accept ---- */

int plan_send(struct gateway *gateway, const struct message_submit *submit, uint64_t run_at_us,
              const struct buf *record, pg_done_fn *done, void *opaque, struct err *err)
{
    struct pg_batch *batch;
    int r;

    if (submit->input_blob.size > 0)
        return err_set(err, ERR_RANGE, "model_input has %llu bytes; with run_at it may have %u",
                       (unsigned long long)submit->input_size, JOB_INPUT_INLINE_MAX);
    if (run_at_us > clock_wall_us() && run_at_us - clock_wall_us() > AHEAD_DAYS * DAY_US)
        return err_set(err, ERR_RANGE, "run_at is more than %d days ahead", AHEAD_DAYS);
    if (!pg_pool_connected(gateway->pg))
        return err_set(err, ERR_UNAVAILABLE,
                       "Postgres is away, and keeps what has a run_at; it is not promised to run");
    batch = pg_batch_new();
    pg_add(batch, &plan_insert);
    pg_bind_id(batch, &submit->id);
    pg_bind_text(batch, submit->tenant);
    pg_bind_text(batch, submit->model);
    pg_bind_text(batch, submit->deployment);
    pg_bind_text(batch, submit->environment);
    pg_bind_text(batch, submit->key_prefix);
    pg_bind_time(batch, run_at_us);
    pg_bind_bytes(batch, (struct wire_bytes){record->bytes, record->size});
    pg_bind_i64(batch, gateway->settings.planned_max);
    pg_add(batch, &plan_there);
    pg_bind_id(batch, &submit->id);
    r = pg_pool_send(gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, done, opaque, err);
    pg_batch_free(&batch);
    return r;
}

bool plan_taken(struct call **call_p, const struct pg_answer *answer)
{
    const struct gateway_settings *settings = &(*call_p)->gateway->settings;
    struct refusal refusal = {.status = 429,
                              .limit = "planned-max",
                              .value = (double)settings->planned_max,
                              .current = (double)settings->planned_max,
                              .retry_after_s = FULL_RETRY_S};

    if (pg_i64(answer, 1, 0, 0) > 0)
        return true;
    (void)snprintf(refusal.text, sizeof(refusal.text),
                   "%lld requests of the tenant wait for their run_at, which is the most "
                   "(planned-max)",
                   (long long)settings->planned_max);
    (*call_p)->job[0] = '\0'; /* no job has this id */
    call_refuse(call_p, &refusal);
    return false;
}

/* ---- due ---- */

static void plan_free(struct plan **plan_p)
{
    struct plan *plan = TAKE(*plan_p);

    LIST_REMOVE(plan, link);
    plan->plans->count--;
    free(plan);
}

static void on_deleted(void *opaque, const struct pg_answer *answer)
{
    (void)opaque;
    if (answer->err.code != ERR_OK) /* it is claimed again, and has the same id */
        log_warn("planned_job_not_noted", LOG_ERR(&answer->err));
}

static void on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct plan *plan = opaque;
    struct gateway *gateway = plan->plans->gateway;
    char id[JOB_ID_TEXT_SIZE];
    struct pg_batch *batch;
    struct err err;

    (void)tag;
    job_id_format(&plan->job, id);
    if (report->code == ERR_OK) {
        batch = pg_batch_new();
        pg_add(batch, &plan_sent);
        pg_bind_id(batch, &plan->job);
        if (pg_pool_send(gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_deleted, NULL, &err) < 0)
            log_warn("planned_job_not_noted", LOG_STR("job", id), LOG_ERR(&err));
        pg_batch_free(&batch);
    } else {
        log_warn("planned_job_not_sent", LOG_STR("job", id), LOG_STR("error", report->why));
    }
    plan_free(&plan); /* its claim lapses, if it is still there */
}

static void plan_begin(struct plans *plans, const struct pg_answer *answer, size_t row)
{
    struct gateway *gateway = plans->gateway;
    struct wire_bytes record = pg_bytes(answer, 0, row, 2);
    struct plan *plan = xcalloc(1, sizeof(*plan));
    struct queue_message message;
    struct err err;

    plan->plans = plans;
    plan->job = pg_id(answer, 0, row, 0);
    LIST_INSERT_HEAD(&plans->all, plan, link);
    plans->count++;
    message = (struct queue_message){.topic = gateway->intake,
                                     .partition = job_id_shard(&plan->job),
                                     .bytes = record.bytes,
                                     .size = record.size,
                                     .done = on_report,
                                     .opaque = plan};
    if (queue_produce(gateway->producer, &message, &err) < 0) {
        log_warn("planned_job_not_sent", LOG_STR("tenant", pg_c(answer, 0, row, 1)), LOG_ERR(&err));
        plan_free(&plan);
    }
}

static void on_claimed(void *opaque, const struct pg_answer *answer)
{
    struct plans *plans = opaque;
    size_t count;

    plans->asking = false;
    if (answer->err.code != ERR_OK) {
        log_debug("planned_jobs_not_claimed", LOG_ERR(&answer->err));
        return;
    }
    count = pg_row_count(answer, 0);
    for (size_t i = 0; i < count; i++)
        plan_begin(plans, answer, i);
    if (count == CLAIM_MAX)
        gateway_plans_look(plans); /* there may be more */
}

void gateway_plans_look(struct plans *plans)
{
    struct gateway *gateway = plans->gateway;
    struct pg_batch *batch;
    struct err err;

    if (plans->asking || gateway->draining || plans->count > UNDER_WAY_MAX ||
        !pg_pool_connected(gateway->pg))
        return;
    batch = pg_batch_new();
    pg_add(batch, &plan_claim);
    pg_bind_i32(batch, CLAIM_MAX);
    plans->asking = pg_pool_send(gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_claimed, plans,
                                 &err) == 0;
    pg_batch_free(&batch);
}

int gateway_plans_open(struct gateway *gateway, struct err *err)
{
    (void)err;
    gateway->plans = xcalloc(1, sizeof(*gateway->plans));
    gateway->plans->gateway = gateway;
    LIST_INIT(&gateway->plans->all);
    return 0;
}

void gateway_plans_close(struct plans **plans_p)
{
    struct plans *plans = *plans_p; /* plan_free() still looks at it */
    struct plan *plan;

    if (plans == NULL)
        return;
    while ((plan = LIST_FIRST(&plans->all)) != NULL)
        plan_free(&plan);
    mem_free(plans_p);
}
