/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: whatever happens to two coordinators that share the runs of a random chain, each run ends
 * as the ledger's results say it must, each result is used once, no step has two jobs, a Submit
 * that may be a second one says so, and of a run that is over nothing goes on.
 *
 * Method: the real coordinator and planner over a world of memory (chain_fakes.h) and one seed. It
 * crashes coordinators between any two answers, takes runs from those that live on, loses and
 * repeats records and wake-ups, answers in any order, lets Postgres, Kafka and Redis be away, and
 * cancels runs. Models are not deterministic: an output exists once, in the ledger. Steps wait for
 * times and for somebody's word; a run that does nothing else is given back, and woken, or not.
 *
 *     test_chain_coordinator [FIRST_SEED [COUNT]]
 */

#include "chain_world.h"

#include <stdio.h>

#include "base/log.h"
#include "base/settings.h"
#include "chains/coordinator.h"
#include "chains/plan.h"

#define WORLDS 250
#define STEPS_MAX 400000
#define CALM_MS 30000 /* after the last run has ended, for what is left of them */

/* ---- intake ---- */

static bool was_produced(struct world *world, const struct wire_id *id)
{
    const struct record *record;
    struct message message;
    struct err err;

    TAILQ_FOREACH(record, &world->intake, link)
    {
        if (message_decode(world->decoder, record->bytes, record->size, &message, &err) == 0 &&
            message.type == MESSAGE_SUBMIT && job_id_equal(&message.submit.id, id))
            return true;
    }
    return job_find(world, id) != NULL;
}

/* A second Submit says that it may be one: else its first attempt may run ahead of the row. Only an
 * attempt that is over and has not heard of it may be wrong. */
static void check_mark(struct world *world, const void *bytes, size_t size)
{
    struct message message;
    struct wire_id id;
    struct err err;

    if (message_decode(world->decoder, bytes, size, &message, &err) < 0)
        fail_msg("%s", err.text);
    if (message.type != MESSAGE_SUBMIT || message.submit.repeat || world->takeovers > 0)
        return;
    id = message.submit.id;
    assert_false(was_produced(world, &id));
}

static int world_produce(struct loop *loop, const void *bytes, size_t size)
{
    struct world *world = loop->world;
    struct record *record;

    check_mark(world, bytes, size);
    if (fault(world, 4))
        return ERR_UNAVAILABLE; /* it is not in the log */
    record = xmalloc(sizeof(*record) + size);
    record->size = size;
    memcpy(record->bytes, bytes, size);
    TAILQ_INSERT_TAIL(&world->intake, record, link);
    return fault(world, 4) ? ERR_UNKNOWN : ERR_OK;
}

/* Planned again, a job is asked for with the same input. */
static void take_submit(struct world *world, const struct message_submit *submit)
{
    struct job *job = job_find(world, &submit->id);
    char *input = xmemdup(submit->input.bytes, submit->input.size + 1);

    input[submit->input.size] = '\0';
    if (job != NULL) {
        assert_string_equal(job->input, input);
        world->repeats++;
        free(input);
        return;
    }
    job = xcalloc(1, sizeof(*job));
    job->id = submit->id;
    job->run = (size_t)(run_find(world, &submit->parent) - world->runs);
    memcpy(job->step, submit->step.text, submit->step.size);
    memcpy(job->gateway, submit->gateway.text, submit->gateway.size);
    job->item = (uint32_t)submit->step_item;
    job->round = (uint32_t)submit->step_round;
    job->state = JOB_QUEUED;
    job->input = input;
    TAILQ_INSERT_TAIL(&world->jobs, job, link);
}

/* The record of a job that is over. */
static void encode_completed(const struct job *job, struct buf *to)
{
    struct message_completed completed = {.id = job->id,
                                          .round = 1,
                                          .tenant = WIRE_TEXT_OF("tenant"),
                                          .model = WIRE_TEXT_OF("m"),
                                          .deployment = WIRE_TEXT_OF("d"),
                                          .accepted_us = 1,
                                          .finished_us = 1};
    struct err err;

    completed.state = job->state;
    completed.attempts = job->tried;
    completed.error_class = job->state == JOB_FAILED ? ERROR_CLASS_MODEL_ERROR : ERROR_CLASS_NONE;
    if (job->output != NULL)
        completed.output = (struct wire_bytes){(const uint8_t *)job->output, strlen(job->output)};
    if (message_encode(MESSAGE_COMPLETED, &completed, to, &err) < 0)
        fail_msg("%s", err.text);
}

