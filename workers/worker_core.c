/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Attempts are in a hash by token and, while they wait for the host, in a list in order of arrival.
 * Deadlines are looked at in worker_core_tick() by a scan over what is held, not more often than
 * the earliest of them asks for: at most a few thousand entries, a hundred times a second.
 */

#include "workers/worker_core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <uthash.h>

#include "base/assert.h"
#include "workers/worker_ahead.h"
#include "workers/worker_pace.h"

#define NEVER_US UINT64_MAX
#define WORKER_RESTART_US_MIN 50000u /* before a host is started again; doubled each time … */
#define WORKER_RESTART_US_MAX 5000000u
#define WORKER_LEAVE_EXTRA_US 1000000u /* after the drain, for Kafka to take the last reports */
#define WORKER_LATE_GRACE_US 500000u   /* to obey a cancel when the drain is over */
#define WORKER_WHY_SIZE 120
#define WORKER_EXIT_DRAINED 0
#define WORKER_EXIT_LOAD 2
#define WORKER_EXIT_DEVICE 3
#define WORKER_EXIT_UNHEARD 3

enum place { PLACE_FETCHING, PLACE_WAITING, PLACE_HOST, PLACE_NONE };
enum verdict { VERDICT_OPEN, VERDICT_FINISHED, VERDICT_OVER };

struct held {
    UT_hash_handle hh;
    TAILQ_ENTRY(held) link; /* in `waiting` while it is PLACE_WAITING */
    uint64_t token;
    struct wire_id job, run;
    enum place place;
    enum verdict verdict;
    bool alone, stream, told_started;
    bool over; /* past its run limit while the host owes an answer: who is to blame is not known */
    uint32_t slot_count;
    uint64_t number, run_limit_us;
    uint64_t arrived_us, deadline_us, start_us, start_wall_us, cancel_us;
    struct wire_text tenant, trace, blob, input_type, route, gateway; /* into bytes[] */
    struct wire_bytes input, digest;
    uint64_t input_size;
    uint8_t bytes[];
};

enum host_state {
    HOST_NONE,     /* to be started at host_start_us */
    HOST_LOADING,  /* started, not ready */
    HOST_READY,    /* takes requests */
    HOST_DRAINING, /* was told to end */
    HOST_LEFT,     /* ended, none is wanted any more */
};

TAILQ_HEAD(held_list, held);

struct worker_core {
    struct worker_options options;
    uint64_t now_us, wall_us;
    struct held *held;
    struct held_list waiting;
    struct worker_pace pace;
    uint64_t epoch, granted, received, told_granted, position;
    uint64_t beat_us, beat_due_us, scan_due_us, drain_until_us, leave_until_us;
    bool knows_position, asked_hello, said_hello, asked_bye, said_bye, asked_exit;
    bool leaving, killing;
    int exit_code;
    char why[512];

    enum host_state host;
    uint64_t host_granted, host_sent, host_start_us, load_until_us;
    uint32_t canceled_count; /* in the host, which has not answered their CANCEL */
    uint32_t over_count;     /* those of them that are `over` */
    uint32_t wide_count;     /* that cost slots, and more than one each */
    uint64_t service_us;     /* a moving mean of how long the host has one; 0: not known */
    uint32_t alone_count;    /* waiting for the whole host, or having it */
    bool alone_runs;
    uint32_t load_failures;

    struct worker_todo *todos;
    size_t todo_first, todo_count, todo_room;
    uint64_t *beat_tokens; /* what the last heartbeat pointed at */
    uint8_t *beat_jobs;
    struct worker_stats stats;
};

/* ---- to-dos ---- */

static struct worker_todo *todo_add(struct worker_core *core, enum worker_todo_type type,
                                    uint64_t token)
{
    struct worker_todo *todo;

    if (core->todo_first == core->todo_count)
        core->todo_first = core->todo_count = 0;
    if (core->todo_count == core->todo_room) {
        core->todo_room = core->todo_room == 0 ? 64 : core->todo_room * 2;
        core->todos = xrealloc(core->todos, core->todo_room, sizeof(*core->todos));
    }
    todo = &core->todos[core->todo_count++];
    *todo = (struct worker_todo){.type = type, .token = token};
    return todo;
}

bool worker_core_next_todo(struct worker_core *core, struct worker_todo *ret_todo)
{
    if (core->todo_first == core->todo_count)
        return false;
    *ret_todo = core->todos[core->todo_first++];
    return true;
}

static void due_at(uint64_t *due_us, uint64_t at_us)
{
    if (at_us < *due_us)
        *due_us = at_us;
}

/* ---- what is held ---- */

