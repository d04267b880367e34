/* SPDX-License-Identifier: Apache-2.0 */

/*
 * One connection to Postgres on the loop.
 *
 *   waiting ──write──▶ sent ──answer──▶ gone
 *
 * Happy path: pg_send puts an op at the end of `waiting`; while connected, ops are written at
 * once as a pipeline of statements and one sync, and move to `sent`. What the server says is read
 * in order: one result and a NULL for each statement, then the sync, which ends the op. A
 * statement that this connection has not seen is prepared first, by an op with a sync of its own,
 * so that no failing batch in front of it can take the preparation with it.
 *
 * Writing stops while the socket takes no more, so libpq's buffer stays at one batch beyond it.
 *
 * Failures: when the connection breaks, sent batches are answered ERR_UNKNOWN, waiting ones keep
 * waiting up to their timeouts. Connecting is tried again after 100 ms, doubling up to 2 s. libpq
 * may close its socket while it connects, so the watch is made anew around each PQconnectPoll. Of
 * several hosts (a primary and its standbys, target_session_attrs=read-write) each attempt tries
 * all; one that does not even refuse uses an attempt up, and the next begins behind it.
 *
 * At shutdown: pg_close drops everything; it may be called from inside an answer.
 * Thread: the loop's.
 */

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "brokers/pg_int.h"

#define RECONNECT_MS_MIN 100
#define RECONNECT_MS_MAX 2000
#define IN_FLIGHT_MAX 1000
#define LACK_LOG_US 10000000
#define CHANNELS_MAX 4

enum pg_state {
    PG_IDLE, /* waits for the back-off to pass */
    PG_CONNECTING,
    PG_READY,
};

struct pg_op {
    struct pg_op *next;
    struct pg_batch *batch; /* NULL: prepares `prepared` */
    struct pg_prepared *prepared;
    pg_done_fn *done; /* NULL: nobody asks */
    void *opaque;
    uint64_t deadline_ms; /* UINT64_MAX: none */
    size_t at;            /* statement whose result is awaited */
    struct pg_answer answer;
    struct pg_result result;
};

struct pg_queue {
    struct pg_op *first, **end;
};

struct pg_prepared {
    struct pg_prepared *next;
    const struct pg_statement *statement;
    char name[80];
    char error[ERR_TEXT_SIZE / 2]; /* why it could not be prepared; "" when it could */
};

struct pg_channel {
    const char *name;
    char sql[80];
    struct pg_statement statement;
    pg_notify_fn *call;
    void *opaque;
};

struct pg {
    struct loop *loop;
    struct pg_options options;
    char *url, *application, *settings;
    enum pg_state state;
    PGconn *conn;
    struct loop_watch *watch;
    struct loop_timer *connect_timer; /* the back-off, or the end of patience with a connect */
    struct loop_timer *deadline_timer;
    struct loop_timer *kick; /* the rest of a turn's work, outside of any caller */
    struct pg_queue waiting, sent;
    uint32_t in_flight; /* batches in both, without preparations */
    struct pg_prepared *prepared;
    uint32_t prepared_count;
    struct pg_channel channels[CHANNELS_MAX];
    size_t channel_count;
    pg_state_fn *on_state;
    void *on_state_opaque;
    uint64_t backoff_ms;
    size_t first_host; /* of several in the url, the one to try first */
    uint64_t armed_ms; /* deadline_timer fires then */
    bool broken;       /* to be torn down by the next kick */
    bool dead;         /* closed from inside a callback */
    uint32_t inside;   /* callbacks that are running */
    uint64_t lack_logged_us;
    char last_error[ERR_TEXT_SIZE / 2];
};

static void pg_connect_begin(struct pg *pg);
static void pg_write(struct pg *pg);
static void pg_break(struct pg *pg, const char *why);

/* ---- queues and answers ---- */

static void queue_init(struct pg_queue *queue)
{
    queue->first = NULL;
    queue->end = &queue->first;
}

static void queue_push(struct pg_queue *queue, struct pg_op *op)
{
    op->next = NULL;
    *queue->end = op;
    queue->end = &op->next;
}

