/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A caller that waits, from Kafka's report to the answer.
 *
 *   waiting ──final──────────────────────────────▶ answered: the model's answer, or a failure
 *      │ first piece
 *      ▼
 *   streaming ──last piece, and final: SUCCEEDED──▶ ended
 *      │      ──a gap, or Redis has no more───────▶ the rest is taken from the result, then ended
 *      │      ──another attempt, or a failure─────▶ cut off: what was sent cannot be taken back
 *      └ its client leaves, or the time is over: the job is canceled (499, 504)
 *
 * The pieces together are the output, so that where Redis fails the committed result goes on at the
 * byte that was sent last. Slow clients are written to as they take it; what they have not taken
 * waits in Redis.
 *
 * A run of a chain, asked for the pieces of its step that streams: the run's stream names the job
 * whose pieces they are, and the run has the last word. It fails before a piece: its error is the
 * answer; after it, an event `error` where the answer is one of events, else a cut. It succeeds
 * without a piece of a text: its output is the answer.
 *
 * At shutdown: callers are waited for up to the drain's end, then cut off; their jobs run on, as
 * those of a gateway that was killed (docs/sync.md).
 */

#include "producers/gateway_sync.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/blob.h"
#include "brokers/cache.h"
#include "producers/gateway.h"
#include "producers/gateway_body.h"
#include "producers/gateway_follow.h"
#include "schema/job.h"
#include "schema/job_id.h"

#define ANSWER_SIZE_MAX (2u << 20)
#define PUMP_SIZE 16384
#define EVENT_SIZE_MAX (1u << 20)
#define TIMEOUT_GRACE_MS 250 /* the ledger's own deadline comes first, as a rule */

struct sync {
    LIST_ENTRY(sync) link;
    struct gateway *gateway;
    struct call *call;
    struct wire_id id;
    char tenant[CONFIG_NAME_SIZE];
    bool keyed, wants_pieces;
    struct follow *follow;    /* whose pieces are the answer; NULL: of a step that has not begun */
    struct follow *run;       /* of that step; NULL: the job answers itself */
    struct wire_id step;      /* whose follow it is then */
    bool wraps;               /* each piece becomes an event */
    bool sends_events;        /* the answer is one of events */
    bool run_over, step_void; /* the run has succeeded; that step has no pieces to give */
    struct loop_timer *timer; /* its limit */
    struct loop_timer *room;  /* there was none and is some again */
    struct http_stream *stream; /* NULL: no piece was sent yet */
    uint64_t sent, output_size; /* bytes of the output; the latter once it is final */
    struct rest *rest;          /* its blob is being opened */
    int fd;                     /* of that blob; -1: none */
    bool final;                 /* it succeeded */
    bool spent;                 /* Redis has no more of it that would fit */
    bool complete;              /* the last piece was seen */
    bool blocked;               /* its client is slow: on_room comes */
};

/* Outlives a caller that leaves meanwhile. */
struct rest {
    struct sync *sync; /* NULL: it has left */
    uint64_t size;
};

struct syncs {
    LIST_HEAD(, sync) all;
    uint32_t count;
};

/* ---- its end ---- */

static void sync_free(struct sync **sync_p)
{
    struct sync *sync = TAKE(*sync_p);
    struct syncs *syncs = sync->gateway->syncs;

    LIST_REMOVE(sync, link);
    syncs->count--;
    metric_set(metrics_of(sync->gateway->metrics, GATEWAY_METRIC_gateway_sync_waiting),
               syncs->count);
    if (sync->rest != NULL)
        sync->rest->sync = NULL;
    if (sync->fd >= 0)
        (void)close(sync->fd);
    follow_free(&sync->follow);
    follow_free(&sync->run);
    loop_timer_free(&sync->timer);
    loop_timer_free(&sync->room);
    free(sync);
}

static void sync_cancel(const struct sync *sync)
{
    if (sync->keyed) /* its client comes again and wants the answer */
        return;
    metric_add(metrics_of(sync->gateway->metrics, GATEWAY_METRIC_gateway_sync_canceled_total), 1);
    gateway_cancel_silently(sync->gateway, &sync->id, sync->tenant);
}

/* The client has left. */
static void sync_left(struct call *call)
{
    struct sync *sync = call->state;

    sync_cancel(sync);
    if (sync->stream != NULL)
        http_stream_abort(&sync->stream);
    call_leave(&sync->call);
    sync_free(&sync);
}

