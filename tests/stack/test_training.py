# SPDX-License-Identifier: Apache-2.0
"""Training jobs: what they are given, how they end, what is saved of them, and who goes on.

One stack with a trainer of four cores; jobs are a few lines of shell or Python. What the gateway does
for a user is done here by rows and a submit, so that this is about ledger and trainer alone.
"""

import json
import os
import pathlib
import signal
import time
import uuid

import pytest
from conftest import run_stack
from stack import command_line, descendants, wait_until
from training_jobs import (PROJECT, Trainer, checkpoints, job, ledger, lines, may_mount, project, push, scripts,
                           wait_end, wait_status)

LONG = bool(os.environ.get("HEADRACE_LONG"))


@pytest.fixture(scope="module")
def stack(request):
    env = {"HEADRACE_CPUS": "4", "HEADRACE_MEMORY": "8GiB", "HEADRACE_CHECKPOINT_SCAN": "100ms",
           "HEADRACE_TRAINER_LEASE": "3s", "HEADRACE_NODE_LOG_RATE": "64KiB",
           "HEADRACE_MAINTENANCE": "1s", "HEADRACE_TRAINING_KEEP": "3s"}
    for stack in run_stack(request, trainer=True, env=env):
        project(stack)
        yield stack


def test_ends(stack):
    """Each way in which a job can end is told apart, in its row and in the ledger."""
    fine = push(stack, "echo one; echo two >&2", "test $BT_RETRY_COUNT = 0 && test -d $BT_CHECKPOINT_DIR && pwd",
                environment_variables={"MINE": "it's"}, name="fine")
    told = push(stack, 'test "$MINE" = "it\'s" && env | grep BT_ | sort', environment_variables={"MINE": "it's"})
    failed = push(stack, "echo almost; exit 3", "echo never")
    crashed = push(stack, "kill -SEGV $$")
    missing = push(stack, "no-such-command --now")
    short = push(stack, "python3 -c \"x = bytearray(400 << 20); x[::4096] = b'1' * len(x[::4096]); import time; "
                        "time.sleep(60)\"", memory_bytes=100 << 20)
    late = push(stack, "trap '' TERM; sleep 60", time_limit_seconds=1, grace_seconds=1)
    wants = {
        fine: ("COMPLETED", "exit", "0", None), told: ("COMPLETED", "exit", "0", None),
        failed: ("FAILED", "exit", "3", None), crashed: ("FAILED", "signal", None, "11"),
        missing: ("FAILED", "command_not_found", "127", None), short: ("FAILED", "out_of_memory", None, "9"),
        late: ("FAILED", "time_limit", None, "9"),
    }
    for id, want in wants.items():
        ended = wait_end(stack, id)
        assert (ended["status"], ended["cause"]) == want[:2], (want, ended)
        if ended["cause"] not in ("out_of_memory", "time_limit"):
            assert (ended["exit_code"], ended["signal"]) == want[2:], (want, ended)
        state = "SUCCEEDED" if want[0] == "COMPLETED" else "FAILED"
        wait_until("the ledger to say so", lambda id=id, state=state: ledger(stack, id)[0] == state)
    assert lines(stack, fine)[:2] == ["one", "two"]
    assert "almost" in lines(stack, failed) and "never" not in lines(stack, failed)
    said = dict(line.split("=", 1) for line in lines(stack, told))
    assert said["BT_TRAINING_JOB_ID"] == told and said["BT_TRAINING_PROJECT_NAME"] == PROJECT
    assert said["BT_NUM_GPUS"] == "0" and said["BT_GROUP_SIZE"] == "1" and said["BT_NODE_RANK"] == "0"
    assert job(stack, failed)["error_message"] == "almost"
    assert ledger(stack, failed)[1] == "training_failed"


def ask_stop(stack, id):
    return stack.sql("SELECT headrace.training_stop(:'a1', 'default', 'somebody')", id)[0][0]


