/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One request, from its headers to its answer: target, route, trace, key, then the route's own
 * code. Every answer goes through call_end(), which writes the log line and the metrics.
 *
 * Failures: an error of ours becomes {"error", "error_code"} with the status of its code; what the
 * HTTP server refuses by itself gets the same shape by call_render_error().
 */

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_body.h"
#include "producers/gateway_websocket.h"

#define ANSWER_SIZE_MAX (16u << 20)
#define HEADERS_MAX 12
#define ERROR_SOURCE_MODEL "04" /* as the original numbers its services: the model's server */
#define STATUS_LEFT 499         /* nobody reads it: for log and metrics */
#define STATUS_FIRST 100
#define STATUS_COUNT 500

/* ---- errors on the wire ---- */

static const char *error_code_of_status(int status)
{
    switch (status) {
    case 401:
    case 403:
        return "unauthorized";
    case 408:
    case 504:
        return "timeout";
    case 413:
        return "payload_too_large";
    case 429:
        return "rate_limited";
    default:
        return status >= 500 ? "internal_baseten_error" : "client_error";
    }
}

static void append_error(struct buf *to, const char *text, const char *error_code)
{
    buf_append_text(to, "{\"error\":");
    json_append_string(to, text, strlen(text));
    buf_printf(to, ",\"error_code\":\"%s\"}", error_code);
}

/* The same as OpenAI's clients read it. */
static void append_openai_error(struct buf *to, const char *text, const char *error_code,
                                int status)
{
    buf_append_text(to, "{\"error\":{\"message\":");
    json_append_string(to, text, strlen(text));
    buf_printf(to, ",\"type\":\"%s\",\"param\":null,\"code\":\"%s\"}}",
               status >= 500 ? "server_error" : "invalid_request_error", error_code);
}

void call_render_error(int status, const char *text, struct buf *to, void *opaque)
{
    (void)opaque;
    append_error(to, text, error_code_of_status(status));
}

/* ---- the end of a call ---- */

static void call_free(struct call **call_p)
{
    struct call *call = TAKE(*call_p);

    LIST_REMOVE(call, link);
    if (call->on_freed != NULL)
        call->on_freed(call);
    free(call);
}

static struct metric *status_series(struct call *call, int status)
{
    static struct metric *series[ROUTE_COUNT][STATUS_COUNT]; /* of the process' one gateway */
    struct metric **at;
    char text[12];
    const char *const values[] = {route_name(call->match.route), text};

    if (status < STATUS_FIRST || status >= STATUS_FIRST + STATUS_COUNT)
        status = 500;
    at = &series[call->match.route][status - STATUS_FIRST];
    if (*at == NULL) {
        (void)snprintf(text, sizeof(text), "%d", status);
        *at = metrics_series(call->gateway->metrics, GATEWAY_METRIC_gateway_requests_total, values);
    }
    return *at;
}

static struct metric *took_series(struct call *call)
{
    static struct metric *series[ROUTE_COUNT];
    struct metric **at = &series[call->match.route];
    const char *const values[] = {route_name(call->match.route)};

    if (*at == NULL)
        *at = metrics_series(call->gateway->metrics, GATEWAY_METRIC_gateway_request_seconds,
                             values);
    return *at;
}