static void wake(struct world *world, const struct job *job)
{
    OWNED(buf_done) struct buf record = BUF_WITH_LIMIT(4096);
    struct message_wake fields = {.id = job->id, .state = job->state};
    struct err err;

    encode_completed(job, &record);
    if (chance(&world->rng, 50)) /* of a large one it has no record */
        fields.completed = (struct wire_bytes){record.bytes, record.size};
    for (unsigned i = 0; i < PROCESSES; i++) {
        struct loop *loop = &world->loops[i];

        if (loop->listener == NULL || strcmp(loop->boot, job->gateway) != 0)
            continue;
        if (message_encode(MESSAGE_WAKE, &fields, &event_add(loop, EVENT_WAKE, NULL)->bytes, &err) <
            0)
            fail_msg("%s", err.text);
    }
}

static void job_end(struct world *world, struct job *job, enum job_state state)
{
    job->state = state;
    if (state == JOB_SUCCEEDED)
        job->output = xasprintf("{\"n\":%llu,\"done\":%s}",
                                (unsigned long long)++world->output_count,
                                chance(&world->rng, 50) ? "true" : "false");
    job->cached = !fault(world, 30);
    if (!fault(world, 20))
        wake(world, job);
    if (fault(world, 10))
        wake(world, job);
}

static void take_record(struct world *world)
{
    struct record *record = TAILQ_FIRST(&world->intake);
    struct message message;
    struct job *job;
    struct err err;

    if (record == NULL)
        return;
    if (message_decode(world->decoder, record->bytes, record->size, &message, &err) < 0)
        fail_msg("%s", err.text);
    if (message.type == MESSAGE_SUBMIT)
        take_submit(world, &message.submit);
    else if (message.type == MESSAGE_CANCEL &&
             (job = job_find(world, &message.cancel.id)) != NULL && job_live(job))
        job_end(world, job, JOB_CANCELED);
    TAILQ_REMOVE(&world->intake, record, link);
    free(record);
}

/* One of the live jobs gets on. */
static void move_job(struct world *world)
{
    struct job *job, *chosen = NULL;
    uint64_t count = 0;

    TAILQ_FOREACH(job, &world->jobs, link)
    {
        if (job_live(job) && rng_below(&world->rng, ++count) == 0)
            chosen = job;
    }
    if (chosen == NULL)
        return;
    if (chosen->state == JOB_QUEUED) {
        chosen->state = JOB_IN_PROGRESS;
        chosen->tried = true;
    } else
        job_end(world, chosen,
                chance(&world->rng, world->fail_percent) ? JOB_FAILED : JOB_SUCCEEDED);
}

/* ---- what Postgres answers ---- */

static char *targets_text(const struct world *world)
{
    json_t *targets = json_object();
    char *text;

    for (size_t i = 0; i < world->chain->step_count; i++)
        (void)json_object_set_new(targets, world->chain->steps[i].name,
                                  json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:b}", "model", "m",
                                            "deployment", "d", "environment", "", "pool", "p",
                                            "shard", 0, "run_limit_ms", 1000, "chain", false));
    text = json_dumps(targets, JSON_COMPACT);
    json_decref(targets);
    return text;
}

static void answer_begin(struct world *world, const struct pg_batch *batch,
                         struct pg_result *result, size_t at)
{
    struct run *run = run_find(world, &batch->ids[0]);
    struct cell *cells;

    if (run->row && run->row_token >= (uint64_t)batch->number)
        return;
    cells = row_add(result, at);
    cells[0].text = xstrdup("tenant");
    cells[1].text = targets_text(world);
    cells[2].number = 1;
    cells[4].number = run->row;
    run->row = true;
    run->closed = false;
    run->row_token = (uint64_t)batch->number;
}

static void answer_known(struct world *world, const struct pg_batch *batch,
                         struct pg_result *result, size_t at)
{
    size_t run = (size_t)(run_find(world, &batch->ids[0]) - world->runs);
    const struct job *job;

    TAILQ_FOREACH(job, &world->jobs, link)
    {
        struct cell *cells;

        if (job->run != run)
            continue;
        cells = row_add(result, at);
        cells[0].text = xstrdup(job->step);
        cells[1].number = job->item;
        cells[2].number = job->round;
        cells[3].id = job->id;
        cells[4].number = (int64_t)job->state;
    }
}

