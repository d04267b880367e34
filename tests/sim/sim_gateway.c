/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Clients, a gateway and Redis: submits (some with an Idempotency-Key, sent twice), cancels, status
 * questions. 201 only after Kafka's report; a report after the 503 is followed by a Cancel.
 */

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "schema/job_id.h"
#include "tests/sim/sim.h"

#define SUBMIT_SPAN_US (9 * SEC)
#define PROBES 6

static void client_submits(struct sim *sim, void *opaque, uint64_t number);

static struct sim_gateway *gateway_of(struct sim *sim, const struct sim_job *job)
{
    return &sim->gateways[job->gateway];
}

static int job_index(const struct sim *sim, const struct sim_job *job)
{
    return (int)(job - sim->jobs);
}

/* ---- Redis ---- */

void redis_set_final(struct sim *sim, int job, const struct message_completed *completed)
{
    check_final_key(sim, job, completed);
    sim->jobs[job].final_key_state = (enum job_state)completed->state;
    sim->jobs[job].final_key = sim_copy(sim, completed->output.bytes, completed->output.size);
}

void redis_flush(struct sim *sim)
{
    sim_trace(sim, "redis is flushed");
    for (int i = 0; i < SIM_JOBS_MAX; i++) {
        sim->jobs[i].final_key = (struct wire_bytes){0};
        sim->redis_keys[i] = -1;
    }
}

/* ---- cancels and status ---- */

static void send_cancel(struct sim *sim, struct sim_job *job)
{
    struct message_cancel cancel = {.id = job->id,
                                    .tenant = WIRE_TEXT_OF(job->tenant == 0 ? "t0" : "t1"),
                                    .gateway = WIRE_TEXT_OF("g"),
                                    .request = ++job->cancels_sent};

    assert(cancel.request <= SIM_CANCELS_MAX);
    kafka_produce(sim, &gateway_of(sim, job)->producer, LOG_INTAKE(job->shard), MESSAGE_CANCEL,
                  &cancel, NULL, NULL, 0);
}

static void client_cancels(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_job *job = opaque;

    (void)number;
    if (gateway_of(sim, job)->process.alive)
        send_cancel(sim, job);
}

void gateway_on_verdict(struct sim *sim, const struct message_wake *wake)
{
    int job = sim_job_of(sim, &wake->id);

    if (sim->faults.redis_flush && !sim->faults_over && sim_percent(sim, 20)) {
        sim_hit(sim, FAULT_WAKE_DROPPED);
        check_verdict(sim, job, wake);
        return; /* its caller asks for the status instead */
    }

    sim_trace(sim, "verdict on job %d: %s", job, wake->canceled ? "canceled" : "not canceled");
    check_verdict(sim, job, wake);
    if (wake->canceled)
        sim->jobs[job].verdict_true = true;
    else
        sim->jobs[job].verdict_false = true;
}

static void client_asks(struct sim *sim, void *opaque, uint64_t times)
{
    struct sim_job *job = opaque;

    check_status(sim, job_index(sim, job));
    if (times > 0)
        sim_post(sim, NULL, sim_between(sim, 1 * MS, 4 * SEC), client_asks, job, times - 1);
}

/* ---- submits ---- */

static void client_retries(struct sim *sim, struct sim_job *job)
{
    if (sim->faults_over || job->key >= 0 || sim_percent(sim, 50))
        sim_post(sim, NULL, sim_between(sim, 100 * MS, 1 * SEC), client_submits, job, 1);
}

static void http_timer(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_job *job = opaque;

    (void)sim;
    (void)number;
    if (!job->accepted)
        job->refused_503 = true;
}

/* The append time in the report shows a clock that is wrong: the gateway is not ready any more. */
static void note_clock(struct sim *sim, const struct sim_job *job)
{
    struct sim_gateway *gateway = gateway_of(sim, job);

    gateway->not_ready = gateway->wall_us > (int64_t)(2 * SEC) ||
                         gateway->wall_us < -(int64_t)(2 * SEC);
}

