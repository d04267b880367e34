/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Steps with `http`: calls that are nobody's job. Each is a row: it is counted as tried before a
 * byte leaves, and what it came to is written down before the planner hears of it, both under the
 * fence of the run's attempt. Whoever goes on with the run calls again only what has no answer, and
 * says so by the same Idempotency-Key.
 *
 *     TO_OPEN ─▶ SENT ─▶ TO_CLOSE ─▶ told         an answer that may be tried again: TO_OPEN
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/http_client.h"
#include "base/log.h"
#include "chains/coordinator_int.h"

#define TIMEOUT_MS 30000
#define AGAIN_MS 250 /* Postgres */
#define HEADERS_MAX (CHAIN_HTTP_HEADERS_MAX + 4)
#define OUTPUT_SIZE_MAX (8u << 20) /* an answer as JSON */

/* Each is written down for good before a byte leaves, and before the planner hears of its answer.
 */
PG_STATEMENT(call_on_disk, "SELECT set_config('synchronous_commit', 'on', true)");
PG_STATEMENT(call_open, "SELECT state, attempts, output, error_class, error_message FROM "
                        "chain_call_open($1, $2, $3, $4, $5, $6, $7, $8)");
PG_STATEMENT(call_close, "SELECT chain_call_close($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)");

enum call_stage { CALL_TO_OPEN, CALL_SENT, CALL_TO_CLOSE, CALL_FENCED };

struct call {
    LIST_ENTRY(call) link;
    struct coordinator *coordinator;
    struct run *run; /* NULL: forgotten while an answer is out */
    uint32_t step, item, attempts;
    enum call_stage stage;
    bool out;    /* Postgres is asked */
    bool settle; /* only what it has come to already */
    char *text;  /* the request, as its template made it */
    size_t text_size;
    uint64_t due_ms;
    struct http_transfer *transfer;
    char *body; /* that is sent */
    size_t body_size;
    enum job_state state; /* how it ended */
    int status;
    char *output, class[32], why[300];
};

static const struct chain_step *call_step(const struct call *call)
{
    return &call->coordinator->chain->steps[call->step];
}

static void call_free(struct call *call)
{
    LIST_REMOVE(call, link);
    free(call->text);
    free(call->body);
    free(call->output);
    free(call);
}

/* ---- how it ends ---- */

/* May free the run. */
static void call_tell(struct call *call)
{
    struct run *run = call->run;
    const struct plan_final final = {
        .state = call->state,
        .class = call->class,
        .error_message = WIRE_TEXT_OF(call->why),
        .output = {(const uint8_t *)call->output, call->output == NULL ? 0 : strlen(call->output)},
        .output_is_json = true,
        .never = call->settle && call->state == JOB_CANCELED};

    run->url_count--;
    (void)plan_on_final(run->plan, call->step, call->item, &final);
    call_free(call);
    run_pump(run);
}

static void call_end(struct call *call, enum job_state state, const char *class, const char *why)
{
    call->state = state;
    mem_copy_text(call->class, class);
    mem_copy_text(call->why, why);
    call->stage = CALL_TO_CLOSE;
    call->due_ms = 0;
}

/* ---- the answer ---- */

static bool type_is_json(const char *type)
{
    size_t size = type == NULL ? 0 : strcspn(type, "; ");

    return (size == 16 && strncmp(type, "application/json", 16) == 0) ||
           (size > 5 && strncmp(type + size - 5, "+json", 5) == 0);
}

/* NULL: it is neither JSON nor text. */
static json_t *answer_body(const struct http_result *result, const char *type)
{
    const char *text = buf_text(result->body);
    json_t *json = NULL;

    if (result->body->size == 0)
        return json_null();
    if (type_is_json(type))
        json = json_loadb(text, result->body->size, JSON_DECODE_ANY, NULL);
    return json != NULL ? json : json_stringn(text, result->body->size);
}

static void call_take(struct call *call, const struct http_result *result)
{
    const char *type = http_transfer_header(result->transfer, "Content-Type");
    json_t *body = answer_body(result, type), *output;

    if (body == NULL) {
        call_end(call, JOB_FAILED, "bad_output", "the answer is neither JSON nor UTF-8 text");
        return;
    }
    output = json_pack("{s:i, s:s*, s:o}", "status", result->status, "type", type, "body", body);
    free(call->output);
    call->output = output == NULL ? NULL : json_dumps(output, JSON_COMPACT);
    json_decref(output);
    if (call->output == NULL || strlen(call->output) > OUTPUT_SIZE_MAX)
        call_end(call, JOB_FAILED, "bad_output", "the answer cannot be written as JSON");
    else
        call_end(call, JOB_SUCCEEDED, "", "");
}