static void answer_look(struct world *world, const struct pg_batch *batch, bool outputs,
                        struct pg_result *result, size_t at)
{
    for (size_t i = 0; i < batch->id_count; i++) {
        const struct job *job = job_find(world, &batch->ids[i]);
        struct cell *cells;

        if (job == NULL || job_live(job) || (outputs && job->state != JOB_SUCCEEDED))
            continue;
        cells = row_add(result, at);
        cells[0].id = job->id;
        cells[1].number = (int64_t)job->state;
        cells[2].number = job->state == JOB_FAILED ? ERROR_CLASS_MODEL_ERROR : ERROR_CLASS_NONE;
        cells[4].number = !job->tried;
        if (outputs)
            cells[1].text = xstrdup(job->output);
    }
}

static void answer_leftovers(struct world *world, struct pg_result *result, size_t at)
{
    for (size_t i = 0; i < RUNS; i++) {
        struct run *run = &world->runs[i];
        const struct job *job;
        bool live = false;

        if (run->over_ms == 0 || !run->row || run->closed)
            continue;
        TAILQ_FOREACH(job, &world->jobs, link)
        {
            struct cell *cells;

            if (job->run != i || !job_live(job))
                continue;
            cells = row_add(result, at);
            cells[0].id = job->id;
            cells[1].text = xstrdup("tenant");
            live = true;
        }
        run->closed = !live && run->over_ms + 10000 < fake_clock_ms;
    }
}

static void answer_wait(struct world *world, const struct pg_batch *batch, struct pg_result *result,
                        size_t at)
{
    struct run *run = run_find(world, &batch->ids[0]);
    struct wait_row *row = &run->waits[chain_find(world->chain, batch->texts[0])];
    struct cell *cells = row_add(result, at);

    if (!row->open)
        *row = (struct wait_row){.open = true,
                                 .approval = batch->flag,
                                 .due_ms = fake_clock_ms + (uint64_t)(batch->seconds * 1000)};
    cells[0].number = (int64_t)row->due_ms - (int64_t)fake_clock_ms;
    cells[1].null = !row->decided;
    cells[1].number = row->payload != NULL;
    cells[2].text = xstrdup(row->payload != NULL ? row->payload
                            : row->canceled      ? "{\"canceled\":true}"
                                                 : "{\"reason\":\"no\"}");
}

/* Postgres has come back from a crash without the row of the run, or everything is on its disk. */
static void answer_wait_keep(struct world *world, const struct pg_batch *batch,
                             struct pg_result *result, size_t at)
{
    struct run *run = run_find(world, &batch->ids[0]);
    struct cell *cells = row_add(result, at);

    if (run->row_token == (uint64_t)batch->number && fault(world, 10)) {
        run->row = false;
        run->row_token = 0;
        world->losses++;
    }
    cells[0].number = run->row && run->row_token == (uint64_t)batch->number;
    for (size_t i = 0; i < world->chain->step_count; i++)
        run->waits[i].kept = run->waits[i].open;
}

static void answer_wait_cancel(struct world *world, const struct pg_batch *batch)
{
    struct run *run = run_find(world, &batch->ids[0]);
    struct wait_row *row = &run->waits[chain_find(world->chain, batch->texts[0])];

    if (row->decided || row->due_ms <= fake_clock_ms)
        return;
    row->decided = row->canceled = true;
}

static void answer_decided(struct world *world, const struct pg_batch *batch,
                           struct pg_result *result, size_t at)
{
    for (size_t i = 0; i < batch->id_count; i++) {
        const struct run *run = run_find(world, &batch->ids[i]);

        for (size_t n = 0; n < world->chain->step_count; n++) {
            struct cell *cells;

            if (!run->waits[n].decided)
                continue;
            cells = row_add(result, at);
            cells[0].id = run->id;
            cells[1].text = xstrdup(world->chain->steps[n].name);
        }
    }
}

static void answer_statement(struct world *world, const struct pg_batch *batch, size_t at,
                             struct pg_result *result)
{
    const char *name = batch->names[at];

