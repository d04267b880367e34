# SPDX-License-Identifier: Apache-2.0
"""Ingests besides that of `headrace dev`, on one topic with it, through kills and rebalances; and whether
each record is one job. For tests/stack/test_topics.py and bench/ingest.py."""

import json
import os
import signal
import subprocess

import kafka
from stack import BINARY, die_with_parent, wait_until


def bind(stack, name, **fields):
    reply = stack.http("POST", "/v1/topics", {"name": name, "model": "sim", **fields})
    assert reply.status == 201, reply


def topic(stack, name):
    reply = stack.http("GET", f"/v1/topics/{name}")
    assert reply.status == 200, reply
    return reply.json


def tagged(stack, tag):
    return [row[0] for row in stack.sql(
        "SELECT t.job_id FROM headrace.job_tag t JOIN headrace.job j ON j.id = t.job_id WHERE t.tag = :'a1'", tag)]


def start_ingest(stack, name, session, **extra):
    """Another ingest of the stack, with its own log, dead with the test run; and its name in the ledger."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")}
    env.update(HEADRACE_KAFKA=stack.url("kafka"), HEADRACE_POSTGRES=stack.url("postgres"),
               HEADRACE_TOPICS_SESSION=session, HEADRACE_BLOBS=str(stack.data_dir / "blobs"), **extra)
    path = stack.data_dir / "logs" / f"{name}.log"
    with open(path, "ab") as log:
        process = subprocess.Popen([BINARY, "ingest"], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   preexec_fn=die_with_parent)

    def boot():
        lines = [json.loads(line) for line in path.read_text().splitlines() if '"started"' in line]
        return lines[0]["boot"] if lines else None

    return process, wait_until(f"{name} to start", boot, 20)


def wait_owned(stack, binding, name, owned):
    def owners():
        return {row[0] for row in stack.sql(
            "SELECT p.owner FROM headrace.topic_position p JOIN headrace.topic_binding b ON b.id = p.binding_id "
            "WHERE b.name = :'a1' AND NOT p.result", binding)}

    wait_until(f"{name} to have {'a share' if owned else 'nothing'}", lambda: (name in owners()) == owned, 30, 0.05)


def through_rebalances(stack, name, rounds, records, session, said=lambda number: None):
    """Binds topic `name` (in partitions, with `name`.out for its results). A newcomer takes its share while
    records come, and loses it by SIGKILL, or is stopped beyond its session, goes on as if it had not slept, and
    is killed then: two rebalances a round. Dev's own is killed too. Returns how many records were sent."""
    sent = 0
    bind(stack, name, topic=name, result_topic=f"{name}.out", tags=name)

    def send():
        nonlocal sent
        kafka.produce(stack.url("kafka"), name, [(f"{sent + i}".encode(), b"{\"text\": \"x\"}") for i in range(records)])
        sent += records

    for number in range(rounds):
        send()
        second, boot = start_ingest(stack, f"second-{number}", session)
        wait_owned(stack, name, boot, True)
        send()
        if number % 2 == 0:
            second.send_signal(signal.SIGSTOP)
        else:
            second.kill()
        send()
        wait_owned(stack, name, boot, False)
        second.send_signal(signal.SIGCONT)
        send()
        if number == rounds - 1:
            stack.restart_service("ingest", kill=True)
        second.kill()
        second.wait()
        said(number)
    return sent


def wait_custody(stack, name, sent, seconds=120):
    """Each record is one job, and its results are of that one job; counts, once everything has ended."""
    brokers = stack.url("kafka")
    wait_until(f"{sent} jobs", lambda: len(tagged(stack, name)) >= sent, seconds, 0.2)
    wait_until(f"{sent} results", lambda: len({r["key"] for r in kafka.consume(brokers, f"{name}.out")}) >= sent,
               seconds, 0.5)
    wait_until("no lag", lambda: topic(stack, name)["lag"] == 0, 20)
    results = kafka.consume(brokers, f"{name}.out")
    ids = {}
    for record in results:
        place = record["headers"]["headrace-partition"], record["headers"]["headrace-offset"]
        ids.setdefault(place, set()).add(record["headers"]["headrace-request-id"])
    jobs = tagged(stack, name)
    ((takeovers,),) = stack.sql("SELECT sum(p.epoch) FROM headrace.topic_position p JOIN headrace.topic_binding b "
                                "ON b.id = p.binding_id WHERE b.name = :'a1' AND NOT p.result", name)
    ((kept,),) = stack.sql("SELECT count(*) FROM headrace.topic_record r JOIN headrace.topic_binding b ON b.id = r.binding_id "
                           "WHERE b.name = :'a1'", name)
    counts = {"records": sent, "jobs": len(jobs), "rows_of_records": int(kept), "distinct_ids": len(set(jobs)), "places": len(ids),
              "results": len(results), "takeovers_of_partitions": int(takeovers)}
    assert len(jobs) == len(set(jobs)) == len(ids) == int(kept) == sent, counts
    assert all(len(of_place) == 1 for of_place in ids.values()), counts
    return counts
