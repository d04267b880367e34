# SPDX-License-Identifier: Apache-2.0
"""`bench/run training`: what a training job costs beside its own work, how soon it goes on, how fast it is saved.

overhead: CPU of the trainer and of Postgres while a job of short steps runs and saves, less what they use while nothing
runs, as a share of its time; and how much longer its steps take than the same script's without any trainer.
resume: from kill -9 of the script, of the trainer's host and of the trainer to the first line of the script that goes on.
lines: CPU for each line that is kept. upload: a checkpoint of 1 GiB beside dd with fsync of the same
size on the same disk, then the same model again. Each part in turn, --rounds of it; --parts names some.
"""

import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time

PARTS = ("overhead", "resume", "lines", "upload")
ENV = {"HEADRACE_CPUS": "4", "HEADRACE_MEMORY": "8GiB", "HEADRACE_NODE_LOG_RATE": "64MiB", "HEADRACE_NODE_DISK": "100GiB"}
STEPS, STEP_S, SAVES = 10000, 0.005, 10
LINES, LINE = 200_000, "x" * 64
UPLOAD_MB = 1024

STEP_SCRIPT = r"""
import json, os, sys, time
steps, step_s, every = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
keep, took = os.environ["BT_CHECKPOINT_DIR"], []
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
    took.append(time.perf_counter() - began)
    if at % 100 == 0:
        print(f"headrace_metric loss={1 / at} step={at}", flush=True)
print("took", sum(took), flush=True)
"""


def script(text, *words):
    return f"cat > script.py <<'EOF'\n{text}\nEOF", f"python3 script.py {' '.join(map(str, words))}"


class Use:
    """CPU of the trainer's two processes and of Postgres; the script is none of them."""

    def __init__(self, stack, bench):
        from stack import descendants

        services = stack.services()
        postgres = services["postgres"]["pid"]
        self.bench = bench
        self.pids = {"trainer": stack.pids("trainer") + stack.pids("host-training"), "postgres": [postgres, *descendants(postgres)]}
        self.began, self.before = time.monotonic(), self.read()

    def read(self):
        used = {}
        for name, pids in self.pids.items():
            used[name] = sum(own_us(pid) for pid in pids)
        return used

    def since(self):
        return {name: used - self.before[name] for name, used in self.read().items()}, time.monotonic() - self.began


def own_us(pid):
    """utime + stime of one process, without its children: what it waited for is the script's."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) * 1_000_000 // os.sysconf("SC_CLK_TCK")


def took_of(stack, id):
    from training_jobs import lines

    return float([line for line in lines(stack, id) if line.startswith("took ")][0].split()[1])


def bare(stack, words):
    """The same script without a trainer: its seconds."""
    folder = stack.data_dir / "bare"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "script.py").write_text(STEP_SCRIPT)
    done = subprocess.run(["python3", "script.py", *map(str, words)], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "BT_CHECKPOINT_DIR": str(folder)}, check=True)
    return float(done.stdout.split()[-1])


def overhead(stack, bench, options):
    from training_jobs import push, wait_end, wait_status

    rows = []
    words = (STEPS, STEP_S, STEPS // SAVES)
    for _ in range(options.rounds):
        use = Use(stack, bench)
        time.sleep(20)
        idle, idle_s = use.since()
        alone = bare(stack, words)
        id = push(stack, *script(STEP_SCRIPT, *words))
        wait_status(stack, id, "RUNNING")
        use = Use(stack, bench)
        ended = wait_end(stack, id, 600)
        busy, busy_s = use.since()
        assert ended["status"] == "COMPLETED", ended
        rows.append({"idle": {n: v / idle_s / 1e6 for n, v in idle.items()}, "busy": {n: v / busy_s / 1e6 for n, v in busy.items()},
                     "slower": took_of(stack, id) / alone - 1})
        print(f"round: {rows[-1]}", file=sys.stderr)
    print(f"\n| a job of {STEPS:,} steps of {STEP_S * 1000:g} ms, {SAVES} checkpoints, {options.rounds} rounds | median (range) |\n| --- | ---: |")
    for name in ("trainer", "postgres"):
        print(f"| {name}: CPU while nothing runs, % of a core | {bench.spread([100 * r['idle'][name] for r in rows])} |")
        print(f"| {name}: CPU more while it runs, % of a core | {share([100 * (r['busy'][name] - r['idle'][name]) for r in rows])} |")
    print(f"| its steps take longer than without a trainer, % | {share([100 * r['slower'] for r in rows])} |")


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
        use = Use(stack, bench)
        time.sleep(5)
        idle, idle_s = use.since()
        id = push(stack, f"python3 -c 'for _ in range({LINES}): print(\"{LINE}\")'", checkpointing={"enabled": False})
        use = Use(stack, bench)
        assert wait_end(stack, id, 300)["status"] == "COMPLETED"
        used, seconds = use.since()
        ((kept,),) = stack.sql("SELECT sum(line_count) FROM headrace.training_log WHERE job_id = :'a1'", id)
        assert int(kept) == LINES, kept
        own.append((used["trainer"] - idle["trainer"] / idle_s * seconds) / LINES)
        postgres.append((used["postgres"] - idle["postgres"] / idle_s * seconds) / LINES)
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
            {"overhead": overhead, "resume": resume, "lines": lines_cost, "upload": upload}[part](stack, bench, options)
            sys.stdout.flush()
