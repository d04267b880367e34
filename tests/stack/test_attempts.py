# SPDX-License-Identifier: Apache-2.0
"""Goal: what an attempt may cost, and how soon somebody notices. Lost workers and machines, poison and
its neighbours, hangs, retries, deadlines outside of the owner's memory, cancels. Method: one stack with
a small window and the simulated engine; times come from the ledger, and are printed: pytest -s."""

import datetime
import os
import re
import signal
import statistics
import subprocess
import threading
import time
import urllib.request

import pytest

from conftest import run_stack
from stack import BINARY, descendants, wait_until

WINDOW = 100
DELAYED = 10
LEASE_SECONDS = 4


@pytest.fixture(scope="module")
def stack(request):
    yield from run_stack(request, env={
        "HEADRACE_WINDOW": WINDOW, "HEADRACE_CANCEL_GRACE": "1s", "HEADRACE_DELAYED": DELAYED})


def attempts(stack, job):
    """Ended attempts: number, class, seconds of start and end since 1970, worker, device, message."""
    return [
        {"number": int(r[0]), "class": int(r[1]), "started": r[2] and float(r[2]), "ended": float(r[3]),
         "worker": r[4], "device": r[5], "message": r[6]}
        for r in stack.sql("""SELECT number, error_class, extract(epoch FROM started_at), extract(epoch FROM ended_at),
                              worker, device, error_message FROM headrace.attempt WHERE job_id = :'a1'
                              ORDER BY token""", job)]


def row(stack, job, columns):
    rows = stack.sql(f"SELECT {columns} FROM headrace.job WHERE id = :'a1'", job)
    return rows[0] if rows else None


def wait_running(stack, job):
    """The worker that runs it, once the ledger knows that it has started."""
    def ask():
        found = row(stack, job, "state, worker, started_at IS NOT NULL, attempt_count")
        return found[1] if found and found[0] == "2" and found[2] == "t" else None

    return wait_until(f"job {job} to run", ask)


def worker_pid(stack, worker):
    return int(stack.sql("SELECT pid FROM headrace.replica WHERE worker = :'a1'", worker)[0][0])


def wait_ready(stack, deployment, count):
    wait_until(f"{count} workers of {deployment}", lambda: stack.sql(
        "SELECT count(*) FROM headrace.replica WHERE deployment_id = :'a1' AND state = 'READY'",
        deployment)[0][0] == str(count), 60)


# --- death of a worker, death of a machine ---------------------------------------------------------


def test_a_killed_worker_is_noticed_at_once(stack):
    """kill -9 of a worker: its agent tells, and the job runs on the other one; no lease is waited for."""
    stack.push_sim("mortal", slots=2, replicas=2)
    noticed, again = [], []
    for _ in range(5):
        job = stack.submit("mortal", {"sim": {"sleep_ms": 2500}})
        worker = wait_running(stack, job)
        killed = time.time()
        os.kill(worker_pid(stack, worker), signal.SIGKILL)
        assert stack.wait_final(job)["status"] == "SUCCEEDED"
        lost, good = attempts(stack, job)
        assert lost["worker"] == worker != good["worker"] and lost["device"] == "cpu"
        assert "signal 9" in lost["message"], lost
        noticed.append(lost["ended"] - killed)
        again.append(good["started"] - killed)
        wait_ready(stack, "mortal", 2)
    print(f"\nkill -9 of a worker, 5 times: noticed after {[round(s, 3) for s in noticed]} s, "
          f"runs again after {[round(s, 3) for s in again]} s")
    assert max(again) < LEASE_SECONDS - 1 and min(again) < 1  # the report did it, not the lease


def second_agent(stack, folder):
    env = {"PATH": os.environ["PATH"], "HEADRACE_AGENT_HOST": "machine-2", "HEADRACE_AGENT_DIR": str(folder),
           "HEADRACE_BLOBS": str(stack.data_dir / "blobs")}
    for name in ("kafka", "postgres"):
        env[f"HEADRACE_{name.upper()}"] = stack.url(name)
    return subprocess.Popen([BINARY, "agent"], env=env, stderr=subprocess.DEVNULL)


def claimed(stack, count):
    wait_until(f"{count} workers to be somebody's", lambda: stack.sql(
        "SELECT count(*) FROM headrace.replica WHERE deployment_id = 'split'")[0][0] == str(count), 30)


