/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Accept: from a submit's headers to its 201.
 *
 *   limits of the tenant, rate -> choose the deployment -> limits of its pool -> body -> check
 *   -> (Idempotency-Key: reserve) -> (large input: blob) -> produce Submit to intake[s], or keep it
 *   until its run_at (gateway_plan.c) -> the report -> 201
 *
 * Refusals come before anything is produced. From the produce on, a struct submit waits for its
 * report; it outlives the call when the report takes longer than accept_wait: then the client has
 * got 503, which is "not promised", not "not taken". A success reported after that is followed by a
 * Cancel, unless the submit had an Idempotency-Key: its client will come again with the same key
 * and must find the job alive.
 *
 * A sync call goes the same way; its body is the input, and instead of the 201 its caller waits for
 * what becomes of the job (gateway_sync.c).
 *
 * Crash before the report: a job may exist that nobody was promised, and an orphan blob.
 * At shutdown: submits that wait are reported first, up to the drain's end.
 */

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/blob.h"
#include "brokers/fault.h"
#include "brokers/pg.h"
#include "brokers/queue.h"
#include "producers/gateway.h"
#include "producers/gateway_body.h"
#include "producers/gateway_large.h"
#include "producers/gateway_late.h"
#include "producers/gateway_plan.h"
#include "producers/gateway_reserve.h"
#include "producers/gateway_sync.h"
#include "producers/gateway_tags.h"
#include "producers/gateway_view.h"
#include "producers/gateway_websocket.h"
#include "schema/job.h"
#include "schema/message.h"
#include "schema/topics.h"

#define RECORD_SIZE_MAX (128u << 10)
#define ANSWER_SIZE_MAX (64u << 10)
#define SWEEP_MS 50
#define SWITCH_RETRY_S "30"
#define SYNC_DELAY_MS 500 /* before a sync call is tried again, doubled each time: SURFACE 2.6 */
#define FORM_SIZE (SYNC_ROUTE_SIZE_MAX + MEDIA_TYPE_SIZE_MAX + 16)

struct submit {
    LIST_ENTRY(submit) all_link;
    TAILQ_ENTRY(submit) link; /* in submits->waiting, oldest first, while produced */
    struct gateway *gateway;
    struct call *call; /* NULL: it was answered already */
    struct wire_id id;
    char tenant[CONFIG_NAME_SIZE], model[CONFIG_NAME_SIZE], deployment[CONFIG_NAME_SIZE];
    char environment[CONFIG_NAME_SIZE], pool[CONFIG_NAME_SIZE];
    char blob[BLOB_KEY_SIZE]; /* "": the input is inline */
    char trace[TRACE_PARENT_SIZE], tags[TAGS_SIZE];
    uint64_t run_limit_ms;
    uint32_t slot_max;
    struct wire_id run;          /* of a chain, whose chainlet has called … */
    char step[CONFIG_NAME_SIZE]; /* … this model; "": none has */
    uint64_t call_number;        /* among all of this gateway */
    char *key;                   /* Idempotency-Key; NULL: none */
    bool repeat, has_fingerprint;
    struct large *large;  /* a body that was not collected; NULL: it was */
    struct sync_ask *ask; /* of a sync call; NULL: async */
    uint8_t fingerprint[RESERVE_DIGEST_SIZE], input_digest[32];
    struct buf http_body; /* what body.input points into */
    struct submit_body body;
    size_t size; /* counted in submits->bytes */
    uint64_t produced_us, answer_by_ms;
};

struct submits {
    struct gateway *gateway;
    LIST_HEAD(, submit) all; /* from body to report */
    TAILQ_HEAD(, submit) waiting;
    struct loop_timer *sweep; /* runs while something waits */
    uint32_t count;           /* of all */
    uint32_t call_count; /* of chainlets by each other; begins anywhere, so that gateways differ */
    size_t bytes;
    double skew_s;
    uint64_t skew_ms; /* when it was measured; 0: never */
    EVP_MD *sha256;
};

/* ---- a submit's life ---- */

static void submit_free(struct submit **submit_p)
{
    struct submit *submit = TAKE(*submit_p);
    struct submits *submits = submit->gateway->submits;

    LIST_REMOVE(submit, all_link);
    submits->count--;
    submits->bytes -= submit->size;
    metric_set(metrics_of(submit->gateway->metrics, GATEWAY_METRIC_gateway_submits_waiting),
               submits->count);
    large_free(&submit->large);
    submit_body_done(&submit->body);
    buf_done(&submit->http_body);
    free(submit->key);
    if (submit->ask != NULL)
        websocket_free(&submit->ask->websocket);
    free(submit->ask);
    free(submit);
}

