/* SPDX-License-Identifier: Apache-2.0 */

/* headrace train view, metrics: how a job goes, and its curves in the terminal. */

#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/list.h"
#include "cli/train.h"

#define FOLLOW_MS 1000
#define LINE_SIZE 320

static int get(const struct client *client, const char *pattern, const char *job, json_t **ret,
               struct err *err)
{
    OWNED(mem_free) char *path = path_make(pattern, job);
    const struct client_call call = {.method = "GET", .path = path};
    int status;

    return client_exchange(client, &call, &status, ret, err);
}

/* ---- curves ---- */

struct range {
    double low, high;
};

static struct range range_of(const json_t *points)
{
    struct range range = {INFINITY, -INFINITY};
    const json_t *point;
    size_t i;

    json_array_foreach(points, i, point)
    {
        double value = json_number_value(json_object_get(point, "value"));

        range.low = fmin(range.low, value);
        range.high = fmax(range.high, value);
    }
    return range;
}

/* The mean of the points that a column stands for. */
static double column_value(const json_t *points, int column, int width)
{
    size_t count = json_array_size(points);
    size_t from = count * (size_t)column / (size_t)width;
    size_t to = count * (size_t)(column + 1) / (size_t)width;
    double sum = 0;

    to = to > from ? to : from + 1;
    for (size_t i = from; i < to; i++)
        sum += json_number_value(json_object_get(json_array_get(points, i), "value"));
    return sum / (double)(to - from);
}