/* Metrics, span and log line of an answer that is about to leave. */
static void call_account(struct call *call, int status)
{
    uint64_t now_us = clock_wall_us();
    uint64_t begun_us = call->begun_us;
    double seconds = now_us > begun_us ? (double)(now_us - begun_us) / 1e6 : 0;

    metric_add(status_series(call, status), 1);
    metric_observe(took_series(call), seconds);
    public_account(call, status, seconds);
    trace_set_number(&call->span, "http.response.status_code", status);
    if (call->job[0] != '\0')
        trace_set_text(&call->span, "headrace.job", call->job);
    trace_end(call->gateway->tracer, &call->span, status >= 500, now_us);
    if (!call->gateway->settings.access_log ||
        route_access(call->match.route) == ROUTE_ACCESS_PUBLIC)
        return;
    log_info(
        "request", LOG_STR("route", route_name(call->match.route)), LOG_I64("status", status),
        LOG_DOUBLE("seconds", seconds),
        LOG_STR(call->tenant[0] != '\0' ? "tenant" : NULL, call->tenant),
        LOG_STR(call->key_prefix[0] != '\0' ? "key" : NULL, call->key_prefix),
        LOG_STR(call->job[0] != '\0' ? "job" : NULL, call->job),
        LOG_HEX(trace_context_is_set(&call->trace) ? "trace" : NULL, call->trace.trace_id, 16),
        LOG_STR("peer", call->request == NULL ? call->peer : http_request_peer(call->request)));
}

static size_t call_headers(const struct call *call, int status, const char *type,
                           struct http_header headers[HEADERS_MAX])
{
    size_t n = 0;

    headers[n++] = (struct http_header){"Content-Type", call->type[0] != '\0' ? call->type : type};
    if (call->job[0] != '\0') {
        headers[n++] = (struct http_header){"X-Baseten-Request-Id", call->job};
        headers[n++] = (struct http_header){"X-Headrace-Request-Id", call->job};
    }
    if (call->retry_after[0] != '\0')
        headers[n++] = (struct http_header){"Retry-After", call->retry_after};
    else if (status == 429 || status == 503)
        headers[n++] = (struct http_header){"Retry-After", "1"};
    if (status == 405)
        headers[n++] = (struct http_header){"Allow", call->match.allow};
    if (status == 401)
        headers[n++] = (struct http_header){"WWW-Authenticate", "Bearer"};
    if (status == 426) {
        headers[n++] = (struct http_header){"Upgrade", "websocket"};
        headers[n++] = (struct http_header){"Sec-WebSocket-Version", "13"};
    }
    if (call->idempotent_replay[0] != '\0')
        headers[n++] = (struct http_header){"X-Headrace-Idempotent-Replay",
                                            call->idempotent_replay};
    if (call->attempts[0] != '\0')
        headers[n++] = (struct http_header){"X-BASETEN-MODEL-PREDICTION-ATTEMPTS", call->attempts};
    if (call->error_source != NULL) {
        headers[n++] = (struct http_header){"X-BASETEN-ERROR-SOURCE", ERROR_SOURCE_MODEL};
        headers[n++] = (struct http_header){"X-BASETEN-ERROR-CODE", call->error_source};
    }
    assert(n <= HEADERS_MAX);
    return n;
}

void call_set_type(struct call *call, struct wire_text type)
{
    struct err err;

    if (media_type_check(type, &err) < 0)
        type = WIRE_TEXT_OF(MEDIA_TYPE_BYTES);
    (void)snprintf(call->type, sizeof(call->type), "%.*s", (int)type.size,
                   type.size > 0 ? type.text : "");
}

void call_answer(struct call **call_p, int status, struct buf *body)
{
    struct call *call = *call_p;
    struct http_header headers[HEADERS_MAX];
    size_t count = call_headers(call, status, MEDIA_TYPE_JSON, headers);

    call_account(call, status);
    http_request_answer_buf(&call->request, status, headers, count, body);
    call_free(call_p);
}

void call_answer_json(struct call **call_p, int status, struct json_t **body_p)
{
    struct buf text = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);
    json_t *body = TAKE(*body_p);
    char *dumped = json_dumps(body, JSON_COMPACT);

    if (dumped == NULL)
        NEVER("an answer that json_pack has made can be written");
    buf_append_text(&text, dumped);
    free(dumped);
    json_decref(body);
    call_answer(call_p, status, &text);
    buf_done(&text);
}

void call_answer_rows(struct call *call, const struct pg_answer *answer, const char *name,
                      json_t *(*row_json)(const struct pg_answer *answer, size_t row))
{
    json_t *list, *body;

    if (!call_take_answer(&call, answer))
        return;
    list = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 0); i++)
        (void)json_array_append_new(list, row_json(answer, i));
    body = json_pack("{s:o}", name, list);
    call_answer_json(&call, 200, &body);
}

