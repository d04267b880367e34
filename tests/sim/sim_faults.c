/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What goes wrong. Each world has some kinds of faults and not others, so that a rule which only
 * matters without some fault is tried too. When the time of faults is over, all is mended.
 */

#include <string.h>

#include "tests/sim/sim.h"

#define FAULT_SPAN_US (11 * SEC)

static void fault_again(struct sim *sim, sim_fn *fn, uint64_t mean_us)
{
    sim_post(sim, NULL, sim_between(sim, mean_us / 4, 2 * mean_us), fn, NULL, 0);
}

static int other_broker(struct sim *sim)
{
    return (sim->assigned + 1 + (int)sim_between(sim, 0, SIM_BROKERS - 2)) % SIM_BROKERS;
}

/* Kafka notices that the owner is away and elects another that is up. */
static void elect(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    for (int i = 0; i < SIM_BROKERS; i++) {
        int index = (sim->assigned + 1 + i) % SIM_BROKERS;
        const struct process *process = &sim->brokers[index].process;

        if (process->alive && process->paused_until_us <= sim->now_us) {
            broker_assign(sim, index);
            return;
        }
    }
    sim_post(sim, NULL, 200 * MS, elect, NULL, 0);
}

static void broker_restarts(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_broker *broker = opaque;

    (void)number;
    if (!broker->process.alive)
        broker_start(sim, broker);
}

static void fault_broker_crash(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_broker *broker = &sim->brokers[sim->assigned];

    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    if (broker->process.alive) {
        broker_crash(sim, broker);
        sim_post(sim, NULL, sim_between(sim, 100 * MS, 3 * SEC), broker_restarts, broker, 0);
        sim_post(sim, NULL, sim_between(sim, 10 * MS, 2 * SEC), elect, NULL, 0);
    }
    fault_again(sim, fault_broker_crash, 3 * SEC);
}

/* SIGSTOP: its session ends while it stands still; then it goes on as a zombie. */
static void fault_broker_pause(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_broker *broker = &sim->brokers[sim->assigned];

    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    if (broker->process.alive) {
        uint64_t long_us = sim_between(sim, 50 * MS, 6 * SEC);

        sim_trace(sim, "%s stands still for %llu ms", broker->process.name,
                  (unsigned long long)(long_us / MS));
        broker->process.paused_until_us = sim->now_us + long_us;
        if (long_us > 1 * SEC)
            sim_post(sim, NULL, sim_between(sim, 300 * MS, 3 * SEC), elect, NULL, 0);
    }
    fault_again(sim, fault_broker_pause, 4 * SEC);
}

static void fault_two_owners(struct sim *sim, void *opaque, uint64_t number)
{
    int index = other_broker(sim);

    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    if (sim->brokers[index].process.alive) {
        sim_trace(sim, "%s is assigned too", sim->brokers[index].process.name);
        broker_assign(sim, index);
    }
    fault_again(sim, fault_two_owners, 3 * SEC);
}

static struct sim_worker *some_worker(struct sim *sim)
{
    return &sim->workers[sim_between(sim, 0, (uint64_t)sim->worker_count - 1)];
}

static void fault_worker_crash(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    sim->worker_faulted = true;
    worker_crash(sim, some_worker(sim), sim_percent(sim, 50));
    fault_again(sim, fault_worker_crash, 3 * SEC);
}

static void fault_worker_leave(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    worker_leave(sim, some_worker(sim));
    fault_again(sim, fault_worker_leave, 3 * SEC);
}

static void fault_worker_pause(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_worker *worker = some_worker(sim);

    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    sim->worker_faulted = true;
    sim_trace(sim, "%s stands still", worker->name);
    worker->process.paused_until_us = sim->now_us + sim_between(sim, 100 * MS, 6 * SEC);
    fault_again(sim, fault_worker_pause, 4 * SEC);
}

static void fault_false_gone(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_worker *worker = some_worker(sim);
    struct message_gone gone = {.worker = WIRE_TEXT_OF(worker->name), .boot = worker->boot};

    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    sim->worker_faulted = true;
    kafka_produce(sim, &sim->agent_producer, SIM_OUTCOME, MESSAGE_GONE, &gone, NULL, NULL, 0);
    fault_again(sim, fault_false_gone, 6 * SEC);
}

