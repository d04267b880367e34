# SPDX-License-Identifier: Apache-2.0
"""Goal: what a person does in a second shell works, and says clearly what does not.

Method: the verbs of the binary against the whole platform, with a tiny encoder of random weights.
"""

import json
import math
import subprocess

import pytest
from stack import BINARY, ROOT, wait_until

TINY = ROOT / "tests/data/encoder/tiny"


@pytest.fixture(scope="module")
def tiny(stack):
    state = json.loads(stack.push(TINY, "tiny").stdout)
    assert state["status"] == "ACTIVE" and state["engine"] == "encoder"
    return state


def test_probe_says_what_a_push_will_do(stack, tiny, tmp_path):
    def probe(directory):
        command = [BINARY, "probe", "--json", directory]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    said = json.loads(probe(TINY).stdout)
    assert said["engine"] == tiny["engine"] and said["task"] == "embed"
    assert said["settings"] == tiny["config"]
    (tmp_path / "notes.txt").write_text("nothing to run")
    refused = probe(tmp_path)
    assert refused.returncode == 2 and "looked for" in refused.stderr
    pushed = stack.cli("push", str(tmp_path), check=False)
    assert pushed.returncode == 2 and refused.stderr.split(": ", 1)[1].strip() in pushed.stderr


def test_predict_prints_the_output_alone(stack, tiny):
    done = stack.cli("predict", "tiny", "--input", '{"input": ["one", "two"]}')
    answer = json.loads(done.stdout)
    assert [row["index"] for row in answer["data"]] == [0, 1]
    norm = math.sqrt(sum(x * x for x in answer["data"][0]["embedding"]))
    assert abs(norm - 1) < 1e-5
    assert "request " in done.stderr
    again = stack.cli("predict", "tiny", "--input", '{"input": ["one", "two"]}', "--async", "--wait")
    assert json.loads(again.stdout)["data"] == answer["data"] and "SUCCEEDED" in again.stderr


def test_input_from_standard_input_and_file(stack, tiny, tmp_path):
    assert json.loads(stack.cli("predict", "tiny", "--input", "-", input='{"input": "x"}').stdout)
    (tmp_path / "input.json").write_text('{"input": "x"}')
    assert json.loads(stack.cli("predict", "tiny", "--input", f"@{tmp_path}/input.json").stdout)


def test_bad_input_is_told_with_its_reason(stack, tiny):
    done = stack.cli("predict", "tiny", "--input", '{"input": 7}', check=False)
    assert done.returncode == 3 and "HTTP 400" in done.stderr and "input" in done.stderr
    done = stack.cli("predict", "tiny", "--input", '{"input": 7}', "--async", "--wait", check=False)
    assert done.returncode == 3 and "MODEL_INVALID_INPUT" in done.stderr and "input" in done.stderr
    done = stack.cli("predict", "tiny", "--input", "{oops", check=False)
    assert done.returncode == 1 and "no JSON: line 1" in done.stderr
    done = stack.cli("predict", "nobody", "--input", "{}", check=False)
    assert done.returncode == 2 and "404" in done.stderr


def test_jobs(stack, tiny):
    id = stack.cli("predict", "tiny", "--input", '{"input": "x"}', "--async").stdout.strip()
    watched = stack.cli("jobs", "watch", id, "--json")
    assert json.loads(watched.stdout)["status"] == "SUCCEEDED"
    assert id in stack.cli("jobs", "ls", "--model", "tiny").stdout
    assert json.loads(stack.cli("jobs", "show", id, "--json").stdout)["request_id"] == id
    assert json.loads(stack.cli("jobs", "result", id).stdout)["object"] == "list"
    assert json.loads(stack.cli("jobs", "cancel", id, "--json").stdout)["canceled"] is False


def test_models_and_deployments(stack, tiny):
    assert "tiny" in stack.cli("models", "ls").stdout
    assert tiny["id"] in stack.cli("deployments", "ls", "tiny").stdout
    shown = json.loads(stack.cli("deployments", "show", "tiny", tiny["id"], "--json").stdout)
    assert shown["status"] == "ACTIVE"
    assert " info: model_loaded engine=encoder" in stack.cli("logs", "tiny").stdout
    (line,) = [line for line in stack.cli("logs", "tiny", "--json").stdout.splitlines() if "model_loaded" in line]
    assert json.loads(json.loads(line)["message"])["engine"] == "encoder"  # --json: as it was written


def test_a_push_says_what_to_do_next(stack):
    said = stack.cli("push", TINY, "--name", "said").stdout
    assert said.startswith("said is ready: deployment-1 (") and "predict said --environment=production" in said
    said = stack.cli("push", TINY, "--name", "said").stdout
    assert "deployment-2" in said and "headrace deployments promote said " in said


def production(stack):
    return json.loads(stack.cli("models", "show", "tiny", "--json").stdout)["production_deployment_id"]


def test_second_push_waits_for_its_promotion(stack, tiny):
    second = json.loads(stack.push(TINY, "tiny").stdout)
    assert second["id"] != tiny["id"] and production(stack) == tiny["id"]
    done = stack.cli("deployments", "rm", "tiny", tiny["id"], check=False)
    assert done.returncode == 2 and "points at" in done.stderr
    stack.cli("deployments", "promote", "tiny", second["id"])
    wait_until("production to be the second", lambda: production(stack) == second["id"])
    stack.cli("deployments", "rm", "tiny", tiny["id"])
    assert tiny["id"] not in stack.cli("deployments", "ls", "tiny").stdout
    assert json.loads(stack.cli("predict", "tiny", "--input", '{"input": "x"}').stdout)


def test_keys(stack):
    made = json.loads(stack.cli("keys", "create", "--name", "second", "--json").stdout)
    key = made["api_key"]
    assert stack.http("GET", "/v1/models", key=key).status == 200
    assert key.split(".")[0] in stack.cli("keys", "ls").stdout
    assert key not in stack.cli("keys", "ls").stdout
    stack.cli("keys", "rm", key.split(".")[0])
    done = stack.cli("keys", "ls", "--api-key", key, check=False)
    assert done.returncode in (0, 2)  # gateways may remember a key for some seconds


def test_client_file_makes_a_second_shell_work(stack):
    file = stack.data_dir / "client.json"
    assert file.stat().st_mode & 0o777 == 0o600
    done = subprocess.run([BINARY, "models", "ls", "--client", str(file)], capture_output=True,
                          text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_wrong_key_and_wrong_address(stack):
    done = stack.cli("models", "ls", "--api-key", "no.such", check=False)
    assert done.returncode == 2 and "401" in done.stderr
    done = subprocess.run([BINARY, "models", "ls", "--url", "http://127.0.0.1:1", "--api-key", "x"],
                          capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "127.0.0.1:1" in done.stderr
