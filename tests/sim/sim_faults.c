/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What goes wrong by itself. Each world has some kinds of faults and not others, so that a rule
 * which only matters without some fault is tried too: some worlds have none, some nearly all. When
 * the time of faults is over, all is mended.
 *
 * A kind is a flag of struct sim_faults and a row of faults_plan(); with a function, it comes again
 * and again. What happens is counted by sim_hit(), see sim_faults.def.
 */

#include <string.h>

#include "tests/sim/sim.h"

#define FAULT_SPAN_US (11 * SEC)

static void fault_again(struct sim *sim, sim_fn *fn, uint64_t mean_us)
{
    sim_post(sim, NULL, sim_between(sim, mean_us / 4, 2 * mean_us), fn, NULL, 0);
}

static struct sim_broker *some_broker(struct sim *sim)
{
    return &sim->brokers[sim_between(sim, 0, SIM_BROKERS - 1)];
}

/* Of a broker that has a shard, if there is one. */
static struct sim_broker *some_owner(struct sim *sim)
{
    int broker = sim->assigned[sim_between(sim, 0, (uint64_t)sim->shard_count - 1)];

    return broker < 0 ? some_broker(sim) : &sim->brokers[broker];
}

static void fault_broker_crash(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_broker *broker = some_owner(sim);

    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    if (broker->process.alive) {
        sim_hit(sim, FAULT_BROKER_CRASH);
        broker_dies(sim, broker);
    }
    fault_again(sim, fault_broker_crash, 3 * SEC);
}

static void fault_broker_pause(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_broker *broker = some_owner(sim);

    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    if (broker->process.alive) {
        sim_hit(sim, FAULT_BROKER_PAUSE);
        broker_stands_still(sim, broker, sim_between(sim, 50 * MS, 6 * SEC));
    }
    fault_again(sim, fault_broker_pause, 4 * SEC);
}

/* The session of the owner has ended without its knowing. */
static void fault_two_owners(struct sim *sim, void *opaque, uint64_t number)
{
    int shard = (int)sim_between(sim, 0, (uint64_t)sim->shards_open - 1);
    int broker = (int)sim_between(sim, 0, SIM_BROKERS - 1);

    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    if (broker != sim->assigned[shard] && sim->brokers[broker].process.alive) {
        sim_trace(sim, "%s is assigned shard %d too", sim->brokers[broker].process.name, shard);
        sim_hit(sim, FAULT_TWO_OWNERS);
        group_assign(sim, shard, broker);
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
    if (worker->run_count > 0)
        sim_hit(sim, FAULT_WORKER_PAUSE);
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
    if (worker->process.alive)
        sim_hit(sim, FAULT_GONE_LIVE);
    kafka_produce(sim, &sim->machines[worker->machine].producer, worker_outcome(sim, worker),
                  MESSAGE_GONE, &gone, NULL, NULL, 0);
    fault_again(sim, fault_false_gone, 6 * SEC);
}

/* One that is in use; SIM_LOGS_MAX: all of them. */
static int some_log(struct sim *sim)
{
    int shard = (int)sim_between(sim, 0, (uint64_t)sim->shard_count - 1);
    int worker = (int)sim_between(sim, 0, (uint64_t)sim->worker_count - 1);
    const int logs[] = {LOG_INTAKE(shard), LOG_OUTCOME(shard), LOG_COMPLETED(shard),
                        sim->workers[worker].log, SIM_LOGS_MAX};

    return logs[sim_between(sim, 0, COUNT_OF(logs) - 1)];
}

static void fault_kafka_stall(struct sim *sim, void *opaque, uint64_t number)
{
    uint64_t until_us = sim->now_us + sim_between(sim, 50 * MS, 6 * SEC);
    int log = some_log(sim);

    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    sim_trace(sim, "log %d stands still for %llu ms", log,
              (unsigned long long)((until_us - sim->now_us) / MS));
    sim_hit(sim, log == SIM_LOGS_MAX ? FAULT_KAFKA_STALL_ALL : FAULT_KAFKA_STALL_ONE);
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
        sim_hit(sim, FAULT_LEDGER_DOWN);
        ledger_go_down(sim);
        sim_post(sim, NULL, sim_between(sim, 50 * MS, 4 * SEC), ledger_returns, NULL, 0);
    }
    fault_again(sim, fault_ledger_down, 4 * SEC);
}