static bool status_may_change(int status)
{
    return status == 408 || status == 425 || status == 429 || status >= 500;
}

/* It may be tried again, later. */
static void call_failed(struct call *call, const char *class, const char *why)
{
    const struct chain_step *step = call_step(call);
    uint64_t delay_ms = step->initial_delay_ms;

    for (uint32_t i = 1; i < call->attempts && delay_ms < step->max_delay_ms; i++)
        delay_ms *= 2;
    if (call->attempts >= step->max_attempts) {
        call_end(call, JOB_FAILED, class, why);
        return;
    }
    call->stage = CALL_TO_OPEN;
    call->due_ms = loop_now_ms(call->coordinator->loop) +
                   (delay_ms < step->max_delay_ms ? delay_ms : step->max_delay_ms);
}

static void on_answer(const struct http_result *result, void *opaque)
{
    struct call *call = opaque;
    char why[300];

    call->transfer = NULL;
    mem_free(&call->body);
    if (call->run == NULL) {
        call_free(call);
        return;
    }
    call->status = result->status;
    if (result->outcome == HTTP_OUTCOME_BLOCKED) {
        call_end(call, JOB_FAILED, "http_blocked", "the address is not public and is not allowed");
    } else if (result->outcome != HTTP_OUTCOME_ANSWERED &&
               result->outcome != HTTP_OUTCOME_BODY_TOO_BIG) {
        (void)snprintf(why, sizeof(why), "%.250s", result->error);
        call_failed(call, "http_unreachable", why);
    } else if (!chain_http_takes(&call_step(call)->http, result->status)) {
        (void)snprintf(why, sizeof(why), "the answer is HTTP %d", result->status);
        if (status_may_change(result->status))
            call_failed(call, "http_status", why);
        else
            call_end(call, JOB_FAILED, "http_status", why);
    } else if (result->outcome == HTTP_OUTCOME_BODY_TOO_BIG) {
        (void)snprintf(why, sizeof(why), "the answer has over %u bytes (http.max_bytes)",
                       call_step(call)->http.answer_max);
        call_end(call, JOB_FAILED, "too_big", why);
    } else {
        call_take(call, result);
    }
    urls_tick(call->coordinator);
}

/* ---- the request ---- */

struct request {
    json_t *json;
    struct http_header headers[HEADERS_MAX];
    char *values[HEADERS_MAX]; /* of headers with secrets */
    size_t count;
    bool has_type;
};

static void request_done(struct request *request)
{
    for (size_t i = 0; i < request->count; i++)
        free(request->values[i]);
    json_decref(request->json);
}

static bool is_header_value(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if ((unsigned char)text[i] < ' ' && text[i] != '\t')
            return false;
    }
    return strlen(text) == size;
}

static void request_add(struct request *request, const char *name, const char *value)
{
    assert(request->count < HEADERS_MAX);
    request->headers[request->count++] = (struct http_header){.name = name, .value = value};
}

static int add_secret(const struct call *call, struct request *request, const char *name,
                      const json_t *declared, struct err *err)
{
    const char *prefix = json_string_value(json_object_get(declared, "prefix"));
    const char *secret = json_string_value(json_object_get(declared, "secret"));
    const char *value = json_string_value(json_object_get(call->coordinator->secrets, secret));

    if (value == NULL)
        return err_set(err, ERR_NOT_FOUND,
                       "the secret '%.80s' has no value: headrace secrets set, and push again",
                       secret);
    if (!is_header_value(value, strlen(value)))
        return err_set(err, ERR_RANGE, "the secret '%.80s' is no value of a header", secret);
    request->values[request->count] = xasprintf("%s%s", prefix == NULL ? "" : prefix, value);
    request_add(request, name, request->values[request->count]);
    return 0;
}

/* Which header is a secret only the file says. */
static int add_headers(const struct call *call, struct request *request, struct err *err)
{
    const json_t *declared = json_object_get(call_step(call)->builtin, "headers");
    const char *name;
    json_t *value;

    json_object_foreach(json_object_get(request->json, "headers"), name, value)
    {
        const json_t *is = json_object_get(declared, name);
        int r = 0;

        if (json_is_object(is))
            r = add_secret(call, request, name, is, err);
        else if (!json_is_string(value) ||
                 !is_header_value(json_string_value(value), json_string_length(value)))
            r = err_set(err, ERR_MISMATCH, "http.headers.%s must come to a text in one line", name);
        else
            request_add(request, name, json_string_value(value));
        if (r < 0)
            return r;
        request->has_type = request->has_type || strcasecmp(name, "Content-Type") == 0;
    }
    return 0;
}

