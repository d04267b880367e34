/* SPDX-License-Identifier: Apache-2.0 */

/*
 * /metrics, /healthz, /readyz and /devices of an agent. Series of a deployment are forgotten with
 * it.
 */

#include <stdlib.h>
#include <string.h>

#include "base/http_server.h"
#include "workers/agent_int.h"

enum agent_metric {
#define METRICS_ENUM(name) AGENT_METRIC_##name,
#include "base/metrics_rows.def"
#include "workers/agent_metrics.def"
#include "base/metrics_end.def"
    AGENT_METRIC_COUNT
};

static const struct metric_row agent_metric_rows[] = {
#define METRICS_ROWS
#include "base/metrics_rows.def"
#include "workers/agent_metrics.def"
#include "base/metrics_end.def"
};

enum { LABEL_COUNT = 5 };

/* A deployment's series, by their labels. */
struct agent_series {
    char model_id[AGENT_NAME_SIZE], model[AGENT_NAME_SIZE];
    char deployment[AGENT_NAME_SIZE], environment[AGENT_NAME_SIZE];
    uint32_t restarts_told;
    bool seen;
};

static void series_labels(const struct agent_series *series, const char *labels[LABEL_COUNT])
{
    labels[0] = series->model_id;
    labels[1] = series->model;
    labels[2] = series->deployment;
    labels[3] = series->environment;
    labels[4] = "stable";
}

/* In another environment it is another series. */
static struct agent_series *series_get(struct agent *agent,
                                       const struct agent_deployment *deployment)
{
    struct agent_series *series;

    for (size_t i = 0; i < agent->series_count; i++) {
        series = &agent->series[i];
        if (strcmp(series->deployment, deployment->id) == 0 &&
            strcmp(series->environment, deployment->environment) == 0)
            return series;
    }
    agent->series = xrealloc(agent->series, agent->series_count + 1, sizeof(*agent->series));
    series = &agent->series[agent->series_count++];
    *series = (struct agent_series){.seen = true};
    mem_copy_text(series->model_id, deployment->model_id);
    mem_copy_text(series->model, deployment->model);
    mem_copy_text(series->deployment, deployment->id);
    mem_copy_text(series->environment, deployment->environment);
    return series;
}

static void deployment_count(struct agent *agent, const struct agent_deployment_stats *stats)
{
    struct agent_series *series = series_get(agent, stats->deployment);
    const char *labels[LABEL_COUNT];
    uint32_t restarts = stats->restart_count;

    series_labels(series, labels);
    series->seen = true;
    metric_set(metrics_series(agent->metrics, AGENT_METRIC_replicas_active, labels), stats->ready);
    metric_set(metrics_series(agent->metrics, AGENT_METRIC_replicas_warm, labels), stats->warm);
    metric_set(metrics_series(agent->metrics, AGENT_METRIC_replicas_starting, labels),
               stats->starting);
    /* The sum falls when a replica is given up: what was counted stays. */
    metric_add(metrics_series(agent->metrics, AGENT_METRIC_container_restarts_total, labels),
               restarts > series->restarts_told ? restarts - series->restarts_told : 0);
    series->restarts_told = restarts;
}

static void series_forget(struct agent *agent, size_t index)
{
    static const enum agent_metric rows[] = {
        AGENT_METRIC_replicas_active, AGENT_METRIC_replicas_warm, AGENT_METRIC_replicas_starting,
        AGENT_METRIC_container_restarts_total};
    const char *labels[LABEL_COUNT];

    series_labels(&agent->series[index], labels);
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        metrics_forget(agent->metrics, rows[i], labels);
    agent->series[index] = agent->series[--agent->series_count];
}

/* ---- devices ---- */

static const enum agent_metric device_rows[] = {AGENT_METRIC_device_memory_bytes,
                                                AGENT_METRIC_device_memory_used_bytes,
                                                AGENT_METRIC_device_memory_promised_bytes,
                                                AGENT_METRIC_device_workers,
                                                AGENT_METRIC_device_usable,
                                                AGENT_METRIC_device_utilization_ratio,
                                                AGENT_METRIC_device_ecc_errors,
                                                AGENT_METRIC_device_quarantines};

