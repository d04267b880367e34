/* SPDX-License-Identifier: Apache-2.0 */

#include "chains/coordinator_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/rng.h"
#include "schema/model_plan.h"
#include "schema/topics.h"

#define SWEEP_MS 5000
#define END_FIRST_MS 5000 /* a run ends by its own limit, and not by those of its jobs */
#define SWEEP_SOON_MS 50
#define SWEEP_LATER_MS 500
#define CLOSED_MAX 1000
#define DEPTH_MAX 8
#define REST_JOBS_MAX 1000 /* what is planned again afterwards */
#define RUN_RESTS "it waits, and holds no slot meanwhile"

PG_STATEMENT(begin_run,
             "SELECT tenant, targets, round, depth, again FROM chain_begin($1, $2, $3, $4)");
/* Those that a planner has asked for: calls of chainlets have round 0. */
PG_STATEMENT(begin_known,
             "SELECT DISTINCT ON (s.step, s.item) s.step, s.item, s.round, s.job_id, "
             "coalesce(j.state, 0) FROM chain_step s LEFT JOIN job j ON j.id = s.job_id WHERE "
             "s.run_id = $1 AND s.round > 0 ORDER BY s.step, s.item, (j.state = 3 AND NOT $2) IS "
             "TRUE DESC, "
             "s.round DESC");
/* Whether this round ends its coordinators: five of them in more than ten minutes, in which none of
 * its steps has ended and none is under way. Sooner, whoever kills them may be somebody else. */
PG_STATEMENT(begin_losses,
             "SELECT count(*) >= 5 AND max(a.ended_at) - min(a.ended_at) > interval '10 minutes' "
             "FROM attempt a JOIN job r ON r.id = a.job_id AND r.round = a.round WHERE a.job_id = "
             "$1 AND a.error_class = 16 AND a.ended_at > (SELECT coalesce(max(CASE WHEN j.state IN "
             "(1, 2) THEN 'infinity' ELSE j.state_at END), '-infinity') FROM chain_step s JOIN job "
             "j ON j.id = s.job_id WHERE s.run_id = $1)");
/* Whether the cache may be asked: what an attempt before has submitted in this round has its row,
 * for there was none, or it was put off, when all of its jobs were over. */
PG_STATEMENT(begin_clean,
             "SELECT NOT EXISTS (SELECT FROM attempt a JOIN job r ON r.id = a.job_id AND r.round = "
             "a.round WHERE a.job_id = $1 AND a.token < $2 AND (a.error_class, a.error_message) IS "
             "DISTINCT FROM (12::smallint, $3::text))");
/* Of a run again: what it takes over. */
PG_STATEMENT(begin_reused, "SELECT step, item, job_id FROM chain_reused($1)");
/* How long this round has been under way as an attempt begins: since its first one. */
PG_STATEMENT(
    begin_age,
    "SELECT coalesce(extract(epoch FROM now() - min(a.started_at)) * 1000, 0)::bigint FROM "
    "attempt a JOIN job r ON r.id = a.job_id AND r.round = a.round WHERE a.job_id = $1");

/* ---- runs ---- */

static void run_free(struct run **run_p)
{
    struct run *run = TAKE(*run_p);
    struct known *known, *next_known;
    struct item *item;

    HASH_DEL(run->coordinator->runs, run);
    while ((item = LIST_FIRST(&run->items)) != NULL)
        item_free(&item);
    wait_forget(run);
    urls_forget(run);
    HASH_ITER(hh, run->known, known, next_known)
    {
        HASH_DEL(run->known, known);
        free(known);
    }
    plan_free(&run->plan);
    json_decref(run->input);
    json_decref(run->given);
    free(run->targets);
    free(run);
}

void run_fail(struct run **run_p, enum error_class class, const char *text)
{
    struct coordinator *coordinator = (*run_p)->coordinator;
    uint64_t id = (*run_p)->id;

    log_info("run_failed", LOG_STR("run", (*run_p)->job_text),
             LOG_STR("class", error_class_name(class)), LOG_STR("error", text));
    coordinator->calls.on_error(coordinator->opaque, id, class, text);
    run_free(run_p);
}

static void run_succeed(struct run *run, const struct plan_todo *todo)
{
    struct coordinator *coordinator = run->coordinator;

    coordinator->calls.on_output(coordinator->opaque, run->id, todo->text, todo->text_size);
    coordinator->closed[coordinator->closed_count++] = run->job;
    if (coordinator->closed_count == CLOSED_MAX)
        look_close(coordinator);
    run_free(&run);
}