    if (strcmp(name, "begin_run") == 0)
        answer_begin(world, batch, result, at);
    else if (strcmp(name, "begin_known") == 0)
        answer_known(world, batch, result, at), answer_taken(world, batch, result, at);
    else if (strcmp(name, "cache_take") == 0)
        answer_take(world, batch, result, at);
    else if (strcmp(name, "cache_put") == 0)
        (void)row_add(result, at), take_cached(world, batch);
    else if (strcmp(name, "begin_clean") == 0)
        row_add(result, at)[0].number = !run_find(world, &batch->ids[0])->unclean;
    else if (strcmp(name, "begin_losses") == 0)
        (void)row_add(result, at); /* false */
    else if (strcmp(name, "look_final") == 0 || strcmp(name, "look_output") == 0)
        answer_look(world, batch, strcmp(name, "look_output") == 0, result, at);
    else if (strcmp(name, "wait_open") == 0)
        answer_wait(world, batch, result, at);
    else if (strcmp(name, "wait_keep") == 0)
        answer_wait_keep(world, batch, result, at);
    else if (strcmp(name, "wait_cancel") == 0)
        answer_wait_cancel(world, batch);
    else if (strcmp(name, "wait_decided") == 0)
        answer_decided(world, batch, result, at);
    else if (strcmp(name, "look_leftovers") == 0)
        answer_leftovers(world, result, at);
    else if (strcmp(name, "look_closed") == 0)
        for (size_t i = 0; i < batch->id_count; i++)
            run_find(world, &batch->ids[i])->closed = true;
    else
        fail_msg("the world does not know the statement %s", name);
}

static void deliver_pg(struct world *world, struct loop *loop, struct event *event)
{
    struct pg_result result = {0};
    struct pg_answer answer = {.result = &result};
    struct err err;
    int code = loop->pg_away ? ERR_UNAVAILABLE : fault(world, 2) ? ERR_UNKNOWN : ERR_OK;

    if (code != ERR_UNAVAILABLE) {
        for (size_t i = 0; i < event->batch->count; i++)
            answer_statement(world, event->batch, i, &result);
    }
    if (code != ERR_OK)
        (void)err_set(&err, code, "as the world says");
    else
        err.code = ERR_OK;
    answer.err = err;
    event->answered(event->opaque, &answer);
    result_done(&result);
}

/* ---- events ---- */

static void deliver_cached(struct world *world, struct event *event)
{
    const struct job *job = job_find(world, &event->id);

    if (job == NULL || job_live(job) || !job->cached) {
        event->cached(event->opaque, ERR_NOT_FOUND, NULL, 0);
        return;
    }
    encode_completed(job, &event->bytes);
    event->cached(event->opaque, ERR_OK, event->bytes.bytes, event->bytes.size);
}

/* Answers of Postgres keep their order, as do reports of Kafka; all else does not. */
static struct event *event_choose(struct world *world, struct loop *loop)
{
    struct event *event, *chosen = NULL, *first;
    uint64_t count = 0;

    TAILQ_FOREACH(event, &loop->events, link)
    {
        if (rng_below(&world->rng, ++count) == 0)
            chosen = event;
    }
    if (chosen == NULL || chosen->type == EVENT_CACHED || chosen->type == EVENT_WAKE)
        return chosen;
    TAILQ_FOREACH(first, &loop->events, link)
    {
        if (first->type == chosen->type)
            return first;
    }
    return chosen;
}

static void deliver(struct world *world, struct loop *loop)
{
    struct event *event = event_choose(world, loop);

    if (event == NULL)
        return;
    TAILQ_REMOVE(&loop->events, event, link); /* its answer may add others, or close all */
    switch (event->type) {
    case EVENT_PG:
        deliver_pg(world, loop, event);
        break;
    case EVENT_REPORT:
        event->reported(event->opaque, 0,
                        &(struct queue_report){.code = event->code, .offset = 1, .why = ""});
        break;
    case EVENT_CACHED:
        deliver_cached(world, event);
        break;
    case EVENT_WAKE:
        if (loop->listener != NULL)
            loop->listener->on_message(loop->listener_opaque, event->bytes.bytes,
                                       event->bytes.size);
        break;
    }
    TAILQ_INSERT_TAIL(&loop->events, event, link);
    event_free(loop, event);
}

/* ---- runs and their owner ---- */

static struct run *run_of(struct loop *loop, uint64_t token)
{
    struct world *world = loop->world;

    for (size_t i = 0; i < RUNS; i++) {
        struct run *run = &world->runs[i];

        if (run->state == JOB_IN_PROGRESS && run->token == token && run->process == loop->number)
            return run;
    }
    return NULL; /* fenced */
}

