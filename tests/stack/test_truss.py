# SPDX-License-Identifier: Apache-2.0
"""Goal: an unmodified Truss directory is pushed and called, and what is wrong with one is told.

Method: the directories of examples/truss on one stack, pushed at the same time; what they require is
installed from wheels that are there, without a network.
"""

import json
import os
import re
import shutil

import pytest
from stack import ROOT, Stack, wait_until

EXAMPLES = ROOT / "examples/truss"
WHEELS = os.environ["HEADRACE_DEPS"] + "/wheels-truss"
NAMES = "hello stream async pydantic binary routes requests".split()

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


def test_examples_answer(models):
    rows = (
        ("hello", {"name": "Ada"}, {"greeting": "Hello, Ada!"}),
        ("stream", {"text": "one two"}, "ONE TWO "),
        ("async", {"numbers": [1, 2.5]}, {"total": 3.5}),
        ("pydantic", {"item": "tea", "count": 2}, {"item": "tea", "cents": 500}),
        ("binary", {"image": [[1, 2], [3, 4]]}, {"mean": [2.0, 3.0], "shape": [2, 2], "peak": 4.0}),
        ("routes", {"text": "abc"}, {"reversed": "cba"}),
        ("requests", {}, {"environment": {"name": "production"}, "method": "POST"}),
    )
    for model, value, want in rows:
        assert ask(models, model, value) == want, model


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
    model = "import os\n" + ECHO.replace("return x", "return os._exit(7) if x == {'exit': True} else x")
    push(stack, make(tmp_path / "exits", "model_name: exits\n", model))
    done = stack.cli("predict", "exits", "--input", '{"exit": true}', check=False, timeout=120)
    assert done.returncode == 3 and "exited with code 7" in done.stderr, done.stderr
    assert ask(stack, "exits", {"still": "here"}) == {"still": "here"}