static void run_finish(struct run *run, struct plan_todo *todo)
{
    if (todo->error != NULL)
        run_fail(&run, todo->error_class, todo->error);
    else
        run_succeed(run, todo);
    free(todo->text);
}

/* A chain cannot be given it. */
static void run_refuse_body(struct run *run, const struct plan_todo *todo)
{
    struct plan_final final = {.state = JOB_FAILED,
                               .error_class = ERROR_CLASS_BAD_INPUT,
                               .class = error_class_name(ERROR_CLASS_BAD_INPUT)};
    char why[400];

    (void)snprintf(why, sizeof(why), "input: it is %s, and the input of a chain must be JSON",
                   todo->text_type);
    final.error_message = WIRE_TEXT_OF(why);
    free(todo->text);
    (void)plan_on_final(run->plan, todo->step, todo->item, &final);
}

/* False: it has failed, and its run with it. */
static bool run_submit(struct run *run, struct plan_todo *todo)
{
    const struct chain_step *step = &run->coordinator->chain->steps[todo->step];
    char why[256];

    if (step->kind == CHAIN_HTTP) {
        url_begin(run, todo);
        return true;
    }
    if (todo->text_type != NULL && run->targets[todo->step].chain) {
        run_refuse_body(run, todo);
        return true;
    }
    if (todo->settle) {
        item_settle(run, todo);
        return true;
    }
    if (run->targets[todo->step].deployment[0] != '\0') {
        item_begin(run, todo);
        return true;
    }
    free(todo->text);
    (void)snprintf(why, sizeof(why), "step %s: there is no model '%s' with %s '%s'", step->name,
                   step->model, step->deployment[0] == '\0' ? "environment" : "deployment",
                   step->deployment[0] == '\0' ? step->environment : step->deployment);
    run_fail(&run, ERROR_CLASS_MODEL_MISSING, why);
    return false;
}

static void run_cancel_one(struct run *run, const struct plan_todo *todo)
{
    if (run->coordinator->chain->steps[todo->step].kind == CHAIN_HTTP)
        url_cancel(run, todo);
    else
        item_cancel(run, todo);
}

/* What an answer of jq is for: the run may be forgotten by then. */
struct evaluation {
    struct coordinator *coordinator;
    uint64_t id;
    uint32_t step;
};

struct run *run_find(struct coordinator *coordinator, uint64_t id)
{
    struct run *run;

    HASH_FIND(hh, coordinator->runs, &id, sizeof(id), run);
    return run;
}

static void on_values(void *opaque, json_t *values, const char *error)
{
    OWNED(mem_free) struct evaluation *evaluation = opaque;
    struct run *run = run_find(evaluation->coordinator, evaluation->id);

    if (run == NULL) {
        json_decref(values);
        return;
    }
    run->evaluation_count--;
    plan_on_values(run->plan, evaluation->step, values, error);
    run_pump(run);
}

static void run_evaluate(struct run *run, struct plan_todo *todo)
{
    struct evaluation *evaluation = xcalloc(1, sizeof(*evaluation));

    run->evaluation_count++;
    *evaluation = (struct evaluation){
        .coordinator = run->coordinator, .id = run->id, .step = todo->step};
    jq_pool_ask(run->coordinator->jq, &todo->text, todo->text_size, on_values, evaluation);
}

void run_pump(struct run *run)
{
    struct coordinator *coordinator = run->coordinator;
    struct plan_todo todo;
    bool waits = false;

    while (plan_next(run->plan, &todo)) {
        switch (todo.type) {
        case PLAN_SUBMIT:
            if (!run_submit(run, &todo))
                return;
            break;
        case PLAN_CANCEL:
            run_cancel_one(run, &todo);
            break;
        case PLAN_EVALUATE:
            run_evaluate(run, &todo);
            break;
        case PLAN_WAIT:
            wait_begin(run, &todo);
            waits = true;
            break;
        case PLAN_FINISH:
            run_finish(run, &todo);
            return;
        }
    }
    cache_tick(coordinator);
    urls_tick(coordinator);
    if (waits)
        wait_tick(coordinator);
    run_rest(run);
}

