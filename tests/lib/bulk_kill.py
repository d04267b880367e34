# SPDX-License-Identifier: Apache-2.0
"""A bulk job under kill -9 of every program and server, and what is counted afterwards.

The `sim` engine writes a line in a journal for each call (HEADRACE_SIM_JOURNAL), which the ledger knows nothing of:
at each kill we note which lines have their output, and where the journal ends; no call behind that place may be of
such a line. Used by tests/stack/test_bulk.py on a small job, and by `bench/run bulk-kills` on a million lines."""

import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time

from stack import command_line, descendants, wait_until

SERVICES = ("ingest", "broker", "gateway", "postgres", "redis", "kafka")
VICTIMS = (*SERVICES, "worker", "worker's host")
OVER = ("completed", "failed", "expired", "cancelled")
NUMBER = re.compile(rb'"number":\s*(\d+)')
LEASE = {"HEADRACE_RESTART_DELAY": "50ms", "HEADRACE_BULK_LEASE": "2s"}


def write_lines(path, model, count, padding=0):
    with open(path, "w", encoding="utf-8") as out:
        for n in range(count):
            out.write('{"custom_id":"line-%d","method":"POST","url":"/v1/embeddings","body":{"model":"%s","number":%d,"input":"%s"}}\n'
                      % (n, model, n, "x" * padding))


def curl(stack, *words, to=None):
    """Of a file that is too large for memory."""
    command = ["curl", "-sS", "-f", "-H", f"Authorization: Bearer {stack.key}", *map(str, words)]
    if to is not None:
        command += ["-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def begin(stack, path):
    url = stack.url("gateway")
    file = json.loads(curl(stack, "-F", "purpose=batch", "-F", f"file=@{path};filename=lines.jsonl", url + "/v1/files"))["id"]
    reply = stack.http("POST", "/v1/batches", {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"})
    assert reply.status == 200, reply
    return reply.json["id"]


# ---- kills ----


def pids_of(stack, victim, model):
    workers = [pid for pid in stack.pids("worker") if f"--model={model}" in command_line(pid)]
    if victim == "worker":
        return workers
    return [child for pid in workers for child in descendants(pid) if "host-c" in command_line(child)]


def kill_one(stack, victim, model):
    if victim in SERVICES:
        stack.kill_service(victim)
        stack.start_service(victim)
        return
    pid = wait_until(f"a {victim} to be there", lambda: pids_of(stack, victim, model))[0]
    os.kill(pid, signal.SIGKILL)
    wait_until(f"another {victim}", lambda: [p for p in pids_of(stack, victim, model) if p != pid], 60)


# ---- what is there ----


def written(stack, id):
    """Lines of the bulk job that have their output; asks SQL, since the gateway may be the one that dies next."""
    ((count,),) = stack.sql("SELECT completed FROM headrace.bulk WHERE id = :'a1'", id.removeprefix("batch_"))
    return int(count)


def read_output(stack, id, folder):
    """What can be read while it runs: its first lines, in order. How many."""
    path = pathlib.Path(folder) / "part.jsonl"
    curl(stack, stack.url("gateway") + f"/v1/batches/{id}/output", to=path)
    count = 0
    with open(path, "rb") as lines:
        for line in lines:
            assert b'"custom_id":"line-%d"' % count in line, f"line {count} of the output so far: {line[:200]}"
            count += 1
    path.unlink()
    return count


class Growth(threading.Thread):
    """Highest RSS of each program in each fifth of the bulk job, by pid of its eldest process: a new life is a new one."""

    PROGRAMS = ("gateway", "ingest", "broker", "worker")

    def __init__(self, stack):
        super().__init__(daemon=True)
        self.stack, self.over, self.samples = stack, threading.Event(), {}
        self.begun = time.monotonic()

    def run(self):
        while not self.over.wait(0.5):
            for program in self.PROGRAMS:
                for pid in self.stack.pids(program):
                    try:
                        pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
                    except (OSError, IndexError):
                        continue
                    self.samples.setdefault((program, pid), []).append((time.monotonic() - self.begun, pages / 256))

    def growth_mb(self):
        """By program: how much the highest sample of a life is above that of its first second."""
        grown = {}
        for (program, _), samples in self.samples.items():
            first = max(mb for at, mb in samples if at <= samples[0][0] + 1)
            high = max(mb for _, mb in samples)
            grown[program] = max(grown.get(program, 0), high - first)
        return grown


# ---- a job ----


def run(stack, model, id, count, kills, journal, folder, seconds=600):
    """kills: [(victim, share of the lines that have their output), …]. What was seen at each."""
    seen, half = [], None
    for victim, share in sorted(kills, key=lambda kill: kill[1]):
        if half is None and share > 0.5:
            wait_until("half of the output", lambda: written(stack, id) >= 0.5 * count, seconds, 0.05)
            half = read_output(stack, id, folder)
            assert half > 0, "nothing of the output can be read at 50 %"
        wait_until(f"{share:.0%} of the output", lambda s=share: written(stack, id) >= s * count, seconds, 0.02)
        there = read_output(stack, id, folder)
        at, began = os.path.getsize(journal), time.monotonic()
        kill_one(stack, victim, model)
        print(f"{victim} at {share:.0%}: {there} lines written, killed and there again in {time.monotonic() - began:.1f} s")
        seen.append({"victim": victim, "share": share, "written": there, "journal": at})
    wait_until("the bulk job to be over",
               lambda: stack.sql("SELECT status FROM headrace.bulk WHERE id = :'a1'", id.removeprefix("batch_"))[0][0] in OVER,
               seconds, 0.1)
    return seen, half


def calls_of(journal, seen):
    """Each number as often as it was called; none behind a kill whose output was there."""
    counts, at, marks = {}, 0, sorted(seen, key=lambda one: one["journal"])
    with open(journal, "rb") as lines:
        for line in lines:
            found = NUMBER.search(line)
            if found is None:
                continue  # cut by a kill
            number = int(found.group(1))
            counts[number] = counts.get(number, 0) + 1
            for mark in marks:
                assert at < mark["journal"] or number >= mark["written"], (
                    f"line {number} was run again after the kill of {mark['victim']} at {mark['share']:.0%}, "
                    f"when {mark['written']} lines had their output")
            at += len(line)
    return counts


def check(stack, id, count, seen, journal, folder, slots):
    batch = stack.http("GET", f"/v1/batches/{id}").json
    assert batch["status"] == "completed", batch
    assert batch["request_counts"] == {"total": count, "completed": count, "failed": 0}, batch
    assert batch["error_file_id"] is None, batch
    path = pathlib.Path(folder) / "output.jsonl"
    curl(stack, stack.url("gateway") + f"/v1/files/{batch['output_file_id']}/content", to=path)
    with open(path, "rb") as lines:
        number = 0
        for line in lines:
            assert b'"custom_id":"line-%d"' % number in line, f"line {number} of the output is {line[:200]}"
            number += 1
    assert number == count, f"{number} lines in the output of {count}"
    path.unlink()
    counts = calls_of(journal, seen)
    assert len(counts) == count, f"{len(counts)} lines were called of {count}"
    again = sum(counts.values()) - count
    assert again <= slots * len(seen), f"{again} calls more than lines, after {len(seen)} kills under {slots} slots"
    return {"lines": count, "calls": sum(counts.values()), "again": again}
