/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Worker processes: the real worker core (workers/worker_core.h) between a dispatch partition, an
 * engine host that is played here, and `outcome`. The core decides; this file is its shell, as
 * workers/worker_queue.c and worker_host.c are in the program.
 *
 * A start of a worker is a boot: it loads its engine, reads its partition from the end, says Hello.
 * It dies, stands still, or leaves; its machine's agent starts it again and tells its owner.
 */

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "tests/sim/sim.h"

#define RETRY_US (100 * MS) /* what Kafka did not take is sent again */

static void worker_act(struct sim *sim, struct sim_worker *worker);
static void worker_leaves(struct sim *sim, struct sim_worker *worker, bool heard);
static void worker_goes_on(struct sim *sim, void *opaque, uint64_t number);

int worker_outcome(const struct sim *sim, const struct sim_worker *worker)
{
    return LOG_OUTCOME(worker->pool % sim->shard_count);
}

static void worker_tick(struct sim *sim, struct sim_worker *worker)
{
    worker_core_tick(worker->core, sim->now_us, sim->now_us);
}

/* ---- points ---- */

/* Killed here, or goes on. */
static bool worker_passes(struct sim *sim, struct sim_worker *worker, enum sim_fault point)
{
    if (!sim->faults.worker_points || sim->faults_over || !sim_percent(sim, 2))
        return true;
    sim_hit(sim, point);
    sim->worker_faulted = true;
    worker_crash(sim, worker, sim_percent(sim, 50));
    return false;
}

/* ---- the engine host ---- */

static struct sim_engine_run *run_find(struct sim_worker *worker, uint64_t token)
{
    for (size_t i = 0; i < worker->run_count; i++) {
        if (worker->runs[i].token == token)
            return &worker->runs[i];
    }
    return NULL;
}

/* One request is over; the host takes another for it. */
static void host_ends(struct sim *sim, struct sim_worker *worker, struct sim_engine_run *run,
                      const struct worker_result *result)
{
    uint64_t token = run->token;

    *run = worker->runs[--worker->run_count];
    worker_tick(sim, worker);
    worker_core_on_host_final(worker->core, token, ++worker->host_granted, result);
    worker_act(sim, worker);
}

static void host_dies(struct sim *sim, struct sim_worker *worker, enum error_class class)
{
    if (!worker->host_up)
        return;
    worker->host_up = false;
    worker->host_life++;
    worker->run_count = 0;
    worker_tick(sim, worker);
    worker_core_on_host_gone(worker->core, class, false, "the engine has ended");
    worker_act(sim, worker);
}

static void host_is_ready(struct sim *sim, void *opaque, uint64_t life)
{
    struct sim_worker *worker = opaque;

    if (worker->core == NULL || life != worker->host_life)
        return;
    worker->host_granted = worker->options.slot_count;
    worker_tick(sim, worker);
    worker_core_on_host_ready(worker->core, worker->host_granted);
    worker_act(sim, worker);
}

static void host_fails_load(struct sim *sim, void *opaque, uint64_t life)
{
    struct sim_worker *worker = opaque;

    if (worker->core != NULL && life == worker->host_life)
        host_dies(sim, worker, ERROR_CLASS_MODEL_UNAVAILABLE);
}

static void host_starts(struct sim *sim, struct sim_worker *worker)
{
    bool fails = sim->faults.engine && !sim->faults_over && sim_percent(sim, 5);

    worker->host_up = true;
    worker->host_life++;
    if (fails)
        sim_hit(sim, FAULT_ENGINE_LOAD);
    sim_post(sim, &worker->process, sim_between(sim, 1 * MS, 60 * MS),
             fails ? host_fails_load : host_is_ready, worker, worker->host_life);
}

static enum error_class run_class(struct sim *sim, const struct sim_job *job, bool alone)
{
    static const enum error_class classes[] = {
        ERROR_CLASS_MODEL_ERROR, ERROR_CLASS_MODEL_ERROR,  ERROR_CLASS_MODEL_UNAVAILABLE,
        ERROR_CLASS_OOM,         ERROR_CLASS_BAD_INPUT,    ERROR_CLASS_MODEL_TIMEOUT,
        ERROR_CLASS_OOM,         ERROR_CLASS_DEVICE_FAULT,
    };
    enum error_class class;