static void submit_fail(struct submit **submit_p, const struct err *err)
{
    if ((*submit_p)->call != NULL)
        call_fail(&(*submit_p)->call, err);
    submit_free(submit_p);
}

/* The store's trouble is ours and not the request's: it may come again, whatever it was. */
static void submit_fail_store(struct submit *submit, const struct err *err)
{
    struct err mine = *err;

    if (err_class(mine.code) != ERR_CLASS_REJECT && mine.code != ERR_FULL)
        mine.code = ERR_UNAVAILABLE;
    (void)err_wrap(&mine, "the input cannot be stored");
    submit_fail(&submit, &mine);
}

static void submit_dropped(struct call *call)
{
    submit_free((struct submit **)&call->state);
}

/* Where it goes to. */
static void submit_address(struct submit *submit, const struct config_deployment *deployment)
{
    mem_copy_text(submit->deployment, deployment->id);
    mem_copy_text(submit->pool, deployment->pool);
    submit->run_limit_ms = deployment->run_limit_ms;
    submit->slot_max = deployment->slot_count;
}

static void submit_new(struct call *call, const struct config_choice *choice)
{
    struct gateway *gateway = call->gateway;
    struct submit *submit = xcalloc(1, sizeof(*submit));

    submit->gateway = gateway;
    submit->call = call;
    mem_copy_text(submit->tenant, call->tenant);
    mem_copy_text(submit->model, choice->model->id);
    mem_copy_text(submit->environment, choice->environment);
    submit_address(submit, choice->deployment);
    if (trace_context_is_set(&call->trace))
        trace_context_format(&call->trace, submit->trace);
    if (chain_caller(call, &submit->run)) {
        mem_copy_text(submit->step, choice->model->name);
        submit->call_number = gateway->submits->call_count++;
    }
    LIST_INSERT_HEAD(&gateway->submits->all, submit, all_link);
    gateway->submits->count++;
    call->state = submit;
    call->on_dropped = submit_dropped;
}

/* ---- the answer ---- */

static void submit_wait(struct submit *submit, bool replayed)
{
    const struct sync_job job = {.id = submit->id, .keyed = submit->key != NULL, .known = replayed};

    if (submit->ask->websocket != NULL) {
        websocket_wait(&submit->call, &submit->ask->websocket, submit->ask->timeout_ms, &job);
        return;
    }
    if (replayed)
        mem_copy_text(submit->call->idempotent_replay, "true");
    sync_wait(&submit->call, submit->ask, &job);
}

/* Ends the call with 201, or hands it to those that wait; the submit stays the caller's. */
static void submit_answer(struct submit *submit, bool replayed)
{
    struct call *call = submit->call;
    struct buf to = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);
    OWNED(buf_done) struct buf base = BUF_WITH_LIMIT(2048);
    const char *const values[] = {submit->model, submit->deployment, submit->environment};

    job_id_format(&submit->id, call->job);
    metric_add(
        metrics_series(submit->gateway->metrics, GATEWAY_METRIC_gateway_submits_total, values), 1);
    if (submit->ask != NULL) {
        submit_wait(submit, replayed);
        return;
    }
    if (replayed)
        mem_copy_text(call->idempotent_replay, "true");
    gateway_append_base_url(call, &base);
    buf_printf(&to, "{\"request_id\":\"%s\"", call->job);
    view_append_url(&to, "status_url", &base, call->job, "");
    view_append_url(&to, "result_url", &base, call->job, "/result");
    view_append_url(&to, "cancel_url", &base, call->job, "");
    if (submit->body.stream)
        view_append_url(&to, "stream_url", &base, call->job, "/stream");
    if (submit->body.warnings.size > 0) {
        buf_append_text(&to, ",\"warnings\":[");
        buf_append(&to, submit->body.warnings.bytes, submit->body.warnings.size);
        buf_append_byte(&to, ']');
    }
    buf_append_byte(&to, '}');
    call_answer(&submit->call, 201, &to);
}

/* ---- produce and report ---- */

static void cancel_late(struct submit *submit)
{
    struct gateway *gateway = submit->gateway;
    char id[JOB_ID_TEXT_SIZE];
    struct err err;
    int r = gateway_cancel_produce(gateway, &submit->id, submit->tenant, &err);

    job_id_format(&submit->id, id);
    if (r < 0)
        log_warn("late_submit_not_canceled", LOG_STR("job", id), LOG_STR("tenant", submit->tenant),
                 LOG_TRACE(submit->trace, strlen(submit->trace)), LOG_ERR(&err));
    else
        log_info("late_submit_canceled", LOG_STR("job", id), LOG_STR("tenant", submit->tenant),
                 LOG_TRACE(submit->trace, strlen(submit->trace)));
    metric_add(metrics_of(gateway->metrics, GATEWAY_METRIC_gateway_submits_canceled_total), 1);
}