void run_rest(struct run *run)
{
    struct coordinator *coordinator = run->coordinator;
    uint64_t now_ms = loop_now_ms(coordinator->loop), due_ms = waits_due_ms(run);

    if (run->end_ms != 0 && run->end_ms < due_ms)
        due_ms = run->end_ms;
    if (!LIST_EMPTY(&run->items) || run->evaluation_count > 0 || run->url_count > 0 ||
        run->job_count > REST_JOBS_MAX || due_ms < now_ms + REST_MS_MIN)
        return;
    coordinator->calls.on_put_off(coordinator->opaque, run->id, due_ms - now_ms, RUN_RESTS);
    run_free(&run);
}

/* ---- begin ---- */

static void copy_member(char to[CHAIN_NAME_SIZE], const json_t *target, const char *name)
{
    const char *text = json_string_value(json_object_get(target, name));

    mem_copy_text_at(to, CHAIN_NAME_SIZE, text == NULL ? "" : text);
}

/* Those of one run are mostly those of the run before, which are kept for that. */
static void run_read_targets(struct run *run, const char *text)
{
    struct coordinator *coordinator = run->coordinator;
    const struct chain *chain = coordinator->chain;
    size_t size = chain->step_count * sizeof(*run->targets);
    json_t *all;

    if (coordinator->targets_text != NULL && strcmp(coordinator->targets_text, text) == 0) {
        run->targets = xmemdup(coordinator->targets, size);
        return;
    }
    all = json_loads(text, 0, NULL);
    run->targets = xcalloc(chain->step_count, sizeof(*run->targets));
    run->given = json_incref(json_object_get(all, "$rerun"));
    for (size_t i = 0; i < chain->step_count; i++) {
        const json_t *from = json_object_get(all, chain->steps[i].name);
        struct target *to = &run->targets[i];

        copy_member(to->model, from, "model");
        copy_member(to->deployment, from, "deployment");
        copy_member(to->environment, from, "environment");
        copy_member(to->pool, from, "pool");
        to->shard = (uint32_t)json_integer_value(json_object_get(from, "shard"));
        to->run_limit_ms = (uint64_t)json_integer_value(json_object_get(from, "run_limit_ms"));
        to->chain = json_is_true(json_object_get(from, "chain"));
    }
    json_decref(all);
    if (run->given != NULL)
        return;
    mem_free(&coordinator->targets_text);
    free(coordinator->targets);
    coordinator->targets_text = xstrdup(text);
    coordinator->targets = xmemdup(run->targets, size);
}

static void run_read_known(struct run *run, const struct pg_answer *answer)
{
    for (size_t i = 0; i < pg_row_count(answer, 1); i++) {
        int step = chain_find(run->coordinator->chain, pg_c(answer, 1, i, 0));
        struct known *known;

        if (step < 0)
            continue;
        known = xcalloc(1, sizeof(*known));
        known->key.step = (uint32_t)step;
        known->key.item = (uint32_t)pg_u64(answer, 1, i, 1);
        known->round = (uint32_t)pg_u64(answer, 1, i, 2);
        known->job = pg_id(answer, 1, i, 3);
        known->state = (enum job_state)pg_i64(answer, 1, i, 4);
        HASH_ADD(hh, run->known, key, sizeof(known->key), known);
        if ((run->coordinator->chain->undos >> step & 1) != 0 && known->round < run->round &&
            known->round > run->undone_round)
            run->undone_round = known->round;
    }
}

/* Its own jobs, if it has made one all the same, come first. What can be undone may have been. */
static void run_read_reused(struct run *run, const struct pg_answer *answer)
{
    if (run->coordinator->chain->undos != 0)
        return;
    for (size_t i = 0; i < pg_row_count(answer, 0); i++) {
        int step = chain_find(run->coordinator->chain, pg_c(answer, 0, i, 0));
        struct known *known = xcalloc(1, sizeof(*known)), *own;

        known->key.step = step < 0 ? UINT32_MAX : (uint32_t)step;
        known->key.item = (uint32_t)pg_u64(answer, 0, i, 1);
        known->job = pg_id(answer, 0, i, 2);
        known->state = JOB_SUCCEEDED;
        HASH_FIND(hh, run->known, &known->key, sizeof(known->key), own);
        if (step < 0 || own != NULL)
            free(known);
        else
            HASH_ADD(hh, run->known, key, sizeof(known->key), known);
    }
}

