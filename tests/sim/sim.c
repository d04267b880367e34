/* SPDX-License-Identifier: Apache-2.0 */

#include "tests/sim/sim.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "schema/job_id.h"

#define SIM_FAULTS_US (12 * SEC)    /* faults happen so long */
#define SIM_PATIENCE_US (400 * SEC) /* after them everything must come to rest */
#define SIM_EVENTS_MAX 2000000
#define SIM_BLOCK_SIZE (256u << 10)

struct sim_block {
    struct sim_block *next;
    size_t used, size;
    max_align_t memory[];
};

void *sim_alloc(struct sim *sim, size_t size)
{
    struct sim_block *block = sim->blocks;
    void *at;

    size = (size + 15) & ~(size_t)15;
    if (block == NULL || block->size - block->used < size) {
        size_t room = size > SIM_BLOCK_SIZE ? size : SIM_BLOCK_SIZE;

        block = xcalloc(1, sizeof(*block) + room);
        block->size = room;
        block->next = sim->blocks;
        sim->blocks = block;
    }
    at = (char *)block->memory + block->used;
    block->used += size;
    return at;
}

struct wire_bytes sim_copy(struct sim *sim, const void *bytes, size_t size)
{
    uint8_t *copy = sim_alloc(sim, size + 1);

    if (size > 0)
        memcpy(copy, bytes, size);
    return (struct wire_bytes){copy, size};
}

uint64_t sim_between(struct sim *sim, uint64_t least, uint64_t most)
{
    return least + rng_below(&sim->rng, most - least + 1);
}

bool sim_percent(struct sim *sim, unsigned percent)
{
    return rng_below(&sim->rng, 100) < percent;
}

bool sim_guarded(const struct sim *sim, enum owner_guard guard)
{
    return (sim->options.removed_guards & (unsigned)guard) == 0;
}

void sim_hit(struct sim *sim, enum sim_fault fault)
{
    sim->hits[fault]++;
}

struct wire_text sim_pool_name(int pool)
{
    static const char *const names[SIM_POOLS_MAX] = {"p0", "p1", "p2", "p3"};

    return WIRE_TEXT_OF(names[pool]);
}

void sim_fail(struct sim *sim, const char *fmt, ...)
{
    va_list args;

    if (sim->failed)
        return;
    sim->failed = true;
    va_start(args, fmt);
    (void)vsnprintf(sim->failure, sizeof(sim->failure), fmt, args);
    va_end(args);
    sim_trace(sim, "FAILED %s", sim->failure);
}

void sim_trace(struct sim *sim, const char *fmt, ...)
{
    va_list args;

    if (!sim->options.trace)
        return;
    (void)printf("%10.3f ms  ", (double)(sim->now_us - SIM_START_US) / 1000.0);
    va_start(args, fmt);
    (void)vprintf(fmt, args);
    va_end(args);
    (void)printf("\n");
}

int sim_job_of(const struct sim *sim, const struct wire_id *id)
{
    int job = id->bytes[14] << 8 | id->bytes[15];

    assert(job < sim->job_count && job_id_equal(&sim->jobs[job].id, id));
    return job;
}

bool process_runs(const struct sim *sim, const struct process *process)
{
    return process->alive && process->paused_until_us <= sim->now_us;
}

void process_kill(struct process *process)
{
    process->alive = false;
    process->incarnation++;
    process->paused_until_us = 0;
}

void process_start(struct process *process)
{
    process->alive = true;
    process->incarnation++;
}

void sim_post(struct sim *sim, struct process *to, uint64_t delay_us, sim_fn *fn, void *opaque,
              uint64_t number)
{
    struct sim_event *event = sim_alloc(sim, sizeof(*event));

    event->to = to;
    event->incarnation = to != NULL ? to->incarnation : 0;
    event->fn = fn;
    event->opaque = opaque;
    event->number = number;
    heap_push(&sim->events, &event->node, sim->now_us + delay_us, sim->event_seq++);
}

static void sim_step(struct sim *sim, struct sim_event *event)
{
    struct process *to = event->to;

    sim->now_us = event->node.key;
    sim->event_count++;
    if (to != NULL && (!to->alive || to->incarnation != event->incarnation))
        return;
    if (to != NULL && to->paused_until_us > sim->now_us) {
        heap_push(&sim->events, &event->node, to->paused_until_us, sim->event_seq++);
        return;
    }
    event->fn(sim, event->opaque, event->number);
}

static void sim_choose_owner_options(struct sim *sim)
{
    struct owner_options *options = &sim->owner_options;

    *options = owner_options_default;
    options->seed = sim->options.seed;
    options->removed_guards = sim->options.removed_guards;
    options->lease_us = 2 * SEC;
    options->run_grace_us = 3 * SEC;
    sim->running_max = sim->options.seed % 3 == 0 ? 1 + sim->options.seed % 4 : 0;
    options->command_poll_us = 500 * MS;
    options->commands = (uint32_t)sim_between(sim, 1, 8);
    options->row_delay_us = sim_percent(sim, 50) ? 100 * MS : 5 * MS;
    options->row_delay_bulk_us = 4 * options->row_delay_us;
    if (sim_percent(sim, 30))
        options->flush_jobs = (uint32_t)sim_between(sim, 1, 3);
    options->flush_busy_jobs = 1 + (uint32_t)(options->seed %
                                              5); /* gaps between flushes, where most are small */
    options->flush_full_jobs = 4;
    if (options->seed % 3 == 0) /* a cap that is met */
        options->delayed_jobs = 1 + options->seed % 2;
    if (sim_percent(sim, 50)) { /* a window that spills */
        options->window_jobs = (uint32_t)sim_between(sim, 3, 12);
        options->load_jobs = (uint32_t)sim_between(sim, 1, 4);
    }
}

