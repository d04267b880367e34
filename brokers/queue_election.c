/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A member of a consumer group that reads nothing: it assigns itself an empty list whatever it is
 * given, and only tells its owner what that was.
 *
 * Happy path: join; on_assigned; each later rebalance takes everything away first (on_revoked,
 * answered by queue_election_release(), which lets the others go on).
 *
 * Failures: session lost: on_lost, and it joins again by itself. Another process with our instance
 * name: fatal, ERR_STALE.
 *
 * A session that was lost may leave requests behind in librdkafka or in a Kafka that stood still: a
 * wish to join, a commit. They come in under the member id of before, Kafka takes them for a second
 * process with our instance name, and librdkafka declares its client dead. So who is fenced soon
 * after a loss was fenced by itself: a new client takes its place, once a loss. Should there be a
 * second process after all, it is the one that ends now, and its supervisor that decides.
 *
 * At shutdown: queue_election_leave() makes even a static member leave. librdkafka leaves for those
 * only when they unsubscribe, not when they close (KIP-345), and puts an unsubscribe off until a
 * rebalance that is under way has ended; it tells of neither. So the member's id, which is given up
 * with the request to leave, is asked for until it is gone; then the close waits for the answer.
 * Every wait has an end: a coordinator that is away would hold librdkafka for a minute.
 *
 * Thread: the loop's.   Tests: tests/unit/test_queue.c
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/loop.h"
#include "brokers/queue_kafka.h"

#define SESSION_TIMEOUT_MS_DEFAULT 6000
#define HEARTBEAT_INTERVAL_MS "250" /* so soon a member hears that another one left */
#define POLL_INTERVAL_MS_MAX                                                                       \
    "60000"                      /* the others wait so long for a member that releases nothing */
#define SERVICE_INTERVAL_MS 1000 /* stores offsets; also keeps librdkafka sure that we poll */
#define ASK_TIMEOUT_MS 5000
#define LEAVE_STEP_MS 10
#define LEAVE_AWAY_MS 200    /* for a Kafka that was away, should it be back */
#define FENCE_DOUBT_MS 20000 /* so long after a loss what is fenced is a shadow of ours */
#define RENEW_STEP_MS 50
#define CLOSE_MS_MAX 500

struct stored {
    int64_t offset;
    bool changed;
};

struct queue_election {
    struct loop *loop;
    rd_kafka_conf_t *conf; /* what a new client is made of */
    rd_kafka_t *client;
    rd_kafka_queue_t *queue;
    struct queue_pump *pump;
    struct loop_timer *timer;
    char *topic;
    const struct queue_election_calls *calls;
    void *opaque;
    bool owns;     /* something was assigned and not taken away yet */
    bool revoking; /* on_revoked was told, the release is awaited */
    bool joined;   /* Kafka has told our share at least once */
    bool away;     /* Kafka was, when we last heard of it */
    bool is_static, is_fatal, late;
    bool renewing;                 /* the client was fenced by itself and is to be replaced */
    uint64_t doubt_until_ms;       /* after a loss; 0: none, or a client was replaced since */
    void (*on_left)(void *opaque); /* we are leaving */
    uint64_t leave_by_ms;
    rd_kafka_queue_t *closing; /* the client was told to close; what it still has to say */
    struct stored *stored;     /* by partition */
    uint32_t stored_count;
    uint32_t ask_count; /* questions under way; the client outlives them */
    bool closed;
};

static void election_renew(struct queue_election *election);

/* ---- Rebalances */

static void election_assigned(struct queue_election *election,
                              const rd_kafka_topic_partition_list_t *list)
{
    OWNED(mem_free) uint32_t *partitions = NULL;
    rd_kafka_topic_partition_list_t *nothing = rd_kafka_topic_partition_list_new(0);

    (void)rd_kafka_assign(election->client, nothing);
    rd_kafka_topic_partition_list_destroy(nothing);
    election->joined = true;
    election->away = false;
    if (election->on_left != NULL) /* a rebalance from before: it is taken away again */
        return;
    partitions = xcalloc((size_t)list->cnt + 1, sizeof(*partitions));
    for (int i = 0; i < list->cnt; i++)
        partitions[i] = (uint32_t)list->elems[i].partition;
    election->owns = list->cnt > 0;
    election->calls->on_assigned(election->opaque, partitions, (size_t)list->cnt);
}

