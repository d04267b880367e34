/* SPDX-License-Identifier: Apache-2.0 */

/*
 * /metrics, /healthz and /readyz of an agent. Series of a deployment are forgotten with it.
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
    metric_set(metrics_series(agent->metrics, AGENT_METRIC_replicas_starting, labels),
               stats->starting);
    /* The sum falls when a replica is given up: what was counted stays. */
    metric_add(metrics_series(agent->metrics, AGENT_METRIC_container_restarts_total, labels),
               restarts > series->restarts_told ? restarts - series->restarts_told : 0);
    series->restarts_told = restarts;
}

static void series_forget(struct agent *agent, size_t index)
{
    static const enum agent_metric rows[] = {AGENT_METRIC_replicas_active,
                                             AGENT_METRIC_replicas_starting,
                                             AGENT_METRIC_container_restarts_total};
    const char *labels[LABEL_COUNT];

    series_labels(&agent->series[index], labels);
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        metrics_forget(agent->metrics, rows[i], labels);
    agent->series[index] = agent->series[--agent->series_count];
}

void agent_pages_count(struct agent *agent)
{
    const struct agent_stats stats = agent_core_stats(agent->core);
    struct agent_deployment_stats deployment;

    metric_set(metrics_of(agent->metrics, AGENT_METRIC_agent_deployments), stats.deployments);
    metric_set(metrics_of(agent->metrics, AGENT_METRIC_agent_workers), stats.workers);
    metric_set(metrics_of(agent->metrics, AGENT_METRIC_agent_workers_ready), stats.ready);
    metric_add(metrics_of(agent->metrics, AGENT_METRIC_agent_worker_starts_total),
               (double)(stats.starts - agent->starts_told));
    metric_add(metrics_of(agent->metrics, AGENT_METRIC_agent_worker_crashes_total),
               (double)(stats.crashes - agent->crashes_told));
    agent->starts_told = stats.starts;
    agent->crashes_told = stats.crashes;
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

int agent_pages_open(struct agent *agent, struct err *err)
{
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
    return metrics_serve(agent->loop, agent->settings.listen, (uint16_t)agent->settings.port,
                         &agent->pages, &agent->server, err);
}

void agent_pages_close(struct agent *agent)
{
    http_server_close(&agent->server);
    metrics_close(&agent->metrics);
    free(agent->series);
}
