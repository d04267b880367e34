/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The gateway's metrics whose names users know (docs/observability.md, "Public names"): the size of
 * each request to a model, those that were refused, and how many wait per deployment. An accepted
 * request is counted by the broker, when it is final and its status is known.
 */

#include <stdio.h>
#include <string.h>

#include "base/metrics.h"
#include "brokers/pg.h"
#include "producers/gateway.h"

#define STATUS_REFUSED 400

void public_target(struct call *call, const struct config_choice *choice)
{
    struct call_public *public = &call->public;

    mem_copy_text(public->model_id, choice->model->id);
    mem_copy_text(public->model_name, choice->model->name);
    mem_copy_text(public->deployment, choice->deployment->id);
    mem_copy_text(public->environment, choice->environment);
}

static struct metric *series_of(const struct call *call, enum gateway_metric row, int status)
{
    const struct call_public *public = &call->public;
    char code[12];
    const char *const values[] = {public->model_id,
                                  public->model_name,
                                  public->deployment,
                                  public->environment,
                                  "stable",
                                  code,
                                  route_is_async(call->match.route) ? "true" : "false"};

    (void)snprintf(code, sizeof(code), "%d", status);
    return metrics_series(call->gateway->metrics, row, values);
}

/* Looking a series up costs more than counting in it, and most requests are like the one before. */
static struct metric *size_series(const struct call *call, int status)
{
    static struct { /* of the process' one gateway */
        char deployment[CONFIG_NAME_SIZE], environment[CONFIG_NAME_SIZE];
        int status;
        bool async;
        struct metric *series;
    } last;
    const struct call_public *public = &call->public;
    bool async = route_is_async(call->match.route);

    if (last.series != NULL && last.status == status && last.async == async &&
        strcmp(last.deployment, public->deployment) == 0 &&
        strcmp(last.environment, public->environment) == 0)
        return last.series;
    mem_copy_text(last.deployment, public->deployment);
    mem_copy_text(last.environment, public->environment);
    last.status = status;
    last.async = async;
    last.series = series_of(call, GATEWAY_METRIC_request_size_bytes, status);
    return last.series;
}

void public_account(const struct call *call, int status, double seconds)
{
    if (call->public.model_id[0] == '\0')
        return;
    if (call->public.body_size > 0)
        metric_observe(size_series(call, status), (double)call->public.body_size);
    if (status < STATUS_REFUSED || call->public.accepted)
        return;
    metric_add(series_of(call, GATEWAY_METRIC_inference_requests_total, status), 1);
    metric_observe(series_of(call, GATEWAY_METRIC_end_to_end_response_time_seconds, status),
                   seconds);
}

/* A deployment that several environments point at is counted once, below the first of them. */
PG_STATEMENT(public_depths,
             "SELECT m.id, m.name, d.id, coalesce(t.environment, ''), coalesce(q.waiting, 0) "
             "FROM deployment d JOIN model m ON m.id = d.model_id "
             "LEFT JOIN (SELECT deployment_id, min(environment) AS environment "
             "FROM environment_target GROUP BY 1) t ON t.deployment_id = d.id "
             "LEFT JOIN (SELECT deployment, sum(waiting)::bigint AS waiting "
             "FROM queue_delta GROUP BY 1) q ON q.deployment = d.id "
             "WHERE d.deleted_at IS NULL ORDER BY d.created_at DESC LIMIT 1000");

void public_depths_ask(struct pg_batch *batch)
{
    pg_add(batch, &public_depths);
}

void public_depths_take(struct gateway *gateway, const struct pg_answer *answer, size_t at)
{
    for (size_t i = 0; i < pg_row_count(answer, at); i++) {
        const char *const values[] = {pg_c(answer, at, i, 0), pg_c(answer, at, i, 1),
                                      pg_c(answer, at, i, 2), pg_c(answer, at, i, 3), "stable"};

        metric_set(metrics_series(gateway->metrics, GATEWAY_METRIC_async_queue_size, values),
                   (double)pg_i64(answer, at, i, 4));
    }
}