void queue_election_release(struct queue_election *election)
{
    if (!election->revoking)
        return;
    election->revoking = false;
    election->owns = false;
    (void)rd_kafka_assign(election->client, NULL);
}

static void election_lost(struct queue_election *election)
{
    election->owns = false;
    election->revoking = false;
    (void)rd_kafka_assign(election->client, NULL);
    election->calls->on_lost(election->opaque);
}

static void election_taken_away(struct queue_election *election)
{
    if (rd_kafka_assignment_lost(election->client)) {
        election->doubt_until_ms = clock_mono_ms() + FENCE_DOUBT_MS;
        election_lost(election);
        return;
    }
    election->revoking = true;
    if (election->owns)
        election->calls->on_revoked(election->opaque);
    else
        queue_election_release(election);
}

/* The client is dead, and it is our own doing: then there is nothing to end for. */
static bool election_fenced_itself(struct queue_election *election, rd_kafka_resp_err_t code)
{
    if (code != RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID || election->on_left != NULL ||
        clock_mono_ms() >= election->doubt_until_ms)
        return false;
    election->doubt_until_ms = 0;
    election->renewing = election->is_fatal = true;
    loop_timer_start(election->timer, RENEW_STEP_MS, RENEW_STEP_MS);
    return true;
}

static void election_failed(struct queue_election *election, rd_kafka_event_t *event)
{
    rd_kafka_resp_err_t code;
    char why[256] = "";
    struct err err;

    if (election->renewing)
        return; /* more of the same from a client that is dead */
    if (rd_kafka_event_error(event) == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN)
        election->away = true;
    /* A fatal error may also come under its own code; the client is dead all the same. */
    code = rd_kafka_fatal_error(election->client, why, sizeof(why));
    if (election_fenced_itself(election, code)) {
        (void)err_set(&err, ERR_UNAVAILABLE,
                      "election on '%s': a request from before the lost session was fenced (%s); "
                      "joining anew",
                      election->topic, why);
    } else if (code != RD_KAFKA_RESP_ERR_NO_ERROR) {
        election->is_fatal = true;
        (void)err_set(&err, queue_code(code) == ERR_STALE ? ERR_STALE : ERR_DEPENDENCY,
                      "election on '%s': %s", election->topic, why);
    } else {
        int known = queue_code(rd_kafka_event_error(event));

        /* All of these pass by themselves; only what cannot is worth its class. */
        if (known != ERR_FORBIDDEN)
            known = ERR_UNAVAILABLE;
        (void)err_set(&err, known, "election on '%s': %s", election->topic,
                      rd_kafka_event_error_string(event));
    }
    election->calls->on_error(election->opaque, &err);
}

static void election_event(struct queue_election *election, rd_kafka_event_t *event)
{
    switch (rd_kafka_event_type(event)) {
    case RD_KAFKA_EVENT_REBALANCE:
        if (rd_kafka_event_error(event) == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS)
            election_assigned(election, rd_kafka_event_topic_partition_list(event));
        else
            election_taken_away(election);
        break;
    case RD_KAFKA_EVENT_ERROR:
        election_failed(election, event);
        break;
    default: /* commit results and the like */
        break;
    }
}

static void election_drain_queue(struct queue_election *election, rd_kafka_queue_t *queue)
{
    rd_kafka_event_t *event;

    while (!election->closed && (event = rd_kafka_queue_poll(queue, 0)) != NULL) {
        election_event(election, event);
        rd_kafka_event_destroy(event);
    }
}

static void election_pumped(void *opaque)
{
    struct queue_election *election = opaque;

    election_drain_queue(election, election->queue);
}

/* ---- Stored offsets */

