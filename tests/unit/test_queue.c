/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what brokers/queue.h promises, on librdkafka's cluster inside the process: each record is
 * reported exactly once and read back in order, errors arrive under the right name, an election
 * gives everything to somebody. Method: real clients, injected errors, no sleeps: every wait is for
 * an event, with a bound. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/loop.h"
#include "brokers/queue.h"
#include "brokers/queue_embedded.h"
#include "brokers/queue_kafka.h"

#define WAIT_MS 20000
#define RECORDS_MAX 4096

struct world {
    struct loop *loop;
    struct queue_embedded *kafka;
    struct queue_options options;
    struct queue_producer *producer;
    struct queue_consumer *consumer;
};

static int world_setup(void **state)
{
    struct world *world = xcalloc(1, sizeof(*world));
    struct err err;

    assert_int_equal(loop_open(&world->loop, &err), 0);
    assert_int_equal(queue_embedded_open(1, &world->kafka, &err), 0);
    assert_int_equal(queue_embedded_create(world->kafka, "intake", 2, &err), 0);
    world->options = (struct queue_options){
        .bootstrap = queue_embedded_bootstrap(world->kafka),
        .client_id = "test",
        .properties = "fetch.wait.max.ms=5",
    };
    *state = world;
    return 0;
}

static int world_teardown(void **state)
{
    struct world *world = *state;

    queue_consumer_close(&world->consumer);
    queue_producer_close(&world->producer);
    loop_close(&world->loop);
    queue_embedded_close(&world->kafka);
    free(world);
    return 0;
}

static void world_open_producer(struct world *world, uint32_t record_count_max)
{
    const struct queue_producer_options options = {
        .queue = {.bootstrap = world->options.bootstrap, .client_id = "test"},
        .record_count_max = record_count_max,
    };
    struct err err;

    assert_int_equal(queue_producer_open(world->loop, &options, &world->producer, &err), 0);
}

static void world_open_consumer(struct world *world)
{
    struct err err;

    assert_int_equal(queue_consumer_open(world->loop, &world->options, &world->consumer, &err), 0);
}

/* ---- Reports */

struct reports {
    uint32_t want, count, ok_count;
    uint32_t seen[RECORDS_MAX]; /* by tag: how often reported */
    int64_t offsets[RECORDS_MAX];
    int last_code;
    bool done;
};

static void on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct reports *reports = opaque;

    assert_true(tag < RECORDS_MAX);
    reports->seen[tag]++;
    reports->offsets[tag] = report->offset;
    reports->last_code = report->code;
    reports->count++;
    reports->ok_count += report->code == ERR_OK;
    reports->done = reports->count == reports->want;
}

static int produce(struct world *world, struct reports *reports, uint32_t partition, uint32_t tag,
                   struct err *err)
{
    char text[32];
    const struct queue_message message = {
        .topic = queue_producer_topic(world->producer, "intake"),
        .partition = partition,
        .key = "key",
        .key_size = 3,
        .bytes = text,
        .size = (size_t)snprintf(text, sizeof(text), "record %u", tag),
        .trace = tag % 2 == 0 ? "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" : NULL,
        .done = on_report,
        .opaque = reports,
        .tag = tag,
    };

    return queue_produce(world->producer, &message, err);
}

static void produce_all(struct world *world, struct reports *reports, uint32_t count)
{
    struct err err;

    reports->want = count;
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(produce(world, reports, i % 2, i, &err), 0);
    assert_int_equal(reports->count, 0); /* never from inside queue_produce() */
    assert_true(loop_run_until(world->loop, &reports->done, WAIT_MS));
}

/* ---- Reading */

struct reading {
    struct world *world;
    struct queue_reader *reader;
    uint32_t count;
    int64_t first, last, end;
    int code;
    bool at_end, failed;
    bool close_in_call;
};

static void on_records(void *opaque, const struct queue_record *records, size_t record_count)
{
    struct reading *reading = opaque;

    for (size_t i = 0; i < record_count; i++) {
        if (reading->count == 0)
            reading->first = records[i].offset;
        else
            assert_true(records[i].offset > reading->last);
        assert_memory_equal(records[i].bytes, "record ", 7);
        assert_int_equal(records[i].key_size, 3);
        assert_true(records[i].append_us > 0);
        reading->last = records[i].offset;
        reading->count++;
    }
    if (reading->close_in_call)
        queue_reader_close(&reading->reader);
}

