/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Steps that wait for a time or for a person. What they wait for is a row, written once: whoever
 * goes on with the run finds when it is due, and what was decided. The clock is the ledger's; ours
 * says only when to ask it again. A run that does nothing else does not stay: run_rest() gives its
 * attempt back until the first wait is over. A decision wakes it by a command that is written with
 * it; the one who is here finds it by looking.
 */

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chains/coordinator_int.h"

#define LOOK_MS 1000 /* at what was decided */
#define LOOKED_AT_MAX 1000

PG_STATEMENT(wait_open,
             "SELECT left_ms, approved, payload FROM chain_wait_open($1, $2, $3, $4, $5, $6, $7)");
/* With wait_open: the row, and that of its run, outlive a crash of the server. Before its run is
 * put off, since nobody would be asked any more, and a time would begin anew, without them. */
PG_STATEMENT(wait_keep, "SELECT EXISTS (SELECT FROM chain_run WHERE run_id = $1 AND token = $2), "
                        "set_config('synchronous_commit', 'on', true)");
PG_STATEMENT(wait_decided,
             "SELECT run_id, step FROM chain_wait WHERE run_id = ANY($1) AND approval "
             "AND approved IS NOT NULL");
/* Behind wait_open: whoever asks later hears the same, also a coordinator that is over. */
PG_STATEMENT(
    wait_cancel,
    "UPDATE chain_wait SET approved = false, decided_at = now(), payload = "
    "'{\"canceled\":true}' WHERE run_id = $1 AND step = $2 AND approved IS NULL AND due_at > "
    "now()");

struct wait {
    TAILQ_ENTRY(wait) link;
    LIST_ENTRY(wait) run_link;
    struct run *run;
    uint32_t step;
    double seconds;
    bool settle;     /* nobody is asked any more: it is over by now, or it is canceled */
    bool settling;   /* … and that was asked */
    bool keep;       /* it is long: its row is to be on disk */
    bool keeping;    /* … and that was asked */
    char *text;      /* until when, or what is shown */
    uint64_t due_ms; /* to ask again; 0: at once */
    bool asking;
};

static struct wait *wait_of(const struct run *run, uint32_t step)
{
    struct wait *wait;

    LIST_FOREACH(wait, &run->waits, run_link)
    {
        if (wait->step == step)
            return wait;
    }
    return NULL;
}

void wait_begin(struct run *run, struct plan_todo *todo)
{
    struct wait *wait = wait_of(run, todo->step);

    if (wait != NULL) { /* it is to end */
        wait->settle = true;
        wait->due_ms = 0;
        return;
    }
    wait = xcalloc(1, sizeof(*wait));
    wait->run = run;
    wait->step = todo->step;
    wait->settle = todo->settle;
    wait->seconds = todo->wait_seconds;
    wait->text = TAKE(todo->text);
    if (wait->text != NULL) {
        wait->text = xrealloc(wait->text, todo->text_size + 1, 1);
        wait->text[todo->text_size] = '\0';
    }
    TAILQ_INSERT_TAIL(&run->coordinator->waits, wait, link);
    LIST_INSERT_HEAD(&run->waits, wait, run_link);
}

static void wait_free(struct wait *wait)
{
    TAILQ_REMOVE(&wait->run->coordinator->waits, wait, link);
    LIST_REMOVE(wait, run_link);
    free(wait->text);
    free(wait);
}

void wait_forget(const struct run *run)
{
    struct wait *wait;

    while ((wait = LIST_FIRST(&run->waits)) != NULL)
        wait_free(wait);
}

static struct wait *wait_find(struct coordinator *coordinator, const struct wire_id *job, int step)
{
    struct wait *wait;

    TAILQ_FOREACH(wait, &coordinator->waits, link)
    {
        if ((int)wait->step == step && job_id_equal(&wait->run->job, job))
            return wait;
    }
    return NULL;
}

uint64_t waits_due_ms(const struct run *run)
{
    const struct wait *wait;
    uint64_t due_ms = 0;

    LIST_FOREACH(wait, &run->waits, run_link)
    {
        if (wait->asking || wait->due_ms == 0 || wait->settle)
            return 0;
        if (due_ms == 0 || wait->due_ms < due_ms)
            due_ms = wait->due_ms;
    }
    return due_ms;
}

/* ---- how it ends ---- */

static void wait_end(struct wait *wait, json_t *output, const char *class, const char *why)
{
    struct run *run = wait->run;
    uint32_t step = wait->step;

    wait_free(wait);
    plan_on_waited(run->plan, step, output, class, why);
    run_pump(run);
}

static void wait_canceled(struct wait *wait)
{
    wait_end(wait, NULL, "canceled", "the run has failed");
}

