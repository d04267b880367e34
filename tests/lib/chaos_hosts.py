# SPDX-License-Identifier: Apache-2.0
"""Cells of bench/chaos that hurt the engine host of a user's code: a server of their own, and the Python of a Truss.

A model of each kind is deployed once a world, with two workers of six slots, as the `sim` engine is. Its host takes
LOAD_SECONDS to load, so that a host that was just started again can be hit while it does.
"""

import json
import os
import shutil
import signal

from stack import ROOT, command_line, descendants, wait_until

LOAD_SECONDS = 3
SLOTS, REPLICAS = 6, 2
WHEELS = os.environ.get("HEADRACE_DEPS", str(ROOT / ".headrace/deps")) + "/wheels-truss"
ENV = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS, "PIP_NO_COMPILE": "1"}

SERVER = {"engine": "server", "slots": SLOTS, "replicas": REPLICAS, "settings": {
    "start_command": "exec python3 server.py", "predict_endpoint": "/predict", "readiness_endpoint": "/health",
    "environment_variables": {"READY_AFTER": str(LOAD_SECONDS)}}}

CONFIG = f"""model_name: host-py
runtime:
  predict_concurrency: {SLOTS}
"""

MODEL = f"""import asyncio
import time


class Model:
    def load(self):
        time.sleep({LOAD_SECONDS})

    async def predict(self, order):
        if order.get("pieces"):
            return self.pieces(order)
        await asyncio.sleep(order["sleep"])
        return {{"echo": order, "more": "y" * order.get("size", 0)}}

    async def pieces(self, order):
        for n in range(order["pieces"]):
            await asyncio.sleep(order["every"])
            yield "%d\\n" % n
"""

MARKS = {
    "host-server": lambda line: line[1:2] == ["host-server"],
    # Its second half alone: what confines it has the same words, further behind.
    "host-py": lambda line: line[3:4] == ["--loaded"] and line[2].endswith("host_py"),
}


def orders(program, step, service_ms):
    """What a job asks of the model: (plain, one with a large result). Both take as long as a job of `sim`."""
    seconds = service_ms / 1000
    if step == "streaming":
        pieces = {"pieces": 10, "every": seconds / 10}
        pieces = {"do": "sse", **pieces} if program == "host-server" else pieces
        return pieces, pieces
    if program == "host-server":
        return {"do": "echo", "sleep": seconds}, {"do": "big", "mib": 1}
    return {"sleep": seconds}, {"sleep": seconds, "size": 600000}


def write_model(folder, program):
    folder.mkdir(parents=True)
    if program == "host-server":
        shutil.copy(ROOT / "tests/lib/http_model/server.py", folder)
        (folder / "headrace.json").write_text(json.dumps(SERVER))
        return
    (folder / "model").mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "model/model.py").write_text(MODEL)


def deploy(world, program):
    """Once a world; both replicas are ready."""
    folder = world.directory / "models" / program
    if not folder.exists():
        write_model(folder, program)
        world.stack.push(folder, program)
        world.stack.sql("""UPDATE headrace.deployment d SET replicas_min = :a2, replicas_max = :a2,
                           replicas_wanted = :a2 FROM headrace.model m WHERE m.id = d.model_id
                           AND m.name = :'a1'""", program, REPLICAS)
    wait_until(f"{REPLICAS} hosts of {program}", lambda: len(hosts(world, program)) == REPLICAS, 90)


def hosts(world, program):
    """Their pids, those that still load included."""
    workers = [pid for pid in world.stack.pids("worker") if f"--model={program}" in command_line(pid)]
    return [pid for worker in workers for pid in descendants(worker) if MARKS[program](command_line(pid))]


def loading(world, program):
    """The pid of a host that was just started, in place of one that is killed for it."""
    before = hosts(world, program)
    os.kill(before[0], signal.SIGKILL)
    return wait_until("a new host", lambda: [pid for pid in hosts(world, program) if pid not in before], 30)[0]

