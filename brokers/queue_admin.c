/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Questions to Kafka that librdkafka answers only by blocking: each runs on a thread of libuv's
 * pool, on a client of its own (a fetch that waits at the broker would hold them up), and its
 * answer is handed out on the loop.
 *
 * The client is a consumer without a group because a producer's questions about a topic would make
 * the topic.
 *
 * Failures: err in the answer. At shutdown: answers that are due are dropped; the client is
 * destroyed after the last one.
 *
 * Thread: the loop's; *_run() on libuv's.   Tests: tests/unit/test_queue.c, tests/stack/
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/loop.h"
#include "brokers/queue_kafka.h"

#define CHECK_INTERVAL_MS 20 /* how often new topics are looked for */
#define ERROR_SIZE 256

struct queue_admin {
    struct loop *loop;
    rd_kafka_t *client;
    uint32_t ask_count;
    bool explains, closed;
};

struct ask {
    uv_work_t work;
    struct queue_admin *admin;
    void (*run)(struct ask *ask);    /* thread: one of libuv's */
    void (*answer)(struct ask *ask); /* thread: the loop's */
    uint32_t timeout_ms;
    char *topic;
    uint32_t partition;
    int64_t begin, end;
    char *cluster_id;
    uint32_t partition_count;
    struct queue_topic_spec *specs; /* names are copies */
    size_t spec_count;
    int result; /* 0, or err is filled */
    struct err err;
    union {
        queue_ends_fn *ends;
        queue_about_fn *about;
        queue_done_fn *done;
    } call;
    void *opaque;
};

static void admin_free(struct queue_admin *admin)
{
    rd_kafka_destroy(admin->client);
    free(admin);
}

/* ---- Asking */

static void ask_free(struct ask *ask)
{
    for (size_t i = 0; i < ask->spec_count; i++)
        free((char *)ask->specs[i].name);
    free(ask->specs);
    free(ask->topic);
    free(ask->cluster_id);
    free(ask);
}

/* "Broker transport failure" may be a wrong password: what was said of connections since the last
 * question, the refusals first. */
static void ask_explain(struct ask *ask)
{
    rd_kafka_queue_t *queue = rd_kafka_queue_get_main(ask->admin->client);
    rd_kafka_resp_err_t why = RD_KAFKA_RESP_ERR_NO_ERROR;
    char text[ERROR_SIZE] = "";
    rd_kafka_event_t *event;

    while ((event = rd_kafka_queue_poll(queue, 0)) != NULL) {
        rd_kafka_resp_err_t code = rd_kafka_event_error(event);
        bool refusal = code == RD_KAFKA_RESP_ERR__AUTHENTICATION || code == RD_KAFKA_RESP_ERR__SSL;

        if (refusal ||
            (why == RD_KAFKA_RESP_ERR_NO_ERROR && code != RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN)) {
            why = refusal ? code : RD_KAFKA_RESP_ERR_NO_ERROR;
            mem_copy_text(text, rd_kafka_event_error_string(event));
        }
        rd_kafka_event_destroy(event);
    }
    rd_kafka_queue_destroy(queue);
    if (ask->result < 0 && text[0] != '\0') {
        struct err err = ask->err;

        ask->result = err_set(&ask->err,
                              why != RD_KAFKA_RESP_ERR_NO_ERROR ? queue_code(why) : err.code,
                              "%s: %s", err.text, text);
    }
}

static void ask_run(uv_work_t *work)
{
    struct ask *ask = (struct ask *)work;

    ask->run(ask);
    if (ask->admin->explains)
        ask_explain(ask);
}

static void ask_done(uv_work_t *work, int status)
{
    struct ask *ask = (struct ask *)work;
    struct queue_admin *admin = ask->admin;

    (void)status;
    admin->ask_count--;
    if (!admin->closed)
        ask->answer(ask);
    else if (admin->ask_count == 0)
        admin_free(admin);
    ask_free(ask);
}

static struct ask *ask_new(struct queue_admin *admin, const char *topic, uint32_t timeout_ms,
                           void *opaque)
{
    struct ask *ask = xcalloc(1, sizeof(*ask));

    ask->admin = admin;
    ask->topic = topic != NULL ? xstrdup(topic) : NULL;
    ask->timeout_ms = timeout_ms;
    ask->opaque = opaque;
    return ask;
}

static void ask_start(struct ask *ask)
{
    ask->admin->ask_count++;
    if (uv_queue_work(loop_uv(ask->admin->loop), &ask->work, ask_run, ask_done) != 0)
        NEVER("uv_queue_work refuses only a missing function");
}

/* ---- Where a partition ends */

