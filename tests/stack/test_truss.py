# SPDX-License-Identifier: Apache-2.0
"""Goal: an unmodified Truss directory is pushed and called, and what is wrong with one is told.

Method: the directories of examples/truss on one stack, pushed at the same time; what they require is
installed from wheels that are there, without a network. What they answer is compared with what the truss
package's own server answers (tests/truss), and so is a sample of its generated models.
"""

import json
import os
import random
import re
import sys

import pytest
from stack import ROOT, Stack, wait_until

sys.path.insert(0, str(ROOT / "tests/truss"))

import cases  # noqa: E402
import deliberate  # noqa: E402
import examples  # noqa: E402
import golden  # noqa: E402
import test_matrix  # noqa: E402

EXAMPLES = ROOT / "examples/truss"
WHEELS = os.environ["HEADRACE_DEPS"] + "/wheels-truss"
NAMES = tuple(examples.REQUESTS)
GENERATED = 2  # models of tests/truss, beside those whose answers are of all kinds
ASKED = 80  # of the latter's requests

ECHO = "class Model:\n    def predict(self, x):\n        return x\n"


@pytest.fixture(scope="module")
def stack(request):
    with Stack(env={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS, "PIP_NO_COMPILE": "1"}) as stack:
        yield stack


def make(folder, config, model=ECHO, files=None):
    (folder / "model").mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / "model/model.py").write_text(model)
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)


def push(stack, folder, *more, check=True):
    return stack.cli("push", str(folder), "--json", *more, check=check, timeout=180)


@pytest.fixture(scope="module")
def models(stack):
    """All examples, each pushed under the name in its config.yaml."""
    ids = [push(stack, EXAMPLES / name, "--no-wait").stdout.strip() for name in NAMES]
    for id in ids:
        stack.wait_active(id, seconds=120)
    return stack