def test_stop(stack):
    """A stop reaches a job that waits at once, one that runs by SIGTERM, and kills what does not heed it."""
    heeds = push(stack, """python3 -u -c '
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saving", flush=True), sys.exit(0)))
print("ready", flush=True)
time.sleep(60)'""", "echo never")
    deaf = push(stack, "trap '' TERM; (sleep 77 & sleep 77); sleep 77", grace_seconds=1)
    waits = push(stack, "echo never", cpu_count=64)
    wait_status(stack, heeds, "RUNNING")
    wait_status(stack, deaf, "RUNNING")
    wait_until("it to be ready", lambda: "ready" in lines(stack, heeds))
    wait_status(stack, waits, "PENDING")
    assert ask_stop(stack, heeds) == "RUNNING" and ask_stop(stack, deaf) == "RUNNING"
    assert ask_stop(stack, waits) == "STOPPED"
    for id in heeds, deaf, waits:
        ended = wait_end(stack, id)
        assert (ended["status"], ended["cause"]) == ("STOPPED", "stopped"), ended
        wait_until("the ledger to say so", lambda id=id: ledger(stack, id)[0] == "CANCELED")
    assert lines(stack, heeds) == ["ready", "saving"]
    assert not scripts(stack.process.pid, "sleep", "77")
    by_sql = push(stack, "sleep 60")
    wait_status(stack, by_sql, "RUNNING")
    stack.sql("SELECT headrace_v1.cancel(:'a1')", by_sql)
    assert wait_end(stack, by_sql)["status"] == "STOPPED"


# Counts to `steps`, and saves what it has come to every fifth step. The sum depends on every step.
COUNT = """
import glob, json, os, sys, time
steps, pause, keep = int(sys.argv[1]), float(sys.argv[2]), os.environ["BT_CHECKPOINT_DIR"]
at, value = 0, 1
for path in glob.glob(os.environ["BT_LOAD_CHECKPOINT_DIR"] + "/rank-0/*/state.json"):
    at, value = json.load(open(path))
    print("resumed", at, os.environ["BT_RETRY_COUNT"], flush=True)
while at < steps:
    at, value = at + 1, (value * 48271 + at) % 2147483647
    print("step", at, flush=True)
    time.sleep(pause)
    if at % 5 == 0:
        new = f"{keep}/.new"
        os.makedirs(new)
        open(new + "/weights", "wb").write(b"w" * 300000)
        json.dump([at, value], open(new + "/state.json", "w"))
        os.rename(new, f"{keep}/step-{at:04}")
print("value", value, flush=True)
"""


def count_to(steps):
    value = 1
    for at in range(1, steps + 1):
        value = (value * 48271 + at - 1) % 2147483647
    return value


def counting(steps, pause):
    return f"cat > count.py <<'EOF'\n{COUNT}\nEOF", f"python3 count.py {steps} {pause}"


def test_checkpoints(stack):
    """What is saved is listed while the job runs, unchanged files are sent once, the policy lets old ones go."""
    id = push(stack, *counting(30, 0.05), checkpointing={"enabled": True, "keep": 3})
    wait_until("a checkpoint", lambda: any(c[1] == "COMPLETE" for c in checkpoints(stack, id)))
    running = job(stack, id)["status"]
    assert running == "RUNNING", running
    assert wait_end(stack, id)["status"] == "COMPLETED"
    rows = checkpoints(stack, id)
    assert [c[0] for c in rows if c[1] == "COMPLETE"] == ["step-0020", "step-0025", "step-0030"], rows
    for name, _state, files, size, sent in rows[1:]:
        assert int(files) == 2 and int(sent) < 0.01 * int(size), (name, size, sent)
    # A folder that somebody writes into is not sent until it is quiet, nor a half one of who was killed.
    half = push(stack, "mkdir $BT_CHECKPOINT_DIR/a && echo 1 > $BT_CHECKPOINT_DIR/a/x && sleep 1.5",
                "mkdir $BT_CHECKPOINT_DIR/b && echo 1 > $BT_CHECKPOINT_DIR/b/x; kill -SEGV $$")
    assert wait_end(stack, half)["cause"] == "signal"
    assert [c[:2] for c in checkpoints(stack, half)] == [["a", "COMPLETE"]]
    # The next job of the project goes on from the newest, if it asks for it.
    after = push(stack, *counting(32, 0), load_checkpoint={"enabled": True, "checkpoints": [
        {"typ": "baseten_latest_checkpoint", "job_id": id}]})
    assert wait_end(stack, after)["status"] == "COMPLETED"
    assert lines(stack, after) == ["resumed 30 0", "step 31", "step 32", f"value {count_to(32)}"]