static void ends_run(struct ask *ask)
{
    rd_kafka_resp_err_t code = rd_kafka_query_watermark_offsets(
        ask->admin->client, ask->topic, (int32_t)ask->partition, &ask->begin, &ask->end,
        (int)ask->timeout_ms);

    if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
        ask->result = err_set(&ask->err, queue_code(code), "ends of %s[%u]: %s", ask->topic,
                              ask->partition, rd_kafka_err2str(code));
}

static void ends_answer(struct ask *ask)
{
    ask->call.ends(ask->opaque, ask->begin, ask->end, ask->result < 0 ? &ask->err : NULL);
}

void queue_admin_ends(struct queue_admin *admin, const char *topic, uint32_t partition,
                      uint32_t timeout_ms, queue_ends_fn *done, void *opaque)
{
    struct ask *ask = ask_new(admin, topic, timeout_ms, opaque);

    ask->partition = partition;
    ask->run = ends_run;
    ask->answer = ends_answer;
    ask->call.ends = done;
    ask_start(ask);
}

/* ---- Which cluster, how many partitions */

/* Partitions of the topic that have a leader; 0 when there is no such topic. */
static int partitions_count(rd_kafka_t *client, const char *name, uint32_t timeout_ms,
                            uint32_t *ret_count, uint32_t *ret_ready_count, struct err *err)
{
    rd_kafka_topic_t *topic = rd_kafka_topic_new(client, name, NULL);
    const struct rd_kafka_metadata *metadata = NULL;
    rd_kafka_resp_err_t code = rd_kafka_metadata(client, 0, topic, &metadata, (int)timeout_ms);
    uint32_t count = 0, ready_count = 0;

    rd_kafka_topic_destroy(topic);
    if (code == RD_KAFKA_RESP_ERR_NO_ERROR && metadata->topic_cnt == 1) {
        const struct rd_kafka_metadata_topic *found = &metadata->topics[0];

        if (found->err == RD_KAFKA_RESP_ERR_NO_ERROR)
            count = (uint32_t)found->partition_cnt;
        else if (queue_code(found->err) != ERR_NOT_FOUND)
            code = found->err;
        for (uint32_t i = 0; i < count; i++)
            ready_count += found->partitions[i].leader >= 0;
    }
    if (metadata != NULL)
        rd_kafka_metadata_destroy(metadata);
    if (code != RD_KAFKA_RESP_ERR_NO_ERROR && queue_code(code) != ERR_NOT_FOUND)
        return err_set(err, queue_code(code), "metadata of '%s': %s", name, rd_kafka_err2str(code));
    *ret_count = count;
    *ret_ready_count = ready_count;
    return 0;
}

static void about_run(struct ask *ask)
{
    uint32_t ready_count;
    char *id;

    ask->result = partitions_count(ask->admin->client, ask->topic, ask->timeout_ms,
                                   &ask->partition_count, &ready_count, &ask->err);
    if (ask->result < 0)
        return;
    id = rd_kafka_clusterid(ask->admin->client, (int)ask->timeout_ms);
    if (id == NULL) {
        ask->result = err_set(&ask->err, ERR_UNAVAILABLE, "Kafka does not tell its cluster id");
        return;
    }
    ask->cluster_id = xstrdup(id);
    rd_kafka_mem_free(ask->admin->client, id);
}

static void about_answer(struct ask *ask)
{
    ask->call.about(ask->opaque, ask->cluster_id, ask->partition_count,
                    ask->result < 0 ? &ask->err : NULL);
}

void queue_admin_about(struct queue_admin *admin, const char *topic, uint32_t timeout_ms,
                       queue_about_fn *done, void *opaque)
{
    struct ask *ask = ask_new(admin, topic, timeout_ms, opaque);

    ask->run = about_run;
    ask->answer = about_answer;
    ask->call.about = done;
    ask_start(ask);
}

/* ---- Making topics */

/* Waits for the result of an admin request and hands it out; NULL after the timeout. */
static rd_kafka_event_t *result_wait(rd_kafka_queue_t *queue, uint32_t timeout_ms)
{
    return rd_kafka_queue_poll(queue, (int)timeout_ms);
}

