# SPDX-License-Identifier: Apache-2.0
"""`bench/run ingest`: a user's topic as jobs, and two ingests through twenty forced rebalances.

throughput: records of 256 B lie in a topic of four partitions when it is bound to a model without a service time.
Taken are: when each is in the platform's intake (accepted), when each job is in the ledger and final, the CPU of each
program meanwhile. Custody: jobs = distinct ids = records.
rebalances: ten rounds in which a second ingest joins, and is killed or stopped beyond its session, while records come;
jobs = distinct ids = records, each with results of one id. The small form is in tests/stack/test_topics.py.
"""

import json
import statistics
import sys
import time

PARTITIONS = 4
SESSION = "1s"


def throughput(stack, options, bench, number):
    import ingests
    import kafka

    name = f"in-{number}"
    count, step = options.jobs, 50_000
    kafka.make_topics(stack.url("kafka"), [name], PARTITIONS)
    value = json.dumps({"text": "x" * (256 - len('{"text": ""}'))}).encode()
    for first in range(0, count, step):
        kafka.produce(stack.url("kafka"), name, [(b"%d" % n, value) for n in range(first, min(count, first + step))])
    meter, begun, accepted = bench.Meter(stack), time.monotonic(), None
    ingests.bind(stack, name, topic=name, tags=name)
    while True:
        if accepted is None and ingests.topic(stack, name)["accepted"] >= count:
            accepted = time.monotonic() - begun
        final, ids = stack.sql("SELECT count(*), count(DISTINCT id) FROM headrace.job j JOIN headrace.job_tag t "
                               "ON t.job_id = j.id WHERE t.tag = :'a1' AND j.state = 3", name)[0] if accepted else (0, 0)
        if int(final) >= count:
            break
        time.sleep(0.1)
    seconds = time.monotonic() - begun
    used, machine = meter.read()
    if int(ids) != count or int(final) != count:
        sys.exit(f"bench/ingest: {count} records, {final} jobs, {ids} ids")
    if stack.http("DELETE", f"/v1/topics/{name}").status != 200:
        sys.exit("bench/ingest: the binding does not go")
    return {"records": count, "accepted_s": accepted, "seconds": seconds,
            "cpu_us": {program: value / count for program, value in used.items()},
            "strangers_percent": 100 * max(0, machine - sum(used.values())) / max(1, machine)}


def rebalances(stack, options):
    import ingests
    import kafka

    rounds, records = (2, 300) if options.small else (10, 5000)
    kafka.make_topics(stack.url("kafka"), ["four", "four.out"], PARTITIONS)
    begun = time.monotonic()
    sent = ingests.through_rebalances(stack, "four", rounds, records, SESSION,
                                      lambda number: print(f"round {number + 1} of {rounds}", file=sys.stderr))
    counts = ingests.wait_custody(stack, "four", sent, 300)
    return {**counts, "forced_rebalances": 2 * rounds, "seconds": time.monotonic() - begun}


def run(options, bench):
    from stack import Stack

    parts = options.parts.split(",") if options.parts else ["throughput", "rebalances"]
    told, rounds = {}, []
    with Stack(env={"HEADRACE_TOPICS_SESSION": SESSION}) as stack:
        stack.push_sim("sim", slots=options.slots, test_mode=False)
        if "throughput" in parts:
            for number in range(options.rounds + 1):  # the first one makes connections and plans
                rounds.append(throughput(stack, options, bench, number))
        if "rebalances" in parts:
            told = rebalances(stack, options)
    if options.json:
        print(json.dumps({"rounds": rounds[1:], "rebalances": told}))
        return
    if rounds:
        report(rounds[1:], bench)
    if told:
        print(f"\n{told['forced_rebalances']} forced rebalances of two ingests in {told['seconds']:.0f} s: records "
              f"{told['records']:,} = jobs {told['jobs']:,} = distinct ids {told['distinct_ids']:,}; results sent "
              f"{told['results']:,}; takeovers of a partition {told['takeovers_of_partitions']}")


def report(rounds, bench):
    def row(name, values):
        print(f"| {name} | {bench.spread(values)} |")

    print(f"\n| {len(rounds)} rounds of {rounds[0]['records']:,} records | median (range) |\n| --- | ---: |")
    row("records/s, until the intake has them", [r["records"] / r["accepted_s"] for r in rounds])
    row("records/s, until their jobs are final in the ledger", [r["records"] / r["seconds"] for r in rounds])
    for program in sorted(rounds[0]["cpu_us"], key=lambda p: -statistics.median(r["cpu_us"][p] for r in rounds)):
        row(f"core-µs a record, {program}", [r["cpu_us"][program] for r in rounds])
    row("CPU used by strangers, %", [r["strangers_percent"] for r in rounds])
