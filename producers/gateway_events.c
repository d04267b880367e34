/* SPDX-License-Identifier: Apache-2.0 */

/*
 * GET /async_request/{id}/stream: the answer of a job that was submitted with "stream": true, as
 * server-sent events, for as many clients and from as many gateways as want it.
 *
 *   id: <token>-<number>    data: {"text": …}            a piece; {"base64": …} when it is no UTF-8
 *   event: begin | reset    data: {"attempt", "content_type"}   reset: what came before is void
 *   event: gap              data: {"lost_bytes": n or null}     pieces that Redis has lost
 *   event: final            data: the status object             then the answer ends
 *
 * Happy path: the row says whose the job is and that it streams; then pieces as they come. A client
 * that comes back with Last-Event-ID goes on behind that piece, on whichever gateway. After the
 * final event its id is "final", and coming back with that is 204: an EventSource stops by itself.
 *
 * A run of a chain has the pieces of its step with `stream`, as soon as that has begun, and ends
 * with the run.
 *
 * Failures: Redis is flushed: a gap is said, the result has the whole. A client that reads slowly
 * is written to as it takes it; what it has not taken waits in Redis, and may be gone by then: a
 * gap.
 *
 * At shutdown: ended when the listener closes, without a final event: clients come back elsewhere.
 */

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_body.h"
#include "producers/gateway_follow.h"
#include "schema/job.h"
#include "producers/gateway_status.h"

#define EVENT_SIZE_MAX (1u << 20)
#define KEEP_ALIVE_MS 15000
#define ROW_GAP_MS 100
#define RUN_GAP_MS 250 /* until the step of a run has begun */
#define ROW_TRIES_MAX 100
#define LAST_GRACE_MS 250 /* for the last pieces to be in Redis when the job is final */
#define FINAL_ID "final"

PG_STATEMENT(events_find,
             "SELECT j.state, j.stream, (SELECT s.job_id FROM chain_step s JOIN job x ON x.id = "
             "s.job_id WHERE s.run_id = j.id AND s.round > 0 AND x.stream ORDER BY s.round DESC "
             "LIMIT 1), EXISTS (SELECT FROM deployment d WHERE d.id = j.deployment AND d.engine = "
             "'chain' AND d.config -> 'steps' @? '$.*.stream ? (@ == true)') FROM job j WHERE j.id "
             "= $1 AND j.tenant = $2");

struct events {
    LIST_ENTRY(events) link;
    struct gateway *gateway;
    struct call *call;
    struct follow *follow;
    struct follow *run; /* whose step is followed: how it ends; NULL: it is the job itself */
    struct http_stream *stream;
    struct loop_timer *timer; /* keep-alive; or what is to be done soon */
    struct cursor from;
    struct buf final; /* the status object; empty: not final */
    uint64_t output_size;
    bool succeeded, waited, blocked;
    uint32_t row_tries;
};

struct event_streams {
    LIST_HEAD(, events) all;
    uint32_t count;
};

/* ---- ends ---- */

static void events_free(struct events **events_p)
{
    struct events *events = TAKE(*events_p);
    struct event_streams *streams = events->gateway->event_streams;

    LIST_REMOVE(events, link);
    streams->count--;
    metric_set(metrics_of(events->gateway->metrics, GATEWAY_METRIC_gateway_event_streams),
               streams->count);
    follow_free(&events->follow);
    follow_free(&events->run);
    loop_timer_free(&events->timer);
    buf_done(&events->final);
    free(events);
}

static void events_left(struct call *call)
{
    struct events *events = call->state;

    if (events->stream != NULL)
        http_stream_abort(&events->stream);
    call_leave(&events->call);
    events_free(&events);
}

static void on_stream_gone(struct http_stream *stream, void *opaque)
{
    struct events *events = opaque;

    (void)stream;
    events_left(events->call);
}

/* ---- events ---- */

static void append_attempt(struct buf *to, const char *event, const struct message_piece *piece)
{
    struct wire_text type = piece->output_type.size > 0 ? piece->output_type
                                                        : WIRE_TEXT_OF(MEDIA_TYPE_JSON);

    buf_printf(to, "event: %s\ndata: {\"attempt\":%llu,\"content_type\":", event,
               (unsigned long long)piece->attempt);
    json_append_string(to, type.text, type.size);
    buf_append_text(to, "}\n\n");
}

static void append_gap(struct buf *to, bool known, uint64_t lost_size)
{
    buf_append_text(to, "event: gap\ndata: {\"lost_bytes\":");
    if (known)
        buf_printf(to, "%llu}\n\n", (unsigned long long)lost_size);
    else
        buf_append_text(to, "null}\n\n");
}

static void append_piece(struct buf *to, struct cache_place place, struct wire_bytes data)
{
    char id[CACHE_PLACE_TEXT_SIZE];

    (void)cache_place_format(place, id);
    buf_printf(to, "id: %s\ndata: {", id);
    media_append_member(to, data);
    buf_append_text(to, "}\n\n");
}