/* The world goes on until nothing is left to be done, or somebody is stuck. */
static void sim_live(struct sim *sim)
{
    uint64_t end_us = SIM_START_US + SIM_FAULTS_US + SIM_PATIENCE_US;
    struct heap_node *node;

    while (!sim->failed && (node = heap_first(&sim->events)) != NULL) {
        heap_remove(&sim->events, node);
        if (!sim->faults_over && node->key > SIM_START_US + SIM_FAULTS_US) {
            sim->now_us = SIM_START_US + SIM_FAULTS_US;
            faults_stop(sim);
        }
        sim_step(sim, HEAP_ENTRY(node, struct sim_event, node));
        if (sim->faults_over && check_is_quiet(sim))
            break;
        if (sim->now_us > end_us || sim->event_count > SIM_EVENTS_MAX)
            break;
    }
    if (!sim->failed)
        check_end(sim);
}

/* Small worlds are quick, and most seeds are one; some have several shards and many workers. */
static void sim_choose_size(struct sim *sim)
{
    static const struct {
        int at_first, in_the_end;
    } shards[] = {{1, 1}, {1, 1}, {1, 1}, {1, 1}, {2, 2}, {2, 2}, {1, 2}, {2, 4}};
    size_t choice = sim_between(sim, 0, COUNT_OF(shards) - 1);

    sim->shards_open = shards[choice].at_first;
    sim->shard_count = shards[choice].in_the_end;
    sim->worker_count = (int)sim_between(sim, 1, sim_percent(sim, 15) ? SIM_WORKERS_MAX : 6);
    sim->pool_count = (int)sim_between(sim, 1, 2) * sim->shard_count;
    if (sim->pool_count > SIM_POOLS_MAX)
        sim->pool_count = SIM_POOLS_MAX;
    if (sim->pool_count > sim->worker_count)
        sim->worker_count = sim->pool_count;
}

static void sim_make_workers(struct sim *sim)
{
    for (int i = 0; i < SIM_MACHINES; i++) {
        process_start(&sim->machines[i].process);
        kafka_producer_init(&sim->machines[i].producer, &sim->machines[i].process);
    }
    for (int i = 0; i < sim->worker_count; i++) {
        struct sim_worker *worker = &sim->workers[i];

        (void)snprintf(worker->name, sizeof(worker->name), "w%d", i);
        worker->pool = i % sim->pool_count;
        worker->machine = i % SIM_MACHINES;
        worker->log = LOG_DISPATCH(i % (int)sim_between(sim, 1, (uint64_t)sim->worker_count));
        worker->slots = (uint32_t)sim_between(sim, 1, 3);
        worker->boot = 1000 * (uint64_t)(i + 1);
        kafka_producer_init(&worker->producer, &worker->process);
        worker_start(sim, worker);
    }
}

static void sim_make_brokers(struct sim *sim)
{
    static const char *const names[SIM_BROKERS] = {"b0", "b1", "b2"};

    for (int i = 0; i < SIM_BROKERS; i++) {
        struct sim_broker *broker = &sim->brokers[i];

        broker->process.name = names[i];
        kafka_producer_init(&broker->producer, &broker->process);
        for (int shard = 0; shard < SIM_SHARDS_MAX; shard++) {
            broker->seats[shard].broker = broker;
            broker->seats[shard].shard = shard;
        }
        broker_start(sim, broker);
    }
    for (int shard = 0; shard < sim->shards_open; shard++)
        group_assign(sim, shard, shard % SIM_BROKERS);
}

void sim_run(struct sim *sim, const struct sim_options *options)
{
    memset(sim, 0, sizeof(*sim));
    sim->options = *options;
    sim->now_us = SIM_START_US;
    rng_seed(&sim->rng, options->seed * 2654435761u + 1);
    sim->decoder = wire_decoder_new();
    sim_choose_owner_options(sim);
    sim_choose_size(sim);
    sim->ledger.up = true;
    for (int i = 0; i < SIM_SHARDS_MAX; i++) {
        sim->ledger.shards[i].epoch = SIM_EPOCH_FIRST;
        sim->assigned[i] = -1;
    }
    faults_plan(sim);
    gateway_begin(sim);
    command_begin(sim);
    sim_make_workers(sim);
    sim_make_brokers(sim);
    webhook_begin(sim);
    blob_begin(sim);
    sim_live(sim);
}

void sim_done(struct sim *sim)
{
    for (int i = 0; i < SIM_BROKERS; i++) {
        for (int shard = 0; shard < SIM_SHARDS_MAX; shard++)
            owner_free(&sim->brokers[i].seats[shard].owner);
    }
    for (int i = 0; i < sim->worker_count; i++)
        worker_core_free(&sim->workers[i].core);
    for (int i = 0; i < SIM_LOGS_MAX; i++)
        free(sim->logs[i].records);
    for (int i = 0; i < SIM_SHARDS_MAX; i++)
        free(sim->ledger.shards[i].flushes);
    heap_done(&sim->events);
    wire_decoder_free(&sim->decoder);
    while (sim->blocks != NULL) {
        struct sim_block *block = sim->blocks;

        sim->blocks = block->next;
        free(block);
    }
}
