# SPDX-License-Identifier: Apache-2.0
"""`bench/run sql`: what people ask the ledger with many jobs in it, and what that costs a submit. PERFORMANCE row 12.

Ten days of jobs of 50 models, 97 % of them done, are written into the ledger's tables by SQL (finished ones are
nobody's to run). Five questions are asked of the views of headrace_v1, as headrace_reader, many times each; beside the time
that a session waits stands the CPU time of its backend, which is the same however busy the machine is. Then
submits are watched at a fixed rate: alone, and while the five run in a loop, in turn, several times. --parts questions
leaves that out.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

from fairness import percentile

MODEL = "sql"
MODELS = 50
DAYS = 10
RATE = 100  # submits a second that are watched
BYTES_A_JOB = 700

FILL = """
SET search_path = headrace; SET synchronous_commit = off; SET maintenance_work_mem = '256MB';
SELECT count(partitions_make(now() - n * interval '1 day')) FROM generate_series(1, {days}) n;
INSERT INTO model (id, tenant, name) SELECT 'm' || n, 'default', 'm' || n FROM generate_series(0, {models} - 1) n;
INSERT INTO deployment (id, model_id, name, number, pool, shard, engine, status, replicas_wanted)
SELECT 'm' || n, 'm' || n, 'd', 1, 'm' || n, 0, 'sim', 'INACTIVE', 0 FROM generate_series(0, {models} - 1) n;
INSERT INTO queue_delta (shard, rank, deployment, pool, waiting, running)
SELECT 0, 2, 'm' || n % {models}, 'm' || n % {models}, 1, 0 FROM generate_series(1, 2000) n;
INSERT INTO job (id, accepted_at, received_at, start_deadline_at, state_at, started_at, seq, input_size, run_limit_ms,
    queue_limit_ms, shard, state, rank, error_class, attempt_count, max_attempts, tenant, model, deployment, environment,
    pool, worker, error_message, input_digest, key_prefix)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(i::text), 1, 3) || '8000'
        || substr(md5(i::text), 4, 12))::uuid, at, at, at + interval '10 minutes', at + (50 + i * 31 % 900) * interval '1 ms',
       at + (20 + i * 17 % 30) * interval '1 ms', i, 200, 3600000, 600000, 0, CASE WHEN i % 100 < 3 THEN 4 ELSE 3 END, 2,
       CASE WHEN i % 100 < 3 THEN 2 ELSE 0 END, 1, 3, 'default', 'm' || i * 7919 % {models}, 'm' || i * 7919 % {models},
       'production', 'm' || i * 7919 % {models}, 'w' || i % 8, CASE WHEN i % 100 < 3 THEN 'ValueError: x' END,
       '\\x{digest}', 'bench'
  FROM (SELECT i, now() - (({jobs} - i) * interval '{days} days' / {jobs}) AS at FROM generate_series({first}, {last}::bigint) i) x;
"""

# What flushes would have told: by hour and end.
COUNT = """
INSERT INTO headrace.job_hour
SELECT date_trunc('hour', state_at, 'UTC'), tenant, model, deployment, state, error_class, count(*), sum(attempt_count),
       sum(date_part('epoch', started_at - accepted_at)), sum(date_part('epoch', state_at - started_at))
  FROM headrace.job WHERE worker LIKE 'w_' GROUP BY 1, 2, 3, 4, 5, 6