/* Ends a stream: whole, or cut off. */
static void sync_end_stream(struct sync *sync, bool whole)
{
    if (whole)
        http_stream_end(&sync->stream);
    else
        http_stream_abort(&sync->stream);
    if (sync->run == NULL) /* nobody else follows it */
        (void)cache_stream_expire(sync->gateway->cache, &sync->id, 0);
    call_end_stream(&sync->call, whole ? 200 : 502);
    sync_free(&sync);
}

static int sync_write(struct sync *sync, const void *bytes, size_t size, struct err *err)
{
    OWNED(buf_done) struct buf event = BUF_WITH_LIMIT(EVENT_SIZE_MAX);

    if (!sync->wraps)
        return http_stream_write(sync->stream, bytes, size, err);
    buf_append_text(&event, "data: {");
    media_append_member(&event, (struct wire_bytes){bytes, size});
    buf_append_text(&event, "}\n\n");
    return http_stream_write(sync->stream, event.bytes, event.size, err);
}

/* Of a stream that does not come to its end. What was sent of the last event may be a part of it.
 */
static void sync_break_stream(struct sync *sync, const char *code, const char *text)
{
    OWNED(buf_done) struct buf event = BUF_WITH_LIMIT(EVENT_SIZE_MAX);
    struct err err;

    if (sync->run != NULL && sync->sends_events) {
        buf_printf(&event, "\n\nevent: error\ndata: {\"error_code\":\"%s\",\"error\":", code);
        json_append_string(&event, text, strlen(text));
        buf_append_text(&event, "}\n\n");
        if (http_stream_write(sync->stream, event.bytes, event.size, &err) == 0) {
            http_stream_end(&sync->stream);
            call_end_stream(&sync->call, 502);
            sync_free(&sync);
            return;
        }
    }
    sync_end_stream(sync, false);
}

/* ---- answers ---- */

static void on_output_blob(void *opaque, int fd, uint64_t size, const struct err *err)
{
    struct call *call = opaque;
    struct err mine = *err;

    if (err->code == ERR_OK) {
        call_answer_file(&call, call->output_status, fd, size);
        return;
    }
    (void)err_wrap(&mine, "the result cannot be read");
    call_fail(&call, &mine);
}

/* The bytes that the model has answered with, and its own status. */
static void answer_output(struct call *call, int status, const struct message_completed *completed)
{
    struct buf to = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);
    OWNED(mem_free) char *blob = wire_text_dup(completed->output_blob);
    struct err err;

    call_set_type(call, completed->output_type);
    if (completed->output_blob.size > 0) {
        call->output_status = status;
        if (blob_open(call->gateway->blobs, blob, on_output_blob, call, &err) < 0)
            call_fail(&call, &err);
        return;
    }
    buf_append(&to, completed->output.bytes, completed->output.size);
    if (completed->output.size == 0 && call->type[0] == '\0' && status == 200)
        buf_append_text(&to, "null");
    call_answer(&call, status, &to);
}

static void answer_failure(struct call *call, const struct message_completed *completed)
{
    struct sync_failure failure = sync_failure_of(completed->state, completed->error_class);
    int status = (int)completed->http_status;
    bool has_status = status >= 300 && status <= 599;
    /* A body with a type is the model's own, also when it is empty. */
    bool answered = completed->output.size > 0 || completed->output_blob.size > 0 ||
                    (has_status && completed->output_type.size > 0);
    OWNED(mem_free) char *text = wire_text_dup(completed->error_message);

    if (!has_status)
        status = failure.status;
    call->error_source = failure.source_code;
    if (answered)
        answer_output(call, status, completed);
    else if (completed->state == JOB_CANCELED)
        call_fail_as(&call, status, failure.error_code, "the request was canceled");
    else
        call_fail_as(&call, status, failure.error_code,
                     text != NULL && text[0] != '\0' ? text : "the model failed");
}

void sync_answer_failure(struct call *call, const struct message_completed *completed)
{
    (void)snprintf(call->attempts, sizeof(call->attempts), "%u", (unsigned)completed->attempts);
    answer_failure(call, completed);
}

static void sync_answer(struct sync *sync, const struct message_completed *completed)
{
    struct call *call = TAKE(sync->call);
    int status = (int)completed->http_status;

    call->on_left = NULL;
    sync_free(&sync);
    (void)snprintf(call->attempts, sizeof(call->attempts), "%u", (unsigned)completed->attempts);
    if (completed->state != JOB_SUCCEEDED)
        answer_failure(call, completed);
    else
        answer_output(call, status >= 200 && status <= 599 ? status : 200, completed);
}

