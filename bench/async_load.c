/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Load for `bench/run async`: submits jobs by HTTP, one request a job, and watches `completed`.
 *
 *   async_load GATEWAY_HOST GATEWAY_PORT PATH API_KEY KAFKA SHARDS JOBS CONNECTIONS RATE INPUT_SIZE
 *              [FIELDS]
 *
 * FIELDS go into each body as they are: '"priority":2'.
 *
 * RATE 0: each connection sends its next request when the last one is answered. Else requests are
 * due at fixed times, RATE a second; one that finds no free connection waits, and its latency
 * counts from when it was due (coordinated omission is counted).
 *
 * submit latency: due time to the 201 read. result latency: due time to the record in `completed`
 * read by this same process. Ends when every accepted job was seen, or when nothing new came for
 * 20 s; exit code 1 if anything is missing or an answer was no 201. One line of JSON.
 *
 * One thread, epoll by base/loop; measured at well under the gateway's own cost a request.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/loop.h"
#include "brokers/queue.h"
#include "schema/job_id.h"
#include "schema/message.h"
#include "schema/topics.h"

#define CONNECTIONS_MAX 4096
#define REQUEST_SIZE_MAX 70000
#define ANSWER_SIZE_MAX 8192
#define QUIET_US 20000000ull
#define SHARDS_MAX 64
#define FIELDS_SIZE_MAX 512

struct job {
    struct wire_id id;
    uint64_t due_us, answered_us, completed_us; /* 0: not yet */
    uint32_t completed_count;
    bool used;
};

struct load;

struct connection {
    TAILQ_ENTRY(connection) next; /* while it is free */
    struct load *load;
    int fd;
    struct loop_watch *watch;
    uint64_t due_us;
    char answer[ANSWER_SIZE_MAX];
    size_t answer_size;
    bool busy;
};

struct load {
    struct loop *loop;
    char request[REQUEST_SIZE_MAX];
    size_t request_size;
    uint64_t job_count, rate;
    uint32_t connection_count;
    struct connection connections[CONNECTIONS_MAX];
    TAILQ_HEAD(, connection) idle;
    struct job *jobs; /* open addressing by id */
    size_t job_room;
    uint64_t begin_us, sent, accepted, refused, delivered, duplicates, last_change_us, end_us;
    struct wire_decoder *decoder;
    struct queue_consumer *consumer;
    struct queue_reader *readers[SHARDS_MAX];
    uint32_t shard_count, ready_shards;
    struct loop_timer *timer;
    char first_refusal[256];
};

/* ---- Jobs by id */

static struct job *job_of(struct load *load, const struct wire_id *id)
{
    uint64_t hash;
    size_t at;

    memcpy(&hash, id->bytes + 8, sizeof(hash)); /* the random half */
    hash *= 0x9e3779b97f4a7c15ull;
    for (at = hash % load->job_room; load->jobs[at].used; at = (at + 1) % load->job_room) {
        if (job_id_equal(&load->jobs[at].id, id))
            return &load->jobs[at];
    }
    load->jobs[at] = (struct job){.id = *id, .used = true};
    return &load->jobs[at];
}

static void load_finish_if_done(struct load *load)
{
    if (load->sent == load->job_count && load->accepted + load->refused == load->sent &&
        load->delivered == load->accepted) {
        load->end_us = load->last_change_us;
        loop_stop(load->loop);
    }
}

/* ---- Submitting */

