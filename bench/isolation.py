# SPDX-License-Identifier: Apache-2.0
"""`bench/run isolation`: what a hostile model gets, and what its neighbour notices.

Two hostile deployments, a server (tests/lib/http_model/server.py) and a Truss with the same functions: each reads another
deployment's secret, writes outside of its folders, connects to Postgres and forks 10,000 times, again and again; sync
calls of a neighbour, 20 a second, are timed before and meanwhile, in turns of the same run. --parts: of server,python.
"""

import json
import shutil
import sys
import threading
import urllib.parse

import sync
from fairness import percentile

# The functions of the server's model, without the server.
TRUSS = """import importlib.util, os, pathlib
os.environ["PORT"] = "0"
spec = importlib.util.spec_from_file_location("server", pathlib.Path(__file__).parent / "server.py")
server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(server)
class Model:
    def predict(self, order):
        return {name: server.attempt(lambda: getattr(server, name)(*args)) for name, args in order["what"].items()}
"""


def push(stack, folder, name, extra=None):
    """The model that does as it is told; extra: one more file of its folder, with this text."""
    from stack import ROOT

    folder.mkdir(parents=True)
    shutil.copy(ROOT / "tests/lib/http_model/server.py", folder)
    (folder / "headrace.json").write_text(json.dumps({"engine": "server", "slots": 4, "settings": {
        "start_command": "exec python3 server.py", "predict_endpoint": "/predict", "readiness_endpoint": "/health"}}))
    if extra is not None:
        (folder / extra).write_text("hunter2")
    stack.push(folder, name)


def push_truss(stack, folder):
    from stack import ROOT

    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text("model_name: python\n")
    (folder / "model/model.py").write_text(TRUSS)
    text = (ROOT / "tests/lib/http_model/server.py").read_text()
    (folder / "model/server.py").write_text(text.removesuffix("main()\n"))
    stack.push(folder, "python")


def tries(stack):
    """By name: what is tried, as the model's orders."""
    secret = next(stack.data_dir.glob("**/models/*/secret.txt"))
    postgres = urllib.parse.urlsplit(stack.url("postgres"))
    return {
        "reads another deployment's secret": {"read": [str(secret)]},
        "writes outside of its folders": {"write": [str(secret.parent / "written")]},
        "writes into the system": {"write": ["/usr/written"]},
        "connects to Postgres": {"connect": [postgres.hostname, postgres.port]},
        "signals the broker": {"kill": [stack.pids("broker")[0]]},
        "forks 10,000 times": {"forks": [10000]},
    }


class Attack(threading.Thread):
    """Tries everything over and over; what came of each is counted by its name."""

    def __init__(self, stack, model):
        super().__init__()
        self.model = model
        self.stack, self.stopping, self.said, self.allowed = stack, threading.Event(), {}, 0
        self.tries = tries(stack)

    def run(self):
        while not self.stopping.is_set():
            for name, what in self.tries.items():
                reply = self.stack.http("POST", f"/model/{self.model}/production/predict", {"do": "try", "what": what})
                if reply.status == 200:
                    (one,) = reply.json.values()
                else:  # what it did has ended it
                    one = {"error": "", "text": reply.json["error"]}
                self.allowed += "error" not in one
                count, _ = self.said.get(name, (0, ""))
                self.said[name] = (count + 1, one.get("text", str(one)).replace(str(self.stack.data_dir), "…")[:160])

    def stop(self):
        self.stopping.set()
        self.join()


def one(options, stack, model):
    import asyncio

    before, during, said = [], [], {}
    for _ in range(options.rounds):
        before += asyncio.run(sync.low_load(stack, options.latency_seconds, {}))
        attack = Attack(stack, model)
        attack.start()
        during += asyncio.run(sync.low_load(stack, options.latency_seconds, {}))
        attack.stop()
        for name, (count, text) in attack.said.items():
            said[name] = (said.get(name, (0, ""))[0] + count, text)
        if attack.allowed:
            sys.exit(f"bench/run: {attack.allowed} tries succeeded: {attack.said}")
    print(f"\n| a hostile model ({model}) | tries | each time |\n| --- | ---: | --- |")
    for name, (count, text) in said.items():
        print(f"| {name} | {count} | {text} |")
    print("\n| neighbour's sync call over its engine's time, ms | p50 | p99 | max |\n| --- | ---: | ---: | ---: |")
    sync.line("before", before)
    sync.line("meanwhile", during)
    moved = 100 * (percentile(during, 0.99) / percentile(before, 0.99) - 1)
    print(f"\n{len(before)} and {len(during)} calls; p99 moved by {moved:+.1f} %")


def run(options, bench):
    import asyncio

    from stack import Stack

    parts = options.parts.split(",") if options.parts else ["server", "python"]
    with Stack(env={"HEADRACE_HOST_MEMORY": "512MiB", "HEADRACE_HOST_PROCESSES": 300}) as stack:
        stack.push_sim(sync.MODEL, slots=16, service_ms=sync.SERVICE_MS)
        push(stack, stack.data_dir / "pushed/victim", "victim", "secret.txt")
        if "server" in parts:
            push(stack, stack.data_dir / "pushed/server", "server")
        if "python" in parts:
            push_truss(stack, stack.data_dir / "pushed/python")
        asyncio.run(sync.low_load(stack, 10, {}))
        for model in parts:
            one(options, stack, model)
