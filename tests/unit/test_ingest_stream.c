/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: no record of a bound topic is passed over, and none becomes two jobs, whatever happens to
 * those who share its partitions: they are given up while a batch is under way, lost in a sleep,
 * killed, cut off from the ledger in the middle of a claim.
 *
 * Two processes share three partitions. What they stand on is made of memory: the group, a log that
 * grows, the ledger's rows of positions. Whenever a row's position moves, all that lies before it
 * must have been sent; whoever sends a record must make the same id of it.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "base/rng.h"
#include "base/settings.h"
#include "producers/ingest_topics.h"
#include "schema/topics.h"

#define PROCESSES 2
#define PARTITIONS 3
#define RECORDS 200
#define SEEDS 60
#define STEPS 4000
#define SENDING_MAX 4096
#define VALUES_MAX 16

struct process;

struct loop {
    uint64_t now_ms;
};
struct pg {
    struct process *process;
};
struct queue_reader {
    struct process *process;
    uint32_t number;
    int64_t position;
    bool paused;
    const struct queue_reader_calls *calls;
    void *opaque;
};
struct queue_election {
    struct process *process;
};
struct pg_batch {
    const char *name;
    int64_t values[VALUES_MAX];
    size_t count;
    char json[16];
};
struct pg_result {
    size_t rows;
    int64_t values[4];
    char json[16];
};

/* A statement on its way to the ledger, or its answer on the way back. */
struct asked {
    TAILQ_ENTRY(asked) link;
    struct pg_batch batch;
    struct pg_result result;
    pg_done_fn *done;
    void *opaque;
    bool executed;
};

/* Of a partition, in the ledger. */
struct row {
    int64_t epoch, position, claim_to, claim_ms;
    char targets[16];
};

enum share { SHARE_NONE, SHARE_OWNED, SHARE_REVOKED, SHARE_ASLEEP };

struct process {
    struct world *world;
    struct topics topics;
    struct binding binding;
    struct ingest_settings settings;
    struct pg pg;
    struct queue_election election;
    const struct queue_election_calls *group;
    void *group_opaque;
    queue_about_fn *about;
    void *about_opaque;
    queue_ends_fn *ends;
    void *ends_opaque;
    enum share share;
    TAILQ_HEAD(asked_list, asked) asked;
    struct queue_reader *readers[PARTITIONS];
    struct item *sending[SENDING_MAX];
    size_t sending_count;
};

struct world {
    struct rng rng;
    struct loop loop;
    struct row rows[PARTITIONS];
    int64_t log_end[PARTITIONS];
    bool done[PARTITIONS][RECORDS];
    uint64_t claim_ms[PARTITIONS][RECORDS], target[PARTITIONS][RECORDS];
    struct process processes[PROCESSES];
    uint64_t targets; /* raised when deployments change */
    unsigned takeovers, given_up_amid, repeats;
    bool calm;
};

static struct world *the_world;

static uint64_t below(struct world *world, uint64_t limit)
{
    return rng_below(&world->rng, limit);
}

static bool of_concern(int64_t offset)
{
    return offset % 5 != 4;
}

/* ---- what is not the matter here ---- */

const struct stream_kind stream_out = {.what = "out"};

uint64_t loop_now_ms(const struct loop *loop)
{
    return loop->now_ms;
}

bool log_enabled(enum log_level level)
{
    (void)level;
    return false;
}

void log_write(enum log_level level, const char *event, const struct log_field *fields)
{
    (void)level, (void)event, (void)fields;
}

uint64_t clock_wall_ms(void)
{
    return the_world->loop.now_ms;
}

void metric_add(struct metric *metric, double more)
{
    (void)metric, (void)more;
}

void metric_set(struct metric *metric, double value)
{
    (void)metric, (void)value;
}

void metric_observe(struct metric *metric, double value)
{
    (void)metric, (void)value;
}

