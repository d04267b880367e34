# SPDX-License-Identifier: Apache-2.0
"""Goal: GPUs from end to end, without one: who is placed where, what a fault of a device costs its
attempts, its worker, its neighbours and itself, and what is said when no device will do. Method: the
driver's library is tests/unit/nvml_fake.c, whose GPUs and Xids are files; the simulated engine plays
the device. The rows of docs/gpu.md's table of faults name these tests."""

import itertools
import json
import pathlib
import time
import urllib.request

import pytest

from conftest import run_stack
from stack import BINARY, wait_until

FAKE = pathlib.Path(BINARY).resolve().parents[1] / "tests/unit/nvml/libnvidia-ml.so.1"
A10G = "gpu GPU-a 8 6 24564 300 42 0 {repair} NVIDIA_A10G\n"
T4 = "gpu GPU-t 7 5 15360 100 7 0 0 Tesla_T4\n"
H100 = "gpu GPU-h 9 0 81559 0 0 0 0 NVIDIA_H100\n"
SLICES = "mig MIG-1 1 0 40192 25 NVIDIA_H100_MIG_3g.40gb\nmig MIG-2 2 0 40192 25 NVIDIA_H100_MIG_3g.40gb\n"
NUMBERS = itertools.count(1)
MACHINE = A10G.format(repair=0) + T4 + H100 + SLICES


@pytest.fixture(scope="module")
def gpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpus")
    (folder / "gpus").write_text(MACHINE)
    return folder


@pytest.fixture(scope="module")
def stack(request, gpus):
    yield from run_stack(request, env={
        "HEADRACE_NVML": FAKE, "HEADRACE_NVML_FAKE_DIR": gpus, "HEADRACE_CANCEL_GRACE": "1s",
        "HEADRACE_DEVICE_QUARANTINE": "3s", "HEADRACE_DEVICE_WINDOW": "60s", "HEADRACE_DEVICE_TIMEOUT": "2s"})


def push(stack, tmp_path, name, resources, **plan):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "headrace.json").write_text(json.dumps({
        "engine": "sim", "settings": {"test_mode": True}, **({"resources": resources} if resources else {}), **plan}))
    return stack.push(folder, name, wait=False)


def state(stack, name):
    return stack.http("GET", f"/v1/models/{name}/deployments").json["deployments"][0]


def wait_status(stack, name, status, seconds=60):
    return wait_until(f"{name} to be {status}", lambda: (
        found if (found := state(stack, name))["status"] == status else None), seconds)


def worker(stack, name):
    """Its worker, device, state and how often it was started again."""
    rows = stack.sql("""SELECT w.worker, w.device, w.status, w.restarts, w.boot FROM headrace_v1.workers w JOIN
                        headrace_v1.deployments d ON d.id = w.deployment_id WHERE d.model_name = :'a1'""", name)
    return rows[0]


def wait_placed(stack, name, device):
    wait_until(f"{name} to be ready on {device}", lambda: worker(stack, name)[1:3] == [f"cuda:{device}", "READY"], 60)


def device(stack, uuid, columns="status"):
    rows = wait_until(f"a row of {uuid}", lambda: stack.sql(
        f"SELECT {columns} FROM headrace_v1.devices WHERE uuid = :'a1'", uuid), 20)
    return rows[0] if len(rows[0]) > 1 else rows[0][0]


def wait_device(stack, uuid, status, seconds=60):
    wait_until(f"{uuid} to be {status}", lambda: device(stack, uuid) == status, seconds)


def attempts(stack, job):
    """Of ended ones: class and device."""
    return [tuple(row) for row in stack.sql(
        """SELECT CASE error_class WHEN 0 THEN '' ELSE headrace.error_class_name(error_class) END, device
           FROM headrace.attempt WHERE job_id = :'a1' ORDER BY token""", job)]


def run(stack, name, **order):
    job = stack.submit(name, {"sim": order})
    final = stack.wait_final(job)
    return job, final, stack.result(job).json if final["status"] == "SUCCEEDED" else None


