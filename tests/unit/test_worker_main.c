/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: the worker program as its owner sees it, through Kafka: Hello, credit, results, and what
 * becomes of jobs when the engine crashes, hangs, or the worker is told to leave.
 * Method: a Kafka inside this process, the worker and its host as real processes (this binary
 * again), and this loop in the owner's place. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <ftw.h>
#include <openssl/sha.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/loop.h"
#include "brokers/blob.h"
#include "brokers/queue.h"
#include "brokers/queue_embedded.h"
#include "schema/job.h"
#include "schema/job_id.h"
#include "schema/message.h"
#include "workers/child.h"
#include "workers/host_c.h"

#define WAIT_MS 30000
#define EPOCH ((uint64_t)7 << 32)
#define MESSAGES_MAX 64

int worker_main(int argc, char **argv);

struct seen { /* of one token, or of the worker when 0 */
    bool started, finished;
    enum error_class class;
    char output[256], blob[160], why[256];
    uint64_t output_size;
};

struct world {
    struct loop *loop;
    struct queue_embedded *kafka;
    struct queue_producer *producer;
    struct queue_consumer *consumer;
    struct queue_reader *reader;
    struct wire_decoder *decoder;
    struct child *worker;
    struct child_end end;
    char blobs[64];
    uint64_t boot, granted, received, position, pid;
    uint32_t partition, held;
    bool hello, bye, draining, ended, done;
    struct seen seen[MESSAGES_MAX];
    bool (*wants)(struct world *world);
    uint64_t wanted;
};

/* ---- the owner's ears ---- */

static void world_hear(struct world *world, const struct message *message)
{
    struct seen *seen = NULL;

    switch (message->type) {
    case MESSAGE_HELLO:
        world->hello = true;
        world->boot = message->hello.boot;
        world->partition = (uint32_t)message->hello.partition;
        world->pid = message->hello.pid;
        break;
    case MESSAGE_HEARTBEAT:
        world->granted = message->heartbeat.granted;
        world->received = message->heartbeat.received;
        world->position = message->heartbeat.position;
        world->held = (uint32_t)message->heartbeat.tokens.count;
        world->draining = message->heartbeat.draining;
        assert_int_equal(message->heartbeat.jobs.size, world->held * WIRE_ID_SIZE);
        break;
    case MESSAGE_STARTED:
        world->seen[message->started.token - EPOCH].started = true;
        break;
    case MESSAGE_FINISHED:
        seen = &world->seen[message->finished.token - EPOCH];
        assert_false(seen->finished);
        seen->finished = true;
        seen->class = (enum error_class)message->finished.error_class;
        seen->output_size = message->finished.output_size;
        (void)snprintf(
            seen->output, sizeof(seen->output), "%.*s", (int)message->finished.output.size,
            message->finished.output.size > 0 ? (const char *)message->finished.output.bytes : "");
        (void)snprintf(
            seen->blob, sizeof(seen->blob), "%.*s", (int)message->finished.output_blob.size,
            message->finished.output_blob.size > 0 ? message->finished.output_blob.text : "");
        (void)snprintf(
            seen->why, sizeof(seen->why), "%.*s", (int)message->finished.error_message.size,
            message->finished.error_message.size > 0 ? message->finished.error_message.text : "");
        break;
    case MESSAGE_BYE:
        world->bye = true;
        break;
    default:
        fail_msg("a worker does not send this");
    }
}

static void world_on_records(void *opaque, const struct queue_record *records, size_t record_count)
{
    struct world *world = opaque;
    struct message message;
    struct err err;

    for (size_t i = 0; i < record_count; i++) {
        assert_int_equal(
            message_decode(world->decoder, records[i].bytes, records[i].size, &message, &err), 0);
        world_hear(world, &message);
    }
    world->done = world->done || (world->wants != NULL && world->wants(world));
}

static void world_on_end(void *opaque, int64_t offset)
{
    (void)opaque;
    (void)offset;
}

static void world_on_error(void *opaque, const struct err *err)
{
    (void)opaque;
    fail_msg("%s", err->text);
}

static void world_on_child_end(void *opaque, const struct child_end *end)
{
    struct world *world = opaque;

    world->ended = true;
    world->end = *end;
    world->done = world->done || (world->wants != NULL && world->wants(world));
}

static void world_wait(struct world *world, bool (*wants)(struct world *world), uint64_t wanted)
{
    world->wants = wants;
    world->wanted = wanted;
    world->done = wants(world);
    assert_true(loop_run_until(world->loop, &world->done, WAIT_MS));
    world->wants = NULL;
}

static bool has_credit(struct world *world)
{
    return world->hello && world->granted >= world->wanted;
}

