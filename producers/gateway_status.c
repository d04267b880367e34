/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Status and result of a job: Redis' final key, then Postgres, then what the id itself says.
 *
 * Redis only knows final jobs, and nothing of their webhooks: with one, Postgres is asked all the
 * same while it is there. A job of another tenant is answered like one that does not exist.
 *
 * Result: 200 and the model's output, verbatim, with its media type; 202 and the status while the
 * job is not final; 409 when it ended without a result.
 */

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "brokers/blob.h"
#include "brokers/cache.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_plan.h"
#include "producers/gateway_status.h"
#include "producers/gateway_view.h"
#include "schema/message.h"

#define ANSWER_SIZE_MAX (2u << 20)

PG_STATEMENT(status_find,
             "SELECT " STATUS_COLUMNS ", NULL::timestamptz FROM job j "
             "LEFT JOIN delivery d ON d.job_id = j.id AND d.round = j.round AND d.endpoint = 'job' "
             "WHERE j.id = $1 AND j.tenant = $2 UNION ALL " PLAN_STATUS_ROW);
PG_STATEMENT(status_floor, "SELECT floor_at FROM flush WHERE shard = $1 "
                           "ORDER BY epoch DESC, number DESC LIMIT 1");
PG_STATEMENT(status_result, "SELECT r.output, coalesce(r.output_blob, ''), r.output_size, "
                            "coalesce(r.output_type, '') FROM job j "
                            "JOIN job_result r ON r.job_id = j.id AND r.round = j.round "
                            "WHERE j.id = $1 AND j.tenant = $2");

/* ---- answers ---- */

static void name_model(const struct call *call, struct job_view *view, char *id, size_t id_size)
{
    const struct config *config = gateway_watch_config(call->gateway->watch);
    const struct config_model *model;

    if (config == NULL || view->model.size >= id_size)
        return;
    (void)snprintf(id, id_size, "%.*s", (int)view->model.size,
                   view->model.size > 0 ? view->model.text : "");
    model = gateway_config_find_model(config, call->tenant, id);
    if (model == NULL)
        return;
    view->model_name = WIRE_TEXT_OF(model->name);
    view->is_chain = gateway_config_is_chain(config, model);
}

static void answer_status(struct call *call, int status, struct job_view *view)
{
    struct buf to = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);
    char id[CONFIG_NAME_SIZE];

    name_model(call, view, id, sizeof(id));
    view_append_json(view, &to);
    call_answer(&call, status, &to);
}

static void answer_not_found(struct call *call)
{
    call_fail_as(&call, 404, "client_error",
                 "there is no such request; results are kept for a limited time");
}

/* The ledger shows a job for longer than its result's blob stays. */
static void on_output_blob(void *opaque, int fd, uint64_t size, const struct err *err)
{
    struct call *call = opaque;
    struct err mine = *err;

    if (err->code == ERR_OK && size == call->output_size) {
        call_answer_file(&call, 200, fd, size);
        return;
    }
    if (err->code == ERR_OK) {
        (void)close(fd);
        (void)err_set(&mine, ERR_IO, "the result's blob has %llu bytes, the ledger says %llu",
                      (unsigned long long)size, (unsigned long long)call->output_size);
    } else if (err->code == ERR_NOT_FOUND) {
        answer_not_found(call);
        return;
    } else {
        (void)err_wrap(&mine, "the result cannot be read");
    }
    call_fail(&call, &mine);
}

static void answer_output(struct call *call, struct wire_bytes output, const char *blob)
{
    struct buf to = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);
    struct err err;

    if (blob[0] != '\0') {
        if (blob_open(call->gateway->blobs, blob, on_output_blob, call, &err) < 0)
            call_fail(&call, &err);
        return;
    }
    if (output.size > 0)
        buf_append(&to, output.bytes, output.size);
    else if (call->type[0] == '\0')
        buf_append_text(&to, "null");
    call_answer(&call, 200, &to);
}

static bool wants_result(const struct call *call)
{
    return call->match.route == ROUTE_RESULT || call->match.route == ROUTE_RESULT_OF_MODEL ||
           call->match.route == ROUTE_RESULT_OF_CHAIN;
}

/* What the two routes say of a job: the output is for one that succeeded. */
static void answer_view(struct call *call, struct job_view *view, struct wire_bytes output,
                        const char *blob)
{
    struct buf to = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);

    if (!wants_result(call)) {
        answer_status(call, 200, view);
    } else if (!job_state_final(view->state)) {
        mem_copy_text(call->retry_after, "1");
        answer_status(call, 202, view);
    } else if (view->state == JOB_SUCCEEDED) {
        answer_output(call, output, blob);
    } else {
        view_append_failure(view, &to);
        call_answer(&call, 409, &to);
    }
}

/* ---- Postgres ---- */