static void on_output(void *opaque, uint64_t id, const char *json, size_t size)
{
    struct run *run = run_of(opaque, id);

    if (run == NULL)
        return;
    run->output = xmemdup(json, size + 1);
    run->output[size] = '\0';
    run->state = JOB_SUCCEEDED;
    run->over_ms = fake_clock_ms;
}

static void on_error(void *opaque, uint64_t id, enum error_class class, const char *text)
{
    struct run *run = run_of(opaque, id);

    if (run == NULL)
        return;
    if (class == ERROR_CLASS_HANDED_BACK) {
        run->state = JOB_QUEUED;
        run->unclean = true;
        return;
    }
    run->state = JOB_FAILED;
    run->error_class = class;
    run->error = xstrdup(text);
    run->over_ms = fake_clock_ms;
}

static void on_put_off(void *opaque, uint64_t id, uint64_t delay_ms, const char *why)
{
    struct run *run = run_of(opaque, id);
    struct world *world = ((struct loop *)opaque)->world;

    (void)why;
    if (run == NULL)
        return;
    for (size_t i = 0; i < world->chain->step_count; i++) {
        const struct wait_row *row = &run->waits[i];

        assert(!row->open || row->decided || row->due_ms <= fake_clock_ms || row->kept);
    }
    run->state = JOB_QUEUED;
    run->due_ms = run->woken ? 0 : fake_clock_ms + delay_ms;
    world->put_offs++;
}

/* Somebody decides, and the owner of the run hears of it, unless it is taken over just then. */
static void decide_wait(struct world *world)
{
    struct run *run = &world->runs[rng_below(&world->rng, RUNS)];
    struct wait_row *row = &run->waits[rng_below(&world->rng, world->chain->step_count)];

    if (run->over_ms != 0 || !row->open || !row->approval || row->decided ||
        row->due_ms <= fake_clock_ms)
        return;
    row->decided = true;
    if (!chance(&world->rng, 10))
        row->payload = xasprintf("{\"n\":%llu}", (unsigned long long)++world->output_count);
    if (fault(world, 10))
        return; /* it sleeps on until it would be too late */
    world->wakes += run->due_ms > fake_clock_ms;
    run->due_ms = 0;
    run->woken = run->state == JOB_IN_PROGRESS;
}

static void process_start(struct world *world, unsigned at)
{
    static const struct coordinator_options options = {
        .postgres = "", .kafka = "", .redis = "redis", .blobs = "", .deployment = "d"};
    static const struct coordinator_calls calls = {
        .on_output = on_output, .on_error = on_error, .on_put_off = on_put_off};
    struct loop *loop = &world->loops[at];
    struct err err;

    *loop = (struct loop){.number = at, .now_ms = fake_clock_ms, .world = world};
    TAILQ_INIT(&loop->events);
    world->lives[at]++;
    if (coordinator_open(loop, &options, world->chain, &calls, loop, &world->coordinators[at],
                         &err) < 0)
        fail_msg("%s", err.text);
}

static void process_stop(struct world *world, unsigned at)
{
    struct loop *loop = &world->loops[at];
    struct event *event;

    coordinator_close(&world->coordinators[at]);
    while ((event = TAILQ_FIRST(&loop->events)) != NULL)
        event_free(loop, event);
}

static void crash(struct world *world, unsigned at)
{
    world->crashes++;
    process_stop(world, at);
    for (size_t i = 0; i < RUNS; i++) {
        if (world->runs[i].state != JOB_IN_PROGRESS || world->runs[i].process != at)
            continue;
        world->runs[i].state = JOB_QUEUED;
        world->runs[i].unclean = true;
    }
    process_start(world, at);
}

static void dispatch(struct world *world, struct run *run)
{
    struct coordinator_run attempt = {
        .job = run->id, .limit_ms = 3600000, .input = {(const uint8_t *)"null", 4}};

    run->process = (unsigned)rng_below(&world->rng, PROCESSES);
    run->token = attempt.id = ++world->token;
    attempt.number = ++run->number;
    run->state = JOB_IN_PROGRESS;
    run->due_ms = 0;
    run->woken = false;
    coordinator_run(world->coordinators[run->process], &attempt);
}

static void zombie_add(struct world *world, const struct run *run)
{
    if (world->zombie_count < ZOMBIES_MAX)
        world->zombies[world->zombie_count++] = (struct zombie){
            .process = run->process, .life = world->lives[run->process], .token = run->token};
}