struct metric *metrics_of(struct metrics *metrics, size_t index)
{
    (void)metrics, (void)index;
    return NULL;
}

struct metric *metrics_series(struct metrics *metrics, size_t index, const char *const *values)
{
    (void)metrics, (void)index, (void)values;
    return NULL;
}

void ingest_record_done(struct ingest_record *record)
{
    (void)record;
}

static uint64_t number_of(const char *text)
{
    int64_t number;
    struct err err;

    assert_int_equal(settings_parse_int("number", text, &number, &err), 0);
    return (uint64_t)number;
}

int topic_targets_read(const char *json, struct topic_targets *ret_targets, struct err *err)
{
    (void)err;
    ret_targets->weight = number_of(json);
    return 0;
}

/* ---- the ledger ---- */

bool pg_connected(const struct pg *pg)
{
    (void)pg;
    return true;
}

struct pg_batch *pg_batch_new(void)
{
    return xcalloc(1, sizeof(struct pg_batch));
}

void pg_batch_free(struct pg_batch **batch_p)
{
    free(TAKE(*batch_p));
}

void pg_add(struct pg_batch *batch, const struct pg_statement *statement)
{
    batch->name = statement->name;
}

static void bind_value(struct pg_batch *batch, int64_t value)
{
    assert(batch->count < VALUES_MAX);
    batch->values[batch->count++] = value;
}

void pg_bind_bool(struct pg_batch *batch, bool value)
{
    (void)batch, (void)value;
}

void pg_bind_c(struct pg_batch *batch, const char *text)
{
    (void)batch, (void)text;
}

void pg_bind_i32(struct pg_batch *batch, int64_t value)
{
    bind_value(batch, value);
}

void pg_bind_i64(struct pg_batch *batch, int64_t value)
{
    bind_value(batch, value);
}

void pg_bind_json(struct pg_batch *batch, const char *json)
{
    mem_copy_text(batch->json, json == NULL ? "" : json);
}

int pg_send(struct pg *pg, struct pg_batch **batch_p, uint32_t timeout_ms, pg_done_fn *done,
            void *opaque, struct err *err)
{
    struct asked *asked = xcalloc(1, sizeof(*asked));

    (void)timeout_ms, (void)err;
    asked->batch = **batch_p;
    asked->done = done;
    asked->opaque = opaque;
    pg_batch_free(batch_p);
    TAILQ_INSERT_TAIL(&pg->process->asked, asked, link);
    return 0;
}

size_t pg_row_count(const struct pg_answer *answer, size_t at)
{
    (void)at;
    return answer->result->rows;
}

int64_t pg_i64(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    (void)at, (void)row;
    return answer->result->values[column];
}

uint64_t pg_u64(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    return (uint64_t)pg_i64(answer, at, row, column);
}

bool pg_is_null(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    (void)at, (void)row, (void)column;
    return answer->result->json[0] == '\0';
}

const char *pg_c(const struct pg_answer *answer, size_t at, size_t row, size_t column)
{
    (void)at, (void)row, (void)column;
    return answer->result->json;
}

static void row_take(struct world *world, struct asked *asked)
{
    struct row *row = &world->rows[asked->batch.values[0]];

    row->epoch++;
    world->takeovers++;
    asked->result = (struct pg_result){
        .rows = 1, .values = {row->epoch, row->position, row->claim_to, row->claim_ms}};
    mem_copy_text(asked->result.json, row->targets);
}

/* The claim that moves the position on: what lies before it is never read again. */
static void row_claim(struct world *world, struct asked *asked)
{
    const int64_t *values = asked->batch.values;
    int64_t number = values[0], position = values[2];
    struct row *row = &world->rows[number];

    if (row->epoch != values[1])
        return;
    for (int64_t at = row->position < 0 ? 0 : row->position; at < position; at++) {
        if (of_concern(at) && !world->done[number][at])
            fail_msg("partition %d: position %d passes record %d, which nobody has sent",
                     (int)number, (int)position, (int)at);
    }
    assert_true(position >= row->position);
    asked->result.rows = 1;
    row->position = position;
    row->claim_to = values[3];
    row->claim_ms = values[4];
    mem_copy_text(row->targets, asked->batch.json);
}

