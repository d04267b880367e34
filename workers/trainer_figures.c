/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Figures of a node on their way to `training_metric`: what it uses, sampled each second, and what
 * its lines say of it. They are gathered for a second and written as one statement; what does not
 * fit, or is refused, is left out: a curve may miss a point, and nothing waits for one.
 */

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "workers/trainer_int.h"

#define SAMPLE_MAX (4 + 2 * TRAINER_GPUS_MAX)

PG_STATEMENT(figures_add,
             "INSERT INTO training_metric (job_id, rank, name, at, step, value) SELECT $1, $2, "
             "m.name, m.at, nullif(m.step, -1), m.value FROM unnest($3::text[], "
             "$4::timestamptz[], $5::bigint[], $6::float8[]) AS m (name, at, step, value)");

static void on_told(void *opaque, const struct pg_answer *answer)
{
    struct node *node = opaque;

    node->telling = false;
    if (answer->err.code != ERR_OK)
        log_debug("figures_lost", LOG_STR("job", node->job_text), LOG_ERR(&answer->err));
    (void)node_unbusy(node);
}

void node_metric_flush(struct node *node)
{
    size_t count = node->figure_count;
    struct pg_batch *batch;

    if (count == 0 || node->telling)
        return;
    batch = pg_batch_new();
    node_fence(batch, node);
    pg_add(batch, &figures_add);
    pg_bind_id(batch, &node->job);
    pg_bind_i32(batch, node->rank);
    pg_bind_array(batch, PG_TEXT, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_c(batch, node->figures[i].metric.name);
    pg_bind_array(batch, PG_TIME, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_time(batch, node->figures[i].at_us);
    pg_bind_array(batch, PG_I64, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_i64(batch, node->figures[i].metric.step);
    pg_bind_array(batch, PG_DOUBLE, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_double(batch, node->figures[i].metric.value);
    node->figure_count = 0;
    node->telling = true;
    node->busy++;
    trainer_send(node->trainer, &batch, on_told, node);
}

static void figures_take(struct node *node, const struct trainer_metric *metrics, size_t count)
{
    uint64_t now_us = clock_wall_us();

    if (node->figures == NULL)
        node->figures = xcalloc(NODE_FIGURES_MAX, sizeof(*node->figures));
    if (node->figure_count + count > NODE_FIGURES_MAX)
        node_metric_flush(node);
    for (size_t i = 0; i < count && node->figure_count < NODE_FIGURES_MAX; i++)
        node->figures[node->figure_count++] = (struct node_figure){.metric = metrics[i],
                                                                   .at_us = now_us};
}

void node_metric_add(struct node *node, const char *name, double value, int64_t step)
{
    struct trainer_metric metric = {.value = value, .step = step};

    mem_copy_text(metric.name, name);
    figures_take(node, &metric, 1);
}

void node_metric_line(struct node *node, const char *line, size_t size)
{
    struct trainer_metric metrics[TRAINER_METRIC_LINE_MAX];
    size_t count = trainer_metric_line(line, size, metrics, COUNT_OF(metrics));

    if (count > 0)
        figures_take(node, metrics, count);
}

void node_metric_sample(struct node *node)
{
    struct trainer_metric metrics[SAMPLE_MAX];
    pid_t leader = node->container_pid > 0 ? node->container_pid : child_pid(node->child);
    size_t count;

    if (node->group_dir == NULL && node->image == NULL)
        node->group_dir = confine_group_dir(node->group);
    count = trainer_metric_sample(&node->metric_state, node->group_dir, leader, metrics,
                                  COUNT_OF(metrics));

    for (size_t i = 0; i < count; i++) {
        if (strcmp(metrics[i].name, "memory_bytes") == 0)
            node->memory_used = (uint64_t)metrics[i].value;
    }
    if (node->gpu_count > 0)
        count += trainer_metric_gpus(node->gpus, node->gpu_count, metrics + count,
                                     COUNT_OF(metrics) - count);
    if (count > 0)
        figures_take(node, metrics, count);
    node_metric_flush(node);
}
