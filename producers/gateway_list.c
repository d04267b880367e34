/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Lists: requests of a tenant, newest first, page by page; and how deep a queue is. Nothing here
 * counts jobs: depths are sums over queue_delta, pages are walks down the key.
 *
 * The cursor of a page is the id of its last request.
 */

#include <stdlib.h>
#include <string.h>

#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_time.h"
#include "producers/gateway_view.h"

#define PAGE_MAX 1000
#define PAGE_DEFAULT 50
#define MINUTE_MS 60000
#define ANSWER_SIZE_MAX (32u << 20)

PG_STATEMENT(list_requests,
             "SELECT j.id, j.state, j.model, j.deployment, coalesce(j.environment, ''), "
             "j.accepted_at, j.state_at, j.error_class, coalesce(left(j.error_message, 1000), ''), "
             "j.webhook_url IS NOT NULL, coalesce(d.state, 0), j.attempt_count FROM job j "
             "LEFT JOIN delivery d ON d.job_id = j.id AND d.round = j.round AND d.endpoint = 'job' "
             "WHERE j.tenant = $1 AND ($2::uuid IS NULL OR j.id < $2) "
             "AND ($3 = 0 OR j.state = $3) AND ($4 = false OR d.state = 3) "
             "AND ($5::text IS NULL OR j.model = $5) "
             "AND ($6::text IS NULL OR j.environment = $6) "
             "AND ($7::uuid IS NULL OR j.id >= $7) "
             "AND ($8::timestamptz IS NULL OR j.accepted_at >= $8) ORDER BY j.id DESC LIMIT $9");
PG_STATEMENT(list_depth,
             "SELECT coalesce(sum(waiting), 0)::bigint, coalesce(sum(running), 0)::bigint "
             "FROM queue_delta WHERE deployment = $1");

/* ---- requests ---- */

static int read_status(const char *text, enum job_state *ret_state, bool *ret_undelivered,
                       struct err *err)
{
    *ret_undelivered = strcmp(text, "WEBHOOK_FAILED") == 0;
    if (*ret_undelivered) {
        *ret_state = JOB_SUCCEEDED;
        return 0;
    }
    for (enum job_state state = JOB_QUEUED; state <= JOB_CANCELED; state++) {
        if (strcmp(job_state_name(state), text) == 0) {
            *ret_state = state;
            return 0;
        }
    }
    return err_set(err, ERR_RANGE,
                   "status is '%.40s'; it must be QUEUED, IN_PROGRESS, SUCCEEDED, FAILED, EXPIRED, "
                   "CANCELED or WEBHOOK_FAILED",
                   text);
}

static struct job_view view_of_row(const struct pg_answer *answer, size_t i)
{
    return (struct job_view){.id = pg_id(answer, 0, i, 0),
                             .state = (enum job_state)pg_i64(answer, 0, i, 1),
                             .model = pg_text(answer, 0, i, 2),
                             .deployment = pg_text(answer, 0, i, 3),
                             .environment = pg_text(answer, 0, i, 4),
                             .accepted_us = pg_time_us(answer, 0, i, 5),
                             .state_us = pg_time_us(answer, 0, i, 6),
                             .error_class = (enum error_class)pg_i64(answer, 0, i, 7),
                             .error_message = pg_text(answer, 0, i, 8),
                             .has_webhook = pg_bool(answer, 0, i, 9),
                             .delivery = (enum view_delivery)pg_i64(answer, 0, i, 10),
                             .attempts = pg_u64(answer, 0, i, 11)};
}

static void on_requests(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    const struct config *config = gateway_watch_config(call->gateway->watch);
    struct buf to = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);
    char last[JOB_ID_TEXT_SIZE] = "";
    int64_t limit = PAGE_DEFAULT;
    size_t count;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    if (call_query_number(call, "limit", PAGE_DEFAULT, 1, PAGE_MAX, &limit, &err) < 0)
        limit = PAGE_DEFAULT; /* it was checked before the query */
    count = pg_row_count(answer, 0);
    buf_append_text(&to, "{\"requests\":[");
    for (size_t i = 0; i < count; i++) {
        struct job_view view = view_of_row(answer, i);
        const struct config_model *model = config == NULL
                                               ? NULL
                                               : gateway_config_find_model(config, call->tenant,
                                                                           pg_c(answer, 0, i, 2));

        if (model != NULL)
            view.model_name = WIRE_TEXT_OF(model->name);
        if (i > 0)
            buf_append_byte(&to, ',');
        view_append_json(&view, &to);
        job_id_format(&view.id, last);
    }
    buf_append_text(&to, "],\"next_cursor\":");
    if (count == (size_t)limit)
        buf_printf(&to, "\"%s\"}", last);
    else
        buf_append_text(&to, "null}");
    call_answer(&call, 200, &to);
}