"""

# Name, statement ($1 is the id of a job, $2 that of a model), mark in ms.
QUESTIONS = [
    ("one job by its id", "SELECT status, error_code, attempts FROM jobs WHERE id = $1", 0.15),
    ("newest 20 dead jobs of a model", "SELECT id, reason, error_message, worker, failed_at FROM dead_jobs "
     "WHERE model_id = $2 ORDER BY id DESC LIMIT 20", 0.5),
    ("what waits and runs, by pool", "SELECT pool, class, waiting, running FROM queue_depth", 2),
    ("by hour, the last day of a model", "SELECT hour, status, sum(jobs) FROM job_hours "
     "WHERE model_id = $2 AND hour > now() - interval '1 day' GROUP BY 1, 2", 20),
    ("p50 and p99 of the last hour", "SELECT percentile_cont('{0.5,0.99}'::float8[]) WITHIN GROUP (ORDER BY wait_seconds), "
     "percentile_cont('{0.5,0.99}'::float8[]) WITHIN GROUP (ORDER BY run_seconds) FROM job_times "
     "WHERE id >= id_at(now() - interval '1 hour')", 20),
]


def psql(stack, script):
    done = subprocess.run(["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", stack.url("postgres")], input=script, text=True,
                          capture_output=True)
    if done.returncode:
        sys.exit(f"bench/sql: {done.stderr}")
    return done.stdout


def fill(stack, jobs):
    begun = time.monotonic()
    step = 250_000
    head, insert = FILL.split("INSERT INTO job (", 1)
    values = {"jobs": jobs, "days": DAYS, "models": MODELS, "digest": "00" * 32}
    psql(stack, head.format(**values))
    for first in range(1, jobs + 1, step):
        psql(stack, "SET search_path = headrace; SET synchronous_commit = off; INSERT INTO job ("
             + insert.format(**values, first=first, last=min(jobs, first + step - 1)))
    psql(stack, COUNT)
    psql(stack, "VACUUM ANALYZE headrace.job")
    psql(stack, "VACUUM ANALYZE headrace.job_hour")
    return time.monotonic() - begun


# A prepared look at a job by its id costs little but for its plan (docs/sql.md).
HEAD = "SET ROLE headrace_reader; SET search_path = headrace_v1, pg_catalog; SET plan_cache_mode = force_generic_plan;\n" + "".join(
    f"PREPARE q{n} (uuid, text) AS {statement};\n" for n, (_, statement, _) in enumerate(QUESTIONS))


def cpu_ms(pid):
    return int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def ask(stack, number, ids, rounds):
    """Milliseconds of each time, as psql sees them, and of CPU each; the first eight, which plan and read from disk, are
    left out."""
    def executes(first, beyond):
        return "".join(f"EXECUTE q{number} ('{ids[i % len(ids)]}', 'm{i % MODELS}') \\g /dev/null\n" for i in range(first, beyond))

    def until_mark(process, script):
        process.stdin.write(script + "\\echo mark\n")
        process.stdin.flush()
        return list(iter(lambda: process.stdout.readline().strip(), "mark"))

    with subprocess.Popen(["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", stack.url("postgres")], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        (pid,) = until_mark(process, "SELECT pg_backend_pid();\n")
        until_mark(process, HEAD + executes(0, 8))
        before = cpu_ms(pid)
        out = until_mark(process, "\\timing on\n" + executes(8, rounds + 8))
        used = (cpu_ms(pid) - before) / rounds
        process.stdin.close()
    times = [float(line.split()[1]) for line in out if line.startswith("Time:")]
    assert len(times) == rounds, out[:5]
    return times, used


def submits(stack, options, seconds):
    host, port = stack.url("gateway").removeprefix("http://").split(":")
    done = subprocess.run(
        [pathlib.Path(options.binary).parent / "async_load", host, port, f"/model/{MODEL}/production/async_predict",
         stack.key, stack.url("kafka").removeprefix("kafka://"), "1", str(RATE * seconds), "16", str(RATE), "256"],
        capture_output=True, text=True)
    if not done.stdout:
        sys.exit(f"bench/sql: async_load: {done.stderr}")
    result = json.loads(done.stdout)
    if result["accepted"] != result["sent"]:
        sys.exit(f"bench/sql: submits were refused: {done.stderr}")
    return result["submit_p50_ms"], result["submit_p99_ms"]


class Loop:
    """The five, again and again, one after the other in one session, until it ends."""

    def __init__(self, stack, ids):
        script = "".join(f"EXECUTE q{n} ('{ids[n]}', 'm{n}') \\g /dev/null\n" for n in range(len(QUESTIONS)))
        self.process = subprocess.Popen(["psql", "-XqAt", stack.url("postgres")], stdin=subprocess.PIPE,
                                        stdout=subprocess.DEVNULL, text=True)
        self.feeder = subprocess.Popen(  # the pipe bounds how far it runs ahead
            [sys.executable, "-c", "import sys\nsys.stdout.write(sys.argv[1])\nwhile True: sys.stdout.write(sys.argv[2])",
             HEAD, script], stdout=self.process.stdin)
        self.process.stdin.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in (self.feeder, self.process):
            process.kill()
            process.wait()


def run(options, bench):
    from stack import Stack

    jobs = options.backlog if not options.small else min(options.backlog, 100_000)
    need, free = jobs * BYTES_A_JOB / 1e9, shutil.disk_usage("/tmp").free / 1e9
    print(f"{jobs:,} jobs need about {need + 1:.0f} GB of disk; {free:.0f} GB are free", file=sys.stderr)
    if need + 5 > free:
        sys.exit("bench/sql: that is too little")
    with Stack() as stack:
        stack.push_sim(MODEL, slots=64, test_mode=False)
        took = fill(stack, jobs)
        sizes = psql(stack, "SELECT pg_size_pretty(sum(pg_relation_size(p.relid))), "
                            "pg_size_pretty(sum(pg_indexes_size(p.relid))) FROM pg_partition_tree('headrace.job') p")
        print(f"filled in {took:.0f} s; table and indexes: {sizes.strip()}", file=sys.stderr)
        ids = psql(stack, "SELECT id FROM headrace.job TABLESAMPLE SYSTEM (0.1) LIMIT 200").split() or \
            psql(stack, "SELECT id FROM headrace.job LIMIT 200").split()
        times = {name: ask(stack, n, ids, 10 if mark >= 20 else 200) for n, (name, _, mark) in enumerate(QUESTIONS)}
        alone, asked = [], []
        if "questions" not in options.parts:
            submits(stack, options, 5)
        for _ in range(0 if "questions" in options.parts else options.rounds):
            alone.append(submits(stack, options, options.latency_seconds))
            with Loop(stack, ids):
                asked.append(submits(stack, options, options.latency_seconds))
    tell(options, jobs, times, alone, asked)


def tell(options, jobs, times, alone, asked):
    if options.json:
        print(json.dumps({"jobs": jobs, "ms": times, "alone": alone, "asked": asked}))
        return
    print(f"\n{jobs:,} jobs in {DAYS} days, {MODELS} models; load average at the end {os.getloadavg()[0]:.0f}\n")
    print("| question | CPU, ms | p50, ms | p99, ms | mark |\n| --- | ---: | ---: | ---: | ---: |")
    for name, _, mark in QUESTIONS:
        waited, used = times[name]
        print(f"| {name} | {used:.2f} | {statistics.median(waited):.2f} | {percentile(waited, 0.99):.2f} | ≤ {mark} |")
    if not alone:
        return
    p99 = [statistics.median(r[1] for r in rounds) for rounds in (alone, asked)]
    print(f"\nsubmits at {RATE}/s, median of {options.rounds} rounds: p99 {p99[0]:.2f} ms alone, {p99[1]:.2f} ms while the "
          f"five run in a loop, × {p99[1] / p99[0]:.2f} (mark ≤ 1.10); rounds "
          + ", ".join(f"{a[1]:.2f} → {b[1]:.2f}" for a, b in zip(alone, asked)))