static struct held *held_find(struct worker_core *core, uint64_t token)
{
    struct held *held;

    HASH_FIND(hh, core->held, &token, sizeof(token), held);
    return held;
}

static uint32_t slots_free(const struct worker_core *core)
{
    uint32_t busy = core->stats.slots_busy, room = worker_pace_slots(&core->pace, core->now_us);
    uint32_t held = HASH_COUNT(core->held);

    if (core->wide_count == 0 && core->options.hold_us == 0)
        room += worker_ahead_count(room, core->options.ahead_us, core->service_us);
    room = busy >= room ? 0 : room - busy;
    held = held < WORKER_HELD_MAX ? WORKER_HELD_MAX - held : 0;
    return room < held ? room : held;
}

/* News of credit go out soon when the owner is short of it, lazily when it has half of it left, or
 * when a Finished carries them: the heartbeat is for one that is late then. */
static void credit_update(struct worker_core *core, bool carried)
{
    uint64_t granted = core->received + slots_free(core), wait_us;

    if (core->leaving || core->host != HOST_READY || core->alone_count > 0 ||
        granted <= core->granted)
        return;
    core->granted = granted;
    wait_us = carried || core->told_granted >
                             core->received + worker_pace_slots(&core->pace, core->now_us) / 2
                  ? core->options.credit_lazy_us
                  : core->options.credit_delay_us;
    due_at(&core->beat_due_us,
           core->beat_us + wait_us > core->now_us ? core->beat_us + wait_us : core->now_us);
}

static void held_forget_when_done(struct worker_core *core, struct held *held)
{
    if (held->place != PLACE_NONE || held->verdict != VERDICT_OVER)
        return;
    HASH_DEL(core->held, held);
    free(held);
    credit_update(core, false);
}

/* Every change of place goes through here, so that slots are counted once. */
static void held_move(struct worker_core *core, struct held *held, enum place place)
{
    if (held->place == PLACE_WAITING)
        TAILQ_REMOVE(&core->waiting, held, link);
    if (place == PLACE_WAITING)
        TAILQ_INSERT_TAIL(&core->waiting, held, link);
    if (held->place == PLACE_HOST) {
        core->canceled_count -= held->cancel_us != 0;
        core->over_count -= held->over;
        worker_pace_note(&core->pace, core->now_us, 0, core->stats.in_host == 1);
    }
    if (place == PLACE_HOST && core->stats.in_host == 0)
        worker_pace_begin(&core->pace, core->now_us);
    core->stats.in_host -= held->place == PLACE_HOST;
    core->stats.in_host += place == PLACE_HOST;
    if (held->alone) {
        core->alone_count -= held->place == PLACE_HOST || held->place == PLACE_WAITING;
        core->alone_count += place == PLACE_HOST || place == PLACE_WAITING;
        if (held->place == PLACE_HOST || place == PLACE_HOST)
            core->alone_runs = place == PLACE_HOST;
    }
    if (held->place != PLACE_NONE && place == PLACE_NONE) {
        core->stats.slots_busy -= held->slot_count;
        core->wide_count -= held->slot_count > 1;
        credit_update(core, held->verdict == VERDICT_OPEN); /* its Finished follows */
    }
    held->place = place;
}

/* Nothing is withheld any more. */
static void held_judge(struct worker_core *core, struct held *held, enum verdict verdict)
{
    held->verdict = verdict;
    if (held->over && held->place == PLACE_HOST)
        core->over_count--;
    held->over = false;
}

static void held_finish(struct worker_core *core, struct held *held,
                        const struct worker_result *result)
{
    struct message_finished *finished;
    struct worker_todo *todo;

    assert(held->verdict == VERDICT_OPEN);
    held_judge(core, held, VERDICT_FINISHED);
    todo = todo_add(core, WORKER_TODO_FINISHED, held->token);
    todo->tenant = held->tenant;
    todo->trace = held->trace;
    finished = &todo->finished;
    *finished = (struct message_finished){
        .job = held->job,
        .token = held->token,
        .worker = WIRE_TEXT_OF(core->options.worker),
        .boot = core->options.boot,
        .error_class = result->error_class,
        .error_message = result->error_message,
        .output = result->output,
        .output_size = result->output.size,
        .output_type = result->output_type,
        .started_us = held->start_wall_us,
        .finished_us = core->wall_us,
        .retry_after_ms = result->retry_after_ms,
        .device = WIRE_TEXT_OF(core->options.device),
        .http_status = result->http_status,
        .number = held->number,
        .batch_count = result->batch_count,
        .granted = core->granted,
    };
    core->stats.succeeded += result->error_class == ERROR_CLASS_NONE;
    core->stats.handed_back += result->error_class == ERROR_CLASS_HANDED_BACK;
    core->stats.failed += result->error_class != ERROR_CLASS_NONE &&
                          result->error_class != ERROR_CLASS_HANDED_BACK;
}