static int check_url(const struct call *call, const char *url, struct err *err)
{
    const struct chain_step *step = call_step(call);

    if (url == NULL || (strncmp(url, "http://", 7) != 0 && strncmp(url, "https://", 8) != 0))
        return err_set(err, ERR_MISMATCH, "http.url must come to an address with http or https");
    if (step->http.host_size > 0 &&
        strncmp(url, json_string_value(json_object_get(step->builtin, "url")),
                step->http.host_size) != 0)
        return err_set(err, ERR_MISMATCH, "http.url has another host than the file says");
    return 0;
}

static void add_body(struct call *call, struct request *request)
{
    const json_t *body = json_object_get(request->json, "body");

    if (json_is_string(body))
        call->body = xstrdup(json_string_value(body));
    else if (body != NULL)
        call->body = json_dumps(body, JSON_COMPACT | JSON_ENCODE_ANY);
    call->body_size = call->body == NULL ? 0 : strlen(call->body);
    if (body != NULL && !request->has_type)
        request_add(request, "Content-Type",
                    json_is_string(body) ? "text/plain; charset=utf-8" : "application/json");
}

static int call_send(struct call *call, struct err *err)
{
    const struct run *run = call->run;
    const struct chain_step *step = call_step(call);
    OWNED(request_done)
    struct request request = {.json = json_loadb(call->text, call->text_size, 0, NULL)};
    const char *url = json_string_value(json_object_get(request.json, "url"));
    struct wire_id id = step_job_id(&run->job, step->name, call->item, run->round, 0);
    char key[JOB_ID_TEXT_SIZE];
    int r = check_url(call, url, err);

    if (r == 0)
        r = add_headers(call, &request, err);
    if (r < 0)
        return r;
    job_id_format(&id, key);
    request_add(&request, "Idempotency-Key", key);
    if (run->trace[0] != '\0')
        request_add(&request, "traceparent", run->trace);
    mem_free(&call->body);
    add_body(call, &request);
    return http_client_send(call->coordinator->http,
                            &(struct http_send){.method = step->http.method,
                                                .url = url,
                                                .headers = request.headers,
                                                .header_count = request.count,
                                                .body = call->body,
                                                .body_size = call->body_size,
                                                .timeout_ms = step->run_limit_ms != 0
                                                                  ? (uint32_t)step->run_limit_ms
                                                                  : TIMEOUT_MS,
                                                .answer_size_max = step->http.answer_max,
                                                .on_done = on_answer,
                                                .opaque = call},
                            &call->transfer, err);
}

/* ---- its row ---- */

/* False: nobody waits for it any more, and it is gone. */
static bool call_answered(struct call *call)
{
    call->out = false;
    if (call->run != NULL)
        return true;
    call_free(call);
    return false;
}

static void call_opened(struct call *call, const struct pg_answer *answer)
{
    bool over = pg_row_count(answer, 1) > 0 && !pg_is_null(answer, 1, 0, 0);
    struct err err;

    if (over) {
        struct wire_bytes output = pg_bytes(answer, 1, 0, 2);

        call->state = (enum job_state)pg_i64(answer, 1, 0, 0);
        call->output = xmemdup(output.bytes == NULL ? (const uint8_t *)"" : output.bytes,
                               output.size + 1);
        call->output[output.size] = '\0';
        mem_copy_text(call->class, pg_c(answer, 1, 0, 3));
        mem_copy_text(call->why, pg_c(answer, 1, 0, 4));
        call_tell(call);
        return;
    }
    if (pg_row_count(answer, 1) == 0) {
        struct run *run = call->run;

        call->stage = CALL_FENCED;
        call->state = JOB_CANCELED;
        if (call->settle)
            call_tell(call);
        else
            run_fail(&run, ERROR_CLASS_HANDED_BACK,
                     "a newer attempt has the run, or Postgres lost it");
        return;
    }
    call->attempts = (uint32_t)pg_u64(answer, 1, 0, 1);
    if (call->attempts > call_step(call)->max_attempts) {
        call_end(call, JOB_FAILED, "http_unknown",
                 "it was called as often as it may be, and how that ended is not known");
        return;
    }
    call->stage = CALL_SENT;
    if (call_send(call, &err) < 0)
        call_end(call, JOB_FAILED, "bad_input", err.text);
}

static void on_opened(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct coordinator *coordinator = call->coordinator;

    if (!call_answered(call))
        return;
    if (answer->err.code != ERR_OK) {
        log_warn("call_not_opened", LOG_STR("run", call->run->job_text), LOG_ERR(&answer->err));
        call->due_ms = loop_now_ms(coordinator->loop) + AGAIN_MS;
        return;
    }
    call_opened(call, answer);
    urls_tick(coordinator);
}