/* ---- pieces ---- */

/* From the blob, as its client takes it. */
static void sync_pump(struct sync *sync)
{
    char part[PUMP_SIZE];
    struct err err;
    ssize_t n;

    while ((n = pread(sync->fd, part, sizeof(part), (off_t)sync->sent)) > 0) {
        int r = sync_write(sync, part, (size_t)n, &err);

        sync->blocked = r == ERR_FULL;
        if (r < 0)
            return; /* on_room comes, or on_gone */
        sync->sent += (uint64_t)n;
    }
    sync_end_stream(sync, n == 0);
}

static void on_rest(void *opaque, int fd, uint64_t size, const struct err *err)
{
    OWNED(mem_free) struct rest *rest = opaque;
    struct sync *sync = rest->sync;
    bool good = err->code == ERR_OK;

    if (sync != NULL)
        sync->rest = NULL;
    if (sync != NULL && good && size == rest->size) {
        sync->fd = fd;
        sync_pump(sync);
        return;
    }
    if (good)
        (void)close(fd);
    if (sync != NULL)
        sync_end_stream(sync, false);
}

static void sync_open_rest(struct sync *sync, const struct message_completed *completed)
{
    OWNED(mem_free) char *blob = wire_text_dup(completed->output_blob);
    struct err err;

    sync->rest = xcalloc(1, sizeof(*sync->rest));
    *sync->rest = (struct rest){.sync = sync, .size = completed->output_size};
    if (blob_open(sync->gateway->blobs, blob, on_rest, sync->rest, &err) == 0)
        return;
    mem_free(&sync->rest);
    sync_end_stream(sync, false);
}

/* What the result has beyond the bytes that were sent. */
static void sync_send_rest(struct sync *sync, const struct message_completed *completed)
{
    struct err err;
    int r = 0;

    if (completed->output_size < sync->sent) {
        sync_end_stream(sync, false);
        return;
    }
    if (completed->output_blob.size > 0) {
        sync_open_rest(sync, completed);
        return;
    }
    if (completed->output.size > sync->sent)
        r = sync_write(sync, completed->output.bytes + sync->sent,
                       completed->output.size - sync->sent, &err);
    sync->blocked = r == ERR_FULL;
    if (r == 0)
        sync_end_stream(sync, true);
}

/* The job has succeeded, and there is room: goes on with what is to be sent. */
static void sync_step(struct sync *sync)
{
    if (!sync->final || sync->blocked || sync->rest != NULL)
        return;
    if (sync->fd >= 0)
        sync_pump(sync);
    else if (sync->spent)
        follow_ask_final(sync->follow); /* and then the rest */
    else
        follow_read(sync->follow);
}

static void on_final(void *opaque, const struct message_completed *completed)
{
    struct sync *sync = opaque;

    if (sync->stream == NULL) {
        sync_answer(sync, completed);
    } else if (completed->state != JOB_SUCCEEDED) {
        sync_end_stream(sync, false);
    } else if (sync->rest != NULL || sync->fd >= 0) {
        return; /* asked twice */
    } else if (sync->final && sync->spent && !sync->complete) {
        sync_send_rest(sync, completed);
    } else {
        sync->final = true;
        sync->output_size = completed->output_size;
        sync_step(sync); /* also when it is complete: another attempt may have been the one */
    }
}

static void on_news(void *opaque)
{
    struct sync *sync = opaque;

    if (sync->wants_pieces && !sync->blocked && !sync->spent)
        follow_read(sync->follow);
}

static void on_room(struct http_stream *stream, void *opaque)
{
    struct sync *sync = opaque;

    (void)stream;
    sync->blocked = false;
    loop_timer_start(sync->room, 0, 0); /* not from inside the server's own call */
}

static void on_room_later(void *opaque)
{
    struct sync *sync = opaque;

    if (sync->final)
        sync_step(sync);
    else
        on_news(sync);
}

static void on_stream_gone(struct http_stream *stream, void *opaque)
{
    struct sync *sync = opaque;

    (void)stream;
    sync_left(sync->call);
}

