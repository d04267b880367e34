/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Many jobs at once: cancel, replay, priority, by id or by filter.
 *
 *   read the request -> a page of matching ids -> one row of `command` each, with an audit row ->
 * 202
 *
 * The owners of the shards decide and acknowledge (brokers/owner_command.c); an operation is the
 * name under which its commands are counted. A page is bounded, and the next one is the client's to
 * ask for: so a request for a million jobs holds nothing here, can be watched, and stopped by not
 * asking on. The page is found first and written in a second transaction, because commands stand in
 * line for their ids and must not wait for a search.
 *
 * Failures: between the two a job may end; its owner then refuses the command, by name.
 */

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_filter.h"
#include "producers/gateway_view.h"

#define BODY_SIZE_MAX (256u << 10)
#define MINUTE_MS 60000
#define DRY_RUN_MAX 10000
#define SAMPLE_MAX 10

#define MATCH_COLUMNS                                                                              \
    " j.id, j.shard, j.state, j.round, j.model, j.error_class, j.accepted_at, "                    \
    "j.input_blob IS NOT NULL OR EXISTS (SELECT FROM job_input i WHERE i.job_id = j.id) "
#define MATCH_CONDITIONS                                                                           \
    " j.tenant = $1 AND j.state = ANY ($2) AND ($3::uuid IS NULL OR j.id < $3) "                   \
    "AND ($4::text IS NULL OR j.model = $4) AND ($5::text IS NULL OR j.deployment = $5) "          \
    "AND ($6::text IS NULL OR j.environment = $6) AND ($7::text IS NULL OR j.pool = $7) "          \
    "AND ($8::text IS NULL OR j.worker = $8) AND ($9::smallint < 0 OR j.error_class = $9) "        \
    "AND ($10::uuid IS NULL OR j.id >= $10) AND ($11::timestamptz IS NULL OR j.accepted_at >= "    \
    "$11) AND ($12::uuid IS NULL OR j.id < $12) AND ($13::timestamptz IS NULL OR j.accepted_at < " \
    "$13) AND ($14::text IS NULL OR EXISTS (SELECT FROM job_tag t WHERE t.job_id = j.id AND "      \
    "t.tag = $14)) "

PG_STATEMENT(jobs_match, "SELECT" MATCH_COLUMNS "FROM job j WHERE" MATCH_CONDITIONS
                         "ORDER BY j.id DESC LIMIT $15");
PG_STATEMENT(jobs_find,
             "SELECT" MATCH_COLUMNS "FROM job j WHERE j.tenant = $1 AND j.id = ANY ($2)");
PG_STATEMENT(
    jobs_count,
    "SELECT m.model, m.state, m.error_class, count(*), count(*) FILTER (WHERE NOT m.input) "
    "FROM (SELECT j.model, j.state, j.error_class, j.input_blob IS NOT NULL OR EXISTS "
    "(SELECT FROM job_input i WHERE i.job_id = j.id) AS input FROM job j "
    "WHERE" MATCH_CONDITIONS "LIMIT $15) m GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT 1000");
PG_STATEMENT(
    jobs_command,
    "INSERT INTO command (shard, kind, job_id, round, priority, tenant, asked_by, operation) "
    "SELECT u.*, $5, $6, $7, $8 FROM (SELECT unnest($1::smallint[]), $2::text, "
    "unnest($3::uuid[]), unnest($4::smallint[])) u");
PG_STATEMENT(jobs_audit, "INSERT INTO audit (tenant, actor, action, target, details) "
                         "VALUES ($1, $2, $3, $4, $5)");
PG_STATEMENT(
    operation_count,
    "SELECT count(*), count(d.command_id), count(*) FILTER (WHERE d.applied), min(c.kind), "
    "min(c.asked_at) FROM command c LEFT JOIN command_done d ON d.command_id = c.id "
    "WHERE c.operation = $1 AND c.tenant = $2");