/* Its jobs have little longer than the run has. */
static void run_set_end(struct run *run, const struct pg_answer *answer)
{
    uint64_t limit_ms = run->coordinator->chain->run_limit_ms;
    uint64_t age_ms = limit_ms == 0 ? 0 : pg_u64(answer, run->number > 1 ? 3 : 2, 0, 0);
    uint64_t left_ms = age_ms < limit_ms ? limit_ms - age_ms : 1;

    if (limit_ms == 0)
        return;
    run->end_ms = loop_now_ms(run->coordinator->loop) + left_ms;
    if (left_ms + END_FIRST_MS < run->limit_ms)
        run->limit_ms = left_ms + END_FIRST_MS;
}

static void run_plan(struct run *run)
{
    struct coordinator *coordinator = run->coordinator;
    bool known = run->known != NULL;
    const char *name;
    json_t *value;

    run->plan = plan_new(coordinator->chain, TAKE(run->input), run->job_text);
    json_object_foreach(run->given, name, value)
    {
        int step = chain_find(coordinator->chain, name);

        if (step >= 0)
            plan_give(run->plan, (uint32_t)step, json_incref(value));
    }
    run_pump(run);
    if (known)
        look_run(coordinator);
}

static void on_reused(void *opaque, const struct pg_answer *answer)
{
    OWNED(mem_free) struct beginning *beginning = opaque;
    struct run *run = run_find(beginning->coordinator, beginning->id);

    LIST_REMOVE(beginning, link);
    if (run == NULL)
        return;
    if (answer->err.code != ERR_OK) {
        log_warn("run_not_begun", LOG_STR("run", run->job_text), LOG_ERR(&answer->err));
        run_fail(&run, ERROR_CLASS_HANDED_BACK, "Postgres does not answer");
        return;
    }
    run_read_reused(run, answer);
    run_plan(run);
}

/* Takes the batch, and frees it where it cannot be sent. */
static int run_send(struct run *run, struct pg_batch *batch, pg_done_fn *done, struct err *err)
{
    struct coordinator *coordinator = run->coordinator;
    struct beginning *beginning = xcalloc(1, sizeof(*beginning));
    int r = pg_send(coordinator->pg, &batch, COORDINATOR_QUERY_MS, done, beginning, err);

    beginning->coordinator = coordinator;
    beginning->id = run->id;
    pg_batch_free(&batch);
    if (r < 0)
        free(beginning);
    else
        LIST_INSERT_HEAD(&coordinator->beginnings, beginning, link);
    return r;
}

static void run_ask_reused(struct run *run)
{
    struct pg_batch *batch = pg_batch_new();
    struct err err;

    pg_add(batch, &begin_reused);
    pg_bind_id(batch, &run->job);
    if (run_send(run, batch, on_reused, &err) < 0)
        run_fail(&run, ERROR_CLASS_HANDED_BACK, err.text);
}

static bool has_cache(const struct chain *chain)
{
    for (size_t i = 0; i < chain->step_count; i++) {
        if (chain->steps[i].cache_seconds != 0)
            return true;
    }
    return false;
}

/* Without a row of the job nobody was here before. */
static void run_read_clean(struct run *run, const struct pg_answer *answer)
{
    const struct chain *chain = run->coordinator->chain;
    size_t at = (run->number > 1 ? 3 : 2) + (chain->run_limit_ms != 0 ? 1u : 0u);

    run->asks_cache = has_cache(chain) && pg_bool(answer, at, 0, 0);
}

static void on_begun(void *opaque, const struct pg_answer *answer)
{
    OWNED(mem_free) struct beginning *beginning = opaque;
    struct run *run = run_find(beginning->coordinator, beginning->id);

    LIST_REMOVE(beginning, link);
    if (run == NULL)
        return;
    if (answer->err.code != ERR_OK) {
        log_warn("run_not_begun", LOG_STR("run", run->job_text), LOG_ERR(&answer->err));
        run_fail(&run, ERROR_CLASS_HANDED_BACK, "Postgres does not answer");
        return;
    }
    if (pg_row_count(answer, 0) == 0) {
        run_fail(&run, ERROR_CLASS_HANDED_BACK, "a newer attempt has the run");
        return;
    }
    if (pg_i64(answer, 0, 0, 3) > DEPTH_MAX) {
        run_fail(&run, ERROR_CLASS_BAD_INPUT, "chains within chains are over 8 deep");
        return;
    }
    if (run->number > 1 && pg_bool(answer, 2, 0, 0)) {
        run_fail(&run, ERROR_CLASS_RUN_STUCK,
                 "it has lost five coordinators in ten minutes, and no step has ended in between");
        return;
    }
    mem_copy_text(run->tenant, pg_c(answer, 0, 0, 0));
    run_read_targets(run, pg_c(answer, 0, 0, 1));
    run->round = (uint32_t)pg_u64(answer, 0, 0, 2);
    run->again = run->again || pg_bool(answer, 0, 0, 4);
    run_read_known(run, answer);
    run_set_end(run, answer);
    run_read_clean(run, answer);
    if (run->given != NULL)
        run_ask_reused(run);
    else
        run_plan(run);
}