def let_on(stack, id):
    """What the script waits for: `until [ -e $BT_SCRATCH_DIR/on ]`."""
    for path in stack.data_dir.glob(f"*/jobs/{id}-*/scratch"):
        (path / "on").touch()


WAIT = "until [ -e $BT_SCRATCH_DIR/on ]; do sleep 0.05; done; rm $BT_SCRATCH_DIR/on"


def test_seen_without_a_scan(stack):
    """What is renamed into place is listed by the kernel's word alone: this trainer scans each minute, and that scan was made."""
    trainer = Trainer(stack, "rare", HEADRACE_CPUS="9", HEADRACE_CHECKPOINT_SCAN="1m").start()
    id = push(stack, "cd $BT_CHECKPOINT_DIR; for n in 1 2 3; do mkdir .new; date > .new/x; mv .new step-$n; %s; done" % WAIT, cpu_count=9)
    for n in (1, 2, 3):
        wait_until(f"checkpoint {n}", lambda n=n: [c[:2] for c in checkpoints(stack, id)] == [
            [f"step-{i}", "COMPLETE"] for i in range(1, n + 1)], 20)
        let_on(stack, id)
    assert wait_end(stack, id)["status"] == "COMPLETED"
    assert trainer.stop() == 0


def test_saved_again_in_place(stack):
    """A checkpoint that was sent and is written again is sent again, a file at the top as well as one deep in a folder; and
    a folder that is empty for long is seen when it is not any more."""
    id = push(stack, "cd $BT_CHECKPOINT_DIR; mkdir -p a/deep empty; echo 1 > a/deep/x; echo 1 > one; %s" % WAIT,
              "cd $BT_CHECKPOINT_DIR; echo 22 > a/deep/x; echo 22 > one; echo 22 > empty/x; %s" % WAIT)

    def sizes():
        return {c[0]: int(c[3]) for c in checkpoints(stack, id) if c[1] == "COMPLETE"}

    wait_until("the first ones", lambda: sizes() == {"a": 2, "one": 2})
    let_on(stack, id)
    wait_until("the second ones", lambda: sizes() == {"a": 3, "one": 3, "empty": 3})
    let_on(stack, id)
    assert wait_end(stack, id)["status"] == "COMPLETED"