static void held_fail(struct worker_core *core, struct held *held, enum error_class class,
                      const char *why)
{
    held_finish(core, held,
                &(struct worker_result){.error_class = class, .error_message = WIRE_TEXT_OF(why)});
}

/* Stops what the host is doing for it; it keeps its slots until the host says that it has ended. */
static void held_stop(struct worker_core *core, struct held *held)
{
    uint64_t grace_us = core->options.cancel_grace_us;

    if (held->place == PLACE_HOST) {
        if (held->cancel_us != 0)
            return;
        core->canceled_count++;
        if (core->leaving && core->drain_until_us <= core->now_us &&
            grace_us > WORKER_LATE_GRACE_US)
            grace_us = WORKER_LATE_GRACE_US;
        held->cancel_us = core->now_us + grace_us;
        due_at(&core->scan_due_us, held->cancel_us);
        (void)todo_add(core, WORKER_TODO_CANCEL, held->token);
        return;
    }
    if (held->place != PLACE_NONE && held->blob.size > 0)
        (void)todo_add(core, WORKER_TODO_FORGET, held->token);
    held_move(core, held, PLACE_NONE);
}

static void held_end(struct worker_core *core, struct held *held, enum error_class class,
                     const char *why)
{
    held_fail(core, held, class, why);
    held_stop(core, held);
}

/* ---- Attempts ---- */

static bool attempt_is_ours(struct worker_core *core, const struct wire_text *worker, uint64_t boot,
                            uint64_t shard, uint64_t token)
{
    uint64_t epoch = token >> 32;

    if (boot != core->options.boot || shard != core->options.shard ||
        !wire_text_equal(*worker, core->options.worker) || epoch < core->epoch)
        return false;
    core->epoch = epoch;
    return true;
}

static void bytes_keep(uint8_t **at, struct wire_bytes from, struct wire_bytes *ret_bytes)
{
    *ret_bytes = (struct wire_bytes){*at, from.size};
    if (from.size > 0)
        memcpy(*at, from.bytes, from.size);
    *at += from.size;
}

static void text_keep(uint8_t **at, struct wire_text from, struct wire_text *ret_text)
{
    struct wire_bytes kept;

    bytes_keep(at, (struct wire_bytes){(const uint8_t *)from.text, from.size}, &kept);
    *ret_text = (struct wire_text){(const char *)kept.bytes, kept.size};
}

static struct held *held_new(const struct worker_core *core, const struct message_attempt *attempt)
{
    size_t size = attempt->tenant.size + attempt->trace.size + attempt->input_blob.size +
                  attempt->input.size + attempt->input_digest.size + attempt->input_type.size +
                  attempt->route.size + attempt->gateway.size;
    struct held *held = xmalloc(sizeof(*held) + size);
    uint8_t *at = held->bytes;

    *held = (struct held){
        .token = attempt->token,
        .job = attempt->job,
        .run = attempt->run,
        .place = PLACE_NONE,
        .alone = attempt->alone,
        .stream = attempt->stream,
        .slot_count = attempt->slot_count == 0 ? 1 : (uint32_t)attempt->slot_count,
        .number = attempt->number,
        .run_limit_us = attempt->run_limit_ms > NEVER_US / 1000 ? NEVER_US / 2
                                                                : attempt->run_limit_ms * 1000,
        .arrived_us = core->now_us,
        .deadline_us = NEVER_US,
        .input_size = attempt->input_size,
    };
    bytes_keep(&at, attempt->input, &held->input);
    bytes_keep(&at, attempt->input_digest, &held->digest);
    text_keep(&at, attempt->tenant, &held->tenant);
    text_keep(&at, attempt->trace, &held->trace);
    text_keep(&at, attempt->input_blob, &held->blob);
    text_keep(&at, attempt->input_type, &held->input_type);
    text_keep(&at, attempt->route, &held->route);
    text_keep(&at, attempt->gateway, &held->gateway);
    if (attempt->deadline_us > 0)
        held->deadline_us = attempt->deadline_us <= core->wall_us
                                ? core->now_us
                                : core->now_us + (attempt->deadline_us - core->wall_us);
    return held;
}