static bool is_finished(struct world *world)
{
    return world->seen[world->wanted].finished;
}

static bool is_started(struct world *world)
{
    return world->seen[world->wanted].started;
}

static bool has_left(struct world *world)
{
    return world->ended;
}

static bool has_said_bye(struct world *world)
{
    return world->bye;
}

/* ---- the owner's mouth ---- */

static void world_send(struct world *world, enum message_type type, const void *fields)
{
    OWNED(buf_done) struct buf bytes = BUF_WITH_LIMIT(1u << 20);
    struct queue_message message = {.topic = queue_producer_topic(world->producer, "dispatch.p"),
                                    .partition = world->partition};
    struct err err;

    assert_int_equal(message_encode(type, fields, &bytes, &err), 0);
    message.bytes = bytes.bytes;
    message.size = bytes.size;
    assert_int_equal(queue_produce(world->producer, &message, &err), 0);
}

static struct message_attempt attempt_of(struct world *world, uint64_t n, const char *input)
{
    return (struct message_attempt){
        .token = EPOCH + n,
        .worker = WIRE_TEXT_OF("w1"),
        .boot = world->boot,
        .job.bytes = {1, 2, 3, 4, 5, 6, 0x70, 8, 0x80, 0, 0, 0, 0, 0, 0, (uint8_t)n},
        .number = 1,
        .tenant = WIRE_TEXT_OF("t"),
        .model = WIRE_TEXT_OF("m"),
        .deployment = WIRE_TEXT_OF("d"),
        .input = {(const uint8_t *)input, strlen(input)},
        .input_size = strlen(input),
        .run_limit_ms = 20000,
    };
}

static void world_attempt(struct world *world, uint64_t n, const char *input)
{
    const struct message_attempt attempt = attempt_of(world, n, input);

    world_send(world, MESSAGE_ATTEMPT, &attempt);
}

/* ---- life ---- */

static void world_start_worker(struct world *world, const char *settings, const char *slots)
{
    char *const argv[] = {"test",
                          "worker",
                          "--worker=w1",
                          "--pool=p",
                          "--engine=sim",
                          "--cancel-grace=200ms",
                          "--heartbeat=200ms",
                          "--log-level=error",
                          xasprintf("--slots=%s", slots),
                          xasprintf("--engine-settings=%s", settings),
                          xasprintf("--kafka=%s", queue_embedded_bootstrap(world->kafka)),
                          xasprintf("--blobs=%s", world->blobs),
                          NULL};
    const struct child_spawn spawn = {
        .path = "/proc/self/exe", .argv = argv, .stdout_fd = -1, .stderr_fd = -1, .extra_fd = -1};
    struct err err;

    assert_int_equal(
        child_start(world->loop, &spawn, world_on_child_end, world, &world->worker, &err), 0);
    for (int i = 8; i < 12; i++)
        free(argv[i]);
}

static int world_open(void **state)
{
    static const struct queue_reader_calls calls = {world_on_records, world_on_end, world_on_error};
    static struct world world;
    struct queue_producer_options options = {0};
    struct err err;

    world = (struct world){.blobs = "/tmp/headrace-test-XXXXXX"};
    *state = &world;
    assert_non_null(mkdtemp(world.blobs));
    world.decoder = wire_decoder_new();
    assert_int_equal(loop_open(&world.loop, &err), 0);
    assert_int_equal(queue_embedded_open(1, &world.kafka, &err), 0);
    assert_int_equal(queue_embedded_create(world.kafka, "outcome", 1, &err), 0);
    assert_int_equal(queue_embedded_create(world.kafka, "dispatch.p", 4, &err), 0);
    options.queue.bootstrap = queue_embedded_bootstrap(world.kafka);
    options.queue.client_id = "owner";
    assert_int_equal(queue_producer_open(world.loop, &options, &world.producer, &err), 0);
    assert_int_equal(queue_consumer_open(world.loop, &options.queue, &world.consumer, &err), 0);
    assert_int_equal(queue_reader_open(world.consumer, "outcome", 0, QUEUE_OFFSET_BEGIN, &calls,
                                       &world, &world.reader, &err),
                     0);
    return 0;
}

static int remove_one(const char *path, const struct stat *about, int type, struct FTW *at)
{
    (void)about;
    (void)type;
    (void)at;
    return remove(path);
}