def waits_of(pid):
    """How often it has gone to sleep."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])


def test_line_after_line(stack):
    """Who prints line after line does not wake its trainer for each, and what he has printed is there all the same."""
    trainer = Trainer(stack, "chatty", HEADRACE_CPUS="9").start()
    wait_until("its host", lambda: hosts_of(trainer))
    (host,) = hosts_of(trainer)
    id = push(stack, "python3 -u -c 'import time; [(print(n), time.sleep(0.003)) for n in range(1500)]'; %s" % WAIT, cpu_count=9)
    wait_until("its first line", lambda: lines(stack, id))
    began, had, were = time.monotonic(), waits_of(host), len(lines(stack, id))
    wait_until("its last line", lambda: len(lines(stack, id)) == 1500)
    seconds, waits = time.monotonic() - began, waits_of(host) - had
    assert waits < 60 * seconds + 60, (waits, seconds, were)
    let_on(stack, id)
    assert wait_end(stack, id)["status"] == "COMPLETED" and lines(stack, id) == [str(n) for n in range(1500)]
    assert trainer.stop() == 0


def hosts_of(trainer):
    return [pid for pid in descendants(trainer.process.pid) if command_line(pid)[1:2] == ["host-training"]]


def test_quota_of_many_files(stack):
    """A folder that takes long to walk is walked rarely, and what is filled meanwhile is found at once all the same."""
    id = push(stack, "mkdir many; cd many; seq 1 12000 | xargs touch; echo made; %s" % WAIT,
              "dd if=/dev/zero of=big bs=1M count=300 2>/dev/null; echo full; sleep 60", disk_bytes=100 << 20,
              checkpointing={"enabled": False})

    def walks():
        return int(stack.sql("SELECT count(*) FROM headrace.training_metric WHERE job_id = :'a1' AND name = 'disk_bytes'", id)[0][0])

    def samples():
        return int(stack.sql("SELECT count(*) FROM headrace.training_metric WHERE job_id = :'a1' AND name = 'memory_bytes'", id)[0][0])

    wait_until("the files", lambda: "made" in lines(stack, id))
    had, were = samples(), walks()
    wait_until("a few seconds", lambda: samples() >= had + 4)
    assert walks() <= were + 2, (were, walks())
    let_on(stack, id)
    wait_until("the disk to be full", lambda: "full" in lines(stack, id) or job(stack, id)["status"] == "FAILED")
    ended = wait_end(stack, id, 15)
    assert (ended["status"], ended["cause"]) == ("FAILED", "disk_quota"), ended


def blobs_of(stack):
    return {path.name for path in (stack.data_dir / "blobs/training" / PROJECT).iterdir()}


def blob_of(stack, id, name, path):
    ((key,),) = stack.sql("SELECT headrace.training_blob(:'a4', f) FROM headrace.training_checkpoint c, jsonb_array_elements(c.files) f "
                          "WHERE c.job_id = :'a1' AND c.name = :'a2' AND f->>'path' = :'a3'", id, name, path, PROJECT)
    return stack.data_dir / "blobs" / key


def test_lost_files(stack):
    """A file that is not what was saved is named, the checkpoint before it is taken; nothing begins anew by itself."""
    def go_on(id, name=None):
        wanted = {"typ": "baseten_named_checkpoint", "job_id": id, "checkpoint_name": name} if name else {
            "typ": "baseten_latest_checkpoint", "job_id": id}
        return push(stack, *counting(16, 0), load_checkpoint={"enabled": True, "checkpoints": [wanted]})

    id = push(stack, *counting(15, 0.02))
    assert wait_end(stack, id)["status"] == "COMPLETED"
    blob_of(stack, id, "step-0015", "state.json").write_text("[15, 1]")
    after = go_on(id)
    assert wait_end(stack, after)["status"] == "COMPLETED"
    assert lines(stack, after)[0] == "resumed 10 0" and lines(stack, after)[-1] == f"value {count_to(16)}"
    ((told,),) = stack.sql("SELECT message FROM headrace.training_event WHERE job_id = :'a1' AND status = 'CHECKPOINT_LOST'", after)
    assert "checkpoint step-0015" in told and "rank-0/step-0015/state.json has 7 bytes; it was saved with" in told, told
    named = go_on(id, "step-0015")
    # Who saves the same content again stores it again, and what names it is whole again.
    weights = blob_of(stack, id, "step-0010", "weights")
    was = weights.read_bytes()
    weights.write_bytes(b"x" * len(was))
    none = go_on(id)
    ended = wait_end(stack, none)
    assert (ended["status"], ended["cause"]) == ("DEPLOY_FAILED", "restore"), ended
    assert f"no checkpoint of job {id} can be read; the newest one, step-0015: the store's copy of" in ended["error_message"], ended
    told = [row[0] for row in stack.sql("SELECT message FROM headrace.training_event WHERE job_id = :'a1' AND status = "
                                        "'CHECKPOINT_LOST' ORDER BY id", none)]
    assert ["its SHA-256 is" in text and name in text for text, name in zip(told, ("step-0010", "step-0005"))] == [True, True], told
    assert "job %s has no complete checkpoint step-0015 any more" % id in wait_end(stack, named)["error_message"]
    anew = push(stack, *counting(5, 0))
    assert wait_end(stack, anew)["status"] == "COMPLETED" and weights.read_bytes() == was


def test_store_is_full(stack):
    """A disk that fills in mid-upload: the manifest is absent, and whole once there is room; else the job has failed."""
    if not may_mount():
        pytest.skip("needs mounts of its own")
    trainer = Trainer(stack, "small", disk_mb=4, HEADRACE_CPUS="9", HEADRACE_CHECKPOINT_SCAN="100ms",
                      HEADRACE_CHECKPOINT_PATIENCE="2s").start()
    filler = "headrace-filler"
    script = "mkdir $BT_CHECKPOINT_DIR/.n; for i in 1 2 3; do head -c 900000 /dev/urandom > $BT_CHECKPOINT_DIR/.n/$i; done; " \
             "mv $BT_CHECKPOINT_DIR/.n $BT_CHECKPOINT_DIR/a"
    log = stack.data_dir / "logs/small.log"
    try:
        wait_until("its disk", lambda: os.statvfs(trainer.disk()).f_blocks << 12 == 4 << 20 and (trainer.disk() / "tmp").is_dir())
        (trainer.disk() / filler).write_bytes(bytes(2 << 20))
        waits = push(stack, script, cpu_count=9)
        wait_until("it not to be stored", lambda: "checkpoint_not_sent" in log.read_text() and "No space left" in log.read_text())
        assert job(stack, waits)["status"] == "RUNNING" and [c[:2] for c in checkpoints(stack, waits)] == [["a", "SYNCING"]]
        (trainer.disk() / filler).unlink()
        assert wait_end(stack, waits)["status"] == "COMPLETED"
        assert [c[:3] for c in checkpoints(stack, waits)] == [["a", "COMPLETE", "3"]]
        assert list((trainer.disk() / "tmp").iterdir()) == []
        lost = push(stack, script, cpu_count=9)
        ended = wait_end(stack, lost)
        assert (ended["status"], ended["cause"]) == ("FAILED", "store"), ended
        assert "its last checkpoint could not be stored" in ended["error_message"] and "No space left" in ended["error_message"]
        assert [c[:2] for c in checkpoints(stack, lost)] == [["a", "SYNCING"]]
    finally:
        assert trainer.stop() == 0


def test_promise(stack):
    """A job whose gateway was lost between its row and its Submit is submitted by whichever gateway finds it."""
    id = str(uuid.uuid4())
    ((shaped,),) = stack.sql("SELECT job_id FROM headrace.training_job ORDER BY created_at DESC LIMIT 1")
    id = shaped[:-12] + id[-12:]  # of the same shard and time
    stack.sql("SELECT headrace.training_job_put(:'a1', :'a2', 'default', :'a3', 'lost')", id, PROJECT,
              json.dumps({"start_commands": ["echo promised"], "cpu_count": 1}))
    assert job(stack, id)["status"] == "PENDING"
    stack.sql("UPDATE headrace.training_job SET created_at = now() - interval '1 minute', submit_at = now() - interval '1 minute' "
              "WHERE job_id = :'a1'", id)
    assert wait_end(stack, id)["status"] == "COMPLETED"
    assert lines(stack, id) == ["promised"] and ledger(stack, id)[0] == "SUCCEEDED"


def training_process(stack):
    return next(iter(scripts(stack.process.pid, "python3", "count.py")), None)


def kill_training(stack):
    os.kill(wait_until("it to run", lambda: training_process(stack)), signal.SIGKILL)


def steps_of(stack, id):
    return [int(line.split()[1]) for line in lines(stack, id) if line.startswith("step ")]


def test_resume(stack):
    """kill -9 of the training process and of the trainer's host; with HEADRACE_LONG of broker and the whole
    trainer, too: what comes out is what an undisturbed run comes to."""
    steps, every, kills = (200, 5, 20) if LONG else (40, 5, 2)
    id = push(stack, *counting(steps, 0.1 if LONG else 0.05))
    ways = [lambda: kill_training(stack), lambda: stack.kill("host-training"),
            lambda: stack.restart_service("broker", kill=True), lambda: stack.restart_service("trainer", kill=True)]

    def saved(count):
        wait_until(f"{count} checkpoints",
                   lambda: sum(c[1] == "COMPLETE" for c in checkpoints(stack, id)) >= count, 60)

    for kill in range(kills):
        saved(2 * kill + 1)
        ways[kill % len(ways)]()
    lost = kills - kills // 4 if LONG else kills  # the broker's end costs a node nothing
    ended = wait_end(stack, id, 120)
    retries = int(ended["retry_count"])  # a kill may meet a node that has not begun again
    assert ended["status"] == "COMPLETED" and 1 <= retries <= lost, ended
    said = lines(stack, id)
    assert f"value {count_to(steps)}" in said
    assert 1 <= sum(line.startswith("resumed") for line in said) <= retries
    ran = steps_of(stack, id)
    assert sorted(set(ran)) == list(range(1, steps + 1)) and len(ran) <= steps + retries * (every + 1), len(ran)
    assert ledger(stack, id)[0] == "SUCCEEDED"
    manifests = stack.sql("SELECT name, state, files IS NOT NULL, file_count FROM headrace.training_checkpoint "
                          "WHERE job_id = :'a1'", id)
    assert all(m[1:] == ["COMPLETE", "t", "2"] for m in manifests), manifests


def test_drain(stack):
    """A trainer that is stopped has its nodes save and hands their jobs on, which costs them nothing."""
    id = push(stack, *counting(40, 0.05))
    wait_until("a checkpoint", lambda: any(c[1] == "COMPLETE" for c in checkpoints(stack, id)))
    stack.restart_service("trainer")
    ended = wait_end(stack, id)
    assert ended["status"] == "COMPLETED" and ended["lost_count"] == "0" and ended["retry_count"] == "1", ended
    assert f"value {count_to(40)}" in lines(stack, id)
    causes = stack.sql("SELECT cause FROM headrace.training_node WHERE job_id = :'a1' ORDER BY placement", id)
    assert causes == [["drained"], ["exit"]], causes


def test_fence(stack):
    """What is over may write nothing more, be it a manifest, a line or an end."""
    id = push(stack, "sleep 60")
    wait_status(stack, id, "RUNNING")
    stack.sql("UPDATE headrace.training_node SET state = 'ENDED', cause = 'lost', ended_at = now() WHERE job_id = :'a1'", id)
    stack.sql("SELECT headrace.training_close(:'a1', 1)", id)
    with pytest.raises(AssertionError, match="placement 1 of training job .* is over"):
        stack.sql("""SELECT headrace.training_checkpoint_commit(:'a1', 1, 0, (SELECT boot FROM headrace.training_node
            WHERE job_id = :'a1' AND placement = 1), 'late', '[]', 0, 0, 'full', NULL, NULL, 0)""", id)
    again = wait_until("its second placement", lambda: (j := job(stack, id))["placement"] == "2"
                       and j["status"] == "RUNNING" and j)
    assert again["lost_count"] == "1"
    log = (stack.data_dir / "logs/trainer.log").read_text()
    assert "node_fenced" in log
    ask_stop(stack, id)
    wait_end(stack, id)


def test_contained(stack):
    """A script that fills the disk, floods its output or saves for ever hurts only itself; the next job runs."""
    # What one job is told in its environment, or saves, another one cannot read.
    told = push(stack, "echo $TOKEN > $BT_CHECKPOINT_DIR/token; echo ready; sleep 60", environment_variables={"TOKEN": "words-for-me-alone"})
    wait_until("it to be told", lambda: "ready" in lines(stack, told))
    spy = push(stack, f"cat /proc/[0-9]*/environ {stack.data_dir}/trainer/jobs/*/checkpoints/* {stack.data_dir}/trainer/jobs/*/scratch/.start "
                      "2>/dev/null | tr '\\0' '\\n' | grep -c words-for-me | sed 's/^/found /'; ls /proc | grep -c '^[0-9]'")
    assert wait_end(stack, spy)["status"] == "COMPLETED" and lines(stack, spy)[0] == "found 0", lines(stack, spy)
    ask_stop(stack, told)
    full = push(stack, "dd if=/dev/zero of=$BT_WORKING_DIR/big bs=1M count=600 2>/dev/null; sleep 60", disk_bytes=64 << 20)
    flood = push(stack, "echo first; yes " + "." * 99 + " | head -n 60000; sleep 0.1; echo last")
    endless = push(stack, "trap '' TERM; mkdir $BT_CHECKPOINT_DIR/x; while :; do date >> $BT_CHECKPOINT_DIR/x/log; sleep 0.05; done",
                   time_limit_seconds=2, grace_seconds=1)
    small = push(stack, "echo fine")
    assert wait_end(stack, small)["status"] == "COMPLETED"
    ended = wait_end(stack, full)
    assert (ended["status"], ended["cause"]) == ("FAILED", "disk_quota") and "67108864" in ended["error_message"], ended
    assert wait_end(stack, endless)["cause"] == "time_limit"
    assert [c for c in checkpoints(stack, endless) if c[1] == "COMPLETE"] == []
    assert wait_end(stack, flood)["status"] == "COMPLETED"
    said = lines(stack, flood)
    marks = [line for line in said if line.startswith("[headrace] ")]
    assert said[0] == "first" and said[-1] == "last" and marks, said[-3:]
    assert sum(map(len, said)) < 4 << 20  # of 6 MB


def test_preemption(stack):
    """A job of a higher priority takes the place of a lower one, which saves, waits, goes on, and pays nothing."""
    low = push(stack, """python3 -u -c '