    if (alone || !sim_percent(sim, job->fail_percent))
        return ERROR_CLASS_NONE;
    class = classes[sim_between(sim, 0, COUNT_OF(classes) - 1)];
    if (class == ERROR_CLASS_DEVICE_FAULT)
        sim->worker_faulted = true; /* it pays from the same budget */
    return class;
}

/* Attempts of some jobs only wait, the first time: chosen by the seed, so that the dice of all
 * other worlds fall as before. 0: not this one. */
static uint64_t run_put_off_ms(struct sim *sim, int job)
{
    uint64_t hash = (sim->options.seed * 31 + (uint64_t)job) * UINT64_C(0x9e3779b97f4a7c15) >> 33;

    if (sim->options.seed % 4 != 0 || hash % 6 != 0 || sim->jobs[job].put_off)
        return 0;
    sim->jobs[job].put_off = true;
    return 1 + hash / 6 % 8000;
}

/* Each attempt has a result of its own, so that two published ones cannot be equal. */
static void run_ends(struct sim *sim, void *opaque, uint64_t token)
{
    struct sim_worker *worker = opaque;
    struct sim_engine_run *run = run_find(worker, token);
    struct worker_result result = {.batch_count = 1};
    char output[64];

    if (run == NULL || run->canceled)
        return;
    if (sim->faults.engine && !sim->faults_over && sim_percent(sim, 2)) {
        sim_hit(sim, FAULT_ENGINE_CRASH);
        sim->worker_faulted = true;
        host_dies(sim, worker, ERROR_CLASS_LOST_WORKER);
        return;
    }
    result.retry_after_ms = run_put_off_ms(sim, run->job);
    result.error_class = result.retry_after_ms > 0
                             ? ERROR_CLASS_HANDED_BACK
                             : run_class(sim, &sim->jobs[run->job], run->alone);
    (void)snprintf(output, sizeof(output), "result of %llx", (unsigned long long)token);
    result.output = (struct wire_bytes){(const uint8_t *)output, strlen(output)};
    result.output_type = WIRE_TEXT_OF("text/plain");
    result.http_status = result.error_class == ERROR_CLASS_NONE ? 201 : 500;
    if (result.error_class != ERROR_CLASS_NONE)
        result.error_message = WIRE_TEXT_OF("it went wrong");
    host_ends(sim, worker, run, &result);
}

static void run_is_canceled(struct sim *sim, void *opaque, uint64_t token)
{
    struct sim_worker *worker = opaque;
    struct sim_engine_run *run = run_find(worker, token);
    struct worker_result result = {.error_class = ERROR_CLASS_CANCELED};

    if (run != NULL)
        host_ends(sim, worker, run, &result);
}

static bool do_run(struct sim *sim, struct sim_worker *worker, const struct worker_todo *todo)
{
    struct sim_engine_run *run = &worker->runs[worker->run_count];

    if (!worker_passes(sim, worker, FAULT_KILL_BEFORE_STARTED))
        return false;
    assert(worker->run_count < COUNT_OF(worker->runs));
    worker->run_count++;
    *run = (struct sim_engine_run){
        .token = todo->token, .job = sim_job_of(sim, &todo->run.job), .alone = todo->run.alone};
    check_run(sim, worker, run);
    sim_trace(sim, "%s runs job %d, token %u/%u", worker->name, run->job, TOKEN_EPOCH(todo->token),
              (uint32_t)todo->token);
    sim_post(sim, &worker->process, sim->jobs[run->job].service_us, run_ends, worker, todo->token);
    return true;
}