void worker_core_on_attempt(struct worker_core *core, const struct message_attempt *attempt)
{
    struct held *held;

    if (!attempt_is_ours(core, &attempt->worker, attempt->boot, attempt->shard, attempt->token) ||
        held_find(core, attempt->token) != NULL) {
        core->stats.skipped++;
        return;
    }
    core->stats.attempts++;
    core->received++;
    held = held_new(core, attempt);
    HASH_ADD(hh, core->held, token, sizeof(held->token), held);
    if (core->leaving) {
        held_fail(core, held, ERROR_CLASS_HANDED_BACK, "the worker is leaving");
        return;
    }
    if (!worker_ahead_takes(core->stats.slots_busy, held->slot_count, core->options.slot_count,
                            core->wide_count == 0 && core->received <= core->granted)) {
        held_fail(core, held, ERROR_CLASS_HANDED_BACK, "the worker has no free slot");
        return;
    }
    core->stats.slots_busy += held->slot_count;
    core->wide_count += held->slot_count > 1;
    due_at(&core->scan_due_us, held->deadline_us);
    due_at(&core->scan_due_us, worker_ahead_until_us(core->now_us, core->options.ahead_us));
    if (core->host != HOST_READY || held->alone || core->alone_count > 0)
        due_at(&core->scan_due_us, core->now_us + core->options.host_wait_us);
    if (held->blob.size == 0) {
        held_move(core, held, PLACE_WAITING);
        return;
    }
    held->place = PLACE_FETCHING;
}

void worker_core_on_revoke(struct worker_core *core, const struct message_revoke *revoke)
{
    struct held *held;

    if (!attempt_is_ours(core, &revoke->worker, revoke->boot, revoke->shard, revoke->token)) {
        core->stats.skipped++;
        return;
    }
    held = held_find(core, revoke->token);
    if (held == NULL || held->verdict != VERDICT_OPEN)
        return; /* its Finished is on the way: the owner's order decides */
    core->stats.revoked++;
    held_judge(core, held, VERDICT_OVER);
    held_stop(core, held);
    held_forget_when_done(core, held);
}

/* ---- running ---- */

static void held_run(struct worker_core *core, struct held *held)
{
    struct worker_todo *todo = todo_add(core, WORKER_TODO_RUN, held->token);
    uint64_t limit_us = held->run_limit_us;

    held_move(core, held, PLACE_HOST);
    held->start_us = core->now_us;
    held->start_wall_us = core->wall_us;
    if (held->deadline_us != NEVER_US && held->deadline_us - core->now_us < limit_us)
        limit_us = held->deadline_us - core->now_us;
    todo->run.job = held->job;
    todo->run.run = held->run;
    todo->run.input = held->input;
    todo->run.limit_ms = limit_us / 1000 + 1;
    todo->run.number = held->number;
    todo->run.alone = held->alone;
    todo->run.input_type = held->input_type;
    todo->run.route = held->route;
    todo->run.gateway = held->gateway;
    todo->run.stream = held->stream;
    todo->tenant = held->tenant;
    todo->trace = held->trace;
    core->host_sent++;
    due_at(&core->scan_due_us, core->now_us + core->options.started_delay_us);
    due_at(&core->scan_due_us, core->now_us + limit_us);
}

static void run_what_waits(struct worker_core *core)
{
    struct held *held;

    while (core->host == HOST_READY && core->host_sent < core->host_granted &&
           core->stats.in_host < core->options.slot_count &&
           (held = TAILQ_FIRST(&core->waiting)) != NULL) {
        if (held->deadline_us <= core->now_us)
            held_end(core, held, ERROR_CLASS_EXPIRED, "the total deadline has passed");
        else if (core->alone_runs || (held->alone && core->stats.in_host > 0))
            break;
        else
            held_run(core, held);
    }
}

void worker_core_on_read(struct worker_core *core, uint64_t position)
{
    struct held *held, *next;

    if (!core->knows_position)
        core->beat_due_us = core->now_us;
    core->knows_position = true;
    core->position = position;
    HASH_ITER(hh, core->held, held, next)
    {
        struct worker_todo *todo;

        if (held->place != PLACE_FETCHING || held->start_us != 0)
            continue;
        held->start_us = core->now_us; /* of the fetch; so that it is asked for once */
        todo = todo_add(core, WORKER_TODO_FETCH, held->token);
        todo->fetch.blob = held->blob;
        todo->fetch.size = held->input_size;
        todo->fetch.digest = held->digest;
    }
    run_what_waits(core);
}

void worker_core_on_input(struct worker_core *core, uint64_t token, enum error_class class,
                          const char *why)
{
    struct held *held = held_find(core, token);

    if (held == NULL || held->place != PLACE_FETCHING)
        return;
    if (class != ERROR_CLASS_NONE) {
        held_move(core, held, PLACE_NONE);
        held_fail(core, held, class, why);
        return;
    }
    held_move(core, held, PLACE_WAITING);
    run_what_waits(core);
}

