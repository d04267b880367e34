# SPDX-License-Identifier: Apache-2.0
"""Goal: what was answered 201 ends in exactly one final state and one published result, whatever
is killed or restarted meanwhile. Method: jobs in flight on a real stack, one victim at a time by
SIGKILL; then the ledger, the dump of `completed` and the counters of the broker are compared. The
counts are printed: pytest -s."""

import collections
import concurrent.futures
import os
import pathlib
import re
import signal
import subprocess
import threading
import urllib.error
import urllib.request

import msgpack
import pytest

from stack import BINARY, is_running, wait_until

JOBS = 120
SERVICE_MS = 40
PACE_SECONDS = 0.03  # between two submits of a thread: together well under what the workers can run
FINAL_SECONDS = 90
TAKEOVER_SECONDS = 8
SUCCEEDED = 3


@pytest.fixture(scope="module")
def platform(stack):
    stack.push_sim("sim", slots=4, replicas=2, service_ms=SERVICE_MS)
    return stack


# --- load ------------------------------------------------------------------------------------


class Load:
    """Submits from a few threads until told to stop; keeps the ids that were answered 201."""

    def __init__(self, stack, thread_count=4):
        self.stack, self.accepted, self.unpromised = stack, [], 0
        self.stopping, self.lock = threading.Event(), threading.Lock()
        self.threads = [threading.Thread(target=self._run) for _ in range(thread_count)]
        for thread in self.threads:
            thread.start()

    def _run(self):
        while not self.stopping.is_set():
            try:
                reply = self.stack.http("POST", "/model/sim/production/async_predict",
                                        {"model_input": {"text": "x" * 100}}, timeout=20)
                request_id = reply.json["request_id"] if reply.status == 201 else None
            except (OSError, ValueError, KeyError):
                request_id = None  # the gateway is gone: nothing was promised
            with self.lock:
                if request_id:
                    self.accepted.append(request_id)
                else:
                    self.unpromised += 1
            # Unpaced, a broker that is stopped for seconds leaves thousands of jobs to wait for.
            self.stopping.wait(PACE_SECONDS if request_id else 0.05)

    def wait_accepted(self, count):
        wait_until(f"{count} jobs to be accepted", lambda: len(self.accepted) >= count, FINAL_SECONDS)

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        return self.accepted


def metric(stack, name, service="broker"):
    try:
        with urllib.request.urlopen(stack.url(service) + "/metrics", timeout=10) as reply:
            text = reply.read().decode()
    except (OSError, urllib.error.URLError):
        return 0
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                   if re.match(rf"{name}(\{{|\s)", line)))


# --- what must hold -----------------------------------------------------------------------------


def ids_sql(ids):
    return "ARRAY['" + "','".join(ids) + "']::uuid[]"


def unfinished(stack, ids):
    """Accepted ids that are not SUCCEEDED in the ledger."""
    rows = stack.sql(f"SELECT id FROM headrace.job WHERE id = ANY ({ids_sql(ids)}) AND state = {SUCCEEDED}")
    return set(ids) - {row[0] for row in rows}


def published(stack, ids):
    """Records of `completed` by (id, round): the set of different contents, and how many copies."""
    wanted, contents, copies = set(ids), collections.defaultdict(set), collections.Counter()
    for record in stack.consume("completed"):
        _, _, fields = msgpack.unpackb(record.value, strict_map_key=False)
        request_id = str(__import__("uuid").UUID(bytes=fields[1]))
        if request_id in wanted:
            contents[request_id, fields[2]].add(record.value)
            copies[request_id, fields[2]] += 1
    return contents, copies