static void note_clock(struct submits *submits, const struct submit *submit, uint64_t append_us)
{
    uint64_t now_us = clock_wall_us();

    /* The append happened between produce and now: only what lies outside of that is skew. */
    if (append_us < submit->produced_us)
        submits->skew_s = (double)(submit->produced_us - append_us) / 1e6;
    else if (append_us > now_us)
        submits->skew_s = -((double)(append_us - now_us) / 1e6);
    else
        submits->skew_s = 0;
    submits->skew_ms = loop_now_ms(submits->gateway->loop);
    metric_set(metrics_of(submits->gateway->metrics, GATEWAY_METRIC_gateway_clock_skew_seconds),
               submits->skew_s);
    metric_observe(metrics_of(submits->gateway->metrics, GATEWAY_METRIC_gateway_accept_seconds),
                   now_us > submit->produced_us ? (double)(now_us - submit->produced_us) / 1e6 : 0);
}

static void on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct submit *submit = opaque;
    struct submits *submits = submit->gateway->submits;
    struct err err;

    (void)tag;
    TAILQ_REMOVE(&submits->waiting, submit, link);
    if (report->code == ERR_OK && report->append_us > 0)
        note_clock(submits, submit, report->append_us);
    if (report->code == ERR_OK && submit->call != NULL &&
        !view_may_be_promised(&submit->id, clock_wall_us())) {
        (void)err_set(&err, ERR_UNAVAILABLE,
                      "it took more than %llu s to store the request; it is not promised to run",
                      VIEW_PROMISE_US_MAX / 1000000);
        call_fail(&submit->call, &err); /* leaves submit->call empty */
    }
    if (report->code == ERR_OK && submit->call != NULL) {
        fault_point(FAULT_gateway_reported);
        submit_answer(submit, submit->repeat);
    } else if (report->code == ERR_OK) {
        fault_point(FAULT_gateway_late);
        if (submit->key == NULL)
            cancel_late(submit);
    } else if (submit->call != NULL) {
        (void)err_set(&err, ERR_UNAVAILABLE,
                      "Kafka did not take the request (%s); it is not promised to run",
                      report->why);
        call_fail(&submit->call, &err);
    }
    submit_free(&submit);
}

/* Whom wake-ups are for: the one that waits, or whoever follows the stream. */
static struct wire_text submit_channel(const struct submit *submit, char id[JOB_ID_TEXT_SIZE])
{
    if (submit->ask != NULL)
        return WIRE_TEXT_OF(submit->gateway->boot);
    if (!submit->body.stream)
        return (struct wire_text){0};
    job_id_format(&submit->id, id);
    return WIRE_TEXT_OF(id);
}

/* What a caller that waits has instead of the members of a body. */
static void submit_message_sync(const struct submit *submit, struct message_submit *message)
{
    const struct gateway_settings *settings = &submit->gateway->settings;

    message->sync = true;
    message->stream = submit->ask->stream;
    message->input_type = WIRE_TEXT_OF(submit->ask->type);
    message->route = WIRE_TEXT_OF(submit->ask->route);
    message->max_attempts = (uint64_t)settings->sync_attempts;
    message->initial_delay_ms = SYNC_DELAY_MS;
    message->max_delay_ms = JOB_MAX_DELAY_MS_MAX;
    message->queue_limit_ms = message->total_limit_ms = submit->ask->timeout_ms;
    if (submit->ask->websocket != NULL) {
        message->run_limit_ms = settings->websocket_max_ms;
        message->total_limit_ms += settings->websocket_max_ms;
    }
}

static struct message_submit submit_message(const struct submit *submit, char id[JOB_ID_TEXT_SIZE])
{
    const struct submit_body *body = &submit->body;
    bool is_inline = submit->blob[0] == '\0';
    struct message_submit message = {
        .id = submit->id,
        .tenant = WIRE_TEXT_OF(submit->tenant),
        .model = WIRE_TEXT_OF(submit->model),
        .deployment = WIRE_TEXT_OF(submit->deployment),
        .environment = WIRE_TEXT_OF(submit->environment),
        .pool = WIRE_TEXT_OF(submit->pool),
        .priority = body->priority,
        .input = {is_inline ? (const uint8_t *)body->input : NULL,
                  is_inline ? body->input_size : 0},
        .input_blob = WIRE_TEXT_OF(submit->blob),
        .input_size = body->input_size,
        .input_digest = {submit->input_digest, sizeof(submit->input_digest)},
        .max_attempts = body->max_attempts,
        .initial_delay_ms = body->initial_delay_ms,
        .max_delay_ms = body->max_delay_ms,
        .queue_limit_ms = 1000ull * body->queue_limit_s,
        .run_limit_ms = submit->run_limit_ms,
        .webhook_url = text_or_none(body->webhook_url),
        .idempotency_key = text_or_none(submit->key),
        .repeat = submit->repeat,
        .trace = WIRE_TEXT_OF(submit->trace),
        .received_us = submit->call->begun_us,
        .slot_count = body->slot_count,
        .key_prefix = WIRE_TEXT_OF(submit->call->key_prefix),
        .tags = WIRE_TEXT_OF(submit->tags),
        .stream = body->stream,
        .gateway = submit_channel(submit, id),
        .parent = submit->run,
        .step = WIRE_TEXT_OF(submit->step),
        .step_item = submit->call_number & INT32_MAX,
    };

