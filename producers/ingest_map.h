/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a record of a user's topic says: the input of a job, the key that it may be known by, its
 * priority. A mapping is what the binding says of that, as JSON:
 *
 *     {"input": {"text": "{{input.value.body}}", "who": "{{input.key}}"},     none: the whole value
 *      "key": "{{input.value.order.id}}",                                     none: its place
 *      "priority": "{{input.headers.priority?}}"}                             none: the binding's
 *
 * in the templates of chains (schema/chain_template.h), where `input` is the record: value, key,
 * headers (of each name the last), topic, partition, offset, timestamp_ms. Bytes that are no UTF-8
 * are base64. Values are JSON or msgpack; of msgpack bytes become base64, and keys must be texts.
 *
 * Pure, but for memory.   Thread: one mapper a thread.   Tests: tests/unit/test_ingest_map.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/trace.h"
#include "brokers/queue.h"
#include "producers/ingest_headers.h"

#define INGEST_MAPPING_SIZE_MAX 16384
#define INGEST_KEY_SIZE_MAX 255
#define INGEST_REASON_SIZE 300

struct ingest_mapper;
struct ingest_mapping;

struct ingest_mapper *ingest_mapper_new(void);
void ingest_mapper_free(struct ingest_mapper **mapper_p);

/* ERR_MALFORMED, ERR_RANGE and ERR_UNSUPPORTED name member, value and limit. */
int ingest_mapping_parse(const char *format, const char *json, struct ingest_mapping **ret_mapping,
                         struct err *err) MUST_CHECK;
void ingest_mapping_free(struct ingest_mapping **mapping_p);

/* The copy of a record that is kept; what is not there is NULL. */
struct ingest_record {
    char *input; /* JSON; of one that was refused NULL */
    size_t input_size;
    char *dedupe; /* NULL: it is known by its place */
    int priority; /* -1: as the binding says */
    char trace[TRACE_PARENT_SIZE];
    char *reason;         /* why it was refused; NULL: it was not */
    uint8_t *value, *key; /* key: also where its result goes to a topic; value: of a refused one */
    size_t value_size, key_size;
    bool has_value, has_key;
    struct buf headers; /* ingest_headers_pack(); with key */
    size_t size;        /* of all that, for who counts it */
};

/* Fills *ret_record, with a reason where no job can be made of it. keep: key and headers are
 * wanted. */
void ingest_map_record(struct ingest_mapper *mapper, const struct ingest_mapping *mapping,
                       const char *topic, uint32_t partition, const struct queue_record *record,
                       bool keep, struct ingest_record *ret_record);
void ingest_record_done(struct ingest_record *record);