/* False: it has to wait for room, or there is nobody. */
static bool events_write(struct events *events, const struct buf *text)
{
    struct err err;
    int r = http_stream_write(events->stream, text->bytes, text->size, &err);

    events->blocked = r == ERR_FULL;
    if (r == 0)
        loop_timer_start(events->timer, KEEP_ALIVE_MS, 0);
    return r == 0;
}

static bool on_piece(void *opaque, const struct cursor_step *step, struct cache_place place,
                     const struct message_piece *piece)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(EVENT_SIZE_MAX);
    struct events *events = opaque;

    if (step->begin)
        append_attempt(&text, step->reset ? "reset" : "begin", piece);
    if (step->gap)
        append_gap(&text, step->knows_lost, step->lost_size);
    if (piece->data.size > 0)
        append_piece(&text, place, piece->data);
    return text.size == 0 || events_write(events, &text);
}

/* ---- the end of the job ---- */

static void append_missing(const struct events *events, struct buf *to)
{
    const struct cursor *cursor = follow_cursor(events->follow);

    if (!events->succeeded || cursor->complete)
        return;
    if (!cursor->knows_offset)
        append_gap(to, false, 0);
    else if (cursor->offset < events->output_size)
        append_gap(to, true, events->output_size - cursor->offset);
}

static void events_finish(struct events *events)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(EVENT_SIZE_MAX);

    append_missing(events, &text);
    buf_append_text(&text, "event: final\nid: " FINAL_ID "\ndata: ");
    buf_append(&text, events->final.bytes, events->final.size);
    buf_append_text(&text, "\n\n");
    if (!events_write(events, &text))
        return; /* on_room comes, or on_gone */
    http_stream_end(&events->stream);
    call_end_stream(&events->call, 200);
    events_free(&events);
}

static void on_read(void *opaque, bool caught_up)
{
    struct events *events = opaque;

    if (events->final.size == 0 || !caught_up || events->blocked)
        return;
    if (events->waited || follow_cursor(events->follow)->complete) {
        events_finish(events);
        return;
    }
    events->waited = true;
    loop_timer_start(events->timer, LAST_GRACE_MS, 0);
}

static void on_final(void *opaque, const struct message_completed *completed)
{
    struct events *events = opaque;
    struct job_view view = view_of_completed(completed);

    if (events->final.size > 0)
        return;
    view_append_json(&view, &events->final);
    events->succeeded = view.state == JOB_SUCCEEDED;
    events->output_size = completed->output_size;
    follow_read(events->follow);
}

/* The step's; the run goes on. */
static void on_step_final(void *opaque, const struct message_completed *completed)
{
    struct events *events = opaque;

    events->succeeded = completed->state == JOB_SUCCEEDED;
    events->output_size = completed->output_size;
    follow_read(events->follow);
}

static void on_run_final(void *opaque, const struct message_completed *completed)
{
    struct events *events = opaque;
    struct job_view view = view_of_completed(completed);

    if (events->final.size > 0)
        return;
    view_append_json(&view, &events->final);
    follow_read(events->follow);
}

static void on_news(void *opaque)
{
    struct events *events = opaque;

    if (!events->blocked)
        follow_read(events->follow);
}

static void on_room(struct http_stream *stream, void *opaque)
{
    struct events *events = opaque;

    (void)stream;
    events->blocked = false;
    loop_timer_start(events->timer, 0, 0); /* not from inside the server's own call */
}

/* ---- the beginning ---- */

static void events_ask_row(struct events *events);

static void on_timer(void *opaque)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(64);
    struct events *events = opaque;

    if (events->stream == NULL) {
        events_ask_row(events);
        return;
    }
    if (events->final.size == 0) {
        buf_append_text(&text, ":\n\n"); /* whoever sits in between must not take us for dead */
        (void)events_write(events, &text);
    }
    on_news(events);
}

/* step: of the run that is asked for; NULL: the job itself. */
static void events_begin_stream(struct events *events, const struct wire_id *step)
{
    static const struct http_stream_calls stream_calls = {.on_room = on_room,
                                                          .on_gone = on_stream_gone};
    static const struct follow_calls calls = {
        .on_final = on_final, .on_news = on_news, .on_piece = on_piece, .on_read = on_read};
    static const struct follow_calls step_calls = {
        .on_final = on_step_final, .on_news = on_news, .on_piece = on_piece, .on_read = on_read};
    static const struct follow_calls run_calls = {.on_final = on_run_final};
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(64);
    struct gateway *gateway = events->gateway;
    struct wire_id id;
    struct err err;

    if (call_job_id(events->call, &id, &err) < 0)
        NEVER("an id that was looked up is one");
    call_set_type(events->call, WIRE_TEXT_OF(MEDIA_TYPE_EVENTS));
    events->stream = call_answer_stream(events->call, 200, gateway->settings.stream_buffer_size,
                                        &stream_calls, events);
    events->follow = step == NULL
                         ? follow_new(gateway, &id, false, &events->from, &calls, events)
                         : follow_new(gateway, step, false, &events->from, &step_calls, events);
    if (step != NULL)
        events->run = follow_new(gateway, &id, false, &events->from, &run_calls, events);
    buf_append_text(&text, "retry: 1000\n\n");
    (void)events_write(events, &text);
    follow_read(events->follow);
}