import os, signal, sys, time
keep = os.environ["BT_CHECKPOINT_DIR"]
def save(*_):
    os.mkdir(keep + "/.n"); open(keep + "/.n/x", "w").write("1"); os.rename(keep + "/.n", keep + "/last"); sys.exit(0)
if os.environ["BT_LOAD_CHECKPOINT_DIR"]:
    print("on", os.listdir(os.environ["BT_LOAD_CHECKPOINT_DIR"] + "/rank-0"), os.environ["BT_RETRY_COUNT"]); sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("off")
time.sleep(60)'""", cpu_count=3, priority=-1)
    wait_until("it to be under way", lambda: "off" in lines(stack, low))
    same = push(stack, "echo same", cpu_count=3, priority=-1)
    high = push(stack, "sleep 0.3; echo high", cpu_count=4, priority=7)
    assert wait_end(stack, high)["status"] == "COMPLETED"
    ended = wait_end(stack, low)
    assert ended["status"] == "COMPLETED" and ended["preempted_count"] == "1" and ended["lost_count"] == "0", ended
    assert lines(stack, low) == ["off", "on ['last'] 1"]
    assert wait_end(stack, same)["status"] == "COMPLETED"
    attempts = stack.sql("SELECT attempt_count, user_failures, lost_failures FROM headrace.job WHERE id = :'a1'", low)[0]
    assert attempts[1:] == ["0", "0"], attempts
    order = [row[0] for row in stack.sql("SELECT job_id FROM headrace.training_node WHERE job_id IN (:'a1', :'a2', :'a3') "
                                         "AND placement = 1 ORDER BY placed_at", low, same, high)]
    assert order == [low, high, same]
    told = stack.sql("SELECT status FROM headrace.training_event WHERE job_id = :'a1' ORDER BY id", low)
    assert ["PREEMPTED"] in told, told


