# SPDX-License-Identifier: Apache-2.0
"""Goal: a real language model behind a real OpenAI-style server, through the `server` engine: OpenAI's own
client, with nothing changed but its base_url, gets whole answers, streams, and errors as they are.

Method: llama-server with SmolLM2-135M, pushed as examples/llama, at temperature 0: a stream says what the
whole answer says. Long tier only: the server is built from source (scripts/llama/fetch).
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from stack import ROOT, Stack, wait_until

DEPS = pathlib.Path(os.environ["HEADRACE_DEPS"])
SERVER = DEPS / "llama/llama-server"
MODEL = DEPS / "models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CLIENT = DEPS / "venv-llm/bin/python"

pytestmark = pytest.mark.skipif(not os.environ.get("HEADRACE_LONG"), reason="HEADRACE_LONG is not set")

# What a user writes: prints one JSON object.
USER = """
import json, sys, time, openai
base_url, key = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=60)
asked = dict(model="smollm2", messages=[{"role": "user", "content": "Name the capital of France."}],
             temperature=0, seed=1, max_tokens=32)
whole = client.chat.completions.create(**asked)
pieces, times = [], []
for chunk in client.chat.completions.create(stream=True, **asked):
    if chunk.choices and chunk.choices[0].delta.content:
        pieces.append(chunk.choices[0].delta.content)
        times.append(time.monotonic())
try:
    client.chat.completions.create(model="smollm2", messages="no list")
    refused = None
except openai.APIStatusError as error:
    refused = error.status_code
left = client.chat.completions.create(stream=True, **dict(asked, max_tokens=4000, messages=[
    {"role": "user", "content": "Count from one to one thousand, in words."}]))
next(iter(left))
left.close()
print(json.dumps({"whole": whole.choices[0].message.content, "pieces": pieces, "refused": refused,
                  "spread_s": times[-1] - times[0], "models": [m.id for m in client.models.list().data]}))
"""


def ask(base_url, key):
    done = subprocess.run([CLIENT, "-c", USER, base_url, key], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def stack(request, tmp_path_factory):
    for path in (SERVER, MODEL, CLIENT):
        assert path.exists(), f"{path} is not there: scripts/llama/fetch, scripts/python/venv llm"
    folder = tmp_path_factory.mktemp("llama")
    shutil.copy(ROOT / "examples/llama/config.yaml", folder)
    shutil.copy(SERVER, folder / "llama-server")
    shutil.copy(MODEL, folder / "model.gguf")
    with Stack() as stack:
        id = stack.cli("push", str(folder), "--name", "llama", "--no-wait", "--json").stdout.strip()
        stack.wait_active(id, 120)
        yield stack


def test_openais_client(stack):
    url = stack.url("gateway") + "/model/llama/production/sync/v1"
    said = ask(url, stack.key)
    print(said, file=sys.stderr)
    assert "Paris" in said["whole"] and "".join(said["pieces"]) == said["whole"]
    assert len(said["pieces"]) > 5 and said["spread_s"] > 0.02  # as they were made, not at once
    assert said["refused"] == 400 and said["models"] == ["smollm2"]


def test_async_says_the_same(stack):
    asked = {"messages": [{"role": "user", "content": "Name the capital of France."}], "temperature": 0,
             "seed": 1, "max_tokens": 32}
    job = stack.submit("llama", asked)
    assert stack.wait_final(job, 120)["status"] == "SUCCEEDED"
    assert "Paris" in stack.result(job).json["choices"][0]["message"]["content"]


def test_a_client_that_left_frees_its_slot(stack):
    """The stream that USER gives up would hold the server for minutes: its job is canceled, and the next one runs."""
    states = "SELECT status, count(*) FROM headrace_v1.jobs WHERE status IN ('QUEUED', 'IN_PROGRESS', 'CANCELED') GROUP BY 1"
    wait_until("the stream to be canceled", lambda: stack.sql(states) == [["CANCELED", "1"]], 20)
    asked = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 4}
    assert stack.wait_final(stack.submit("llama", asked), 20)["status"] == "SUCCEEDED"