static void wait_rejected(struct wait *wait, const char *payload)
{
    json_t *json = json_loads(payload, JSON_DECODE_ANY, NULL);
    const char *reason = json_string_value(json_object_get(json, "reason"));
    bool canceled = json_is_true(json_object_get(json, "canceled"));
    char why[300];

    (void)snprintf(why, sizeof(why), "it was rejected%s%.200s", reason == NULL ? "" : ": ",
                   reason == NULL ? "" : reason);
    if (canceled)
        wait_canceled(wait);
    else
        wait_end(wait, NULL, "rejected", why);
    json_decref(json);
}

static void wait_approved(struct wait *wait, const char *payload)
{
    json_t *output = json_loads(payload, JSON_DECODE_ANY, NULL);

    wait_end(wait, output != NULL ? output : json_null(), NULL, NULL);
}

static void alarm_set(struct coordinator *coordinator, uint64_t due_ms)
{
    uint64_t now_ms = loop_now_ms(coordinator->loop);

    if (coordinator->alarm_ms != 0 && coordinator->alarm_ms <= due_ms)
        return;
    coordinator->alarm_ms = due_ms;
    loop_timer_start(coordinator->alarm, due_ms > now_ms ? due_ms - now_ms : 0, 0);
}

static void wait_ask(struct wait *wait);

static void wait_until(struct wait *wait, uint64_t left_ms)
{
    struct coordinator *coordinator = wait->run->coordinator;

    if (left_ms >= REST_MS_MIN && !wait->keeping) {
        wait->keep = true;
        wait->due_ms = 0;
        wait_ask(wait);
        return;
    }
    wait->due_ms = loop_now_ms(coordinator->loop) + left_ms;
    alarm_set(coordinator, wait->due_ms);
    run_rest(wait->run);
}

static void wait_take(struct wait *wait, const struct pg_answer *answer)
{
    const struct coordinator *coordinator = wait->run->coordinator;
    bool approval = coordinator->chain->steps[wait->step].kind == CHAIN_APPROVAL;
    int64_t left_ms = pg_i64(answer, 0, 0, 0);
    const char *payload = pg_c(answer, 0, 0, 2);

    if (!pg_is_null(answer, 0, 0, 1) && pg_bool(answer, 0, 0, 1))
        wait_approved(wait, payload);
    else if (!pg_is_null(answer, 0, 0, 1))
        wait_rejected(wait, payload);
    else if (left_ms > 0 && wait->settling)
        wait_canceled(wait);
    else if (left_ms > 0 && wait->settle)
        wait->due_ms = 0; /* it was asked before that was known */
    else if (left_ms > 0)
        wait_until(wait, (uint64_t)left_ms);
    else if (approval)
        wait_end(wait, NULL, "expired", "nobody has approved it in time");
    else
        wait_end(wait, json_null(), NULL, NULL);
}

/* ---- questions ---- */

/* The run, and so the wait, may be forgotten when the answer comes. */
struct asked {
    LIST_ENTRY(asked) link;
    struct coordinator *coordinator;
    uint64_t id;
    uint32_t step;
};

static void on_opened(void *opaque, const struct pg_answer *answer)
{
    OWNED(mem_free) struct asked *asked = opaque;
    struct run *run = run_find(asked->coordinator, asked->id);
    struct wait *wait = run == NULL ? NULL : wait_of(run, asked->step);

    LIST_REMOVE(asked, link);
    if (wait == NULL)
        return;
    wait->asking = false;
    if (answer->err.code == ERR_OK && wait->keeping && !pg_bool(answer, 1, 0, 0)) {
        run_fail(&run, ERROR_CLASS_HANDED_BACK, "a newer attempt has the run, or Postgres lost it");
    } else if (answer->err.code == ERR_OK && pg_row_count(answer, 0) == 1) {
        wait_take(wait, answer);
    } else if (answer->err.code != ERR_OK && err_class(answer->err.code) == ERR_CLASS_REJECT) {
        wait_end(wait, NULL, "bad_input", answer->err.text); /* there is no such day */
    } else {
        log_warn("wait_not_opened", LOG_STR("run", wait->run->job_text), LOG_ERR(&answer->err));
        wait->due_ms = loop_now_ms(asked->coordinator->loop) + LOOK_MS;
    }
}

