# SPDX-License-Identifier: Apache-2.0
"""Goal: the chains and the training jobs of examples/ run by one command each, on real models and from a script to
a served model, though its trainer is killed. A chain of the truss
package is deployed from its file alone, its chainlets call each other, and the calls are jobs of the run.

Method: the examples' own scripts, and side by side with them what the command line does with what the package's
generator makes, with a generator of our own that makes two Trusses of the same kind, which need no truss. Packages
come from wheels that are there. With HEADRACE_LONG train-topics and the package itself, on the file in examples/truss_chain: all
answers are those of its run_local. That takes its environment, which comes from PyPI and takes minutes.
"""

import json
import os
import re
import stat
import subprocess
import sys

import pytest
from stack import BINARY, ROOT, Stack

DEPS = os.environ["HEADRACE_DEPS"]
LONG = os.environ.get("HEADRACE_LONG")
LINES = ["Delivery note 4711", "Mill at the old weir", "12 sacks of rye flour, 25 kg each",
         "3 sacks of spelt, 50 kg each", "Total weight: 450 kg", "Received 26.11.2026"]  # fmt: skip
POEM = ROOT / "examples/truss_chain/poem.py"
TRUSS_PYTHON = DEPS + "/venv-compare/bin/python"

CONFIG = """model_name: {model}
python_version: py311
requirements: [fastapi==0.124.4]
runtime: {{predict_concurrency: 4}}
secrets: {{baseten_chain_api_key: null}}
model_metadata: {{headrace_chainlets: {paths}}}
"""
LEAF = """
class Model:
    def predict(self, model_input):
        if model_input["n"] < 0:
            raise ValueError("less than nothing")
        return {"twice": 2 * model_input["n"]}
"""
ENTRY = """
import json, os, urllib.error, urllib.request
from fastapi import Request

MOUNTED = "/etc/b10_dynamic_config"


class Model:
    def __init__(self, secrets):
        self.key = secrets["baseten_chain_api_key"]
        self.mounted = os.path.exists(MOUNTED)
        folder = MOUNTED if self.mounted else os.environ["B10_DYNAMIC_CONFIG_DIR"]
        with open(folder + "/dynamic_chainlet_config") as file:
            self.url = json.load(file)["Leaf"]["predict_url"]

    def call(self, n, headers):
        passed = {name: headers[name] for name in ("x-baseten-request-id", "x-baseten-chain-request-id", "traceparent")
                  if name in headers}
        request = urllib.request.Request(self.url, json.dumps({"n": n}).encode(), dict(passed, **{
            "Content-Type": "application/json", "Authorization": "Api-Key " + self.key}))
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)["twice"]

    def predict(self, model_input, request: Request):
        try:
            twice = [self.call(n, request.headers) for n in model_input["numbers"]]
        except urllib.error.HTTPError as error:
            return {"status": error.code, "said": json.load(error)}
        return {"twice": twice, "mounted": self.mounted, "run": request.headers["x-baseten-chain-request-id"]}
"""
GENERATOR = """#!{python}
import json, pathlib, shutil, sys

assert sys.argv[1:3] == ["-B", "-c"] and "code_gen" in sys.argv[3], sys.argv
file, entrypoint, chain, deployment, folder = sys.argv[4:]
made = pathlib.Path(folder) / "made"
shutil.copytree(pathlib.Path(file).parent / "trusses", made)
for one in ("leaf", "entry"):
    config = made / one / "config.yaml"
    config.write_text(config.read_text().replace("PUSH", deployment))
(made.parent / "chain.json").write_text(json.dumps({{"chain": chain, "deployment": deployment, "chainlets": [
    {{"name": "Leaf", "model": chain + ".Leaf", "folder": str(made / "leaf"), "entrypoint": False}},
    {{"name": "Entry", "model": chain, "folder": str(made / "entry"), "entrypoint": True}}]}}))
"""


# As docs/training.md begins.
FIRST_JOB = """
set -euo pipefail
"$0" train init "$1"
job=$("$0" train push "$1" --tail | sed -n 1p)
"$0" train deploy "$job"
"$0" predict first-line --quiet --input '{"x": 2}'
"""


def write_truss(folder, model, paths, code):
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(model=model, paths=json.dumps(paths)))
    (folder / "model/model.py").write_text(code)