    if (submit->ask != NULL)
        submit_message_sync(submit, &message);
    return message;
}

static void on_planned(void *opaque, const struct pg_answer *answer)
{
    struct submit *submit = opaque;

    if (call_take_answer(&submit->call, answer) && plan_taken(&submit->call, answer))
        submit_answer(submit, submit->repeat);
    submit_free(&submit);
}

static void submit_produce(struct submit *submit)
{
    struct gateway *gateway = submit->gateway;
    struct submits *submits = gateway->submits;
    char id[JOB_ID_TEXT_SIZE];
    struct message_submit fields = submit_message(submit, id);
    OWNED(buf_done) struct buf record = BUF_WITH_LIMIT(RECORD_SIZE_MAX);
    uint64_t run_at_us = submit->body.run_at_us;
    struct queue_message message;
    struct err err;
    int r;

    fields.repeat |= run_at_us > 0;
    r = message_encode(MESSAGE_SUBMIT, &fields, &record, &err);
    message = (struct queue_message){.topic = gateway->intake,
                                     .partition = job_id_shard(&submit->id),
                                     .bytes = record.bytes,
                                     .size = record.size,
                                     .trace = submit->trace,
                                     .done = on_report,
                                     .opaque = submit};
    if (r == 0 && run_at_us > 0)
        r = plan_send(gateway, &fields, run_at_us, &record, on_planned, submit, &err);
    else if (r == 0)
        r = queue_produce(gateway->producer, &message, &err);
    if (r < 0)
        submit_fail(&submit, &err);
    if (r < 0 || run_at_us > 0)
        return;
    submit->produced_us = clock_wall_us();
    submit->answer_by_ms = loop_now_ms(gateway->loop) + gateway->settings.accept_wait_ms;
    TAILQ_INSERT_TAIL(&submits->waiting, submit, link);
    if (!loop_timer_is_running(submits->sweep))
        loop_timer_start(submits->sweep, SWEEP_MS, SWEEP_MS);
    /* From here on only what a late report needs is kept. */
    buf_done(&submit->http_body);
    submit->body.input = NULL;
    fault_point(FAULT_gateway_produced);
}

/* ---- the input: inline or claim check ---- */

static void on_blob(void *opaque, const struct err *err)
{
    struct submit *submit = opaque;

    if (err->code != ERR_OK) {
        submit_fail_store(submit, err);
        return;
    }
    fault_point(FAULT_gateway_blob_put);
    large_free(&submit->large);
    submit_produce(submit);
}

static void submit_store_large(struct submit *submit)
{
    struct err err;

    large_input_digest(submit->large, submit->input_digest);
    blob_key_input(&submit->id, submit->blob);
    if (large_end(submit->large, submit->blob, on_blob, submit, &err) < 0)
        submit_fail_store(submit, &err);
}

static void submit_store_input(struct submit *submit)
{
    struct submits *submits = submit->gateway->submits;
    const struct submit_body *body = &submit->body;
    struct buf input = BUF_WITH_LIMIT(body->input_size);
    struct err err;
    int done;

    if (submit->large != NULL) {
        submit_store_large(submit);
        return;
    }
    done = EVP_Digest(body->input, body->input_size, submit->input_digest, NULL, submits->sha256,
                      NULL);
    assert(done == 1);
    if (body->input_size <= JOB_INPUT_INLINE_MAX) {
        submit_produce(submit);
        return;
    }
    blob_key_input(&submit->id, submit->blob);
    buf_append(&input, body->input, body->input_size);
    if (blob_put(submit->gateway->blobs, submit->blob, &input, on_blob, submit, &err) < 0)
        submit_fail_store(submit, &err);
}

/* ---- Idempotency-Key ---- */

/* The first Submit went to the deployment that its reservation names; so does its repeat, unless
 * that one is gone: then nobody but the newly chosen one could run it. */