static struct pg_op *queue_shift(struct pg_queue *queue)
{
    struct pg_op *op = queue->first;

    if (op == NULL)
        return NULL;
    queue->first = op->next;
    if (queue->first == NULL)
        queue->end = &queue->first;
    op->next = NULL;
    return op;
}

static void queue_append(struct pg_queue *to, struct pg_queue *from)
{
    for (struct pg_op *op = queue_shift(from); op != NULL; op = queue_shift(from))
        queue_push(to, op);
}

static void op_free(struct pg_op **op_p)
{
    struct pg_op *op = TAKE(*op_p);

    if (op == NULL)
        return;
    pg_result_clear(&op->result);
    pg_batch_free(&op->batch);
    mem_free(&op);
}

static void pg_free(struct pg *pg)
{
    struct pg_op *op;

    while ((op = queue_shift(&pg->waiting)) != NULL || (op = queue_shift(&pg->sent)) != NULL)
        op_free(&op);
    mem_free(&pg->url);
    mem_free(&pg->application);
    mem_free(&pg->settings);
    mem_free(&pg);
}

static void pg_enter(struct pg *pg)
{
    pg->inside++;
}

/* False when the connection was closed meanwhile: the caller must not touch it any more. */
static bool pg_leave(struct pg *pg)
{
    assert(pg->inside > 0);
    pg->inside--;
    if (!pg->dead)
        return true;
    if (pg->inside == 0)
        pg_free(pg);
    return false;
}

/* Answers and frees the op. False: see pg_leave(). */
static bool pg_answer(struct pg *pg, struct pg_op *op)
{
    if (op->batch != NULL) {
        assert(pg->in_flight > 0);
        pg->in_flight--;
    }
    op->answer.result = &op->result;
    pg_enter(pg);
    if (op->done != NULL)
        op->done(op->opaque, &op->answer);
    op_free(&op);
    return pg_leave(pg);
}

/* ---- deadlines ---- */

static void pg_arm(struct pg *pg, uint64_t deadline_ms)
{
    uint64_t now_ms = loop_now_ms(pg->loop);

    if (deadline_ms >= pg->armed_ms)
        return;
    pg->armed_ms = deadline_ms;
    loop_timer_start(pg->deadline_timer, deadline_ms > now_ms ? deadline_ms - now_ms : 0, 0);
}

static uint64_t queue_deadline(const struct pg_queue *queue)
{
    uint64_t deadline_ms = UINT64_MAX;

    for (const struct pg_op *op = queue->first; op != NULL; op = op->next) {
        if (op->deadline_ms < deadline_ms)
            deadline_ms = op->deadline_ms;
    }
    return deadline_ms;
}

/* Takes what is overdue out of `waiting`. */
static void waiting_expire(struct pg *pg, uint64_t now_ms, struct pg_queue *expired)
{
    struct pg_queue kept;
    struct pg_op *op;

    queue_init(&kept);
    while ((op = queue_shift(&pg->waiting)) != NULL)
        queue_push(op->deadline_ms <= now_ms ? expired : &kept, op);
    queue_append(&pg->waiting, &kept);
}

static void on_deadline(void *opaque)
{
    struct pg *pg = opaque;
    uint64_t now_ms = loop_now_ms(pg->loop), next_ms;
    struct pg_queue expired;
    struct pg_op *op;

    pg->armed_ms = UINT64_MAX;
    queue_init(&expired);
    waiting_expire(pg, now_ms, &expired);
    pg_enter(pg);
    while ((op = queue_shift(&expired)) != NULL) {
        if (pg->dead) {
            op_free(&op);
            continue;
        }
        if (pg->state == PG_READY)
            (void)err_set(&op->answer.err, ERR_TIMEOUT, "Postgres did not get to it in time");
        else
            (void)err_set(&op->answer.err, ERR_UNAVAILABLE, "Postgres: %s", pg->last_error);
        (void)pg_answer(pg, op);
    }
    if (!pg->dead && queue_deadline(&pg->sent) <= now_ms)
        pg_break(pg, "no answer in time");
    if (!pg_leave(pg))
        return;
    next_ms = queue_deadline(&pg->waiting);
    if (queue_deadline(&pg->sent) < next_ms)
        next_ms = queue_deadline(&pg->sent);
    if (next_ms != UINT64_MAX && !pg->broken)
        pg_arm(pg, next_ms);
}