/* A column is filled up to its value, in eighths of a line. */
static const char *cell(double level, int row)
{
    static const char *const eighths[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    double part = level - 8.0 * row;

    return eighths[part <= 0 ? 0 : part >= 8 ? 8 : (int)part];
}

static void curve_print(const char *name, const json_t *points,
                        const struct train_metrics_settings *settings)
{
    struct range range = range_of(points);
    size_t count = json_array_size(points);
    const json_t *last = json_array_get(points, count - 1);
    const json_t *step = json_object_get(last, "step");
    int width = count < (size_t)settings->width ? (int)count : (int)settings->width;
    double span = range.high > range.low ? range.high - range.low : 1;

    (void)printf("%s: last %.6g, %.6g to %.6g, %zu points", name,
                 json_number_value(json_object_get(last, "value")), range.low, range.high, count);
    if (json_is_integer(step))
        (void)printf(", step %lld", (long long)json_integer_value(step));
    (void)fputc('\n', stdout);
    for (int row = (int)settings->height - 1; row >= 0; row--) {
        (void)fputs("  ", stdout);
        for (int column = 0; column < width; column++) {
            double level = (column_value(points, column, width) - range.low) / span;

            (void)fputs(cell(1 + level * (8.0 * (double)settings->height - 1), row), stdout);
        }
        (void)fputc('\n', stdout);
    }
}

static bool begins(const char *name, const char *with)
{
    return strncmp(name, with, strlen(with)) == 0;
}

static size_t map_print(const char *prefix, const json_t *map,
                        const struct train_metrics_settings *settings)
{
    const char *key;
    json_t *points;
    size_t count = 0;

    json_object_foreach((json_t *)map, key, points)
    {
        OWNED(mem_free) char *name = xasprintf("%s%s", prefix, key);

        if (json_array_size(points) == 0 || !begins(name, settings->name))
            continue;
        curve_print(name, points, settings);
        count++;
    }
    return count;
}

static size_t node_print(const json_t *metrics, const struct train_metrics_settings *settings)
{
    static const struct {
        const char *key, *name;
    } plain[] = {{"cpu_usage", "cpu"}, {"cpu_memory_usage_bytes", "memory_bytes"}};
    const json_t *disk = json_object_get(json_object_get(metrics, "ephemeral_storage"),
                                         "usage_bytes");
    size_t count = map_print("", json_object_get(metrics, "user_metrics"), settings);

    for (size_t i = 0; i < COUNT_OF(plain); i++) {
        const json_t *points = json_object_get(metrics, plain[i].key);

        if (json_array_size(points) == 0 || !begins(plain[i].name, settings->name))
            continue;
        curve_print(plain[i].name, points, settings);
        count++;
    }
    if (json_array_size(disk) > 0 && begins("disk_bytes", settings->name)) {
        curve_print("disk_bytes", disk, settings);
        count++;
    }
    count += map_print("gpu.utilization.", json_object_get(metrics, "gpu_utilization"), settings);
    return count + map_print("gpu.memory_bytes.",
                             json_object_get(metrics, "gpu_memory_usage_bytes"), settings);
}

int train_metrics(const struct client *client, const void *values, char **operands,
                  int operand_count)
{
    const struct train_metrics_settings *settings = values;
    OWNED(client_json_free) json_t *answer = NULL;
    const json_t *nodes, *node;
    size_t i, count = 0;
    struct err err;

    if (!verb_operands("one job", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    if (get(client, "/v1/training_projects/-/jobs/%/metrics", operands[0], &answer, &err) < 0)
        return client_complain("train metrics", &err);
    if (settings->json) {
        table_print_json(stdout, answer);
        return CLI_EXIT_OK;
    }
    nodes = json_object_get(answer, "per_node_metrics");
    json_array_foreach(nodes, i, node)
    {
        if (json_array_size(nodes) > 1)
            (void)printf("%s\n", json_string_value(json_object_get(node, "node_id")));
        count += node_print(json_object_get(node, "metrics"), settings);
    }
    if (count == 0)
        (void)printf("there are no figures%s%s\n", *settings->name != '\0' ? " of " : "",
                     settings->name);
    return CLI_EXIT_OK;
}

/* ---- how it goes ---- */

static void add_last(char line[LINE_SIZE], const json_t *map)
{
    const char *name;
    json_t *points;

    json_object_foreach((json_t *)map, name, points)
    {
        const json_t *last = json_array_get(points, json_array_size(points) - 1);
        size_t used = strlen(line);

        if (last != NULL)
            (void)snprintf(line + used, LINE_SIZE - used, " · %s %.5g", name,
                           json_number_value(json_object_get(last, "value")));
    }
}

/* "RUNNING · placement 2 · loss 0.12": one line of how it goes now. */
static void line_make(const json_t *job, const json_t *metrics, char line[LINE_SIZE])
{
    const json_t *position = json_object_get(job, "queue_position");
    size_t used;

    (void)snprintf(line, LINE_SIZE, "%s", train_status(job));
    used = strlen(line);
    if (json_is_integer(position))
        (void)snprintf(line + used, LINE_SIZE - used, " · place %lld in the queue",
                       (long long)json_integer_value(position));
    else if (json_integer_value(json_object_get(job, "placement_count")) > 1)
        (void)snprintf(line + used, LINE_SIZE - used, " · placement %lld",
                       (long long)json_integer_value(json_object_get(job, "placement_count")));
    used = strlen(line);
    if (json_integer_value(json_object_get(job, "checkpoint_count")) > 0)
        (void)snprintf(line + used, LINE_SIZE - used, " · %lld checkpoints",
                       (long long)json_integer_value(json_object_get(job, "checkpoint_count")));
    add_last(line, json_object_get(metrics, "user_metrics"));
}

/* A terminal has one line that changes; elsewhere each change is a line. */
static int follow(const struct client *client, const char *id, struct err *err)
{
    bool terminal = isatty(STDOUT_FILENO) == 1;
    char line[LINE_SIZE], shown[LINE_SIZE] = "";

    for (;;) {
        OWNED(client_json_free) json_t *metrics = NULL;
        const json_t *job;
        bool over;
        int r = get(client, "/v1/training_projects/-/jobs/%/metrics", id, &metrics, err);

        if (r < 0)
            return r;
        job = json_object_get(metrics, "training_job");
        over = train_is_over(train_status(job));
        line_make(job, metrics, line);
        if (strcmp(line, shown) != 0)
            (void)printf(terminal ? "\r\033[K%s" : "%s\n", line);
        if (terminal && over)
            (void)fputc('\n', stdout);
        (void)fflush(stdout);
        mem_copy_text(shown, line);
        if (over)
            return 0;
        (void)poll(NULL, 0, FOLLOW_MS);
    }
}

static int events_print(const struct client *client, const char *id, struct err *err)
{
    static const struct table_column columns[] = {
        {"WHEN", "created", false, false},
        {"STATUS", "status", false, false},
        {"EXIT", "exit_code", true, false},
        {"WHY", "event_message", false, true},
    };
    OWNED(client_json_free) json_t *context = NULL;
    int r = get(client, "/v1/training/jobs/%/queue_context", id, &context, err);

    if (r < 0)
        return r;
    (void)printf("events:\n");
    return table_print(stdout, json_object_get(context, "events"), columns, COUNT_OF(columns),
                       "  none", err);
}

int train_view(const struct client *client, const void *values, char **operands, int operand_count)
{
    const struct train_view_settings *settings = values;
    OWNED(client_json_free) json_t *answer = NULL;
    struct err err;
    int r;

    if (!verb_operands("one job", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    r = settings->follow ? follow(client, operands[0], &err) : 0;
    if (r == 0)
        r = get(client, "/v1/training_projects/-/jobs/%", operands[0], &answer, &err);
    if (r == 0 && settings->json) {
        table_print_json(stdout, json_object_get(answer, "training_job"));
        return CLI_EXIT_OK;
    }
    if (r == 0) {
        table_print_object(stdout, json_object_get(answer, "training_job"));
        r = events_print(client, operands[0], &err);
    }
    return r < 0 ? client_complain("train view", &err) : CLI_EXIT_OK;
}
