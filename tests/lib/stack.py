# SPDX-License-Identifier: Apache-2.0
"""A real stack for tests: `headrace dev` in a directory of its own, and handles on its parts.

    def test_something(stack):
        job = stack.submit("sim", {"seconds": 0.1})
        stack.kill("worker")
        assert stack.wait_final(job)["status"] == "SUCCEEDED"

Nothing here sleeps for something to happen: wait_until() asks again until it is true or the
time is over, and then says what it waited for. Every process that a Stack starts ends with it,
also when the test run is killed: the kernel tells dev, and dev's children die with dev.
"""

import ctypes
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("HEADRACE_BIN", str(ROOT / "build/dev/bin/headrace"))
TOOLS = pathlib.Path(BINARY).parent
START_SECONDS = 90
STOP_SECONDS = 60
ANSWER_SECONDS = 10
PR_SET_PDEATHSIG = 1


def wait_until(what, ask, seconds=20.0, step=0.02):
    """Returns the first true answer of ask(); fails with `what` when the time is over."""
    end = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s for {what}; last answer: {answer!r}")
        time.sleep(step)


def free_port():
    """One below the range of outgoing connections: nobody takes it before the program binds it."""
    end = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", random.randrange(16384, end)))
            except OSError:
                continue
            return probe.getsockname()[1]


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Reply:
    """An HTTP answer: status, headers (lower case), body in bytes and, where it is JSON, parsed."""

    def __init__(self, status, headers, body):
        self.status = status
        self.headers = {name.lower(): value for name, value in headers}
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"Reply({self.status}, {self.body[:300]!r})"


class Record:
    """One Kafka record."""

    def __init__(self, partition, offset, time_ms, key, value):
        self.partition, self.offset, self.time_ms = partition, offset, time_ms
        self.key, self.value = key, value

    def __repr__(self):
        return f"Record({self.partition}@{self.offset}, {len(self.value)} bytes)"