def check_all(stack, ids, what, in_flight=0):
    """Every accepted job: one final state, one result, published at least once, never two contents."""
    wait_until(f"{len(ids)} accepted jobs to succeed", lambda: not unfinished(stack, ids), FINAL_SECONDS, 0.2)
    wait_until("all to be published", lambda: len(published(stack, ids)[0]) == len(ids), 30, 0.2)
    contents, copies = published(stack, ids)
    doubly = [key for key, different in contents.items() if len(different) > 1]
    results = stack.sql(f"""SELECT count(*), count(DISTINCT job_id) FROM headrace.job_result
                            WHERE job_id = ANY ({ids_sql(ids)})""")[0]
    print(f"\n{what}: accepted {len(ids)}, in flight {in_flight}, "
          f"fenced {metric(stack, 'headrace_broker_attempts_fenced_total')}, "
          f"run again {sum(int(r[0]) for r in stack.sql(f'SELECT attempt_count - 1 FROM headrace.job WHERE id = ANY ({ids_sql(ids)})'))}, "
          f"equal copies {sum(copies.values()) - len(copies)}, "
          f"lost {len(ids) - len(contents)}, doubly published {len(doubly)}")
    assert not doubly, doubly
    assert results == [str(len(ids))] * 2


def in_flight(stack):
    return metric(stack, "headrace_broker_jobs_running")