def running(stack, name, **order):
    job = stack.submit(name, {"sim": order})
    wait_until("the job to run", lambda: stack.job(job)["status"] == "IN_PROGRESS", 30)
    time.sleep(0.3)  # within the engine, not only on its way to it
    return job


def xid(gpus, index, number, gpu_instance=-1, compute_instance=-1):
    with open(gpus / "xids", "a") as file:
        file.write(f"{index} {gpu_instance} {compute_instance} {number}\n")


def count(stack, uuid, kind):
    return int(device(stack, uuid, f"{kind}_faults"))


@pytest.fixture(autouse=True)
def all_well(stack, gpus):
    """Each test begins with a machine that is whole; the time out of the one before may be long."""
    yield
    (gpus / "gpus").write_text(MACHINE)
    for (name,) in stack.sql("SELECT id FROM headrace.deployment WHERE deleted_at IS NULL"):
        stack.sql("UPDATE headrace.deployment SET replicas_wanted = 0, status = 'INACTIVE', deleted_at = now() "
                  "WHERE id = :'a1'", name)
    wait_until("all devices to be free and usable", lambda: stack.sql(
        "SELECT count(*) FROM headrace_v1.devices WHERE workers = 0 AND status IN ('well', 'probation')")[0][0] == "4", 90)


# --- placing -------------------------------------------------------------------------------------


def agent_page(stack, path):
    with urllib.request.urlopen(stack.url("agent") + path, timeout=10) as reply:
        return reply.read().decode()


def test_what_there_is_and_who_has_it(stack, tmp_path):
    """Best fit: 4 GiB go to the smallest device that has them, 20 GiB to the next, a slice's worth to a
    slice; who is placed sees its own device and no other."""
    for name, memory, want in [("small", "4GiB", "GPU-t"), ("large", "20GiB", "GPU-a"), ("huge", "38GiB", "MIG-1")]:
        push(stack, tmp_path, name, {"accelerator_memory": memory})
        wait_placed(stack, name, want)
        job, final, result = run(stack, name, sleep_ms=1)
        assert final["status"] == "SUCCEEDED" and result["sim"]["device"] == want
        assert attempts(stack, job) == [("", f"cuda:{want}")]
    push(stack, tmp_path, "beside", {"accelerator_memory": "10GiB", "accelerator": "T4"})
    wait_placed(stack, "beside", "GPU-t")
    want = ["Tesla T4", "1", "7.5", "2", str(14 << 30), "550.54.15", "12.4"]
    wait_until("the row to have both", lambda: device(
        stack, "GPU-t", "name, number, capability, workers, promised_bytes, driver, cuda") == want, 20)
    assert device(stack, "MIG-1", "parent, workers, promised_bytes") == ["GPU-h", "1", str(38 << 30)]
    page = json.loads(agent_page(stack, "/devices"))
    assert [(one["uuid"], one["workers"]) for one in page["devices"]] == [
        ("GPU-a", 1), ("GPU-t", 2), ("MIG-1", 1), ("MIG-2", 0)]
    wait_until("the metrics", lambda: 'headrace_device_workers{device="GPU-t",name="Tesla T4"} 2'
               in agent_page(stack, "/metrics"), 10)


@pytest.mark.parametrize(("resources", "want"), [
    ({"accelerator": "H200"}, "no device: needs H200, and this machine has NVIDIA H100 MIG 3g.40gb (GPU 2)"),
    ({"accelerator": "T4", "compute_capability": "8.0"},
     "too old: needs compute capability 8.0, Tesla T4 (GPU-t) has 7.5"),
    ({"accelerator": "A10G", "accelerator_memory": "40GiB"},
     "too small: needs 40.0 GiB, NVIDIA A10G (GPU-a) has 23.7 GiB free of 24.0 GiB"),
    ({"accelerator": "A10G:2"}, "too few: needs 2 A10G; this machine has 1 like that, and 1 of them free"),
])  # fmt: skip
def test_no_device_will_do(stack, tmp_path, resources, want):
    """A push that no device will do for fails with what it needs and what there is, and starts nothing."""
    name = f"never-{abs(hash(want)) % 1000}"
    push(stack, tmp_path, name, resources)
    assert wait_status(stack, name, "DEPLOY_FAILED")["error"] == want
    refused = stack.cli("push", str(tmp_path / name), "--name", name, check=False)
    assert refused.returncode != 0 and want in refused.stderr + refused.stdout