/* It hears that its attempt is over. */
static void zombie_tell(struct world *world)
{
    struct zombie zombie;

    if (world->zombie_count == 0)
        return;
    zombie = world->zombies[--world->zombie_count];
    if (world->lives[zombie.process] == zombie.life)
        (void)coordinator_cancel(world->coordinators[zombie.process], zombie.token);
}

/* The owner decides about a run: it goes on elsewhere, or it is canceled. */
static void decide(struct world *world, bool cancel)
{
    struct run *run = &world->runs[rng_below(&world->rng, RUNS)];

    if (cancel && run->state == JOB_QUEUED && run->due_ms > fake_clock_ms) {
        run->state = JOB_CANCELED; /* nobody has it */
        run->over_ms = fake_clock_ms;
        return;
    }
    if (run->state != JOB_IN_PROGRESS || (!cancel && !world->takes_over))
        return;
    zombie_add(world, run);
    world->takeovers += !cancel;
    run->state = cancel ? JOB_CANCELED : JOB_QUEUED;
    run->unclean = true;
    run->over_ms = cancel ? fake_clock_ms : 0;
}

/* ---- time ---- */

static void strike(struct world *world)
{
    struct loop *loop = &world->loops[rng_below(&world->rng, PROCESSES)];

    switch (rng_below(&world->rng, 12)) {
    case 0:
    case 1:
    case 2:
        crash(world, loop->number);
        break;
    case 3:
    case 4:
        decide(world, false);
        break;
    case 5:
        decide(world, chance(&world->rng, 10));
        break;
    case 6:
        loop->pg_away = !loop->pg_away;
        break;
    case 7:
        loop->kafka_away = !loop->kafka_away;
        break;
    case 8:
        loop->redis_away = !loop->redis_away;
        break;
    default:
        loop->pg_away = loop->kafka_away = loop->redis_away = false;
        zombie_tell(world);
        break;
    }
}

static void step(struct world *world)
{
    uint64_t what = rng_below(&world->rng, 100);

    if (world->fault_percent > 0 && chance(&world->rng, world->fault_percent))
        strike(world);
    for (size_t i = 0; i < RUNS; i++) {
        if (world->runs[i].state == JOB_QUEUED && world->runs[i].due_ms <= fake_clock_ms &&
            chance(&world->rng, 20))
            dispatch(world, &world->runs[i]);
    }
    if (what < 50)
        deliver(world, &world->loops[rng_below(&world->rng, PROCESSES)]);
    else if (what < 65)
        take_record(world);
    else if (what < 84)
        move_job(world);
    else if (what == 84)
        decide_wait(world);
    else {
        fake_clock_ms += 1 + rng_below(&world->rng, 200);
        for (unsigned i = 0; i < PROCESSES; i++)
            loop_fire(&world->loops[i]);
    }
}

static bool all_over(const struct world *world)
{
    for (size_t i = 0; i < RUNS; i++) {
        if (world->runs[i].over_ms == 0)
            return false;
    }
    return true;
}

static void live_on(struct world *world)
{
    uint64_t until_ms = 0;

    for (unsigned n = 0; until_ms == 0 || fake_clock_ms < until_ms; n++) {
        if (n > STEPS_MAX)
            fail_msg("a run is stuck");
        if (n == STEPS_MAX / 8) { /* it must end by itself now */
            world->fault_percent = 0;
            for (unsigned i = 0; i < PROCESSES; i++)
                world->loops[i].pg_away = world->loops[i].kafka_away = world->loops[i].redis_away =
                    false;
        }
        step(world);
        if (until_ms == 0 && all_over(world)) {
            world->fault_percent = 0;
            while (world->zombie_count > 0)
                zombie_tell(world);
            for (unsigned i = 0; i < PROCESSES; i++)
                world->loops[i].pg_away = world->loops[i].kafka_away = world->loops[i].redis_away =
                    false;
            until_ms = fake_clock_ms + CALM_MS;
        }
    }
}

/* ---- what must be true ---- */

static const struct job *job_of(const struct world *world, size_t run, const char *step_name,
                                uint32_t item)
{
    const struct job *job, *found = NULL;

    TAILQ_FOREACH(job, &world->jobs, link)
    {
        if (job->run != run || job->item != item || strcmp(job->step, step_name) != 0)
            continue;
        assert_null(found); /* a step has one job */
        found = job;
    }
    return found;
}

