# SPDX-License-Identifier: Apache-2.0
"""Kafka as users' programs use it: topics by librdkafka (ctypes, since no tool of ours makes topics of
users), records with keys and headers by kcat."""

import ctypes
import json
import subprocess

ADMIN_SECONDS = 20


def words(properties):
    """Of kcat's command line."""
    return [word for name, value in (properties or {}).items() for word in ("-X", f"{name}={value}")]


def admin(bootstrap, properties=None):
    lib = ctypes.CDLL("librdkafka.so.1")
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_queue_new", "rd_kafka_NewTopic_new",
                 "rd_kafka_queue_poll"):
        getattr(lib, name).restype = ctypes.c_void_p
    conf, why = ctypes.c_void_p(lib.rd_kafka_conf_new()), ctypes.create_string_buffer(512)
    for key, value in {"bootstrap.servers": bootstrap, **(properties or {})}.items():
        assert lib.rd_kafka_conf_set(conf, key.encode(), value.encode(), why, len(why)) == 0, why.value
    client = ctypes.c_void_p(lib.rd_kafka_new(0, conf, why, len(why)))
    assert client.value, why.value
    return lib, client, ctypes.c_void_p(lib.rd_kafka_queue_new(client)), why


def wait_answer(lib, client, queue):
    event = ctypes.c_void_p(lib.rd_kafka_queue_poll(queue, ADMIN_SECONDS * 1000))
    assert event.value, "Kafka did not answer"
    assert lib.rd_kafka_event_error(event) == 0
    lib.rd_kafka_event_destroy(event)
    lib.rd_kafka_queue_destroy(queue)
    lib.rd_kafka_destroy(client)


def make_topics(bootstrap, names, partitions=1, properties=None):
    """Each in the same number of partitions."""
    lib, client, queue, why = admin(bootstrap, properties)
    topics = (ctypes.c_void_p * len(names))(
        *(lib.rd_kafka_NewTopic_new(name.encode(), partitions, 1, why, len(why)) for name in names))
    lib.rd_kafka_CreateTopics(client, topics, len(names), None, queue)
    wait_answer(lib, client, queue)


class DenyingCluster:
    """librdkafka's cluster inside this process, which lets nobody at one topic."""

    DENIED = 29  # RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED

    def __init__(self, topic):
        self.lib, self.client, _, _ = admin("127.0.0.1:1")
        self.lib.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
        self.lib.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        self.cluster = ctypes.c_void_p(self.lib.rd_kafka_mock_cluster_new(self.client, 1))
        self.lib.rd_kafka_mock_topic_create(self.cluster, topic.encode(), 1, 1)
        self.lib.rd_kafka_mock_topic_set_error(self.cluster, topic.encode(), self.DENIED)
        self.bootstrap = self.lib.rd_kafka_mock_cluster_bootstraps(self.cluster).decode()

    def close(self):
        self.lib.rd_kafka_mock_cluster_destroy(self.cluster)


def produce(bootstrap, topic, records, headers=(), partition=-1, properties=None):
    """records: values in bytes, or (key, value); all with the same headers (name, value)."""
    pairs = [record if isinstance(record, tuple) else (None, record) for record in records]
    command = ["kcat", "-P", "-q", "-b", bootstrap, "-t", topic, "-p", str(partition), "-D", "\x1e", "-X",
               "acks=all", "-X", "partitioner=murmur2_random", *words(properties)]
    for name, value in headers:
        command += ["-H", f"{name}={value}"]
    if any(key is not None for key, _ in pairs):
        command += ["-K", "\x1d"]
        data = b"\x1e".join(key + b"\x1d" + value for key, value in pairs)
    else:
        data = b"\x1e".join(value for _, value in pairs)
    done = subprocess.run(command, input=data, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


def consume(bootstrap, topic, properties=None):
    """Every record up to the end as of now, as kcat tells it: key, payload, headers (a dict), offset …"""
    command = ["kcat", "-C", "-q", "-e", "-J", "-b", bootstrap, "-t", topic, "-o", "beginning",
               *words(properties)]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    records = [json.loads(line) for line in done.stdout.decode().splitlines()]
    for record in records:
        pairs = record.get("headers", [])
        record["headers"] = dict(zip(pairs[::2], pairs[1::2]))
    return records