PG_STATEMENT(operation_reasons,
             "SELECT d.reason, count(*) FROM command c JOIN command_done d ON d.command_id = c.id "
             "WHERE c.operation = $1 AND c.tenant = $2 AND NOT d.applied GROUP BY 1 "
             "ORDER BY 2 DESC LIMIT 20");

struct bulk {
    struct call *call;
    struct job_request request;
    char *filter;    /* as it came, for the audit */
    json_t *refused; /* of ids that were named */
    size_t accepted;
    struct wire_id last; /* of the page */
    bool more;
};

static const char *const kind_names[] = {
    [COMMAND_CANCEL] = "cancel", [COMMAND_REPLAY] = "replay", [COMMAND_PRIORITY] = "priority"};
static const char *const kind_actions[] = {[COMMAND_CANCEL] = "JOBS_CANCEL_ASKED",
                                           [COMMAND_REPLAY] = "JOBS_REPLAY_ASKED",
                                           [COMMAND_PRIORITY] = "JOBS_PRIORITY_ASKED"};

static void bulk_free(struct bulk **bulk_p)
{
    struct bulk *bulk = TAKE(*bulk_p);

    if (bulk == NULL)
        return;
    job_request_done(&bulk->request);
    free(bulk->filter);
    json_decref(bulk->refused);
    free(bulk);
}

static json_t *json_id(const struct wire_id *id)
{
    char text[JOB_ID_TEXT_SIZE];

    job_id_format(id, text);
    return json_string(text);
}

/* ---- parameters ---- */

static void bind_optional(struct pg_batch *batch, const char *text)
{
    pg_bind_c(batch, text[0] == '\0' ? NULL : text);
}

static void bind_states(struct pg_batch *batch, const struct job_filter *filter)
{
    size_t count = 0;

    for (size_t i = 0; i < COUNT_OF(filter->states); i++)
        count += filter->states[i];
    pg_bind_array(batch, PG_I16, count);
    for (size_t i = 0; i < COUNT_OF(filter->states); i++) {
        if (filter->states[i])
            pg_bind_i16(batch, (int64_t)i);
    }
}

/* The lowest id of that time, give or take what a gateway's clock may differ: it reads only the
 * days that it must. */
static void bind_bound(struct pg_batch *batch, uint64_t at_us, bool lower)
{
    static const uint8_t lowest[JOB_ID_RANDOM_SIZE];
    uint64_t at_ms = at_us / 1000;
    struct wire_id id;

    at_ms = lower ? (at_ms < MINUTE_MS ? 0 : at_ms - MINUTE_MS) : at_ms + MINUTE_MS;
    id = job_id_make(0, at_ms, lowest);
    pg_bind_id(batch, at_us == 0 ? NULL : &id);
    pg_bind_time(batch, at_us);
}

/* $1 to $14 of a match. */
static void bind_filter(struct pg_batch *batch, const struct bulk *bulk)
{
    const struct job_filter *filter = &bulk->request.filter;
    const struct config *config = gateway_watch_config(bulk->call->gateway->watch);
    const struct config_model *model = config == NULL || filter->model[0] == '\0'
                                           ? NULL
                                           : gateway_config_find_model(config, bulk->call->tenant,
                                                                       filter->model);

    pg_bind_c(batch, bulk->call->tenant);
    bind_states(batch, filter);
    pg_bind_id(batch, bulk->request.has_cursor ? &bulk->request.cursor : NULL);
    bind_optional(batch, model != NULL ? model->id : filter->model);
    bind_optional(batch, filter->deployment);
    bind_optional(batch, filter->environment);
    bind_optional(batch, filter->pool);
    bind_optional(batch, filter->worker);
    pg_bind_i16(batch, filter->error_class);
    bind_bound(batch, filter->after_us, true);
    bind_bound(batch, filter->before_us, false);
    bind_optional(batch, filter->tag);
}

/* ---- the commands ---- */

static void bulk_answer(struct bulk *bulk, int status)
{
    json_t *body = json_pack(
        "{s:o, s:s, s:I, s:O, s:o}", "operation_id",
        bulk->request.has_operation ? json_id(&bulk->request.operation) : json_null(), "action",
        kind_names[bulk->request.kind], "accepted", (json_int_t)bulk->accepted, "refused",
        bulk->refused, "next_cursor", bulk->more ? json_id(&bulk->last) : json_null());

    call_answer_json(&bulk->call, status, &body);
}