static void asked_execute(struct world *world, struct asked *asked)
{
    asked->executed = true;
    if (strcmp(asked->batch.name, "topic_take") == 0)
        row_take(world, asked);
    else if (strcmp(asked->batch.name, "topic_claim") == 0)
        row_claim(world, asked);
}

static void asked_answer(struct process *process, struct asked *asked, int code)
{
    struct pg_answer answer = {.err = {.code = code}, .result = &asked->result};

    TAILQ_REMOVE(&process->asked, asked, link);
    asked->done(asked->opaque, &answer);
    free(asked);
}

/* One step of the ledger for a process: it carries out, or what it has carried out is heard of. */
static void ledger_step(struct process *process)
{
    struct asked *asked = TAILQ_FIRST(&process->asked);

    while (asked != NULL && asked->executed && below(process->world, 2) == 0)
        asked = TAILQ_NEXT(asked, link);
    if (asked == NULL)
        return;
    if (!asked->executed)
        asked_execute(process->world, asked);
    else if (asked == TAILQ_FIRST(&process->asked))
        asked_answer(process, asked, ERR_OK);
}

static void ledger_cut(struct process *process)
{
    struct asked *last = TAILQ_LAST(&process->asked, asked_list), *asked;
    bool over = last == NULL;

    while (!over && (asked = TAILQ_FIRST(&process->asked)) != NULL) {
        over = asked == last;
        asked_answer(process, asked, ERR_UNKNOWN);
    }
}

/* ---- Kafka ---- */

int queue_reader_open(struct queue_consumer *consumer, const char *topic, uint32_t partition,
                      int64_t start_offset, const struct queue_reader_calls *calls, void *opaque,
                      struct queue_reader **ret_reader, struct err *err)
{
    struct process *process = (struct process *)consumer;
    struct queue_reader *reader = xcalloc(1, sizeof(*reader));

    (void)topic, (void)err;
    *reader = (struct queue_reader){process, partition, start_offset < 0 ? 0 : start_offset,
                                    false,   calls,     opaque};
    assert_null(process->readers[partition]);
    process->readers[partition] = *ret_reader = reader;
    return 0;
}

void queue_reader_close(struct queue_reader **reader_p)
{
    struct queue_reader *reader = TAKE(*reader_p);

    if (reader != NULL)
        reader->process->readers[reader->number] = NULL;
    free(reader);
}

void queue_reader_pause(struct queue_reader *reader)
{
    reader->paused = true;
}

void queue_reader_resume(struct queue_reader *reader)
{
    reader->paused = false;
}

static void reader_step(struct process *process, uint32_t number)
{
    struct queue_reader *reader = process->readers[number];
    struct queue_record records[8];
    size_t count = 0, most = 1 + below(process->world, 8);

    if (reader == NULL || reader->paused)
        return;
    while (count < most && reader->position < process->world->log_end[number])
        records[count++] = (struct queue_record){.offset = reader->position++};
    if (count > 0)
        reader->calls->on_records(reader->opaque, records, count);
    else
        reader->calls->on_end(reader->opaque, reader->position);
}

int queue_consumer_open(struct loop *loop, const struct queue_options *options,
                        struct queue_consumer **ret_consumer, struct err *err)
{
    (void)loop, (void)err;
    *ret_consumer = (struct queue_consumer *)(uintptr_t)number_of(options->bootstrap);
    return 0;
}

void queue_consumer_close(struct queue_consumer **consumer_p)
{
    *consumer_p = NULL;
}

int queue_election_open(struct loop *loop, const struct queue_election_options *options,
                        const struct queue_election_calls *calls, void *opaque,
                        struct queue_election **ret_election, struct err *err)
{
    struct process *process = (struct process *)(uintptr_t)number_of(options->queue.bootstrap);