/* ---- breaking and connecting ---- */

static void pg_disconnect(struct pg *pg)
{
    struct pg_prepared *next;

    loop_watch_free(&pg->watch);
    PQfinish(pg->conn);
    pg->conn = NULL;
    for (struct pg_prepared *p = pg->prepared; p != NULL; p = next) {
        next = p->next;
        mem_free(&p);
    }
    pg->prepared = NULL;
    pg->prepared_count = 0;
}

/* Remembers that the connection is of no more use; the kick does the rest, outside of the caller.
 */
static void pg_break(struct pg *pg, const char *why)
{
    if (pg->broken)
        return;
    pg->broken = true;
    pg_copy_message(pg->last_error, sizeof(pg->last_error), why);
    loop_timer_start(pg->kick, 0, 0);
}

static bool pg_tell_state(struct pg *pg, bool connected)
{
    if (pg->on_state == NULL)
        return true;
    pg_enter(pg);
    pg->on_state(pg->on_state_opaque, pg, connected);
    return pg_leave(pg);
}

static void pg_teardown(struct pg *pg)
{
    bool was_ready = pg->state == PG_READY;
    struct pg_queue lost = pg->sent;
    struct pg_op *op;

    if (lost.first == NULL)
        queue_init(&lost);
    queue_init(&pg->sent);
    pg->broken = false;
    pg->state = PG_IDLE;
    pg_disconnect(pg);
    loop_timer_start(pg->connect_timer, was_ready ? 0 : pg->backoff_ms, 0);
    pg->backoff_ms = was_ready ? RECONNECT_MS_MIN : pg->backoff_ms * 2;
    if (pg->backoff_ms > RECONNECT_MS_MAX)
        pg->backoff_ms = RECONNECT_MS_MAX;
    pg_enter(pg);
    if (was_ready)
        (void)pg_tell_state(pg, false);
    while ((op = queue_shift(&lost)) != NULL) {
        if (pg->dead) {
            op_free(&op);
            continue;
        }
        (void)err_set(&op->answer.err, ERR_UNKNOWN, "the outcome is not known: %s", pg->last_error);
        op->answer.sqlstate[0] = '\0';
        (void)pg_answer(pg, op);
    }
    if (pg_leave(pg) && pg->waiting.first != NULL)
        pg_arm(pg, queue_deadline(&pg->waiting));
}

static void on_kick(void *opaque)
{
    struct pg *pg = opaque;

    if (pg->broken)
        pg_teardown(pg);
    else
        pg_write(pg);
}

static void on_watch(void *opaque, unsigned events);

static bool pg_watch_again(struct pg *pg, unsigned events)
{
    struct err err;

    if (loop_watch_new(pg->loop, PQsocket(pg->conn), on_watch, pg, &pg->watch, &err) < 0) {
        pg_break(pg, err.text);
        return false;
    }
    loop_watch_set(pg->watch, events);
    return true;
}

static void channels_listen(struct pg *pg);

static void pg_ready(struct pg *pg)
{
    struct pg_queue waited = pg->waiting;

    if (waited.first == NULL)
        queue_init(&waited);
    queue_init(&pg->waiting);
    loop_timer_stop(pg->connect_timer);
    pg->state = PG_READY;
    pg->last_error[0] = '\0';
    if (PQsetnonblocking(pg->conn, 1) != 0 || PQenterPipelineMode(pg->conn) != 1) {
        queue_append(&pg->waiting, &waited);
        pg_break(pg, "no pipeline mode");
        return;
    }
    pg_enter(pg);
    channels_listen(pg);
    (void)pg_tell_state(pg, true);
    queue_append(&pg->waiting, &waited);
    if (pg_leave(pg))
        loop_timer_start(pg->kick, 0, 0);
}