void call_answer_text(struct call **call_p, int status, const char *type, const char *text)
{
    struct call *call = *call_p;
    struct http_header headers[HEADERS_MAX];
    size_t count = call_headers(call, status, type, headers);

    call_account(call, status);
    http_request_answer(&call->request, status, headers, count, text, strlen(text));
    call_free(call_p);
}

void call_answer_file(struct call **call_p, int status, int fd, uint64_t size)
{
    struct call *call = *call_p;
    struct http_header headers[HEADERS_MAX];
    size_t count = call_headers(call, status, MEDIA_TYPE_JSON, headers);

    call_account(call, status);
    http_request_answer_file(&call->request, status, headers, count, fd, 0, size);
    call_free(call_p);
}

struct http_stream *call_answer_stream(struct call *call, int status, size_t waiting_size_max,
                                       const struct http_stream_calls *calls, void *opaque)
{
    struct http_header headers[HEADERS_MAX];
    size_t count = call_headers(call, status, MEDIA_TYPE_BYTES, headers);

    assert(count < HEADERS_MAX);
    headers[count++] = (struct http_header){"Cache-Control", "no-store"};
    mem_copy_text(call->peer, http_request_peer(call->request));
    return http_request_answer_stream(&call->request, status, headers, count, waiting_size_max,
                                      calls, opaque);
}

void call_end_stream(struct call **call_p, int status)
{
    call_account(*call_p, status);
    call_free(call_p);
}

struct http_upgraded *call_upgrade(struct call **call_p, const struct http_header *headers,
                                   size_t header_count, const struct http_upgrade_calls *calls,
                                   void *opaque)
{
    struct call *call = *call_p;
    struct http_header all[2 * HEADERS_MAX];
    size_t count = call_headers(call, 101, "", all); /* the first one is Content-Type */
    struct http_upgraded *upgraded;

    assert(header_count <= HEADERS_MAX);
    for (size_t i = 0; i < header_count; i++)
        all[count++] = headers[i];
    if (http_request_is_gone(call->request)) {
        call_leave(call_p);
        return NULL;
    }
    call_account(call, 101);
    upgraded = http_request_upgrade(&call->request, all + 1, count - 1, calls, opaque);
    call_free(call_p);
    return upgraded;
}

void call_leave(struct call **call_p)
{
    struct call *call = *call_p;

    call_account(call, STATUS_LEFT);
    if (call->request != NULL)
        http_request_drop(&call->request);
    call_free(call_p);
}

void call_fail_as(struct call **call_p, int status, const char *error_code, const char *text)
{
    struct buf body = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);

    (*call_p)->type[0] = '\0';
    if (route_is_openai((*call_p)->match.route))
        append_openai_error(&body, text, error_code, status);
    else
        append_error(&body, text, error_code);
    call_answer(call_p, status, &body);
    buf_done(&body);
}

static void call_log_failed(const struct call *call, const struct err *err)
{
    log_warn("request_failed", LOG_STR("route", route_name(call->match.route)),
             LOG_STR(call->job[0] != '\0' ? "job" : NULL, call->job),
             LOG_STR(call->tenant[0] != '\0' ? "tenant" : NULL, call->tenant),
             LOG_HEX(trace_context_is_set(&call->trace) ? "trace" : NULL, call->trace.trace_id, 16),
             LOG_ERR(err));
}

void call_fail(struct call **call_p, const struct err *err)
{
    int status = err_http_status(err->code);

    if (status >= 500)
        call_log_failed(*call_p, err);
    call_fail_as(call_p, status, error_code_of_status(status), err->text);
}

bool call_take_answer(struct call **call_p, const struct pg_answer *answer)
{
    struct err err = answer->err;

    if (err.code == ERR_OK)
        return true;
    if (err_class(err.code) == ERR_CLASS_RETRY) /* whatever it was, the client may ask again */
        err.code = ERR_UNAVAILABLE;
    (void)err_wrap(&err, "Postgres");
    call_fail(call_p, &err);
    return false;
}