void queue_election_store(struct queue_election *election, uint32_t partition, int64_t offset)
{
    if (partition >= election->stored_count) {
        election->stored = xrealloc(election->stored, partition + 1, sizeof(*election->stored));
        memset(election->stored + election->stored_count, 0,
               (partition + 1 - election->stored_count) * sizeof(*election->stored));
        election->stored_count = partition + 1;
    }
    if (election->stored[partition].offset == offset)
        return;
    election->stored[partition] = (struct stored){.offset = offset, .changed = true};
}

/* Only while we own something: after a lost session librdkafka joins again under no member id, and
 * a commit with that would be fenced. */
static void election_commit(struct queue_election *election)
{
    rd_kafka_topic_partition_list_t *list;

    if (!election->owns)
        return;
    list = rd_kafka_topic_partition_list_new(0);
    for (uint32_t i = 0; i < election->stored_count; i++) {
        if (!election->stored[i].changed)
            continue;
        election->stored[i].changed = false;
        rd_kafka_topic_partition_list_add(list, election->topic, (int32_t)i)->offset =
            election->stored[i].offset;
    }
    if (list->cnt > 0)
        (void)rd_kafka_commit(election->client, list, 1); /* lost with the member: a repeat */
    rd_kafka_topic_partition_list_destroy(list);
}

/* ---- Leaving */

/* Kafka has given us a name in the group and we have not given it back. */
static bool election_is_member(const struct queue_election *election)
{
    char *id = rd_kafka_memberid(election->client);
    bool is_member = id != NULL && *id != 0;

    if (id != NULL)
        rd_kafka_mem_free(election->client, id);
    return is_member || !election->joined; /* before that, our wish to join may be under way */
}

/* Asks the client to close and returns at once; what it asks of us then comes by this queue. */
static void election_close_start(struct queue_election *election)
{
    if (election->closing != NULL)
        return;
    election->closing = rd_kafka_queue_new(election->client);
    rd_kafka_error_destroy(rd_kafka_consumer_close_queue(election->client, election->closing));
}

/* True when it is over, one way or the other. */
static bool election_leave_step(struct queue_election *election)
{
    uint64_t now_ms = clock_mono_ms();
    bool late = now_ms >= election->leave_by_ms;

    if (!late && (election->owns || election->revoking))
        return false;
    if (election->away && now_ms + LEAVE_AWAY_MS < election->leave_by_ms)
        election->leave_by_ms = now_ms + LEAVE_AWAY_MS;
    if (!late && election->is_static && election->closing == NULL && election_is_member(election))
        return false;
    election_close_start(election);
    election_drain_queue(election, election->closing);
    election->late = late;
    return late || election->is_fatal || rd_kafka_consumer_closed(election->client);
}

static void election_service(void *opaque)
{
    struct queue_election *election = opaque;

    if (election->renewing && election->on_left == NULL) {
        election_renew(election);
        return;
    }
    election_commit(election);
    election_pumped(election);
    if (election->on_left != NULL && election_leave_step(election)) {
        void (*on_left)(void *) = TAKE(election->on_left);

        loop_timer_stop(election->timer);
        on_left(election->opaque);
    }
}

struct stored_ask {
    uv_work_t work;
    struct queue_election *election;
    uint32_t partition;
    int64_t offset;
    rd_kafka_resp_err_t code;
    queue_stored_fn *done;
    void *opaque;
};

/* thread: one of libuv's   locks: none
 * rd_kafka_committed() waits for the coordinator. */
static void stored_ask_run(uv_work_t *work)
{
    struct stored_ask *ask = (struct stored_ask *)work;
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);

    (void)rd_kafka_topic_partition_list_add(list, ask->election->topic, (int32_t)ask->partition);
    ask->code = rd_kafka_committed(ask->election->client, list, ASK_TIMEOUT_MS);
    if (ask->code == RD_KAFKA_RESP_ERR_NO_ERROR)
        ask->code = list->elems[0].err;
    ask->offset = list->elems[0].offset >= 0 ? list->elems[0].offset : -1;
    rd_kafka_topic_partition_list_destroy(list);
}

