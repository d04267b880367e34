# SPDX-License-Identifier: Apache-2.0
"""`bench/run chains-scale`: large maps, long runs and many at once, and the memory of the coordinator.

A map of 100,000 items; a run of 10,000 jobs, 50 steps of 200 items one after the other; 1,000 runs of three steps that
are all under way at once. Memory is the most that the coordinator's process has had (VmHWM). At last 10,000 runs that
wait for one moment, and 1,000 that wait for a person: what they hold meanwhile, with their coordinator killed, and how
late they go on. It ends with an error when a run does not succeed or a step has not exactly one result.
"""

import concurrent.futures
import datetime
import http.client
import json
import os
import signal
import time
import urllib.parse

from chain_kills import hosts_of, workers_of
from stack import wait_until

TEXT = "x" * 16


class Sizes:
    """How much of each: `wide` items of a map, `long` steps of `items`, `many` runs whose second step takes `sleep_ms`."""

    def __init__(self, small):
        self.wide, self.long, self.items, self.many, self.sleep_ms, self.waiting, self.asking, self.wait_s = \
            (2000, 50, 20, 50, 2000, 200, 50, 20) if small else (100000, 50, 200, 1000, 20000, 10000, 1000, 300)


def chains(sizes):
    wide = {"steps": {"each": {"model": "step", "map": "${ [range($input.count) | tojson] }", "max_parallel": 512,
                               "input": "{{item}}"},
                      "join": {"model": "step", "input": "{{steps.each.output.%d.output}}" % (sizes.wide - 1)}},
            "output": "{{steps.join.output.output}}"}
    steps = {}
    for n in range(sizes.long):
        steps[f"s{n}"] = {"model": "step", "map": "{{input.items}}", "max_parallel": sizes.items,
                          "input": "{{item}}", "needs": [f"s{n - 1}"] if n > 0 else []}
    long = {"steps": steps, "output": "done"}
    many = {"steps": {"a": {"model": "step", "input": 1}, "b": {"model": "slow", "input": "{{steps.a.output.output}}"},
                      "c": {"model": "step", "input": "{{steps.b.output.output}}"}},
            "output": "{{steps.c.output.output}}"}
    after = {"model": "step", "input": 1, "needs": ["w"]}
    waiting = {"steps": {"w": {"wait": "{{input.until}}"}, "a": after}, "output": "{{steps.a.state}}"}
    asking = {"steps": {"w": {"approval": 1, "timeout_seconds": 3000}, "a": after}, "output": "{{steps.a.state}}"}
    return {"wide": wide, "long": long, "many": many, "waiting": waiting, "asking": asking}


