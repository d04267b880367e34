# SPDX-License-Identifier: Apache-2.0
"""Programs of a stack that dev does not run: a second gateway, three brokers, an agent that is
started and stopped at will.

    with Fleet(stack, tmp_path) as fleet:
        broker = fleet.start("broker", "b1", instance="b1", session="2s")
        broker.wait_log("shard_live")
        seconds = broker.stop()

Settings go by environment, so a keyword is a setting's name. Each program has a port of its own
unless it is told one, and a log file. Whatever still runs at the end is killed, group and all.
"""

import http.client
import json
import os
import pathlib
import select
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid

import msgpack
from stack import BINARY, die_with_parent, free_port, wait_until

STOP_SECONDS = 60


class Program:
    def __init__(self, role, name, log, settings):
        self.role, self.name, self.log = role, name, pathlib.Path(log)
        self.port = int(settings.setdefault("port", free_port()))
        self.env = {"PATH": os.environ["PATH"]}
        self.env |= {f"HEADRACE_{key.upper()}": str(value) for key, value in settings.items()}
        self.process = None

    def __repr__(self):
        return f"{self.role} {self.name}"

    def start(self):
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen([BINARY, self.role], env=self.env, stdin=subprocess.DEVNULL,
                                            stdout=out, stderr=out, preexec_fn=die_with_parent)
        return self

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def send(self, number):
        self.process.send_signal(number)

    def wait(self, seconds=STOP_SECONDS):
        return self.process.wait(timeout=seconds)

    def stop(self, number=signal.SIGTERM):
        """Sends the signal; returns how many seconds it took to end."""
        began = time.monotonic()
        self.send(number)
        self.wait()
        return time.monotonic() - began

    def restart(self, number=signal.SIGTERM):
        """The log goes on behind a mark: wait_log() looks only at what comes after."""
        self.stop(number)
        self.mark = self.log.stat().st_size
        return self.start()

    mark = 0

    def events(self, event=None):
        """Lines of the log, since the last restart, as dicts."""
        found = []
        if not self.log.exists():
            return found
        with open(self.log, "rb") as log:
            log.seek(self.mark)
            for line in log.read().decode(errors="replace").splitlines():
                try:
                    fields = json.loads(line)
                except ValueError:
                    continue
                if event is None or fields.get("event") == event:
                    found.append(fields)
        return found

    def wait_log(self, event, count=1, seconds=60):
        return wait_until(f"{self} to log {event}", lambda: self._ask(event, count), seconds)

    def _ask(self, event, count):
        found = self.events(event)
        assert self.is_running() or len(found) >= count, f"{self} has ended:\n{self.tell()}"
        return found if len(found) >= count else None

    def get(self, path):
        """Status and text; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def wait_ready(self, seconds=60):
        wait_until(f"{self} to be ready", lambda: self._is_ready(), seconds)
        return self

    def _is_ready(self):
        assert self.is_running(), f"{self} has ended:\n{self.tell()}"
        return self.get("/readyz")[0] == 200

    def tell(self, lines=25):
        text = self.log.read_text(errors="replace").splitlines()[-lines:] if self.log.exists() else []
        return "\n".join([f"--- {self.log.name}"] + text)


class Fleet:
    def __init__(self, stack, directory):
        self.stack, self.directory, self.programs = stack, pathlib.Path(directory), []

    def start(self, role, name, **settings):
        common = {service: self.stack.url(service) for service in ("kafka", "redis", "postgres")}
        common |= {"blobs": f"{self.stack.data_dir}/blobs", "seal_key_file": f"{self.stack.data_dir}/seal.key",
                   "agent_dir": f"{self.directory}/{name}"}
        program = Program(role, name, self.directory / f"{name}.log", common | settings)
        self.programs.append(program)
        return program.start()

    def shards_of(self, broker):
        """Shards that this broker dispatches, by its own word."""
        text = broker.get("/metrics")[1]
        return {int(line.split('shard="')[1].split('"')[0]) for line in text.splitlines()
                if line.startswith("headrace_broker_shard_live{") and line.endswith(" 1")}

    def tell(self):
        return "\n".join(program.tell() for program in self.programs)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None:
            print(self.tell())
        running = [program for program in self.programs if program.is_running()]
        for program in running:
            program.send(signal.SIGCONT)
            program.send(signal.SIGTERM)
        for program in running:
            try:
                program.wait(10)
            except subprocess.TimeoutExpired:
                program.process.kill()
                program.wait()


# --- load -----------------------------------------------------------------------------------------


def is_stale(connection):
    """What client libraries look at before they use a kept connection again: the other side has
    closed it, or has said something that nobody asked for."""
    if connection.sock is None:
        return False
    readable, _, _ = select.select([connection.sock], [], [], 0)
    return bool(readable)


class Client:
    """One kept-alive connection after the other, as a usual library does it. No request is sent
    twice: whatever fails is an error that a user would see."""

    def __init__(self, port, key, context=None):
        self.port, self.key, self.context, self.connection = port, key, context, None

    def _connect(self):
        if self.context is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        return http.client.HTTPSConnection("localhost", self.port, timeout=60, context=self.context)

    def request(self, method, path, body=None):
        """(status, body; parsed where it is JSON)"""
        if self.connection is None or is_stale(self.connection):
            self.close()
            self.connection = self._connect()
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        try:
            self.connection.request(method, path, None if body is None else json.dumps(body), headers)
            reply = self.connection.getresponse()
            text = reply.read()
        except BaseException:
            self.close()
            raise
        is_json = "json" in reply.headers.get("Content-Type", "")
        return reply.status, json.loads(text) if is_json else text.decode()

    def close(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None


class Load:
    """Submits from a few threads, each with a kept-alive connection, at a steady pace; keeps the ids
    that were answered 201, and every other answer or error."""

    def __init__(self, port, key, bodies, thread_count=4, pause=0.02):
        """bodies: (path, body) pairs, taken in turn."""
        self.port, self.key, self.bodies, self.pause = port, key, bodies, pause
        self.accepted, self.errors = [], []
        self.stopping, self.lock = threading.Event(), threading.Lock()
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in range(thread_count)]
        for thread in self.threads:
            thread.start()

    def _run(self, number):
        client, at = Client(self.port, self.key), number
        while not self.stopping.wait(self.pause):
            path, body = self.bodies[at % len(self.bodies)]
            at += 1
            began = time.monotonic()
            try:
                status, answer = client.request("POST", path, body)
                error = None if status == 201 else f"{status} {answer}"
            except (OSError, http.client.HTTPException, ValueError) as failure:
                error = repr(failure)
            with self.lock:
                if error is None:
                    self.accepted.append(answer["request_id"])
                else:
                    self.errors.append(f"{error} after {time.monotonic() - began:.3f} s")
        client.close()

    def wait_more(self, count, seconds=60):
        """That many more are accepted from now on."""
        goal = len(self.accepted) + count
        wait_until(f"{count} more jobs to be accepted", lambda: len(self.accepted) >= goal, seconds)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        return self.accepted


# --- what must hold of accepted jobs ------------------------------------------------------------------


def check_accepted(stack, ids, seconds=90):
    """Each ended once, SUCCEEDED, with one result, published at least once and never in two versions.
    Returns how many copies were published beyond the first."""
    wanted = "ARRAY['" + "','".join(ids) + "']::uuid[]"
    assert len(set(ids)) == len(ids)

    def unfinished():
        rows = stack.sql(f"SELECT id FROM headrace.job WHERE id = ANY ({wanted}) AND state = 3")
        return set(ids) - {row[0] for row in rows}

    wait_until(f"{len(ids)} accepted jobs to succeed", lambda: not unfinished(), seconds, 0.2)
    ((rows, jobs),) = stack.sql(f"""SELECT count(*), count(DISTINCT job_id) FROM headrace.job_result
                                    WHERE job_id = ANY ({wanted})""")
    assert rows == jobs == str(len(ids))

    def published():
        versions, copies, names = {}, 0, set(ids)
        for record in stack.consume("completed"):
            _, _, fields = msgpack.unpackb(record.value, strict_map_key=False)
            name = str(uuid.UUID(bytes=fields[1]))
            if name in names:
                versions.setdefault(name, set()).add(record.value)
                copies += 1
        return (versions, copies) if len(versions) == len(ids) else None

    versions, copies = wait_until("all to be published", published, 30, 0.2)
    assert all(len(different) == 1 for different in versions.values())
    return copies - len(ids)
