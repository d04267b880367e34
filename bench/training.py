# SPDX-License-Identifier: Apache-2.0
"""`bench/run training`: what a training job costs beside its own work, how soon it goes on, how fast it is saved.

overhead: CPU of the trainer and of Postgres while a job of short steps runs, and while one runs and saves, less what they
use while nothing runs, as a share of its time. steps: how much longer the steps of a job take while its trainer runs than
in the seconds between, in which the trainer is stopped (SIGSTOP); and the same with a trainer that is never stopped, which
is what the machine does by itself.
resume: from kill -9 of the script, of the trainer's host and of the trainer to the first line of the script that goes on.
lines: CPU for each line that is kept. upload: a checkpoint of 1 GiB beside dd with fsync of the same
size on the same disk, then the same model again. Each part in turn, --rounds of it; --parts names some.
"""

import array
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

PARTS = ("overhead", "steps", "resume", "lines", "upload")
ENV = {"HEADRACE_CPUS": "4", "HEADRACE_MEMORY": "8GiB", "HEADRACE_NODE_LOG_RATE": "64MiB", "HEADRACE_NODE_DISK": "100GiB"}
STEPS, STEP_S, SAVES = 10000, 0.005, 10
WINDOW_S, PAIRS_LEAST = 1.0, 5
LINES, LINE = 200_000, "x" * 64
UPLOAD_MB = 1024

STEP_SCRIPT = r"""
import json, os, sys, time
steps, step_s, every = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
keep = os.environ["BT_CHECKPOINT_DIR"]
for at in range(1, steps + 1):
    began = time.perf_counter()
    while time.perf_counter() - began < step_s:  # a step computes
        sum(range(200))
    if at % every == 0:
        new = f"{keep}/.new"
        os.makedirs(new)
        open(new + "/base", "wb").write(b"b" * 4_000_000)
        json.dump({"step": at}, open(new + "/state.json", "w"))
        os.rename(new, f"{keep}/step-{at:06}")
    if at % 100 == 0:
        print(f"headrace_metric loss={1 / at} step={at}", flush=True)
"""

# Steps of the same work, and when each was over, on the clock that all processes of a machine share.
TIMED_SCRIPT = r"""
import array, os, sys, time
seconds, step_s = float(sys.argv[1]), float(sys.argv[2])
work, over = 1000, array.array("q")
def step():
    for _ in range(work):
        sum(range(200))
work = int(work * step_s / min(b - a for a, b in [[time.perf_counter(), step(), time.perf_counter()][::2] for _ in range(50)]))
until = time.monotonic() + seconds
while time.monotonic() < until:
    step()
    over.append(time.monotonic_ns())
    if len(over) % 100 == 0:
        print(f"headrace_metric loss={1 / len(over)} step={len(over)}", flush=True)
over.tofile(open(os.environ["BT_PROJECT_CACHE_DIR"] + "/steps.new", "wb"))
os.rename(os.environ["BT_PROJECT_CACHE_DIR"] + "/steps.new", os.environ["BT_PROJECT_CACHE_DIR"] + "/steps")
"""


def script(text, *words):
    return f"cat > script.py <<'EOF'\n{text}\nEOF", f"python3 script.py {' '.join(map(str, words))}"


class Use:
    """CPU of the trainer's two processes and of Postgres; the script is none of them. The worker holds the job in the ledger
    and polls Kafka all the time; the host is who runs nodes."""

    def __init__(self, stack):
        from stack import descendants

        postgres = stack.services()["postgres"]["pid"]
        self.pids = {"worker": stack.pids("trainer"), "host": stack.pids("host-training"), "postgres": [postgres, *descendants(postgres)]}
        self.began, self.before = time.monotonic(), self.read()

    def read(self):
        return {name: {pid: own_s(pid) for pid in pids} for name, pids in self.pids.items()}

    def since(self):
        """Seconds of each, without those of processes that have ended; and of the clock."""
        now = self.read()
        return {name: sum(max(0, now[name][pid] - was) for pid, was in before.items())
                for name, before in self.before.items()}, time.monotonic() - self.began


