/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/queue_kafka.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/loop.h"

#define PROPERTIES_SIZE_MAX 4096

int queue_code(rd_kafka_resp_err_t code)
{
    switch (code) {
    case RD_KAFKA_RESP_ERR_NO_ERROR:
        return ERR_OK;
    case RD_KAFKA_RESP_ERR__QUEUE_FULL:
        return ERR_FULL;
    case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
    case RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE:
        return ERR_TOO_BIG;
    case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
    case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
    case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
    case RD_KAFKA_RESP_ERR__UNKNOWN_GROUP:
        return ERR_NOT_FOUND;
    case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
    case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
    case RD_KAFKA_RESP_ERR__NO_OFFSET:
        return ERR_RANGE;
    case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
    case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
    case RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED:
    case RD_KAFKA_RESP_ERR__AUTHENTICATION:
        return ERR_FORBIDDEN;
    case RD_KAFKA_RESP_ERR__TIMED_OUT:
    case RD_KAFKA_RESP_ERR__MSG_TIMED_OUT:
    case RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT:
        return ERR_TIMEOUT;
    case RD_KAFKA_RESP_ERR__FENCED:
    case RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID:
        return ERR_STALE;
    case RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS:
        return ERR_CONFLICT;
    case RD_KAFKA_RESP_ERR__INVALID_ARG:
    case RD_KAFKA_RESP_ERR__CONFLICT:
    case RD_KAFKA_RESP_ERR__STATE:
        return ERR_INTERNAL;
    case RD_KAFKA_RESP_ERR__FATAL:
        return ERR_DEPENDENCY;
    default:
        return ERR_UNAVAILABLE;
    }
}

/* What every client has. The defaults of librdkafka wait up to 10 s before they connect again and
 * leave Nagle's algorithm on; both show in the latency of a job. */
static const struct queue_property shared[] = {
    {"socket.nagle.disable", "true"},  {"socket.keepalive.enable", "true"},
    {"reconnect.backoff.ms", "50"},    {"reconnect.backoff.max.ms", "1000"},
    {"retry.backoff.ms", "50"},        {"topic.metadata.refresh.fast.interval.ms", "100"},
    {"log.connection.close", "false"}, {NULL, NULL},
};

static int conf_set(rd_kafka_conf_t *conf, const char *name, const char *value, struct err *err)
{
    char why[256] = "";

    if (rd_kafka_conf_set(conf, name, value, why, sizeof(why)) != RD_KAFKA_CONF_OK)
        return err_set(err, ERR_USAGE, "Kafka property %s: %s", name, why);
    return 0;
}

static int conf_set_all(rd_kafka_conf_t *conf, const struct queue_property *properties,
                        struct err *err)
{
    int r = 0;

    for (; r == 0 && properties->name != NULL; properties++)
        r = conf_set(conf, properties->name, properties->value, err);
    return r;
}

/* "name=value;name=value" */
static int conf_set_text(rd_kafka_conf_t *conf, const char *text, struct err *err)
{
    OWNED(mem_free) char *copy = NULL;
    char *rest, *part;

    if (strlen(text) > PROPERTIES_SIZE_MAX)
        return err_set(err, ERR_USAGE, "Kafka properties have %zu bytes, at most %d are taken",
                       strlen(text), PROPERTIES_SIZE_MAX);
    rest = copy = xstrdup(text);
    while ((part = strsep(&rest, ";")) != NULL) {
        char *value = strchr(part, '=');
        int r;

        if (*part == 0)
            continue;
        if (value == NULL)
            return err_set(err, ERR_USAGE, "Kafka property '%s' has no '='", part);
        *value++ = 0;
        r = conf_set(conf, part, value, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int conf_fill(rd_kafka_conf_t *conf, const struct queue_options *options,
                     const struct queue_property *own, struct err *err)
{
    static const char scheme[] = "kafka://";
    const char *bootstrap = options->bootstrap != NULL ? options->bootstrap : "";
    int r;

    if (strncmp(bootstrap, scheme, strlen(scheme)) == 0)
        bootstrap += strlen(scheme);
    if (*bootstrap == 0) /* librdkafka would wait for ever */
        return err_set(err, ERR_USAGE, "no Kafka address is given (host:port,host:port)");
    rd_kafka_conf_set_log_cb(conf, NULL); /* adapters do not log; what matters comes as an error */
    r = conf_set_all(conf, shared, err);
    if (r == 0)
        r = conf_set(conf, "bootstrap.servers", bootstrap, err);
    if (r == 0 && options->client_id != NULL)
        r = conf_set(conf, "client.id", options->client_id, err);
    if (r == 0)
        r = conf_set_all(conf, own, err);
    if (r == 0 && options->properties != NULL)
        r = conf_set_text(conf, options->properties, err);
    return r;
}

int queue_conf_new(const struct queue_options *options, const struct queue_property *own,
                   rd_kafka_conf_t **ret_conf, struct err *err)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    int r = conf_fill(conf, options, own, err);

    if (r < 0) {
        rd_kafka_conf_destroy(conf);
        return r;
    }
    *ret_conf = conf;
    return 0;
}

int queue_client_new(rd_kafka_type_t type, rd_kafka_conf_t *conf, rd_kafka_t **ret_client,
                     struct err *err)
{
    char why[256] = "";
    rd_kafka_t *client = rd_kafka_new(type, conf, why, sizeof(why));

    if (client == NULL) {
        rd_kafka_conf_destroy(conf);
        return err_set(err, ERR_USAGE, "make a Kafka client: %s", why);
    }
    *ret_client = client;
    return 0;
}

/* ---- From a queue of librdkafka onto the loop */

struct queue_pump {
    int fd;
    rd_kafka_queue_t *queue;
    struct loop_watch *watch;
    void (*call)(void *opaque);
    void *opaque;
};

static const uint64_t pump_token = 1; /* what an eventfd adds; librdkafka borrows it for ever */

static void pump_readable(void *opaque, unsigned events)
{
    struct queue_pump *pump = opaque;
    uint64_t count;

    (void)events;
    (void)!read(pump->fd, &count, sizeof(count)); /* before draining, so that no event is missed */
    pump->call(pump->opaque);
}

int queue_pump_new(struct loop *loop, rd_kafka_queue_t *queue, void (*call)(void *opaque),
                   void *opaque, struct queue_pump **ret_pump, struct err *err)
{
    struct queue_pump *pump = xcalloc(1, sizeof(*pump));
    int r;

    pump->queue = queue;
    pump->call = call;
    pump->opaque = opaque;
    pump->fd = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    if (pump->fd < 0) {
        free(pump);
        return err_set_errno(err, ERR_IO, "make an eventfd");
    }
    r = loop_watch_new(loop, pump->fd, pump_readable, pump, &pump->watch, err);
    if (r < 0) {
        (void)close(pump->fd);
        free(pump);
        return r;
    }
    loop_watch_set(pump->watch, LOOP_READABLE);
    rd_kafka_queue_io_event_enable(queue, pump->fd, &pump_token, sizeof(pump_token));
    *ret_pump = pump;
    return 0;
}

void queue_pump_again(struct queue_pump *pump)
{
    (void)!write(pump->fd, &pump_token, sizeof(pump_token));
}

void queue_pump_free(struct queue_pump **pump_p)
{
    struct queue_pump *pump = TAKE(*pump_p);

    if (pump == NULL)
        return;
    rd_kafka_queue_io_event_enable(pump->queue, -1, NULL, 0);
    loop_watch_free(&pump->watch);
    (void)close(pump->fd);
    free(pump);
}