static void on_closed(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (!call_answered(call))
        return;
    if (answer->err.code != ERR_OK) {
        log_warn("call_not_closed", LOG_STR("run", call->run->job_text), LOG_ERR(&answer->err));
        call->due_ms = loop_now_ms(call->coordinator->loop) + AGAIN_MS;
    } else if (pg_bool(answer, 1, 0, 0)) {
        call_tell(call);
    } else {
        call->stage = CALL_FENCED;
    }
}

static void bind_key(struct pg_batch *batch, const struct call *call)
{
    const struct run *run = call->run;

    pg_bind_id(batch, &run->job);
    pg_bind_i64(batch, (int64_t)run->id);
    pg_bind_c(batch, call_step(call)->name);
    pg_bind_i32(batch, call->item);
    pg_bind_i16(batch, run->round);
}

static struct pg_batch *call_batch(const struct call *call)
{
    struct pg_batch *batch = pg_batch_new();
    bool has_output = call->state == JOB_SUCCEEDED;

    pg_add(batch, &call_on_disk);
    pg_add(batch, call->stage == CALL_TO_OPEN ? &call_open : &call_close);
    bind_key(batch, call);
    if (call->stage == CALL_TO_OPEN) {
        pg_bind_i16(batch, call->run->undone_round);
        pg_bind_bool(batch, call->coordinator->chain->undos == 0);
        pg_bind_bool(batch, call->settle);
        return batch;
    }
    pg_bind_i16(batch, call->state);
    pg_bind_i16(batch, call->status);
    pg_bind_bytes(batch, (struct wire_bytes){has_output ? (const uint8_t *)call->output : NULL,
                                             has_output ? strlen(call->output) : 0});
    pg_bind_c(batch, has_output ? NULL : call->class);
    pg_bind_c(batch, has_output ? NULL : call->why);
    return batch;
}

static void call_ask(struct call *call)
{
    struct coordinator *coordinator = call->coordinator;
    struct pg_batch *batch;
    struct err err;

    if (!pg_connected(coordinator->pg))
        return;
    batch = call_batch(call);
    call->out = pg_send(coordinator->pg, &batch, COORDINATOR_QUERY_MS,
                        call->stage == CALL_TO_OPEN ? on_opened : on_closed, call, &err) == 0;
    pg_batch_free(&batch);
}

void urls_tick(struct coordinator *coordinator)
{
    uint64_t now_ms = loop_now_ms(coordinator->loop);
    struct call *call;

    LIST_FOREACH(call, &coordinator->urls_out, link)
    {
        if (call->run != NULL && !call->out && call->due_ms <= now_ms &&
            (call->stage == CALL_TO_OPEN || call->stage == CALL_TO_CLOSE))
            call_ask(call);
    }
}

/* ---- life ---- */

void url_begin(struct run *run, struct plan_todo *todo)
{
    struct call *call = xcalloc(1, sizeof(*call));

    call->coordinator = run->coordinator;
    call->run = run;
    call->step = todo->step;
    call->item = todo->item;
    call->settle = todo->settle;
    call->text = TAKE(todo->text);
    call->text_size = todo->text_size;
    run->url_count++;
    LIST_INSERT_HEAD(&run->coordinator->urls_out, call, link);
}

/* What is on its way is cut off. Frees it, now or when its answer comes. */
static void call_drop(struct call *call)
{
    bool waits = call->out || call->transfer != NULL;

    call->run->url_count--;
    call->run = NULL;
    if (call->transfer != NULL)
        http_transfer_cancel(call->transfer); /* frees it */
    else if (!waits)
        call_free(call);
}

void urls_forget(const struct run *run)
{
    struct call *call, *next;

    for (call = LIST_FIRST(&run->coordinator->urls_out); call != NULL; call = next) {
        next = LIST_NEXT(call, link);
        if (call->run == run)
            call_drop(call);
    }
}

void url_cancel(struct run *run, const struct plan_todo *todo)
{
    const struct plan_final canceled = {.state = JOB_CANCELED};
    struct call *call;

    LIST_FOREACH(call, &run->coordinator->urls_out, link)
    {
        if (call->run == run && call->step == todo->step && call->item == todo->item)
            break;
    }
    if (call == NULL)
        return;
    call_drop(call);
    if (todo->settle)
        (void)plan_on_final(run->plan, todo->step, todo->item, &canceled);
}

/* Behind the adapters, which have dropped what was unanswered. */
void urls_close(struct coordinator *coordinator)
{
    struct call *call;

    LIST_FOREACH(call, &coordinator->urls_out, link)
    {
        call->run = NULL;
    }
    http_client_close(&coordinator->http);
    while ((call = LIST_FIRST(&coordinator->urls_out)) != NULL)
        call_free(call);
}