static int world_close(void **state)
{
    struct world *world = *state;

    if (world->worker != NULL && !world->ended) {
        child_signal(world->worker, SIGKILL);
        world_wait(world, has_left, 0);
    }
    child_free(&world->worker);
    queue_reader_close(&world->reader);
    queue_consumer_close(&world->consumer);
    queue_producer_close(&world->producer);
    queue_embedded_close(&world->kafka);
    wire_decoder_free(&world->decoder);
    loop_close(&world->loop);
    return nftw(world->blobs, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* ---- stories ---- */

static void test_runs_and_leaves(void **state)
{
    struct world *world = *state;

    world_start_worker(world, "{\"test_mode\":true}", "2");
    world_wait(world, has_credit, 2);
    assert_int_equal(world->pid, child_pid(world->worker));
    world_attempt(world, 1, "{\"a\":1}");
    world_wait(world, is_finished, 1);
    assert_int_equal(world->seen[1].class, ERROR_CLASS_NONE);
    assert_non_null(strstr(world->seen[1].output, "{\"output\":{\"a\":1}"));
    world_wait(world, has_credit, 3);
    world_attempt(world, 2, "{\"sim\":{\"sleep_ms\":100}}");
    world_attempt(world, 3, "{\"sim\":{\"fail\":\"oom\"}}");
    world_wait(world, is_finished, 2);
    world_wait(world, is_finished, 3);
    assert_true(world->seen[2].started);
    assert_int_equal(world->seen[3].class, ERROR_CLASS_OOM);
    world_attempt(world, 4, "{\"sim\":{\"sleep_ms\":200}}");
    world_wait(world, is_started, 4);
    child_signal(world->worker, SIGTERM);
    world_wait(world, has_left, 0);
    assert_string_equal(world->end.text, "exited with code 0");
    world_wait(world, is_finished, 4);
    assert_int_equal(world->seen[4].class, ERROR_CLASS_NONE);
    world_wait(world, has_said_bye, 0);
}

/* One poisonous job, one bystander, one that waits: the first two are lost, the third is run by
 * the next host. */
static void test_crash_costs_what_was_in_the_host(void **state)
{
    struct world *world = *state;

    world_start_worker(world, "{\"test_mode\":true}", "3");
    world_wait(world, has_credit, 3);
    world_attempt(world, 1, "{\"sim\":{\"sleep_ms\":10000}}");
    world_wait(world, is_started, 1);
    world_attempt(world, 2, "{\"sim\":{\"crash\":true}}");
    world_wait(world, is_finished, 2);
    world_wait(world, is_finished, 1);
    assert_int_equal(world->seen[1].class, ERROR_CLASS_LOST_WORKER);
    assert_int_equal(world->seen[2].class, ERROR_CLASS_LOST_WORKER);
    assert_non_null(strstr(world->seen[2].why, "the engine host was killed by signal 6 (Aborted)"));
    world_attempt(world, 3, "{}");
    world_wait(world, is_finished, 3);
    assert_int_equal(world->seen[3].class, ERROR_CLASS_NONE);
    assert_false(world->ended);
}

static void test_hang_ends_by_the_run_limit(void **state)
{
    struct world *world = *state;
    struct message_attempt hang;

    world_start_worker(world, "{\"test_mode\":true}", "2");
    world_wait(world, has_credit, 2);
    world_attempt(world, 1, "{\"sim\":{\"sleep_ms\":15000}}");
    world_wait(world, is_started, 1);
    hang = attempt_of(world, 2, "{\"sim\":{\"hang\":true}}");
    hang.run_limit_ms = 300;
    world_send(world, MESSAGE_ATTEMPT, &hang);
    world_wait(world, is_finished, 2);
    assert_int_equal(world->seen[2].class, ERROR_CLASS_MODEL_TIMEOUT);
    world_wait(world, is_finished, 1);
    assert_int_equal(world->seen[1].class, ERROR_CLASS_HANDED_BACK);
    world_attempt(world, 3, "{}");
    world_wait(world, is_finished, 3);
    assert_int_equal(world->seen[3].class, ERROR_CLASS_NONE);
}

static void test_foreign_and_late_attempts(void **state)
{
    struct world *world = *state;
    struct message_attempt other;
    struct message_revoke revoke;

    world_start_worker(world, "{\"test_mode\":true}", "1");
    world_wait(world, has_credit, 1);
    other = attempt_of(world, 1, "{}");
    other.boot++;
    world_send(world, MESSAGE_ATTEMPT, &other);
    world_attempt(world, 2, "{\"sim\":{\"hang\":\"soft\"}}");
    world_wait(world, is_started, 2);
    world_attempt(world, 3, "{}"); /* no credit for it */
    world_wait(world, is_finished, 3);
    assert_int_equal(world->seen[3].class, ERROR_CLASS_HANDED_BACK);
    revoke = (struct message_revoke){.token = EPOCH + 2,
                                     .worker = WIRE_TEXT_OF("w1"),
                                     .boot = world->boot,
                                     .job = attempt_of(world, 2, "").job};
    world_send(world, MESSAGE_REVOKE, &revoke);
    world_wait(world, has_credit, 3);
    world_attempt(world, 4, "{}");
    world_wait(world, is_finished, 4);
    assert_false(world->seen[1].finished);
    assert_false(world->seen[2].finished);
}

/* ---- blobs ---- */

struct put {
    bool done;
};

static void on_put(void *opaque, const struct err *err)
{
    assert_int_equal(err->code, ERR_OK);
    ((struct put *)opaque)->done = true;
}

static void test_large_input_and_output(void **state)
{
    struct world *world = *state;
    struct blob_store *store;
    struct buf bytes = BUF_WITH_LIMIT(8u << 20);
    struct put put = {0};
    struct message_attempt attempt;
    char key[BLOB_KEY_SIZE], output_key[BLOB_KEY_SIZE];
    uint8_t digest[32], wrong[32] = {1};
    uint64_t size;
    struct err err;

    world_start_worker(world, "{\"test_mode\":true}", "4");
    world_wait(world, has_credit, 4);
    buf_append_text(&bytes, "{\"pad\":\"");
    for (int i = 0; i < 30000; i++)
        buf_append_text(&bytes, "0123456789012345678901234567890123456789");
    buf_append_text(&bytes, "\"}");
    size = bytes.size;
    (void)SHA256(bytes.bytes, bytes.size, digest);
    attempt = attempt_of(world, 1, "");
    blob_key_input(&attempt.job, key);
    assert_int_equal(blob_store_open(world->loop, world->blobs, &store, &err), 0);
    assert_int_equal(blob_put(store, key, &bytes, on_put, &put, &err), 0);
    assert_true(loop_run_until(world->loop, &put.done, WAIT_MS));

    attempt.input_blob = WIRE_TEXT_OF(key);
    attempt.input_size = size;
    attempt.input_digest = (struct wire_bytes){digest, sizeof(digest)};
    world_send(world, MESSAGE_ATTEMPT, &attempt);
    world_wait(world, is_finished, 1);
    assert_int_equal(world->seen[1].class, ERROR_CLASS_NONE);
    assert_in_range(world->seen[1].output_size, size, size + 200);
    blob_key_output(&attempt.job, attempt.token, output_key);
    assert_string_equal(world->seen[1].blob, output_key);
    assert_string_equal(world->seen[1].output, "");

    attempt.token = EPOCH + 2;
    attempt.input_digest = (struct wire_bytes){wrong, sizeof(wrong)};
    world_send(world, MESSAGE_ATTEMPT, &attempt);
    world_wait(world, is_finished, 2);
    assert_int_equal(world->seen[2].class, ERROR_CLASS_INPUT_LOST);
    assert_string_equal(world->seen[2].why, "the input's blob is not what was submitted");

    attempt.token = EPOCH + 3;
    attempt.input_blob = WIRE_TEXT_OF("input/none");
    world_send(world, MESSAGE_ATTEMPT, &attempt);
    world_wait(world, is_finished, 3);
    assert_int_equal(world->seen[3].class, ERROR_CLASS_INPUT_LOST);
    blob_store_close(&store);
}

/* ---- ends ---- */

static void test_failed_load_is_exit_2(void **state)
{
    struct world *world = *state;

    world_start_worker(world, "{\"load_fails\":true}", "1");
    world_wait(world, has_left, 0);
    assert_string_equal(world->end.text, "exited with code 2");
    assert_false(world->hello);
}

static void test_lost_device_is_exit_3(void **state)
{
    struct world *world = *state;

    world_start_worker(world, "{\"test_mode\":true}", "2");
    world_wait(world, has_credit, 2);
    world_attempt(world, 1, "{\"sim\":{\"fail\":\"device_fault\"}}");
    world_wait(world, has_left, 0);
    assert_string_equal(world->end.text, "exited with code 3");
    world_wait(world, is_finished, 1);
    assert_int_equal(world->seen[1].class, ERROR_CLASS_DEVICE_FAULT);
    world_wait(world, has_said_bye, 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_runs_and_leaves, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_crash_costs_what_was_in_the_host, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(test_hang_ends_by_the_run_limit, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_foreign_and_late_attempts, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_large_input_and_output, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_failed_load_is_exit_2, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_lost_device_is_exit_3, world_open, world_close),
    };

    (void)signal(SIGPIPE, SIG_IGN);
    if (argc > 1 && strcmp(argv[1], "host-c") == 0)
        return host_c_main(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "worker") == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nobody behind */
        return worker_main(argc - 1, argv + 1);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
