/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Lines of a training job. Followed, they come by the numbers that a page ends with, so that a
 * break of the connection, or a gateway that is started again, costs no line and repeats none.
 */

#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "cli/list.h"
#include "cli/train.h"

#define PAGE 1000
#define FOLLOW_MS 500
#define AWAY_MS (10ull * 60 * 1000) /* how long a gateway may be away */
#define PATH_SIZE_MAX 65536

const char *train_status(const json_t *job)
{
    static const char prefix[] = "TRAINING_JOB_";
    const char *status = json_string_value(json_object_get(job, "current_status"));

    if (status == NULL)
        return "-";
    return strncmp(status, prefix, sizeof(prefix) - 1) == 0 ? status + sizeof(prefix) - 1 : status;
}

bool train_is_over(const char *status)
{
    static const char *const over[] = {"COMPLETED", "FAILED", "DEPLOY_FAILED", "STOPPED"};

    for (size_t i = 0; i < COUNT_OF(over); i++) {
        if (strcmp(over[i], status) == 0)
            return true;
    }
    return false;
}

static void line_print(const json_t *line, bool many)
{
    const char *when = json_string_value(json_object_get(line, "timestamp"));
    const char *node = json_string_value(json_object_get(line, "replica"));
    const char *message = json_string_value(json_object_get(line, "message"));

    (void)printf("%.19s %s%s%s\n", when != NULL ? when : "", many && node != NULL ? node : "",
                 many ? " " : "", message != NULL ? message : "");
}

static void page_print(const json_t *lines, bool json, bool many)
{
    size_t i, count = json_array_size(lines);

    for (i = 0; i < count; i++) {
        const json_t *line = json_array_get(lines, i);

        if (json) {
            (void)json_dumpf(line, stdout, JSON_COMPACT);
            (void)fputc('\n', stdout);
        } else {
            line_print(line, many);
        }
    }
    (void)fflush(stdout);
}

static int page_get(const struct client *client, const struct train_logs *logs, const char *cursor,
                    json_t **ret_page, struct err *err)
{
    OWNED(buf_done) struct buf path = BUF_WITH_LIMIT(PATH_SIZE_MAX);
    OWNED(mem_free) char *route = path_make("/v1/training_projects/-/jobs/%/logs", logs->job);
    struct client_call call = {.method = "GET"};
    int status;

    buf_printf(&path, "%s?limit=%lld", route,
               (long long)(logs->follow || logs->limit == 0 ? PAGE : logs->limit));
    if (logs->follow)
        buf_append_text(&path, "&direction=asc");
    path_append_field(&path, "cursor", cursor);
    path_append_field(&path, "search_pattern", logs->search != NULL ? logs->search : "");
    path_append_field(&path, "replica", logs->node != NULL ? logs->node : "");
    call.path = buf_text(&path);
    return client_exchange(client, &call, &status, ret_page, err);
}

static int job_get(const struct client *client, const char *id, json_t **ret_job, struct err *err)
{
    OWNED(mem_free) char *path = path_make("/v1/training_projects/-/jobs/%", id);
    const struct client_call call = {.method = "GET", .path = path};
    OWNED(client_json_free) json_t *answer = NULL;
    int status, r = client_exchange(client, &call, &status, &answer, err);

    if (r == 0)
        *ret_job = json_incref(json_object_get(answer, "training_job"));
    return r;
}

/* The newest ones, oldest first. */
static int newest_print(const struct client *client, const struct train_logs *logs, struct err *err)
{
    OWNED(client_json_free) json_t *page = NULL;
    OWNED(client_json_free) json_t *lines = json_array();
    const json_t *back;
    int r = page_get(client, logs, "", &page, err);

    if (r < 0)
        return r;
    back = json_object_get(page, "logs");
    for (size_t i = json_array_size(back); i > 0; i--)
        (void)json_array_append(lines, json_array_get(back, i - 1));
    page_print(lines, logs->json, true);
    return 0;
}

/* "FAILED: exit, code 3": how it ended, to standard error. */
static void end_print(const json_t *job)
{
    const char *cause = json_string_value(json_object_get(job, "cause"));
    const json_t *code = json_object_get(job, "exit_code"),
                 *signal = json_object_get(job, "signal");
    bool completed = strcmp(train_status(job), "COMPLETED") == 0;

    (void)fprintf(stderr, "%s", train_status(job));
    if (!completed && cause != NULL)
        (void)fprintf(stderr, ": %s", cause);
    if (!completed && json_is_integer(code))
        (void)fprintf(stderr, ", code %lld", (long long)json_integer_value(code));
    if (!completed && json_is_integer(signal))
        (void)fprintf(stderr, ", signal %lld", (long long)json_integer_value(signal));
    (void)fputc('\n', stderr);
}

struct follow {
    char *cursor;
    uint64_t away_ms; /* since when the gateway does not answer; 0: it does */
    bool over;        /* the job is: one more look, and that is all */
    bool completed;
    bool many; /* nodes */
};

/* ERR_UNAVAILABLE is waited out; anything else ends it. */
static int follow_away(struct follow *follow, struct err *err)
{
    uint64_t now_ms = clock_mono_ms();

    if (err->code != ERR_UNAVAILABLE && err->code != ERR_TIMEOUT)
        return err->code;
    if (follow->away_ms == 0) {
        follow->away_ms = now_ms;
        (void)fprintf(stderr, "(no answer: %s; going on when there is one)\n", err->text);
    }
    return now_ms - follow->away_ms > AWAY_MS ? err->code : 0;
}

/* One look. *ret_more: there may be more at once. */
static int follow_step(const struct client *client, const struct train_logs *logs,
                       struct follow *follow, bool *ret_more, struct err *err)
{
    OWNED(client_json_free) json_t *page = NULL;
    OWNED(client_json_free) json_t *job = NULL;
    const char *next;
    int r = 0;

    *ret_more = true;
    if (!follow->over)
        r = job_get(client, logs->job, &job, err);
    if (r == 0)
        r = page_get(client, logs, follow->cursor != NULL ? follow->cursor : "", &page, err);
    if (r < 0)
        return follow_away(follow, err);
    follow->away_ms = 0;
    if (job != NULL)
        follow->many = json_integer_value(json_object_get(job, "node_count")) > 1;
    page_print(json_object_get(page, "logs"), logs->json, follow->many);
    next = json_string_value(json_object_get(page, "next_cursor"));
    if (next != NULL && *next != '\0') {
        mem_free(&follow->cursor);
        follow->cursor = xstrdup(next);
    }
    if (json_array_size(json_object_get(page, "logs")) == PAGE)
        return 0;
    *ret_more = !follow->over;
    if (job != NULL && train_is_over(train_status(job))) {
        follow->over = true; /* lines that came between the two questions */
        follow->completed = strcmp(train_status(job), "COMPLETED") == 0;
        end_print(job);
    }
    return 0;
}

int train_logs_print(const struct client *client, const struct train_logs *logs,
                     bool *ret_completed, struct err *err)
{
    struct follow follow = {.cursor = NULL};
    bool more = true;
    int r = 0;

    if (!logs->follow)
        return newest_print(client, logs, err);
    while (r == 0 && more) {
        r = follow_step(client, logs, &follow, &more, err);
        if (r == 0 && more && !follow.over)
            (void)poll(NULL, 0, FOLLOW_MS);
    }
    mem_free(&follow.cursor);
    if (ret_completed != NULL)
        *ret_completed = follow.completed;
    return r;
}