/* What the client has to say while it closes needs no answer but this one. */
static void closing_answer(struct queue_election *election)
{
    rd_kafka_event_t *event = rd_kafka_queue_poll(election->closing, LEAVE_STEP_MS);

    if (event == NULL)
        return;
    if (rd_kafka_event_type(event) == RD_KAFKA_EVENT_REBALANCE)
        (void)rd_kafka_assign(election->client, NULL);
    rd_kafka_event_destroy(event);
}

/* A client whose coordinator does not answer can be neither closed nor destroyed before its
 * requests have timed out (a minute). It is left to the end of the process, which is near. */
static void client_destroy(struct queue_election *election)
{
    static rd_kafka_t *left; /* where leak checkers find it */

    rd_kafka_queue_destroy(election->closing);
    rd_kafka_queue_destroy(election->queue);
    if (rd_kafka_consumer_closed(election->client) || election->is_fatal)
        rd_kafka_destroy(election->client);
    else
        left = election->client;
    (void)left;
}

static void election_free(struct queue_election *election)
{
    uint64_t end_ms = clock_mono_ms() + CLOSE_MS_MAX;

    election_close_start(election);
    while (!election->is_fatal && !election->late && !rd_kafka_consumer_closed(election->client) &&
           clock_mono_ms() < end_ms)
        closing_answer(election);
    client_destroy(election);
    rd_kafka_conf_destroy(election->conf);
    free(election->topic);
    free(election->stored);
    free(election);
}

static void stored_ask_done(uv_work_t *work, int status)
{
    struct stored_ask *ask = (struct stored_ask *)work;
    struct queue_election *election = ask->election;
    struct err err;

    (void)status;
    election->ask_count--;
    if (election->closed) {
        if (election->ask_count == 0)
            election_free(election);
    } else if (ask->code == RD_KAFKA_RESP_ERR_NO_ERROR) {
        ask->done(ask->opaque, ask->partition, ask->offset, NULL);
    } else {
        (void)err_set(&err, queue_code(ask->code), "stored offset of %s[%u]: %s", election->topic,
                      ask->partition, rd_kafka_err2str(ask->code));
        ask->done(ask->opaque, ask->partition, -1, &err);
    }
    free(ask);
}

void queue_election_ask_stored(struct queue_election *election, uint32_t partition,
                               queue_stored_fn *done, void *opaque)
{
    struct stored_ask *ask = xcalloc(1, sizeof(*ask));

    ask->election = election;
    ask->partition = partition;
    ask->done = done;
    ask->opaque = opaque;
    election->ask_count++;
    if (uv_queue_work(loop_uv(election->loop), &ask->work, stored_ask_run, stored_ask_done) != 0)
        NEVER("uv_queue_work refuses only a missing function");
}

/* ---- The contract */

static int election_conf(const struct queue_election_options *options, rd_kafka_conf_t **ret_conf,
                         struct err *err)
{
    char session_ms[16];
    const struct queue_property own[] = {
        {"group.id", options->group},
        {"session.timeout.ms", session_ms},
        {"heartbeat.interval.ms", HEARTBEAT_INTERVAL_MS},
        {"max.poll.interval.ms", POLL_INTERVAL_MS_MAX},
        {"partition.assignment.strategy", "range"},
        {"enable.auto.commit", "false"},
        {"enable.auto.offset.store", "false"},
        {"auto.offset.reset", "error"},
        {"allow.auto.create.topics", "false"},
        {"topic.metadata.refresh.interval.ms", "10000"},
        {options->instance != NULL ? "group.instance.id" : NULL, options->instance},
        {NULL, NULL},
    };

    (void)snprintf(session_ms, sizeof(session_ms), "%u",
                   options->session_timeout_ms != 0 ? options->session_timeout_ms
                                                    : SESSION_TIMEOUT_MS_DEFAULT);
    return queue_conf_new(&options->queue, own, ret_conf, err);
}