/* ---- the host ---- */

static bool is_quiet(const struct worker_core *core)
{
    return core->stats.slots_busy == 0;
}

/* The steps of leaving, each when the one before is done. */
static void leave_step(struct worker_core *core)
{
    struct worker_todo *todo;

    if (!core->leaving || !is_quiet(core))
        return;
    if (core->host == HOST_READY || core->host == HOST_LOADING) {
        core->host = HOST_DRAINING;
        core->drain_until_us = core->now_us + core->options.cancel_grace_us;
        due_at(&core->scan_due_us, core->drain_until_us);
        (void)todo_add(core, WORKER_TODO_HOST_DRAIN, 0);
    }
    if (HASH_COUNT(core->held) > 0)
        return;
    if (core->said_hello && !core->asked_bye) {
        core->asked_bye = true;
        todo = todo_add(core, WORKER_TODO_BYE, 0);
        todo->bye.worker = WIRE_TEXT_OF(core->options.worker);
        todo->bye.boot = core->options.boot;
    }
    if (core->said_hello && !core->said_bye)
        return;
    if (core->host == HOST_NONE)
        core->host = HOST_LEFT;
    if (core->host != HOST_LEFT || core->asked_exit)
        return;
    core->asked_exit = true;
    todo = todo_add(core, WORKER_TODO_EXIT, 0);
    todo->exit.code = core->exit_code;
    todo->exit.why = core->why;
}

/* The time is over. Where nobody took our last words, the agent's Gone, or a lease that lapses,
 * says as much; a host that still runs has nothing that anybody waits for. */
static void leave_late(struct worker_core *core)
{
    bool heard = HASH_COUNT(core->held) == 0 && (!core->said_hello || core->said_bye);
    struct worker_todo *todo;

    if (core->asked_exit)
        return;
    core->asked_exit = true;
    todo = todo_add(core, WORKER_TODO_EXIT, 0);
    todo->exit.code = heard ? core->exit_code : WORKER_EXIT_UNHEARD;
    todo->exit.why = heard ? core->why : "Kafka did not take the last reports in time";
}

static void leave(struct worker_core *core, int exit_code, const char *why)
{
    struct held *held, *next;

    if (!core->leaving) {
        core->leaving = true;
        core->exit_code = exit_code;
        mem_copy_text(core->why, why);
        core->drain_until_us = core->now_us + core->options.drain_us;
        core->beat_due_us = core->now_us;
        core->leave_until_us = core->drain_until_us + WORKER_LEAVE_EXTRA_US;
        due_at(&core->scan_due_us, core->drain_until_us);
    }
    HASH_ITER(hh, core->held, held, next)
    {
        if (held->verdict == VERDICT_OPEN && held->place != PLACE_HOST)
            held_end(core, held, ERROR_CLASS_HANDED_BACK, "the worker is leaving");
    }
    leave_step(core);
}

static void hand_back_all(struct worker_core *core, const char *why)
{
    struct held *held, *next;

    HASH_ITER(hh, core->held, held, next)
    {
        if (held->verdict == VERDICT_OPEN)
            held_end(core, held, ERROR_CLASS_HANDED_BACK, why);
    }
}

void worker_core_drain(struct worker_core *core)
{
    bool again = core->leaving;

    leave(core, WORKER_EXIT_DRAINED, "drained");
    if (again)
        hand_back_all(core, "the worker was told to leave at once");
    else if (core->options.resumes)
        hand_back_all(core, "the worker is leaving");
    leave_step(core);
}

static void hello_when_ready(struct worker_core *core)
{
    struct message_hello *hello;

    if (core->host != HOST_READY || !core->knows_position || core->asked_hello || core->leaving)
        return;
    core->asked_hello = true;
    hello = &todo_add(core, WORKER_TODO_HELLO, 0)->hello;
    *hello = (struct message_hello){
        .worker = WIRE_TEXT_OF(core->options.worker),
        .boot = core->options.boot,
        .pool = WIRE_TEXT_OF(core->options.pool),
        .partition = core->options.partition,
        .slots = core->options.slot_count,
        .position = core->position,
        .host = WIRE_TEXT_OF(core->options.machine),
        .device = WIRE_TEXT_OF(core->options.device),
        .pid = core->options.pid,
        .resumes = core->options.resumes,
    };
}

void worker_core_on_hello_reported(struct worker_core *core)
{
    core->said_hello = true;
    core->beat_due_us = core->now_us;
    leave_step(core);
}

void worker_core_on_bye_reported(struct worker_core *core)
{
    core->said_bye = true;
    leave_step(core);
}