/* The filters of the query, checked. */
struct filter {
    enum job_state state;
    bool has_state, undelivered, has_cursor;
    struct wire_id before, from;
    uint64_t since_us; /* 0: none */
    const char *model, *environment;
    int64_t limit;
};

static int filter_read(const struct call *call, struct filter *filter, struct err *err)
{
    const struct http_target *target = &call->target;
    const char *status = http_target_query(target, "status");
    const char *cursor = http_target_query(target, "cursor");
    const char *since = http_target_query(target, "since");
    const uint8_t lowest[JOB_ID_RANDOM_SIZE] = {0};
    int r = call_query_number(call, "limit", PAGE_DEFAULT, 1, PAGE_MAX, &filter->limit, err);

    filter->has_state = status != NULL;
    filter->has_cursor = cursor != NULL;
    filter->model = http_target_query(target, "model");
    filter->environment = http_target_query(target, "environment");
    if (r == 0 && filter->model != NULL)
        r = name_check("model", filter->model, err);
    if (r == 0 && filter->environment != NULL)
        r = name_check("environment", filter->environment, err);
    if (r == 0 && status != NULL)
        r = read_status(status, &filter->state, &filter->undelivered, err);
    if (r == 0 && cursor != NULL && job_id_parse(cursor, &filter->before, err) < 0)
        r = err_set(err, ERR_MALFORMED, "cursor is '%.60s'; it must be one from next_cursor",
                    cursor);
    if (r == 0 && since != NULL)
        r = gateway_time_parse(since, &filter->since_us, err);
    if (r == 0 && since != NULL) /* an id's time is its gateway's clock: a minute is plenty */
        filter->from = job_id_make(
            0, filter->since_us / 1000 < MINUTE_MS ? 0 : filter->since_us / 1000 - MINUTE_MS,
            lowest);
    return r;
}

void requests_begin(struct call *call)
{
    struct gateway *gateway = call->gateway;
    const struct config *config = gateway_watch_config(gateway->watch);
    struct filter filter = {.has_state = false};
    const struct config_model *model;
    struct pg_batch *batch;
    struct err err;
    int r = filter_read(call, &filter, &err);

    if (r < 0) {
        call_fail(&call, &err);
        return;
    }
    model = filter.model == NULL || config == NULL
                ? NULL
                : gateway_config_find_model(config, call->tenant, filter.model);
    batch = pg_batch_new();
    pg_add(batch, &list_requests);
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, filter.has_cursor ? &filter.before : NULL);
    pg_bind_i16(batch, filter.has_state ? (int64_t)filter.state : 0);
    pg_bind_bool(batch, filter.undelivered);
    pg_bind_c(batch, model != NULL ? model->id : filter.model);
    pg_bind_c(batch, filter.environment);
    pg_bind_id(batch, filter.since_us > 0 ? &filter.from : NULL);
    pg_bind_time(batch, filter.since_us);
    pg_bind_i64(batch, filter.limit);
    r = pg_pool_send(gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_requests, call, &err);
    pg_batch_free(&batch);
    if (r < 0)
        call_fail(&call, &err);
}

/* ---- depth ---- */

struct depth {
    struct call *call;
    char model[CONFIG_NAME_SIZE], deployment[CONFIG_NAME_SIZE];
};

static void on_depth(void *opaque, const struct pg_answer *answer)
{
    OWNED(mem_free) struct depth *depth = opaque;
    struct buf to = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);

    if (!call_take_answer(&depth->call, answer))
        return;
    /* The sums may be off by what is on its way between two flushes; nobody is owed less than 0. */
    buf_printf(&to,
               "{\"model_id\":\"%s\",\"deployment_id\":\"%s\",\"num_queued_requests\":%lld,"
               "\"num_in_progress_requests\":%lld}",
               depth->model, depth->deployment,
               (long long)(pg_i64(answer, 0, 0, 0) > 0 ? pg_i64(answer, 0, 0, 0) : 0),
               (long long)(pg_i64(answer, 0, 0, 1) > 0 ? pg_i64(answer, 0, 0, 1) : 0));
    call_answer(&depth->call, 200, &to);
}

static void on_choice(struct call *call, const struct config_choice *choice)
{
    struct depth *depth = xcalloc(1, sizeof(*depth));
    struct pg_batch *batch = pg_batch_new();
    struct err err;

    depth->call = call;
    mem_copy_text(depth->model, choice->model->id);
    mem_copy_text(depth->deployment, choice->deployment->id);
    pg_add(batch, &list_depth);
    pg_bind_c(batch, depth->deployment);
    if (pg_pool_send(call->gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_depth, depth, &err) <
        0) {
        call_fail(&call, &err);
        free(depth);
    }
    pg_batch_free(&batch);
}

void queue_status_begin(struct call *call)
{
    gateway_watch_choose(call, on_choice);
}
