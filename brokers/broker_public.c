/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The metrics whose names users know (docs/observability.md, "Public names"): a request that was
 * accepted is counted here when it is final, with the status that a client of a synchronous call
 * would have seen. What the gateway refuses, it counts itself.
 *
 * What a takeover publishes again is counted again.
 *
 * Looking a series up costs more than counting in it, and the jobs of a flush are mostly of one
 * deployment: the series of the last one are kept.
 */

#include <stdio.h>
#include <string.h>

#include "base/metrics.h"
#include "brokers/broker.h"
#include "brokers/model_names.h"

struct public_labels {
    struct wire_text model, deployment, environment;
    int status; /* 0 where the rows have none */
    bool sync;
};

#define STATUS_OK 200
#define STATUS_UNKNOWN 500
#define STATUS_BEYOND 600

void broker_public_open(struct broker *broker)
{
    broker->names = model_names_new(broker->pg);
    model_names_listen(broker->names);
}

static bool memo_matches(const struct broker *broker, const struct public_memo *memo,
                         const struct public_labels *labels)
{
    return memo->series[0] != NULL && memo->version == model_names_version(broker->names) &&
           memo->status == labels->status && memo->sync == labels->sync &&
           wire_text_equal(labels->model, memo->model) &&
           wire_text_equal(labels->deployment, memo->deployment) &&
           wire_text_equal(labels->environment, memo->environment);
}

static void text_keep(char *to, size_t to_size, struct wire_text text)
{
    (void)snprintf(to, to_size, "%.*s", (int)text.size, text.size > 0 ? text.text : "");
}

/* The series of these rows, of which each has the same labels. */
static struct metric *const *memo_series(struct broker *broker, struct public_memo *memo,
                                         const struct public_labels *labels,
                                         const enum broker_metric *rows, size_t row_count)
{
    char status[8];
    const char *name = model_names_find(broker->names, labels->model);
    const char *values[] = {memo->model,
                            name != NULL ? name : memo->model,
                            memo->deployment,
                            memo->environment,
                            "stable",
                            status,
                            labels->sync ? "false" : "true"};

    if (memo_matches(broker, memo, labels))
        return memo->series;
    text_keep(memo->model, sizeof(memo->model), labels->model);
    text_keep(memo->deployment, sizeof(memo->deployment), labels->deployment);
    text_keep(memo->environment, sizeof(memo->environment), labels->environment);
    (void)snprintf(status, sizeof(status), "%d", labels->status);
    memo->status = labels->status;
    memo->sync = labels->sync;
    memo->version = model_names_version(broker->names);
    for (size_t i = 0; i < row_count; i++)
        memo->series[i] = metrics_series(broker->metrics, rows[i], values);
    return memo->series;
}

void broker_public_attempt(struct broker *broker, const struct owner_todo *todo, uint64_t now_us)
{
    static const enum broker_metric rows[] = {BROKER_METRIC_time_in_async_queue_seconds};
    const struct message_attempt *attempt = &todo->attempt.message;
    const struct public_labels labels = {.model = attempt->model,
                                         .deployment = attempt->deployment,
                                         .environment = todo->attempt.environment};
    uint64_t from_us = todo->attempt.waited_from_us;

    if (attempt->number == 1)
        metric_observe(*memo_series(broker, &broker->memo_attempt, &labels, rows, COUNT_OF(rows)),
                       now_us > from_us ? (double)(now_us - from_us) / 1e6 : 0);
}

/* A job that succeeded may carry the class of a try that did not. */
static int final_status(const struct message_completed *completed)
{
    if (completed->http_status >= STATUS_OK && completed->http_status < STATUS_BEYOND)
        return (int)completed->http_status; /* the model's own */
    if (completed->state == JOB_SUCCEEDED)
        return STATUS_OK;
    return error_class_known(completed->error_class)
               ? error_class_http((enum error_class)completed->error_class)
               : STATUS_UNKNOWN;
}

void broker_public_final(struct broker *broker, const struct ledger_final *final)
{
    const struct message_completed *completed = &final->completed;
    static const enum broker_metric rows[] = {BROKER_METRIC_inference_requests_total,
                                              BROKER_METRIC_end_to_end_response_time_seconds,
                                              BROKER_METRIC_response_size_bytes};
    const struct public_labels labels = {
        .model = completed->model,
        .deployment = completed->deployment,
        .environment = completed->environment,
        .status = final_status(completed),
        .sync = final->sync,
    };
    struct metric *const *series = memo_series(broker, &broker->memo_final, &labels, rows,
                                               COUNT_OF(rows));

    metric_add(series[0], 1);
    metric_observe(series[1], completed->finished_us > completed->accepted_us
                                  ? (double)(completed->finished_us - completed->accepted_us) / 1e6
                                  : 0);
    metric_observe(series[2], (double)completed->output_size);
}