static void pg_connect_step(struct pg *pg)
{
    PostgresPollingStatusType status;

    loop_watch_free(&pg->watch); /* libpq may close this socket now and open another */
    status = PQconnectPoll(pg->conn);
    switch (status) {
    case PGRES_POLLING_READING:
        (void)pg_watch_again(pg, LOOP_READABLE);
        return;
    case PGRES_POLLING_WRITING:
        (void)pg_watch_again(pg, LOOP_WRITABLE);
        return;
    case PGRES_POLLING_OK:
        if (pg_watch_again(pg, LOOP_READABLE))
            pg_ready(pg);
        return;
    case PGRES_POLLING_FAILED:
    case PGRES_POLLING_ACTIVE:
        pg_break(pg, PQerrorMessage(pg->conn));
    }
}

static void pg_connect_begin(struct pg *pg)
{
    pg->state = PG_CONNECTING;
    pg->conn = pg_connect(&pg->options, pg->first_host, false);
    if (pg->conn == NULL || PQstatus(pg->conn) == CONNECTION_BAD) {
        pg_break(pg, pg->conn == NULL ? "no memory" : PQerrorMessage(pg->conn));
        return;
    }
    loop_timer_start(pg->connect_timer, pg->options.connect_timeout_ms, 0);
    (void)pg_watch_again(pg, LOOP_WRITABLE);
}

static void on_connect_timer(void *opaque)
{
    struct pg *pg = opaque;

    if (pg->state == PG_IDLE) {
        pg_connect_begin(pg);
        return;
    }
    if (pg->state == PG_CONNECTING) {
        /* libpq goes on to the next host when one refuses, not when one is silent. */
        pg->first_host++;
        pg_break(pg, "connecting took too long");
    }
}

/* ---- writing ---- */

static struct pg_prepared *prepared_find(struct pg *pg, const struct pg_statement *statement)
{
    for (struct pg_prepared *p = pg->prepared; p != NULL; p = p->next) {
        if (p->statement == statement)
            return p;
    }
    return NULL;
}

/* Writes a preparation with a sync of its own. Types are those of the batch that needs it. */
static bool prepare_write(struct pg *pg, const struct pg_batch *batch, size_t call)
{
    const struct pg_statement *statement = batch->calls[call].statement;
    struct pg_prepared *prepared = xcalloc(1, sizeof(*prepared));
    struct pg_op *op = xcalloc(1, sizeof(*op));
    struct pg_wire_params params;

    prepared->statement = statement;
    prepared->next = pg->prepared;
    pg->prepared = prepared;
    (void)snprintf(prepared->name, sizeof(prepared->name), "%.60s_%u", statement->name,
                   ++pg->prepared_count);
    op->prepared = prepared;
    op->deadline_ms = UINT64_MAX;
    queue_push(&pg->sent, op);
    pg_batch_params(batch, call, &params);
    return PQsendPrepare(pg->conn, prepared->name, statement->sql, params.count, params.oids) ==
               1 &&
           PQpipelineSync(pg->conn) == 1;
}

static bool op_write(struct pg *pg, const struct pg_op *op)
{
    struct pg_wire_params params;

    for (size_t i = 0; i < op->batch->call_count; i++) {
        const struct pg_prepared *prepared = prepared_find(pg, op->batch->calls[i].statement);

        pg_batch_params(op->batch, i, &params);
        if (PQsendQueryPrepared(pg->conn, prepared->name, params.count, params.values, params.sizes,
                                params.formats, 1) != 1)
            return false;
    }
    return PQpipelineSync(pg->conn) == 1;
}