static void submit_repeat(struct submit *submit, const struct wire_id *id, const char *deployment)
{
    const struct config *config = gateway_watch_config(submit->gateway->watch);
    const struct config_model *model = gateway_config_find_model(config, submit->tenant,
                                                                 submit->model);
    const struct config_deployment *first = model == NULL ? NULL
                                                          : gateway_config_find_deployment(
                                                                config, model, deployment);

    submit->id = *id;
    submit->repeat = true;
    if (first != NULL)
        submit_address(submit, first);
    submit_store_input(submit);
}

static void on_reserved(void *opaque, const struct pg_answer *answer)
{
    struct submit *submit = opaque;
    struct reserve_row row;
    const char *deployment = "";
    struct err err;

    if (!call_take_answer(&submit->call, answer)) {
        submit_free(&submit);
        return;
    }
    if (reserve_read(answer, &row, &deployment, &err) < 0) {
        submit_fail(&submit, &err);
        return;
    }
    switch (reserve_decide(&submit->id, submit->fingerprint, &row)) {
    case RESERVE_NEW:
        fault_point(FAULT_gateway_reserved);
        submit_store_input(submit);
        break;
    case RESERVE_REPEAT:
        submit_repeat(submit, &row.job, deployment);
        break;
    case RESERVE_ANSWER:
        submit->id = row.job;
        submit_answer(submit, true);
        submit_free(&submit);
        break;
    case RESERVE_MISMATCH:
        submit->call->job[0] = '\0'; /* no job has this id */
        (void)err_set(&err, ERR_MISMATCH,
                      "Idempotency-Key '%.60s' was used for a request with another body or target",
                      submit->key);
        submit_fail(&submit, &err);
        break;
    }
}

static const char *submit_form(const struct submit *submit, char to[FORM_SIZE])
{
    if (submit->ask == NULL)
        return "";
    (void)snprintf(to, FORM_SIZE, "sync %s %s", submit->ask->route, submit->ask->type);
    return to;
}

static void submit_reserve(struct submit *submit)
{
    struct gateway *gateway = submit->gateway;
    struct reserve reserve = {.tenant = submit->tenant,
                              .key = submit->key,
                              .deployment = submit->deployment,
                              .job = submit->id,
                              .lifetime_ms = gateway->settings.keyed_lifetime_ms};
    char form[FORM_SIZE];
    struct err err;

    if (!submit->has_fingerprint)
        reserve_fingerprint(submit->model, submit->environment, submit->deployment,
                            submit_form(submit, form),
                            (struct wire_bytes){submit->http_body.bytes, submit->http_body.size},
                            submit->fingerprint);
    memcpy(reserve.fingerprint, submit->fingerprint, sizeof(reserve.fingerprint));
    if (reserve_send(gateway->pg, &reserve, on_reserved, submit, &err) < 0)
        submit_fail(&submit, &err);
}

/* ---- the start deadline ---- */

static void submit_go_on(struct submit *submit)
{
    if (submit->key != NULL)
        submit_reserve(submit);
    else
        submit_store_input(submit);
}

static void on_late(void *opaque, const struct pg_answer *answer)
{
    const struct late_figures figures = late_read(answer);
    double estimate_s = late_estimate_s(&figures);
    struct submit *submit = opaque;
    struct refusal refusal = {.status = 429,
                              .limit = "max_time_in_queue_seconds",
                              .value = submit->body.queue_limit_s,
                              .current = estimate_s,
                              .estimate_s = estimate_s};

    if (estimate_s <= submit->body.queue_limit_s) {
        submit_go_on(submit);
        return;
    }
    refusal.retry_after_s = estimate_s - refusal.value < 3600
                                ? 1 + (uint32_t)(estimate_s - refusal.value)
                                : 3600;
    (void)snprintf(refusal.text, sizeof(refusal.text),
                   "it would start in %.1f s, later than max_time_in_queue_seconds, %u: %llu jobs "
                   "wait for %llu slots, one takes %.3f s",
                   estimate_s, submit->body.queue_limit_s, (unsigned long long)figures.waiting,
                   (unsigned long long)figures.slots, (double)figures.service_us / 1e6);
    submit->call->job[0] = '\0'; /* no job has this id */
    call_refuse(&submit->call, &refusal);
    submit_free(&submit);
}

/* Without an estimate it is accepted. */
static void submit_ask_late(struct submit *submit)
{
    const struct late_question question = {.pool = submit->pool,
                                           .tenant = submit->tenant,
                                           .rank = JOB_RANK_PRIORITY_0 + submit->body.priority};
    struct err err;

    if (late_send(submit->gateway->pg, &question, on_late, submit, &err) < 0)
        submit_go_on(submit);
}

/* ---- the body ---- */