static void die(const char *what)
{
    (void)fprintf(stderr, "async_load: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void connection_send(struct connection *connection, uint64_t due_us)
{
    struct load *load = connection->load;
    ssize_t written;

    connection->busy = true;
    connection->due_us = due_us;
    connection->answer_size = 0;
    load->sent++;
    written = write(connection->fd, load->request, load->request_size);
    if (written != (ssize_t)load->request_size)
        die("send a request (its size must fit the socket's buffer)");
}

/* The whole answer is there once its body is. */
static bool answer_is_whole(struct connection *connection, const char **ret_body)
{
    char *end, *length;

    connection->answer[connection->answer_size] = 0;
    end = strstr(connection->answer, "\r\n\r\n");
    if (end == NULL)
        return false;
    length = strcasestr(connection->answer, "content-length:");
    if (length == NULL || length > end)
        return false;
    *ret_body = end + 4;
    return connection->answer_size >=
           (size_t)(end + 4 - connection->answer) + strtoul(length + 15, NULL, 10);
}

static void answer_take(struct connection *connection, const char *body)
{
    struct load *load = connection->load;
    const char *id_text = strstr(body, "\"request_id\":");
    char text[JOB_ID_TEXT_SIZE] = "";
    struct wire_id id;
    struct err err;
    struct job *job;

    load->last_change_us = clock_mono_us();
    if (id_text != NULL)
        id_text = strchr(id_text + 13, '"');
    if (strncmp(connection->answer, "HTTP/1.1 201", 12) != 0 || id_text == NULL) {
        if (load->refused++ == 0)
            mem_copy_text(load->first_refusal, connection->answer);
        return;
    }
    memcpy(text, id_text + 1, JOB_ID_TEXT_SIZE - 1);
    if (job_id_parse(text, &id, &err) < 0)
        die("an answer without a request id");
    job = job_of(load, &id);
    job->due_us = connection->due_us;
    job->answered_us = load->last_change_us;
    load->accepted++;
    if (job->completed_us != 0)
        load->delivered++;
}

static void connection_free(struct connection *connection)
{
    struct load *load = connection->load;

    connection->busy = false;
    if (load->rate == 0 && load->sent < load->job_count)
        connection_send(connection, clock_mono_us());
    else
        TAILQ_INSERT_TAIL(&load->idle, connection, next);
}

static void on_connection(void *opaque, unsigned events)
{
    struct connection *connection = opaque;
    const char *body;
    ssize_t got = read(connection->fd, connection->answer + connection->answer_size,
                       ANSWER_SIZE_MAX - 1 - connection->answer_size);

    (void)events;
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0 && !connection->busy) { /* it was idle for long: the others do */
        TAILQ_REMOVE(&connection->load->idle, connection, next);
        loop_watch_free(&connection->watch);
        (void)close(connection->fd);
        return;
    }
    if (got <= 0)
        die("the gateway closed a connection with a request in it");
    connection->answer_size += (size_t)got;
    if (!answer_is_whole(connection, &body))
        return;
    answer_take(connection, body);
    connection_free(connection);
    load_finish_if_done(connection->load);
}

static void connection_open(struct load *load, struct connection *connection,
                            const struct sockaddr_in *address)
{
    const int yes = 1;
    struct err err;

    connection->load = load;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0 ||
        connect(connection->fd, (const struct sockaddr *)address, sizeof(*address)) < 0)
        die("connect to the gateway");
    (void)setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    (void)fcntl(connection->fd, F_SETFL, O_NONBLOCK);
    if (loop_watch_new(load->loop, connection->fd, on_connection, connection, &connection->watch,
                       &err) < 0)
        die(err.text);
    loop_watch_set(connection->watch, LOOP_READABLE);
    TAILQ_INSERT_TAIL(&load->idle, connection, next);
}

/* ---- Time */

static void on_timer(void *opaque)
{
    struct load *load = opaque;
    uint64_t now_us = clock_mono_us();
    struct connection *connection;

    while (load->rate != 0 && load->sent < load->job_count) {
        uint64_t due_us = load->begin_us + load->sent * 1000000 / load->rate;

        connection = TAILQ_FIRST(&load->idle);
        if (due_us > now_us || connection == NULL)
            break;
        TAILQ_REMOVE(&load->idle, connection, next);
        connection_send(connection, due_us);
    }
    if (now_us - load->last_change_us > QUIET_US)
        loop_stop(load->loop);
}

static void load_begin(struct load *load)
{
    struct connection *connection;

    load->begin_us = load->last_change_us = clock_mono_us();
    loop_timer_start(load->timer, 0, 1);
    while (load->rate == 0 && load->sent < load->job_count &&
           (connection = TAILQ_FIRST(&load->idle)) != NULL) {
        TAILQ_REMOVE(&load->idle, connection, next);
        connection_send(connection, clock_mono_us());
    }
}

/* ---- Results */

static void on_records(void *opaque, const struct queue_record *records, size_t record_count)
{
    struct load *load = opaque;

    for (size_t i = 0; i < record_count; i++) {
        struct message message;
        struct job *job;
        struct err err;

        if (message_decode(load->decoder, records[i].bytes, records[i].size, &message, &err) < 0)
            die(err.text);
        job = job_of(load, &message.completed.id);
        load->last_change_us = clock_mono_us();
        if (job->completed_count++ > 0) {
            load->duplicates++;
            continue;
        }
        job->completed_us = load->last_change_us;
        if (job->answered_us != 0)
            load->delivered++;
    }
    load_finish_if_done(load);
}

static void on_end(void *opaque, int64_t offset)
{
    struct load *load = opaque;

    (void)offset;
    if (load->begin_us == 0 && ++load->ready_shards == load->shard_count)
        load_begin(load);
}

static void on_reader_error(void *opaque, const struct err *err)
{
    (void)opaque;
    (void)fprintf(stderr, "async_load: %s\n", err->text);
    exit(2);
}

static void readers_open(struct load *load, const char *kafka)
{
    static const struct queue_reader_calls calls = {on_records, on_end, on_reader_error};
    const struct queue_options options = {.bootstrap = kafka, .client_id = "async_load"};
    struct err err;
    int r = queue_consumer_open(load->loop, &options, &load->consumer, &err);

    for (uint32_t shard = 0; r == 0 && shard < load->shard_count; shard++)
        r = queue_reader_open(load->consumer, topic_name(TOPIC_COMPLETED), shard, QUEUE_OFFSET_END,
                              &calls, load, &load->readers[shard], &err);
    if (r < 0)
        on_reader_error(NULL, &err);
}

/* ---- Report */