    (void)loop, (void)err;
    process->group = calls;
    process->group_opaque = opaque;
    *ret_election = &process->election;
    return 0;
}

void queue_election_close(struct queue_election **election_p)
{
    *election_p = NULL;
}

void queue_election_release(struct queue_election *election)
{
    assert_int_equal(election->process->share, SHARE_REVOKED);
    election->process->share = SHARE_NONE;
}

void queue_election_leave(struct queue_election *election, uint32_t within_ms,
                          void (*on_left)(void *opaque))
{
    (void)election, (void)within_ms, (void)on_left;
}

void queue_election_store(struct queue_election *election, uint32_t partition, int64_t offset)
{
    (void)election, (void)partition, (void)offset;
}

int queue_admin_open(struct loop *loop, const struct queue_options *options,
                     struct queue_admin **ret_admin, struct err *err)
{
    (void)loop, (void)err;
    *ret_admin = (struct queue_admin *)(uintptr_t)number_of(options->bootstrap);
    return 0;
}

void queue_admin_close(struct queue_admin **admin_p)
{
    *admin_p = NULL;
}

void queue_admin_about(struct queue_admin *admin, const char *topic, uint32_t timeout_ms,
                       queue_about_fn *done, void *opaque)
{
    struct process *process = (struct process *)admin;

    (void)topic, (void)timeout_ms;
    process->about = done;
    process->about_opaque = opaque;
}

void queue_admin_ends(struct queue_admin *admin, const char *topic, uint32_t partition,
                      uint32_t timeout_ms, queue_ends_fn *done, void *opaque)
{
    struct process *process = (struct process *)admin;

    (void)topic, (void)partition, (void)timeout_ms;
    process->ends = done;
    process->ends_opaque = opaque;
}

int queue_producer_open(struct loop *loop, const struct queue_producer_options *options,
                        struct queue_producer **ret_producer, struct err *err)
{
    (void)loop, (void)options, (void)ret_producer;
    return err_set(err, ERR_INTERNAL, "nothing goes to a topic of the user's here");
}

void queue_producer_close(struct queue_producer **producer_p)
{
    (void)producer_p;
}

struct queue_topic *queue_producer_topic(struct queue_producer *producer, const char *name)
{
    (void)producer, (void)name;
    return NULL;
}

static void admin_step(struct process *process)
{
    queue_about_fn *about = TAKE(process->about);
    queue_ends_fn *ends = TAKE(process->ends);

    if (about != NULL)
        about(process->about_opaque, "cluster", PARTITIONS, NULL);
    if (ends != NULL)
        ends(process->ends_opaque, 0, process->world->log_end[0], NULL);
}

/* ---- what becomes of a record ---- */

static bool test_take(struct partition *partition, const struct queue_record *record,
                      struct item *item)
{
    (void)partition;
    item->made.size = 1;
    return of_concern(record->offset);
}

static size_t test_allow(struct partition *partition, const struct item *items, size_t count)
{
    (void)partition, (void)items;
    return the_world->calm ? count : below(the_world, count + 1);
}

static void test_claim(struct batch *batch, struct pg_batch *pg)
{
    (void)batch, (void)pg;
}

/* The id of its job follows from the place, the claim's time and the claim's targets. */
static void test_send(struct item *item)
{
    struct batch *batch = item->batch;
    struct process *process = batch->partition->topics->pg->process;
    struct world *world = process->world;
    uint32_t number = batch->partition->number;
    uint64_t *claim_ms = &world->claim_ms[number][item->offset];
    uint64_t *target = &world->target[number][item->offset];

    world->repeats += *claim_ms != 0;
    if (*claim_ms != 0 && (*claim_ms != batch->claim_ms || *target != batch->targets.weight))
        fail_msg("record %d of partition %u becomes two jobs", (int)item->offset, number);
    *claim_ms = batch->claim_ms;
    *target = batch->targets.weight;
    if (!world->calm && below(world, 10) == 0)
        return; /* Kafka is full: it stays READY */
    item->stage = ITEM_SENDING;
    assert(process->sending_count < SENDING_MAX);
    process->sending[process->sending_count++] = item;
}