static int submit_check_slots(const struct submit *submit, struct err *err)
{
    if (submit->body.slot_count <= submit->slot_max || submit->body.slot_count == 1)
        return 0;
    return err_set(
        err, ERR_RANGE,
        "slot_count is %u; it must be 1 to %u, the slots of a replica of deployment '%s'",
        submit->body.slot_count, submit->slot_max, submit->deployment);
}

/* Room for one more submit that waits for Kafka, with a body of that size. */
static bool submits_admit(const struct submits *submits, size_t size, struct refusal *ret_refusal)
{
    const struct gateway_settings *settings = &submits->gateway->settings;
    bool many = submits->count > (uint64_t)settings->submits_max;

    if (!many && submits->bytes + size <= settings->submits_bytes_max_size)
        return true;
    *ret_refusal = (struct refusal){.status = 503,
                                    .limit = many ? "submits-max" : "submits-bytes-max",
                                    .value = many ? (double)settings->submits_max
                                                  : (double)settings->submits_bytes_max_size,
                                    .current = many ? submits->count : (double)submits->bytes,
                                    .retry_after_s = 1};
    (void)snprintf(ret_refusal->text, sizeof(ret_refusal->text),
                   "%.0f %s of submits wait for Kafka; at most %.0f may (%s)", ret_refusal->current,
                   many ? "requests" : "bytes", ret_refusal->value, ret_refusal->limit);
    return false;
}

/* The body was read; from here on the submit has its own id. */
static void submit_take_id(struct submit *submit, size_t size)
{
    uint8_t entropy[JOB_ID_RANDOM_SIZE];
    uint64_t now_ms = clock_wall_ms();

    submit->size += size;
    submit->gateway->submits->bytes += size;
    rng_secret_bytes(entropy, sizeof(entropy));
    if (submit->body.run_at_us / 1000 > now_ms)
        now_ms = submit->body.run_at_us / 1000; /* its rows are of the day on which it runs */
    submit->id = job_id_make(job_id_shard(&submit->id), now_ms, entropy);
    job_id_format(&submit->id, submit->call->job);
    if (submit->ask != NULL)
        sync_ask_step(submit->call, submit->body.input, submit->body.input_size, submit->ask);
    if (submit->body.refuse_late)
        submit_ask_late(submit);
    else
        submit_go_on(submit);
}

/* The body of a sync call is the input as it is. */
static int submit_read_input(struct submit *submit, struct err *err)
{
    struct buf *body = &submit->http_body;

    submit->body.slot_count = 1;
    if (submit->ask->websocket != NULL) {
        body->limit = JOB_INPUT_INLINE_MAX;
        websocket_write_input(submit->ask->websocket, body);
    }
    submit->body.input = body->bytes == NULL ? "" : (const char *)body->bytes;
    submit->body.input_size = body->size;
    if (submit->ask->type[0] != '\0' || submit->ask->route[0] != '\0')
        return 0;
    return body_check_json(submit->gateway->reader, body->bytes, body->size, true, err);
}

static int submit_read_body(struct submit *submit, struct err *err)
{
    struct gateway *gateway = submit->gateway;
    int r;

    if (submit->ask != NULL)
        return submit_read_input(submit, err);
    r = body_read_submit(gateway->reader, submit->http_body.bytes, submit->http_body.size, true,
                         gateway->settings.loopback_webhooks, &submit->body, err);
    if (r == 0)
        r = gateway_watch_webhook(gateway->watch, submit->tenant, submit->model, submit->deployment,
                                  &submit->body.webhook_url, err);
    return r < 0 ? r : submit_check_slots(submit, err);
}

/* Room for it, counted; else the call is refused and the submit gone. */
static bool submit_admit(struct submit *submit, size_t size)
{
    struct refusal refusal;

    if (submits_admit(submit->gateway->submits, size, &refusal))
        return true;
    call_refuse(&submit->call, &refusal);
    submit_free(&submit);
    return false;
}

static void on_submit_body(struct call *call)
{
    struct submit *submit = call->state;
    struct err err;

    buf_move(&submit->http_body, http_request_body(call->request));
    call->public.body_size = submit->http_body.size;
    if (!submit_admit(submit, submit->http_body.size))
        return;
    if (submit_read_body(submit, &err) < 0)
        submit_fail(&submit, &err);
    else
        submit_take_id(submit, submit->http_body.size);
}

/* ---- a large body: its input is in the blob store's hands, the rest is read as if it were all */

/* What is here instead of a blob: an input that turned out to be small. */
static void submit_take_small(struct submit *submit)
{
    struct buf *input = large_small_input(submit->large);

    submit->body.input = NULL;
    submit->body.input_size = (size_t)large_input_size(submit->large);
    if (input == NULL)
        return;
    buf_done(&submit->http_body);
    buf_move(&submit->http_body, input);
    submit->body.input = submit->body.input_size == 0 ? "" : (const char *)submit->http_body.bytes;
    large_free(&submit->large);
}

