#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reads results from Headrace's topic `completed` and prints a line a job.

    pip install confluent-kafka msgpack
    python consumer.py BOOTSTRAP [GROUP]        until Ctrl-C

A job may come more than once, with equal bytes: what was done for (id, round) is not done again. Here a set
remembers; a program that must not forget keeps it where it keeps its results, in the same transaction. The
offset is committed after that, never before. Format: docs/kafka.md.
"""

import signal
import sys
import uuid

import msgpack
from confluent_kafka import Consumer, KafkaError

VERSION, COMPLETED = 1, 30
STATES = {3: "SUCCEEDED", 4: "FAILED", 5: "EXPIRED", 6: "CANCELED"}
ID, ROUND, TENANT, MODEL, STATE, ERROR, OUTPUT, BLOB = 1, 2, 3, 4, 7, 9, 10, 11


def read(value):
    """The fields by number; None for what is no final job. Fields that we do not know are skipped."""
    version, kind, fields = msgpack.unpackb(value, strict_map_key=False)
    if version > VERSION:
        raise ValueError(f"version {version} says that skipping would be wrong")
    return fields if kind == COMPLETED else None


def main(bootstrap, group="example-python"):
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "auto.offset.reset": "earliest",
                         "enable.auto.commit": False})
    consumer.subscribe(["completed"])
    done, running = set(), True

    def stop(*_):
        nonlocal running
        running = False

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    while running:
        message = consumer.poll(0.5)
        if message is None:
            continue
        if message.error():
            if message.error().code() != KafkaError._PARTITION_EOF:
                print(message.error(), file=sys.stderr)
            continue
        job = read(message.value())
        if job is not None and (job[ID], job[ROUND]) not in done:
            done.add((job[ID], job[ROUND]))
            output = job.get(OUTPUT, b"")
            print(uuid.UUID(bytes=job[ID]), job[ROUND], job[MODEL], STATES.get(job[STATE], job[STATE]),
                  f"{len(output)} bytes" if BLOB not in job else f"in the blob store: {job[BLOB]}",
                  job.get(ERROR, ""), flush=True)
        consumer.commit(message, asynchronous=True)
    consumer.close()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:3])