static int run_ask(struct run *run, struct wire_bytes input, struct err *err)
{
    struct coordinator *coordinator = run->coordinator;
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &begin_run);
    pg_bind_id(batch, &run->job);
    pg_bind_i64(batch, (int64_t)run->id);
    pg_bind_c(batch, coordinator->deployment);
    pg_bind_bytes(batch, input.size <= JOB_INPUT_INLINE_MAX ? input : (struct wire_bytes){NULL, 0});
    pg_add(batch, &begin_known);
    pg_bind_id(batch, &run->job);
    pg_bind_bool(batch, coordinator->chain->undos != 0); /* a success may have been undone */
    if (run->number > 1) {
        pg_add(batch, &begin_losses);
        pg_bind_id(batch, &run->job);
    }
    if (coordinator->chain->run_limit_ms != 0) {
        pg_add(batch, &begin_age);
        pg_bind_id(batch, &run->job);
    }
    if (has_cache(coordinator->chain)) {
        pg_add(batch, &begin_clean);
        pg_bind_id(batch, &run->job);
        pg_bind_i64(batch, (int64_t)run->id);
        pg_bind_c(batch, RUN_RESTS);
    }
    return run_send(run, batch, on_begun, err);
}

void coordinator_run(struct coordinator *coordinator, const struct coordinator_run *asked)
{
    struct run *run = xcalloc(1, sizeof(*run));
    json_error_t where;
    char why[256];
    struct err err;

    run->coordinator = coordinator;
    run->id = asked->id;
    run->job = asked->job;
    run->limit_ms = run->whole_limit_ms = asked->limit_ms;
    run->number = asked->number;
    run->again = asked->number > 1;
    job_id_format(&run->job, run->job_text);
    if (asked->trace.size < sizeof(run->trace) && asked->trace.size > 0)
        memcpy(run->trace, asked->trace.text, asked->trace.size);
    LIST_INIT(&run->items);
    LIST_INIT(&run->waits);
    HASH_ADD(hh, coordinator->runs, id, sizeof(run->id), run);
    if (asked->input.size > PLAN_STEP_INPUT_MAX) {
        run_fail(&run, ERROR_CLASS_BAD_INPUT, "the input of a run of a chain is over 16 MiB");
        return;
    }
    run->input = json_loadb((const char *)asked->input.bytes, asked->input.size, JSON_DECODE_ANY,
                            &where);
    if (run->input == NULL) {
        (void)snprintf(why, sizeof(why), "the input is no JSON: %.160s", where.text);
        run_fail(&run, ERROR_CLASS_BAD_INPUT, why);
    } else if (run_ask(run, asked->input, &err) < 0) {
        run_fail(&run, ERROR_CLASS_HANDED_BACK, err.text);
    }
}

bool coordinator_cancel(struct coordinator *coordinator, uint64_t id)
{
    struct run *run = run_find(coordinator, id);

    if (run == NULL)
        return false;
    run_free(&run);
    coordinator->sweep_again = true;
    loop_timer_start(coordinator->sweep, SWEEP_SOON_MS, 0);
    return true;
}

/* ---- life ---- */

/* Those whose chain's limit is over: what still runs of them is canceled. */
static void runs_end_late(struct coordinator *coordinator)
{
    uint64_t now_ms = loop_now_ms(coordinator->loop);
    struct run *run, *next;
    struct plan_todo todo;
    char why[100];

    if (coordinator->chain->run_limit_ms == 0)
        return;
    (void)snprintf(why, sizeof(why), "the run was not over after %llu s (timeout_seconds)",
                   (unsigned long long)coordinator->chain->run_limit_ms / 1000);
    HASH_ITER(hh, coordinator->runs, run, next)
    {
        if (run->plan == NULL || run->end_ms > now_ms)
            continue;
        if (coordinator->chain->undos != 0) {
            run->end_ms = UINT64_MAX;
            plan_stop(run->plan, why);
            run_pump(run);
            continue;
        }
        plan_cancel(run->plan);
        while (plan_next(run->plan, &todo))
            run_cancel_one(run, &todo);
        run_fail(&run, ERROR_CLASS_STEP_FAILED, why);
    }
}