size_t count_characters(const char *text)
{
    size_t count = 0;

    for (; *text != '\0'; text++)
        count += ((unsigned char)*text & 0xc0) != 0x80;
    return count;
}

struct json_t *json_of_text(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    return pg_is_null(answer, at, row, column) ? json_null()
                                               : json_string(pg_c(answer, at, row, column));
}

struct json_t *json_of_time(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    char text[CLOCK_TEXT_SIZE];

    if (pg_is_null(answer, at, row, column))
        return json_null();
    clock_format_iso(pg_time_us(answer, at, row, column), text);
    return json_string(text);
}

/* ---- the beginning ---- */

static void call_metrics(struct call *call)
{
    struct buf text = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);
    struct err err;

    if (metrics_write(call->gateway->metrics, &text, &err) < 0)
        call_fail(&call, &err);
    else
        call_answer_text(&call, 200, "text/plain; version=0.0.4; charset=utf-8", buf_text(&text));
    buf_done(&text);
}

static void call_ready(struct call *call)
{
    const char *why = gateway_not_ready(call->gateway);

    if (why == NULL)
        call_answer_text(&call, 200, "application/json", "{\"ready\":true}");
    else
        call_fail_as(&call, 503, "internal_baseten_error", why);
}

/* A route of a model's own server may be a websocket, too. */
static void passthrough_begin(struct call *call)
{
    if (websocket_is_asked(call))
        websocket_begin(call);
    else
        submit_begin(call);
}