def begin(*words, env=None):
    return subprocess.Popen([*map(str, words)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def environment(stack):
    return os.environ | {"HEADRACE_URL": stack.url("gateway"), "HEADRACE_API_KEY": stack.key, "HEADRACE_BIN": BINARY,
                         "HEADRACE_DEV_DIR": str(stack.data_dir)}  # fmt: skip


def outputs_of(stack, running):
    outputs = {}
    for name, process in running.items():
        out, errors = process.communicate(timeout=250)
        assert process.returncode == 0, out + errors + stack.tell()
        outputs[name] = out
    return outputs


def write_chain(folder):
    """The generator of a chain whose entrypoint calls another chainlet."""
    write_truss(folder / "trusses/leaf", "leaf", {}, LEAF)
    write_truss(folder / "trusses/entry", "entry", {"Leaf": "/chain/sums.Leaf/deployment/PUSH/run_remote"}, ENTRY)
    (folder / "sums.py").write_text("")
    generator = folder / "generator"
    generator.write_text(GENERATOR.format(python=sys.executable))
    generator.chmod(generator.stat().st_mode | stat.S_IXUSR)
    return generator


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """With stack.outputs: of each example what its script printed, of the chain `sums` what its push did."""
    folder = tmp_path_factory.mktemp("chain")
    generator = write_chain(folder)
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": DEPS + "/wheels-truss", "PIP_NO_COMPILE": "1"}
    quick = {"HEADRACE_CHECKPOINT_SCAN": "100ms"}
    with Stack(env=quick if LONG else quick | offline, trainer=True) as stack:
        env = environment(stack)
        running = {name: begin(ROOT / "examples" / name / "run", "--data", stack.data_dir, env=env)
                   for name in ("rag", "ocr")}  # fmt: skip
        running["sums"] = begin(BINARY, "chains", "push", folder / "sums.py", "--name", "sums", "--python", generator,
                                "--json", env=env)  # fmt: skip
        stack.outputs = outputs_of(stack, running)
        yield stack


@pytest.fixture(scope="module")
def trained(stack, tmp_path_factory):
    """Of each example that trains what its script printed."""
    env = environment(stack)
    examples = [["train-digits", 1000]] + ([["train-topics"]] if LONG else [])
    running = {name: begin(ROOT / "examples" / name / "run", *words, "--data", stack.data_dir, env=env)
               for name, *words in examples}  # fmt: skip
    running["first job"] = begin("bash", "-c", FIRST_JOB, BINARY, tmp_path_factory.mktemp("first") / "first-line", env=env)
    return outputs_of(stack, running)


# ---- the examples


def split_output(text):
    """What the run came to, and how it was drawn."""
    output, drawn = text[text.index("\n{\n"):].split("== the run\n")
    return json.loads(output), drawn


def test_rag(stack):
    output, drawn = split_output(stack.outputs["rag"])
    assert output["answer"].startswith("In winter ice is the great danger."), output
    assert len(output["passages"]) == 3
    assert output["passages"][0]["score"] > output["passages"][1]["score"] + 0.1, output
    for step in ("split", "question", "embed", "rank"):
        assert step in drawn and "SUCCEEDED" in drawn, drawn


def test_ocr(stack):
    output, drawn = split_output(stack.outputs["ocr"])
    assert output["text"].split("\n") == LINES, output
    assert all(line["score"] > 0.9 for line in output["lines"])
    for step in ("page", "detect", "lines", "recognise", "read"):
        assert step in drawn, drawn


def test_what_init_makes_is_trained_and_served(trained):
    assert abs(json.loads(trained["first job"].splitlines()[-1])["y"] - 7) < 0.5, trained["first job"]


def test_train_digits(trained):
    said = trained["train-digits"]
    ran, again = map(int, re.search(r"(\d+) steps were run for 1000, and it was begun again (\d+) times", said).groups())
    assert 1 <= again <= 2 and 1000 <= ran <= 1200, said
    assert "kill -9 of the trainer" in said and re.search(r"goes on from step \d+00, retry 1", said), said
    right = int(re.search(r"(\d+) of 1000 digits that it has never seen are read right, after 1000 steps", said)[1])
    assert right >= 950, said


def test_what_they_were_made_of(stack, trained):
    rows = stack.sql("SELECT model, project, checkpoint FROM headrace_v1.training_lineage WHERE model <> 'topics' ORDER BY 1")
    assert rows == [["digits", "digits", "step-01000"], ["first-line", "first-line", "step-20"]]


@pytest.mark.skipif(not LONG, reason="a second MiniLM and a second training job; HEADRACE_LONG=1")
def test_train_topics(stack, trained):
    said = trained["train-topics"]
    right = int(re.search(r"(\d+) of 12 sentences that it has never seen are put right", said)[1])
    assert right >= 11 and "pass-0060" in said, said
    assert stack.sql("SELECT project, checkpoint FROM headrace_v1.training_lineage WHERE model = 'topics'") == [
        ["topics", "pass-0060"]]  # fmt: skip


# ---- chains in Python


def run_remote(stack, chain, given):
    return stack.http("POST", f"/chain/{chain}/production/run_remote", given)


def test_what_was_pushed(stack):
    pushed = json.loads(stack.outputs["sums"])
    assert [(one["model"], one["status"]) for one in pushed["chainlets"]] == [
        ("sums.Leaf", "ACTIVE"), ("sums", "ACTIVE")]  # fmt: skip
    assert [secret["name"] for secret in stack.http("GET", "/v1/secrets").json["secrets"]] == ["baseten_chain_api_key"]
    assert stack.sql("SELECT role FROM headrace.api_key WHERE name = 'calls between chainlets'") == [["predict"]]


def test_calls_are_jobs_of_the_run(stack):
    run = stack.http("POST", "/chain/sums/production/async_run_remote", {"model_input": {"numbers": [1, 2, 3]}})
    run = run.json["request_id"]
    assert stack.wait_final(run)["status"] == "SUCCEEDED", stack.tell()
    answer = stack.result(run).json
    assert (answer["twice"], answer["run"]) == ([2, 4, 6], run)
    rows = stack.sql("SELECT step, model, status FROM headrace_v1.chain_steps WHERE run_id = :'a1'", run)
    assert rows == [["sums.Leaf", "sums.Leaf", "SUCCEEDED"]] * 3
    assert "sums.Leaf  sums.Leaf  SUCCEEDED  3/3" in stack.cli("chains", "show", run).stdout


def test_the_file_is_where_it_is_looked_for(stack):
    """In a sandbox, whose level the worker tells; and elsewhere the model is told where."""
    reply = run_remote(stack, "sums", {"numbers": [4]})
    assert reply.status == 200 and reply.json["twice"] == [8], reply
    logs = "".join(path.read_text(errors="replace") for path in stack.data_dir.glob("agent/**/*.log"))
    assert reply.json["mounted"] == ('"in_force":"strict' in logs)


def test_errors_come_through(stack):
    reply = run_remote(stack, "sums", {"numbers": [1, -1]})
    assert reply.status == 200 and reply.json["status"] == 500, reply
    assert "error" in reply.json["said"]


def test_what_cannot_be_pushed(stack, tmp_path):
    file = tmp_path / "chain.py"
    file.write_text("")
    done = stack.cli("chains", "push", file, "--python", sys.executable, check=False)
    assert done.returncode != 0 and "needs the truss package" in done.stderr, done
    done = stack.cli("chains", "push", file, "--python", "/nowhere/python", check=False)
    assert done.returncode != 0 and "/nowhere/python" in done.stderr, done
    done = stack.cli("chains", "push", file, "--python", "false", check=False)
    assert done.returncode != 0 and "could not make Trusses" in done.stderr, done


# ---- the package itself


def local(code):
    """What the file's chain answers by run_local."""
    script = ("import asyncio, json, sys, truss_chains as chains\nfrom poem import *\nwith chains.run_local():\n"
              f"    print(asyncio.run(Poet().run_remote({code})).model_dump_json())")  # fmt: skip
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([TRUSS_PYTHON, "-c", script], cwd=POEM.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not LONG, reason="takes minutes; HEADRACE_LONG=1")
@pytest.mark.timeout(900)
def test_the_package(stack):
    stack.cli("chains", "push", POEM, "--python", TRUSS_PYTHON, "--timeout", "14m", timeout=880)
    for words, times in ((["water", "wheel"], 2), (["mill"], 1), ([], 1)):
        reply = run_remote(stack, "poem", {"words": words, "times": times})
        assert reply.status == 200 and reply.json == local(f"{words}, {times}"), reply
    run = stack.http("POST", "/chain/poem/production/async_run_remote", {"model_input": {"words": ["a", "b"]}})
    run = run.json["request_id"]
    assert stack.wait_final(run)["status"] == "SUCCEEDED", stack.tell()
    rows = stack.sql("SELECT step, count(*) FROM headrace_v1.chain_steps WHERE run_id = :'a1' AND status = "
                     "'SUCCEEDED' GROUP BY 1 ORDER BY 1", run)
    assert rows == [["poem.Digest", "1"], ["poem.Rhyme", "2"], ["poem.Shout", "1"]]
    reply = run_remote(stack, "poem", {"words": ["silver"]})
    said = reply.json["error"]
    assert reply.status == 500 and said["exception_cls_name"] == "ValueError", reply
    assert "nothing rhymes with silver" in said["exception_message"]
    assert "Error calling dependency Chainlet" in said["exception_message"]