static void on_tick(void *opaque)
{
    struct coordinator *coordinator = opaque;
    struct item *item, *next;

    HASH_ITER(hh, coordinator->items, item, next)
    {
        if (item->stage == ITEM_TO_SEND)
            item_send(item);
    }
    runs_end_late(coordinator);
    cache_tick(coordinator);
    urls_tick(coordinator);
    wait_tick(coordinator);
    look_run(coordinator);
    look_close(coordinator);
}

/* Soon after a cancel once more: jobs whose rows were not there yet. */
static void on_sweep(void *opaque)
{
    struct coordinator *coordinator = opaque;

    look_sweep(coordinator);
    loop_timer_start(coordinator->sweep, coordinator->sweep_again ? SWEEP_LATER_MS : SWEEP_MS, 0);
    coordinator->sweep_again = false;
}

static void on_alarm(void *opaque)
{
    wait_on_alarm(opaque);
}

static void on_wake(void *opaque, const void *bytes, size_t size)
{
    item_on_wake(opaque, bytes, size);
}

static void on_subscribed(void *opaque)
{
    struct coordinator *coordinator = opaque;
    struct item *item, *next;

    HASH_ITER(hh, coordinator->items, item, next)
    {
        item->look_ms = 0; /* a wake-up may have been missed */
    }
}

static int open_stores(struct coordinator *coordinator, const struct coordinator_options *options,
                       struct err *err)
{
    static const struct cache_listener_calls listener_calls = {.on_message = on_wake,
                                                               .on_subscribed = on_subscribed};
    /* What is asked is keyed: a plan that was made while tables were empty must not scan them. And
     * nothing but a call (coordinator_call.c) and a wait that a run is put off for waits for the
     * disk: what a crash of the server can take back is younger than every row of a step that it
     * keeps, since those are committed later and WAL is flushed in order. Else each run that begins
     * costs an fsync, one after the other.
     */
    const struct pg_options pg = {
        .url = options->postgres,
        .application = "headrace host-chain",
        .in_flight_max = 2 * MODEL_SLOTS_MAX, /* a run asks two things at once, at most */
        .settings = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off "
                    "-c jit=off -c plan_cache_mode=force_generic_plan -c synchronous_commit=off"};
    const struct cache_options cache = {.url = options->redis};
    int r = pg_open(coordinator->loop, &pg, &coordinator->pg, err);

    if (r == 0 && options->blobs[0] != '\0')
        r = blob_store_open(coordinator->loop, options->blobs, &coordinator->blobs, err);
    if (r < 0 || options->redis[0] == '\0')
        return r;
    r = cache_open(coordinator->loop, &cache, &coordinator->cache, err);
    if (r == 0)
        r = cache_listen(coordinator->cache, coordinator->boot, &listener_calls, coordinator,
                         &coordinator->listener, err);
    return r;
}

static bool address_is_good(const struct sockaddr *address, socklen_t address_size, void *opaque)
{
    const struct coordinator *coordinator = opaque;

    (void)address_size;
    return address_allowed(&coordinator->http_allow, address);
}

/* Only for who asks for it: a chain of models has no business outside. */
static int open_http(struct coordinator *coordinator, const struct coordinator_options *options,
                     struct err *err)
{
    const struct http_client_options http = {.check_address = address_is_good,
                                             .check_opaque = coordinator};
    const struct chain *chain = coordinator->chain;
    bool calls = false;
    int r;

    for (size_t i = 0; i < chain->step_count; i++)
        calls = calls || chain->steps[i].kind == CHAIN_HTTP;
    if (!calls)
        return 0;
    if (options->secrets.size > 0)
        coordinator->secrets = json_loadb((const char *)options->secrets.bytes,
                                          options->secrets.size, 0, NULL);
    r = address_allow_parse(options->http_allow, &coordinator->http_allow, err);
    return r < 0 ? err_wrap(err, "http-allow")
                 : http_client_open(coordinator->loop, &http, &coordinator->http, err);
}