def test_wrong_resources_are_the_answer_to_a_push(stack, tmp_path):
    (tmp_path / "headrace.json").write_text('{"engine": "sim", "resources": {"accelerator_memory": "much"}}')
    refused = stack.cli("push", str(tmp_path), check=False)
    assert refused.returncode == 2 and "resources.accelerator_memory is 'much'" in refused.stderr


def test_waits_for_room(stack, tmp_path):
    """The device is taken: it waits and says why, and is placed when the other one has gone."""
    push(stack, tmp_path, "first", {"accelerator": "A10G"})
    wait_placed(stack, "first", "GPU-a")
    push(stack, tmp_path, "second", {"accelerator": "A10G"})
    wait_until("the reason", lambda: "taken: needs all of a device" in (worker_reason(stack, "second") or ""), 30)
    stack.sql("UPDATE headrace.deployment SET deleted_at = now() WHERE id = :'a1'", state(stack, "first")["id"])
    wait_placed(stack, "second", "GPU-a")


# --- faults --------------------------------------------------------------------------------------


def two_devices(stack, tmp_path):
    """One whose device will be hurt, and a neighbour on another one: their names, and the neighbour's boot."""
    number = next(NUMBERS)  # a name that was used has a past
    hurt, well = f"hurt{number}", f"well{number}"
    push(stack, tmp_path, hurt, {"accelerator_memory": "20GiB"}, slots=4)
    wait_placed(stack, hurt, "GPU-a")
    push(stack, tmp_path, well, {"accelerator_memory": "4GiB"})
    wait_placed(stack, well, "GPU-t")
    return hurt, well, worker(stack, well)[4]


def test_lost_context(stack, tmp_path):
    """A sticky error: its attempt and its neighbours' in the engine pay nothing of their own retries, the
    worker leaves and is started again; after the third within the window its device is out, and the worker
    is placed elsewhere. Before the other faults of that device: on probation one would be enough."""
    hurt, _, _ = two_devices(stack, tmp_path)
    faults, before, seen = count(stack, "GPU-a", "context"), int(device(stack, "GPU-a", "quarantines")), []
    while seen.count(("device_fault", "cuda:GPU-a")) < 3:
        assert len(seen) < 20 and int(device(stack, "GPU-a", "quarantines")) == before, seen
        # Its first attempt may reach the worker that leaves; that one is handed back and loses nothing.
        job = stack.submit(hurt, {"sim": {"fail": "device_fault", "fail_times": 1}}, inference_retry_config={"max_attempts": 1})
        assert stack.wait_final(job)["status"] == "SUCCEEDED"
        seen += attempts(stack, job)
    assert set(seen[:-1]) <= {("device_fault", "cuda:GPU-a"), ("handed_back", "cuda:GPU-a"), ("", "cuda:GPU-a")}
    assert seen[-1] == ("", "cuda:MIG-1") and count(stack, "GPU-a", "context") == faults + 3
    assert int(device(stack, "GPU-a", "quarantines")) == before + 1
    wait_device(stack, "GPU-a", "probation", 60)