static void wait_ask(struct wait *wait)
{
    const struct run *run = wait->run;
    const struct chain_step *step = &run->coordinator->chain->steps[wait->step];
    bool approval = step->kind == CHAIN_APPROVAL;
    uint64_t limit_ms = step->run_limit_ms != 0 ? step->run_limit_ms : run->limit_ms;
    struct asked *asked = xcalloc(1, sizeof(*asked));
    struct pg_batch *batch = pg_batch_new();
    struct err err;

    *asked = (struct asked){.coordinator = run->coordinator, .id = run->id, .step = wait->step};
    pg_add(batch, &wait_open);
    pg_bind_id(batch, &run->job);
    pg_bind_c(batch, step->name);
    pg_bind_i16(batch, run->round);
    pg_bind_bool(batch, approval);
    pg_bind_c(batch, approval ? wait->text : NULL);
    pg_bind_double(batch, approval ? (double)limit_ms / 1000 : wait->seconds);
    pg_bind_c(batch, approval || wait->text == NULL ? "" : wait->text);
    wait->keeping = wait->keep;
    if (wait->keeping) {
        pg_add(batch, &wait_keep);
        pg_bind_id(batch, &run->job);
        pg_bind_i64(batch, (int64_t)run->id);
    }
    wait->settling = wait->settle;
    if (wait->settling) {
        pg_add(batch, &wait_cancel);
        pg_bind_id(batch, &run->job);
        pg_bind_c(batch, step->name);
    }
    wait->asking = pg_connected(run->coordinator->pg) &&
                   pg_send(run->coordinator->pg, &batch, COORDINATOR_QUERY_MS, on_opened, asked,
                           &err) == 0;
    pg_batch_free(&batch);
    if (wait->asking)
        LIST_INSERT_HEAD(&run->coordinator->asked, asked, link);
    else
        free(asked);
}

void wait_close(struct coordinator *coordinator)
{
    struct asked *asked;

    while ((asked = LIST_FIRST(&coordinator->asked)) != NULL) {
        LIST_REMOVE(asked, link);
        free(asked);
    }
}

static void on_decided(void *opaque, const struct pg_answer *answer)
{
    struct coordinator *coordinator = opaque;

    coordinator->deciding = false;
    for (size_t i = 0; answer->err.code == ERR_OK && i < pg_row_count(answer, 0); i++) {
        struct wire_id job = pg_id(answer, 0, i, 0);
        struct wait *wait = wait_find(coordinator, &job,
                                      chain_find(coordinator->chain, pg_c(answer, 0, i, 1)));

        if (wait != NULL && !wait->asking)
            wait_ask(wait);
    }
}

/* At so many at a time, those first that were looked at longest ago. */
static void look_decided(struct coordinator *coordinator)
{
    const struct wire_id *jobs[LOOKED_AT_MAX];
    struct wait *wait, *next, *last = TAILQ_LAST(&coordinator->waits, waits);
    struct pg_batch *batch;
    size_t count = 0;
    struct err err;

    coordinator->decided_ms = loop_now_ms(coordinator->loop) + LOOK_MS;
    if (last == NULL || coordinator->deciding || !pg_connected(coordinator->pg))
        return;
    for (wait = TAILQ_FIRST(&coordinator->waits); wait != NULL && count < LOOKED_AT_MAX;
         wait = next) {
        next = wait == last ? NULL : TAILQ_NEXT(wait, link);
        if (coordinator->chain->steps[wait->step].kind == CHAIN_APPROVAL) {
            jobs[count++] = &wait->run->job;
            TAILQ_REMOVE(&coordinator->waits, wait, link);
            TAILQ_INSERT_TAIL(&coordinator->waits, wait, link);
        }
    }
    if (count == 0)
        return;
    batch = pg_batch_new();
    pg_add(batch, &wait_decided);
    pg_bind_array(batch, PG_ID, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_id(batch, jobs[i]);
    coordinator->deciding = pg_send(coordinator->pg, &batch, COORDINATOR_QUERY_MS, on_decided,
                                    coordinator, &err) == 0;
    pg_batch_free(&batch);
}

static void ask_due(struct coordinator *coordinator)
{
    uint64_t now_ms = loop_now_ms(coordinator->loop);
    struct wait *wait;

    TAILQ_FOREACH(wait, &coordinator->waits, link)
    {
        if (!wait->asking && wait->due_ms <= now_ms)
            wait_ask(wait);
    }
}

void wait_tick(struct coordinator *coordinator)
{
    ask_due(coordinator);
    if (coordinator->decided_ms <= loop_now_ms(coordinator->loop))
        look_decided(coordinator);
}

/* What was not due yet, or could not be asked about, is left to the next alarm or tick. */
void wait_on_alarm(struct coordinator *coordinator)
{
    uint64_t next_ms = UINT64_MAX, now_ms = loop_now_ms(coordinator->loop);
    const struct wait *wait;

    coordinator->alarm_ms = 0;
    ask_due(coordinator);
    TAILQ_FOREACH(wait, &coordinator->waits, link)
    {
        if (!wait->asking && wait->due_ms > now_ms && wait->due_ms < next_ms)
            next_ms = wait->due_ms;
    }
    if (next_ms != UINT64_MAX)
        alarm_set(coordinator, next_ms);
}