static int open_queue(struct coordinator *coordinator, const struct coordinator_options *options,
                      struct err *err)
{
    const struct queue_producer_options producer = {
        .queue = {.bootstrap = options->kafka,
                  .client_id = coordinator->boot,
                  .properties = options->kafka_properties}};
    int r = queue_producer_open(coordinator->loop, &producer, &coordinator->producer, err);

    if (r == 0)
        coordinator->intake = queue_producer_topic(coordinator->producer, topic_name(TOPIC_INTAKE));
    return r;
}

int coordinator_open(struct loop *loop, const struct coordinator_options *options,
                     const struct chain *chain, const struct coordinator_calls *calls, void *opaque,
                     struct coordinator **ret_coordinator, struct err *err)
{
    struct coordinator *coordinator = xcalloc(1, sizeof(*coordinator));
    uint64_t boot;
    int r;

    coordinator->loop = loop;
    coordinator->chain = chain;
    coordinator->calls = *calls;
    coordinator->opaque = opaque;
    coordinator->deployment = xstrdup(options->deployment);
    coordinator->decoder = wire_decoder_new();
    coordinator->wake_decoder = wire_decoder_new();
    coordinator->record = BUF_WITH_LIMIT(COORDINATOR_RECORD_MAX);
    coordinator->jq = jq_pool_new(loop, chain);
    coordinator->closed = xcalloc(CLOSED_MAX, sizeof(*coordinator->closed));
    coordinator->cached = xcalloc(COORDINATOR_CACHED_MAX, sizeof(*coordinator->cached));
    rng_secret_bytes(&boot, sizeof(boot));
    (void)snprintf(coordinator->boot, sizeof(coordinator->boot), CHAIN_BOOT_PREFIX "%016llx",
                   (unsigned long long)boot);
    coordinator->tick = loop_timer_new(loop, on_tick, coordinator);
    coordinator->sweep = loop_timer_new(loop, on_sweep, coordinator);
    coordinator->alarm = loop_timer_new(loop, on_alarm, coordinator);
    TAILQ_INIT(&coordinator->waits);
    r = open_stores(coordinator, options, err);
    if (r == 0)
        r = open_queue(coordinator, options, err);
    if (r == 0)
        r = open_http(coordinator, options, err);
    if (r < 0) {
        coordinator_close(&coordinator);
        return r;
    }
    loop_timer_start(coordinator->tick, COORDINATOR_TICK_MS, COORDINATOR_TICK_MS);
    loop_timer_start(coordinator->sweep, SWEEP_MS, 0);
    *ret_coordinator = coordinator;
    return 0;
}

/* Adapters drop what is unanswered, so what is pinned is freed after them. */
void coordinator_close(struct coordinator **coordinator_p)
{
    struct coordinator *coordinator = TAKE(*coordinator_p);
    struct beginning *beginning;
    struct run *run, *next;
    struct item *item, *next_item;

    if (coordinator == NULL)
        return;
    loop_timer_free(&coordinator->tick);
    loop_timer_free(&coordinator->sweep);
    loop_timer_free(&coordinator->alarm);
    cache_listener_close(&coordinator->listener);
    cache_close(&coordinator->cache);
    queue_producer_close(&coordinator->producer);
    blob_store_close(&coordinator->blobs);
    pg_close(&coordinator->pg);
    urls_close(coordinator);
    HASH_ITER(hh, coordinator->items, item, next_item)
    {
        item->pin_count = 0;
    }
    HASH_ITER(hh, coordinator->runs, run, next)
    {
        run_free(&run);
    }
    jq_pool_close(&coordinator->jq);
    while ((item = LIST_FIRST(&coordinator->forgotten)) != NULL) {
        item->pin_count = 0;
        item_free(&item);
    }
    while ((beginning = LIST_FIRST(&coordinator->beginnings)) != NULL) {
        LIST_REMOVE(beginning, link);
        free(beginning);
    }
    wait_close(coordinator);
    wire_decoder_free(&coordinator->decoder);
    wire_decoder_free(&coordinator->wake_decoder);
    buf_done(&coordinator->record);
    mem_free(&coordinator->targets_text);
    free(coordinator->targets);
    free(coordinator->closed);
    free(coordinator->cached);
    json_decref(coordinator->secrets);
    free(coordinator->deployment);
    free(coordinator);
}