static int topic_results_check(rd_kafka_event_t *event, const char *name, struct err *err)
{
    const rd_kafka_topic_result_t **topics = NULL;
    const rd_kafka_CreateTopics_result_t *created;
    const rd_kafka_CreatePartitions_result_t *grown;
    size_t count = 0;

    if (event == NULL)
        return err_set(err, ERR_TIMEOUT, "make topic '%s': no answer", name);
    if (rd_kafka_event_error(event) != RD_KAFKA_RESP_ERR_NO_ERROR)
        return err_set(err, queue_code(rd_kafka_event_error(event)), "make topic '%s': %s", name,
                       rd_kafka_event_error_string(event));
    created = rd_kafka_event_CreateTopics_result(event);
    grown = rd_kafka_event_CreatePartitions_result(event);
    if (created != NULL)
        topics = rd_kafka_CreateTopics_result_topics(created, &count);
    else if (grown != NULL)
        topics = rd_kafka_CreatePartitions_result_topics(grown, &count);
    for (size_t i = 0; i < count; i++) {
        rd_kafka_resp_err_t code = rd_kafka_topic_result_error(topics[i]);

        /* Somebody else was faster: as good. */
        if (code != RD_KAFKA_RESP_ERR_NO_ERROR && code != RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS)
            return err_set(err, queue_code(code), "make topic '%s': %s", name,
                           rd_kafka_topic_result_error_string(topics[i]));
    }
    return 0;
}

static int topic_create(rd_kafka_t *client, const struct queue_topic_spec *spec,
                        uint32_t timeout_ms, struct err *err)
{
    char why[ERROR_SIZE] = "", retention_ms[24];
    rd_kafka_NewTopic_t *topic = rd_kafka_NewTopic_new(
        spec->name, (int)spec->partition_count,
        spec->replica_count > 0 ? (int)spec->replica_count : -1, why, sizeof(why));
    rd_kafka_queue_t *queue;
    rd_kafka_event_t *event;
    int r;

    if (topic == NULL)
        return err_set(err, ERR_RANGE, "topic '%s': %s", spec->name, why);
    (void)snprintf(retention_ms, sizeof(retention_ms), "%llu",
                   (unsigned long long)spec->retention_ms);
    (void)rd_kafka_NewTopic_set_config(topic, "retention.ms", retention_ms);
    (void)rd_kafka_NewTopic_set_config(topic, "cleanup.policy", "delete");
    (void)rd_kafka_NewTopic_set_config(topic, "message.timestamp.type",
                                       spec->append_time ? "LogAppendTime" : "CreateTime");
    queue = rd_kafka_queue_new(client);
    rd_kafka_CreateTopics(client, &topic, 1, NULL, queue);
    event = result_wait(queue, timeout_ms);
    r = topic_results_check(event, spec->name, err);
    if (event != NULL)
        rd_kafka_event_destroy(event);
    rd_kafka_queue_destroy(queue);
    rd_kafka_NewTopic_destroy(topic);
    return r;
}

static int topic_grow(rd_kafka_t *client, const struct queue_topic_spec *spec, uint32_t timeout_ms,
                      struct err *err)
{
    char why[ERROR_SIZE] = "";
    rd_kafka_NewPartitions_t *partitions = rd_kafka_NewPartitions_new(
        spec->name, spec->partition_count, why, sizeof(why));
    rd_kafka_queue_t *queue;
    rd_kafka_event_t *event;
    int r;

    if (partitions == NULL)
        return err_set(err, ERR_RANGE, "topic '%s': %s", spec->name, why);
    queue = rd_kafka_queue_new(client);
    rd_kafka_CreatePartitions(client, &partitions, 1, NULL, queue);
    event = result_wait(queue, timeout_ms);
    r = topic_results_check(event, spec->name, err);
    if (event != NULL)
        rd_kafka_event_destroy(event);
    rd_kafka_queue_destroy(queue);
    rd_kafka_NewPartitions_destroy(partitions);
    return r;
}

/* The value of a topic's property in the answer, borrowed from it; NULL when it is not there. */
static const char *config_value(rd_kafka_event_t *event, const char *name)
{
    const rd_kafka_DescribeConfigs_result_t *result = rd_kafka_event_DescribeConfigs_result(event);
    size_t resource_count = 0, entry_count = 0;
    const rd_kafka_ConfigResource_t **resources = rd_kafka_DescribeConfigs_result_resources(
        result, &resource_count);
    const rd_kafka_ConfigEntry_t **entries;

    if (resource_count != 1)
        return NULL;
    entries = rd_kafka_ConfigResource_configs(resources[0], &entry_count);
    for (size_t i = 0; i < entry_count; i++) {
        if (strcmp(rd_kafka_ConfigEntry_name(entries[i]), name) == 0)
            return rd_kafka_ConfigEntry_value(entries[i]);
    }
    return NULL;
}

/* Deadlines count from the append time: a topic that keeps the sender's time is refused. A cluster
 * that does not answer this question (the embedded one) is believed. */