static void on_end(void *opaque, int64_t offset)
{
    struct reading *reading = opaque;

    reading->end = offset;
    reading->at_end = true;
    assert_int_equal(queue_reader_position(reading->reader), offset);
}

static void on_reader_error(void *opaque, const struct err *err)
{
    struct reading *reading = opaque;

    reading->code = err->code;
    reading->failed = true;
}

static const struct queue_reader_calls reader_calls = {on_records, on_end, on_reader_error};

static void reading_open(struct world *world, struct reading *reading, const char *topic,
                         uint32_t partition, int64_t start_offset)
{
    struct err err;

    reading->world = world;
    assert_int_equal(queue_reader_open(world->consumer, topic, partition, start_offset,
                                       &reader_calls, reading, &reading->reader, &err),
                     0);
}

/* ---- Tests */

static void test_each_record_is_reported_once_and_read_in_order(void **state)
{
    struct world *world = *state;
    struct reports *reports = xcalloc(1, sizeof(*reports));
    struct reading reading = {0}, from_middle = {0};
    const uint32_t count = 2000;

    world_open_producer(world, 0);
    world_open_consumer(world);
    produce_all(world, reports, count);
    assert_int_equal(reports->ok_count, count);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(reports->seen[i], 1);
        assert_int_equal(reports->offsets[i], i / 2);
    }
    assert_int_equal(queue_producer_unreported(world->producer), 0);
    print_message("%u records in %llu groups\n", count,
                  (unsigned long long)queue_producer_counts(world->producer).groups);

    reading_open(world, &reading, "intake", 0, QUEUE_OFFSET_BEGIN);
    assert_true(loop_run_until(world->loop, &reading.at_end, WAIT_MS));
    assert_int_equal(reading.count, count / 2);
    assert_int_equal(reading.end, count / 2);

    reading_open(world, &from_middle, "intake", 1, 990);
    assert_true(loop_run_until(world->loop, &from_middle.at_end, WAIT_MS));
    assert_int_equal(from_middle.first, 990);
    assert_int_equal(from_middle.count, 10);
    queue_reader_close(&reading.reader);
    queue_reader_close(&from_middle.reader);
    free(reports);
}

struct headed {
    uint32_t count, header_count;
    char text[256];
    bool done;
};

static void on_headed(void *opaque, const struct queue_record *records, size_t record_count)
{
    struct headed *headed = opaque;
    struct queue_header headers[QUEUE_HEADERS_MAX];

    for (size_t i = 0; i < record_count; i++, headed->count++) {
        size_t count = queue_record_headers(&records[i], headers, COUNT_OF(headers));
        size_t at = strlen(headed->text);

        headed->header_count += (uint32_t)count;
        for (size_t n = 0; n < count; n++)
            at += (size_t)snprintf(headed->text + at, sizeof(headed->text) - at, "%s=%.*s%s;",
                                   headers[n].name, (int)headers[n].size,
                                   headers[n].value != NULL ? (const char *)headers[n].value : "",
                                   headers[n].value == NULL ? "(none)" : "");
        assert_int_equal(queue_record_headers(&records[i], headers, 1), count > 0 ? 1 : 0);
    }
    headed->done = headed->count == 4;
}

static void on_headed_end(void *opaque, int64_t offset)
{
    (void)opaque, (void)offset;
}