/* Gauges, all of them: their agent counts from its own start, and devices come and go. */
static void device_count(struct agent *agent, const struct device_view *view)
{
    const struct device_info *info = view->info;
    const char *labels[] = {info->uuid, info->name};
    const double values[COUNT_OF(device_rows)] = {
        (double)info->total_size,
        (double)info->used_size,
        (double)view->reserved_size,
        view->holder_count,
        !view->silent && (view->state == DEVICE_WELL || view->state == DEVICE_PROBATION),
        info->utilization_percent / 100.0,
        (double)info->ecc_count,
        view->quarantine_count,
    };

    for (size_t i = 0; i < COUNT_OF(device_rows); i++)
        metric_set(metrics_series(agent->metrics, device_rows[i], labels), values[i]);
    for (size_t i = 0; i < DEVICE_FAULT_COUNT; i++) {
        const char *kinds[] = {info->uuid, info->name, device_fault_name((enum device_fault)i)};

        metric_set(metrics_series(agent->metrics, AGENT_METRIC_device_faults, kinds),
                   (double)view->faults[i]);
    }
}

void agent_pages_count(struct agent *agent)
{
    const struct agent_stats stats = agent_core_stats(agent->core);
    struct agent_deployment_stats deployment;
    struct device_view device;

    metric_set(metrics_of(agent->metrics, AGENT_METRIC_agent_deployments), stats.deployments);
    metric_set(metrics_of(agent->metrics, AGENT_METRIC_agent_workers), stats.workers);
    metric_set(metrics_of(agent->metrics, AGENT_METRIC_agent_workers_ready), stats.ready);
    metric_set(metrics_of(agent->metrics, AGENT_METRIC_agent_workers_warm), stats.warm);
    metric_add(metrics_of(agent->metrics, AGENT_METRIC_agent_worker_starts_total),
               (double)(stats.starts - agent->starts_told));
    metric_add(metrics_of(agent->metrics, AGENT_METRIC_agent_worker_crashes_total),
               (double)(stats.crashes - agent->crashes_told));
    agent->starts_told = stats.starts;
    agent->crashes_told = stats.crashes;
    for (size_t i = 0; devices_view(agent_core_devices(agent->core), i, &device); i++)
        device_count(agent, &device);
    for (size_t i = 0; i < agent->series_count; i++)
        agent->series[i].seen = false;
    for (size_t i = 0; agent_core_deployment_stats(agent->core, i, &deployment); i++)
        deployment_count(agent, &deployment);
    for (size_t i = agent->series_count; i > 0; i--) {
        if (!agent->series[i - 1].seen)
            series_forget(agent, i - 1);
    }
}

static const char *pages_not_ready(void *opaque)
{
    const struct agent *agent = opaque;

    if (!pg_connected(agent->pg))
        return "Postgres cannot be reached";
    return agent->has_read ? NULL : "the deployments are not read yet";
}

static void pages_serve(struct http_request *request, void *opaque)
{
    static const char text[] = "there is /metrics, /healthz, /readyz and /devices\n";
    const struct http_header type = {"Content-Type", "text/plain; charset=utf-8"};
    struct agent *agent = opaque;

    if (!metrics_pages_answer(&agent->pages, &request) && !agent_devices_answer(agent, &request))
        http_request_answer(&request, 404, &type, 1, text, sizeof(text) - 1);
}

int agent_pages_open(struct agent *agent, struct err *err)
{
    const struct http_server_options server = {.address = agent->settings.listen,
                                               .port = (uint16_t)agent->settings.port,
                                               .connection_count_max = 100};
    const struct metrics_options options = {
        .prefix = "headrace_",
        .prefix_again = agent->settings.metrics_prefix[0] != '\0' ? agent->settings.metrics_prefix
                                                                  : NULL,
        .rows = agent_metric_rows,
        .row_count = COUNT_OF(agent_metric_rows),
    };
    int r = metrics_open(&options, &agent->metrics, err);

    if (r < 0)
        return r;
    agent->pages = (struct metrics_pages){agent->metrics, pages_not_ready, agent};
    return http_server_open(agent->loop, &server, pages_serve, agent, &agent->server, err);
}

void agent_pages_close(struct agent *agent)
{
    http_server_close(&agent->server);
    metrics_close(&agent->metrics);
    free(agent->series);
}
