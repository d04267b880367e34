/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Headers of a Kafka record as bytes: for each its name and its value, either behind its size (four
 * bytes, the lowest first; of a value that is none all ones), the name with its terminator.
 *
 * Pure.   Thread: any.   Tests: tests/unit/test_ingest_map.c
 */

#include "base/buf.h"
#include "base/wire.h"
#include "brokers/queue.h"

#define INGEST_HEADERS_MAX 100
#define INGEST_HEADERS_SIZE_MAX 65536

/* Appends as many as fit whole. */
void ingest_headers_pack(const struct queue_header *headers, size_t count, struct buf *to);

/* At most `room`; borrowed from the bytes. Stops at what is none. */
size_t ingest_headers_unpack(struct wire_bytes bytes, struct queue_header *headers, size_t room);