struct job_view status_read(const struct pg_answer *answer, const struct wire_id *id)
{
    return (struct job_view){.id = *id,
                             .state = (enum job_state)pg_i64(answer, STATUS_ROW, 0, 0),
                             .model = pg_text(answer, STATUS_ROW, 0, 1),
                             .deployment = pg_text(answer, STATUS_ROW, 0, 2),
                             .environment = pg_text(answer, STATUS_ROW, 0, 3),
                             .accepted_us = pg_time_us(answer, STATUS_ROW, 0, 4),
                             .state_us = pg_time_us(answer, STATUS_ROW, 0, 5),
                             .error_class = (enum error_class)pg_i64(answer, STATUS_ROW, 0, 6),
                             .error_message = pg_text(answer, STATUS_ROW, 0, 7),
                             .has_webhook = pg_bool(answer, STATUS_ROW, 0, 8),
                             .delivery = (enum view_delivery)pg_i64(answer, STATUS_ROW, 0, 9),
                             .attempts = pg_u64(answer, STATUS_ROW, 0, 10)};
}

bool status_may_be_queued(const struct pg_answer *answer, const struct wire_id *id)
{
    uint64_t floor_us = pg_row_count(answer, STATUS_FLOOR) == 1
                            ? pg_time_us(answer, STATUS_FLOOR, 0, 0)
                            : 0;

    return view_may_be_queued(id, floor_us, clock_wall_us());
}

bool status_ask(struct call *call, const struct pg_statement *find, const struct pg_statement *more,
                pg_done_fn *done)
{
    struct gateway *gateway = call->gateway;
    struct pg_batch *batch = NULL;
    struct wire_id id;
    struct err err;
    int r = call_job_id(call, &id, &err);

    if (r == 0 && !pg_pool_connected(gateway->pg))
        r = err_set(&err, ERR_UNAVAILABLE, "the request cannot be looked up: Postgres is away");
    if (r == 0) {
        batch = pg_batch_new();
        pg_add(batch, &status_floor);
        pg_bind_i16(batch, job_id_shard(&id));
        pg_add(batch, find);
        pg_bind_id(batch, &id);
        pg_bind_c(batch, call->tenant);
        if (more != NULL) {
            pg_add(batch, more);
            pg_bind_id(batch, &id);
            pg_bind_c(batch, call->tenant);
        }
        r = pg_pool_send(gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, done, call, &err);
    }
    pg_batch_free(&batch);
    if (r < 0)
        call_fail(&call, &err);
    return r == 0;
}

static void on_rows(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct job_view view;
    struct wire_bytes output = {NULL, 0};
    const char *blob = "";
    struct wire_id id;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    if (call_job_id(call, &id, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    if (pg_row_count(answer, STATUS_ROW) == 0) {
        view = view_of_queued(&id);
        if (status_may_be_queued(answer, &id))
            answer_view(call, &view, output, blob);
        else
            answer_not_found(call);
        return;
    }
    view = status_read(answer, &id);
    view.run_at_us = pg_time_us(answer, STATUS_ROW, 0, STATUS_COLUMN_COUNT);
    if (wants_result(call) && pg_row_count(answer, STATUS_MORE) == 1) {
        output = pg_bytes(answer, STATUS_MORE, 0, 0);
        blob = pg_c(answer, STATUS_MORE, 0, 1);
        call->output_size = pg_u64(answer, STATUS_MORE, 0, 2);
        if (view.state == JOB_SUCCEEDED)
            call_set_type(call, pg_text(answer, STATUS_MORE, 0, 3));
    }
    answer_view(call, &view, output, blob);
}

static void ask_postgres(struct call *call)
{
    (void)status_ask(call, &status_find, wants_result(call) ? &status_result : NULL, on_rows);
}

/* ---- Redis ---- */

static void on_cached(void *opaque, int code, const void *bytes, size_t size)
{
    struct call *call = opaque;
    struct gateway *gateway = call->gateway;
    struct message message;
    struct job_view view;
    char blob[BLOB_KEY_SIZE];
    struct err err;

    if (code != ERR_OK || message_decode(gateway->decoder, bytes, size, &message, &err) < 0 ||
        message.type != MESSAGE_COMPLETED) {
        ask_postgres(call);
        return;
    }
    if (!wire_text_equal(message.completed.tenant, call->tenant)) {
        answer_not_found(call);
        return;
    }
    view = view_of_completed(&message.completed);
    /* Who is dead may have been replayed since: the key speaks of the round before. */
    if (job_state_dead(view.state) && pg_pool_connected(gateway->pg)) {
        ask_postgres(call);
        return;
    }
    if (view.has_webhook && pg_pool_connected(gateway->pg) && !wants_result(call)) {
        ask_postgres(call);
        return;
    }
    (void)snprintf(blob, sizeof(blob), "%.*s", (int)message.completed.output_blob.size,
                   message.completed.output_blob.size > 0 ? message.completed.output_blob.text
                                                          : "");
    call->output_size = message.completed.output_size;
    if (wants_result(call) && view.state == JOB_SUCCEEDED)
        call_set_type(call, message.completed.output_type);
    answer_view(call, &view, message.completed.output, blob);
}

void status_begin(struct call *call)
{
    struct wire_id id;
    struct err err;

    if (call_job_id(call, &id, &err) < 0)
        call_fail(&call, &err);
    else if (cache_get_final(call->gateway->cache, &id, on_cached, call) < 0)
        ask_postgres(call);
}

void result_begin(struct call *call)
{
    status_begin(call);
}