def test_xid_that_nothing_survives(stack, gpus, tmp_path):
    """Xid 79: the device is out at once, its worker is told to go and is placed elsewhere, its attempts go
    back free of charge, the neighbour on another device notices nothing. After its time out it is looked
    at, and used again."""
    hurt, well, boot = two_devices(stack, tmp_path)
    before = int(device(stack, "GPU-a", "quarantines"))
    beside = running(stack, well, sleep_ms=6000)
    job = running(stack, hurt, sleep_ms=8000)
    (gpus / "gpus").write_text(MACHINE.replace("42 0 0 NVIDIA_A10G", "42 0 1 NVIDIA_A10G"))  # until a reset
    xid(gpus, 0, 79)
    wait_until("the device to be out", lambda: device(stack, "GPU-a", "status, reason") == [
        "quarantined", "Xid 79: GPU has fallen off the bus"], 10)
    wait_placed(stack, hurt, "MIG-1")
    assert stack.wait_final(job)["status"] == "SUCCEEDED"
    (first, *_, last) = attempts(stack, job)
    assert first == ("handed_back", "cuda:GPU-a") and last == ("", "cuda:MIG-1")
    assert stack.wait_final(beside)["status"] == "SUCCEEDED" and attempts(stack, beside) == [("", "cuda:GPU-t")]
    assert worker(stack, well)[4] == boot
    wait_until("a second time out", lambda: int(device(stack, "GPU-a", "quarantines")) >= before + 2, 30)
    assert device(stack, "GPU-a", "reason") == "its memory waits for a reset to be repaired"
    (gpus / "gpus").write_text(MACHINE)
    wait_device(stack, "GPU-a", "probation", 60)


def test_xid_of_an_application(stack, gpus, tmp_path):
    """Xids 31 and 13 are the application's: counted, and nothing else happens."""
    hurt, well, boot = two_devices(stack, tmp_path)
    before, mine = count(stack, "GPU-a", "xid"), worker(stack, hurt)[4]
    job = running(stack, hurt, sleep_ms=3000)
    for number in (31, 13, 31, 13, 43, 45):
        xid(gpus, 0, number)
    wait_until("six Xids", lambda: count(stack, "GPU-a", "xid") == before + 6, 30)
    assert stack.wait_final(job)["status"] == "SUCCEEDED" and attempts(stack, job) == [("", "cuda:GPU-a")]
    assert device(stack, "GPU-a") in ("well", "probation")
    assert worker(stack, hurt)[4] == mine and worker(stack, well)[4] == boot


def test_xid_of_a_slice(stack, gpus, tmp_path):
    """An Xid that names a slice is that slice's alone, one that names none is the whole GPU's."""
    push(stack, tmp_path, "left", {"accelerator_memory": "30GiB", "accelerator": "H100_40GB"})
    wait_placed(stack, "left", "MIG-1")
    push(stack, tmp_path, "right", {"accelerator_memory": "35GiB", "accelerator": "H100_40GB"})
    wait_placed(stack, "right", "MIG-2")
    boot = worker(stack, "left")[4]
    xid(gpus, 2, 95, 2, 0)
    wait_device(stack, "MIG-2", "quarantined", 10)
    assert device(stack, "MIG-1") in ("well", "probation") and worker(stack, "left")[4] == boot
    wait_device(stack, "MIG-2", "probation", 30)
    wait_placed(stack, "right", "MIG-2")
    xid(gpus, 2, 79)
    wait_device(stack, "MIG-1", "quarantined", 10)
    wait_device(stack, "MIG-2", "quarantined", 10)


def test_hang(stack, tmp_path):
    """An engine of ours that stands still is killed and counts as a fault of its device; once is no reason
    to put it out."""
    two_devices(stack, tmp_path)
    faults = count(stack, "GPU-t", "hang")
    push(stack, tmp_path, "still", {"accelerator": "T4", "accelerator_memory": "4GiB"})
    wait_placed(stack, "still", "GPU-t")
    job = running(stack, "still", hang=True)
    stack.cancel(job)
    wait_until("the hang to be counted", lambda: count(stack, "GPU-t", "hang") == faults + 1, 30)
    assert device(stack, "GPU-t") in ("well", "probation", "quarantined")


def test_out_of_memory_is_no_fault_of_the_device(stack, tmp_path):
    """Its attempt is tried three times, alone; the device is as well as before."""
    hurt, _, _ = two_devices(stack, tmp_path)
    faults, quarantines = count(stack, "GPU-a", "oom"), device(stack, "GPU-a", "quarantines")
    job, final, _ = run(stack, hurt, fail="oom")
    assert final["status"] == "FAILED" and attempts(stack, job) == [("oom", "cuda:GPU-a")] * 3
    wait_until("three of them", lambda: count(stack, "GPU-a", "oom") == faults + 3, 30)
    assert device(stack, "GPU-a", "quarantines") == quarantines