/* Writes what waits, as long as the socket takes it. */
static void pg_write(struct pg *pg)
{
    int left;

    if (pg->state != PG_READY || pg->broken)
        return;
    left = PQflush(pg->conn);
    while (left == 0 && pg->waiting.first != NULL) {
        const struct pg_batch *batch = pg->waiting.first->batch;
        struct pg_op *op;
        bool written = true;

        for (size_t i = 0; i < batch->call_count && written; i++) {
            if (prepared_find(pg, batch->calls[i].statement) == NULL)
                written = prepare_write(pg, batch, i);
        }
        op = queue_shift(&pg->waiting);
        queue_push(&pg->sent, op);
        if (!written || !op_write(pg, op)) {
            pg_break(pg, PQerrorMessage(pg->conn));
            return;
        }
        left = PQflush(pg->conn);
        if (op->batch->has_fault && left == 0)
            fault_point(op->batch->fault);
    }
    if (left < 0)
        pg_break(pg, PQerrorMessage(pg->conn));
    else
        loop_watch_set(pg->watch, LOOP_READABLE | (left == 1 ? LOOP_WRITABLE : 0));
}

/* ---- reading ---- */

/* A table, column or function of ours that this database does not have: whoever asked tries again,
 * so people must be told why nothing moves. */
static void lack_log(struct pg *pg, const struct pg_answer *answer)
{
    uint64_t now_us = clock_mono_us();

    if (strncmp(answer->sqlstate, "42", 2) != 0 ||
        (pg->lack_logged_us != 0 && now_us - pg->lack_logged_us < LACK_LOG_US))
        return;
    pg->lack_logged_us = now_us;
    log_error("ledger_lacks", LOG_ERR(&answer->err),
              LOG_STR("hint", "a migration is missing; `headrace migrate` applies it"));
}

static bool prepare_done(struct pg *pg, struct pg_op *op, const PGresult *result)
{
    struct pg_answer answer = {0};

    if (PQresultStatus(result) == PGRES_COMMAND_OK)
        return true;
    pg_answer_refuse(&answer, result, op->prepared->statement->name);
    lack_log(pg, &answer);
    mem_copy_text(op->prepared->error, answer.err.text);
    return true;
}

/* A statement that could not be prepared must be tried again by the next batch that needs it: its
 * table may exist by then. */
static void prepared_forget_failed(struct pg *pg, const struct pg_op *op)
{
    for (size_t i = 0; i < op->batch->call_count; i++) {
        struct pg_prepared **p = &pg->prepared;

        while (*p != NULL && (*p)->statement != op->batch->calls[i].statement)
            p = &(*p)->next;
        if (*p != NULL && (*p)->error[0] != '\0') {
            struct pg_prepared *failed = *p;

            *p = failed->next;
            mem_free(&failed);
        }
    }
}

/* One result of a batch's statement. Takes the result. */
static void op_result(struct pg *pg, struct pg_op *op, PGresult *result)
{
    const struct pg_prepared *prepared;
    const struct pg_statement *statement;

    assert(op->at < op->batch->call_count && op->at == op->result.count);
    op->result.of[op->result.count++] = result;
    switch (PQresultStatus(result)) {
    case PGRES_TUPLES_OK:
    case PGRES_COMMAND_OK:
    case PGRES_EMPTY_QUERY:
    case PGRES_PIPELINE_ABORTED:
        return;
    default:
        break;
    }
    statement = op->batch->calls[op->at].statement;
    op->answer.failed = op->at;
    pg_answer_refuse(&op->answer, result, statement->name);
    prepared = prepared_find(pg, statement);
    if (prepared != NULL && prepared->error[0] != '\0')
        (void)err_set(&op->answer.err, ERR_INTERNAL, "%s", prepared->error);
}

/* The sync of the first sent op was read: it is over. False: see pg_leave(). */
static bool op_synced(struct pg *pg)
{
    struct pg_op *op = queue_shift(&pg->sent);

    if (op->batch == NULL) {
        op_free(&op);
        return true;
    }
    if (op->answer.err.code != ERR_OK)
        prepared_forget_failed(pg, op);
    return pg_answer(pg, op);
}