static void on_commanded(void *opaque, const struct pg_answer *answer)
{
    OWNED(bulk_free) struct bulk *bulk = opaque;

    if (call_take_answer(&bulk->call, answer))
        bulk_answer(bulk, 202);
}

static void add_audit(struct pg_batch *batch, const struct bulk *bulk)
{
    char operation[JOB_ID_TEXT_SIZE];
    OWNED(mem_free) char *details = NULL;

    job_id_format(&bulk->request.operation, operation);
    details = xasprintf("{\"count\":%zu,\"filter\":%s}", bulk->accepted,
                        bulk->filter != NULL ? bulk->filter : "null");
    pg_add(batch, &jobs_audit);
    pg_bind_c(batch, bulk->call->tenant);
    pg_bind_c(batch, bulk->call->key_prefix);
    pg_bind_c(batch, kind_actions[bulk->request.kind]);
    pg_bind_c(batch, operation);
    pg_bind_json(batch, details);
}

struct match {
    struct wire_id id;
    int64_t shard, round;
};

static void bulk_command(struct bulk *bulk, const struct match *matches)
{
    struct pg_batch *batch = pg_batch_new();
    size_t count = bulk->accepted;
    struct err err;

    pg_add(batch, &jobs_command);
    pg_bind_array(batch, PG_I16, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_i16(batch, matches[i].shard);
    pg_bind_c(batch, kind_names[bulk->request.kind]);
    pg_bind_array(batch, PG_ID, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_id(batch, &matches[i].id);
    pg_bind_array(batch, PG_I16, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_i16(batch, bulk->request.kind == COMMAND_REPLAY ? matches[i].round : 0);
    pg_bind_i16(batch, (int64_t)bulk->request.priority);
    pg_bind_c(batch, bulk->call->tenant);
    pg_bind_c(batch, bulk->call->key_prefix);
    pg_bind_id(batch, &bulk->request.operation);
    add_audit(batch, bulk);
    if (pg_pool_send(bulk->call->gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_commanded, bulk,
                     &err) < 0) {
        pg_batch_free(&batch);
        call_fail(&bulk->call, &err);
        bulk_free(&bulk);
    }
}

/* A named job that the action is not for is told at once. */
static bool match_refuse(struct bulk *bulk, const struct pg_answer *answer, size_t row)
{
    enum job_state state = (enum job_state)pg_i64(answer, 0, row, 2);
    struct wire_id id = pg_id(answer, 0, row, 0);
    char why[80];

    if (!job_action_is_for(bulk->request.kind, state))
        (void)snprintf(why, sizeof(why), "it is %s", job_state_name(state));
    else if (bulk->request.kind == COMMAND_REPLAY && !pg_bool(answer, 0, row, 7))
        (void)snprintf(why, sizeof(why), "its input is gone");
    else
        return false;
    (void)json_array_append_new(
        bulk->refused, json_pack("{s:o, s:s}", "request_id", json_id(&id), "message", why));
    return true;
}

/* Ids that are of nobody, or of another tenant. */
static void refuse_unknown(struct bulk *bulk, const struct pg_answer *answer)
{
    for (size_t i = 0; i < bulk->request.id_count; i++) {
        bool known = false;

        for (size_t row = 0; row < pg_row_count(answer, 0) && !known; row++) {
            struct wire_id id = pg_id(answer, 0, row, 0);

            known = job_id_equal(&id, &bulk->request.ids[i]);
        }
        if (!known)
            (void)json_array_append_new(
                bulk->refused, json_pack("{s:o, s:s}", "request_id", json_id(&bulk->request.ids[i]),
                                         "message", "there is no such request"));
    }
}

static void on_matched(void *opaque, const struct pg_answer *answer)
{
    struct bulk *bulk = opaque;
    OWNED(mem_free) struct match *matches = NULL;
    size_t count;

    if (!call_take_answer(&bulk->call, answer)) {
        bulk_free(&bulk);
        return;
    }
    count = pg_row_count(answer, 0);
    matches = xcalloc(count + 1, sizeof(*matches));
    for (size_t i = 0; i < count; i++) {
        bulk->last = pg_id(answer, 0, i, 0);
        if (bulk->request.ids != NULL && match_refuse(bulk, answer, i))
            continue;
        matches[bulk->accepted++] = (struct match){
            .id = bulk->last, .shard = pg_i64(answer, 0, i, 1), .round = pg_i64(answer, 0, i, 3)};
    }
    if (bulk->request.ids != NULL)
        refuse_unknown(bulk, answer);
    else
        bulk->more = count == bulk->request.limit;
    if (bulk->accepted > 0) {
        if (!bulk->request.has_operation) {
            uint8_t entropy[JOB_ID_RANDOM_SIZE];

            rng_secret_bytes(entropy, sizeof(entropy));
            bulk->request.operation = job_id_make(0, clock_wall_ms(), entropy);
            bulk->request.has_operation = true;
        }
        bulk_command(bulk, matches);
        return;
    }
    bulk_answer(bulk, 200);
    bulk_free(&bulk);
}

/* ---- dry run ---- */

static json_t *json_class(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    uint64_t class = pg_u64(answer, at, row, column);

    return class == 0 || !error_class_known(class)
               ? json_null()
               : json_string(error_class_name((enum error_class) class));
}

static json_t *sample_of(const struct pg_answer *answer)
{
    json_t *sample = json_array();

    for (size_t i = 0; i < pg_row_count(answer, 1); i++) {
        struct wire_id id = pg_id(answer, 1, i, 0);
        char at[CLOCK_TEXT_SIZE];

        clock_format_iso(pg_time_us(answer, 1, i, 6), at);
        (void)json_array_append_new(
            sample,
            json_pack("{s:o, s:s, s:s, s:o, s:I, s:s}", "request_id", json_id(&id), "status",
                      job_state_name((enum job_state)pg_i64(answer, 1, i, 2)), "model_id",
                      pg_c(answer, 1, i, 4), "error_class", json_class(answer, 1, i, 5), "round",
                      (json_int_t)pg_i64(answer, 1, i, 3), "created_at", at));
    }
    return sample;
}

static void on_counted(void *opaque, const struct pg_answer *answer)
{
    OWNED(bulk_free) struct bulk *bulk = opaque;
    json_int_t matched = 0, gone = 0;
    json_t *groups, *body;

    if (!call_take_answer(&bulk->call, answer))
        return;
    groups = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 0); i++) {
        matched += (json_int_t)pg_i64(answer, 0, i, 3);
        gone += (json_int_t)pg_i64(answer, 0, i, 4);
        (void)json_array_append_new(
            groups,
            json_pack("{s:s, s:s, s:o, s:I}", "model_id", pg_c(answer, 0, i, 0), "status",
                      job_state_name((enum job_state)pg_i64(answer, 0, i, 1)), "error_class",
                      json_class(answer, 0, i, 2), "count", (json_int_t)pg_i64(answer, 0, i, 3)));
    }
    body = json_pack("{s:b, s:s, s:I, s:b, s:I, s:o, s:o}", "dry_run", 1, "action",
                     kind_names[bulk->request.kind], "matched", matched, "is_complete",
                     matched < DRY_RUN_MAX, "input_gone",
                     bulk->request.kind == COMMAND_REPLAY ? gone : 0, "groups", groups, "sample",
                     sample_of(answer));
    call_answer_json(&bulk->call, 200, &body);
}

static void add_match(struct pg_batch *batch, const struct pg_statement *statement,
                      const struct bulk *bulk, int64_t limit)
{
    pg_add(batch, statement);
    bind_filter(batch, bulk);
    pg_bind_i64(batch, limit);
}

/* ---- the request ---- */

static void bulk_ask(struct bulk *bulk)
{
    struct pg_batch *batch = pg_batch_new();
    pg_done_fn *done = on_matched;
    struct err err;

    if (bulk->request.ids != NULL) {
        pg_add(batch, &jobs_find);
        pg_bind_c(batch, bulk->call->tenant);
        pg_bind_array(batch, PG_ID, bulk->request.id_count);
        for (size_t i = 0; i < bulk->request.id_count; i++)
            pg_bind_id(batch, &bulk->request.ids[i]);
    } else if (bulk->request.dry_run) {
        done = on_counted;
        add_match(batch, &jobs_count, bulk, DRY_RUN_MAX);
        add_match(batch, &jobs_match, bulk, SAMPLE_MAX);
    } else {
        add_match(batch, &jobs_match, bulk, bulk->request.limit);
    }
    if (pg_pool_send(bulk->call->gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, done, bulk, &err) <
        0) {
        pg_batch_free(&batch);
        call_fail(&bulk->call, &err);
        bulk_free(&bulk);
    }
}

static enum command_kind kind_of_route(enum route route)
{
    return route == ROUTE_JOBS_CANCEL   ? COMMAND_CANCEL
           : route == ROUTE_JOBS_REPLAY ? COMMAND_REPLAY
                                        : COMMAND_PRIORITY;
}

static void on_body(struct call *call)
{
    struct bulk *bulk = xcalloc(1, sizeof(*bulk));
    json_t *body = NULL, *filter;
    struct err err;
    int r = call_read_json(call, &body, &err);

    if (r == 0)
        r = job_request_read(body, kind_of_route(call->match.route), &bulk->request, &err);
    if (r == 0 && bulk->request.dry_run && bulk->request.ids != NULL)
        r = err_set(&err, ERR_RANGE, "a dry run is for a filter; these ids were named one by one");
    filter = json_object_get(body, "filter");
    if (r == 0 && filter != NULL)
        bulk->filter = json_dumps(filter, JSON_COMPACT);
    json_decref(body);
    if (r < 0) {
        call_fail(&call, &err);
        bulk_free(&bulk);
        return;
    }
    bulk->call = call;
    bulk->refused = json_array();
    bulk_ask(bulk);
}

void jobs_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, on_body);
}

