# SPDX-License-Identifier: Apache-2.0
"""Goal: the chains of examples/ run on real models by one command each, and are drawn.

Method: their own scripts, side by side, on one stack; packages come from wheels that are there."""

import json
import os
import subprocess

import pytest
from stack import BINARY, ROOT, Stack

WHEELS = os.environ["HEADRACE_DEPS"] + "/wheels-truss"
LINES = ["Delivery note 4711", "Mill at the old weir", "12 sacks of rye flour, 25 kg each",
         "3 sacks of spelt, 50 kg each", "Total weight: 450 kg", "Received 26.11.2026"]  # fmt: skip


@pytest.fixture(scope="module")
def outputs():
    """Of each example what its script printed."""
    with Stack(env={"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS, "PIP_NO_COMPILE": "1"}) as stack:
        env = os.environ | {"HEADRACE_URL": stack.url("gateway"), "HEADRACE_API_KEY": stack.key, "HEADRACE_BIN": BINARY}
        running = {name: subprocess.Popen([ROOT / "examples" / name / "run", "--data", stack.data_dir], env=env,
                                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
                   for name in ("rag", "ocr")}  # fmt: skip
        texts = {name: process.communicate(timeout=200)[0] for name, process in running.items()}
        for name, process in running.items():
            assert process.returncode == 0, texts[name] + stack.tell()
        yield texts


def split_output(text):
    """What the run came to, and how it was drawn."""
    output, drawn = text[text.index("\n{\n"):].split("== the run\n")
    return json.loads(output), drawn


def test_rag(outputs):
    output, drawn = split_output(outputs["rag"])
    assert output["answer"].startswith("In winter ice is the great danger."), output
    assert len(output["passages"]) == 3
    assert output["passages"][0]["score"] > output["passages"][1]["score"] + 0.1, output
    for step in ("split", "question", "embed", "rank"):
        assert step in drawn and "SUCCEEDED" in drawn, drawn


def test_ocr(outputs):
    output, drawn = split_output(outputs["ocr"])
    assert output["text"].split("\n") == LINES, output
    assert all(line["score"] > 0.9 for line in output["lines"])
    for step in ("page", "detect", "lines", "recognise", "read"):
        assert step in drawn, drawn