static void (*const begins[ROUTE_COUNT])(struct call *call) = {
    [ROUTE_SUBMIT] = submit_begin,
    [ROUTE_PREDICT] = submit_begin,
    [ROUTE_PASSTHROUGH] = passthrough_begin,
    [ROUTE_WEBSOCKET] = websocket_begin,
    [ROUTE_WAKE] = wake_begin,
    [ROUTE_RUN_REMOTE] = submit_begin,
    [ROUTE_ASYNC_RUN_REMOTE] = submit_begin,
    [ROUTE_CHAIN_DELETE] = chain_delete_begin,
    [ROUTE_CHAIN_DEPLOYMENTS] = chain_deployments_begin,
    [ROUTE_CHAIN_DEPLOYMENT] = chain_deployment_begin,
    [ROUTE_CHAIN_DEPLOYMENT_DELETE] = chain_version_do_begin,
    [ROUTE_CHAIN_ACTIVATE] = chain_version_do_begin,
    [ROUTE_CHAIN_DEACTIVATE] = chain_version_do_begin,
    [ROUTE_CHAINLET_LOGS] = chainlet_logs_begin,
    [ROUTE_CHAIN_ENVIRONMENTS] = chain_environments_begin,
    [ROUTE_CHAIN_ENVIRONMENT_MAKE] = chain_environment_make_begin,
    [ROUTE_CHAIN_ENVIRONMENT] = chain_environment_begin,
    [ROUTE_CHAIN_ENVIRONMENT_SET] = chain_environment_set_begin,
    [ROUTE_CHAIN_PROMOTE] = chain_promote_begin,
    [ROUTE_CHAIN_AUTOSCALING] = chainlets_set_begin,
    [ROUTE_CHAIN_INSTANCE_TYPES] = chainlets_set_begin,
    [ROUTE_CHAIN_RUNS] = chain_runs_begin,
    [ROUTE_CHAINS] = chains_begin,
    [ROUTE_CHAIN] = chain_begin,
    [ROUTE_CHAIN_RUN] = chain_run_begin,
    [ROUTE_CHAIN_RECORD] = chain_record_begin,
    [ROUTE_CHAIN_RERUN] = chain_rerun_begin,
    [ROUTE_CHAIN_RUN_FORGET] = chain_forget_begin,
    [ROUTE_CHAIN_APPROVE] = chain_decide_begin,
    [ROUTE_CHAIN_REJECT] = chain_decide_begin,
    [ROUTE_CHAIN_TOKEN] = chain_token_begin,
    [ROUTE_APPROVAL_APPROVE] = chain_token_answer_begin,
    [ROUTE_APPROVAL_REJECT] = chain_token_answer_begin,
    [ROUTE_STREAM] = events_begin,
    [ROUTE_STREAM_OF_MODEL] = events_begin,
    [ROUTE_STATUS] = status_begin,
    [ROUTE_STATUS_OF_MODEL] = status_begin,
    [ROUTE_RESULT] = result_begin,
    [ROUTE_RESULT_OF_MODEL] = result_begin,
    [ROUTE_CANCEL] = cancel_begin,
    [ROUTE_CANCEL_OF_MODEL] = cancel_begin,
    [ROUTE_QUEUE_STATUS] = queue_status_begin,
    [ROUTE_STATUS_OF_CHAIN] = status_begin,
    [ROUTE_RESULT_OF_CHAIN] = result_begin,
    [ROUTE_STREAM_OF_CHAIN] = events_begin,
    [ROUTE_CANCEL_OF_CHAIN] = cancel_begin,
    [ROUTE_QUEUE_OF_CHAIN] = queue_status_begin,
    [ROUTE_WEBSOCKET_OF_CHAIN] = websocket_begin,
    [ROUTE_REQUESTS] = requests_begin,
    [ROUTE_REQUEST] = detail_begin,
    [ROUTE_JOBS_CANCEL] = jobs_begin,
    [ROUTE_JOBS_REPLAY] = jobs_begin,
    [ROUTE_JOBS_PRIORITY] = jobs_begin,
    [ROUTE_OPERATION] = operation_begin,
    [ROUTE_SWITCHES] = switches_begin,
    [ROUTE_SWITCH_ON] = switch_on_begin,
    [ROUTE_SCHEDULES] = schedules_begin,
    [ROUTE_SCHEDULE_SET] = schedule_set_begin,
    [ROUTE_SCHEDULE] = schedule_begin,
    [ROUTE_SCHEDULE_DELETE] = schedule_delete_begin,
    [ROUTE_SCHEDULE_PAUSE] = schedule_pause_begin,
    [ROUTE_SCHEDULE_RESUME] = schedule_resume_begin,
    [ROUTE_SCHEDULE_RUN] = schedule_run_begin,
    [ROUTE_SWITCH_OFF] = switch_off_begin,
    [ROUTE_MODELS] = models_begin,
    [ROUTE_MODEL] = model_begin,
    [ROUTE_MODEL_DELETE] = model_delete_begin,
    [ROUTE_DEPLOYMENTS] = deployments_begin,
    [ROUTE_PUSH] = push_begin,
    [ROUTE_DEPLOYMENT] = deployment_begin,
    [ROUTE_DEPLOYMENT_DELETE] = deployment_delete_begin,
    [ROUTE_DEPLOYMENT_LOGS] = deployment_logs_begin,
    [ROUTE_ENVIRONMENTS] = environments_begin,
    [ROUTE_PROMOTE] = promote_begin,
    [ROUTE_KEYS] = keys_begin,
    [ROUTE_KEY_CREATE] = key_create_begin,
    [ROUTE_KEY_SET] = key_set_begin,
    [ROUTE_KEY_DELETE] = key_delete_begin,
    [ROUTE_TENANTS] = tenants_begin,
    [ROUTE_TENANT_CREATE] = tenant_create_begin,
    [ROUTE_TENANT] = tenant_begin,
    [ROUTE_TENANT_SET] = tenant_set_begin,
    [ROUTE_TENANT_DELETE] = tenant_delete_begin,
    [ROUTE_SECRETS] = secrets_begin,
    [ROUTE_SECRET_CREATE] = secret_create_begin,
    [ROUTE_SECRET_ROTATE] = secret_rotate_begin,
    [ROUTE_SECRET_DELETE] = secret_delete_begin,
    [ROUTE_MODEL_SECRETS] = model_secrets_begin,
    [ROUTE_MODEL_SECRET_SET] = model_secret_set_begin,
    [ROUTE_MODEL_SECRET_DELETE] = model_secret_delete_begin,
    [ROUTE_TAIL] = tail_begin,
    [ROUTE_TOPICS] = topics_begin,
    [ROUTE_TOPIC_BIND] = topic_bind_begin,
    [ROUTE_TOPIC] = topic_begin,
    [ROUTE_TOPIC_UNBIND] = topic_unbind_begin,
    [ROUTE_TOPIC_PAUSE] = topic_pause_begin,
    [ROUTE_TOPIC_RESUME] = topic_pause_begin,
    [ROUTE_WEBHOOK_KEYS] = public_keys_begin,
    [ROUTE_DELIVERIES] = deliveries_begin,
    [ROUTE_DELIVERY] = delivery_begin,
    [ROUTE_DELIVERIES_REPLAY] = deliveries_replay_begin,
    [ROUTE_DELIVERY_REPLAY] = delivery_replay_begin,
    [ROUTE_ENDPOINTS] = endpoints_begin,
    [ROUTE_ENDPOINT_ENABLE] = endpoint_enable_begin,
    [ROUTE_ENDPOINT_DISABLE] = endpoint_disable_begin,
    [ROUTE_FILES] = files_begin,
    [ROUTE_FILE_UPLOAD] = file_upload_begin,
    [ROUTE_FILE] = file_begin,
    [ROUTE_FILE_CONTENT] = file_content_begin,
    [ROUTE_FILE_DELETE] = file_delete_begin,
    [ROUTE_BATCHES] = batches_begin,
    [ROUTE_BATCH_CREATE] = batch_create_begin,
    [ROUTE_BATCH] = batch_begin,
    [ROUTE_BATCH_CANCEL] = batch_cancel_begin,
    [ROUTE_BATCH_RETRY] = batch_retry_begin,
    [ROUTE_BULK] = bulk_begin,
    [ROUTE_BATCH_OUTPUT] = batch_output_begin,
    [ROUTE_BATCH_ERRORS] = batch_output_begin,
    [ROUTE_TRAINING_PROJECTS] = training_projects_begin,
    [ROUTE_TRAINING_PROJECT_PUT] = training_project_put_begin,
    [ROUTE_TRAINING_PROJECT] = training_project_begin,
    [ROUTE_TRAINING_PROJECT_DELETE] = training_project_delete_begin,
    [ROUTE_TRAINING_JOBS] = training_jobs_begin,
    [ROUTE_TRAINING_JOB_CREATE] = training_job_create_begin,
    [ROUTE_TRAINING_JOB] = training_job_begin,
    [ROUTE_TRAINING_JOB_SET] = training_job_set_begin,
    [ROUTE_TRAINING_JOB_DELETE] = training_job_delete_begin,
    [ROUTE_TRAINING_JOB_STOP] = training_job_stop_begin,
    [ROUTE_TRAINING_JOB_RECREATE] = training_job_recreate_begin,
    [ROUTE_TRAINING_JOB_DOWNLOAD] = training_job_download_begin,
    [ROUTE_TRAINING_LOGS] = training_read_begin,
    [ROUTE_TRAINING_LOGS_POST] = training_read_begin,
    [ROUTE_TRAINING_METRICS] = training_read_begin,
    [ROUTE_TRAINING_METRICS_POST] = training_read_begin,
    [ROUTE_TRAINING_CHECKPOINTS] = training_checkpoints_begin,
    [ROUTE_TRAINING_FILES] = training_files_begin,
    [ROUTE_TRAINING_FILE] = training_file_begin,
    [ROUTE_TRAINING_SEARCH] = training_search_begin,
    [ROUTE_TRAINING_CAPACITY] = training_capacity_begin,
    [ROUTE_TRAINING_QUEUE] = training_queue_begin,
    [ROUTE_TRAINING_ARCHIVE] = training_archive_begin,
    [ROUTE_TRAINING_ARCHIVE_SEND] = push_begin,
    [ROUTE_READY] = call_ready,
    [ROUTE_METRICS] = call_metrics,
};