/* Headers arrive as they were sent, beside the trace; records of one key are of one partition. */
static void test_headers_and_keys_arrive(void **state)
{
    static const struct queue_reader_calls calls = {on_headed, on_headed_end, on_reader_error};
    const struct queue_header headers[] = {{"a", "1", 1}, {"empty", "", 0}, {"none", NULL, 0}};
    struct world *world = *state;
    struct headed headed = {0};
    struct queue_reader *readers[2];
    struct err err;

    world_open_producer(world, 0);
    world_open_consumer(world);
    for (int i = 0; i < 4; i++) {
        const struct queue_message message = {
            .topic = queue_producer_topic(world->producer, "intake"),
            .partition = QUEUE_PARTITION_BY_KEY,
            .key = "same",
            .key_size = 4,
            .bytes = "record",
            .size = 6,
            .trace = i == 0 ? "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" : NULL,
            .headers = headers,
            .header_count = i == 1 ? COUNT_OF(headers) : 0,
        };
        assert_int_equal(queue_produce(world->producer, &message, &err), 0);
    }
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(queue_reader_open(world->consumer, "intake", i, QUEUE_OFFSET_BEGIN, &calls,
                                           &headed, &readers[i], &err),
                         0);
    assert_true(loop_run_until(world->loop, &headed.done, WAIT_MS));
    assert_string_equal(headed.text,
                        "traceparent=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01;"
                        "a=1;empty=;none=(none);");
    assert_true(queue_reader_position(readers[0]) <= 0 || queue_reader_position(readers[1]) <= 0);
    queue_reader_close(&readers[0]);
    queue_reader_close(&readers[1]);
}

/* Goal: one group of a partition is under way at a time, so that librdkafka never holds records
 * that it may not send and polls for without a pause (queue_producer.c). Method: Kafka answers
 * late; what is produced meanwhile stays with us until the first answer, and is then one group. */
static void test_nothing_follows_a_group_that_is_under_way(void **state)
{
    const uint32_t group = 64;
    struct world *world = *state;
    struct reports *reports = xcalloc(1, sizeof(*reports));
    struct err err;
    uint64_t groups;

    world_open_producer(world, 0);
    produce_all(world, reports, 2); /* connected, the topic is known */
    memset(reports, 0, sizeof(*reports));
    queue_embedded_set_delay(world->kafka, 200);
    groups = queue_producer_counts(world->producer).groups;
    for (uint32_t i = 0; i < 2 * group; i++) {
        assert_int_equal(produce(world, reports, 0, i, &err), 0);
        while (queue_producer_counts(world->producer).groups == groups && i == group - 1)
            (void)loop_run_until(world->loop, &reports->done, 1);
    }
    while (reports->count == 0) {
        assert_int_equal(queue_producer_counts(world->producer).groups, groups + 1);
        (void)loop_run_until(world->loop, &reports->done, 1);
    }
    reports->want = 2 * group;
    reports->done = reports->count == reports->want;
    assert_true(reports->done || loop_run_until(world->loop, &reports->done, WAIT_MS));
    assert_int_equal(reports->ok_count, 2 * group);
    assert_int_equal(queue_producer_counts(world->producer).groups, groups + 2);
    free(reports);
}

/* Goal: small and large groups go through two clients of librdkafka, and a partition's order is
 * that of the calls all the same. Method: groups of sizes on both sides of the limit, each of which
 * waits for the one before it, while Kafka answers at uneven times. */
static void test_order_stays_between_small_and_large_groups(void **state)
{
    static const uint32_t sizes[] = {1, 5, 4, 9, 2, 30, 1, 1, 6, 3, 64, 4};
    struct world *world = *state;
    struct reports *reports = xcalloc(1, sizeof(*reports));
    struct err err;
    uint32_t tag = 0;

    world_open_producer(world, 0);
    for (uint32_t round = 0; round < 4; round++) {
        for (uint32_t i = 0; i < COUNT_OF(sizes); i++) {
            uint64_t groups = queue_producer_counts(world->producer).groups;

            queue_embedded_set_delay(world->kafka, i % 3 == 0 ? 20 : 1);
            for (uint32_t n = 0; n < sizes[i]; n++)
                assert_int_equal(produce(world, reports, 0, tag++, &err), 0);
            while (queue_producer_counts(world->producer).groups == groups)
                (void)loop_run_until(world->loop, &reports->done, 1);
        }
    }
    reports->want = tag;
    reports->done = reports->count == tag;
    assert_true(reports->done || loop_run_until(world->loop, &reports->done, WAIT_MS));
    assert_int_equal(reports->ok_count, tag);
    for (uint32_t i = 0; i < tag; i++)
        assert_int_equal(reports->offsets[i], i);
    assert_int_equal(queue_producer_counts(world->producer).groups, 4 * COUNT_OF(sizes));
    free(reports);
}

