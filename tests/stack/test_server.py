# SPDX-License-Identifier: Apache-2.0
"""Goal: an HTTP server that a user names is deployed, called, watched, ended and started again, and it
cannot hurt anybody else. Method: one stack; tests/lib/http_model/server.py as the server, which does as
each request says, in the strongest confinement that this machine has."""

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import time

import pytest

from conftest import run_stack
from stack import ROOT, wait_until

MODEL = ROOT / "tests/lib/http_model/server.py"


@pytest.fixture(scope="module")
def stack(request):
    yield from run_stack(request, env={"HEADRACE_HOST_MEMORY": "512MiB", "HEADRACE_HOST_PROCESSES": 300,
                                       "HEADRACE_RESTART_DELAY": "50ms"})


@pytest.fixture(scope="module")
def server(stack, tmp_path_factory):
    """The name of a deployment that is ready."""
    push(stack, tmp_path_factory.mktemp("model"), "web", settings={"environment_variables": {"GREETING": "hello"}})
    return "web"


def push(stack, folder, name, wait=True, slots=4, settings=None, **more):
    shutil.copy(MODEL, folder)
    settings = {"start_command": "exec python3 server.py", "predict_endpoint": "/predict",
                "readiness_endpoint": "/health", "liveness_endpoint": "/alive", **(settings or {})}
    (folder / "headrace.json").write_text(json.dumps(
        {"engine": "server", "slots": slots, "settings": settings, **more}))
    return stack.push(folder, name, wait=wait)


def ask(stack, model, **order):
    """The result of one job."""
    job = stack.submit(model, order)
    ended = stack.wait_final(job)
    assert ended["status"] == "SUCCEEDED", (ended, stack.tell())
    return stack.result(job).json


def fail(stack, model, **order):
    """How one job failed: (wire code, message)."""
    job = stack.submit(model, order, inference_retry_config={"max_attempts": 1})
    ended = stack.wait_final(job)
    assert ended["status"] == "FAILED", ended
    return stack.sql("SELECT error_class, error_message FROM headrace.job WHERE id = :'a1'", job)[0]


def test_answers(stack, server):
    answer = ask(stack, server, a=[1, 2])
    assert answer["input"] == {"a": [1, 2]} and answer["path"] == "/predict" and answer["env"] == "hello"
    assert len(answer["id"]) > 20 and answer["type"] == "application/json"
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: ask(stack, server, n=n), range(40)))
    assert [a["input"]["n"] for a in answers] == list(range(40))
    assert len({a["peer"] for a in answers}) <= 4  # kept connections, no more than slots


def test_failures_of_a_request(stack, server):
    code, text = fail(stack, server, do="status", status=422, body={"detail": "no such pet"})
    assert (code, "no such pet" in text) == ("1", True), text
    code, text = fail(stack, server, do="status", status=500)
    assert (code, "answered 500" in text) == ("2", True), text
    code, text = fail(stack, server, do="big", mib=2048)
    assert (code, "over the limit of 268435456 bytes" in text) == ("2", True), text


def test_a_crash_says_what_the_server_said(stack, server):
    code, text = fail_lost(stack, server)
    assert code == "9" and "exited with code 7" in text and "about to fall over" in text, text
    assert ask(stack, server, after=1)["input"] == {"after": 1}


def fail_lost(stack, model):
    """A job that costs its server each time ends as poison; its last attempt says why."""
    job = stack.submit(model, {"do": "exit", "code": 7})
    ended = stack.wait_final(job, 90)
    assert ended["status"] == "FAILED", ended
    return stack.sql("""SELECT error_class, error_message FROM headrace.attempt WHERE job_id = :'a1'
                        ORDER BY token DESC LIMIT 1""", job)[0]


def test_cancel_and_run_limit(stack, server):
    job = stack.submit(server, {"do": "hang"})
    wait_until("the job to run", lambda: stack.job(job)["status"] == "IN_PROGRESS")
    assert stack.cancel(job).status == 200
    assert stack.wait_final(job)["status"] == "CANCELED"


def test_a_flood_of_lines_hurts_nobody(stack, server):
    cpu = {pid: cpu_seconds(pid) for pid in stack.pids("host-server") + stack.pids("worker")}
    began = time.monotonic()
    job = stack.submit(server, {"do": "flood", "seconds": 2})
    answer = ask(stack, server, beside=1)
    assert answer["input"] == {"beside": 1} and time.monotonic() - began < 2
    assert stack.wait_final(job)["status"] == "SUCCEEDED"
    spent = sum(cpu_seconds(pid) - before for pid, before in cpu.items())
    assert spent < 1, f"{spent} s of processor time for a flood of 2 s"


def cpu_seconds(pid):
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0


# --- starts that fail -------------------------------------------------------------------------------