void worker_core_on_host_loading(struct worker_core *core)
{
    core->load_until_us = core->now_us + core->options.load_us;
}

void worker_core_on_host_ready(struct worker_core *core, uint64_t granted)
{
    if (core->host != HOST_LOADING)
        return;
    core->host = HOST_READY;
    core->host_granted = granted;
    core->host_sent = 0;
    core->load_failures = 0;
    credit_update(core, false);
    run_what_waits(core);
    leave_step(core);
}

void worker_core_on_host_final(struct worker_core *core, uint64_t token, uint64_t granted,
                               const struct worker_result *result)
{
    struct held *held = held_find(core, token);

    if (granted > core->host_granted)
        core->host_granted = granted;
    if (held != NULL && held->place == PLACE_HOST) {
        core->service_us = worker_ahead_mean(core->service_us, core->now_us - held->start_us);
        if (result->error_class == ERROR_CLASS_NONE)
            worker_pace_note(&core->pace, core->now_us, held->slot_count, false);
        held_move(core, held, PLACE_NONE);
        if (held->verdict == VERDICT_OPEN && held->over &&
            result->error_class == ERROR_CLASS_CANCELED)
            held_fail(core, held, ERROR_CLASS_MODEL_TIMEOUT, "the run limit has passed");
        else if (held->verdict == VERDICT_OPEN && result->error_class == ERROR_CLASS_EXPIRED &&
                 held->deadline_us > core->now_us)
            held_fail(core, held, ERROR_CLASS_MODEL_TIMEOUT, "the run limit passed in the engine");
        else if (held->verdict == VERDICT_OPEN)
            held_finish(core, held, result);
        held_forget_when_done(core, held);
    }
    if (result->error_class == ERROR_CLASS_DEVICE_FAULT)
        leave(core, WORKER_EXIT_DEVICE, "the device is at fault");
    run_what_waits(core);
    leave_step(core);
}

static void host_lose_jobs(struct worker_core *core, enum error_class class, const char *why)
{
    struct held *held, *next;

    HASH_ITER(hh, core->held, held, next)
    {
        if (held->place != PLACE_HOST)
            continue;
        held_move(core, held, PLACE_NONE);
        if (held->verdict == VERDICT_OPEN && core->killing)
            held_fail(core, held, ERROR_CLASS_HANDED_BACK,
                      "the engine was stopped because of another job");
        else if (held->verdict == VERDICT_OPEN)
            held_fail(core, held, class, why);
        held_forget_when_done(core, held);
    }
}

void worker_core_on_host_gone(struct worker_core *core, enum error_class class, bool final,
                              const char *why)
{
    enum host_state was = core->host;
    uint64_t wait_us = WORKER_RESTART_US_MIN;
    char late[WORKER_WHY_SIZE];

    core->host = HOST_NONE;
    if (was == HOST_LOADING && core->killing) {
        (void)snprintf(late, sizeof(late),
                       "the model said nothing for %g s while it was loaded (load_timeout)",
                       (double)core->options.load_us / 1e6);
        why = late;
        final = true;
    }
    if (class == ERROR_CLASS_LOST_WORKER && core->options.resumes)
        class = ERROR_CLASS_LOST_COORDINATOR;
    host_lose_jobs(core, class == ERROR_CLASS_NONE ? ERROR_CLASS_HANDED_BACK : class, why);
    core->killing = false;
    if (was == HOST_DRAINING || core->leaving) {
        core->host = HOST_LEFT;
    } else if (class == ERROR_CLASS_DEVICE_FAULT) {
        core->host = HOST_LEFT;
        leave(core, WORKER_EXIT_DEVICE, why);
    } else if (was == HOST_LOADING) {
        if (++core->load_failures >= core->options.load_count_max || final) {
            core->host = HOST_LEFT;
            leave(core, WORKER_EXIT_LOAD, why);
        }
        wait_us <<= core->load_failures * 2;
    }
    if (core->host == HOST_NONE) {
        core->host_start_us = core->now_us +
                              (wait_us < WORKER_RESTART_US_MAX ? wait_us : WORKER_RESTART_US_MAX);
        due_at(&core->scan_due_us, core->host_start_us);
        due_at(&core->scan_due_us, core->now_us + core->options.host_wait_us);
    }
    leave_step(core);
}

void worker_core_on_finished_reported(struct worker_core *core, uint64_t token)
{
    struct held *held = held_find(core, token);

    if (held == NULL || held->verdict != VERDICT_FINISHED)
        return;
    held->verdict = VERDICT_OVER;
    held_forget_when_done(core, held);
    leave_step(core);
}

/* ---- time ---- */