def test_a_vanished_machine_is_noticed_within_its_lease(stack, tmp_path):
    """SIGSTOP of an agent and of all that it started, four workers of eight: nobody is left to tell.
    The others are heard, so it is no fault of the owner's own, and one lease is enough."""
    second = second_agent(stack, tmp_path)
    (first,) = [pid for pid in stack.pids("agent") if pid != second.pid]
    try:
        os.kill(first, signal.SIGSTOP)  # so that the second one takes the first four
        pushing = threading.Thread(target=stack.push_sim, args=("split",), kwargs={"slots": 1, "replicas": 4})
        try:
            pushing.start()
            claimed(stack, 4)
        finally:
            os.kill(first, signal.SIGCONT)
        pushing.join()
        os.kill(second.pid, signal.SIGSTOP)
        try:
            stack.sql("UPDATE headrace.deployment SET replicas_wanted = 8, replicas_max = 8 WHERE id = 'split'")
            claimed(stack, 8)
        finally:
            os.kill(second.pid, signal.SIGCONT)
        wait_ready(stack, "split", 8)
        jobs = [stack.submit("split", {"sim": {"sleep_ms": 6000, "fail_times": 1}}) for _ in range(4)]
        where = {job: wait_running(stack, job) for job in jobs}
        hosts = dict(stack.sql("SELECT worker, host FROM headrace.replica WHERE deployment_id = 'split'"))
        assert sorted(hosts.values()).count("machine-2") == 4, hosts
        there = [job for job in jobs if hosts[where[job]] == "machine-2"]
        assert there, "no job runs on the second machine"
        family = [second.pid] + descendants(second.pid)
        stopped = time.time()
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        ends = {job: wait_until("its attempt to end", lambda job=job: attempts(stack, job), 15) for job in there}
        starts = {}
        for job in there:
            wait_running(stack, job)
            starts[job] = float(row(stack, job, "extract(epoch FROM started_at)")[0])
        noticed = [ends[job][0]["ended"] - stopped for job in there]
        again = [starts[job] - stopped for job in there]
        print(f"\na machine of two vanishes, {len(there)} jobs on it: noticed after "
              f"{[round(s, 2) for s in noticed]} s, run again after {[round(s, 2) for s in again]} s")
        assert max(noticed) < 5.5 and max(again) < 6.5
        assert stack.sql("SELECT sum(user_failures) FROM headrace.job WHERE deployment = 'split'")[0][0] == "0"
        for job in jobs:
            stack.cancel(job)
    finally:
        for pid in [second.pid] + descendants(second.pid):
            os.kill(pid, signal.SIGKILL)
        second.wait()
        stack.sql("UPDATE headrace.deployment SET replicas_wanted = 0, replicas_min = 0 WHERE id = 'split'")


# --- poison and hangs ---------------------------------------------------------------------------------


def test_poison_is_quarantined_and_its_neighbours_live(stack):
    """A job that kills its engine host five times is FAILED, with all that was tried; the jobs beside
    it lose nothing of their own budgets."""
    stack.push_sim("poisoned", slots=4, replicas=1, batch=4)
    poison = stack.submit("poisoned", {"sim": {"crash": True}})
    beside = [stack.submit("poisoned", {"sim": {"sleep_ms": 300}}) for _ in range(6)]
    job = stack.wait_final(poison)
    assert job["status"] == "FAILED" and "signal 6" in job["errors"][0]["message"], job
    for one in beside:
        assert stack.wait_final(one)["status"] == "SUCCEEDED"
        assert row(stack, one, "user_failures, oom_failures")[0:2] == ["0", "0"]
    ((reason, lost, worker, device, tries, message),) = stack.sql(
        """SELECT reason, lost_workers, worker, device, jsonb_array_length(attempt_log), error_message
             FROM headrace_v1.dead_jobs WHERE id = :'a1'""", poison)
    assert (reason, lost, worker, device, tries) == ("poison", "5", "poisoned-0", "cpu", "5")
    assert "signal 6" in message
    told = stack.http("GET", f"/v1/requests/{poison}").json
    assert told["reason"] == "poison" and told["budgets"]["lost_workers"] == {"used": 5, "limit": 5}
    assert [a["number"] for a in told["attempt_log"]] == [1, 2, 3, 4, 5]
    shown = stack.cli("jobs", "show", poison).stdout
    print("\n" + shown)
    assert re.search(r"reason +poison", shown) and "quarantined" in shown
    assert re.search(r"lost workers +5 of 5", shown)
    assert shown.count("lost_worker") == 5 and "poisoned-0" in shown