/* Nothing is promised of an id that was made so long ago, unless its row is there. */
static bool promise_is_late(const struct sim *sim, const struct sim_job *job)
{
    return sim->now_us > job_id_time_ms(&job->id) * MS + SIM_PROMISE_US &&
           !sim->ledger.rows[job_index(sim, job)].present;
}

static void submit_reported(struct sim *sim, void *opaque, uint64_t repeat, int64_t offset)
{
    struct sim_job *job = opaque;

    if (offset < 0) { /* 503; Kafka may have it all the same */
        job->refused_503 = !job->accepted;
        if (job->key >= 0)
            client_retries(sim, job);
        return;
    }
    if (repeat && promise_is_late(sim, job)) {
        client_retries(sim, job);
        return;
    }
    if (repeat) {
        job->accepted = true; /* the answer names the first id */
        return;
    }
    job->refused_503 |= promise_is_late(sim, job);
    if (job->refused_503) {
        sim_hit(sim, FAULT_GATEWAY_LATE);
        send_cancel(sim, job);
        return;
    }
    note_clock(sim, job);
    if (sim->faults.gateway_crash && !sim->faults_over && sim_percent(sim, 2)) {
        sim_hit(sim, FAULT_GATEWAY_REPORTED);
        gateway_crash(sim, gateway_of(sim, job));
        return; /* nobody was told */
    }
    job->accepted = true;
    check_accept(sim, job_index(sim, job));
    sim_trace(sim, "job %d is accepted at offset %lld", job_index(sim, job), (long long)offset);
    if (!sim_guarded(sim, OWNER_GUARD_RESERVATION) && job->key >= 0)
        sim->redis_keys[job->key] = job_index(sim, job);
    if (sim_percent(sim, 15))
        sim_post(sim, NULL, sim_between(sim, 0, 2 * SEC), client_cancels, job, 0);
    if (sim_percent(sim, 5))
        sim_post(sim, NULL, sim_between(sim, 0, 3 * SEC), client_cancels, job, 0);
    sim_post(sim, NULL, sim_between(sim, 1 * MS, 4 * SEC), client_asks, job, 3);
}

static void produce_submit(struct sim *sim, struct sim_job *job, bool repeat)
{
    static const uint8_t digest[32] = {1};
    struct message_submit submit = {
        .id = job->id,
        .tenant = WIRE_TEXT_OF(job->tenant == 0 ? "t0" : "t1"),
        .model = WIRE_TEXT_OF("m"),
        .deployment = WIRE_TEXT_OF("d"),
        .pool = sim_pool_name(job->pool),
        .priority = job->priority,
        .input_digest = {digest, sizeof(digest)},
        .max_attempts = 3,
        .initial_delay_ms = 50,
        .max_delay_ms = 400,
        .queue_limit_ms = job->queue_limit_ms,
        .run_limit_ms = 4000,
        .total_limit_ms = job->total_limit_ms,
        .gateway = WIRE_TEXT_OF("g"),
        .received_us = sim->now_us,
        .repeat = repeat,
        .input_type = WIRE_TEXT_OF("text/plain"),
        .route = WIRE_TEXT_OF("POST /v1/x"),
        .stream = job->blob_input,
    };
    char blob[16];

    (void)snprintf(blob, sizeof(blob), "i%d", job_index(sim, job));
    if (job->blob_input)
        submit.input_blob = WIRE_TEXT_OF(blob);
    else
        submit.input = (struct wire_bytes){(const uint8_t *)"{}", 2};
    if (job->webhook)
        submit.webhook_url = WIRE_TEXT_OF("https://example.org/hook");

    kafka_produce(sim, &gateway_of(sim, job)->producer, LOG_INTAKE(job->shard), MESSAGE_SUBMIT,
                  &submit, submit_reported, job, repeat);
}