static int election_join(struct queue_election *election, struct err *err)
{
    rd_kafka_topic_partition_list_t *topics = rd_kafka_topic_partition_list_new(1);
    rd_kafka_resp_err_t code;

    (void)rd_kafka_topic_partition_list_add(topics, election->topic, RD_KAFKA_PARTITION_UA);
    code = rd_kafka_subscribe(election->client, topics);
    rd_kafka_topic_partition_list_destroy(topics);
    if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
        return err_set(err, queue_code(code), "join the election on '%s': %s", election->topic,
                       rd_kafka_err2str(code));
    return 0;
}

/* A client begins to serve. */
static int client_take(struct queue_election *election, rd_kafka_t *client, struct err *err)
{
    int r;

    election->client = client;
    (void)rd_kafka_poll_set_consumer(client);
    election->queue = rd_kafka_queue_get_consumer(client);
    r = queue_pump_new(election->loop, election->queue, election_pumped, election, &election->pump,
                       err);
    return r == 0 ? election_join(election, err) : r;
}

/* Blocks some milliseconds: the threads of the dead client end. Its coordinator has just answered,
 * so it holds no request that would have to time out. */
static void election_renew(struct queue_election *election)
{
    rd_kafka_t *client;
    struct err err;
    int r;

    if (election->ask_count > 0)
        return; /* a question still uses the old one */
    if (election->owns || election->revoking)
        election_lost(election);
    queue_pump_free(&election->pump);
    rd_kafka_queue_destroy(election->queue);
    rd_kafka_destroy_flags(TAKE(election->client), RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
    election->renewing = election->is_fatal = election->joined = election->away = false;
    r = queue_client_new(RD_KAFKA_CONSUMER, rd_kafka_conf_dup(election->conf), &client, &err);
    if (r < 0)
        NEVER("the same settings made a client before");
    loop_timer_start(election->timer, SERVICE_INTERVAL_MS, SERVICE_INTERVAL_MS);
    r = client_take(election, client, &err);
    if (r < 0) {
        err.code = ERR_DEPENDENCY;
        election->calls->on_error(election->opaque, &err);
    }
}

void queue_election_break(struct queue_election *election)
{
    (void)rd_kafka_test_fatal_error(election->client, RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID,
                                    "made by a test");
}

int queue_election_open(struct loop *loop, const struct queue_election_options *options,
                        const struct queue_election_calls *calls, void *opaque,
                        struct queue_election **ret_election, struct err *err)
{
    OWNED(queue_election_close) struct queue_election *election = NULL;
    rd_kafka_conf_t *conf;
    rd_kafka_t *client;
    int r = election_conf(options, &conf, err);

    if (r < 0)
        return r;
    rd_kafka_conf_set_events(conf, RD_KAFKA_EVENT_REBALANCE | RD_KAFKA_EVENT_ERROR);
    r = queue_client_new(RD_KAFKA_CONSUMER, rd_kafka_conf_dup(conf), &client, err);
    if (r < 0) {
        rd_kafka_conf_destroy(conf);
        return r;
    }
    election = xcalloc(1, sizeof(*election));
    election->loop = loop;
    election->conf = conf;
    election->topic = xstrdup(options->topic);
    election->is_static = options->instance != NULL;
    election->calls = calls;
    election->opaque = opaque;
    r = client_take(election, client, err);
    if (r < 0)
        return r;
    election->timer = loop_timer_new(loop, election_service, election);
    loop_timer_start(election->timer, SERVICE_INTERVAL_MS, SERVICE_INTERVAL_MS);
    *ret_election = TAKE(election);
    return 0;
}

void queue_election_leave(struct queue_election *election, uint32_t within_ms,
                          void (*on_left)(void *opaque))
{
    election_commit(election);
    election->on_left = on_left;
    election->leave_by_ms = clock_mono_ms() + within_ms;
    (void)rd_kafka_unsubscribe(election->client);
    loop_timer_start(election->timer, LEAVE_STEP_MS, LEAVE_STEP_MS);
}

void queue_election_close(struct queue_election **election_p)
{
    struct queue_election *election = TAKE(*election_p);

    if (election == NULL)
        return;
    election->closed = true;
    queue_pump_free(&election->pump);
    loop_timer_free(&election->timer);
    if (election->ask_count == 0)
        election_free(election);
}