def test_gone(stack, gpus, tmp_path):
    """The driver does not list it any more: as with an Xid that nothing survives; when it is listed again it
    is looked at first."""
    hurt, _, _ = two_devices(stack, tmp_path)
    job = running(stack, hurt, sleep_ms=7000)
    (gpus / "gpus").write_text("lost\n" + T4 + H100 + SLICES)
    wait_device(stack, "GPU-a", "gone", 20)
    wait_placed(stack, hurt, "MIG-1")
    assert stack.wait_final(job)["status"] == "SUCCEEDED"
    assert attempts(stack, job)[-1] == ("", "cuda:MIG-1")
    (gpus / "gpus").write_text(MACHINE)
    wait_device(stack, "GPU-a", "probation", 30)


def test_driver_that_hangs(stack, gpus, tmp_path):
    """The driver answers no more: it is said since when, who runs goes on, who needs a GPU waits with that
    reason, who needs none is started; the same for an agent that comes back and has never had an answer.
    When the driver answers again who waited is placed."""
    hurt, _, _ = two_devices(stack, tmp_path)
    boot = worker(stack, hurt)[4]
    (gpus / "hang").touch()
    try:
        silent = "the NVIDIA driver does not answer since 20"
        wait_until("the silence", lambda: silent in (device(stack, "GPU-a", "reason") or ""), 30)
        assert device(stack, "GPU-a") in ("well", "probation") and device(stack, "GPU-a", "free_bytes") == "0"
        assert json.loads(agent_page(stack, "/devices"))["why_silent"].startswith(silent)
        assert run(stack, hurt, sleep_ms=1)[1]["status"] == "SUCCEEDED"
        push(stack, tmp_path, "waits", {"accelerator": "A10G", "accelerator_memory": "3GiB"})
        wait_until("the reason", lambda: f"no device now: needs A10G with 3.0 GiB, and {silent}" in
                   (worker_reason(stack, "waits") or ""), 30)
        push(stack, tmp_path, "cpu1", None)
        wait_status(stack, "cpu1", "ACTIVE")
        stack.restart_service("agent", kill=True)
        push(stack, tmp_path, "cpu2", None)
        wait_status(stack, "cpu2", "ACTIVE")
        assert worker(stack, hurt)[4] == boot and run(stack, hurt, sleep_ms=1)[1]["status"] == "SUCCEEDED"
        assert state(stack, "waits")["status"] not in ("ACTIVE", "DEPLOY_FAILED")
        assert device(stack, "GPU-a", "free_bytes") == "0"
    finally:
        (gpus / "hang").unlink()
    wait_placed(stack, "waits", "GPU-a")
    assert worker(stack, hurt)[4] == boot and json.loads(agent_page(stack, "/devices"))["why_silent"] == ""


def test_an_agent_that_comes_back(stack, tmp_path):
    """kill -9 of the agent: the next one adopts its workers with the devices that they have."""
    hurt, _, _ = two_devices(stack, tmp_path)
    boot = worker(stack, hurt)[4]
    stack.restart_service("agent", kill=True)
    wait_until("the adopted to be counted", lambda: stack.sql(
        "SELECT uuid, workers FROM headrace_v1.devices WHERE workers > 0 ORDER BY uuid") == [["GPU-a", "1"], ["GPU-t", "1"]], 30)
    assert worker(stack, hurt)[4] == boot
    push(stack, tmp_path, "late", {"accelerator": "A10G", "accelerator_memory": "20GiB"})
    wait_until("the reason", lambda: "too small: needs 20.0 GiB" in (worker_reason(stack, "late") or ""), 30)


def worker_reason(stack, name):
    rows = stack.sql("""SELECT reason FROM headrace_v1.workers w JOIN headrace_v1.deployments d
                        ON d.id = w.deployment_id WHERE d.model_name = :'a1'""", name)
    return rows[0][0] if rows else None