def test_gang(stack):
    """A job of two nodes begins on two trainers of this machine or on none; the loss of one restarts both."""
    script = """python3 -u -c '
import os, socket, sys, time
rank, size = int(os.environ["BT_NODE_RANK"]), int(os.environ["BT_GROUP_SIZE"])
port = 20000 + int(os.environ["BT_TRAINING_JOB_ID"][-3:], 16)
print("rank", rank, "of", size, "retry", os.environ["BT_RETRY_COUNT"])
if rank == 0:
    server = socket.create_server(("", port))
    other, _ = server.accept()
    print("heard", other.recv(9).decode())
else:
    for _ in range(200):
        try:
            link = socket.create_connection((os.environ["BT_LEADER_ADDR"], port)); break
        except OSError:
            time.sleep(0.05)
    link.sendall(b"hello")
if os.environ["BT_RETRY_COUNT"] == "0":
    time.sleep(60)'"""
    id = push(stack, script, node_count=2)
    wait_status(stack, id, "PENDING")
    behind = push(stack, "echo not behind it")  # one trainer cannot ever run the other
    assert wait_end(stack, behind)["status"] == "COMPLETED"
    second = Trainer(stack, "second").start()
    try:
        wait_until("both to talk", lambda: "heard hello" in lines(stack, id))
        nodes = stack.sql("SELECT rank, trainer, state FROM headrace.training_node WHERE job_id = :'a1' ORDER BY rank", id)
        assert sorted(n[1] for n in nodes) == ["dev", "second"] and {n[2] for n in nodes} == {"RUNNING"}
        stack.kill("host-training")  # of dev's
        ended = wait_end(stack, id)
        assert ended["status"] == "COMPLETED" and ended["retry_count"] == "1", ended
        assert {n[0] for n in stack.sql("SELECT cause FROM headrace.training_node WHERE job_id = :'a1' AND placement = 1",
                                        id)} == {"lost", "gang"}
        assert "rank 1 of 2 retry 1" in lines(stack, id, rank=1)
    finally:
        assert second.stop() == 0