/* Most engines let go soon; some do not, and are killed after a grace. */
static void do_cancel(struct sim *sim, struct sim_worker *worker, uint64_t token)
{
    struct sim_engine_run *run = run_find(worker, token);

    if (run == NULL)
        return;
    run->canceled = true;
    if (sim->faults.engine && sim_percent(sim, 20)) {
        sim_hit(sim, FAULT_ENGINE_DEAF);
        return;
    }
    sim_post(sim, &worker->process, sim_between(sim, 1 * MS, 20 * MS), run_is_canceled, worker,
             token);
}

static void host_is_killed(struct sim *sim, void *opaque, uint64_t life)
{
    struct sim_worker *worker = opaque;

    if (worker->core != NULL && life == worker->host_life)
        host_dies(sim, worker, ERROR_CLASS_LOST_WORKER);
}

static void host_is_drained(struct sim *sim, void *opaque, uint64_t life)
{
    struct sim_worker *worker = opaque;

    if (worker->core != NULL && life == worker->host_life)
        host_dies(sim, worker, ERROR_CLASS_NONE);
}

/* ---- what it says ---- */

/* A record that must arrive: sent until it is reported. */
struct parcel {
    struct sim_worker *worker;
    uint64_t boot, token;
    enum message_type type;
    struct wire_bytes bytes;
};

static void parcel_send(struct sim *sim, void *opaque, uint64_t number);

static void parcel_reported(struct sim *sim, void *opaque, uint64_t number, int64_t offset)
{
    struct parcel *parcel = opaque;
    struct sim_worker *worker = parcel->worker;

    (void)number;
    if (worker->core == NULL || worker->boot != parcel->boot)
        return;
    if (offset < 0) {
        sim_post(sim, &worker->process, RETRY_US, parcel_send, parcel, 0);
        return;
    }
    worker_tick(sim, worker);
    if (parcel->type == MESSAGE_FINISHED)
        worker_core_on_finished_reported(worker->core, parcel->token);
    else if (parcel->type == MESSAGE_HELLO)
        worker_core_on_hello_reported(worker->core);
    else
        worker_core_on_bye_reported(worker->core);
    worker_act(sim, worker);
}

static void parcel_send(struct sim *sim, void *opaque, uint64_t number)
{
    struct parcel *parcel = opaque;
    struct sim_worker *worker = parcel->worker;

    (void)number;
    kafka_produce_bytes(sim, &worker->producer, worker_outcome(sim, worker), parcel->bytes.bytes,
                        parcel->bytes.size, parcel_reported, parcel, 0);
}

static void must_say(struct sim *sim, struct sim_worker *worker, enum message_type type,
                     const void *fields, uint64_t token)
{
    OWNED(buf_done) struct buf buf = BUF_WITH_LIMIT(1 << 20);
    struct parcel *parcel = sim_alloc(sim, sizeof(*parcel));
    struct err err;

    if (message_encode(type, fields, &buf, &err) < 0) {
        sim_fail(sim, "a %s cannot be encoded: %s", message_type_name(type), err.text);
        return;
    }
    *parcel = (struct parcel){.worker = worker,
                              .boot = worker->boot,
                              .token = token,
                              .type = type,
                              .bytes = sim_copy(sim, buf.bytes, buf.size)};
    parcel_send(sim, parcel, 0);
}

static void may_say(struct sim *sim, struct sim_worker *worker, enum message_type type,
                    const void *fields)
{
    kafka_produce(sim, &worker->producer, worker_outcome(sim, worker), type, fields, NULL, NULL, 0);
}

/* An input from the blob store, by a key that ends with the number of the job. */
struct fetch {
    struct sim_worker *worker;
    uint64_t boot;
    int job;
};

static void input_arrives(struct sim *sim, void *opaque, uint64_t token)
{
    struct fetch *fetch = opaque;
    struct sim_worker *worker = fetch->worker;
    enum error_class class = ERROR_CLASS_NONE;

    if (worker->core == NULL || worker->boot != fetch->boot)
        return;
    if (sim->faults.blob_away && !sim->faults_over && sim_percent(sim, 20)) {
        sim_hit(sim, FAULT_BLOB_AWAY);
        class = ERROR_CLASS_HANDED_BACK;
    } else if (!sim->jobs[fetch->job].blob_there) {
        check_blob_read(sim, fetch->job);
        class = ERROR_CLASS_LOST_WORKER;
    }
    worker_tick(sim, worker);
    worker_core_on_input(worker->core, token, class, "its input is not to be had");
    worker_act(sim, worker);
}