static void sync_begin_stream(struct sync *sync, struct wire_text type, uint64_t attempt)
{
    static const struct http_stream_calls calls = {.on_room = on_room, .on_gone = on_stream_gone};

    sync->sends_events = sync->wraps || media_type_is(type, MEDIA_TYPE_EVENTS);
    sync->wraps = sync->wraps && !media_type_is(type, MEDIA_TYPE_EVENTS);
    if (sync->wraps)
        type = WIRE_TEXT_OF(MEDIA_TYPE_EVENTS);
    call_set_type(sync->call, type.size > 0 ? type : WIRE_TEXT_OF(MEDIA_TYPE_BYTES));
    (void)snprintf(sync->call->attempts, sizeof(sync->call->attempts), "%u", (unsigned)attempt);
    sync->stream = call_answer_stream(sync->call, 200, sync->gateway->settings.stream_buffer_size,
                                      &calls, sync);
}

static bool on_piece(void *opaque, const struct cursor_step *step, struct cache_place place,
                     const struct message_piece *piece)
{
    struct sync *sync = opaque;
    struct err err;
    int r;

    (void)place;
    if (step->reset && sync->stream != NULL) {
        sync_cancel(sync);
        sync_break_stream(sync, "model_unavailable", "the step began anew: what was sent is void");
        return false;
    }
    if (step->gap || piece->offset != sync->sent) {
        sync->spent = true; /* the result has it */
        return false;
    }
    if (piece->last) {
        sync->complete = sync->stream != NULL;
        return true;
    }
    if (sync->stream == NULL)
        sync_begin_stream(sync, piece->output_type, piece->attempt);
    r = sync_write(sync, piece->data.bytes, piece->data.size, &err);
    sync->blocked = r == ERR_FULL;
    if (r < 0)
        return false;
    sync->sent += piece->data.size;
    return true;
}

static void on_read(void *opaque, bool caught_up)
{
    struct sync *sync = opaque;

    if (sync->stream == NULL || sync->blocked || !sync->final)
        return;
    if (caught_up && sync->complete) {
        sync_end_stream(sync, sync->sent == sync->output_size);
        return;
    }
    if (!caught_up && !sync->spent)
        return; /* its client has left: on_gone comes */
    sync->spent = true;
    sync_step(sync);
}

/* ---- a run, of which a step has the pieces ---- */

static void on_step_final(void *opaque, const struct message_completed *completed)
{
    struct sync *sync = opaque;

    if (!sync->run_over)
        return; /* it is asked again then */
    if (sync->stream != NULL && completed->state != JOB_SUCCEEDED) {
        sync_break_stream(sync, "application_error", "the step that streams has failed");
    } else if (sync->stream == NULL && (completed->state != JOB_SUCCEEDED ||
                                        media_type_is(completed->output_type, MEDIA_TYPE_JSON) ||
                                        completed->output_type.size == 0)) {
        sync->step_void = true;
        follow_ask_final(sync->run);
    } else if (sync->stream == NULL) { /* it was faster than our reading */
        sync_begin_stream(sync, completed->output_type, completed->attempts);
        sync->final = sync->spent = true;
        sync_send_rest(sync, completed);
    } else {
        on_final(sync, completed);
    }
}

static bool on_step_piece(void *opaque, const struct cursor_step *step, struct cache_place place,
                          const struct message_piece *piece);

/* The job that has the pieces, which may be a run itself. */
static void sync_follow_step(struct sync *sync, const struct wire_id *id)
{
    static const struct follow_calls calls = {.on_final = on_step_final,
                                              .on_news = on_news,
                                              .on_piece = on_step_piece,
                                              .on_read = on_read};
    struct cursor cursor;

    if (sync->stream != NULL || sync->step_void || job_id_equal(&sync->step, id))
        return;
    cursor_init(&cursor);
    follow_free(&sync->follow);
    sync->step = *id;
    sync->follow = follow_new(sync->gateway, id, false, &cursor, &calls, sync);
    follow_read(sync->follow);
}

static bool on_step_piece(void *opaque, const struct cursor_step *step, struct cache_place place,
                          const struct message_piece *piece)
{
    struct sync *sync = opaque;

    if (job_id_is_none(&piece->step))
        return on_piece(opaque, step, place, piece);
    sync_follow_step(sync, &piece->step);
    return true;
}

static bool on_run_piece(void *opaque, const struct cursor_step *step, struct cache_place place,
                         const struct message_piece *piece)
{
    (void)step;
    (void)place;
    if (!job_id_is_none(&piece->step))
        sync_follow_step(opaque, &piece->step);
    return true;
}

static void on_run_news(void *opaque)
{
    struct sync *sync = opaque;

    if (sync->follow == NULL)
        follow_read(sync->run);
}