static void on_large(void *opaque, const struct err *err)
{
    struct submit *submit = opaque;
    struct large *large = submit->large;
    struct err bad;

    submit->call->reading = false;
    if (err->code != ERR_OK) {
        if (err_class(err->code) == ERR_CLASS_REJECT)
            submit_fail(&submit, err);
        else
            submit_fail_store(submit, err);
        return;
    }
    submit->call->public.body_size = (size_t)large_body_size(large);
    submit->has_fingerprint = submit->key != NULL;
    if (submit->has_fingerprint)
        large_fingerprint(large, submit->fingerprint);
    if (submit->ask != NULL) {
        submit->body.slot_count = 1;
    } else {
        buf_move(&submit->http_body, large_envelope(large));
        if (submit_read_body(submit, &bad) < 0) {
            submit_fail(&submit, &bad);
            return;
        }
    }
    if (submit->ask != NULL || large_input_size(large) > 0)
        submit_take_small(submit);
    else /* it is in the envelope: its key was spelled with escapes */
        large_free(&submit->large);
    submit_take_id(submit, 0);
}

static uint64_t body_size_max(const struct call *call)
{
    const struct gateway_settings *settings = &call->gateway->settings;

    return route_is_async(call->match.route) ? settings->body_max_size
                                             : settings->sync_body_max_size;
}

static bool submit_is_large(const struct call *call)
{
    uint64_t announced = http_request_announced_size(call->request);
    uint64_t limit = body_size_max(call);

    if (announced == UINT64_MAX)
        return limit > LARGE_BODY_SIZE;
    return announced > LARGE_BODY_SIZE && announced <= limit; /* over the limit: refused there */
}

static void submit_begin_large(struct submit *submit)
{
    struct call *call = submit->call;
    struct gateway *gateway = submit->gateway;
    struct evp_md_ctx_st *fingerprint = NULL;
    char form[FORM_SIZE];

    if (!submit_admit(submit, LARGE_MEMORY_SIZE))
        return;
    submit->size = LARGE_MEMORY_SIZE;
    gateway->submits->bytes += submit->size;
    if (submit->key != NULL)
        fingerprint = reserve_fingerprint_begin(submit->model, submit->environment,
                                                submit->deployment, submit_form(submit, form));
    submit->large = large_new(gateway->blobs, body_size_max(call), submit->ask != NULL, on_large,
                              submit, &fingerprint);
    if (call_begin_reading(call))
        large_begin(submit->large, call->request);
}

static int submit_read_key(struct submit *submit, struct err *err)
{
    const char *key = http_request_header(submit->call->request, "Idempotency-Key");
    int r;

    if (key == NULL)
        return 0;
    r = reserve_key_check(key, err);
    if (r == 0)
        submit->key = xstrdup(key);
    return r;
}

static int submit_read_ask(struct submit *submit, const struct config_deployment *deployment,
                           struct err *err)
{
    if (route_is_async(submit->call->match.route))
        return 0;
    submit->ask = xcalloc(1, sizeof(*submit->ask));
    submit->ask->streams = deployment->streams;
    return sync_ask_read(submit->call, deployment->is_truss, submit->ask, err);
}

/* True: a kill switch is on and the call was answered. */
static bool refuse_switched_off(struct call *call, const struct config_choice *choice,
                                const char *tags)
{
    const struct config_switch *on = gateway_config_find_switch(
        gateway_watch_config(call->gateway->watch), call->tenant, choice->model->id, tags);
    char text[480];

    if (on == NULL)
        return false;
    (void)snprintf(text, sizeof(text), "%s '%s' is switched off%s%s", on->kind,
                   strcmp(on->kind, "model") == 0 ? choice->model->name : on->value,
                   on->reason[0] == '\0' ? "" : ": ", on->reason);
    mem_copy_text(call->retry_after, SWITCH_RETRY_S);
    call_fail_as(&call, 503, "switched_off", text);
    return true;
}

void submit_given(struct call *call, const struct config_choice *choice, const struct wire_id *id,
                  struct buf *body)
{
    struct refusal refusal;
    struct submit *submit;
    struct err err;

    public_target(call, choice);
    if (refuse_switched_off(call, choice, "")) {
        buf_done(body);
        return;
    }
    if (!gateway_caps_admit_pool(call->gateway->caps, choice->deployment->pool, &refusal)) {
        buf_done(body);
        call_refuse(&call, &refusal);
        return;
    }
    submit_new(call, choice);
    submit = call->state;
    submit->id = *id;
    buf_move(&submit->http_body, body);
    if (!submit_admit(submit, submit->http_body.size))
        return;
    submit->size = submit->http_body.size;
    submit->gateway->submits->bytes += submit->size;
    if (body_read_submit(submit->gateway->reader, submit->http_body.bytes, submit->http_body.size,
                         false, false, &submit->body, &err) < 0) {
        submit_fail(&submit, &err);
        return;
    }
    job_id_format(&submit->id, call->job);
    submit_store_input(submit);
}