class Stack:
    def __init__(self, only="", on_death="keep", env=None, args=(), data_dir=None, trainer=False):
        self.only, self.on_death, self.env, self.args = only, on_death, env or {}, list(args)
        if not trainer:
            self.args += ["--without", "trainer"]  # few tests train
        self.owns_dir = data_dir is None
        self.data_dir = pathlib.Path(data_dir or tempfile.mkdtemp(prefix="headrace-test-"))
        self.process = None
        self.output = self.data_dir / "dev.out"

    # --- dev itself -----------------------------------------------------------------------

    def start(self):
        command = [BINARY, "dev", "--json", "--data", str(self.data_dir)]
        command += ["--on-death", self.on_death] + (["--only", self.only] if self.only else [])
        env = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_") or k == "HEADRACE_DEPS"}
        if "HEADRACE_TEST_HOST_NICE" in os.environ:  # tests run side by side, and must not wait for a free processor
            env["HEADRACE_HOST_NICE"] = os.environ["HEADRACE_TEST_HOST_NICE"]
        env.update({k: str(v) for k, v in self.env.items()})
        self.data_dir.mkdir(exist_ok=True)
        with open(self.output, "ab") as out:
            self.process = subprocess.Popen(
                command + self.args, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env,
                cwd=ROOT, preexec_fn=die_with_parent)
        wait_until("headrace dev to be ready", self._is_ready, START_SECONDS)
        return self

    def _is_ready(self):
        if self.process.poll() is not None:
            raise AssertionError(f"headrace dev ended with {self.process.returncode}:\n{self.tell()}")
        state = self._ask("status")
        return state is not None and state["ready"]

    def stop(self):
        """Ctrl-C. Returns the exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self._reap()

    def kill_dev(self):
        """kill -9 of dev, which takes all of its children along."""
        pids = [s["pid"] for s in self.services().values() if s["pid"]]
        self.process.kill()
        code = self._reap()
        wait_until("dev's children to end", lambda: not any(is_running(pid) for pid in pids))
        return code

    def _reap(self):
        code = self.process.wait(timeout=STOP_SECONDS)
        self.process = None
        return code

    def close(self, failed=False):
        try:
            if self.process is not None:
                self.stop()
        finally:
            if self.process is not None:
                self.process.kill()
            if failed:
                print(self.tell())
            if self.owns_dir and not os.environ.get("HEADRACE_KEEP"):
                shutil.rmtree(self.data_dir, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, error, trace):
        self.close(failed=kind is not None)

    def tell(self, lines=25):
        """The ends of dev's output and of every log, for a failed test."""
        out = []
        for path in [self.output] + sorted(self.data_dir.glob("logs/*.log")):
            text = path.read_text(errors="replace").splitlines()[-lines:] if path.exists() else []
            out += [f"--- {path.name}"] + text
        return "\n".join(out)

    # --- services -------------------------------------------------------------------------

    def _ask(self, request):
        directory = None
        try:
            # A socket's path may have 107 bytes; the directory's descriptor makes it short.
            directory = os.open(self.data_dir, os.O_PATH)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(f"/proc/self/fd/{directory}/dev.sock")
                client.sendall(request.encode() + b"\n")
                parts = iter(lambda: client.recv(65536), b"")
                return json.loads(b"".join(parts))
        except (OSError, ValueError):
            return None
        finally:
            if directory is not None:
                os.close(directory)

    def _order(self, request):
        answer = self._ask(request)
        assert answer is not None and "error" not in answer, f"{request}: {answer}"

    def _state(self):
        """What dev says; many threads of a test may ask at once, and dev answers one by one."""
        end = time.monotonic() + ANSWER_SECONDS
        while (state := self._ask("status")) is None:
            assert time.monotonic() < end, f"dev does not answer:\n{self.tell()}"
            time.sleep(0.05)
        return state

    def services(self):
        return self._state()["services"]

    def url(self, name):
        return self.services()[name]["url"]

    @property
    def key(self):
        return self._state()["key"]

    def wait_state(self, name, state, seconds=30):
        wait_until(f"{name} to be {state}", lambda: self.services()[name]["state"] == state, seconds)

    def stop_service(self, name):
        self._order(f"stop {name}")
        self.wait_state(name, "down")

    def kill_service(self, name):
        """SIGKILL, and dev knows that it was asked for."""
        self._order(f"kill {name}")
        self.wait_state(name, "down")

    def start_service(self, name):
        self._order(f"start {name}")
        self.wait_state(name, "ready", START_SECONDS)

    def restart_service(self, name, kill=False):
        (self.kill_service if kill else self.stop_service)(name)
        self.start_service(name)

    def pids(self, subcommand):
        """Every process of this stack that runs `headrace SUBCOMMAND`: also the agent's workers
        and their engine hosts, which dev does not know by name."""
        mine = descendants(self.process.pid)
        found = []
        for pid in mine:
            line = command_line(pid)
            if len(line) > 1 and os.path.basename(line[0]) == "headrace" and line[1] == subcommand:
                found.append(pid)
        return found

    def kill(self, subcommand, signal_number=signal.SIGKILL):
        """Sends a signal to every process of that subcommand; returns their pids."""
        pids = self.pids(subcommand)
        assert pids, f"no process runs headrace {subcommand}"
        for pid in pids:
            os.kill(pid, signal_number)
        return pids

    # --- the three servers ------------------------------------------------------------------

    def sql(self, query, *args):
        """Rows as lists of text; NULL is None. Arguments replace :'a1', :'a2', … safely quoted."""
        command = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-F", "\x1f",
                   "-R", "\x1e", "-P", "null=\x1d", self.url("postgres")]
        for i, value in enumerate(args, 1):
            command += ["-v", f"a{i}={value}"]
        done = subprocess.run(command, input=query.encode(), capture_output=True, timeout=60)
        assert done.returncode == 0, f"{query}: {done.stderr.decode()}"
        text = done.stdout.decode().rstrip("\n")
        rows = [row.split("\x1f") for row in text.split("\x1e")] if text else []
        return [[None if cell == "\x1d" else cell for cell in row] for row in rows]

    def redis(self, *words):
        done = subprocess.run(["redis-cli", "-u", self.url("redis"), *map(str, words)],
                              capture_output=True, timeout=30)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().rstrip("\n")

    def produce(self, topic, values, partition=0):
        done = subprocess.run(
            ["kcat", "-P", "-q", "-b", self.url("kafka"), "-t", topic, "-p", str(partition),
             "-X", "acks=all", "-D", "\x1e"], input="\x1e".join(values).encode(),
            capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()

    def consume(self, topic, partition=None, offset="beginning"):
        """Every record up to the end as of now."""
        command = ["kcat", "-C", "-q", "-e", "-u", "-b", self.url("kafka"), "-t", topic,
                   "-o", str(offset), "-f", "%p %o %T %K %S\n%k%s"]
        command += [] if partition is None else ["-p", str(partition)]
        done = subprocess.run(command, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return list(parse_records(done.stdout))

    # --- HTTP --------------------------------------------------------------------------------

    def http(self, method, path, body=None, headers=None, key="", timeout=60):
        """key: None sends none; "" sends the stack's own."""
        request = urllib.request.Request(self.url("gateway") + path, method=method)
        if body is not None:
            request.data = body if isinstance(body, bytes) else json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if key is not None:
            request.add_header("Authorization", f"Bearer {key or self.key}")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return Reply(reply.status, reply.getheaders(), reply.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.headers.items(), error.read())

    def cli(self, *words, input=None, check=True, timeout=120):
        """A user verb against this stack, as a second shell would run it."""
        key = [] if "--api-key" in words else ["--api-key", self.key]
        done = subprocess.run([BINARY, *map(str, words), "--url", self.url("gateway"), *key], input=input,
                              capture_output=True, timeout=timeout, text=True)
        assert not check or done.returncode == 0, f"headrace {words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def push(self, directory, name, wait=True):
        """Deploys a model directory and, unless told not to, waits until it is ready."""
        return self.cli("push", directory, "--name", name, *([] if wait else ["--no-wait"]), "--json")

    def submit(self, model, model_input, environment="production", headers=None, **fields):
        """An async predict; returns its request id. Anything but 201 fails."""
        reply = self.http("POST", f"/model/{model}/{environment}/async_predict",
                          {"model_input": model_input, **fields}, headers)
        assert reply.status == 201, reply
        return reply.json["request_id"]

    def push_sim_rows(self, name, slots=4, replicas=1, shard=0, **config):
        """Makes a model of the simulated engine. config: settings of the engine
        (workers/engines/sim/sim_config.c); requests may carry orders by default."""
        config = json.dumps({"test_mode": True, **config})
        self.sql("""
            INSERT INTO headrace.model (id, tenant, name, deployment_count)
                VALUES (:'a1', 'default', :'a1', 1);
            INSERT INTO headrace.deployment (id, model_id, name, number, pool, shard, engine, config,
                    slot_count, replicas_min, replicas_max, replicas_wanted)
                VALUES (:'a1', :'a1', 'deployment-1', 1, :'a1', :a5, 'sim', :'a2', :a3, :a4, :a4, :a4);
            INSERT INTO headrace.environment (model_id, name) VALUES (:'a1', 'production');
            INSERT INTO headrace.environment_target (model_id, environment, deployment_id)
                VALUES (:'a1', 'production', :'a1');
            """, name, config, slots, replicas, shard)

    def push_sim(self, name, seconds=30, **options):
        """push_sim_rows(), and waits until a worker serves it."""
        self.push_sim_rows(name, **options)
        self.wait_active(name, seconds)

    def wait_active(self, name, seconds=30):
        def ask():
            ((status, reason),) = self.sql(
                "SELECT status, status_reason FROM headrace.deployment WHERE id = :'a1'", name)
            assert status not in ("FAILED", "DEPLOY_FAILED"), f"{name}: {status}: {reason}"
            return status == "ACTIVE"

        wait_until(f"deployment {name} to be ACTIVE", ask, seconds)

    def job(self, request_id):
        reply = self.http("GET", f"/async_request/{request_id}")
        assert reply.status == 200, reply
        return reply.json

    def result(self, request_id):
        return self.http("GET", f"/async_request/{request_id}/result")

    def cancel(self, request_id):
        return self.http("DELETE", f"/async_request/{request_id}")

    def wait_final(self, request_id, seconds=60):
        final = ("SUCCEEDED", "FAILED", "EXPIRED", "CANCELED", "WEBHOOK_FAILED")

        def ask():
            job = self.job(request_id)
            return job if job["status"] in final else None

        return wait_until(f"job {request_id} to end", ask, seconds)


def parse_records(data):
    at = 0
    while at < len(data):
        end = data.index(b"\n", at)
        partition, offset, time_ms, key_size, value_size = map(int, data[at:end].split())
        at = end + 1
        key = data[at:at + key_size] if key_size >= 0 else None
        at += max(key_size, 0)
        value = data[at:at + value_size] if value_size >= 0 else None
        at += max(value_size, 0)
        yield Record(partition, offset, time_ms, key, value)


def command_line(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def is_running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(pid):
    """Every process below pid, found by one pass over /proc."""
    children = {}
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found