static void do_fetch(struct sim *sim, struct sim_worker *worker, const struct worker_todo *todo)
{
    struct fetch *fetch = sim_alloc(sim, sizeof(*fetch));

    *fetch = (struct fetch){.worker = worker, .boot = worker->boot};
    for (size_t i = 1; i < todo->fetch.blob.size; i++)
        fetch->job = 10 * fetch->job + todo->fetch.blob.text[i] - '0';
    sim_post(sim, &worker->process, sim_between(sim, 500, 20 * MS), input_arrives, fetch,
             todo->token);
}

/* A large result lies in the blob store before it is told, under its token. */
static bool do_finished(struct sim *sim, struct sim_worker *worker, struct worker_todo *todo)
{
    int job = sim_job_of(sim, &todo->finished.job);
    char key[32];

    if (sim->jobs[job].big_output && todo->finished.output.size > 0) {
        (void)snprintf(key, sizeof(key), "r%llx", (unsigned long long)todo->token);
        check_result_blob(sim, job, todo->token);
        todo->finished.output = (struct wire_bytes){0};
        todo->finished.output_blob = WIRE_TEXT_OF(key);
        if (!worker_passes(sim, worker, FAULT_KILL_AFTER_BLOB))
            return false;
    }
    must_say(sim, worker, MESSAGE_FINISHED, &todo->finished, todo->token);
    return worker_passes(sim, worker, FAULT_KILL_FINISHED);
}

/* ---- the turn ---- */

static void do_exit(struct sim *sim, struct sim_worker *worker, int code)
{
    sim_trace(sim, "%s ends with %d", worker->name, code);
    worker_leaves(sim, worker, code == 0);
}

/* False when the worker is over. */
static bool worker_do(struct sim *sim, struct sim_worker *worker, struct worker_todo *todo)
{
    switch (todo->type) {
    case WORKER_TODO_FETCH:
        do_fetch(sim, worker, todo);
        return true;
    case WORKER_TODO_FORGET:
        return true; /* an input that comes all the same is not listened to */
    case WORKER_TODO_RUN:
        return do_run(sim, worker, todo);
    case WORKER_TODO_CANCEL:
        do_cancel(sim, worker, todo->token);
        return true;
    case WORKER_TODO_HELLO:
        must_say(sim, worker, MESSAGE_HELLO, &todo->hello, 0);
        return true;
    case WORKER_TODO_HEARTBEAT:
        may_say(sim, worker, MESSAGE_HEARTBEAT, &todo->heartbeat);
        return true;
    case WORKER_TODO_STARTED:
        may_say(sim, worker, MESSAGE_STARTED, &todo->started);
        return true;
    case WORKER_TODO_FINISHED:
        return do_finished(sim, worker, todo);
    case WORKER_TODO_BYE:
        must_say(sim, worker, MESSAGE_BYE, &todo->bye, 0);
        return true;
    case WORKER_TODO_HOST_START:
        host_starts(sim, worker);
        return true;
    case WORKER_TODO_HOST_KILL:
        sim_post(sim, &worker->process, 1 * MS, host_is_killed, worker, worker->host_life);
        return true;
    case WORKER_TODO_HOST_DRAIN:
        sim_post(sim, &worker->process, sim_between(sim, 1 * MS, 10 * MS), host_is_drained, worker,
                 worker->host_life);
        return true;
    case WORKER_TODO_EXIT:
        do_exit(sim, worker, todo->exit.code);
        return false;
    }
    return true;
}

