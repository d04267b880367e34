# SPDX-License-Identifier: Apache-2.0
"""`bench/run bulk`: a file of a million requests, from the upload to the last line of its output. PERFORMANCE row 7.

A file of 330 bytes a line goes up by curl, becomes a batch, and is run by the `sim` engine at zero service time.
Taken are: the upload's answer (the file is durable), the end of validation (every line was looked at, chunks are
rows), the end. Memory (RSS) of each program is sampled meanwhile. Custody: the output has every line once, in order.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

MODEL = "bulk"
ENV = {"HEADRACE_BULK_LINES_MAX": "20000000", "HEADRACE_FILE_MAX": "20GB"}
LINE_SIZE = 330


def write_lines(path, count):
    with open(path, "w") as out:
        for n in range(count):
            text = ('{"custom_id":"request-%d","method":"POST","url":"/v1/embeddings","body":{"model":"%s","input":"' % (n, MODEL))
            out.write(text + "x" * (LINE_SIZE - len(text) - 4) + '"}}\n')


def rss_mb(pids):
    total = 0
    for pid in pids:
        try:
            fields = pathlib.Path(f"/proc/{pid}/statm").read_text().split()
        except OSError:
            continue
        total += int(fields[1]) * 4096
    return total / (1 << 20)


class Sampler(threading.Thread):
    """The highest RSS of each of our programs, against that at the start."""

    def __init__(self, programs):
        super().__init__(daemon=True)
        self.programs = {name: pids for name, pids in programs.items() if name not in ("kafka", "postgres", "redis")}
        self.first = {name: rss_mb(pids) for name, pids in self.programs.items()}
        self.high, self.over = dict(self.first), threading.Event()

    def run(self):
        while not self.over.wait(0.25):
            for name, pids in self.programs.items():
                self.high[name] = max(self.high[name], rss_mb(pids))


def upload(stack, path):
    done = subprocess.run(["curl", "-sS", "-F", "purpose=batch", "-F", f"file=@{path};filename=lines.jsonl",
                           "-H", f"Authorization: Bearer {stack.key}", stack.url("gateway") + "/v1/files"],
                          capture_output=True, text=True)
    if done.returncode != 0 or '"file-' not in done.stdout:
        sys.exit(f"bench/bulk: upload: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)["id"]


def custody(stack, batch, count, folder):
    """Every line once, in order."""
    path = folder / "output.jsonl"
    with open(path, "wb") as out:
        subprocess.run(["curl", "-sS", "-H", f"Authorization: Bearer {stack.key}",
                        stack.url("gateway") + f"/v1/files/{batch['output_file_id']}/content"], stdout=out, check=True)
    n = 0
    with open(path, "rb") as lines:
        for line in lines:
            if b'"custom_id":"request-%d"' % n not in line:
                sys.exit(f"bench/bulk: line {n} of the output is {line[:200]}")
            n += 1
    path.unlink()
    if n != count or batch["request_counts"] != {"total": count, "completed": count, "failed": 0}:
        sys.exit(f"bench/bulk: {n} lines in the output, {batch['request_counts']}")


def one_round(stack, bench, path, count, folder):
    meter = bench.Meter(stack)
    sampler = Sampler(meter.programs)
    sampler.start()
    begun = time.monotonic()
    file = upload(stack, path)
    uploaded = time.monotonic() - begun
    asked = {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    id = stack.http("POST", "/v1/batches", asked).json["id"]
    validated = None
    while True:
        batch = stack.http("GET", f"/v1/batches/{id}").json
        if validated is None and batch["status"] != "validating":
            validated = time.monotonic() - begun
        if batch["status"] in ("completed", "failed", "expired"):
            break
        time.sleep(0.05)
    seconds = time.monotonic() - begun
    sampler.over.set()
    used, machine = meter.read()
    if batch["status"] != "completed":
        sys.exit(f"bench/bulk: {batch}\n{stack.tell(5)}")
    custody(stack, batch, count, folder)
    return {"uploaded_s": uploaded, "validated_s": validated, "seconds": seconds, "lines": count,
            "cpu_us": {name: value / count for name, value in used.items()},
            "strangers_percent": 100 * max(0, machine - sum(used.values())) / max(1, machine),
            "rss_first_mb": sampler.first, "rss_growth_mb": {n: sampler.high[n] - sampler.first[n] for n in sampler.first}}


def report(rounds, bench):
    def row(name, key):
        print(f"| {name} | {bench.spread([key(r) for r in rounds])} |")

    print(f"\n| {len(rounds)} rounds of {rounds[0]['lines']:,} lines of {LINE_SIZE} B | median (range) |\n| --- | ---: |")
    row("uploaded, s", lambda r: r["uploaded_s"])
    row("validated: every line looked at, chunks in SQL, s", lambda r: r["validated_s"])
    row("completed, s", lambda r: r["seconds"])
    row("lines/s, from the upload to the end", lambda r: r["lines"] / r["seconds"])
    row("CPU used by strangers, %", lambda r: r["strangers_percent"])
    print("\n| program | core-µs a line | RSS at the start, MB | growth, MB |\n| --- | ---: | ---: | ---: |")
    last = rounds[-1]
    for name in sorted(last["cpu_us"], key=lambda n: -last["cpu_us"][n]):
        first, growth = last["rss_first_mb"].get(name), last["rss_growth_mb"].get(name)
        cells = "– | –" if first is None else f"{first:.1f} | {growth:.1f}"
        print(f"| {name} | {statistics.median(r['cpu_us'].get(name, 0) for r in rounds):.1f} | {cells} |")


def run(options, bench):
    from stack import Stack

    with tempfile.TemporaryDirectory(prefix="headrace-bulk-") as name, Stack(env=ENV) as stack:
        folder = pathlib.Path(name)
        stack.push_sim(MODEL, slots=options.slots, test_mode=False)
        write_lines(folder / "warm", min(50_000, options.lines))
        write_lines(folder / "lines", options.lines)
        one_round(stack, bench, folder / "warm", min(50_000, options.lines), folder)
        rounds = []
        for _ in range(options.rounds):
            rounds.append(one_round(stack, bench, folder / "lines", options.lines, folder))
            print(f"round: {rounds[-1]['seconds']:.1f} s", file=sys.stderr)
        if options.json:
            print(json.dumps(rounds))
        else:
            report(rounds, bench)