static void on_run_read(void *opaque, bool caught_up)
{
    struct sync *sync = opaque;

    if (sync->run_over && sync->follow != NULL) {
        follow_ask_final(sync->follow);
    } else if (sync->run_over && caught_up) {
        sync->step_void = true;
        follow_ask_final(sync->run);
    }
}

static void on_run_final(void *opaque, const struct message_completed *completed)
{
    struct sync *sync = opaque;
    OWNED(mem_free) char *text = NULL;

    if (completed->state == JOB_SUCCEEDED && !sync->step_void) {
        sync->run_over = true;
        if (sync->follow != NULL)
            follow_ask_final(sync->follow);
        else
            follow_read(sync->run);
    } else if (sync->stream == NULL) {
        sync_answer(sync, completed);
    } else {
        text = wire_text_dup(completed->error_message);
        sync_break_stream(
            sync, sync_failure_of(completed->state, completed->error_class).error_code,
            text == NULL || text[0] == '\0' ? job_state_name(completed->state) : text);
    }
}

static void sync_follow_run(struct sync *sync, bool known)
{
    static const struct follow_calls calls = {.on_final = on_run_final,
                                              .on_news = on_run_news,
                                              .on_piece = on_run_piece,
                                              .on_read = on_run_read};
    struct cursor cursor;

    cursor_init(&cursor);
    sync->run = follow_new(sync->gateway, &sync->id, false, &cursor, &calls, sync);
    if (known)
        follow_ask_final(sync->run);
    else
        follow_catch_up(sync->run);
}

/* ---- its beginning ---- */

static void on_limit(void *opaque)
{
    struct sync *sync = opaque;
    struct call *call = sync->call;

    sync_cancel(sync);
    if (sync->stream != NULL) {
        sync_break_stream(sync, "timeout", "the chain did not end within the request's limit");
        return;
    }
    call->on_left = NULL;
    sync_free(&sync);
    call_fail_as(&call, 504, "timeout", "the model did not answer within the request's limit");
}

void sync_wait(struct call **call_p, const struct sync_ask *ask, const struct sync_job *job)
{
    static const struct follow_calls calls = {
        .on_final = on_final, .on_news = on_news, .on_piece = on_piece, .on_read = on_read};
    struct call *call = TAKE(*call_p);
    struct sync *sync = xcalloc(1, sizeof(*sync));
    struct gateway *gateway = call->gateway;
    uint64_t spent_ms = (clock_wall_us() - call->begun_us) / 1000;
    struct cursor cursor;

    sync->gateway = gateway;
    sync->call = call;
    sync->id = job->id;
    sync->keyed = job->keyed;
    sync->wants_pieces = ask->stream;
    sync->fd = -1;
    mem_copy_text(sync->tenant, call->tenant);
    sync->timer = loop_timer_new(gateway->loop, on_limit, sync);
    sync->room = loop_timer_new(gateway->loop, on_room_later, sync);
    LIST_INSERT_HEAD(&gateway->syncs->all, sync, link);
    metric_set(metrics_of(gateway->metrics, GATEWAY_METRIC_gateway_sync_waiting),
               ++gateway->syncs->count);
    call->state = sync;
    call->public.accepted = true;
    if (http_request_is_gone(call->request)) {
        sync_left(call);
        return;
    }
    call->on_left = sync_left;
    loop_timer_start(
        sync->timer,
        TIMEOUT_GRACE_MS + (ask->timeout_ms > spent_ms ? ask->timeout_ms - spent_ms : 0), 0);
    if (ask->of_step) {
        sync->wraps = ask->events;
        sync_follow_run(sync, job->known);
        return;
    }
    cursor_init(&cursor);
    sync->follow = follow_new(gateway, &sync->id, !job->known, &cursor, &calls, sync);
    if (job->known)
        follow_ask_final(sync->follow);
    else
        follow_catch_up(sync->follow);
}

int gateway_syncs_open(struct gateway *gateway, struct err *err)
{
    (void)err;
    gateway->syncs = xcalloc(1, sizeof(*gateway->syncs));
    LIST_INIT(&gateway->syncs->all);
    return 0;
}

/* Their calls are ended by calls_close(). */
void gateway_syncs_close(struct syncs **syncs_p)
{
    struct syncs *syncs = *syncs_p; /* sync_free() still looks at it */
    struct sync *sync;

    if (syncs == NULL)
        return;
    while ((sync = LIST_FIRST(&syncs->all)) != NULL) {
        http_stream_abort(&sync->stream);
        sync_free(&sync);
    }
    mem_free(syncs_p);
}