/* As its row says: a wait is over, an approval decided, or too late. */
static void tell_wait(const struct run *run, struct plan *plan, struct plan_todo *todo)
{
    const struct wait_row *row = &run->waits[todo->step];

    free(todo->text);
    assert_true(row->open);
    if (row->payload != NULL)
        plan_on_waited(plan, todo->step, json_loads(row->payload, JSON_DECODE_ANY, NULL), NULL,
                       NULL);
    else if (row->approval)
        plan_on_waited(plan, todo->step, NULL, "rejected", "no");
    else
        plan_on_waited(plan, todo->step, json_null(), NULL, NULL);
}

/* … or has taken one over, and then it has none of its own. */
static const struct job *job_used(struct world *world, size_t run, const char *step_name,
                                  uint32_t item)
{
    const struct taken *taken = taken_find(world, run, step_name, item);
    const struct job *job = job_of(world, run, step_name, item);

    if (taken == NULL)
        return job;
    assert_null(job);
    return job_find(world, &taken->job);
}

/* The same run without faults, told what the ledger has: it must come to the same. */
static void check_success(struct world *world, size_t at)
{
    const struct run *run = &world->runs[at];
    OWNED(plan_free) struct plan *plan = plan_new(world->chain, json_null(), run->text);
    struct plan_todo todo;
    size_t used = 0, there = 0;
    const struct taken *taken;
    const struct job *job;

    while (plan_next(plan, &todo) && todo.type != PLAN_FINISH) {
        struct plan_final final = {.state = JOB_FAILED, .error_class = ERROR_CLASS_MODEL_ERROR};

        if (todo.type == PLAN_WAIT) {
            tell_wait(run, plan, &todo);
            continue;
        }
        assert_int_equal(todo.type, PLAN_SUBMIT);
        job = job_used(world, at, world->chain->steps[todo.step].name, todo.item);
        assert_non_null(job);
        assert_true(strlen(job->input) == todo.text_size &&
                    memcmp(job->input, todo.text, todo.text_size) == 0);
        free(todo.text);
        used++;
        if (job->state == JOB_SUCCEEDED)
            final = (struct plan_final){
                .state = JOB_SUCCEEDED,
                .output = {(const uint8_t *)job->output, strlen(job->output)},
                .output_is_json = true};
        plan_on_final(plan, todo.step, todo.item, &final);
    }
    assert_int_equal(todo.type, PLAN_FINISH);
    assert_null(todo.error);
    assert_true(strlen(run->output) == todo.text_size &&
                memcmp(run->output, todo.text, todo.text_size) == 0);
    free(todo.text);
    TAILQ_FOREACH(job, &world->jobs, link)
    {
        there += job->run == at;
    }
    TAILQ_FOREACH(taken, &world->taken, link)
    {
        there += taken->run == at;
    }
    if (world->fail_percent == 0) /* else items may have begun beside one that failed */
        assert_int_equal(there, used);
}

/* What succeeded is undone, also what was sent by an attempt that did not know that it was over. */
static void check_undone(const struct world *world, size_t at)
{
    const struct job *job;

    TAILQ_FOREACH(job, &world->jobs, link)
    {
        int step = chain_find(world->chain, job->step);
        int undo = world->chain->steps[step].undo;

        if (job->run == at && job->state == JOB_SUCCEEDED && undo >= 0)
            assert_non_null(job_of(world, at, world->chain->steps[undo].name, 0));
    }
}

static void check(struct world *world)
{
    const struct job *job;

    TAILQ_FOREACH(job, &world->jobs, link)
    {
        assert_false(job_live(job)); /* of a run that is over nothing goes on */
    }
    for (size_t i = 0; i < RUNS; i++) {
        const struct run *run = &world->runs[i];

        if (run->state == JOB_FAILED)
            check_undone(world, i);
        if (run->state == JOB_SUCCEEDED)
            check_success(world, i);
        else if (run->state == JOB_FAILED)
            assert_true(
                run->error_class == ERROR_CLASS_STEP_FAILED &&
                (strncmp(run->error, "step s", 6) == 0 || strncmp(run->error, "step f", 6) == 0));
        else
            assert_int_equal(run->state, JOB_CANCELED);
        assert_true(run->closed || !run->row);
    }
}

/* ---- worlds ---- */