@pytest.mark.parametrize("name,settings,holds", [
    ("exits", {"environment_variables": {"START": "exit"}}, "cannot find weights.bin"),
    ("never", {"environment_variables": {"READY_AFTER": "never"}, "startup_threshold_seconds": 5},
     "was not ready within 5 s: /health answers 503"),
    ("missing", {"start_command": "exec no-such-server"}, "no-such-server"),
])
def test_starts_that_fail_are_named(stack, tmp_path, name, settings, holds):
    push(stack, tmp_path, name, wait=False, settings=settings)

    def failed():
        ((status, reason),) = stack.sql("""SELECT status, status_reason FROM headrace.deployment d
            JOIN headrace.model m ON m.id = d.model_id WHERE m.name = :'a1'""", name)
        return reason if status == "DEPLOY_FAILED" else None

    assert holds in wait_until(f"{name} to fail", failed, 30)


def test_bad_settings_are_refused_at_the_push(stack, tmp_path):
    shutil.copy(MODEL, tmp_path)
    (tmp_path / "headrace.json").write_text('{"engine": "server", "settings": {"start_comand": "x"}}')
    done = stack.cli("push", tmp_path, "--name", "bad", check=False)
    assert done.returncode != 0 and "'start_comand' is no setting" in done.stdout + done.stderr


def test_ready_after_a_while(stack, tmp_path):
    began = time.monotonic()
    push(stack, tmp_path, "slow", settings={"environment_variables": {"READY_AFTER": "2"}})
    assert time.monotonic() - began >= 2
    assert ask(stack, "slow", a=1)["input"] == {"a": 1}


# --- confinement ------------------------------------------------------------------------------------


def test_a_hostile_server_hurts_nobody(stack, server, tmp_path):
    """It tries to read another deployment's files, to write outside, to reach the stores, to fork 10,000
    times and to take all memory: each is an error to it, and its neighbour answers as ever."""
    push(stack, tmp_path, "hostile")
    others = [str(path) for path in stack.data_dir.glob("**/models/*/headrace.json")]
    assert len(others) >= 2, "the unpacked models are not where this test looks"
    kafka_port = int(stack.url("kafka").rsplit(":", 1)[1])
    pg_socket = next(iter(stack.data_dir.glob("**/.s.PGSQL.*")), None)
    neighbour_pid = stack.pids("broker")[0]
    before = latencies(stack, server)
    tries = {
        "read": [str(stack.data_dir / "dev.out")],
        "write": ["/usr/written"], "connect": ["127.0.0.1", kafka_port], "kill": [neighbour_pid]}
    if pg_socket is not None:
        tries["unix"] = [str(pg_socket)]
    answer = ask(stack, "hostile", do="try", what=tries)
    assert all("error" in one for one in answer.values()), answer
    assert not pathlib.Path("/usr/written").exists()
    seen = [ask(stack, "hostile", do="try", what={"read": [path]})["read"] for path in others]
    assert sum("ok" in one for one in seen) <= 1, seen  # its own
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        bomb = pool.submit(ask, stack, "hostile", do="try", what={"forks": [10000]})
        during = latencies(stack, server)
        assert "error" in bomb.result()["forks"], bomb.result()
    print(f"\nneighbour: p50 {before[0]:.1f} ms, p99 {before[1]:.1f} ms before; "
          f"p50 {during[0]:.1f} ms, p99 {during[1]:.1f} ms beside a fork bomb; tries: {answer}")
    memory = stack.submit("hostile", {"do": "try", "what": {"memory": [3000]}},
                          inference_retry_config={"max_attempts": 1})
    assert ask(stack, server, still=1)["input"] == {"still": 1}
    ended = stack.wait_final(memory, 90)
    assert ended["status"] == "FAILED" or "error" in stack.result(memory).json["memory"]


def latencies(stack, model, count=100):
    """p50 and p99 of jobs from submit to their end as the ledger has it, in ms."""
    jobs = [stack.submit(model, {"n": n}) for n in range(count)]
    for job in jobs:
        stack.wait_final(job)
    rows = stack.sql(f"""SELECT extract(epoch FROM state_at - accepted_at) * 1000 FROM headrace.job
                         WHERE id IN ({','.join(f"'{job}'" for job in jobs)})""")
    times = sorted(float(row[0]) for row in rows)
    return times[len(times) // 2], times[int(len(times) * 0.99) - 1]


def sleepers(seconds):
    done = subprocess.run(["pgrep", "-f", f"^sleep {seconds}$"], capture_output=True, text=True)
    return [int(pid) for pid in done.stdout.split()]


@pytest.mark.parametrize("victim", ["host-server", "worker"])
def test_nothing_survives_a_kill(stack, server, victim):
    """kill -9 of the host or of the worker: what the server left behind, also in a session of its own, is
    gone, and the next one answers."""
    seconds = "77101" if victim == "worker" else "77102"
    ask(stack, server, do="children", sleep=seconds)
    wait_until("the children to run", lambda: len(sleepers(seconds)) == 2)
    stack.kill(victim)
    wait_until("the children to be gone", lambda: not sleepers(seconds), 10)
    assert ask(stack, server, after=victim)["input"] == {"after": victim}