static void fault_kafka_stall(struct sim *sim, void *opaque, uint64_t number)
{
    uint64_t until_us = sim->now_us + sim_between(sim, 50 * MS, 6 * SEC);
    int log = (int)sim_between(sim, 0, SIM_LOGS_MAX);

    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    sim_trace(sim, "log %d stands still for %llu ms", log,
              (unsigned long long)((until_us - sim->now_us) / MS));
    for (int i = 0; i < SIM_LOGS_MAX; i++) {
        if ((i == log || log == SIM_LOGS_MAX) && sim->logs[i].stalled_until_us < until_us)
            sim->logs[i].stalled_until_us = until_us;
    }
    fault_again(sim, fault_kafka_stall, 3 * SEC);
}

static void ledger_returns(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (!sim->ledger.up)
        ledger_come_up(sim);
}

static void fault_ledger_down(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    if (sim->ledger.up) {
        sim_trace(sim, "the ledger goes down");
        ledger_go_down(sim);
        sim_post(sim, NULL, sim_between(sim, 50 * MS, 4 * SEC), ledger_returns, NULL, 0);
    }
    fault_again(sim, fault_ledger_down, 4 * SEC);
}

static void fault_ledger_cut(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    ledger_cut(sim, &sim->brokers[sim->assigned]);
    fault_again(sim, fault_ledger_cut, 1 * SEC);
}

static void fault_redis_flush(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    redis_flush(sim);
    fault_again(sim, fault_redis_flush, 1 * SEC);
}

static void fault_gateway_crash(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    gateway_crash(sim);
    fault_again(sim, fault_gateway_crash, 3 * SEC);
}

static void plan(struct sim *sim, bool *chosen, sim_fn *fn)
{
    *chosen = sim_percent(sim, 35);
    if (*chosen && fn != NULL)
        sim_post(sim, NULL, sim_between(sim, 0, FAULT_SPAN_US / 2), fn, NULL, 0);
}

void faults_plan(struct sim *sim)
{
    struct sim_faults *faults = &sim->faults;

    plan(sim, &faults->broker_crash, fault_broker_crash);
    plan(sim, &faults->broker_pause, fault_broker_pause);
    plan(sim, &faults->two_owners, fault_two_owners);
    plan(sim, &faults->worker_crash, fault_worker_crash);
    plan(sim, &faults->worker_leave, fault_worker_leave);
    plan(sim, &faults->worker_pause, fault_worker_pause);
    plan(sim, &faults->worker_false_gone, fault_false_gone);
    plan(sim, &faults->kafka_stall, fault_kafka_stall);
    plan(sim, &faults->kafka_duplicate, NULL);
    plan(sim, &faults->ledger_down, fault_ledger_down);
    plan(sim, &faults->ledger_cut, fault_ledger_cut);
    plan(sim, &faults->ledger_slow, NULL);
    plan(sim, &faults->ledger_left_open, NULL);
    plan(sim, &faults->redis_flush, fault_redis_flush);
    plan(sim, &faults->gateway_crash, fault_gateway_crash);
}

void faults_stop(struct sim *sim)
{
    sim_trace(sim, "no more faults");
    sim->faults_over = true;
    sim->faults.kafka_duplicate = false;
    for (int i = 0; i < SIM_LOGS_MAX; i++)
        sim->logs[i].stalled_until_us = 0;
    for (int i = 0; i < SIM_BROKERS; i++) {
        sim->brokers[i].process.paused_until_us = 0;
        if (!sim->brokers[i].process.alive)
            broker_start(sim, &sim->brokers[i]);
    }
    for (int i = 0; i < sim->worker_count; i++) {
        sim->workers[i].process.paused_until_us = 0;
        if (!sim->workers[i].process.alive)
            worker_start(sim, &sim->workers[i]);
    }
    if (!sim->gateway.alive)
        process_start(&sim->gateway);
    if (!sim->ledger.up)
        ledger_come_up(sim);
    broker_assign(sim, other_broker(sim));
    gateway_probe(sim);
}