static void test_start_at_the_end_tells_the_position_before_any_record(void **state)
{
    struct world *world = *state;
    struct reports *reports = xcalloc(1, sizeof(*reports));
    struct reading reading = {0};
    struct err err;

    world_open_producer(world, 0);
    world_open_consumer(world);
    produce_all(world, reports, 10);
    reading_open(world, &reading, "intake", 0, QUEUE_OFFSET_END);
    assert_int_equal(queue_reader_position(reading.reader), -1);
    assert_true(loop_run_until(world->loop, &reading.at_end, WAIT_MS));
    assert_int_equal(reading.end, 5);
    assert_int_equal(reading.count, 0);

    reading.at_end = false;
    assert_int_equal(produce(world, reports, 0, 10, &err), 0);
    assert_true(loop_run_until(world->loop, &reading.at_end, WAIT_MS));
    assert_int_equal(reading.count, 1);
    assert_int_equal(reading.first, 5);
    queue_reader_close(&reading.reader);
    free(reports);
}

static void test_paused_reader_hands_out_nothing_and_resumes(void **state)
{
    struct world *world = *state;
    struct reports *reports = xcalloc(1, sizeof(*reports));
    struct reading reading = {0}, other = {0};

    world_open_producer(world, 0);
    world_open_consumer(world);
    produce_all(world, reports, 20);
    reading_open(world, &reading, "intake", 0, 0);
    queue_reader_pause(reading.reader);
    reading_open(world, &other, "intake", 1, 0);
    assert_true(loop_run_until(world->loop, &other.at_end, WAIT_MS));
    assert_int_equal(reading.count, 0);
    queue_reader_resume(reading.reader);
    assert_true(loop_run_until(world->loop, &reading.at_end, WAIT_MS));
    assert_int_equal(reading.count, 10);
    queue_reader_close(&reading.reader);
    queue_reader_close(&other.reader);
    free(reports);
}

static void test_reader_may_be_closed_in_its_own_call(void **state)
{
    struct world *world = *state;
    struct reports *reports = xcalloc(1, sizeof(*reports));
    struct reading reading = {.close_in_call = true};
    bool never = false;

    world_open_producer(world, 0);
    world_open_consumer(world);
    produce_all(world, reports, 20);
    reading_open(world, &reading, "intake", 0, 0);
    while (reading.reader != NULL)
        (void)loop_run_until(world->loop, &never, 10);
    assert_true(reading.count > 0);
    assert_false(reading.at_end); /* nothing comes after the close, not even from the same batch */
    free(reports);
}

static void test_bad_starts_have_names(void **state)
{
    static const struct {
        const char *what, *topic;
        uint32_t partition;
        int64_t offset;
        int code;
    } rows[] = {
        {"offset beyond the end", "intake", 0, 12345, ERR_RANGE},
    };
    struct world *world = *state;

    world_open_consumer(world);
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct reading reading = {0};

        print_message("%s\n", rows[i].what);
        reading_open(world, &reading, rows[i].topic, rows[i].partition, rows[i].offset);
        assert_true(loop_run_until(world->loop, &reading.failed, WAIT_MS));
        assert_int_equal(reading.code, rows[i].code);
        queue_reader_close(&reading.reader);
    }
}

static void test_retriable_errors_are_retried_in_order(void **state)
{
    struct world *world = *state;
    struct reports *reports = xcalloc(1, sizeof(*reports));

    world_open_producer(world, 0);
    queue_embedded_fail_produce(world->kafka, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, 1);
    queue_embedded_fail_produce(world->kafka, RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, 2);
    produce_all(world, reports, 100);
    assert_int_equal(reports->ok_count, 100);
    for (uint32_t i = 0; i < 100; i++) {
        assert_int_equal(reports->seen[i], 1);
        assert_int_equal(reports->offsets[i], i / 2);
    }
    free(reports);
}

static void test_record_that_kafka_refuses_is_certainly_not_in_the_log(void **state)
{
    struct world *world = *state;
    struct reports *reports = xcalloc(1, sizeof(*reports));

    world_open_producer(world, 0);
    queue_embedded_fail_produce(world->kafka, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, 1);
    produce_all(world, reports, 1);
    assert_int_equal(reports->last_code, ERR_FORBIDDEN);
    assert_int_equal(reports->offsets[0], -1);
    free(reports);
}

