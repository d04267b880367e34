# SPDX-License-Identifier: Apache-2.0
"""`bench/run backlog`: what a job costs while many wait. PERFORMANCE row 11.

Two stacks, one after the other: a little that waits, and much. In each the tenant may run nothing
until all of it is in the ledger; what a submit takes meanwhile is watched. Then the pool is let go, and
the time and the CPU of each of some windows of jobs is taken; and the same with a transaction open in
Postgres that keeps its snapshot. Copies of one job are written into `intake` (bench/backlog_fill.c), the
owner makes their rows as of any others: only the gateway is passed by.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from fairness import percentile

MODEL = "backlog"
LITTLE = 1000      # more than the drained window waits in the little one
WINDOW = 100_000   # jobs whose drain is measured
LEAD = 10_000      # that go first: the worker's slots fill
RATE = 100         # submits a second that are watched
FIELDS = '"max_time_in_queue_seconds":259200'
ENV = {"HEADRACE_POOL_WAITING_MAX": "100000000", "HEADRACE_POOL_PAYLOAD_MAX": "1TB",
       "HEADRACE_TENANT_WAITING_MAX": "100000000"}


class World:
    def __init__(self, stack, options, bench):
        self.stack, self.options, self.bench = stack, options, bench
        self.tools = pathlib.Path(options.binary).parent
        stack.push_sim(MODEL, slots=options.slots, test_mode=False)
        bench.MODEL = MODEL
        bench.load(stack, options, 2000, options.connections, 0)
        bench.load(stack, options, options.warm, options.connections, 0)

    def waiting(self):
        return int(self.stack.sql("SELECT coalesce(sum(waiting), 0)::bigint FROM headrace.queue_delta")[0][0])

    def until_waiting(self, is_enough, pause=0.05, quiet_s=120):
        """Asks until is_enough(waiting); gives up when nothing has moved for a while."""
        last, moved = None, time.monotonic()
        while not is_enough(waiting := self.waiting()):
            if waiting != last:
                last, moved = waiting, time.monotonic()
            if time.monotonic() - moved > quiet_s:
                sys.exit(f"bench/backlog: {waiting} wait, and nothing moves\n{self.stack.tell(5)}")
            time.sleep(pause)
        return time.monotonic()

    def hold(self):
        self.stack.cli("tenants", "set", "default", "running_jobs=0")
        time.sleep(1)

    def release(self):
        self.stack.cli("tenants", "set", "default", "running_jobs=")

    def fill(self, jobs):
        """So many more wait, and are in the ledger; seconds that it took."""
        before, begun = self.waiting(), time.monotonic()
        job = self.stack.submit(MODEL, {"data": "x" * 245}, max_time_in_queue_seconds=259200)
        self.until_waiting(lambda waiting: waiting >= before + 1)
        offset = self.stack.sql("SELECT seq FROM headrace.job WHERE id = :'a1'", job)[0][0]
        subprocess.run([self.tools / "backlog_fill", self.stack.url("kafka").removeprefix("kafka://"), "0", offset,
                        str(jobs - 1)], check=True)
        return self.until_waiting(lambda waiting: waiting >= before + jobs, 0.5) - begun

    def submits(self, seconds):
        """p50 and p99 of a submit, in ms; the jobs stay."""
        host, port = self.stack.url("gateway").removeprefix("http://").split(":")
        done = subprocess.run(
            [self.tools / "async_load", host, port, f"/model/{MODEL}/production/async_predict", self.stack.key,
             self.stack.url("kafka").removeprefix("kafka://"), "1", str(RATE * seconds), "16", str(RATE), "256", FIELDS],
            capture_output=True, text=True)
        result = json.loads(done.stdout)  # its exit code says that nothing was delivered
        if result["accepted"] != result["sent"]:
            sys.exit(f"bench/backlog: submits were refused: {done.stderr}")
        return result["submit_p50_ms"], result["submit_p99_ms"]

    def window(self, first):
        """Jobs a second and core-µs a job of WINDOW jobs, behind the LEAD that go first of those that waited."""
        begun = self.until_waiting(lambda waiting: waiting <= first - LEAD, 0.02)
        at, meter = self.waiting(), self.bench.Meter(self.stack)
        ended = self.until_waiting(lambda waiting: waiting <= first - LEAD - WINDOW, 0.02)
        jobs = at - self.waiting()
        used, _ = meter.read()
        return jobs / (ended - begun), sum(used.values()) / jobs

    def windows(self, refill):
        """Some windows in a row; with a refill before each where little waits."""
        found = []
        for _ in range(self.options.rounds):
            if refill:
                self.hold()
                self.fill(refill)
            waited = self.waiting()
            self.release()
            found.append(self.window(waited))
            if refill:
                self.until_waiting(lambda waiting: waiting == 0)
        return [statistics.median(values) for values in zip(*found)] + [min(f[0] for f in found), max(f[0] for f in found)]


def measure(options, bench, backlog):
    from stack import Stack

    needed = 2 * options.rounds * (WINDOW + 3 * LEAD)
    refill = WINDOW + LEAD + LITTLE if backlog < needed else 0
    with Stack(env=ENV) as stack:
        world = World(stack, options, bench)
        figures = {"refill": refill}
        world.hold()
        figures["empty_mb"] = world.bench.Meter(stack).memory_mb()["broker"]
        figures["fill_s"] = world.fill(backlog)
        figures["submit_p50_ms"], figures["submit_p99_ms"] = world.submits(options.latency_seconds)
        figures["waiting"] = world.waiting()
        world.release()
        if refill:
            world.until_waiting(lambda waiting: waiting == 0)
        figures["drain"] = world.windows(refill)
        figures["full_mb"] = world.bench.Meter(stack).memory_mb()["broker"]
        idle = subprocess.Popen(["psql", "-X", "-q", stack.url("postgres")], stdin=subprocess.PIPE,
                                stdout=subprocess.DEVNULL, text=True)
        idle.stdin.write("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM headrace.shard;\n")
        idle.stdin.flush()
        figures["drain_idle"] = world.windows(refill)
        figures["left"] = world.waiting()
        idle.kill()
        idle.wait()
    return figures


def run(options, bench):
    little = measure(options, bench, LITTLE)
    much = measure(options, bench, options.backlog)
    if options.json:
        print(json.dumps({"little": little, "much": much}))
        return
    print(f"\nwindows of {WINDOW:,} jobs, {options.rounds} of each; load average at the end {os.getloadavg()[0]:.0f}\n")
    print(f"| | {little['waiting']:,} wait | {much['waiting']:,} wait | ratio | mark |\n| --- | ---: | ---: | ---: | ---: |")

    def row(name, a, b, mark="", digits=0):
        print(f"| {name} | {a:,.{digits}f} | {b:,.{digits}f} | {b / a:.2f} | {mark} |")

    row("drain, jobs/s", little["drain"][0], much["drain"][0], "≥ 0.95")
    row("drain, core-µs a job", little["drain"][1], much["drain"][1], "", 1)
    row("the same with a transaction open in Postgres, jobs/s", little["drain_idle"][0], much["drain_idle"][0], "≥ 0.95")
    row("core-µs a job", little["drain_idle"][1], much["drain_idle"][1], "", 1)
    row("submit p50, ms", little["submit_p50_ms"], much["submit_p50_ms"], "", 2)
    row("submit p99, ms", little["submit_p99_ms"], much["submit_p99_ms"], "0.9 … 1.1", 2)
    print(f"\nbroker, MB (Pss): {little['empty_mb']:.0f} empty; {little['full_mb']:.0f} behind the drains of little, "
          f"{much['full_mb']:.0f} with much waiting. {much['waiting']:,} jobs were written in {much['fill_s']:.0f} s; "
          f"{much['left']:,} still waited at the end.")
    spreads = [f"{f['drain'][2]:,.0f} … {f['drain'][3]:,.0f}" for f in (little, much)]
    print(f"windows, jobs/s: {spreads[0]} and {spreads[1]}")