static void events_refuse(struct events *events, int status, const char *text)
{
    struct call *call = TAKE(events->call);

    call->on_left = NULL;
    events_free(&events);
    call_fail_as(&call, status, "client_error", text);
}

static void on_row(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct events *events = call->state;
    bool found, waits;
    struct wire_id id;
    struct err err;

    if (http_request_is_gone(call->request)) {
        events_left(call);
        return;
    }
    if (!call_take_answer(&events->call, answer)) {
        events_free(&events);
        return;
    }
    call->on_left = events_left;
    found = pg_row_count(answer, STATUS_ROW) == 1;
    waits = found && pg_bool(answer, STATUS_ROW, 0, 3) &&
            !job_state_final((enum job_state)pg_i64(answer, STATUS_ROW, 0, 0));
    if (found && pg_bool(answer, STATUS_ROW, 0, 1)) {
        events_begin_stream(events, NULL);
    } else if (found && !pg_is_null(answer, STATUS_ROW, 0, 2)) {
        id = pg_id(answer, STATUS_ROW, 0, 2);
        events_begin_stream(events, &id);
    } else if (waits) { /* for the step that streams */
        loop_timer_start(events->timer, RUN_GAP_MS, 0);
    } else if (found) {
        events_refuse(events, 409, "the request was not submitted with \"stream\": true");
    } else if (call_job_id(call, &id, &err) == 0 && status_may_be_queued(answer, &id) &&
               ++events->row_tries < ROW_TRIES_MAX) {
        loop_timer_start(events->timer, ROW_GAP_MS, 0);
    } else {
        events_refuse(events, 404, "there is no such request; results are kept for a limited time");
    }
}

static void events_ask_row(struct events *events)
{
    struct call *call = events->call;

    call->on_left = NULL; /* the answer comes with the call: it has to be there */
    if (!status_ask(call, &events_find, NULL, on_row))
        events_free(&events);
}

/* Last-Event-ID, as header or in the query for those who cannot set headers. False: answered. */
static bool read_place(struct call *call, struct cursor *ret_from)
{
    const char *text = http_request_header(call->request, "Last-Event-ID");
    struct cache_place place;
    struct buf nothing = BUF_WITH_LIMIT(1);

    if (text == NULL)
        text = http_target_query(&call->target, "last_event_id");
    cursor_init(ret_from);
    if (text == NULL || text[0] == '\0')
        return true;
    if (strcmp(text, FINAL_ID) == 0) {
        call_answer(&call, 204, &nothing);
        return false;
    }
    if (!cache_place_parse(text, strlen(text), &place)) {
        call_fail_as(&call, 400, "client_error",
                     "Last-Event-ID is no id of an event of a stream: <number>-<number>");
        return false;
    }
    cursor_init_at(ret_from, place);
    return true;
}

void events_begin(struct call *call)
{
    struct gateway *gateway = call->gateway;
    struct events *events;
    struct cursor from;
    struct wire_id id;
    struct err err;

    if (call_job_id(call, &id, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    if (!read_place(call, &from))
        return;
    if (strcmp(http_request_method(call->request), "HEAD") == 0) { /* there is nothing to follow */
        call_answer_text(&call, 200, MEDIA_TYPE_EVENTS, "");
        return;
    }
    events = xcalloc(1, sizeof(*events));
    events->gateway = gateway;
    events->call = call;
    events->from = from;
    events->final = BUF_WITH_LIMIT(EVENT_SIZE_MAX);
    events->timer = loop_timer_new(gateway->loop, on_timer, events);
    LIST_INSERT_HEAD(&gateway->event_streams->all, events, link);
    metric_set(metrics_of(gateway->metrics, GATEWAY_METRIC_gateway_event_streams),
               ++gateway->event_streams->count);
    call->state = events;
    events_ask_row(events);
}

int gateway_event_streams_open(struct gateway *gateway, struct err *err)
{
    (void)err;
    gateway->event_streams = xcalloc(1, sizeof(*gateway->event_streams));
    LIST_INIT(&gateway->event_streams->all);
    return 0;
}

void gateway_event_streams_end(struct event_streams *streams)
{
    struct events *events, *next;

    for (events = LIST_FIRST(&streams->all); events != NULL; events = next) {
        next = LIST_NEXT(events, link);
        if (events->stream == NULL)
            continue; /* its row is being asked for */
        http_stream_end(&events->stream);
        call_end_stream(&events->call, 200);
        events_free(&events);
    }
}

/* Their calls are ended by calls_close(). */
void gateway_event_streams_close(struct event_streams **streams_p)
{
    struct event_streams *streams = *streams_p; /* events_free() still looks at it */
    struct events *events;

    if (streams == NULL)
        return;
    while ((events = LIST_FIRST(&streams->all)) != NULL) {
        http_stream_abort(&events->stream);
        events_free(&events);
    }
    mem_free(streams_p);
}
