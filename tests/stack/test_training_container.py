# SPDX-License-Identifier: Apache-2.0
"""Training jobs in containers: what one is given, how it ends, and that none is left behind.

The image is made of this machine's own shell and a few programs. Where Podman is not there, or may not run
it, what needs one is skipped, and says so; how a job without one is told is asked for everywhere.
"""

import os
import pathlib
import resource
import shutil
import signal
import subprocess
import tarfile

import pytest
from conftest import run_stack
from stack import wait_until
from training_jobs import Trainer, checkpoints, job, lines, project, push, wait_end, wait_status

PROGRAMS = ("sh", "sleep", "cat", "env", "id", "ls", "mkdir", "mv", "rm", "head", "tail", "touch")
NOWHERE = "localhost:1/none/such:1"


def podman(*words, check=True):
    done = subprocess.run(["podman", *words], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


def image_files():
    for program in PROGRAMS:
        path = shutil.which(program)
        yield path, f"bin/{program}"
        for word in subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout.split():
            if word.startswith("/"):
                yield word, word[1:]


def image_make(folder, name):
    seen = set()
    with tarfile.open(folder / "image.tar", "w") as tar:
        for path, inside in image_files():
            if inside not in seen:
                tar.add(os.path.realpath(path), inside)
                seen.add(inside)
        (folder / "note").write_text("of the image\n")
        tar.add(folder / "note", "note")
    podman("import", str(folder / "image.tar"), name)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Name of an image that is here; skips where no container can be had."""
    name = f"localhost/headrace-test-{os.getpid()}:1"
    if shutil.which("podman") is None:
        pytest.skip("skipped: no podman")
    image_make(tmp_path_factory.mktemp("image"), name)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    tried = subprocess.run(["podman", "run", "--rm", "--network=host", f"--ulimit=nofile={files}:{files}",
                            "--ulimit=nproc=4096:4096", name, "/bin/cat", "/note"], capture_output=True, text=True)
    if tried.stdout != "of the image\n":
        podman("rmi", "--force", name)
        pytest.skip(f"skipped: podman cannot run a container here: {tried.stderr.strip()}")
    yield name
    podman("rmi", "--force", name)


@pytest.fixture(scope="module")
def stack(request):
    env = {"HEADRACE_CPUS": "4", "HEADRACE_MEMORY": "8GiB", "HEADRACE_CHECKPOINT_SCAN": "100ms",
           "HEADRACE_TRAINER_LEASE": "3s"}
    for stack in run_stack(request, trainer=True, env=env):
        project(stack)
        yield stack


def left(stack):
    return podman("ps", "--all", "--quiet", "--filter", f"label=headrace.owner={jobs_folder(stack)}")


def jobs_folder(stack):
    return next(pathlib.Path(stack.data_dir).resolve().glob("**/trainer/jobs"))


def none_left(stack):
    wait_until("no container to be left", lambda: not left(stack))


def test_what_it_is_given(stack, image):
    """Its image's files, its own folders and variables, its limits; and its end is told apart as without one."""
    told = push(stack, "cat /note; id -u; pwd; ls /", "env", "touch made; ls; touch /root/.cache/kept", base_image=image,
                environment_variables={"MINE": "it's"})
    failed = push(stack, "echo almost; exit 3", "echo never", base_image=image)
    crashed = push(stack, "sh -c 'kill -SEGV $$'", base_image=image)
    missing = push(stack, "no-such-command --now", base_image=image)
    short = push(stack, "head -c 300m /dev/zero | tail", base_image=image, memory_bytes=64 << 20)
    full = push(stack, "head -c 300m /dev/zero >/big; sleep 60", base_image=image, disk_bytes=100 << 20)
    saved = push(stack, "mkdir $BT_CHECKPOINT_DIR/.new; echo w >$BT_CHECKPOINT_DIR/.new/weights; "
                        "mv $BT_CHECKPOINT_DIR/.new $BT_CHECKPOINT_DIR/step-1", base_image=image)
    for id, want in {told: ("COMPLETED", "exit", "0", None), failed: ("FAILED", "exit", "3", None),
                     crashed: ("FAILED", "signal", None, "11"), missing: ("FAILED", "command_not_found", "127", None),
                     saved: ("COMPLETED", "exit", "0", None)}.items():
        ended = wait_end(stack, id)
        assert tuple(ended[k] for k in ("status", "cause", "exit_code", "signal")) == want, (want, ended)
    assert wait_end(stack, short)["cause"] == "out_of_memory"
    assert wait_end(stack, full)["cause"] == "disk_quota"
    again = push(stack, "ls /root/.cache", base_image=image)  # behind the end of who left something there
    assert wait_end(stack, again)["status"] == "COMPLETED"
    said = lines(stack, told)
    assert said[:4] == [f"headrace: in a container of {image}, by podman", "of the image", str(os.geteuid()), "/b10/workspace"]
    assert said[-1] == "made" and "MINE=it's" in said and f"BT_TRAINING_JOB_ID={told}" in said
    assert "BT_CHECKPOINT_DIR=/mnt/ckpts" in said and "BT_LOAD_CHECKPOINT_DIR=" in said and "BT_NUM_GPUS=0" in said
    assert not [line for line in said if line.startswith("HEADRACE_")]
    assert "kept" in lines(stack, again) and "never" not in lines(stack, failed)
    assert [c[:2] for c in checkpoints(stack, saved)] == [["step-1", "COMPLETE"]]
    none_left(stack)


HEEDS = "trap 'echo saving; exit 0' TERM; echo ready; while :; do sleep 0.1; done"


def test_stop(stack, image):
    """SIGTERM reaches what runs in it, who does not heed it is killed."""
    heeds = push(stack, f'sh -c "{HEEDS}"', "echo never", base_image=image, grace_seconds=20)
    deaf = push(stack, "trap '' TERM; (sleep 77 & sleep 77); echo no; sleep 77", base_image=image, grace_seconds=1)
    wait_until("it to be ready", lambda: "ready" in lines(stack, heeds))
    wait_until("it to run", lambda: lines(stack, deaf))
    for id in heeds, deaf:
        stack.sql("SELECT headrace.training_stop(:'a1', 'default', 'somebody')", id)
        ended = wait_end(stack, id)
        assert (ended["status"], ended["cause"]) == ("STOPPED", "stopped"), ended
    said = lines(stack, heeds)
    assert said[1] == "ready" and "saving" in said and "never" not in said, said
    none_left(stack)


SAVES = """at=0; [ -z "$BT_LOAD_CHECKPOINT_DIR" ] || at=$(cat $BT_LOAD_CHECKPOINT_DIR/rank-0/*/at); echo from $at retry $BT_RETRY_COUNT
while [ $at -lt 40 ]; do at=$((at + 1)); mkdir $BT_CHECKPOINT_DIR/.new; echo $at >$BT_CHECKPOINT_DIR/.new/at
mv $BT_CHECKPOINT_DIR/.new $BT_CHECKPOINT_DIR/step-$at; sleep 0.1; done"""


def test_kill(stack, image):
    """kill -9 of the trainer ends its containers with it, and the job goes on from its checkpoint in a new one."""
    id = push(stack, SAVES, base_image=image)
    wait_until("a checkpoint", lambda: any(c[1] == "COMPLETE" for c in checkpoints(stack, id)))
    before = left(stack)
    assert before
    os.kill(stack.pids("host-training")[0], signal.SIGKILL)
    wait_until("its container to go", lambda: before not in left(stack).split())
    ended = wait_end(stack, id, 60)
    assert (ended["status"], ended["retry_count"]) == ("COMPLETED", "1"), ended
    begun = [line for line in lines(stack, id) if line.startswith("from ")]
    assert begun[0] == "from 0 retry 0" and int(begun[1].split()[1]) > 0, begun
    none_left(stack)


def test_what_is_left_over_goes_at_the_start(stack, image):
    """A trainer whose keepers died with it finds its containers by their label; others' stay."""
    ours = podman("create", "--label", f"headrace.owner={jobs_folder(stack)}", image, "/bin/sleep", "77")
    others = podman("create", "--label", "headrace.owner=/somewhere/else", image, "/bin/sleep", "77")
    try:
        os.kill(stack.pids("host-training")[0], signal.SIGKILL)
        wait_until("it to go", lambda: ours[:12] not in podman("ps", "--all", "--quiet").split())
        assert others[:12] in podman("ps", "--all", "--quiet").split()
    finally:
        podman("rm", "--force", others)


def test_an_image_that_is_not_to_be_had(stack, image):
    """That is a named end of the job, before anything has begun."""
    gone = push(stack, "echo never", base_image=NOWHERE)
    option = push(stack, "echo never", base_image="--privileged")
    shell = push(stack, "echo never", base_image=image.replace(":1", ":2"))
    ended = wait_end(stack, gone)
    assert (ended["status"], ended["cause"]) == ("DEPLOY_FAILED", "image"), ended
    assert NOWHERE in ended["error_message"] and "podman" in ended["error_message"], ended
    ended = wait_end(stack, option)
    assert (ended["status"], ended["cause"]) == ("DEPLOY_FAILED", "image"), ended
    assert "is no name of an image" in ended["error_message"]
    assert wait_end(stack, shell)["cause"] == "image"


@pytest.mark.parametrize("setting, why", [("never", "is set to start none"), ("auto", "neither podman nor a docker")])
def test_without_one(stack, setting, why):
    """A trainer that may not, or cannot, says so in the job's first line, and runs it on the machine."""
    trainer = Trainer(stack, f"bare-{setting}", HEADRACE_CONTAINER=setting, HEADRACE_GPUS="1", HEADRACE_ACCELERATOR=setting.upper(),
                      PATH="/nowhere").start()
    try:
        id = push(stack, "echo here", base_image=NOWHERE, accelerator=setting.upper(), gpu_count=1)
        assert wait_end(stack, id)["status"] == "COMPLETED"
        said = lines(stack, id)
        assert NOWHERE in said[0] and why in said[0] and said[-1] == "here", said
    finally:
        trainer.stop()


def test_one_is_required(stack):
    """A trainer that is to have containers, and has none, ends the job by name."""
    trainer = Trainer(stack, "strict", HEADRACE_CONTAINER="require", HEADRACE_GPUS="1", HEADRACE_ACCELERATOR="REQUIRE",
                      PATH="/nowhere").start()
    try:
        id = push(stack, "echo never", base_image=NOWHERE, accelerator="REQUIRE", gpu_count=1)
        ended = wait_end(stack, id)
        assert (ended["status"], ended["cause"]) == ("DEPLOY_FAILED", "image"), ended
        assert "neither is there" in ended["error_message"], ended
        assert job(stack, id)["retry_count"] == "0"
    finally:
        trainer.stop()