static void tell_started(struct worker_core *core, struct held *held)
{
    struct message_started *started;

    held->told_started = true;
    core->stats.started++;
    started = &todo_add(core, WORKER_TODO_STARTED, held->token)->started;
    *started = (struct message_started){.job = held->job,
                                        .token = held->token,
                                        .worker = WIRE_TEXT_OF(core->options.worker),
                                        .started_us = held->start_wall_us,
                                        .number = held->number};
}

/* Its run limit has passed. When the host already owes an answer, it may stand still because of
 * another: this one is canceled too, and charged only if the host answers, or if it alone is left
 * to blame. Killed with its host it goes back free of charge. */
static void held_is_over(struct worker_core *core, struct held *held)
{
    if (core->canceled_count == 0) {
        held_end(core, held, ERROR_CLASS_MODEL_TIMEOUT, "the run limit has passed");
        return;
    }
    held->over = true;
    core->over_count++;
    held_stop(core, held);
}

/* The grace after its CANCEL has passed without an answer. */
static void held_disobeys(struct worker_core *core, struct held *held)
{
    if (core->killing)
        return;
    if (held->verdict == VERDICT_OPEN && core->canceled_count == core->over_count)
        held_fail(core, held, ERROR_CLASS_MODEL_TIMEOUT, "the run limit has passed");
    core->killing = true;
    todo_add(core, WORKER_TODO_HOST_KILL, 0)->hung = true;
}

/* One attempt of a scan: what is due happens, what is to come is noted. */
static void scan_host_one(struct worker_core *core, struct held *held)
{
    uint64_t now_us = core->now_us, limit_us = held->start_us + held->run_limit_us;

    if (held->verdict == VERDICT_OPEN && held->deadline_us <= now_us) {
        held_end(core, held, ERROR_CLASS_EXPIRED, "the total deadline has passed");
        return;
    }
    if (held->cancel_us != 0) {
        if (held->cancel_us <= now_us)
            held_disobeys(core, held);
        else
            due_at(&core->scan_due_us, held->cancel_us);
        if (held->verdict == VERDICT_OPEN)
            due_at(&core->scan_due_us, held->deadline_us);
        return;
    }
    if (limit_us <= now_us) {
        held_is_over(core, held);
        return;
    }
    due_at(&core->scan_due_us, held->deadline_us < limit_us ? held->deadline_us : limit_us);
    if (held->told_started)
        return;
    if (held->start_us + core->options.started_delay_us <= now_us)
        tell_started(core, held);
    else
        due_at(&core->scan_due_us, held->start_us + core->options.started_delay_us);
}

static void scan_waiting_one(struct worker_core *core, struct held *held)
{
    bool ready = core->host == HOST_READY && (core->alone_count == 0 || held->alone);
    uint64_t patience_us = ready ? worker_ahead_until_us(held->arrived_us, core->options.ahead_us)
                                 : held->arrived_us + core->options.host_wait_us;

    if (held->deadline_us <= core->now_us) {
        held_end(core, held, ERROR_CLASS_EXPIRED, "the total deadline has passed");
        return;
    }
    due_at(&core->scan_due_us, held->deadline_us);
    if (ready && core->stats.in_host < core->options.slot_count)
        return;
    due_at(&core->scan_due_us, patience_us);
    if (patience_us > core->now_us)
        return;
    core->service_us = ready ? 0 : core->service_us; /* none comes ahead until one has ended */
    held_end(core, held, ERROR_CLASS_HANDED_BACK,
             ready ? "what runs takes long" : "the engine is not ready for it");
}

static void scan_loading(struct worker_core *core)
{
    if (core->killing)
        return;
    if (core->load_until_us > core->now_us) {
        due_at(&core->scan_due_us, core->load_until_us);
        return;
    }
    core->killing = true;
    (void)todo_add(core, WORKER_TODO_HOST_KILL, 0);
}

static void scan(struct worker_core *core)
{
    struct held *held, *next;

    core->scan_due_us = NEVER_US;
    HASH_ITER(hh, core->held, held, next)
    {
        if (held->place == PLACE_HOST)
            scan_host_one(core, held);
        else if (held->place != PLACE_NONE)
            scan_waiting_one(core, held);
    }
    run_what_waits(core);
    if (core->host == HOST_LOADING)
        scan_loading(core);
    if (core->host == HOST_NONE && !core->leaving) {
        if (core->host_start_us <= core->now_us) {
            core->host = HOST_LOADING;
            core->load_until_us = core->now_us + core->options.load_us;
            due_at(&core->scan_due_us, core->load_until_us);
            core->stats.host_starts++;
            (void)todo_add(core, WORKER_TODO_HOST_START, 0);
        } else {
            due_at(&core->scan_due_us, core->host_start_us);
        }
    }
    if (!core->leaving)
        return;
    if (core->leave_until_us <= core->now_us)
        leave_late(core);
    else
        due_at(&core->scan_due_us, core->leave_until_us);
    if (core->drain_until_us > core->now_us) {
        due_at(&core->scan_due_us, core->drain_until_us);
    } else if (core->host == HOST_DRAINING && !core->killing) {
        core->killing = true;
        (void)todo_add(core, WORKER_TODO_HOST_KILL, 0);
    } else {
        hand_back_all(core, "the worker is leaving");
    }
}