def own_s(pid):
    """CPU of one process to the nanosecond, without its children: what it waited for is the script's."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # CPUCLOCK_SCHED of a process, as clock_getcpuclockid() makes it
    except OSError:
        return 0


def per_second(use):
    used, seconds = use.since()
    return {name: 100 * s / seconds for name, s in used.items()}


def of_a_job(stack, saves):
    """CPU while it runs, % of a core."""
    from training_jobs import push, wait_end, wait_status

    id = push(stack, *script(STEP_SCRIPT, STEPS, STEP_S, STEPS // saves if saves else STEPS + 1))
    wait_status(stack, id, "RUNNING")
    use = Use(stack)
    ended = wait_end(stack, id, 600)
    used = per_second(use)
    assert ended["status"] == "COMPLETED", ended
    return used


def of_nothing(stack):
    use = Use(stack)
    time.sleep(20)
    return per_second(use)


def overhead(stack, bench, options):
    rows = []
    for _ in range(options.rounds):
        row = {"idle": of_nothing(stack), "runs": of_a_job(stack, 0), "again": of_nothing(stack), "saves": of_a_job(stack, SAVES)}
        rows.append(row)
        print(f"round: {row}", file=sys.stderr)
    print(f"\n| CPU, % of a core; a job of {STEPS:,} steps of {STEP_S * 1000:g} ms, {options.rounds} rounds | trainer: median (range) | its worker | its host | Postgres |\n| --- | ---: | ---: | ---: | ---: |")

    def more(what, of):
        names = (("worker", "host"), ("worker",), ("host",), ("postgres",))
        print(f"| {what} | " + " | ".join(share([sum(of(row, name) for name in some) for row in rows]) for some in names) + " |")

    def idle(row, name):
        return (row["idle"][name] + row["again"][name]) / 2

    more("while nothing runs", lambda row, name: row["idle"][name])
    more("more while nothing runs, twenty seconds again (A/A)", lambda row, name: row["again"][name] - row["idle"][name])
    more("more while a node runs", lambda row, name: row["runs"][name] - idle(row, name))
    more(f"more while a node runs and saves 4 MB each {STEPS // SAVES * STEP_S:g} s", lambda row, name: row["saves"][name] - idle(row, name))


# ---- steps


def windows_of(pids, seconds, stops):
    """Windows of a second, in which these processes run and do not run in turn: (from, to, runs) in ns."""
    windows, until, runs = [], time.monotonic() + seconds, False
    try:
        while time.monotonic() < until:
            for pid in pids if stops else ():
                os.kill(pid, signal.SIGCONT if runs else signal.SIGSTOP)
            began = time.monotonic_ns()
            time.sleep(WINDOW_S)
            windows.append((began, time.monotonic_ns(), runs))
            runs = not runs
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    return windows


def longer(path, windows):
    """Of each two windows that follow each other: how much longer a step takes in the one in which they run, %; None when
    the machine gave its steps less than half a window of either."""
    over = array.array("q", path.read_bytes())
    found, at = [], 0
    for began, ended, runs in windows:
        while at < len(over) and over[at] <= began:
            at += 1
        first = at
        while at < len(over) and over[at] <= ended:
            at += 1
        few = at - 1 - first < WINDOW_S / STEP_S / 2
        found.append(None if few else (over[at - 1] - over[first]) / (at - 1 - first))
    return [None if on is None or off is None else 100 * (on / off - 1) for off, on in zip(found[::2], found[1::2])]


def steps_cost(stack, bench, options):
    from training_jobs import push, wait_end, wait_status

    path = stack.data_dir / "trainer/cache/projects/digits/steps"
    pids = stack.pids("trainer") + stack.pids("host-training")
    told = {True: [], False: []}
    seconds = STEPS * STEP_S
    for _ in range(options.rounds):
        for stops in (True, False):
            path.unlink(missing_ok=True)
            id = push(stack, *script(TIMED_SCRIPT, seconds + 10, STEP_S), checkpointing={"enabled": True})
            wait_status(stack, id, "RUNNING")
            time.sleep(3)
            windows = windows_of(pids, seconds, stops)
            ended = wait_end(stack, id, 60)
            assert ended["status"] == "COMPLETED" and ended["placement"] == "1", ended
            told[stops] += longer(path, windows)
    print(f"\n| a step of {STEP_S * 1000:g} ms of work, pairs of {WINDOW_S:g} s, {options.rounds} rounds | mean, % | ± its standard error |\n| --- | ---: | ---: |")
    for stops, name in ((True, "longer while its trainer runs than while it is stopped"), (False, "with a trainer that is never stopped (A/A)")):
        values = [value for value in told[stops] if value is not None]
        if len(values) < PAIRS_LEAST:
            print(f"| {name} | the machine is too busy: {len(values)} pairs of {len(told[stops])} | |")
            continue
        print(f"| {name}, {len(values)} pairs of {len(told[stops])} | {statistics.mean(values):.2f} | {statistics.stdev(values) / len(values) ** 0.5:.2f} |")


def share(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f} … {max(values):.2f})"


def resume(stack, bench, options):
    import training_kills
    from stack import wait_until
    from training_jobs import checkpoints, push, scripts, wait_end

    def begins():
        return sorted(when for notes in training_kills.journal_of(stack).values() for _, _, when, word, *_ in notes if word == "begins")

    ways = {"the script": lambda: os.kill(scripts(stack.process.pid, "python3", "learn.py")[0], signal.SIGKILL),
            "its host": lambda: stack.kill("host-training"), "the trainer": lambda: stack.restart_service("trainer", kill=True)}
    print("\n| kill -9 of | seconds until the script goes on, median (range) |\n| --- | ---: |")
    for name, kill in ways.items():
        seconds = []
        for _ in range(max(3, options.rounds)):
            before = len(begins())
            id = push(stack, *training_kills.commands(40, 0.1, 1))
            wait_until("a checkpoint", lambda id=id: sum(c[1] == "COMPLETE" for c in checkpoints(stack, id)) >= 2, 60)
            at = time.time()
            kill()
            wait_until("it to go on", lambda before=before: len(begins()) == before + 2, 60)
            seconds.append(begins()[-1] - at)
            assert wait_end(stack, id, 60)["status"] == "COMPLETED"
        print(f"| {name} | {share(seconds)} |", flush=True)


def lines_cost(stack, bench, options):
    from training_jobs import push, wait_end

    own, postgres = [], []
    for _ in range(options.rounds):
        use = Use(stack)
        time.sleep(5)
        idle, idle_s = use.since()
        id = push(stack, f"python3 -c 'for _ in range({LINES}): print(\"{LINE}\")'", checkpointing={"enabled": False})
        use = Use(stack)
        assert wait_end(stack, id, 300)["status"] == "COMPLETED"
        used, seconds = use.since()
        ((kept,),) = stack.sql("SELECT sum(line_count) FROM headrace.training_log WHERE job_id = :'a1'", id)
        assert int(kept) == LINES, kept
        own.append(1e6 * sum(used[name] - idle[name] / idle_s * seconds for name in ("worker", "host")) / LINES)
        postgres.append(1e6 * (used["postgres"] - idle["postgres"] / idle_s * seconds) / LINES)
        print(f"round: {own[-1]:.2f} {postgres[-1]:.2f}", file=sys.stderr)
    print(f"\n| {LINES:,} lines of {len(LINE)} bytes, {options.rounds} rounds | core-µs a line, median (range) |\n| --- | ---: |")
    print(f"| trainer | {share(own)} |\n| postgres | {share(postgres)} |\n| both | {share([a + b for a, b in zip(own, postgres)])} |")


def event(stack, name, id, key):
    import json

    for line in (stack.data_dir / "logs/trainer.log").read_text(errors="replace").splitlines():
        if f'"event":"{name}"' in line and id in line:
            yield json.loads(line)[key]


def upload(stack, bench, options):
    from stack import wait_until
    from training_jobs import checkpoints, push, wait_end

    rates, disk_rates, again = [], [], []
    for _ in range(options.rounds):
        source = stack.data_dir / "source"
        subprocess.run(f"head -c {UPLOAD_MB << 20} /dev/urandom > {source}; sync", shell=True, check=True)
        began = time.monotonic()
        subprocess.run(["dd", f"if={source}", f"of={stack.data_dir}/copy", "bs=1M", "conv=fsync", "status=none"], check=True)
        disk_rates.append(UPLOAD_MB / (time.monotonic() - began))
        (stack.data_dir / "copy").unlink()
        source.unlink()
        id = push(stack, f"mkdir $BT_CHECKPOINT_DIR/.n; head -c {UPLOAD_MB << 20} /dev/urandom > $BT_CHECKPOINT_DIR/.n/w; sync; "
                         "mv $BT_CHECKPOINT_DIR/.n $BT_CHECKPOINT_DIR/a; sleep 1; until [ -e $BT_SCRATCH_DIR/on ]; do sleep 0.2; done; "
                         "mkdir $BT_CHECKPOINT_DIR/.n; cp $BT_CHECKPOINT_DIR/a/w $BT_CHECKPOINT_DIR/.n/w; echo 2 > $BT_CHECKPOINT_DIR/.n/step; "
                         "mv $BT_CHECKPOINT_DIR/.n $BT_CHECKPOINT_DIR/b")
        wait_until("it to be sent", lambda id=id: any(c[1] == "COMPLETE" for c in checkpoints(stack, id)), 300)
        for path in (stack.data_dir / "trainer/jobs").glob(f"{id}-*/scratch"):
            (path / "on").touch()
        assert wait_end(stack, id, 300)["status"] == "COMPLETED"
        first, second = checkpoints(stack, id)
        assert int(first[4]) == int(first[3]) == UPLOAD_MB << 20, first
        us = list(event(stack, "checkpoint_sent", id, "us"))
        rates.append(UPLOAD_MB / (us[0] / 1e6))
        again.append(100 * int(second[4]) / int(second[3]))
        print(f"round: disk {disk_rates[-1]:.0f} MB/s, upload {rates[-1]:.0f} MB/s, again {again[-1]:.6f} % in {us[1] / 1e6:.2f} s", file=sys.stderr)
        stack.sql("UPDATE headrace.training_checkpoint SET state = 'DELETED', files = NULL WHERE job_id = :'a1'", id)
        shutil.rmtree(stack.data_dir / "blobs/training", ignore_errors=True)
        stack.sql("DELETE FROM headrace.training_file")
    print(f"\n| a checkpoint of {UPLOAD_MB} MiB, {options.rounds} rounds | median (range) |\n| --- | ---: |")
    print(f"| dd with fsync on the same disk, MiB/s | {bench.spread(disk_rates)} |\n| upload, MiB/s | {bench.spread(rates)} |")
    print(f"| upload as a share of dd | {share([u / d for u, d in zip(rates, disk_rates)])} |")
    print(f"| the same model again: bytes sent, % | {max(again):.6f} at most |")


def run(options, bench):
    from stack import Stack
    from training_jobs import project

    parts = [part for part in options.parts.split(",") if part] or list(PARTS)
    if set(parts) - set(PARTS):
        sys.exit(f"bench/training: --parts may name {', '.join(PARTS)}; not {', '.join(set(parts) - set(PARTS))}")
    with Stack(trainer=True, env=ENV) as stack:
        project(stack)
        for part in parts:
            {"overhead": overhead, "steps": steps_cost, "resume": resume, "lines": lines_cost, "upload": upload}[part](stack, bench, options)
            sys.stdout.flush()
