/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Load and receivers for `bench/run webhooks`: writes `completed` records, answers the POSTs that
 * come of them, and counts both.
 *
 *   webhook_load KAFKA JOBS RATE RECEIVERS HANG FAIL OUTPUT_SIZE
 *   webhook_load --sink POSTS       only receives: prints its port, ends after so many
 *
 * RATE 0: all records at once, the latency is of no use; else due at fixed times, RATE a second,
 * and latency counts from when a record was due until its POST is here whole. RECEIVERS are hosts
 * of their own: 127.1.x.y of one listener on the loopback device. The first HANG of them never
 * answer, the next FAIL answer 500; the load ends when every delivery to the others is here, or
 * when nothing new came for 30 s (exit code 1). One line of JSON.
 *
 * One thread, epoll by base/loop.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/loop.h"
#include "brokers/queue.h"
#include "schema/job.h"
#include "schema/job_id.h"
#include "schema/message.h"
#include "schema/topics.h"

#define REQUEST_SIZE_MAX 70000
#define QUIET_US 30000000ull
#define NUMBER_MARK "{\"n\":"
#define BURST 500 /* records of one turn at most */

struct job {
    uint64_t due_us, seen_us;
};

struct load {
    struct loop *loop;
    struct queue_producer *producer;
    struct queue_topic *topic;
    struct loop_timer *timer;
    struct loop_watch *listen_watch;
    int listen_fd;
    uint16_t port;
    uint64_t job_count, rate, sent, owed, seen, repeated, posts, begin_us, last_us, run;
    uint32_t receivers, hang, fail;
    size_t output_size;
    struct job *jobs;
    bool sink_only;
};

/* One that POSTs to us. */
struct peer {
    struct load *load;
    int fd;
    struct loop_watch *watch;
    char request[REQUEST_SIZE_MAX];
    size_t size;
};