static void test_away_kafka_fills_the_queue_and_loses_nothing(void **state)
{
    struct world *world = *state;
    struct reports *reports = xcalloc(1, sizeof(*reports));
    struct err err;

    world_open_producer(world, 50);
    produce_all(world, reports, 2); /* connected once */
    memset(reports, 0, sizeof(*reports));
    queue_embedded_set_down(world->kafka, true);
    reports->want = 50;
    for (uint32_t i = 0; i < 50; i++)
        assert_int_equal(produce(world, reports, 0, i, &err), 0);
    assert_int_equal(produce(world, reports, 0, 50, &err), ERR_FULL);
    assert_int_equal(err_class(err.code), ERR_CLASS_RETRY);
    assert_false(loop_run_until(world->loop, &reports->done, 300));
    assert_int_equal(reports->count, 0);
    queue_embedded_set_down(world->kafka, false);
    assert_true(loop_run_until(world->loop, &reports->done, WAIT_MS));
    assert_int_equal(reports->ok_count, 50);
    for (uint32_t i = 0; i < 50; i++)
        assert_int_equal(reports->seen[i], 1);
    free(reports);
}

static void test_fatal_error_settles_what_was_out_and_goes_on(void **state)
{
    struct world *world = *state;
    struct reports *reports = xcalloc(1, sizeof(*reports));
    bool never = false;
    struct err err;

    world_open_producer(world, 0);
    produce_all(world, reports, 2);
    memset(reports, 0, sizeof(*reports));
    queue_embedded_set_down(world->kafka, true);
    reports->want = 20;
    for (uint32_t i = 0; i < 10; i++)
        assert_int_equal(produce(world, reports, 0, i, &err), 0);
    (void)loop_run_until(world->loop, &never, 20); /* handed over */
    for (uint32_t i = 10; i < 20; i++)
        assert_int_equal(produce(world, reports, 0, i, &err), 0);
    queue_producer_break(world->producer);
    while (queue_producer_counts(world->producer).renewals == 0)
        (void)loop_run_until(world->loop, &never, 10);
    assert_int_equal(err_class(reports->last_code), ERR_CLASS_RETRY);
    queue_embedded_set_down(world->kafka, false);
    assert_true(loop_run_until(world->loop, &reports->done, WAIT_MS));
    assert_true(reports->count - reports->ok_count >= 10);
    for (uint32_t i = 0; i < 20; i++)
        assert_int_equal(reports->seen[i], 1);

    memset(reports, 0, sizeof(*reports));
    produce_all(world, reports, 4); /* the new one works */
    assert_int_equal(reports->ok_count, 4);
    free(reports);
}

static void test_too_big_is_refused_before_it_is_taken(void **state)
{
    struct world *world = *state;
    uint8_t *bytes = xcalloc(1, QUEUE_RECORD_MAX + 1);
    struct queue_message message = {.bytes = bytes, .size = QUEUE_RECORD_MAX + 1};
    struct err err;

    world_open_producer(world, 0);
    message.topic = queue_producer_topic(world->producer, "intake");
    assert_int_equal(queue_produce(world->producer, &message, &err), ERR_TOO_BIG);
    assert_int_equal(queue_producer_unreported(world->producer), 0);
    free(bytes);
}

static void test_bad_options_have_names(void **state)
{
    static const struct {
        const char *what;
        struct queue_options options;
    } rows[] = {
        {"no address", {.bootstrap = ""}},
        {"only a scheme", {.bootstrap = "kafka://"}},
        {"unknown property", {.bootstrap = "h:1", .properties = "no.such=1"}},
        {"property without value", {.bootstrap = "h:1", .properties = "acks"}},
    };
    struct world *world = *state;

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct queue_consumer *consumer = NULL;
        struct err err;

        print_message("%s\n", rows[i].what);
        assert_int_equal(queue_consumer_open(world->loop, &rows[i].options, &consumer, &err),
                         ERR_USAGE);
    }
}

/* ---- Admin */

struct answer {
    bool done;
    int code;
    int64_t begin, end;
    uint32_t partition_count;
    char cluster_id[64];
};