static void worker_act(struct sim *sim, struct sim_worker *worker)
{
    struct worker_todo todo;
    uint64_t due_us;

    while (worker->core != NULL && !sim->failed && worker_core_next_todo(worker->core, &todo)) {
        if (!worker_do(sim, worker, &todo))
            return;
    }
    if (worker->core == NULL)
        return;
    due_us = worker_core_due_us(worker->core);
    if (due_us <= sim->now_us)
        due_us = sim->now_us + 1 * MS;
    if (due_us >= worker->tick_at_us)
        return;
    worker->tick_at_us = due_us;
    sim_post(sim, &worker->process, due_us - sim->now_us, worker_goes_on, worker, due_us);
}

static void worker_goes_on(struct sim *sim, void *opaque, uint64_t at_us)
{
    struct sim_worker *worker = opaque;

    if (worker->core == NULL || at_us != worker->tick_at_us)
        return; /* an earlier one was asked for since, and ran */
    worker->tick_at_us = UINT64_MAX;
    worker_tick(sim, worker);
    worker_act(sim, worker);
}

/* ---- what it reads ---- */

static void read_one(struct sim *sim, struct sim_worker *worker, struct message *message)
{
    if (message->type == MESSAGE_REVOKE) {
        if (message->revoke.boot == worker->boot && run_find(worker, message->revoke.token) == NULL)
            sim_hit(sim, FAULT_REVOKE_EARLY);
        worker_core_on_revoke(worker->core, &message->revoke);
        return;
    }
    if (message->attempt.boot != worker->boot && !sim_guarded(sim, OWNER_GUARD_BOOT))
        message->attempt.boot = worker->boot;
    worker_core_on_attempt(worker->core, &message->attempt);
}

static void worker_fetch(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_worker *worker = opaque;
    struct sim_log *log = &sim->logs[worker->log];
    struct message message;
    struct err err;

    (void)number;
    worker->fetching = false;
    if (worker->core == NULL || !worker->reading)
        return;
    if (kafka_stalled(sim, worker->log)) {
        worker_wake(sim, worker);
        return;
    }
    worker_tick(sim, worker);
    while (worker->position < log->count) {
        const struct sim_record *record = &log->records[worker->position++];

        if (message_decode(sim->decoder, record->bytes, record->size, &message, &err) < 0)
            NEVER("a dispatch record cannot be decoded");
        read_one(sim, worker, &message);
    }
    worker_core_on_read(worker->core, worker->position);
    worker_act(sim, worker);
}

void worker_wake(struct sim *sim, struct sim_worker *worker)
{
    uint64_t stall_us = kafka_stalled(sim, worker->log)
                            ? sim->logs[worker->log].stalled_until_us - sim->now_us
                            : 0;

    if (!worker->process.alive || worker->fetching || !worker->reading)
        return;
    worker->fetching = true;
    sim_post(sim, &worker->process, sim_between(sim, 50, 2 * MS) + stall_us, worker_fetch, worker,
             0);
}

/* ---- life ---- */

/* Its partition is known, and where it ends: from there on it reads. */
static void worker_reads(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_worker *worker = opaque;

    (void)number;
    if (worker->position < sim->logs[worker->log].count && worker->position > 0)
        sim_hit(sim, FAULT_WORKER_REBOOT_UNREAD);
    worker->position = sim->logs[worker->log].count;
    worker->reading = true;
    worker_tick(sim, worker);
    worker_core_on_read(worker->core, worker->position);
    worker_act(sim, worker);
    worker_wake(sim, worker);
}

void worker_start(struct sim *sim, struct sim_worker *worker)
{
    process_start(&worker->process);
    worker->boot++;
    worker->options = worker_options_default;
    worker->options.worker = worker->name;
    worker->options.pool = sim_pool_name(worker->pool).text;
    worker->options.machine = "m";
    worker->options.device = "cpu";
    worker->options.boot = worker->boot;
    worker->options.shard = SIM_SHARD_FIRST + (uint32_t)(worker->pool % sim->shard_count);
    worker->options.partition = (uint32_t)(worker->log - LOG_DISPATCH(0));
    worker->options.slot_count = worker->slots;
    worker->options.heartbeat_us = 500 * MS;
    worker->options.cancel_grace_us = 300 * MS;
    worker->options.host_wait_us = 1 * SEC;
    worker->options.drain_us = 1 * SEC;
    worker->core = worker_core_new(&worker->options, sim->now_us);
    worker->fetching = worker->reading = worker->host_up = false;
    worker->run_count = 0;
    worker->tick_at_us = UINT64_MAX;
    sim_post(sim, &worker->process, sim_between(sim, 0, 50 * MS), worker_reads, worker, 0);
    worker_act(sim, worker);
}