static void die(const char *what)
{
    (void)fprintf(stderr, "webhook_load: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void finish_if_done(struct load *load)
{
    if (load->sink_only ? load->posts >= load->job_count
                        : load->sent == load->job_count && load->seen == load->owed)
        loop_stop(load->loop);
}

/* ---- receiving */

enum fate { ANSWER, FAIL, HANG };

static enum fate fate_of(const struct load *load, uint64_t number)
{
    uint64_t receiver = number % load->receivers;

    if (receiver < load->hang)
        return HANG;
    return receiver < load->hang + load->fail ? FAIL : ANSWER;
}

/* Counts the message and says what to answer. */
static enum fate take(struct load *load, const char *body)
{
    const char *mark = strstr(body, NUMBER_MARK);
    uint64_t number = mark == NULL ? 0 : strtoull(mark + strlen(NUMBER_MARK), NULL, 10);
    struct job *job;
    enum fate fate;

    load->posts++;
    load->last_us = clock_mono_us();
    if (load->sink_only)
        return ANSWER;
    if (mark == NULL || number >= load->job_count)
        die("a body that is none of ours");
    fate = fate_of(load, number);
    job = &load->jobs[number];
    if (fate != ANSWER)
        return fate;
    load->repeated += job->seen_us != 0;
    load->seen += job->seen_us == 0;
    if (job->seen_us == 0)
        job->seen_us = load->last_us;
    return ANSWER;
}

static void peer_close(struct peer *peer)
{
    loop_watch_free(&peer->watch);
    (void)close(peer->fd);
    free(peer);
}

static void peer_answer(struct peer *peer, enum fate fate)
{
    static const char good[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    static const char bad[] = "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n";

    if (fate == ANSWER)
        (void)!write(peer->fd, good, sizeof(good) - 1);
    else if (fate == FAIL)
        (void)!write(peer->fd, bad, sizeof(bad) - 1);
}

static void on_peer(void *opaque, unsigned events)
{
    struct peer *peer = opaque;
    struct load *load = peer->load;
    ssize_t got = read(peer->fd, peer->request + peer->size, REQUEST_SIZE_MAX - 1 - peer->size);
    char *end, *length;
    size_t head, body;

    (void)events;
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        peer_close(peer);
        return;
    }
    peer->size += (size_t)got;
    peer->request[peer->size] = '\0';
    end = strstr(peer->request, "\r\n\r\n");
    if (end == NULL)
        return;
    length = strcasestr(peer->request, "content-length:");
    if (length == NULL || length > end)
        die("a request without a length");
    head = (size_t)(end + 4 - peer->request);
    body = strtoul(length + 15, NULL, 10);
    if (peer->size < head + body)
        return;
    peer->size = 0;
    peer_answer(peer, take(load, end + 4));
    finish_if_done(load);
}

static void on_listener(void *opaque, unsigned events)
{
    struct load *load = opaque;
    const int yes = 1;
    int fd;

    (void)events;
    while ((fd = accept4(load->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct peer *peer = xcalloc(1, sizeof(*peer));
        struct err err;

        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
        peer->load = load;
        peer->fd = fd;
        if (loop_watch_new(load->loop, fd, on_peer, peer, &peer->watch, &err) < 0)
            die(err.text);
        loop_watch_set(peer->watch, LOOP_READABLE);
    }
}

static void listener_open(struct load *load)
{
    static const char device[] = "lo";
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof(address);
    struct err err;

    load->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    /* All of 127.0.0.0/8, and nobody from outside. */
    if (setsockopt(load->listen_fd, SOL_SOCKET, SO_BINDTODEVICE, device, sizeof(device)) < 0)
        die("bind to the loopback device");
    if (bind(load->listen_fd, (const struct sockaddr *)&address, size) < 0 ||
        listen(load->listen_fd, 4096) < 0 ||
        getsockname(load->listen_fd, (struct sockaddr *)&address, &size) < 0)
        die("listen");
    load->port = ntohs(address.sin_port);
    if (loop_watch_new(load->loop, load->listen_fd, on_listener, load, &load->listen_watch, &err) <
        0)
        die(err.text);
    loop_watch_set(load->listen_watch, LOOP_READABLE);
}

/* ---- sending */

static void on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    (void)opaque;
    (void)tag;
    if (report->code != ERR_OK)
        die("Kafka did not take a record");
}

static void send_one(struct load *load, uint64_t due_us)
{
    uint64_t number = load->sent++, receiver = number % load->receivers;
    struct buf output = BUF_WITH_LIMIT(REQUEST_SIZE_MAX), record = BUF_WITH_LIMIT(REQUEST_SIZE_MAX);
    uint8_t random[JOB_ID_RANDOM_SIZE] = {0};
    char url[80];
    struct message_completed completed;
    struct queue_message send;
    struct err err;

    memcpy(random, &number, sizeof(uint32_t));
    memcpy(random + 4, &load->run, 4);
    buf_printf(&output, NUMBER_MARK "%" PRIu64 ",\"pad\":\"", number);
    while (output.size + 2 < load->output_size)
        buf_append_byte(&output, 'x');
    buf_append_text(&output, "\"}");
    (void)snprintf(url, sizeof(url), "http://127.1.%u.%u:%u/hook", (unsigned)(receiver / 200),
                   (unsigned)(receiver % 200 + 1), load->port);
    completed = (struct message_completed){
        .id = job_id_make(0, clock_wall_ms(), random),
        .round = 1,
        .tenant = WIRE_TEXT_OF("default"),
        .model = WIRE_TEXT_OF("bench"),
        .deployment = WIRE_TEXT_OF("bench"),
        .state = JOB_SUCCEEDED,
        .output = {output.bytes, output.size},
        .output_size = output.size,
        .webhook_url = WIRE_TEXT_OF(url),
        .accepted_us = clock_wall_us(),
        .finished_us = clock_wall_us(),
    };
    if (message_encode(MESSAGE_COMPLETED, &completed, &record, &err) < 0)
        die(err.text);
    send = (struct queue_message){
        .topic = load->topic, .bytes = record.bytes, .size = record.size, .done = on_report};
    if (queue_produce(load->producer, &send, &err) < 0)
        die(err.text);
    load->jobs[number].due_us = due_us;
    load->owed += fate_of(load, number) == ANSWER;
    buf_done(&output);
    buf_done(&record);
}

static void on_timer(void *opaque)
{
    struct load *load = opaque;
    uint64_t now_us = clock_mono_us();

    for (int n = 0; load->sent < load->job_count && n < BURST; n++) {
        uint64_t due_us = load->rate == 0 ? now_us
                                          : load->begin_us + load->sent * 1000000 / load->rate;

        if (due_us > now_us || queue_producer_unreported(load->producer) > 20000)
            break;
        send_one(load, due_us);
    }
    if (now_us - load->last_us > QUIET_US)
        loop_stop(load->loop);
}

static void producer_open(struct load *load, const char *kafka)
{
    const struct queue_producer_options options = {
        .queue = {.bootstrap = kafka, .client_id = "webhook_load"}};
    struct err err;

    if (queue_producer_open(load->loop, &options, &load->producer, &err) < 0)
        die(err.text);
    load->topic = queue_producer_topic(load->producer, topic_name(TOPIC_COMPLETED));
}

/* ---- report */

static int compare_u64(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return (*x > *y) - (*x < *y);
}

static double at_share(const uint64_t *values, size_t count, double share)
{
    return count == 0 ? 0 : (double)values[(size_t)((double)(count - 1) * share)] / 1000;
}

static void report(struct load *load)
{
    uint64_t *took = xcalloc(load->job_count + 1, sizeof(*took));
    size_t count = 0;
    struct rusage usage;

    for (size_t i = 0; load->jobs != NULL && i < load->job_count; i++) {
        if (load->jobs[i].seen_us != 0)
            took[count++] = load->jobs[i].seen_us - load->jobs[i].due_us;
    }
    qsort(took, count, sizeof(*took), compare_u64);
    (void)getrusage(RUSAGE_SELF, &usage);
    (void)printf("{\"sent\": %" PRIu64 ", \"owed\": %" PRIu64 ", \"delivered\": %" PRIu64
                 ", \"repeated\": %" PRIu64 ", \"posts\": %" PRIu64
                 ", \"seconds\": %.4f, \"load_cpu_us\": %" PRIu64
                 ", \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"p999_ms\": %.3f}\n",
                 load->sent, load->owed, load->seen, load->repeated, load->posts,
                 (double)(load->last_us - load->begin_us) / 1e6,
                 (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
                     (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec),
                 at_share(took, count, 0.5), at_share(took, count, 0.99),
                 at_share(took, count, 0.999));
    free(took);
}

static void arguments_read(struct load *load, int argc, char **argv)
{
    load->sink_only = argc == 3 && strcmp(argv[1], "--sink") == 0;
    if (!load->sink_only && argc != 8) {
        (void)fprintf(stderr, "usage: webhook_load KAFKA JOBS RATE RECEIVERS HANG FAIL "
                              "OUTPUT_SIZE\n       webhook_load --sink POSTS\n");
        exit(2);
    }
    load->job_count = strtoull(argv[2], NULL, 10);
    if (load->sink_only)
        return;
    load->rate = strtoull(argv[3], NULL, 10);
    load->receivers = (uint32_t)strtoul(argv[4], NULL, 10);
    load->hang = (uint32_t)strtoul(argv[5], NULL, 10);
    load->fail = (uint32_t)strtoul(argv[6], NULL, 10);
    load->output_size = strtoul(argv[7], NULL, 10);
    if (load->receivers < 1 || load->receivers > 40000 || load->output_size > 60000)
        die("bad arguments");
    load->jobs = xcalloc(load->job_count + 1, sizeof(*load->jobs));
}

int main(int argc, char **argv)
{
    struct load *load = xcalloc(1, sizeof(*load));
    struct err err;

    arguments_read(load, argc, argv);
    load->run = clock_wall_us();
    if (loop_open(&load->loop, &err) < 0)
        die(err.text);
    listener_open(load);
    load->begin_us = load->last_us = clock_mono_us();
    if (load->sink_only) {
        (void)printf("%u\n", load->port);
        (void)fflush(stdout);
    } else {
        producer_open(load, argv[1]);
        load->timer = loop_timer_new(load->loop, on_timer, load);
        loop_timer_start(load->timer, 0, 1);
    }
    loop_run(load->loop);
    report(load);
    return load->sink_only || load->seen == load->owed ? 0 : 1;
}