def disturbed(stack, what, disturb):
    """Load, a disturbance in the middle of it, load again, and everything must have ended well."""
    load = Load(stack)
    try:
        load.wait_accepted(JOBS // 2)
        running = in_flight(stack)
        disturb()
        load.wait_accepted(JOBS)
    finally:
        ids = load.stop()
    check_all(stack, ids, what, running)


# --- one victim at a time -----------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["host-c", "worker"])
def test_kill_of_what_runs_the_model(platform, victim):
    """The worker starts its host again, the agent its worker."""
    disturbed(platform, f"kill -9 of {victim}", lambda: platform.kill(victim))


@pytest.mark.parametrize("victim", ["broker", "gateway"])
def test_kill_of_a_program(platform, victim):
    disturbed(platform, f"kill -9 of {victim}", lambda: platform.restart_service(victim, kill=True))


@pytest.mark.parametrize("victim", ["kafka", "postgres"])
def test_kill_of_a_server(platform, victim):
    disturbed(platform, f"kill -9 of {victim}", lambda: platform.restart_service(victim, kill=True))


def test_restart_of_redis_with_everything_flushed(platform):
    def disturb():
        platform.redis("FLUSHALL")
        platform.restart_service("redis", kill=True)
        platform.redis("FLUSHALL")

    disturbed(platform, "flush and kill -9 of redis", disturb)


def test_stopped_broker_does_no_harm_when_it_goes_on(platform):
    """SIGSTOP beyond the lease and the session: a zombie that wakes up in the middle of its work."""
    def disturb():
        (pid,) = platform.pids("broker")
        os.kill(pid, signal.SIGSTOP)
        try:
            threading.Event().wait(9)  # the time that it sleeps is what is tested
        finally:
            os.kill(pid, signal.SIGCONT)

    disturbed(platform, "SIGSTOP of broker for 9 s", disturb)


def test_stopped_worker_is_fenced(platform):
    """SIGSTOP beyond the lease: its jobs run elsewhere, and what it says later is dropped."""
    def disturb():
        pid = platform.pids("worker")[0]
        os.kill(pid, signal.SIGSTOP)
        try:
            threading.Event().wait(7)
        finally:
            os.kill(pid, signal.SIGCONT)

    disturbed(platform, "SIGSTOP of worker for 7 s", disturb)


# --- a second broker -----------------------------------------------------------------------------


def second_broker(stack, log):
    env = {"PATH": os.environ["PATH"], "HEADRACE_INSTANCE": "second", "HEADRACE_LOG_FILE": str(log)}
    for name in ("kafka", "redis", "postgres"):
        env[f"HEADRACE_{name.upper()}"] = stack.url(name)
    return subprocess.Popen([BINARY, "broker"], env=env)


def test_shard_of_a_killed_broker_is_taken_over(platform, tmp_path):
    """Whoever of two owns the only shard is killed; the other must dispatch within 8 s."""
    import time

    log = tmp_path / "second.log"
    second = second_broker(platform, log)
    try:
        wait_until("the second broker to be elected", lambda: log.exists() and '"elected"' in log.read_text())
        wait_until("one of both to own the shard", lambda: platform_owner(platform, log))
        load = Load(platform)
        try:
            load.wait_accepted(JOBS // 2)
            running = in_flight(platform)
            began = time.monotonic()
            if platform_owner(platform, log) == "second":
                second.kill()
                second.wait()
                wait_until("dev's broker to be live", lambda: metric(platform, "headrace_broker_shard_live") == 1)
            else:
                platform.kill_service("broker")
                lives = log.read_text().count('"shard_live"')
                wait_until("the second broker to be live", lambda: log.read_text().count('"shard_live"') > lives)
            took = time.monotonic() - began
            load.wait_accepted(JOBS)
        finally:
            ids = load.stop()
        check_all(platform, ids, f"kill -9 of the owner, taken over after {took:.1f} s", running)
        assert took <= TAKEOVER_SECONDS
    finally:
        second.terminate()
        second.wait(timeout=30)
        if platform.services()["broker"]["state"] != "ready":
            platform.start_service("broker")
    wait_until("the shard to be dev's again", lambda: metric(platform, "headrace_broker_shard_live") == 1, 30)


def platform_owner(stack, log):
    if metric(stack, "headrace_broker_shard_live") == 1:
        return "dev"
    text = log.read_text()
    return "second" if text.rfind('"shard_live"') > text.rfind('"shard_left"') else None


# --- nothing may be needed that is not promised ----------------------------------------------------


def test_accepted_jobs_survive_the_death_of_everything(new_stack):
    """With no worker at hand each accepted id is in the dump of intake; then kill -9 of all programs
    and of all servers between the 201 and the run; started again, all finish."""
    stack = new_stack().start()
    stack.push_sim("sim", slots=4, service_ms=5)
    workers = stack.pids("worker")  # they outlive their agent, and are then nobody's children
    stack.kill_service("agent")
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    ids = [stack.submit("sim", {"n": n}) for n in range(50)]
    in_kafka = b"".join(record.value for record in stack.consume("intake"))
    assert all(bytes.fromhex(one.replace("-", "")) in in_kafka for one in ids)
    assert unfinished(stack, ids) == set(ids)
    stack.kill_dev()
    stack.start()
    check_all(stack, ids, "kill -9 of everything between 201 and run")


def test_postgres_away_is_no_reason_to_refuse(platform):
    platform.submit("sim", {"n": 0})  # the gateway knows key and model
    platform.stop_service("postgres")
    try:
        ids = [platform.submit("sim", {"n": n}) for n in range(20)]
    finally:
        platform.start_service("postgres")
    check_all(platform, ids, "accepted without Postgres")


def test_kafka_away_is_503_and_no_promise(platform):
    platform.stop_service("kafka")
    try:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            replies = list(pool.map(lambda n: platform.http(
                "POST", "/model/sim/production/async_predict", {"model_input": {"n": n}}), range(4)))
    finally:
        platform.start_service("kafka")
    print(f"\nwithout Kafka: {[reply.status for reply in replies]}")
    assert all(reply.status == 503 for reply in replies), replies
    after = platform.submit("sim", {"n": 5})
    check_all(platform, [after], "accepted after Kafka came back")


def sockets_to(pid, port):
    """Connections of a process whose other end is this port."""
    inodes = set()
    for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            match = re.match(r"socket:\[(\d+)\]", os.readlink(fd))
        except OSError:
            continue
        if match:
            inodes.add(match.group(1))
    lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return [f for f in fields if f[9] in inodes and int(f[2].split(":")[1], 16) == port]


def test_workers_have_no_connection_to_postgres(platform):
    port = int(platform.url("postgres").rsplit(":", 1)[1].split("/")[0])
    wait_until("workers to run", lambda: len(platform.pids("worker")) == 2 and len(platform.pids("host-c")) == 2)
    for pid in platform.pids("worker") + platform.pids("host-c"):
        assert is_running(pid) and not sockets_to(pid, port)
    (broker,) = platform.pids("broker")
    assert sockets_to(broker, port)  # the method finds what it looks for