static void call_dispatch(struct call *call)
{
    switch (call->match.route) {
    case ROUTE_NONE:
        call_fail_as(&call, 404, "client_error", "there is no such path; see /openapi.json");
        break;
    case ROUTE_WRONG_METHOD:
        call_fail_as(&call, 405, "client_error", "this path does not have this method");
        break;
    case ROUTE_HEALTH:
        call_answer_text(&call, 200, "application/json", "{\"alive\":true}");
        break;
    case ROUTE_OPENAPI:
        call_answer_text(&call, 200, "application/json", gateway_openapi_text);
        break;
    default:
        begins[call->match.route](call);
    }
}

/* Ends the call without an answer: there is nobody to answer and nothing was begun. */
static void call_drop(struct call *call)
{
    if (call->on_dropped != NULL)
        call->on_dropped(call);
    trace_end(call->gateway->tracer, &call->span, true, clock_wall_us());
    http_request_drop(&call->request);
    call_free(&call);
}

/* A client that leaves while its body is on the way ends the call; later ones go on. */
static void on_gone(struct http_request *request, void *opaque)
{
    struct call *call = opaque;

    (void)request;
    if (call->reading)
        call_drop(call);
    else if (call->on_left != NULL)
        call->on_left(call);
}

bool call_begin_reading(struct call *call)
{
    if (http_request_is_gone(call->request)) { /* on_gone() was called already: nobody else will */
        call_drop(call);
        return false;
    }
    call->reading = true;
    return true;
}