/* Gives each listener one call for each notification. False: see pg_leave(). */
static bool pg_notifications(struct pg *pg)
{
    PGnotify *notify;
    bool alive = true;

    while (alive && !pg->dead && (notify = PQnotifies(pg->conn)) != NULL) {
        pg_enter(pg);
        for (size_t i = 0; i < pg->channel_count && !pg->dead; i++) {
            if (strcmp(pg->channels[i].name, notify->relname) == 0)
                pg->channels[i].call(pg->channels[i].opaque, notify->extra);
        }
        PQfreemem(notify);
        alive = pg_leave(pg);
    }
    return alive;
}

/* Reads all results that have arrived. False: see pg_leave(). */
static bool pg_results(struct pg *pg)
{
    int null_count = 0;

    while (pg->sent.first != NULL && !PQisBusy(pg->conn) && null_count < 2) {
        struct pg_op *op = pg->sent.first;
        PGresult *result = PQgetResult(pg->conn);

        if (result == NULL) { /* the end of a statement's results */
            null_count++;
            op->at = op->result.count;
            continue;
        }
        null_count = 0;
        if (PQresultStatus(result) == PGRES_PIPELINE_SYNC) {
            PQclear(result);
            if (!op_synced(pg))
                return false;
            if (pg->broken)
                return true;
        } else if (op->batch == NULL) {
            (void)prepare_done(pg, op, result);
            PQclear(result);
        } else if (op->result.count < op->batch->call_count) {
            op_result(pg, op, result);
        } else { /* a FATAL of the server in the place of the sync */
            pg_break(pg, PQresultErrorMessage(result));
            PQclear(result);
            return true;
        }
        if (PQstatus(pg->conn) == CONNECTION_BAD) {
            pg_break(pg, PQerrorMessage(pg->conn));
            return true;
        }
    }
    return true;
}

static void on_watch(void *opaque, unsigned events)
{
    struct pg *pg = opaque;

    if (pg->state == PG_CONNECTING) {
        pg_connect_step(pg);
        return;
    }
    if (pg->broken)
        return;
    if (events & (LOOP_READABLE | LOOP_GONE)) {
        bool readable = PQconsumeInput(pg->conn) == 1;

        pg_enter(pg);
        if (!pg_results(pg) || !pg_notifications(pg)) {
            (void)pg_leave(pg);
            return;
        }
        if (!pg_leave(pg))
            return;
        if (!readable || PQstatus(pg->conn) == CONNECTION_BAD) {
            pg_break(pg, PQerrorMessage(pg->conn));
            return;
        }
    }
    pg_write(pg);
}

/* ---- the interface ---- */

int pg_open(struct loop *loop, const struct pg_options *options, struct pg **ret_pg,
            struct err *err)
{
    char *why = NULL;
    PQconninfoOption *parsed = PQconninfoParse(options->url, &why);
    struct pg *pg;

    if (parsed == NULL) {
        char text[ERR_TEXT_SIZE / 2];

        pg_copy_message(text, sizeof(text), why == NULL ? "no memory" : why);
        PQfreemem(why);
        return err_set(err, ERR_USAGE, "address of Postgres: %s", text);
    }
    PQconninfoFree(parsed);
    pg = xcalloc(1, sizeof(*pg));
    pg->loop = loop;
    pg->options = *options;
    pg->options.url = pg->url = xstrdup(options->url);
    pg->options.application = pg->application = xstrdup(
        options->application == NULL ? "headrace" : options->application);
    if (options->settings != NULL)
        pg->options.settings = pg->settings = xstrdup(options->settings);
    if (pg->options.connect_timeout_ms == 0)
        pg->options.connect_timeout_ms = PG_CONNECT_TIMEOUT_MS;
    if (pg->options.in_flight_max == 0)
        pg->options.in_flight_max = IN_FLIGHT_MAX;
    queue_init(&pg->waiting);
    queue_init(&pg->sent);
    pg->armed_ms = UINT64_MAX;
    pg->backoff_ms = RECONNECT_MS_MIN;
    pg->connect_timer = loop_timer_new(loop, on_connect_timer, pg);
    pg->deadline_timer = loop_timer_new(loop, on_deadline, pg);
    pg->kick = loop_timer_new(loop, on_kick, pg);
    mem_copy_text(pg->last_error, "not connected yet");
    loop_timer_start(pg->connect_timer, 0, 0);
    *ret_pg = pg;
    return 0;
}