static void on_choice(struct call *call, const struct config_choice *choice)
{
    struct gateway *gateway = call->gateway;
    uint8_t entropy[JOB_ID_RANDOM_SIZE] = {0};
    struct refusal refusal;
    char tags[TAGS_SIZE];
    struct submit *submit;
    struct err err;
    int r;

    public_target(call, choice);
    r = tags_read(http_request_header(call->request, "X-Headrace-Tags"), tags, &err);
    if (r < 0) {
        call_fail(&call, &err);
        return;
    }
    if (refuse_switched_off(call, choice, tags))
        return;
    if (!gateway_caps_admit_pool(gateway->caps, choice->deployment->pool, &refusal) ||
        !submits_admit(gateway->submits, 0, &refusal)) {
        call_refuse(&call, &refusal);
        return;
    }
    submit_new(call, choice);
    submit = call->state;
    mem_copy_text(submit->tags, tags);
    submit->id = job_id_make(choice->deployment->shard, 0,
                             entropy); /* keeps the shard till later */
    r = submit_read_ask(submit, choice->deployment, &err);
    if (r == 0)
        r = submit_read_key(submit, &err);
    if (r < 0)
        submit_fail(&submit, &err);
    else if (submit_is_large(call))
        submit_begin_large(submit);
    else
        call_collect_body(call, body_size_max(call), on_submit_body);
}

static void on_rate_passed(struct call *call)
{
    gateway_watch_choose(call, on_choice);
}

void submit_begin(struct call *call)
{
    struct refusal refusal;

    if (!gateway_caps_admit_tenant(call->gateway->caps, call->tenant, &refusal))
        call_refuse(&call, &refusal);
    else
        gateway_rates_check(call, on_rate_passed);
}

/* ---- all of them ---- */

/* The oldest are in front and all wait equally long. */
static void on_sweep(void *opaque)
{
    struct submits *submits = opaque;
    uint64_t now_ms = loop_now_ms(submits->gateway->loop);
    struct submit *submit;
    struct err err;

    TAILQ_FOREACH(submit, &submits->waiting, link)
    {
        if (submit->answer_by_ms > now_ms)
            break;
        if (submit->call == NULL)
            continue;
        (void)err_set(&err, ERR_UNAVAILABLE,
                      "Kafka did not confirm the request within %llu ms; it is not promised to run",
                      (unsigned long long)submits->gateway->settings.accept_wait_ms);
        metric_add(
            metrics_of(submits->gateway->metrics, GATEWAY_METRIC_gateway_submits_unpromised_total),
            1);
        call_fail(&submit->call, &err);
    }
    if (TAILQ_EMPTY(&submits->waiting))
        loop_timer_stop(submits->sweep);
}

int gateway_submits_open(struct gateway *gateway, struct err *err)
{
    struct submits *submits = xcalloc(1, sizeof(*submits));

    gateway->submits = submits;
    rng_secret_bytes(&submits->call_count, sizeof(submits->call_count));
    submits->gateway = gateway;
    LIST_INIT(&submits->all);
    TAILQ_INIT(&submits->waiting);
    submits->sweep = loop_timer_new(gateway->loop, on_sweep, submits);
    submits->sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    if (submits->sha256 == NULL)
        return err_set(err, ERR_DEPENDENCY, "OpenSSL has no SHA-256");
    gateway->intake = queue_producer_topic(gateway->producer, topic_name(TOPIC_INTAKE));
    return 0;
}

void gateway_submits_close(struct submits **submits_p)
{
    struct submits *submits = *submits_p; /* submit_free() still looks at it */
    struct submit *submit;

    if (submits == NULL)
        return;
    while ((submit = LIST_FIRST(&submits->all)) != NULL)
        submit_free(&submit);
    loop_timer_free(&submits->sweep);
    EVP_MD_free(submits->sha256);
    mem_free(submits_p);
}

uint32_t gateway_submits_waiting(const struct submits *submits)
{
    return submits->count;
}

bool gateway_submits_clock_is_good(const struct submits *submits, double *ret_skew_s)
{
    double limit_s = (double)submits->gateway->settings.clock_skew_max_ms / 1000;

    *ret_skew_s = submits->skew_s;
    return submits->skew_s <= limit_s && submits->skew_s >= -limit_s;
}
