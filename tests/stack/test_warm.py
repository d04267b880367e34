# SPDX-License-Identifier: Apache-2.0
"""Goal: a worker that is kept warm is loaded, is told to nobody, and serves the moment that one too few does;
it survives its agent, and its own death harms nobody. On GPUs: its room is promised like anybody's, and another's
as soon as that one is to serve.

Method: the simulated engine takes LOAD_MS to load, far longer than what a test waits for a spare to serve: whoever
answers sooner was loaded before. The devices are those of tests/unit/nvml_fake.c."""

import json
import os
import pathlib
import signal
import time

import pytest

from conftest import run_stack
from stack import BINARY, command_line, is_running, wait_until

FAKE = pathlib.Path(BINARY).resolve().parents[1] / "tests/unit/nvml/libnvidia-ml.so.1"
LOAD_MS = 6000
SOON = 5  # seconds, of a busy machine; less than a load takes


@pytest.fixture(scope="module")
def stack(request, tmp_path_factory):
    gpus = tmp_path_factory.mktemp("gpus")
    (gpus / "gpus").write_text("gpu GPU-a 8 6 24564 0 42 0 0 NVIDIA_A10G\n")
    yield from run_stack(request, env={"HEADRACE_NVML": FAKE, "HEADRACE_NVML_FAKE_DIR": gpus})


def push(stack, tmp_path, name, **plan):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "headrace.json").write_text(json.dumps({
        "engine": "sim", "slots": 2, "settings": {"test_mode": True, "load_ms": LOAD_MS}, **plan}))
    stack.push(folder, name, wait=False)


def state(stack, name):
    return stack.http("GET", f"/v1/models/{name}/deployments").json["deployments"][0]


def workers(stack, name):
    """By their status: names, pids and boots."""
    found = {}
    for status, *row in stack.sql(
            """SELECT w.status, w.worker, w.pid, w.boot FROM headrace_v1.workers w JOIN headrace_v1.deployments d
               ON d.id = w.deployment_id WHERE d.model_name = :'a1' ORDER BY 2""", name):
        found.setdefault(status, []).append(row)
    return found


def wait_workers(stack, name, seconds=60, **want):
    """Until so many have that status and none another one; STOPPED does not count."""
    def ask():
        found = {status: rows for status, rows in workers(stack, name).items() if status != "STOPPED"}
        return found if {status: len(rows) for status, rows in found.items()} == want else None
    return wait_until(f"{name} to have {want}", ask, seconds)


def scale(stack, name, count):
    stack.sql("UPDATE headrace.deployment SET replicas_min = 0, replicas_wanted = :a2 WHERE id = :'a1'",
              state(stack, name)["id"], count)


def wait_serving(stack, name, worker):
    """That one and no other; a job may be done before its row says so."""
    wait_until(f"{worker} to serve", lambda: workers(stack, name).get("READY") == [worker], SOON)
    wait_until("it to be ACTIVE", lambda: state(stack, name)["status"] == "ACTIVE", SOON)


def run_soon(stack, name):
    """A job is done before anybody can have loaded since."""
    begin = time.monotonic()
    job = stack.submit(name, {"sim": {"sleep_ms": 1}})
    assert stack.wait_final(job, SOON)["status"] == "SUCCEEDED"
    return time.monotonic() - begin


@pytest.fixture(scope="module")
def warmed(stack, tmp_path_factory):
    push(stack, tmp_path_factory.mktemp("warmed"), "warmed", warm=1)
    return "warmed"


@pytest.fixture
def pair(stack, warmed):
    """One that serves and one that is warm, whatever the test before has done: the model's name, and both."""
    found = wait_workers(stack, warmed, READY=1, WARM=1)
    return warmed, found["READY"][0], found["WARM"][0]


def test_it_is_no_replica(stack, pair):
    """It is in nobody's count of those that serve, and has the jobs of none."""
    name, serving, warm = pair
    told = state(stack, name)
    assert (told["status"], told["active_replica_count"], told["warm_replica"], told["warm_replica_count"]) == (
        "ACTIVE", 1, 1, 1)
    assert stack.sql("""SELECT replicas_wanted, replicas_ready, replicas_warm, replicas_warm_ready
                        FROM headrace_v1.deployments WHERE model_name = :'a1'""", name) == [["1", "1", "1", "1"]]
    assert pathlib.Path(f"/proc/{warm[1]}/comm").read_text() == "headrace-warm\n"
    jobs = [stack.submit(name, {"sim": {"sleep_ms": 50}}) for _ in range(40)]
    for job in jobs:
        assert stack.wait_final(job)["status"] == "SUCCEEDED"
    assert stack.sql("SELECT DISTINCT worker FROM headrace.attempt WHERE job_id = ANY (string_to_array(:'a1', ',')::uuid[])",
                     ",".join(jobs)) == [[serving[0]]]