def ask(stack, model, value):
    done = stack.cli("predict", model, "--quiet", "--input", json.dumps(value), check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def differences(stack, model, case, requests):
    _, theirs, _ = golden.read()
    found = []
    for request in requests:
        want, _ = deliberate.ours(case, request.name, theirs[case][request.name])
        got = examples.call(stack, model, request)
        if got != want:
            found.append(f"{case}, {request.name}: {got}, wanted {want}")
    return found


def test_examples_answer_as_in_the_truss_server(models):
    found = [
        line
        for name, requests in examples.REQUESTS.items()
        for line in differences(models, name, "example-" + name, requests)
    ]
    assert not found, "\n".join(found)


def generated():
    """[(case, its requests)]: some of each, by the seed of tests/truss/test_matrix.py."""
    seed = os.environ.get("HEADRACE_TRUSS_SEED") or test_matrix.commit()
    dice = random.Random(seed)
    everything = cases.all_cases()
    signatures = [case for case in everything if case.name.startswith("pre")]
    chosen = [(case, case.requests[:4]) for case in dice.sample(signatures, GENERATED)]
    for case in dice.sample([case for case in everything if case.name.startswith("results")], 2):
        # What a model cannot take now is tried again by the gateway, each a second later.
        asked = [r for r in case.requests if not re.search("429|503", r.name)]
        chosen.append((case, dice.sample(asked, ASKED // 2)))
    return chosen, seed


def test_generated_models_answer_as_in_the_truss_server(stack, tmp_path):
    chosen, seed = generated()
    print(f"HEADRACE_TRUSS_SEED={seed}")
    ids = []
    for i, (case, _) in enumerate(chosen):
        config = dict(case.config, model_name=f"generated-{i}", requirements=["fastapi", "numpy", "pydantic"])
        folder = make(tmp_path / str(i), json.dumps(config), case.files["model/model.py"])
        ids.append(push(stack, folder, "--no-wait").stdout.strip())
    found = []
    for i, (case, requests) in enumerate(chosen):
        stack.wait_active(ids[i], seconds=120)
        found += differences(stack, f"generated-{i}", case.name, requests)
    assert not found, "\n".join(found)


def test_failures_of_a_model_are_named(models):
    def fail(model, value):
        done = models.cli("predict", model, "--async", "--wait", "--input", json.dumps(value), check=False)
        assert done.returncode == 3, done.stdout
        return done.stderr

    said = fail("pydantic", {"item": "tea", "count": 0})
    assert "MODEL_INVALID_INPUT" in said and "`count`: Input should be greater than" in said
    said = fail("requests", {"want": "error"})
    assert "no coffee here" in said
    said = fail("async", {"numbers": 7})
    assert "MODEL_PREDICT_ERROR" in said and "TypeError" in said and "model.py" in said


def test_what_models_print_is_in_their_log(models):
    lines = models.cli("logs", "hello", "--limit", "1000").stdout
    assert "Executing model.load()" in lines and "environment: Python 3." in lines


def test_the_same_packages_are_installed_once(stack, models, tmp_path):
    folder = make(tmp_path / "again", "model_name: again\nrequirements: [numpy]\n", "import numpy\n" + ECHO)
    push(stack, folder)
    log = stack.cli("logs", "again", "--limit", "1000").stdout
    assert "environment: Python 3." in log and "environment: building" not in log


def test_a_config_is_refused_before_anything_is_sent(stack, tmp_path):
    rows = (
        ("a: 1\n", "there is no key 'a'"),
        ("data_dir: ../secrets\n", "data_dir is '../secrets'"),
        ("model_name: x\nmodel_name: y\n", "the key 'model_name' is there twice"),
        ("weights: [{source: 'hf://a/b', mount_location: /w}]\n", "weights is not honoured"),
    )
    for i, (config, text) in enumerate(rows):
        done = push(stack, make(tmp_path / str(i), config), check=False)
        assert done.returncode == 2 and text in done.stderr, done.stderr
    assert "warning: resources.cpu: not enforced" in push(
        stack, make(tmp_path / "w", "model_name: warned\nresources: {cpu: 4}\n"), "--no-wait"
    ).stderr


def test_what_is_left_out(stack, tmp_path):
    files = {
        ".truss_ignore": "*.bin\nnotes/\n",
        "weights.bin": "x",
        "notes/a.txt": "x",
        "data/kept.txt": "kept",
    }
    model = ECHO.replace("return x", "return sorted(os.listdir()) + os.listdir('data')")
    folder = make(tmp_path / "ignored", "model_name: ignored\n", "import os\n" + model, files)
    assert re.search(r"3 files, .* 2 left out", push(stack, folder).stderr)
    assert ask(stack, "ignored", {}) == ["config.yaml", "data", "model", "kept.txt"]


def test_failed_deployments_say_why(stack, tmp_path):
    rows = (
        ("requirements: [no-such-package==1]\n", ECHO, "No matching distribution found for no-such"),
        ("system_packages: [no-such-debian]\n", ECHO, "apt-get install -y no-such-debian"),
        ("{}\n", "import nowhere\n", "No module named 'nowhere'"),
        ("{}\n", ECHO.replace("return x", "return x +"), "SyntaxError"),
        ("{}\n", "class Model:\n    pass\n", "must have a `predict`"),
    )
    ids = [
        push(stack, make(tmp_path / f"failed-{i}", config, model), "--no-wait").stdout.strip()
        for i, (config, model, _) in enumerate(rows)
    ]
    for id, (_, _, text) in zip(ids, rows):

        def ended():
            query = "SELECT status, status_reason FROM headrace.deployment WHERE id = :'a1'"
            ((status, reason),) = stack.sql(query, id)
            return reason if status == "DEPLOY_FAILED" else None

        assert text in wait_until(f"{id} to fail", ended, 60)


def test_a_model_that_exits_costs_only_its_own_job(stack, tmp_path):
    end = "return print('out of cheese') or os._exit(7) if x == {'exit': True} else x"
    model = "import os\n" + ECHO.replace("return x", end)
    push(stack, make(tmp_path / "exits", "model_name: exits\n", model))
    done = stack.cli("predict", "exits", "--input", '{"exit": true}', check=False, timeout=120)
    assert done.returncode == 3 and "exited with code 7; its last lines: " in done.stderr, done.stderr
    assert "out of cheese" in done.stderr, done.stderr
    assert ask(stack, "exits", {"still": "here"}) == {"still": "here"}


def test_a_model_that_hangs_is_ended(stack, tmp_path):
    model = "import time\n" + ECHO.replace("return x", "time.sleep(x['s'])\n        return 'late'")
    push(stack, make(tmp_path / "hangs", "model_name: hangs\n", model))
    path = "/model/hangs/production/predict"
    reply = stack.http("POST", path, {"s": 3600}, headers={"Request-Timeout-Ms": "500"})
    assert reply.status == 504, reply
    # It held the only slot; nothing but its end gives that back.
    reply = stack.http("POST", path, {"s": 0})
    assert (reply.status, reply.body) == (200, b'"late"'), stack.tell()


HOSTILE = '''import os, socket
from pathlib import Path

class Model:
    def predict(self, x):
        return eval(x["do"])
'''


def test_code_of_a_truss_is_confined(stack, tmp_path):
    push(stack, make(tmp_path / "hostile", "model_name: hostile\n", HOSTILE))

    def does(code):
        return stack.http("POST", "/model/hostile/production/predict", {"do": code}).status == 200

    postgres, _, port = stack.url("postgres").split("@")[-1].partition("/")[0].partition(":")
    outside = stack.data_dir / "written"
    sealed = tmp_path / "sealed.txt"
    sealed.write_text("of somebody else")
    assert does("1 + 1") and does("Path('beside').write_text('x')")
    does(f"Path({str(outside)!r}).write_text('x')")  # there may be such a folder, in its own memory
    assert not outside.exists()
    assert not does(f"Path({str(sealed)!r}).read_text()")
    assert not does(f"Path({str(stack.output)!r}).read_text()[:1]")
    assert not does("Path('model/model.py').write_text('x')")
    assert not does(f"socket.create_connection(({postgres!r}, {int(port or 5432)}), 2) and 1")
    assert not does(f"os.kill({stack.pids('broker')[0]}, 0)")


BACKEND = '''
import json, os, socket, sys, zipfile
from pathlib import Path

NAMES, POSTGRES, OUTSIDE, SEALED = json.loads(Path("tries.json").read_text())
ABOVE = Path(sys.prefix)

TRIES = {
    "writes to its own environment": lambda: (ABOVE / "mine").write_text("x"),
    "reads another deployment's files": lambda: Path(SEALED).read_text(),
    "writes outside": lambda: Path(OUTSIDE).write_text("x") and 1 / 0,  # in memory of its own it may
    "writes to other environments": lambda: (ABOVE.parent / "theirs").mkdir() or 1 / 0,
    "changes the archive": lambda: Path("/app/model/model.py").write_text("x"),
    "connects to Postgres": lambda: socket.create_connection(POSTGRES, 2),
    "reads the worker's environment": lambda: Path("/proc/%d/environ" % os.getppid()).read_bytes().index(b"HEADRACE_"),
    "sees what runs": lambda: Path("/proc/1/cmdline").read_bytes().index(b"worker"),
}


def build_wheel(folder, settings=None, metadata=None):
    said = {}
    for name, attempt in TRIES.items():
        try:
            attempt()
            said[name] = "allowed"
        except Exception as error:
            said[name] = repr(error)
    if not os.path.lexists(ABOVE / "ready"):
        (ABOVE / "ready").symlink_to(SEALED)  # who writes there next does so unconfined
    about = "evil-1.dist-info/"
    with zipfile.ZipFile(Path(folder, NAMES), "w") as wheel:
        wheel.writestr("evil.py", "SAID = %r" % said)
        wheel.writestr(about + "METADATA", "Metadata-Version: 2.1\\nName: evil\\nVersion: 1\\n")
        wheel.writestr(about + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(about + "RECORD", "")
    return NAMES
'''


def test_what_pip_runs_is_confined(stack, tmp_path):
    """A package of the archive whose build does what a model must not, and leaves links where we write."""
    sealed, outside = tmp_path / "sealed.txt", stack.data_dir / "by-pip"
    sealed.write_text("of somebody else")
    postgres, _, port = stack.url("postgres").split("@")[-1].partition("/")[0].partition(":")
    tries = ["evil-1-py3-none-any.whl", [postgres, int(port or 5432)], str(outside), str(sealed)]
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    model = "import evil, sys\nclass Model:\n    def predict(self, x):\n        return evil.SAID\n"
    push(stack, make(tmp_path / "piped", "model_name: piped\nrequirements: [./evil]\n", model, {
        "evil/pyproject.toml": project, "evil/backend.py": BACKEND, "evil/tries.json": json.dumps(tries)}))
    said = ask(stack, "piped", {})
    assert said.pop("writes to its own environment") == "allowed"
    assert not outside.exists() and sealed.read_text() == "of somebody else"
    assert not list(stack.data_dir.glob("**/python/theirs"))
    assert not [name for name, what in said.items() if what == "allowed"], said