static void call_begin_trace(struct call *call)
{
    const char *parent = http_request_header(call->request, "traceparent");
    struct tracer *tracer = call->gateway->tracer;
    struct err err; /* a traceparent that is none counts as absent: the W3C wants it so */

    if (parent != NULL && trace_context_parse(parent, &call->parent, &err) < 0)
        call->parent = (struct trace_context){.sampled = false};
    call->trace = tracer_begin(tracer, &call->parent);
    trace_start(tracer, &call->span, route_name(call->match.route), TRACE_KIND_SERVER, &call->trace,
                trace_context_is_set(&call->parent) ? &call->parent : NULL, call->begun_us);
}

void call_begin(struct http_request *request, void *opaque)
{
    struct gateway *gateway = opaque;
    struct call *call = xcalloc(1, sizeof(*call));
    struct err err;
    int r;

    call->gateway = gateway;
    call->request = request;
    call->begun_us = http_request_arrived_us(request);
    LIST_INSERT_HEAD(&gateway->calls, call, link);
    http_request_on_gone(request, on_gone, call);
    r = http_target_parse(http_request_target(request), &call->target, &err);
    if (r == 0)
        route_find(http_request_method(request), http_request_header(request, "Host"),
                   gateway->settings.base_domain, &call->target, &call->match);
    call_begin_trace(call);
    if (r < 0)
        call_fail(&call, &err);
    else if (call->match.route <= ROUTE_WRONG_METHOD ||
             route_access(call->match.route) == ROUTE_ACCESS_PUBLIC)
        call_dispatch(call);
    else
        gateway_keys_check(call, call_dispatch);
}

/* ---- what routes have in common ---- */

void gateway_append_base_url(const struct call *call, struct buf *to)
{
    const struct gateway_settings *settings = &call->gateway->settings;
    const char *host = http_request_header(call->request, "Host");

    if (settings->public_url[0] != '\0') {
        size_t size = strlen(settings->public_url);

        while (size > 0 && settings->public_url[size - 1] == '/')
            size--;
        buf_append(to, settings->public_url, size);
        return;
    }
    buf_append_text(to, settings->tls_cert[0] != '\0' ? "https://" : "http://");
    buf_append_text(to, host == NULL ? "localhost" : host);
}