static void beat(struct worker_core *core)
{
    struct message_heartbeat *beat;
    struct held *held, *next;
    size_t count = 0;

    core->beat_us = core->now_us;
    core->beat_due_us = core->now_us + core->options.heartbeat_us;
    core->told_granted = core->granted;
    HASH_ITER(hh, core->held, held, next)
    {
        if (held->verdict == VERDICT_OVER || count == WORKER_HELD_MAX)
            continue;
        core->beat_tokens[count] = held->token;
        memcpy(core->beat_jobs + count * WIRE_ID_SIZE, &held->job, WIRE_ID_SIZE);
        count++;
    }
    beat = &todo_add(core, WORKER_TODO_HEARTBEAT, 0)->heartbeat;
    *beat = (struct message_heartbeat){
        .worker = WIRE_TEXT_OF(core->options.worker),
        .boot = core->options.boot,
        .pool = WIRE_TEXT_OF(core->options.pool),
        .partition = core->options.partition,
        .slots = core->options.slot_count,
        .granted = core->granted,
        .received = core->received,
        .position = core->position,
        .tokens = {core->beat_tokens, count},
        .draining = core->leaving,
        .jobs = {core->beat_jobs, count * WIRE_ID_SIZE},
        .host = WIRE_TEXT_OF(core->options.machine),
        .device = WIRE_TEXT_OF(core->options.device),
        .resumes = core->options.resumes,
    };
}

void worker_core_tick(struct worker_core *core, uint64_t now_us, uint64_t wall_us)
{
    core->now_us = now_us;
    core->wall_us = wall_us;
    if (core->scan_due_us <= now_us)
        scan(core);
    hello_when_ready(core);
    if (core->said_hello && !core->asked_bye && core->beat_due_us <= now_us)
        beat(core);
    leave_step(core);
}

uint64_t worker_core_due_us(const struct worker_core *core)
{
    uint64_t due_us = core->scan_due_us;

    if (core->said_hello && !core->asked_bye && core->beat_due_us < due_us)
        due_us = core->beat_due_us;
    if (!core->asked_hello && core->host == HOST_READY && core->knows_position && !core->leaving)
        due_us = core->now_us;
    return due_us;
}

/* ---- life ---- */

struct worker_core *worker_core_new(const struct worker_options *options, uint64_t now_us)
{
    struct worker_core *core = xcalloc(1, sizeof(*core));

    assert(options->slot_count >= 1 && options->slot_count <= WORKER_SLOTS_MAX);
    core->options = *options;
    core->pace = (struct worker_pace){.hold_us = options->hold_us, .slot_max = options->slot_count};
    core->now_us = now_us;
    core->beat_due_us = NEVER_US;
    core->beat_tokens = xcalloc(WORKER_HELD_MAX, sizeof(*core->beat_tokens));
    core->beat_jobs = xcalloc(WORKER_HELD_MAX, WIRE_ID_SIZE);
    TAILQ_INIT(&core->waiting);
    return core;
}

void worker_core_set_partition(struct worker_core *core, uint32_t partition)
{
    core->options.partition = partition;
}

void worker_core_free(struct worker_core **core_p)
{
    struct worker_core *core = TAKE(*core_p);
    struct held *held, *next;

    if (core == NULL)
        return;
    HASH_ITER(hh, core->held, held, next)
    {
        HASH_DEL(core->held, held);
        free(held);
    }
    free(core->beat_tokens);
    free(core->beat_jobs);
    free(core->todos);
    free(core);
}

struct worker_stats worker_core_stats(const struct worker_core *core)
{
    struct worker_stats stats = core->stats;

    if (stats.slots_busy > core->options.slot_count) /* those ahead have none */
        stats.slots_busy = core->options.slot_count;
    stats.granted = core->granted;
    stats.received = core->received;
    stats.held = HASH_COUNT(core->held);
    stats.slots_allowed = worker_pace_slots(&core->pace, core->now_us);
    stats.host_ready = core->host == HOST_READY;
    stats.said_hello = core->said_hello;
    stats.draining = core->leaving;
    return stats;
}