static const struct stream_kind test_kind = {
    .what = "test", .take = test_take, .allow = test_allow, .claim = test_claim, .send = test_send};

static void report_step(struct process *process)
{
    struct world *world = process->world;
    size_t at;
    struct item *item;

    if (process->sending_count == 0)
        return;
    at = below(world, process->sending_count);
    item = process->sending[at];
    process->sending[at] = process->sending[--process->sending_count];
    if (!world->calm && below(world, 10) == 0) {
        item_again(item);
        return;
    }
    world->done[item->batch->partition->number][item->offset] = true;
    item_done(item);
}

/* ---- processes ---- */

static void targets_set(struct process *process)
{
    struct binding *binding = &process->binding;

    free(binding->targets_json);
    binding->targets.weight = process->world->targets;
    binding->targets_json = xasprintf("%llu", (unsigned long long)process->world->targets);
}

static void process_start(struct process *process)
{
    struct world *world = process->world;
    struct topics *topics = &process->topics;
    struct binding *binding = &process->binding;

    *process = (struct process){.world = world};
    TAILQ_INIT(&process->asked);
    process->pg.process = process->election.process = process;
    process->settings.topics_memory_size = 64;
    *topics = (struct topics){.settings = &process->settings,
                              .boot = "boot",
                              .loop = &world->loop,
                              .pg = &process->pg,
                              .pg_claims = &process->pg};
    LIST_INIT(&topics->orphans);
    *binding = (struct binding){.topics = topics, .id = "id", .name = "name", .tenant = "tenant"};
    binding->topic = binding->group = "topic";
    binding->brokers = xasprintf("%lu", (unsigned long)(uintptr_t)process);
    targets_set(process);
    binding->in = stream_new(binding, &test_kind);
    binding->in->asked_ms = 0;
}

/* Nothing of it is heard of any more; what it had sent may have arrived. */
static void process_end(struct process *process)
{
    struct asked *asked;

    stream_close(&process->binding.in);
    orphans_free(&process->topics);
    assert_int_equal(process->topics.bytes, 0);
    while ((asked = TAILQ_FIRST(&process->asked)) != NULL) {
        TAILQ_REMOVE(&process->asked, asked, link);
        free(asked);
    }
    free(process->binding.brokers);
    free(process->binding.targets_json);
}

/* ---- the group ---- */

static void group_take_away(struct process *process)
{
    if (process->share != SHARE_OWNED)
        return;
    if (!process->world->calm && below(process->world, 4) == 0) {
        process->share = SHARE_ASLEEP;
        return;
    }
    for (uint32_t n = 0; n < PARTITIONS; n++) {
        struct partition *partition;

        LIST_FOREACH(partition, &process->binding.in->partitions, link)
        {
            process->world->given_up_amid += partition->batch != NULL &&
                                             partition->gathered_count > 0;
        }
    }
    process->share = SHARE_REVOKED;
    process->group->on_revoked(process->group_opaque);
}

/* Everything is given away anew, once nobody who is heard of has anything. */
static void group_give(struct process *const *members, size_t count)
{
    uint32_t numbers[PROCESSES][PARTITIONS];
    size_t counts[PROCESSES] = {0};

    for (uint32_t n = 0; n < PARTITIONS; n++) {
        size_t who = below(the_world, count);

        numbers[who][counts[who]++] = n;
    }
    for (size_t i = 0; i < count; i++) {
        members[i]->share = SHARE_OWNED;
        members[i]->group->on_assigned(members[i]->group_opaque, numbers[i], counts[i]);
    }
}