static void on_body(struct http_request *request, void *opaque)
{
    struct call *call = opaque;

    (void)request;
    call->reading = false;
    call->on_body(call);
}

void call_collect_body(struct call *call, size_t limit, void (*done)(struct call *call))
{
    uint64_t announced = http_request_announced_size(call->request);
    struct err err;

    if (announced != UINT64_MAX && announced > limit) {
        (void)err_set(&err, ERR_TOO_BIG, "the body has %llu bytes; at most %zu are allowed",
                      (unsigned long long)announced, limit);
        if (call->on_dropped != NULL)
            call->on_dropped(call);
        call_fail(&call, &err);
        return;
    }
    call->on_body = done;
    if (call_begin_reading(call))
        http_request_collect_body(call->request, limit, on_body, call);
}

void call_query(struct call *call, struct pg_batch **batch_p,
                void (*done)(void *opaque, const struct pg_answer *answer))
{
    struct err err;

    if (!pg_pool_connected(call->gateway->pg)) {
        (void)err_set(&err, ERR_UNAVAILABLE, "this needs Postgres, which is away");
        call_fail(&call, &err);
    } else if (pg_pool_send(call->gateway->pg, batch_p, GATEWAY_QUERY_TIMEOUT_MS, done, call,
                            &err) < 0) {
        call_fail(&call, &err);
    }
    pg_batch_free(batch_p);
}

int call_read_json(struct call *call, struct json_t **ret_body, struct err *err)
{
    const struct buf *body = http_request_body(call->request);
    json_error_t where;
    json_t *json;

    if (body->size == 0) {
        *ret_body = json_object();
        return 0;
    }
    json = json_loadb((const char *)body->bytes, body->size, JSON_REJECT_DUPLICATES, &where);
    if (json == NULL)
        return err_set(err, ERR_MALFORMED, "the body is no JSON: line %d, column %d: %s",
                       where.line, where.column, where.text);
    if (!json_is_object(json)) {
        json_decref(json);
        return err_set(err, ERR_MALFORMED, "the body is no JSON object");
    }
    *ret_body = json;
    return 0;
}

int call_query_number(const struct call *call, const char *name, int64_t initial, int64_t lowest,
                      int64_t highest, int64_t *ret_number, struct err *err)
{
    const char *text = http_target_query(&call->target, name);
    int64_t number = initial;
    size_t digits = text == NULL ? 0 : strspn(text, "0123456789");

    if (text != NULL) {
        if (digits == 0 || digits > 18 || text[digits] != '\0')
            return err_set(err, ERR_MALFORMED, "%s is '%.40s'; it must be a number of %lld to %lld",
                           name, text, (long long)lowest, (long long)highest);
        number = 0;
        for (const char *c = text; *c != '\0'; c++)
            number = 10 * number + (*c - '0');
    }
    if (number < lowest || number > highest)
        return err_set(err, ERR_RANGE, "%s is %lld; it must be %lld to %lld", name,
                       (long long)number, (long long)lowest, (long long)highest);
    *ret_number = number;
    return 0;
}

int call_job_id_named(struct call *call, const char *what, struct wire_id *ret_id, struct err *err)
{
    struct wire_id id;

    if (job_id_parse(call->match.param, &id, err) < 0)
        return err_set(err, ERR_MALFORMED,
                       "%s is '%.60s'; it must be a UUID or 32 hexadecimal digits", what,
                       call->match.param);
    job_id_format(&id, call->job);
    *ret_id = id;
    return 0;
}

int call_job_id(struct call *call, struct wire_id *ret_id, struct err *err)
{
    return call_job_id_named(call, "request id", ret_id, err);
}

void calls_close(struct gateway *gateway)
{
    struct call *call;

    while ((call = LIST_FIRST(&gateway->calls)) != NULL) {
        if (call->request != NULL)
            http_request_drop(&call->request);
        call_free(&call);
    }
}