def test_unnamed_files_go(stack):
    """What no checkpoint names any more is removed, what one names stays; a remover that comes late takes nothing along."""
    named = "SELECT DISTINCT split_part(headrace.training_blob(:'a1', f), '/', 3) FROM headrace.training_checkpoint c, " \
            "jsonb_array_elements(c.files) f WHERE c.state = 'COMPLETE'"

    def is_clean():
        return blobs_of(stack) <= {row[0] for row in stack.sql(named, PROJECT)} and stack.sql(
            "SELECT count(*) FROM headrace.training_file WHERE dropping_at IS NOT NULL") == [["0"]]

    wait_until("only named files to be there", is_clean, 30)
    assert blobs_of(stack)
    # While a file is marked, the same content is stored under another number, and the remover's key is not that one.
    stack.sql("UPDATE headrace.training_file SET used_at = now() + interval '1 hour'")  # first: else the broker may be quicker
    stack.sql("UPDATE headrace.training_checkpoint SET state = 'DELETED', files = NULL")
    (marked,) = [row for row in stack.sql("UPDATE headrace.training_file SET used_at = '2020-01-01' WHERE size_bytes = 300000 "
                                          "RETURNING digest, number")][:1]
    wait_until("it to be gone", lambda: stack.sql("SELECT count(*) FROM headrace.training_file WHERE digest = :'a1'", marked[0]) == [["0"]])
    id = push(stack, *counting(5, 0))
    assert wait_end(stack, id)["status"] == "COMPLETED"
    ((digest, number),) = stack.sql("SELECT digest, number FROM headrace.training_file WHERE size_bytes = 300000")
    assert digest == marked[0] and int(number) > int(marked[1])
    assert blob_of(stack, id, "step-0005", "weights").read_bytes() == b"w" * 300000