static void fault_ledger_failover(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    failover_begin(sim, sim_percent(sim, 70));
    fault_again(sim, fault_ledger_failover, 5 * SEC);
}

static void fault_ledger_cut(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    sim_hit(sim, FAULT_LEDGER_CUT);
    ledger_cut(sim, &some_owner(sim)->seats[sim_between(sim, 0, (uint64_t)sim->shard_count - 1)]);
    fault_again(sim, fault_ledger_cut, 1 * SEC);
}

static void fault_redis_flush(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    sim_hit(sim, FAULT_REDIS_FLUSH);
    redis_flush(sim);
    fault_again(sim, fault_redis_flush, 1 * SEC);
}

/* All that waits for Kafka's answer is 503, and a new producer is made. */
static void fault_gateway_fatal(struct sim *sim, struct sim_gateway *gateway)
{
    sim_trace(sim, "the producer of %s is over", gateway->process.name);
    sim_hit(sim, FAULT_GATEWAY_FATAL);
    kafka_producer_dies(sim, &gateway->producer);
}

static void fault_gateway_crash(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    if (sim_percent(sim, 30)) {
        fault_gateway_fatal(sim, &sim->gateways[sim_between(sim, 0, SIM_GATEWAYS - 1)]);
    } else {
        sim_hit(sim, FAULT_GATEWAY_CRASH);
        gateway_crash(sim, &sim->gateways[sim_between(sim, 0, SIM_GATEWAYS - 1)]);
    }
    fault_again(sim, fault_gateway_crash, 3 * SEC);
}

static void fault_sender_crash(struct sim *sim, void *opaque, uint64_t number)
{
    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    sim_hit(sim, FAULT_SENDER_CRASH);
    webhook_crash(sim, &sim->senders[sim_between(sim, 0, SIM_SENDERS - 1)]);
    fault_again(sim, fault_sender_crash, 3 * SEC);
}

static void clock_is_set(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_broker *broker = opaque;

    (void)sim;
    (void)number;
    broker->wall_us = 0;
}

static void fault_broker_clock(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_broker *broker = some_owner(sim);

    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    sim_hit(sim, FAULT_CLOCK_BROKER);
    broker->wall_us = (int64_t)sim_between(sim, 0, 3 * SEC) - (int64_t)(1500 * MS);
    sim_post(sim, NULL, sim_between(sim, 500 * MS, 4 * SEC), clock_is_set, broker, 0);
    fault_again(sim, fault_broker_clock, 4 * SEC);
}

/* A machine asleep: the clock that leases are aged by stands still too. */
static void fault_broker_asleep(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_broker *broker = some_owner(sim);
    uint64_t long_us = sim_between(sim, 100 * MS, 5 * SEC);

    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    if (process_runs(sim, &broker->process)) {
        sim_hit(sim, FAULT_CLOCK_ASLEEP);
        broker->asleep_us += long_us;
        broker_stands_still(sim, broker, long_us);
    }
    fault_again(sim, fault_broker_asleep, 4 * SEC);
}

static void fault_gateway_clock(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_gateway *gateway = &sim->gateways[SIM_GATEWAYS - 1];

    (void)opaque;
    (void)number;
    if (sim->faults_over)
        return;
    sim_trace(sim, "the clock of %s is three days off", gateway->process.name);
    sim_hit(sim, FAULT_CLOCK_GATEWAY);
    gateway->wall_us = (sim_percent(sim, 50) ? 1 : -1) * (int64_t)(3 * 86400 * SEC);
}