static void name_job(struct sim *sim, struct sim_job *job)
{
    int index = job_index(sim, job);
    uint8_t entropy[JOB_ID_RANDOM_SIZE] = {0};

    entropy[6] = (uint8_t)(index >> 8);
    entropy[7] = (uint8_t)index;
    job->id = job_id_make(SIM_SHARD_FIRST + (uint32_t)job->shard,
                          (uint64_t)((int64_t)sim->now_us + gateway_of(sim, job)->wall_us) / MS,
                          entropy);
}

/* The first job of this key, as far as the gateway can know; -1: none. */
static int key_owner(const struct sim *sim, int key)
{
    if (!sim_guarded(sim, OWNER_GUARD_RESERVATION))
        return sim->redis_keys[key];
    return sim->ledger.keys[key].present ? sim->ledger.keys[key].job : -1;
}

/* A keyed submit: reserve, or answer with the first job and see that it was produced. */
static bool keyed_submit(struct sim *sim, struct sim_job *job)
{
    int first = key_owner(sim, job->key);

    if (!sim->ledger.up) { /* 503: the reservation is made before anything is promised */
        client_retries(sim, job);
        return false;
    }
    if (first < 0) {
        sim->ledger.keys[job->key].present = true;
        sim->ledger.keys[job->key].job = job_index(sim, job);
        return true;
    }
    if (!sim->ledger.rows[first].present)
        produce_submit(sim, &sim->jobs[first], true);
    return false;
}

static void client_submits(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_job *job = opaque;

    (void)number;
    if (job->produced)
        return;
    if (job->shard >= sim->shards_open) { /* its deployment is not made yet */
        sim_post(sim, NULL, 500 * MS, client_submits, job, 0);
        return;
    }
    if (gateway_of(sim, job)->not_ready) /* the balancer sends it to the other one */
        job->gateway = (job->gateway + 1) % SIM_GATEWAYS;
    if (!gateway_of(sim, job)->process.alive) {
        client_retries(sim, job);
        return;
    }
    name_job(sim, job);
    if (job->key >= 0 && !keyed_submit(sim, job))
        return;
    job->produced = true;
    job->produced_us = sim->now_us;
    job->skewed_id = gateway_of(sim, job)->wall_us != 0;
    if (job->skewed_id)
        job->blob_input = false;
    if (job->blob_input)
        blob_put_input(sim, job_index(sim, job));
    if (job->blob_input && sim->faults.gateway_crash && !sim->faults_over && sim_percent(sim, 10)) {
        sim_hit(sim, FAULT_GATEWAY_BLOB);
        gateway_crash(sim, gateway_of(sim, job));
        return;
    }
    /* A gateway may die between its reservation and its produce. */
    if (job->key >= 0 && sim->faults.gateway_crash && !sim->faults_over && sim_percent(sim, 20)) {
        sim_hit(sim, FAULT_GATEWAY_RESERVED);
        gateway_crash(sim, gateway_of(sim, job));
        return;
    }
    produce_submit(sim, job, false);
    sim_post(sim, NULL, SIM_PROMISE_US, http_timer, job, 0);
}

static void gateway_restarts(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_gateway *gateway = opaque;

    (void)sim;
    (void)number;
    if (!gateway->process.alive)
        process_start(&gateway->process);
}

void gateway_crash(struct sim *sim, struct sim_gateway *gateway)
{
    if (!gateway->process.alive)
        return;
    sim_trace(sim, "%s is killed", gateway->process.name);
    for (int shard = 0; shard < sim->shard_count; shard++) {
        if (gateway->producer.pipes[LOG_INTAKE(shard)].head != NULL)
            sim_hit(sim, FAULT_GATEWAY_PRODUCED);
    }
    process_kill(&gateway->process);
    kafka_producer_dies(sim, &gateway->producer);
    sim_post(sim, NULL, sim_between(sim, 50 * MS, 1 * SEC), gateway_restarts, gateway, 0);
}

