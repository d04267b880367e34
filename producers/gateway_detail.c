/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Everything about one request: its status, why it ended, what its budgets paid, and each attempt.
 * From Postgres alone: Redis knows nothing of attempts.
 */

#include "base/clock.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_view.h"

#define ANSWER_SIZE_MAX (4u << 20)

PG_STATEMENT(detail_find,
             "SELECT j.state, j.model, j.deployment, coalesce(j.environment, ''), j.accepted_at, "
             "j.state_at, j.error_class, coalesce(j.error_message, ''), j.webhook_url IS NOT NULL, "
             "coalesce(d.state, 0), j.attempt_count, j.round, j.user_failures, j.max_attempts, "
             "j.oom_failures, j.lost_failures, j.run_limit_ms, "
             "CASE WHEN j.state = 1 THEN j.due_at END, j.start_deadline_at, j.total_deadline_at, "
             "attempt_log(j.id, j.round)::text, coalesce(m.name, '') FROM job j "
             "LEFT JOIN model m ON m.id = j.model "
             "LEFT JOIN delivery d ON d.job_id = j.id AND d.round = j.round AND d.endpoint = 'job' "
             "WHERE j.id = $1 AND j.tenant = $2");
PG_STATEMENT(detail_floor, "SELECT floor_at FROM flush WHERE shard = $1 "
                           "ORDER BY epoch DESC, number DESC LIMIT 1");

static struct job_view read_view(const struct pg_answer *answer, const struct wire_id *id)
{
    return (struct job_view){.id = *id,
                             .state = (enum job_state)pg_i64(answer, 0, 0, 0),
                             .model = pg_text(answer, 0, 0, 1),
                             .model_name = pg_text(answer, 0, 0, 21),
                             .deployment = pg_text(answer, 0, 0, 2),
                             .environment = pg_text(answer, 0, 0, 3),
                             .accepted_us = pg_time_us(answer, 0, 0, 4),
                             .state_us = pg_time_us(answer, 0, 0, 5),
                             .error_class = (enum error_class)pg_i64(answer, 0, 0, 6),
                             .error_message = pg_text(answer, 0, 0, 7),
                             .has_webhook = pg_bool(answer, 0, 0, 8),
                             .delivery = (enum view_delivery)pg_i64(answer, 0, 0, 9),
                             .attempts = pg_u64(answer, 0, 0, 10)};
}

static struct view_detail read_detail(const struct pg_answer *answer)
{
    return (struct view_detail){.round = pg_u64(answer, 0, 0, 11),
                                .user_failures = pg_u64(answer, 0, 0, 12),
                                .max_attempts = pg_u64(answer, 0, 0, 13),
                                .oom_failures = pg_u64(answer, 0, 0, 14),
                                .lost_failures = pg_u64(answer, 0, 0, 15),
                                .run_limit_ms = pg_u64(answer, 0, 0, 16),
                                .due_us = pg_time_us(answer, 0, 0, 17),
                                .start_deadline_us = pg_time_us(answer, 0, 0, 18),
                                .total_deadline_us = pg_time_us(answer, 0, 0, 19),
                                .attempt_log = pg_text(answer, 0, 0, 20)};
}

static void on_rows(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct buf to = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);
    struct view_detail detail = {.round = 1};
    struct job_view view;
    struct wire_id id;
    uint64_t floor_us;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    if (call_job_id(call, &id, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    if (pg_row_count(answer, 0) == 1) {
        view = read_view(answer, &id);
        detail = read_detail(answer);
    } else {
        floor_us = pg_row_count(answer, 1) == 1 ? pg_time_us(answer, 1, 0, 0) : 0;
        if (!view_may_be_queued(&id, floor_us, clock_wall_us())) {
            call_fail_as(&call, 404, "client_error",
                         "there is no such request; results are kept for a limited time");
            return;
        }
        view = view_of_queued(&id);
    }
    view_append_detail(&view, &detail, &to);
    call_answer(&call, 200, &to);
}

void detail_begin(struct call *call)
{
    struct gateway *gateway = call->gateway;
    struct pg_batch *batch = NULL;
    struct wire_id id;
    struct err err;
    int r = call_job_id(call, &id, &err);

    if (r == 0 && !pg_pool_connected(gateway->pg))
        r = err_set(&err, ERR_UNAVAILABLE, "the request cannot be looked up: Postgres is away");
    if (r == 0) {
        batch = pg_batch_new();
        pg_add(batch, &detail_find);
        pg_bind_id(batch, &id);
        pg_bind_c(batch, call->tenant);
        pg_add(batch, &detail_floor);
        pg_bind_i16(batch, job_id_shard(&id));
        r = pg_pool_send(gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_rows, call, &err);
    }
    pg_batch_free(&batch);
    if (r < 0)
        call_fail(&call, &err);
}