def memory_mb(stack, chain):
    (pid,) = hosts_of(workers_of(stack, chain), "host-chain")
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        found = {line.split()[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Vm")}
    return found["VmHWM:"], found["VmRSS:"]


def cpu_s(bench, stack, chain):
    (pid,) = hosts_of(workers_of(stack, chain), "host-chain")
    return bench.cpu_us(pid) / 1e6


def begin(stack, chain, given):
    reply = stack.http("POST", f"/chain/{chain}/production/async_run_remote", {"model_input": given})
    assert reply.status == 201, reply
    return reply.json["request_id"]


def check(stack, ids, steps):
    ((jobs, results),) = stack.sql(
        "SELECT count(*), count(r.job_id) FROM headrace.chain_step s JOIN headrace.job j ON j.id = s.job_id AND j.state = 3 "
        "LEFT JOIN headrace.job_result r ON r.job_id = s.job_id WHERE s.run_id = ANY (string_to_array(:'a1', ',')::uuid[])",
        ",".join(ids))
    assert int(jobs) == int(results) == steps, (jobs, results, steps)


def wait(stack, run, seconds):
    ended = stack.wait_final(run, seconds)
    assert ended["status"] == "SUCCEEDED", (ended, stack.sql(
        "SELECT error_message FROM headrace.job WHERE id = :'a1'", run))


def tell(bench, stack, chain, what, jobs, began):
    seconds = time.monotonic() - began
    most, now = memory_mb(stack, chain)
    print(f"| {what} | {seconds:.1f} | {jobs / seconds:,.0f} | {most:.0f} | {now:.0f} | "
          f"{1e6 * cpu_s(bench, stack, chain) / jobs:.0f} |", flush=True)


def run_one(bench, stack, chain, what, given, jobs):
    began = time.monotonic()
    run = begin(stack, chain, given)
    wait(stack, run, 560)
    tell(bench, stack, chain, what, jobs, began)
    check(stack, [run], jobs)


def run_many(bench, stack, sizes):
    began = time.monotonic()
    ids = [begin(stack, "many", {}) for _ in range(sizes.many)]
    most = 0
    while time.monotonic() - began < 300:
        ((live, slow),) = stack.sql(
            "SELECT count(*) FILTER (WHERE m.name = 'many'), count(*) FILTER (WHERE m.name = 'slow') FROM headrace.job j "
            "JOIN headrace.model m ON m.id = j.model WHERE j.state IN (1, 2)")
        most = max(most, min(int(live), int(slow)))
        if live == "0":
            break
        time.sleep(0.5)
    tell(bench, stack, "many", f"{sizes.many:,} runs of 3, {most} of them in their second step at once", 3 * sizes.many, began)
    for one in ids:
        wait(stack, one, 60)
    check(stack, ids, 3 * sizes.many)


def post_all(stack, paths, body, status):
    """Over some kept connections; the answers."""
    url, key = urllib.parse.urlsplit(stack.url("gateway")), stack.key

    def work(mine):
        line, found = http.client.HTTPConnection(url.hostname, url.port, timeout=60), []
        for path in mine:
            line.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {key}"})
            reply = line.getresponse()
            found.append(json.loads(reply.read()))
            assert reply.status == status, (path, reply.status, found[-1])
        return found

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return [one for some in pool.map(work, [paths[n::8] for n in range(8)]) for one in some]


def begin_all(stack, chain, given, count):
    path = f"/chain/{chain}/production/async_run_remote"
    return [one["request_id"] for one in post_all(stack, [path] * count, {"model_input": given}, 201)]


def states(stack, chain):
    """Runs by state, and whether they have had an attempt."""
    return dict(stack.sql("SELECT concat(j.state, j.attempt_count > 0), count(*) FROM headrace.job j JOIN headrace.model m "
                          "ON m.id = j.model WHERE m.name = :'a1' GROUP BY 1", chain))


def broker_mb(stack):
    return sum(int(line.split()[1]) for pid in stack.pids("broker") for line in open(f"/proc/{pid}/status", encoding="ascii")
               if line.startswith("VmRSS:")) / 1024


def late_ms(stack, chain, since):
    """How long after that their second step was accepted. Each has exactly one job, with one result."""
    ((jobs, results, *late),) = stack.sql(
        "SELECT count(x.id), count(r.job_id), percentile_cont(0.5) WITHIN GROUP (ORDER BY x.accepted_at - " + since + "), "
        "percentile_cont(0.99) WITHIN GROUP (ORDER BY x.accepted_at - " + since + "), max(x.accepted_at - " + since + "), "
        "min(x.accepted_at - " + since + ") FROM headrace.job j JOIN headrace.model m ON m.id = j.model AND m.name = :'a1' "
        "JOIN headrace.chain_wait w ON w.run_id = j.id LEFT JOIN headrace.chain_step s ON s.run_id = j.id LEFT JOIN "
        "headrace.job x ON x.id = s.job_id AND x.state = 3 LEFT JOIN headrace.job_result r ON r.job_id = x.id", chain)
    assert not late[3].startswith("-"), late
    return int(jobs), int(results), ", ".join(late[:3])


def run_waiting(stack, sizes):
    def left_s():
        return (until - datetime.datetime.now(datetime.timezone.utc)).total_seconds()

    before = broker_mb(stack)
    until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=sizes.wait_s)
    begin_all(stack, "waiting", {"until": until.strftime("%Y-%m-%dT%H:%M:%SZ")}, sizes.waiting)
    asks = begin_all(stack, "asking", {}, sizes.asking)
    begun_s = sizes.wait_s - left_s()
    for chain, count in (("asking", sizes.asking), ("waiting", sizes.waiting)):
        wait_until(f"{chain} to rest", lambda: states(stack, chain) == {"1t": str(count)}, sizes.wait_s, 0.5)
    print(f"\n{sizes.waiting:,} runs that wait and {sizes.asking:,} that ask, begun in {begun_s:.0f} s, are in no slot after "
          f"{sizes.wait_s - left_s():.0f} s; the coordinator has {memory_mb(stack, 'waiting')[1]:.0f} MB, the broker "
          f"{broker_mb(stack):.0f} MB ({before:.0f} before)", flush=True)
    os.kill(hosts_of(workers_of(stack, "waiting"), "host-chain")[0], signal.SIGKILL)
    stack.kill_service("broker")
    stack.start_service("broker")
    assert left_s() > 0, "the time that is waited for came too early"
    post_all(stack, [f"/v1/chain_runs/{one}/steps/w/approve" for one in asks], {}, 200)
    for chain, count, since in (("asking", sizes.asking, "w.decided_at"), ("waiting", sizes.waiting, "w.due_at")):
        wait_until(f"{chain} to end", lambda: states(stack, chain) == {"3t": str(count)}, sizes.wait_s + 120, 0.5)
        jobs, results, late = late_ms(stack, chain, since)
        assert jobs == results == count, (chain, jobs, results)
        print(f"{chain}: coordinator and broker were killed meanwhile; the next step of each, {jobs:,} in all, was accepted so long "
              f"after (p50, p99, most): {late}", flush=True)


def run(options, bench):
    from stack import Stack

    sizes = Sizes(options.small)
    with Stack() as stack:
        stack.push_sim("step", slots=256, test_mode=False)
        stack.push_sim("slow", slots=1024, test_mode=False, service_ms=sizes.sleep_ms)
        for name, chain in chains(sizes).items():
            reply = stack.http("POST", f"/v1/models/{name}/deployments", {"engine": "chain", "settings": chain})
            assert reply.status == 201, reply
            stack.wait_active(reply.json["id"])
        print(f"at the beginning: {memory_mb(stack, 'wide')[1]:.0f} MB\n")
        print("| what | seconds | jobs/s | most memory of the coordinator, MB | after, MB | its core-µs a job |\n"
              "| --- | ---: | ---: | ---: | ---: | ---: |")
        parts = options.parts.split(",") if options.parts else ["many", "long", "wide", "waiting"]
        if "many" in parts:
            run_many(bench, stack, sizes)
        if "long" in parts:
            run_one(bench, stack, "long", f"{sizes.long} steps of {sizes.items} items", {"items": [TEXT] * sizes.items},
                    sizes.long * sizes.items)
        if "wide" in parts:
            run_one(bench, stack, "wide", f"a map of {sizes.wide:,} and a join", {"count": sizes.wide}, sizes.wide + 1)
        if "waiting" in parts:
            run_waiting(stack, sizes)
