/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the parts of the librdkafka adapter share: error codes, configuration, and the way from a
 * librdkafka queue onto our loop. Only brokers/queue_*.c include it.
 *
 * librdkafka writes an eventfd when a queue of its turns from empty to filled; the loop watches it
 * and calls the part, which drains the queue. So every callback of ours runs on the loop's thread,
 * and librdkafka's threads run none of our code.
 *
 * Thread: the loop's.
 */

#include <librdkafka/rdkafka.h>

#include "brokers/queue.h"

/* The one translation of librdkafka's codes. */
int queue_code(rd_kafka_resp_err_t code);

/* One property of a table that ends in {NULL, NULL}. */
struct queue_property {
    const char *name, *value;
};

/* A configuration with what every client of ours has (options), then `own`, then the properties
 * of the options, which win. The caller frees it unless a client takes it. */
int queue_conf_new(const struct queue_options *options, const struct queue_property *own,
                   rd_kafka_conf_t **ret_conf, struct err *err) MUST_CHECK;

/* A client of that configuration; takes conf on success and on failure. */
int queue_client_new(rd_kafka_type_t type, rd_kafka_conf_t *conf, rd_kafka_t **ret_client,
                     struct err *err) MUST_CHECK;

/* For tests: what a fatal error of the idempotent producer looks like to us. */
void queue_producer_break(struct queue_producer *producer);

/* For tests: the client is dead, as after a fence by its own name. */
struct queue_election;
void queue_election_break(struct queue_election *election);

struct queue_pump;

/* Calls `call` on the loop whenever the queue has something. Borrows the queue, which must outlive
 * the pump. The first call comes by itself, for what is in the queue already. */
int queue_pump_new(struct loop *loop, rd_kafka_queue_t *queue, void (*call)(void *opaque),
                   void *opaque, struct queue_pump **ret_pump, struct err *err) MUST_CHECK;

/* Asks for another call: when the part stopped before its queue was empty. */
void queue_pump_again(struct queue_pump *pump);
void queue_pump_free(struct queue_pump **pump_p);