static int topic_check_append_time(rd_kafka_t *client, const char *name, uint32_t timeout_ms,
                                   struct err *err)
{
    rd_kafka_ConfigResource_t *resource = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC,
                                                                      name);
    rd_kafka_queue_t *queue = rd_kafka_queue_new(client);
    rd_kafka_event_t *event;
    int r = 0;

    rd_kafka_DescribeConfigs(client, &resource, 1, NULL, queue);
    event = result_wait(queue, timeout_ms);
    if (event != NULL && rd_kafka_event_error(event) == RD_KAFKA_RESP_ERR_NO_ERROR) {
        const char *type = config_value(event, "message.timestamp.type");

        if (type != NULL && strcmp(type, "LogAppendTime") != 0)
            r = err_set(err, ERR_DEPENDENCY,
                        "topic '%s' has message.timestamp.type=%s, but must have LogAppendTime "
                        "(kafka-configs --alter --add-config message.timestamp.type=LogAppendTime)",
                        name, type);
    }
    if (event != NULL)
        rd_kafka_event_destroy(event);
    rd_kafka_queue_destroy(queue);
    rd_kafka_ConfigResource_destroy(resource);
    return r;
}

static int topic_ensure(rd_kafka_t *client, const struct queue_topic_spec *spec,
                        uint32_t timeout_ms, struct err *err)
{
    const uint64_t deadline_ms = clock_mono_ms() + timeout_ms;
    rd_kafka_queue_t *pause = rd_kafka_queue_new(client); /* stays empty: a wait with a bound */
    uint32_t count = 0, ready_count = 0;
    bool asked = false;
    int r;

    for (;;) {
        r = partitions_count(client, spec->name, timeout_ms, &count, &ready_count, err);
        if (r < 0 || ready_count >= spec->partition_count)
            break;
        if (!asked && count == 0)
            r = topic_create(client, spec, timeout_ms, err);
        else if (!asked && count < spec->partition_count)
            r = topic_grow(client, spec, timeout_ms, err);
        if (r < 0)
            break;
        asked = true;
        if (clock_mono_ms() >= deadline_ms) {
            r = err_set(err, ERR_TIMEOUT,
                        "topic '%s' has %u of %u partitions with a leader after "
                        "%u ms",
                        spec->name, ready_count, spec->partition_count, timeout_ms);
            break;
        }
        (void)rd_kafka_queue_poll(pause, CHECK_INTERVAL_MS);
    }
    rd_kafka_queue_destroy(pause);
    if (r == 0 && spec->append_time && !asked)
        r = topic_check_append_time(client, spec->name, timeout_ms, err);
    return r;
}

static void ensure_run(struct ask *ask)
{
    for (size_t i = 0; i < ask->spec_count && ask->result == 0; i++)
        ask->result = topic_ensure(ask->admin->client, &ask->specs[i], ask->timeout_ms, &ask->err);
}

static void ensure_answer(struct ask *ask)
{
    ask->call.done(ask->opaque, ask->result < 0 ? &ask->err : NULL);
}

void queue_admin_ensure(struct queue_admin *admin, const struct queue_topic_spec *specs,
                        size_t spec_count, uint32_t timeout_ms, queue_done_fn *done, void *opaque)
{
    struct ask *ask = ask_new(admin, NULL, timeout_ms, opaque);

    ask->specs = xcalloc(spec_count, sizeof(*specs));
    ask->spec_count = spec_count;
    for (size_t i = 0; i < spec_count; i++) {
        ask->specs[i] = specs[i];
        ask->specs[i].name = xstrdup(specs[i].name);
    }
    ask->run = ensure_run;
    ask->answer = ensure_answer;
    ask->call.done = done;
    ask_start(ask);
}

/* ---- The contract */

int queue_admin_open(struct loop *loop, const struct queue_options *options,
                     struct queue_admin **ret_admin, struct err *err)
{
    static const struct queue_property own[] = {
        {"allow.auto.create.topics", "false"},
        {NULL, NULL},
    };
    struct queue_admin *admin;
    rd_kafka_conf_t *conf;
    rd_kafka_t *client;
    int r = queue_conf_new(options, own, &conf, err);

    if (r < 0)
        return r;
    if (options->explains)
        rd_kafka_conf_set_events(conf, RD_KAFKA_EVENT_ERROR);
    r = queue_client_new(RD_KAFKA_CONSUMER, conf, &client, err);
    if (r < 0)
        return r;
    admin = xcalloc(1, sizeof(*admin));
    admin->loop = loop;
    admin->client = client;
    admin->explains = options->explains;
    *ret_admin = admin;
    return 0;
}

void queue_admin_close(struct queue_admin **admin_p)
{
    struct queue_admin *admin = TAKE(*admin_p);

    if (admin == NULL)
        return;
    admin->closed = true;
    if (admin->ask_count == 0)
        admin_free(admin);
}
