# SPDX-License-Identifier: Apache-2.0
"""`bench/run start`: how long a worker needs from the wish for it to READY, and to the end of the job that waits for it.

Three ways, in turn in each round: cold (its files are not in the page cache), with a page cache that has them, and from
the pool of those that are kept warm ("warm": 1). Two models: MiniLM on the encoder, and a Python one that imports
numpy, whose environment was made before. The wish is the row in Postgres, READY is what the agent writes there, and the
end of the job is its commit: all by the clock of Postgres. Cold leaves out what runs for others too (our own binaries,
the C library, Python itself): what is dropped is the model's folder, and the environment's. User code has the platform's
priority here (HEADRACE_HOST_NICE=0): by default it waits for a free processor, and what else runs would decide.
"""

import json
import os
import pathlib
import shutil
import statistics
import sys
import time

DEPS = pathlib.Path(os.environ.get("HEADRACE_DEPS", pathlib.Path(__file__).resolve().parents[1] / ".headrace/deps")).absolute()
MINILM = DEPS / "models/all-MiniLM-L6-v2"
PYTHON = "import numpy\n\n\nclass Model:\n    async def predict(self, x):\n        return int(numpy.sum(x['n']))\n"
MODELS = {"encoder (MiniLM)": ("minilm", {"input": "a headrace carries water to the wheel"}),
          "Python (numpy)": ("py", {"n": [1, 2]})}
WAYS = ("cold", "page cache", "warm pool")


def push(stack, model, name, warm):
    from stack import wait_until

    (model / "headrace.json").write_text(json.dumps({"warm": warm}))
    stack.push(model, name, wait=False)
    wait_until(f"{name} to be loaded", lambda: sorted(states(stack, name)) == ["READY"] + warm * ["WARM"], 600, 0.5)


def push_minilm(stack, folder, name, warm):
    model = folder / name
    shutil.copytree(MINILM, model)
    push(stack, model, name, warm)


def push_python(stack, folder, name, warm):
    model = folder / name
    (model / "model").mkdir(parents=True)
    (model / "config.yaml").write_text(f"model_name: {name}\nrequirements: [numpy]\nruntime:\n  predict_concurrency: 4\n")
    (model / "model/model.py").write_text(PYTHON)
    push(stack, model, name, warm)


def drop(*folders):
    """Out of the page cache; what somebody has mapped stays."""
    os.sync()
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def states(stack, model):
    return [row[0] for row in stack.sql(
        """SELECT r.state FROM headrace.replica r JOIN headrace.deployment d ON d.id = r.deployment_id
           JOIN headrace.model m ON m.id = d.model_id WHERE m.name = :'a1' AND r.state <> 'STOPPED'""", model)]


def one(stack, model, model_input, way):
    """ms from the wish to READY, and to the end of the job that waits."""
    from serve import scale
    from stack import wait_until

    rest = ["WARM"] if way == "warm pool" else []
    scale(stack, model, 0)
    wait_until(f"{model} to be at rest", lambda: states(stack, model) == rest, 60, 0.05)
    if way == "cold":
        drop(stack.data_dir / "agent/models", stack.data_dir / "agent/made")
    job = stack.submit(model, model_input)
    wait_until("the job to be in the ledger", lambda: stack.sql(
        "SELECT 1 FROM headrace.job WHERE id = :'a1'", job), 30, 0.05)
    wished = scale(stack, model, 1)
    time.sleep(1)  # who asks for it meanwhile wants a processor, too
    assert stack.wait_final(job)["status"] == "SUCCEEDED", stack.job(job)
    ((ended,),) = stack.sql("SELECT extract(epoch FROM state_at) FROM headrace.job WHERE id = :'a1'", job)
    ((ready,),) = stack.sql(
        """SELECT extract(epoch FROM max(r.ready_at)) FROM headrace.replica r JOIN headrace.deployment d ON
           d.id = r.deployment_id JOIN headrace.model m ON m.id = d.model_id WHERE m.name = :'a1'""", model)
    return (float(ready) - wished) * 1000, (float(ended) - wished) * 1000


def run(options, bench):
    from stack import Stack

    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(DEPS / "wheels-truss"), "PIP_NO_COMPILE": "1"}
    found = {}
    with Stack(env={**pip, "HEADRACE_HOST_NICE": "0"}) as stack:
        folder = stack.data_dir / "pushed"
        folder.mkdir()
        for warm, more in ((0, ""), (1, "-warm")):
            push_minilm(stack, folder, "minilm" + more, warm)
            push_python(stack, folder, "py" + more, warm)
        before, begun = bench.machine_us(), time.monotonic()
        for number in range(options.rounds):
            for label, (model, model_input) in MODELS.items():
                for way in WAYS:
                    name = model + ("-warm" if way == "warm pool" else "")
                    found.setdefault((label, way), []).append(one(stack, name, model_input, way))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        busy = (bench.machine_us() - before) / 1e6 / (time.monotonic() - begun) / os.cpu_count()
    print(f"| {options.rounds} starts each, the machine busy {100 * busy:.0f} % | start to READY, median, ms | range | to the end of the job "
          "that waits, median, ms | range |")
    print("| --- | ---: | --- | ---: | --- |")
    for (label, way), times in found.items():
        ready, ended = zip(*times)
        print(f"| {label}, {way} | " + " | ".join(
            f"{statistics.median(of):.0f} | {min(of):.0f} … {max(of):.0f}" for of in (ready, ended)) + " |")