@pytest.mark.skipif(not LONG, reason="trains a network three times; set HEADRACE_LONG")
def test_digits(stack):
    """The example's weights are the same to the byte, whoever was killed while it trained."""
    example = pathlib.Path(__file__).parents[2] / "examples/train-digits"
    files = [f"cat > {name} <<'EOF'\n{(example / name).read_text()}\nEOF" for name in ("train.py", "serve/model/model.py")]
    commands = "mkdir -p serve/model", *files, "python3 train.py --steps 1200 --save 100"

    def train(kill):
        id = push(stack, *commands)
        for count in (2, 5) if kill else ():
            wait_until(f"{count} checkpoints", lambda n=count: len(checkpoints(stack, id)) >= n, 60)
            stack.kill("host-training")
        ended = wait_end(stack, id, 120)
        assert ended["status"] == "COMPLETED", ended
        return ended, stack.sql("SELECT f->>'digest' FROM headrace.training_checkpoint c, jsonb_array_elements(c.files) f "
                                "WHERE c.job_id = :'a1' AND c.name = 'step-01200' AND f->>'path' = 'data/weights.json'", id)

    (_, calm), (ended, disturbed) = train(False), train(True)
    assert len(calm) == 1 and calm == disturbed and ended["retry_count"] == "2", (calm, disturbed, ended)