static void on_ends(void *opaque, int64_t begin, int64_t end, const struct err *err)
{
    *(struct answer *)opaque = (struct answer){
        .done = true, .code = err != NULL ? err->code : 0, .begin = begin, .end = end};
}

static void on_about(void *opaque, const char *cluster_id, uint32_t partition_count,
                     const struct err *err)
{
    struct answer *answer = opaque;

    *answer = (struct answer){
        .done = true, .code = err != NULL ? err->code : 0, .partition_count = partition_count};
    mem_copy_text(answer->cluster_id, cluster_id != NULL ? cluster_id : "");
}

static void on_done(void *opaque, const struct err *err)
{
    *(struct answer *)opaque = (struct answer){.done = true, .code = err != NULL ? err->code : 0};
}

static void test_admin_answers_ends_and_cluster(void **state)
{
    const struct queue_topic_spec spec = {.name = "intake", .partition_count = 2};
    struct world *world = *state;
    struct reports *reports = xcalloc(1, sizeof(*reports));
    struct queue_admin *admin;
    struct answer answer = {0};
    struct err err;

    world_open_producer(world, 0);
    produce_all(world, reports, 20);
    assert_int_equal(queue_admin_open(world->loop, &world->options, &admin, &err), 0);
    queue_admin_ends(admin, "intake", 1, 5000, on_ends, &answer);
    assert_false(answer.done);
    assert_true(loop_run_until(world->loop, &answer.done, WAIT_MS));
    assert_int_equal(answer.code, 0);
    assert_int_equal(answer.begin, 0);
    assert_int_equal(answer.end, 10);

    answer.done = false;
    queue_admin_about(admin, "intake", 5000, on_about, &answer);
    assert_true(loop_run_until(world->loop, &answer.done, WAIT_MS));
    assert_int_equal(answer.code, 0);
    assert_int_equal(answer.partition_count, 2);
    assert_true(strlen(answer.cluster_id) > 0);

    answer.done = false;
    queue_admin_ensure(admin, &spec, 1, 5000, on_done, &answer);
    assert_true(loop_run_until(world->loop, &answer.done, WAIT_MS));
    assert_int_equal(answer.code, 0);

    /* An answer that is still due when the admin closes is dropped, and nothing leaks. */
    queue_admin_ends(admin, "intake", 0, 5000, on_ends, &answer);
    queue_admin_close(&admin);
    free(reports);
}

/* ---- Election */

struct member {
    struct queue_election *election;
    bool owned[2], assigned, revoked, left, lost, may_fail, failed;
    uint32_t owned_count;
    int fatal_code;
};

static void on_assigned(void *opaque, const uint32_t *partitions, size_t partition_count)
{
    struct member *member = opaque;

    memset(member->owned, 0, sizeof(member->owned));
    for (size_t i = 0; i < partition_count; i++)
        member->owned[partitions[i]] = true;
    member->owned_count = (uint32_t)partition_count;
    member->assigned = true;
}

static void on_revoked(void *opaque)
{
    struct member *member = opaque;

    member->revoked = true;
    member->owned_count = 0;
    queue_election_release(member->election);
}

static void on_lost(void *opaque)
{
    struct member *member = opaque;

    member->lost = true;
    member->owned_count = 0;
}

static void on_election_error(void *opaque, const struct err *err)
{
    struct member *member = opaque;

    print_message("election: %s\n", err->text);
    if (err_class(err->code) == ERR_CLASS_RETRY)
        return;
    assert_true(member->may_fail);
    member->failed = true;
    member->fatal_code = err->code;
}

static void on_left(void *opaque)
{
    ((struct member *)opaque)->left = true;
}

static void member_open(struct world *world, struct member *member, const char *instance)
{
    static const struct queue_election_calls calls = {on_assigned, on_revoked, on_lost,
                                                      on_election_error};
    const struct queue_election_options options = {
        .queue = world->options, .topic = "intake", .group = "broker", .instance = instance};
    struct err err;

    assert_int_equal(
        queue_election_open(world->loop, &options, &calls, member, &member->election, &err), 0);
}