void pg_close(struct pg **pg_p)
{
    struct pg *pg = TAKE(*pg_p);

    if (pg == NULL)
        return;
    pg_disconnect(pg);
    loop_timer_free(&pg->connect_timer);
    loop_timer_free(&pg->deadline_timer);
    loop_timer_free(&pg->kick);
    pg->dead = true;
    if (pg->inside == 0)
        pg_free(pg);
}

bool pg_connected(const struct pg *pg)
{
    return pg->state == PG_READY && !pg->broken;
}

uint32_t pg_in_flight(const struct pg *pg)
{
    return pg->in_flight;
}

const char *pg_last_error(const struct pg *pg)
{
    return pg->last_error;
}

void pg_on_state(struct pg *pg, pg_state_fn *call, void *opaque)
{
    pg->on_state = call;
    pg->on_state_opaque = opaque;
}

void pg_set_application(struct pg *pg, const char *application)
{
    mem_free(&pg->application);
    pg->options.application = pg->application = xstrdup(application);
}

void pg_reset(struct pg *pg)
{
    if (pg->state != PG_IDLE)
        pg_break(pg, "reset by its user");
}

int pg_send(struct pg *pg, struct pg_batch **batch_p, uint32_t timeout_ms, pg_done_fn *done,
            void *opaque, struct err *err)
{
    struct pg_op *op;
    int r = pg_batch_check(*batch_p, err);

    if (r < 0)
        return r;
    if (pg->in_flight >= pg->options.in_flight_max)
        return err_set(err, ERR_FULL, "%u batches wait for Postgres already", pg->in_flight);
    op = xcalloc(1, sizeof(*op));
    op->batch = TAKE(*batch_p);
    op->done = done;
    op->opaque = opaque;
    op->deadline_ms = timeout_ms == 0 ? UINT64_MAX : loop_now_ms(pg->loop) + timeout_ms;
    queue_push(&pg->waiting, op);
    pg->in_flight++;
    pg_arm(pg, op->deadline_ms);
    /* In a turn of its own, so that no answer comes from inside this call; what a turn sends is
     * written together. */
    if (pg->state == PG_READY)
        loop_timer_start(pg->kick, 0, 0);
    return 0;
}

/* ---- notifications ---- */

static void on_listening(void *opaque, const struct pg_answer *answer)
{
    struct pg_channel *channel = opaque;

    if (answer->err.code == ERR_OK)
        channel->call(channel->opaque, NULL);
}

static void channel_listen(struct pg *pg, struct pg_channel *channel)
{
    struct pg_op *op = xcalloc(1, sizeof(*op));

    op->batch = pg_batch_new();
    pg_add(op->batch, &channel->statement);
    op->done = on_listening;
    op->opaque = channel;
    op->deadline_ms = UINT64_MAX;
    queue_push(&pg->waiting, op);
    pg->in_flight++;
}

static void channels_listen(struct pg *pg)
{
    for (size_t i = 0; i < pg->channel_count; i++)
        channel_listen(pg, &pg->channels[i]);
}

void pg_listen(struct pg *pg, const char *name, pg_notify_fn *call, void *opaque)
{
    struct pg_channel *channel = &pg->channels[pg->channel_count];

    assert(pg->channel_count < CHANNELS_MAX);
    for (const char *c = name; *c != '\0'; c++)
        assert((*c >= 'a' && *c <= 'z') || *c == '_'); /* a constant of ours, put into SQL */
    pg->channel_count++;
    channel->name = name;
    channel->call = call;
    channel->opaque = opaque;
    (void)snprintf(channel->sql, sizeof(channel->sql), "LISTEN %s", name);
    channel->statement = (struct pg_statement){.name = "listen", .sql = channel->sql};
    if (pg->state == PG_READY) {
        channel_listen(pg, channel);
        loop_timer_start(pg->kick, 0, 0);
    }
}