def test_it_serves_when_one_is_killed(stack, pair):
    name, serving, warm = pair
    jobs = [stack.submit(name, {"sim": {"sleep_ms": 200}}) for _ in range(10)]
    os.kill(int(serving[1]), signal.SIGKILL)
    for job in jobs:
        assert stack.wait_final(job, SOON)["status"] == "SUCCEEDED"
    wait_serving(stack, name, warm)
    found = wait_workers(stack, name, READY=1, WARM=1)
    assert found["READY"] == [warm] and found["WARM"][0][0] == serving[0], "they have changed places"


def test_its_own_death_harms_nobody(stack, pair):
    name, serving, warm = pair
    os.kill(int(warm[1]), signal.SIGKILL)
    wait_until("it to be started again", lambda: workers(stack, name).get("LOADING"), 30)
    assert run_soon(stack, name) < SOON
    found = wait_workers(stack, name, READY=1, WARM=1)
    assert found["READY"] == [serving] and found["WARM"][0][0] == warm[0]


def test_zero_and_back(stack, pair):
    """Nothing serves, nothing is counted, and the first job does not wait for a load."""
    name, *_ = pair
    scale(stack, name, 0)
    wait_workers(stack, name, WARM=1)
    told = state(stack, name)
    assert (told["status"], told["active_replica_count"], told["warm_replica_count"]) == ("SCALED_TO_ZERO", 0, 1)
    job = stack.submit(name, {"sim": {"sleep_ms": 1}})
    assert stack.http("POST", f"/model/{name}/production/wake").status == 202
    assert stack.wait_final(job, SOON)["status"] == "SUCCEEDED"
    wait_until("it to be ACTIVE", lambda: state(stack, name)["status"] == "ACTIVE", SOON)


def test_it_survives_its_agent(stack, pair):
    """kill -9 of the agent: both work on, both are adopted, and the spare serves when it has to."""
    name, serving, warm = pair
    stack.restart_service("agent", kill=True)
    assert run_soon(stack, name) < SOON
    time.sleep(2)  # the new agent has read what is wanted, and changes nothing
    assert wait_workers(stack, name, READY=1, WARM=1) == {"READY": [serving], "WARM": [warm]}
    os.kill(int(serving[1]), signal.SIGKILL)
    assert run_soon(stack, name) < SOON
    wait_serving(stack, name, warm)


def test_both_die_at_once(stack, pair):
    """The agent is killed, and who serves dies while there is none: the next agent tells the spare."""
    name, serving, warm = pair
    stack.kill_service("agent")
    os.kill(int(serving[1]), signal.SIGKILL)
    wait_until("it to be gone", lambda: not is_running(int(serving[1])))
    stack.start_service("agent")
    assert run_soon(stack, name) < SOON
    wait_serving(stack, name, warm)


def test_it_leaves_with_its_agent(stack, pair):
    """SIGTERM of the agent: no process is left. The next one starts both."""
    name, *both = pair
    pids = [int(pid) for _, pid, _ in both]
    assert all("--standby" in command_line(pid) for pid in pids)
    stack.stop_service("agent")
    assert not any(is_running(pid) for pid in pids)
    assert [w[0] for w in workers(stack, name)["STOPPED"]] == sorted(w[0] for w in both)
    stack.start_service("agent")
    wait_workers(stack, name, READY=1, WARM=1)


def test_it_leaves_its_room(stack, tmp_path):
    """A device's only room is a spare's; who is to serve gets it, and gives it back when it goes."""
    settings = {"test_mode": True}
    push(stack, tmp_path, "idle", warm=1, settings=settings, resources={"accelerator_memory": "20GiB"})
    wait_until("it to serve", lambda: workers(stack, "idle").get("READY"), 30)
    scale(stack, "idle", 0)
    wait_workers(stack, "idle", WARM=1)
    wait_until("one promise, its own", lambda: stack.sql("SELECT workers, promised_bytes FROM headrace_v1.devices") == [
        ["1", str(20 << 30)]], 20)
    push(stack, tmp_path, "busy", settings=settings, resources={"accelerator_memory": "10GiB"})
    assert wait_until("the other to serve", lambda: workers(stack, "busy").get("READY"), 30)
    job = stack.submit("busy", {"sim": {"sleep_ms": 1}})
    assert stack.wait_final(job)["status"] == "SUCCEEDED"
    wait_until("the spare to say why it waits", lambda: stack.sql(
        """SELECT 1 FROM headrace_v1.workers w JOIN headrace_v1.deployments d ON d.id = w.deployment_id WHERE
           d.model_name = 'idle' AND w.status = 'STARTING' AND w.reason LIKE 'too small: needs 20.0 GiB%'"""), 30)
    wait_until("one promise", lambda: stack.sql("SELECT promised_bytes FROM headrace_v1.devices") == [[str(10 << 30)]], 20)
    stack.sql("UPDATE headrace.deployment SET deleted_at = now() WHERE id = :'a1'", state(stack, "busy")["id"])
    wait_workers(stack, "idle", WARM=1)