static void worker_restarts(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_worker *worker = opaque;

    (void)number;
    if (!worker->process.alive)
        worker_start(sim, worker);
}

struct gone {
    struct sim_worker *worker;
    uint64_t boot;
    bool left;
};

static void agent_says_gone(struct sim *sim, void *opaque, uint64_t number)
{
    struct gone *report = opaque;
    struct message_gone gone = {
        .worker = WIRE_TEXT_OF(report->worker->name), .boot = report->boot, .left = report->left};

    if (report->worker->process.alive)
        sim_hit(sim, FAULT_GONE_LATE); /* the next boot is up already */
    kafka_produce(sim, &sim->machines[report->worker->machine].producer,
                  worker_outcome(sim, report->worker), MESSAGE_GONE, &gone, NULL, NULL, number);
}

static void agent_tells_gone(struct sim *sim, struct sim_worker *worker, bool left)
{
    struct process *agent = &sim->machines[worker->machine].process;
    struct gone *report = sim_alloc(sim, sizeof(*report));

    *report = (struct gone){worker, worker->boot, left};
    if (sim_percent(sim, 20)) {
        sim_post(sim, agent, sim_between(sim, 0, 5 * SEC), agent_says_gone, report, 0);
    } else {
        sim_hit(sim, FAULT_GONE_PROMPT);
        sim_post(sim, agent, sim_between(sim, 0, 5 * MS), agent_says_gone, report, 0);
    }
    if (!sim_percent(sim, 20))
        return;
    sim_hit(sim, FAULT_GONE_TWICE);
    sim_post(sim, agent, sim_between(sim, 0, 1 * SEC), agent_says_gone, report, 0);
}

/* What it has not handed to Kafka dies with it. */
static void worker_ends(struct sim *sim, struct sim_worker *worker, bool agent_tells, bool left)
{
    uint64_t wait_us;

    worker_core_free(&worker->core);
    process_kill(&worker->process);
    kafka_producer_dies(sim, &worker->producer);
    worker->run_count = 0;
    worker->host_life++;
    if (agent_tells)
        agent_tells_gone(sim, worker, left);
    wait_us = sim_between(sim, 10 * MS, 3 * SEC);
    if (worker->away_until_us > sim->now_us + wait_us)
        wait_us = worker->away_until_us - sim->now_us;
    sim_post(sim, NULL, wait_us, worker_restarts, worker, 0);
}

/* By its own decision. When its last words are not heard and its agent says nothing either, it is
 * as lost as one that was killed. */
static void worker_leaves(struct sim *sim, struct sim_worker *worker, bool heard)
{
    bool agent_tells = sim_percent(sim, 50);

    if (!heard)
        worker->unheard_boot = worker->boot;
    if (!heard && !agent_tells)
        sim->worker_faulted = true;
    worker_ends(sim, worker, agent_tells, true);
}

void worker_crash(struct sim *sim, struct sim_worker *worker, bool agent_tells)
{
    if (!worker->process.alive)
        return;
    sim_trace(sim, "%s is killed", worker->name);
    if (worker->run_count > 0)
        sim_hit(sim, FAULT_WORKER_CRASH);
    worker_ends(sim, worker, agent_tells, false);
}

/* SIGTERM. */
void worker_leave(struct sim *sim, struct sim_worker *worker)
{
    if (!process_runs(sim, &worker->process))
        return;
    sim_trace(sim, "%s is told to leave", worker->name);
    sim_hit(sim, FAULT_WORKER_LEAVE);
    worker_tick(sim, worker);
    worker_core_drain(worker->core);
    worker_act(sim, worker);
}