static void plan(struct sim *sim, bool *chosen, sim_fn *fn)
{
    *chosen = sim_percent(sim, sim->fault_percent);
    if (*chosen && fn != NULL)
        sim_post(sim, NULL, sim_between(sim, 0, FAULT_SPAN_US / 2), fn, NULL, 0);
}

void faults_plan(struct sim *sim)
{
    static const unsigned percents[] = {0, 8, 15, 20, 25, 30, 35, 40, 50, 60};
    struct sim_faults *faults = &sim->faults;

    sim->fault_percent = percents[sim_between(sim, 0, COUNT_OF(percents) - 1)];
    plan(sim, &faults->broker_crash, fault_broker_crash);
    plan(sim, &faults->broker_pause, fault_broker_pause);
    plan(sim, &faults->two_owners, fault_two_owners);
    plan(sim, &faults->broker_points, NULL);
    plan(sim, &faults->worker_crash, fault_worker_crash);
    plan(sim, &faults->worker_leave, fault_worker_leave);
    plan(sim, &faults->worker_pause, fault_worker_pause);
    plan(sim, &faults->worker_false_gone, fault_false_gone);
    plan(sim, &faults->worker_points, NULL);
    plan(sim, &faults->engine, NULL);
    plan(sim, &faults->kafka_stall, fault_kafka_stall);
    plan(sim, &faults->kafka_duplicate, NULL);
    plan(sim, &faults->kafka_refuse, NULL);
    plan(sim, &faults->ledger_down, fault_ledger_down);
    plan(sim, &faults->ledger_failover, fault_ledger_failover);
    plan(sim, &faults->ledger_cut, fault_ledger_cut);
    plan(sim, &faults->ledger_slow, NULL);
    plan(sim, &faults->ledger_left_open, NULL);
    plan(sim, &faults->redis_flush, fault_redis_flush);
    plan(sim, &faults->gateway_crash, fault_gateway_crash);
    plan(sim, &faults->gateway_clock, fault_gateway_clock);
    plan(sim, &faults->broker_clock, fault_broker_clock);
    plan(sim, &faults->broker_asleep, fault_broker_asleep);
    plan(sim, &faults->sender_crash, fault_sender_crash);
    plan(sim, &faults->receiver, NULL);
    plan(sim, &faults->blob_away, NULL);
    plan(sim, &faults->log_lost, NULL);
    plan(sim, &faults->deployment_moves, NULL);
    plan(sim, &faults->pool_zero, NULL);
    plan(sim, &faults->upgrade, NULL);
    topology_plan(sim);
}

void faults_stop(struct sim *sim)
{
    sim_trace(sim, "no more faults");
    sim->faults_over = true;
    sim->faults.kafka_duplicate = sim->faults.kafka_refuse = false;
    for (int i = 0; i < SIM_LOGS_MAX; i++)
        sim->logs[i].stalled_until_us = 0;
    topology_settle(sim);
    for (int i = 0; i < SIM_GATEWAYS; i++) {
        sim->gateways[i].wall_us = 0;
        sim->gateways[i].not_ready = false;
    }
    for (int i = 0; i < SIM_BROKERS; i++) {
        sim->brokers[i].wall_us = 0;
        sim->brokers[i].process.paused_until_us = 0;
        if (!sim->brokers[i].process.alive)
            broker_start(sim, &sim->brokers[i]);
    }
    for (int i = 0; i < sim->worker_count; i++) {
        sim->workers[i].away_until_us = 0;
        sim->workers[i].process.paused_until_us = 0;
        if (!sim->workers[i].process.alive)
            worker_start(sim, &sim->workers[i]);
    }
    for (int i = 0; i < SIM_GATEWAYS; i++) {
        if (!sim->gateways[i].process.alive)
            process_start(&sim->gateways[i].process);
    }
    if (!sim->ledger.up)
        ledger_come_up(sim);
    group_settle(sim);
    gateway_probe(sim);
}