/* ---- what came of it ---- */

static void on_operation(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *refused, *body;
    json_int_t commands, done, applied;
    char at[CLOCK_TEXT_SIZE];
    struct wire_id id;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    commands = (json_int_t)pg_i64(answer, 0, 0, 0);
    done = (json_int_t)pg_i64(answer, 0, 0, 1);
    applied = (json_int_t)pg_i64(answer, 0, 0, 2);
    if (commands == 0) {
        call_fail_as(&call, 404, "client_error",
                     "there is no such operation; they are kept for a limited time");
        return;
    }
    refused = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 1); i++)
        (void)json_array_append_new(refused,
                                    json_pack("{s:s, s:I}", "reason", pg_c(answer, 1, i, 0),
                                              "count", (json_int_t)pg_i64(answer, 1, i, 1)));
    clock_format_iso(pg_time_us(answer, 0, 0, 4), at);
    if (job_id_parse(call->match.param, &id, &err) < 0)
        NEVER("an id changed while its operation was looked up");
    body = json_pack("{s:o, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:o}", "operation_id", json_id(&id),
                     "action", pg_c(answer, 0, 0, 3), "created_at", at, "commands", commands,
                     "pending", commands - done, "applied", applied, "refused", done - applied,
                     "retry_after_ms", (json_int_t)(commands == done ? 0 : 500), "reasons",
                     refused);
    call_answer_json(&call, 200, &body);
}

void operation_begin(struct call *call)
{
    struct pg_batch *batch;
    struct wire_id id;
    struct err err;

    if (job_id_parse(call->match.param, &id, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &operation_count);
    pg_bind_id(batch, &id);
    pg_bind_c(batch, call->tenant);
    pg_add(batch, &operation_reasons);
    pg_bind_id(batch, &id);
    pg_bind_c(batch, call->tenant);
    call_query(call, &batch, on_operation);
}