def test_a_hang_is_killed_and_costs_only_itself(stack):
    """One job stops the whole host. It pays an attempt; those behind it, whose run limits pass while
    nothing moves, go back free of charge."""
    stack.push_sim("hanging", slots=4, replicas=1)
    stack.sql("UPDATE headrace.deployment SET run_limit_ms = 800 WHERE id = 'hanging'")
    wait_until("the gateway to know the run limit", lambda: run_limit_of(stack, "hanging") == "800")
    begun = time.time()
    hang = stack.submit("hanging", {"sim": {"hang": True, "fail_times": 1}},
                        inference_retry_config={"max_attempts": 2, "initial_delay_ms": 0})
    wait_running(stack, hang)
    beside = [stack.submit("hanging", {}, inference_retry_config={"max_attempts": 1}) for _ in range(3)]
    for one in beside:
        assert stack.wait_final(one)["status"] == "SUCCEEDED", stack.http("GET", f"/v1/requests/{one}").json
        assert row(stack, one, "user_failures, lost_failures")[0:2] == ["0", "0"]
    assert stack.wait_final(hang)["status"] == "SUCCEEDED"
    assert row(stack, hang, "user_failures")[0] == "1"
    print(f"\na host that hangs, run limit 0.8 s, grace 1 s: all is over after {time.time() - begun:.2f} s")


def run_limit_of(stack, model):
    job = stack.submit(model, {})
    stack.wait_final(job)
    return row(stack, job, "run_limit_ms")[0]


# --- retries ------------------------------------------------------------------------------------------


def test_retry_after_of_a_model_is_honoured(stack, plain):
    job = stack.submit(plain, {"sim": {"fail": "model_unavailable", "fail_times": 1, "retry_after_ms": 2000}},
                       inference_retry_config={"max_attempts": 2, "initial_delay_ms": 100, "max_delay_ms": 100})
    wait_until("the first try to fail", lambda: attempts(stack, job))
    waiting = stack.http("GET", f"/v1/requests/{job}").json
    assert waiting["status"] == "QUEUED" and waiting["retry_at"] is not None
    assert waiting["budgets"]["model_errors"] == {"used": 1, "limit": 2}
    assert stack.wait_final(job)["status"] == "SUCCEEDED"
    first, second = attempts(stack, job)
    assert 2.0 <= second["started"] - first["ended"] < 3.5


def test_a_failed_job_says_why(stack, plain):
    job = stack.submit(plain, {"sim": {"fail": "model_error"}},
                       inference_retry_config={"max_attempts": 2, "initial_delay_ms": 0})
    assert stack.wait_final(job)["status"] == "FAILED"
    told = stack.http("GET", f"/v1/requests/{job}").json
    assert told["reason"] == "attempts_used" and "max_attempts" in told["ended_because"]
    assert [a["error_class"] for a in told["attempt_log"]] == ["model_error"] * 2
    assert stack.http("GET", "/v1/requests/00000000-0000-7000-8000-000000000000").status == 404


def test_a_tenant_has_so_many_delayed_jobs_and_no_more(stack):
    """Forty jobs whose first try fails, and ten may wait for their second: the others stay untouched
    until there is room, and all succeed in the end."""
    stack.push_sim("flaky", slots=1, replicas=1)
    blocker = stack.submit("flaky", {"sim": {"hang": "soft"}})  # so that all are there before the first one runs
    wait_running(stack, blocker)
    jobs = [stack.submit("flaky", {"sim": {"fail": "model_unavailable", "fail_times": 1, "retry_after_ms": 1500}},
                         inference_retry_config={"max_attempts": 2, "initial_delay_ms": 0}) for _ in range(40)]
    assert stack.cancel(blocker).json["canceled"] is True
    delayed, barred = [], []

    def all_done():
        barred.append(gauge(stack, "headrace_broker_jobs_barred"))
        waiting, left = stack.sql("""
            SELECT count(*) FILTER (WHERE state = 1 AND attempt_count > 0 AND due_at > now()),
                   count(*) FILTER (WHERE state IN (1, 2)) FROM headrace.job WHERE deployment = 'flaky'""")[0]
        delayed.append(int(waiting))
        return left == "0"

    wait_until("all to be over", all_done, 60)
    print(f"\n40 jobs, {DELAYED} may be delayed: {max(delayed)} were at most, {max(barred):.0f} barred at most")
    assert all(stack.job(job)["status"] == "SUCCEEDED" for job in jobs)
    assert max(delayed) <= DELAYED + 1 and max(barred) > 0  # one runs when the tenth fails


