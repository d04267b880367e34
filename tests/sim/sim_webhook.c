/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Webhook senders: from `completed` to a delivery row, from there to a receiver, as
 * workers/webhook_intake.c and webhook_sender.c do it. What follows a try is decided by the real
 * plan (workers/webhook_plan.h).
 *
 * The row is inserted first (ON CONFLICT DO NOTHING), the offset stored after it. A delivery in
 * memory has its next_at one claim ahead: who dies leaves it to the next claim. The group that
 * gives partitions to senders keeps its offsets in Kafka.
 */

#include <string.h>

#include "tests/sim/sim.h"
#include "workers/webhook_plan.h"

#define CLAIM_US (1 * SEC)
#define LOOK_US (300 * MS)
#define READ_RECORDS 8
#define TIME_SCALE 0.00002 /* the schedule of three days within some seconds */

static void sender_reads(struct sim *sim, void *opaque, uint64_t shard);
static void sender_posts(struct sim *sim, void *opaque, uint64_t job);

static bool reads_shard(const struct sim *sim, const struct sim_sender *sender, int shard)
{
    return sender == &sim->senders[sim->webhook_reader[shard]];
}

void webhook_wake(struct sim *sim, int shard)
{
    struct sim_sender *sender = &sim->senders[sim->webhook_reader[shard]];

    if (!sender->process.alive || sender->reading[shard])
        return;
    sender->reading[shard] = true;
    sim_post(sim, &sender->process, sim_between(sim, 100, 5 * MS), sender_reads, sender,
             (uint64_t)shard);
}

/* ---- tries ---- */

struct
try {
    struct sim_sender *sender;
    int job;
    uint64_t round;
    int status;
};

static void try_is_written(struct sim *sim, void *opaque, uint64_t number)
{
    struct try *try = opaque;
    struct sim_delivery *delivery = &sim->deliveries[try->job];
    struct webhook_next next;

    if (!sim->ledger.up) {
        sim_post(sim, &try->sender->process, 50 * MS, try_is_written, try, number);
        return;
    }
    try->sender->in_memory[try->job] = false;
    if (!delivery->present || delivery->state != SIM_DELIVERY_PENDING ||
        delivery->round != try->round)
        return; /* another sender was quicker, or another round has begun */
    delivery->try_count++;
    next = webhook_plan_next(&(struct webhook_try){.number = delivery->try_count,
                                                   .http_status = try->status,
                                                   .jitter = rng_unit(&sim->rng),
                                                   .time_scale = TIME_SCALE});
    if (next.outcome == WEBHOOK_AGAIN)
        delivery->next_us = sim->now_us + next.delay_ms * MS;
    else
        delivery->state = next.outcome == WEBHOOK_DELIVERED ? SIM_DELIVERY_SUCCEEDED
                                                            : SIM_DELIVERY_FAILED;
}

/* Of a round, whichever is the newest by now. */
static void sender_posts(struct sim *sim, void *opaque, uint64_t number)
{
    static const int bad[] = {0, 500, 503, 429, 404, 410};
    struct sim_sender *sender = opaque;
    struct try *try = sim_alloc(sim, sizeof(*try));

    *try = (struct try){sender, (int)(number % SIM_JOBS_MAX), number / SIM_JOBS_MAX, 200};
    if (sim->faults.receiver && !sim->faults_over && sim_percent(sim, 40)) {
        sim_hit(sim, FAULT_RECEIVER);
        try->status = bad[sim_between(sim, 0, COUNT_OF(bad) - 1)];
    }
    check_post(sim, try->job, try->round, try->status);
    if (sim->faults.sender_crash && !sim->faults_over && sim_percent(sim, 3)) {
        sim_hit(sim, FAULT_SENDER_POSTED);
        webhook_crash(sim, sender);
        return;
    }
    sim_post(sim, &sender->process, sim_between(sim, 500, 5 * MS), try_is_written, try, 0);
}

static void sender_takes(struct sim *sim, struct sim_sender *sender, int job)
{
    if (sender->in_memory[job])
        return;
    sender->in_memory[job] = true;
    sim_post(sim, &sender->process, sim_between(sim, 1 * MS, 30 * MS), sender_posts, sender,
             sim->deliveries[job].round * SIM_JOBS_MAX + (uint64_t)job);
}

static void sender_claims(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_sender *sender = opaque;

    for (int job = 0; sim->ledger.up && job < sim->job_count; job++) {
        struct sim_delivery *delivery = &sim->deliveries[job];

        if (!delivery->present || delivery->state != SIM_DELIVERY_PENDING ||
            delivery->next_us > sim->now_us || !reads_shard(sim, sender, sim->jobs[job].shard))
            continue;
        delivery->next_us = sim->now_us + CLAIM_US;
        sender_takes(sim, sender, job);
    }
    sim_post(sim, &sender->process, LOOK_US, sender_claims, sender, number);
}

/* ---- records to rows ---- */

struct rows {
    struct sim_sender *sender;
    int shard;
    int64_t from, to;
};

