/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/queue_embedded.h"

#include <stdlib.h>

#include "brokers/queue_kafka.h"

#include <librdkafka/rdkafka_mock.h> /* wants rdkafka.h before it */

#define API_KEY_PRODUCE 0 /* number of the request in Kafka's protocol */

struct queue_embedded {
    rd_kafka_t *client; /* only carries the cluster */
    rd_kafka_mock_cluster_t *cluster;
    uint32_t broker_count;
};

int queue_embedded_open(uint32_t broker_count, struct queue_embedded **ret_embedded,
                        struct err *err)
{
    OWNED(queue_embedded_close) struct queue_embedded *embedded = xcalloc(1, sizeof(*embedded));
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    int r;

    rd_kafka_conf_set_log_cb(conf, NULL);
    r = queue_client_new(RD_KAFKA_PRODUCER, conf, &embedded->client, err);
    if (r < 0)
        return r;
    embedded->cluster = rd_kafka_mock_cluster_new(embedded->client, (int)broker_count);
    if (embedded->cluster == NULL)
        return err_set(err, ERR_DEPENDENCY, "the embedded Kafka did not start");
    embedded->broker_count = broker_count;
    *ret_embedded = TAKE(embedded);
    return 0;
}

void queue_embedded_close(struct queue_embedded **embedded_p)
{
    struct queue_embedded *embedded = TAKE(*embedded_p);

    if (embedded == NULL)
        return;
    if (embedded->cluster != NULL)
        rd_kafka_mock_cluster_destroy(embedded->cluster);
    if (embedded->client != NULL)
        rd_kafka_destroy(embedded->client);
    free(embedded);
}

const char *queue_embedded_bootstrap(const struct queue_embedded *embedded)
{
    return rd_kafka_mock_cluster_bootstraps(embedded->cluster);
}

int queue_embedded_create(struct queue_embedded *embedded, const char *topic,
                          uint32_t partition_count, struct err *err)
{
    rd_kafka_resp_err_t code = rd_kafka_mock_topic_create(embedded->cluster, topic,
                                                          (int)partition_count, 1);

    if (code != RD_KAFKA_RESP_ERR_NO_ERROR)
        return err_set(err, queue_code(code), "make topic '%s': %s", topic, rd_kafka_err2str(code));
    return 0;
}

void queue_embedded_fail_produce(struct queue_embedded *embedded, int code, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        rd_kafka_mock_push_request_errors(embedded->cluster, API_KEY_PRODUCE, 1,
                                          (rd_kafka_resp_err_t)code);
}

void queue_embedded_set_down(struct queue_embedded *embedded, bool down)
{
    for (uint32_t i = 1; i <= embedded->broker_count; i++) {
        if (down)
            (void)rd_kafka_mock_broker_set_down(embedded->cluster, (int32_t)i);
        else
            (void)rd_kafka_mock_broker_set_up(embedded->cluster, (int32_t)i);
    }
}

void queue_embedded_set_delay(struct queue_embedded *embedded, uint32_t delay_ms)
{
    for (uint32_t i = 1; i <= embedded->broker_count; i++)
        (void)rd_kafka_mock_broker_set_rtt(embedded->cluster, (int32_t)i, (int)delay_ms);
}
