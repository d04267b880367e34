/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A Kafka inside the process: librdkafka's mock cluster, for tests and for `--kafka=embedded`.
 *
 * Memory only, and forgetful: at most 5 MB or 100,000 records a partition are kept, older ones go
 * in silence; an empty fetch is answered after fetch.wait.max.ms only; there is no admin API.
 *
 * Thread: any for open, create and close; librdkafka runs the brokers on threads of its own.
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct queue_embedded;

int queue_embedded_open(uint32_t broker_count, struct queue_embedded **ret_embedded,
                        struct err *err) MUST_CHECK;
void queue_embedded_close(struct queue_embedded **embedded_p);

const char *queue_embedded_bootstrap(const struct queue_embedded *embedded);
int queue_embedded_create(struct queue_embedded *embedded, const char *topic,
                          uint32_t partition_count, struct err *err) MUST_CHECK;

/* For tests: the next `count` Produce requests fail with this code of Kafka's protocol. */
void queue_embedded_fail_produce(struct queue_embedded *embedded, int code, uint32_t count);

/* For tests: every broker stops answering, or answers again. */
void queue_embedded_set_down(struct queue_embedded *embedded, bool down);

/* For tests: every answer comes this late. */
void queue_embedded_set_delay(struct queue_embedded *embedded, uint32_t delay_ms);
