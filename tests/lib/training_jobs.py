# SPDX-License-Identifier: Apache-2.0
"""Training jobs as tests see them: a project by rows, jobs, what became of them, and a second trainer.

Used by tests/stack/test_training*.py, `bench/run training` and `bench/run training-kills`."""

import json
import os
import pathlib
import subprocess
import uuid

from stack import BINARY, command_line, descendants, die_with_parent, wait_until

PROJECT = "digits"
OPEN = ("PENDING", "CREATED", "DEPLOYING", "RUNNING")
COLUMNS = ("status", "cause", "exit_code", "signal", "error_message", "retry_count", "placement", "lost_count",
           "preempted_count")


def project(stack, name=PROJECT):
    stack.sql("""
        INSERT INTO headrace.model (id, tenant, name, deployment_count) VALUES (:'a1', 'default', :'a1', 1);
        INSERT INTO headrace.deployment (id, model_id, name, number, pool, shard, engine, slot_count, run_limit_ms,
                replicas_min, replicas_max, replicas_wanted, status)
            VALUES (:'a1', :'a1', 'deployment-1', 1, 'training', 0, 'training', 1, 31622400000, 0, 0, 0, 'ACTIVE');
        INSERT INTO headrace.environment (model_id, name) VALUES (:'a1', 'production');
        INSERT INTO headrace.environment_target (model_id, environment, deployment_id)
            VALUES (:'a1', 'production', :'a1');
        INSERT INTO headrace.training_project (id, tenant, name) VALUES (:'a1', 'default', :'a1');
        """, name)


def push(stack, *commands, **spec):
    spec = {"name": "test", "cpu_count": 1, "grace_seconds": 2,
            "checkpointing": {"enabled": True, "quiet_ms": 300}, **spec, "start_commands": list(commands)}
    # A spec has more than a body may ask for (how soon a checkpoint is quiet), so it is that of a job that is over, made again.
    made = str(uuid.uuid4())
    stack.sql("""
        BEGIN;
        SELECT headrace.training_job_put(:'a1', :'a2', 'default', :'a3', 'test');
        SELECT headrace.training_finish(:'a1', 'STOPPED', 'stopped', NULL, NULL, NULL);
        COMMIT;
        """, made, PROJECT, json.dumps(spec))
    again = stack.http("POST", f"/v1/training_projects/{PROJECT}/jobs/{made}/recreate", {})
    assert again.status in (200, 201), again
    return again.json["training_job"]["id"]


def job(stack, id):
    rows = stack.sql(f"SELECT {', '.join(COLUMNS)} FROM headrace.training_job WHERE job_id = :'a1'", id)
    return dict(zip(COLUMNS, rows[0])) if rows else {"status": None}


def wait_status(stack, id, *statuses, seconds=30):
    return wait_until(f"{id} to be {statuses}", lambda: (j := job(stack, id))["status"] in statuses and j, seconds)


def wait_end(stack, id, seconds=40):
    return wait_until(f"{id} to end", lambda: (j := job(stack, id))["status"] not in (*OPEN, None) and j, seconds)


def lines(stack, id, rank=0):
    """Its log, after a check that no number is missing or there twice."""
    rows = stack.sql("SELECT number, line_count, replace(text, E'\\n', E'\\x1d') FROM headrace.training_log WHERE job_id = :'a1' AND rank = :a2 "
                     "ORDER BY number", id, rank)
    said, number = [], 1
    for first, count, text in rows:
        text = text.split("\x1d")[:-1]
        assert int(first) == number and len(text) == int(count), (first, count, number)
        said += text
        number += int(count)
    return said


def ledger(stack, id):
    return stack.sql("SELECT headrace.state_name(state), headrace.error_class_name(error_class) FROM headrace.job "
                     "WHERE id = :'a1'", id)[0]


def checkpoints(stack, id):
    return stack.sql("SELECT name, state, file_count, size_bytes, uploaded_bytes FROM headrace.training_checkpoint "
                     "WHERE job_id = :'a1' ORDER BY name", id)


def scripts(pid, *words):
    """Processes below one whose command line begins with these words."""
    return [found for found in descendants(pid) if command_line(found)[:len(words)] == list(words)]


def own_mounts():
    """What runs a program with mounts of its own."""
    return ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"]) + ["--"]


def may_mount():
    done = subprocess.run([*own_mounts(), "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return done.returncode == 0


class Trainer:
    """Another trainer on this machine, beside dev's. With disk_mb its blob store is a disk of its own of that size."""

    def __init__(self, stack, name, disk_mb=0, **env):
        self.stack, self.name, self.process, self.disk_mb = stack, name, None, disk_mb
        self.env = {"HEADRACE_CPUS": "4", "HEADRACE_MEMORY": "8GiB", **env}

    def disk(self):
        """Its blob store as it sees it."""
        return pathlib.Path(f"/proc/{self.process.pid}/root{self.stack.data_dir / 'blobs'}")

    def start(self):
        services, folder = self.stack.services(), self.stack.data_dir
        env = {**os.environ, "HEADRACE_TRAINER": self.name, "HEADRACE_TRAINER_DIR": str(folder / self.name),
               "HEADRACE_KAFKA": services["kafka"]["url"], "HEADRACE_POSTGRES": services["postgres"]["url"],
               "HEADRACE_BLOBS": str(folder / "blobs"), **self.env}
        words = [BINARY, "trainer"]
        if self.disk_mb:
            words = [*own_mounts(), "sh", "-c", f'mount -t tmpfs -o size={self.disk_mb}m none "$1" && shift && exec "$@"', "sh",
                     str(folder / "blobs"), *words]
        with open(folder / f"logs/{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            preexec_fn=die_with_parent)
        return self

    def kill(self):
        self.process.kill()
        self.process.wait(30)

    def stop(self):
        """SIGTERM. Its exit code."""
        self.process.terminate()
        return self.process.wait(60)