static void group_step(struct world *world)
{
    struct process *members[PROCESSES];
    size_t count = 0, newcomers = 0;

    for (size_t i = 0; i < PROCESSES; i++) {
        struct process *process = &world->processes[i];

        if (process->group == NULL || process->share == SHARE_ASLEEP)
            continue;
        members[count++] = process;
        newcomers += process->share == SHARE_NONE;
    }
    if (newcomers == count && count > 0)
        group_give(members, count);
    else if (newcomers > 0 && (world->calm || below(world, 20) == 0)) {
        for (size_t i = 0; i < count; i++)
            group_take_away(members[i]);
    }
}

static void wake(struct process *process)
{
    if (process->share != SHARE_ASLEEP)
        return;
    process->share = SHARE_NONE;
    process->group->on_lost(process->group_opaque);
}

/* ---- the world ---- */

static void trouble_step(struct world *world, struct process *process)
{
    switch (below(world, 6)) {
    case 0:
        for (size_t i = 0; i < PROCESSES; i++)
            group_take_away(&world->processes[i]);
        break;
    case 1:
        ledger_cut(process);
        break;
    case 2:
        process_end(process);
        process_start(process);
        break;
    case 3:
        wake(process);
        break;
    case 4:
        world->targets++;
        for (size_t i = 0; i < PROCESSES; i++)
            targets_set(&world->processes[i]);
        break;
    default:
        world->loop.now_ms += 4000;
        break;
    }
}

static void world_step(struct world *world)
{
    struct process *process = &world->processes[below(world, PROCESSES)];
    uint32_t number = (uint32_t)below(world, PARTITIONS);

    switch (below(world, 8)) {
    case 0:
        if (world->log_end[number] < RECORDS)
            world->log_end[number]++;
        break;
    case 1:
        world->loop.now_ms += 100;
        stream_tick(process->binding.in, world->loop.now_ms);
        break;
    case 2:
        admin_step(process);
        group_step(world);
        break;
    case 3:
        if (!world->calm && below(world, 4) == 0)
            trouble_step(world, process);
        break;
    case 4:
    case 5:
        ledger_step(process);
        break;
    case 6:
        reader_step(process, number);
        break;
    default:
        report_step(process);
        break;
    }
}

static bool world_is_done(const struct world *world)
{
    for (size_t n = 0; n < PARTITIONS; n++) {
        if (world->rows[n].position != RECORDS)
            return false;
    }
    return true;
}

static struct world *world_new(uint64_t seed)
{
    struct world *world = the_world = xcalloc(1, sizeof(*world));

    rng_seed(&world->rng, seed);
    world->loop.now_ms = 1000000;
    world->targets = 1;
    for (size_t n = 0; n < PARTITIONS; n++)
        world->rows[n] = (struct row){.position = -1, .claim_to = -1};
    for (size_t i = 0; i < PROCESSES; i++) {
        world->processes[i].world = world;
        process_start(&world->processes[i]);
    }
    return world;
}

static void world_free(struct world *world)
{
    for (size_t i = 0; i < PROCESSES; i++)
        process_end(&world->processes[i]);
    free(world);
}

static void test_every_record_is_one_job(void **state)
{
    unsigned takeovers = 0, amid = 0, repeats = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        struct world *world = world_new(seed);
        unsigned steps = 0;

        for (int i = 0; i < STEPS; i++)
            world_step(world);
        world->calm = true;
        for (size_t i = 0; i < PROCESSES; i++)
            wake(&world->processes[i]);
        for (size_t n = 0; n < PARTITIONS; n++)
            world->log_end[n] = RECORDS;
        while (!world_is_done(world)) {
            if (steps++ > 1000000)
                fail_msg("seed %d: it does not go on", (int)seed);
            world_step(world);
        }
        takeovers += world->takeovers;
        amid += world->given_up_amid;
        repeats += world->repeats;
        world_free(world);
    }
    assert_true(takeovers > SEEDS * 10 && amid > SEEDS && repeats > SEEDS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_record_is_one_job),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
