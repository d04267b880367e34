/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Everything about one request: its status, why it ended, what its budgets paid, and each attempt.
 * From Postgres alone: Redis knows nothing of attempts.
 */

#include "base/clock.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_status.h"
#include "producers/gateway_view.h"

#define ANSWER_SIZE_MAX (4u << 20)
#define OWN STATUS_COLUMN_COUNT /* the first column that status does not have */

PG_STATEMENT(detail_find,
             "SELECT " STATUS_COLUMNS ", j.round, j.user_failures, j.max_attempts, "
             "j.oom_failures, j.lost_failures, j.run_limit_ms, "
             "CASE WHEN j.state = 1 THEN j.due_at END, j.start_deadline_at, j.total_deadline_at, "
             "attempt_log(j.id, j.round)::text, coalesce(m.name, '') FROM job j "
             "LEFT JOIN model m ON m.id = j.model "
             "LEFT JOIN delivery d ON d.job_id = j.id AND d.round = j.round AND d.endpoint = 'job' "
             "WHERE j.id = $1 AND j.tenant = $2");
static struct view_detail read_detail(const struct pg_answer *answer)
{
    return (struct view_detail){.round = pg_u64(answer, STATUS_ROW, 0, OWN + 0),
                                .user_failures = pg_u64(answer, STATUS_ROW, 0, OWN + 1),
                                .max_attempts = pg_u64(answer, STATUS_ROW, 0, OWN + 2),
                                .oom_failures = pg_u64(answer, STATUS_ROW, 0, OWN + 3),
                                .lost_failures = pg_u64(answer, STATUS_ROW, 0, OWN + 4),
                                .run_limit_ms = pg_u64(answer, STATUS_ROW, 0, OWN + 5),
                                .due_us = pg_time_us(answer, STATUS_ROW, 0, OWN + 6),
                                .start_deadline_us = pg_time_us(answer, STATUS_ROW, 0, OWN + 7),
                                .total_deadline_us = pg_time_us(answer, STATUS_ROW, 0, OWN + 8),
                                .attempt_log = pg_text(answer, STATUS_ROW, 0, OWN + 9)};
}

static void on_rows(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct buf to = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);
    struct view_detail detail = {.round = 1};
    struct job_view view;
    struct wire_id id;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    if (call_job_id(call, &id, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    if (pg_row_count(answer, STATUS_ROW) == 1) {
        view = status_read(answer, &id);
        view.model_name = pg_text(answer, STATUS_ROW, 0, OWN + 10);
        detail = read_detail(answer);
    } else {
        if (!status_may_be_queued(answer, &id)) {
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
    (void)status_ask(call, &detail_find, NULL, on_rows);
}