static void world_begin(struct world *world, uint64_t seed)
{
    memset(world, 0, sizeof(*world));
    rng_seed(&world->rng, seed);
    TAILQ_INIT(&world->jobs);
    TAILQ_INIT(&world->intake);
    TAILQ_INIT(&world->taken);
    TAILQ_INIT(&world->cache);
    fake_clock_ms = 1000000;
    world->chain = chain_random(&world->rng);
    world->decoder = wire_decoder_new();
    world->fail_percent = chance(&world->rng, 30) ? 10 : 0;
    world->takes_over = chance(&world->rng, 60);
    world->fault_percent = 1 + (unsigned)rng_below(&world->rng, 8);
    for (size_t i = 0; i < RUNS; i++) {
        uint8_t entropy[JOB_ID_RANDOM_SIZE] = {(uint8_t)(i + 1)};

        world->runs[i].id = job_id_make(0, 1700000000000, entropy);
        world->runs[i].state = JOB_QUEUED;
        job_id_format(&world->runs[i].id, world->runs[i].text);
    }
    for (unsigned i = 0; i < PROCESSES; i++)
        process_start(world, i);
}

static void world_end(struct world *world)
{
    struct record *record;
    struct job *job;

    for (unsigned i = 0; i < PROCESSES; i++)
        process_stop(world, i);
    while ((job = TAILQ_FIRST(&world->jobs)) != NULL) {
        TAILQ_REMOVE(&world->jobs, job, link);
        free(job->input);
        free(job->output);
        free(job);
    }
    while ((record = TAILQ_FIRST(&world->intake)) != NULL) {
        TAILQ_REMOVE(&world->intake, record, link);
        free(record);
    }
    for (size_t i = 0; i < RUNS; i++) {
        for (size_t n = 0; n < CHAIN_STEPS_MAX; n++)
            free(world->runs[i].waits[n].payload);
        free(world->runs[i].output);
        free(world->runs[i].error);
    }
    taken_done(&world->taken);
    taken_done(&world->cache);
    chain_free(&world->chain);
    wire_decoder_free(&world->decoder);
}

static int64_t first_seed = 1, world_count = WORLDS;

static void test_runs_end_as_the_ledger_says(void **state)
{
    uint64_t crashes = 0, takeovers = 0, repeats = 0, put_offs = 0, wakes = 0, hits = 0, losses = 0;
    uint64_t ends[JOB_CANCELED + 1] = {0};
    struct world world;

    (void)state;
    chain_random_cache = true;
    for (int64_t seed = first_seed; seed < first_seed + world_count; seed++) {
        world_begin(&world, (uint64_t)seed);
        if (world_count <= 20)
            print_message("seed %lld\n", (long long)seed);
        live_on(&world);
        check(&world);
        crashes += world.crashes;
        takeovers += world.takeovers;
        repeats += world.repeats;
        put_offs += world.put_offs;
        wakes += world.wakes;
        hits += world.hits;
        losses += world.losses;
        for (size_t i = 0; i < RUNS; i++)
            ends[world.runs[i].state]++;
        world_end(&world);
    }
    print_message(
        "%llu worlds of %d runs: %llu crashes, %llu runs taken from a living coordinator, "
        "%llu Submits came twice, %llu outputs were taken over, %llu times a run that waited was "
        "given back, %llu times woken, %llu rows of runs were lost; %llu runs succeeded, %llu "
        "failed, %llu were canceled\n",
        (long long)world_count, RUNS, (unsigned long long)crashes, (unsigned long long)takeovers,
        (unsigned long long)repeats, (unsigned long long)hits, (unsigned long long)put_offs,
        (unsigned long long)wakes, (unsigned long long)losses,
        (unsigned long long)ends[JOB_SUCCEEDED], (unsigned long long)ends[JOB_FAILED],
        (unsigned long long)ends[JOB_CANCELED]);
    if (world_count >= WORLDS)
        assert_true(crashes > WORLDS && takeovers > WORLDS && repeats > WORLDS &&
                    put_offs > WORLDS / 2 && wakes > WORLDS / 4 && hits > WORLDS / 4 &&
                    losses > WORLDS / 8 && ends[JOB_SUCCEEDED] > WORLDS && ends[JOB_FAILED] > 0 &&
                    ends[JOB_CANCELED] > 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs_end_as_the_ledger_says),
    };
    struct err err;

    log_set_level(LOG_LEVEL_OFF);
    if (argc > 1 && settings_parse_int("FIRST_SEED", argv[1], &first_seed, &err) < 0)
        fail_msg("%s", err.text);
    if (argc > 2 && settings_parse_int("COUNT", argv[2], &world_count, &err) < 0)
        fail_msg("%s", err.text);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