static int compare_u64(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

static void latency_print(const char *name, uint64_t *values, size_t count)
{
    qsort(values, count, sizeof(*values), compare_u64);
#define AT(share) ((double)values[(size_t)((double)(count - 1) * (share))] / 1000)
    if (count > 0)
        (void)printf(", \"%s_p50_ms\": %.3f, \"%s_p99_ms\": %.3f, \"%s_p999_ms\": %.3f, "
                     "\"%s_max_ms\": %.3f",
                     name, AT(0.5), name, AT(0.99), name, AT(0.999), name, AT(1.0));
#undef AT
}

static void report(struct load *load)
{
    uint64_t *submit = xcalloc(load->accepted + 1, sizeof(*submit));
    uint64_t *result = xcalloc(load->accepted + 1, sizeof(*result));
    size_t submit_count = 0, result_count = 0;
    struct rusage usage;

    for (size_t i = 0; i < load->job_room; i++) {
        const struct job *job = &load->jobs[i];

        if (job->answered_us == 0)
            continue;
        submit[submit_count++] = job->answered_us - job->due_us;
        if (job->completed_us > job->due_us)
            result[result_count++] = job->completed_us - job->due_us;
    }
    (void)getrusage(RUSAGE_SELF, &usage);
    (void)printf("{\"sent\": %" PRIu64 ", \"accepted\": %" PRIu64 ", \"refused\": %" PRIu64
                 ", \"delivered\": %" PRIu64 ", \"duplicates\": %" PRIu64
                 ", \"seconds\": %.4f, \"load_cpu_us\": %" PRIu64,
                 load->sent, load->accepted, load->refused, load->delivered, load->duplicates,
                 (double)(load->last_change_us - load->begin_us) / 1e6,
                 (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
                     (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec));
    latency_print("submit", submit, submit_count);
    latency_print("result", result, result_count);
    (void)printf("}\n");
    if (load->refused > 0)
        (void)fprintf(stderr, "async_load: first refusal: %s\n", load->first_refusal);
    free(submit);
    free(result);
}

static void request_make(struct load *load, char **argv, size_t input_size, const char *fields)
{
    static const char before[] = "{\"model_input\":{\"data\":\"";
    char after[FIELDS_SIZE_MAX];
    const size_t envelope = strlen("{\"data\":\"\"}");
    const size_t pad = input_size > envelope ? input_size - envelope : 0;
    int after_size = snprintf(after, sizeof(after), "\"}%s%s}", fields[0] == '\0' ? "" : ",",
                              fields);
    int size = snprintf(load->request, sizeof(load->request),
                        "POST %s HTTP/1.1\r\nHost: %s:%s\r\nAuthorization: Bearer %s\r\n"
                        "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                        argv[3], argv[1], argv[2], argv[4], strlen(before) + pad + strlen(after),
                        before);

    if (after_size < 0 || (size_t)after_size >= sizeof(after) || size < 0 ||
        (size_t)size + pad + sizeof(after) > sizeof(load->request))
        die("the request is too big");
    memset(load->request + size, 'x', pad);
    memcpy(load->request + (size_t)size + pad, after, (size_t)after_size + 1);
    load->request_size = (size_t)size + pad + strlen(after);
}

int main(int argc, char **argv)
{
    struct load *load = xcalloc(1, sizeof(*load));
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct err err;

    if (argc != 11 && argc != 12) {
        (void)fprintf(stderr, "usage: async_load HOST PORT PATH KEY KAFKA SHARDS JOBS CONNECTIONS "
                              "RATE INPUT_SIZE [FIELDS]\n");
        return 2;
    }
    load->shard_count = (uint32_t)strtoul(argv[6], NULL, 10);
    load->job_count = strtoul(argv[7], NULL, 10);
    load->connection_count = (uint32_t)strtoul(argv[8], NULL, 10);
    load->rate = strtoul(argv[9], NULL, 10);
    if (load->shard_count < 1 || load->shard_count > SHARDS_MAX || load->connection_count < 1 ||
        load->connection_count > CONNECTIONS_MAX ||
        inet_pton(AF_INET, argv[1], &address.sin_addr) != 1)
        die("bad arguments");
    address.sin_port = htons((uint16_t)strtoul(argv[2], NULL, 10));
    request_make(load, argv, strtoul(argv[10], NULL, 10), argc == 12 ? argv[11] : "");
    TAILQ_INIT(&load->idle);
    load->job_room = (size_t)load->job_count * 2 + 64;
    load->jobs = xcalloc(load->job_room, sizeof(*load->jobs));
    load->decoder = wire_decoder_new();
    if (loop_open(&load->loop, &err) < 0)
        die(err.text);
    load->timer = loop_timer_new(load->loop, on_timer, load);
    for (uint32_t i = 0; i < load->connection_count; i++)
        connection_open(load, &load->connections[i], &address);
    readers_open(load, argv[5]);
    loop_run(load->loop);
    report(load);
    return load->delivered == load->job_count && load->refused == 0 ? 0 : 1;
}