def gauge(stack, name):
    with urllib.request.urlopen(stack.url("broker") + "/metrics", timeout=10) as reply:
        return sum(float(line.rsplit(" ", 1)[1]) for line in reply.read().decode().splitlines()
                   if line.startswith(name + "{"))


# --- deadlines -----------------------------------------------------------------------------------------


def test_jobs_outside_of_the_window_expire_in_time(stack):
    """Six times as many jobs as the window holds wait behind one that hangs; all are due within a few
    seconds. No waiting row may be overdue by much at any time."""
    stack.push_sim("stuck", slots=1, replicas=1)
    blocker = stack.submit("stuck", {"sim": {"hang": "soft"}})
    wait_running(stack, blocker)
    jobs = [stack.submit("stuck", {"n": n}, max_time_in_queue_seconds=10) for n in range(6 * WINDOW)]
    overdue = []

    def all_expired():
        late, left = stack.sql("""
            SELECT extract(epoch FROM now() - min(start_deadline_at)), count(*) FROM headrace.job
             WHERE deployment = 'stuck' AND state = 1 AND attempt_count = 0""")[0]
        if left != "0":
            overdue.append(max(0.0, float(late)))
        return left == "0"

    wait_until("all to expire", all_expired, 60, step=0.01)
    states = dict(stack.sql("SELECT state, count(*) FROM headrace.job WHERE deployment = 'stuck' GROUP BY state"))
    assert states == {"2": "1", "5": str(len(jobs))}, states
    late = [float(r[0]) for r in stack.sql("""
        SELECT extract(epoch FROM state_at - start_deadline_at) FROM headrace.job
         WHERE deployment = 'stuck' AND state = 5""")]
    print(f"\n{len(jobs)} jobs, {WINDOW} in the window: expired {statistics.median(late) * 1000:.0f} ms late "
          f"(median), {max(late) * 1000:.0f} ms at most; the most overdue row ever seen: {max(overdue) * 1000:.0f} ms "
          f"in {len(overdue)} looks")
    assert min(late) >= 0 and statistics.median(late) < 0.25 and max(late) < 1.5
    assert stack.cancel(blocker).json["canceled"] is True


# --- cancels --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(stack):
    stack.push_sim("plain", slots=1, replicas=1)
    return "plain"


def cancel_timed(stack, job):
    begun = time.monotonic()
    reply = stack.cancel(job)
    assert reply.status == 200 and reply.json["canceled"] is True, reply
    return time.monotonic() - begun


def test_cancel_wins_and_is_quick(stack, plain):
    """Of what waits, of what runs (the engine is told, and its slot is free at once), and of what waits
    for its next try."""
    waiting, running, free = [], [], []
    for _ in range(5):
        runs = stack.submit(plain, {"sim": {"hang": "soft"}})
        wait_running(stack, runs)
        waits = stack.submit(plain, {})
        waiting.append(cancel_timed(stack, waits))
        running.append(cancel_timed(stack, runs))
        begun = time.monotonic()
        assert stack.wait_final(stack.submit(plain, {}))["status"] == "SUCCEEDED"
        free.append(time.monotonic() - begun)
        assert stack.job(runs)["status"] == stack.job(waits)["status"] == "CANCELED"
    print(f"\ncancel: of a waiting job {statistics.median(waiting) * 1000:.0f} ms, of a running one "
          f"{statistics.median(running) * 1000:.0f} ms (medians of 5), the next job of that slot is done after "
          f"{statistics.median(free) * 1000:.0f} ms")
    delayed = stack.submit(plain, {"sim": {"fail": "model_unavailable", "fail_times": 1, "retry_after_ms": 1000}},
                           inference_retry_config={"max_attempts": 5, "initial_delay_ms": 0})
    wait_until("its first try to fail", lambda: attempts(stack, delayed))
    cancel_timed(stack, delayed)
    due = datetime.datetime.now().timestamp() + 1.5
    wait_until("the retry to be due", lambda: datetime.datetime.now().timestamp() > due)
    assert stack.job(delayed)["status"] == "CANCELED" and len(attempts(stack, delayed)) == 1
    assert stack.job(delayed)["attempts"] == 1