static void test_election_moves_everything_when_a_member_comes_and_goes(void **state)
{
    struct world *world = *state;
    struct member first = {0}, second = {0};
    bool never = false;

    member_open(world, &first, "one");
    assert_true(loop_run_until(world->loop, &first.assigned, WAIT_MS));
    assert_int_equal(first.owned_count, 2);

    member_open(world, &second, "two"); /* it may take more than one round to settle */
    while (first.owned_count != 1 || second.owned_count != 1)
        (void)loop_run_until(world->loop, &never, 10);
    assert_true(first.revoked);
    assert_true(first.owned[0] != second.owned[0]);

    queue_election_leave(first.election, WAIT_MS, on_left);
    assert_true(loop_run_until(world->loop, &first.left, WAIT_MS));
    queue_election_close(&first.election);
    while (second.owned_count != 2)
        (void)loop_run_until(world->loop, &never, 10);
    queue_election_close(&second.election);
}

/* Neither leaving nor closing waits for a Kafka that is away. */
static void test_member_whose_kafka_is_away_leaves_in_time(void **state)
{
    struct world *world = *state;
    struct member member = {0};
    bool never = false;
    uint64_t began_ms;

    member_open(world, &member, "one");
    assert_true(loop_run_until(world->loop, &member.assigned, WAIT_MS));
    queue_embedded_close(&world->kafka);
    queue_election_store(member.election, 0, 7); /* a commit is under way that nobody answers */
    (void)loop_run_until(world->loop, &never, 50);
    began_ms = clock_mono_ms();
    queue_election_leave(member.election, 300, on_left);
    assert_true(loop_run_until(world->loop, &member.left, WAIT_MS));
    queue_election_close(&member.election);
    assert_in_range(clock_mono_ms() - began_ms, 0, 3000);
}

/* Who loses its session and is fenced then was fenced by a request of its own from before: it joins
 * anew, once. Who is fenced otherwise has a second process of its name beside it, and ends. */
static void test_member_fenced_by_its_own_shadow_joins_anew(void **state)
{
    struct world *world = *state;
    struct member member = {0};

    member_open(world, &member, "one");
    assert_true(loop_run_until(world->loop, &member.assigned, WAIT_MS));
    queue_embedded_set_down(world->kafka, true);
    assert_true(loop_run_until(world->loop, &member.lost, WAIT_MS));
    queue_embedded_set_down(world->kafka, false);
    member.assigned = false;
    queue_election_break(member.election);
    assert_true(loop_run_until(world->loop, &member.assigned, WAIT_MS));
    assert_int_equal(member.owned_count, 2);

    member.may_fail = true;
    queue_election_break(member.election);
    assert_true(loop_run_until(world->loop, &member.failed, WAIT_MS));
    assert_int_equal(member.fatal_code, ERR_STALE);
    queue_election_close(&member.election);
}

int main(int argc, char **argv)
{
#define WORLD_TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)
    const struct CMUnitTest tests[] = {
        WORLD_TEST(test_each_record_is_reported_once_and_read_in_order),
        WORLD_TEST(test_headers_and_keys_arrive),
        WORLD_TEST(test_nothing_follows_a_group_that_is_under_way),
        WORLD_TEST(test_order_stays_between_small_and_large_groups),
        WORLD_TEST(test_start_at_the_end_tells_the_position_before_any_record),
        WORLD_TEST(test_paused_reader_hands_out_nothing_and_resumes),
        WORLD_TEST(test_reader_may_be_closed_in_its_own_call),
        WORLD_TEST(test_bad_starts_have_names),
        WORLD_TEST(test_retriable_errors_are_retried_in_order),
        WORLD_TEST(test_record_that_kafka_refuses_is_certainly_not_in_the_log),
        WORLD_TEST(test_away_kafka_fills_the_queue_and_loses_nothing),
        WORLD_TEST(test_fatal_error_settles_what_was_out_and_goes_on),
        WORLD_TEST(test_too_big_is_refused_before_it_is_taken),
        WORLD_TEST(test_bad_options_have_names),
        WORLD_TEST(test_admin_answers_ends_and_cluster),
        WORLD_TEST(test_election_moves_everything_when_a_member_comes_and_goes),
        WORLD_TEST(test_member_whose_kafka_is_away_leaves_in_time),
        WORLD_TEST(test_member_fenced_by_its_own_shadow_joins_anew),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