static void garbage_arrives(struct sim *sim, void *opaque, uint64_t number)
{
    static const char garbage[] = "\x93\x01\x01 is no message";
    int shard = (int)sim_between(sim, 0, (uint64_t)sim->shard_count - 1);

    (void)opaque;
    (void)number;
    sim_hit(sim, FAULT_GARBAGE);
    kafka_produce_bytes(sim, &sim->gateways[0].producer, LOG_INTAKE(shard), garbage,
                        sizeof(garbage), NULL, NULL, 0);
}

static void make_job(struct sim *sim, int index)
{
    struct sim_job *job = &sim->jobs[index];

    *job = (struct sim_job){
        .pool = (int)sim_between(sim, 0, (uint64_t)sim->pool_count - 1),
        .gateway = (int)sim_between(sim, 0, SIM_GATEWAYS - 1),
        .tenant = (int)sim_between(sim, 0, 1),
        .key = -1,
        .priority = (uint32_t)sim_between(sim, 0, 2),
        .offset = -1,
        .service_us = sim_between(sim, 1 * MS, sim_percent(sim, 10) ? 3 * SEC : 300 * MS),
        .fail_percent = sim_percent(sim, 30) ? 50 : 0,
        .queue_limit_ms = sim_percent(sim, 10) ? sim_between(sim, 500, 3000) : 10000000,
        .total_limit_ms = sim_percent(sim, 10) ? sim_between(sim, 500, 5000) : 0,
        .webhook = sim_percent(sim, 30),
        .blob_input = sim_percent(sim, 20),
        .big_output = sim_percent(sim, 20),
        .bad_output = sim->faults.bad_rows && sim_percent(sim, 4),
        .bad_submit = sim->faults.bad_rows && sim_percent(sim, 2),
    };
    if (index % 5 == 4) /* a line of a bulk job; no draw, so that seeds mean what they meant */
        job->priority = JOB_PRIORITY_BULK;
    if (sim_percent(sim, 1))
        job->service_us = 60 * SEC; /* it hangs: the run limit ends it */
    job->shard = job->pool % sim->shard_count;
    name_job(sim, job);
}

void gateway_begin(struct sim *sim)
{
    static const char *const names[SIM_GATEWAYS] = {"g0", "g1"};

    for (int i = 0; i < SIM_GATEWAYS; i++) {
        sim->gateways[i].process.name = names[i];
        process_start(&sim->gateways[i].process);
        kafka_producer_init(&sim->gateways[i].producer, &sim->gateways[i].process);
    }
    sim->faults.bad_rows = sim_percent(sim, 30);
    sim->job_count = sim->options.jobs < SIM_JOBS_MAX - PROBES ? sim->options.jobs
                                                               : SIM_JOBS_MAX - PROBES;
    for (int i = 0; i < SIM_JOBS_MAX; i++)
        sim->redis_keys[i] = -1;
    for (int i = 0; i < sim->job_count; i++) {
        make_job(sim, i);
        if (i % 8 == 7) { /* the client sends the same key a second time */
            sim->jobs[i].key = sim->jobs[i - 1].key = sim->key_count++;
            sim->jobs[i].tenant = sim->jobs[i - 1].tenant;
            sim->jobs[i].pool = sim->jobs[i - 1].pool;
            sim->jobs[i].shard = sim->jobs[i - 1].shard;
            name_job(sim, &sim->jobs[i]);
        }
        sim_post(sim, NULL, sim_between(sim, 0, SUBMIT_SPAN_US), client_submits, &sim->jobs[i], 0);
    }
    if (sim->faults.bad_rows)
        sim_post(sim, &sim->gateways[0].process, sim_between(sim, 0, SUBMIT_SPAN_US),
                 garbage_arrives, NULL, 0);
}

/* After the faults: a few more jobs, which show that every slot still serves. */
void gateway_probe(struct sim *sim)
{
    for (int i = 0; i < PROBES; i++) {
        int index = sim->job_count++;

        sim->faults.bad_rows = false;
        make_job(sim, index);
        sim->jobs[index].fail_percent = 0;
        sim_post(sim, NULL, sim_between(sim, 0, 2 * SEC), client_submits, &sim->jobs[index], 0);
    }
}