static void row_insert(struct sim *sim, struct sim_sender *sender,
                       const struct message_completed *completed)
{
    int job = sim_job_of(sim, &completed->id);
    struct sim_delivery *delivery = &sim->deliveries[job];

    if (completed->webhook_url.size == 0)
        return;
    check_delivery(sim, job, completed);
    if (delivery->present && completed->round <= delivery->round)
        return;
    *delivery = (struct sim_delivery){
        .present = true, .round = completed->round, .next_us = sim->now_us + CLAIM_US};
    if (completed->state == JOB_CANCELED)
        delivery->state = SIM_DELIVERY_CANCELED;
    else
        sender_takes(sim, sender, job);
}

static void rows_are_inserted(struct sim *sim, void *opaque, uint64_t number)
{
    struct rows *rows = opaque;
    const struct sim_log *log = &sim->logs[LOG_COMPLETED(rows->shard)];
    struct message message;
    struct err err;

    if (!reads_shard(sim, rows->sender, rows->shard)) {
        rows->sender->reading[rows->shard] = false;
        return; /* revoked meanwhile: the next reader inserts them */
    }
    if (!sim->ledger.up) {
        sim_post(sim, &rows->sender->process, 50 * MS, rows_are_inserted, rows, number);
        return;
    }
    for (int64_t i = rows->from; i < rows->to; i++) {
        const struct sim_record *record = &log->records[i];

        if (message_decode(sim->decoder, record->bytes, record->size, &message, &err) == 0)
            row_insert(sim, rows->sender, &message.completed);
    }
    if (sim->faults.sender_crash && !sim->faults_over && sim_percent(sim, 5)) {
        sim_hit(sim, FAULT_SENDER_ROWS);
        webhook_crash(sim, rows->sender);
        return;
    }
    sim->webhook_offset[rows->shard] = rows->to;
    rows->sender->reading[rows->shard] = false;
    if (rows->to < (int64_t)log->count)
        webhook_wake(sim, rows->shard);
}

static void sender_reads(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_sender *sender = opaque;
    int shard = (int)number;
    const struct sim_log *log = &sim->logs[LOG_COMPLETED(shard)];
    struct rows *rows;

    if (!reads_shard(sim, sender, shard)) {
        sender->reading[shard] = false;
        return;
    }
    if (kafka_stalled(sim, LOG_COMPLETED(shard))) {
        sim_post(sim, &sender->process, 50 * MS, sender_reads, sender, number);
        return;
    }
    rows = sim_alloc(sim, sizeof(*rows));
    *rows = (struct rows){.sender = sender,
                          .shard = shard,
                          .from = sim->webhook_offset[shard],
                          .to = sim->webhook_offset[shard] + READ_RECORDS};
    if (rows->to > (int64_t)log->count)
        rows->to = (int64_t)log->count;
    sim_post(sim, &sender->process, sim_between(sim, 200, 3 * MS), rows_are_inserted, rows, 0);
}

/* ---- life ---- */

static void sender_start(struct sim *sim, struct sim_sender *sender)
{
    process_start(&sender->process);
    memset(sender->reading, 0, sizeof(sender->reading));
    memset(sender->in_memory, 0, sizeof(sender->in_memory));
    sender_claims(sim, sender, 0);
    for (int shard = 0; shard < sim->shard_count; shard++) {
        if (reads_shard(sim, sender, shard))
            webhook_wake(sim, shard);
    }
}

static void sender_restarts(struct sim *sim, void *opaque, uint64_t number)
{
    struct sim_sender *sender = opaque;

    (void)number;
    if (!sender->process.alive)
        sender_start(sim, sender);
}

/* The group gives what it read to the other one, half of the time before it is back. */
static void partitions_move(struct sim *sim, void *opaque, uint64_t number)
{
    const struct sim_sender *sender = opaque;

    (void)number;
    for (int shard = 0; shard < sim->shard_count; shard++) {
        if (!reads_shard(sim, sender, shard))
            continue;
        sim->webhook_reader[shard] = (sim->webhook_reader[shard] + 1) % SIM_SENDERS;
        webhook_wake(sim, shard);
    }
}

void webhook_crash(struct sim *sim, struct sim_sender *sender)
{
    if (!sender->process.alive)
        return;
    sim_trace(sim, "%s is killed", sender->process.name);
    process_kill(&sender->process);
    sim_post(sim, NULL, sim_between(sim, 50 * MS, 2 * SEC), partitions_move, sender, 0);
    sim_post(sim, NULL, sim_between(sim, 50 * MS, 2 * SEC), sender_restarts, sender, 0);
}

void webhook_begin(struct sim *sim)
{
    static const char *const names[SIM_SENDERS] = {"s0", "s1"};

    for (int shard = 0; shard < sim->shard_count; shard++)
        sim->webhook_reader[shard] = shard % SIM_SENDERS;
    for (int i = 0; i < SIM_SENDERS; i++) {
        sim->senders[i].process.name = names[i];
        sender_start(sim, &sim->senders[i]);
    }
}
