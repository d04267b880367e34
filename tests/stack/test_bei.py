# SPDX-License-Identifier: Apache-2.0
"""Goal: Baseten's client for its embedding servers works on the encoder's routes as it is.

Method: one platform; MiniLM, and a reranker, a classifier and a token classifier of small random weights, whose answers the
reference gave (tests/data/encoder/make_kinds.py). The client runs as a user's script in its own environment
(scripts/python/venv bei); it splits what it is given into requests of a few texts, many at once, and joins the answers.
"""

import json
import os
import pathlib
import subprocess

import pytest
from stack import ROOT

DEPS = pathlib.Path(os.environ["HEADRACE_DEPS"])
CLIENT = DEPS / "venv-bei/bin/python"
KINDS = ROOT / "tests/data/encoder/kinds"
TEXTS = [f"text number {n} " + "turns the wheel " * (n % 7) for n in range(100)]

HEAD = """
import json, sys
from baseten_performance_client import PerformanceClient, RequestProcessingPreference
asked = json.loads(sys.argv[3])
client = PerformanceClient(base_url=sys.argv[1] + "/sync", api_key=sys.argv[2])
few = RequestProcessingPreference(batch_size=asked.get("batch", 8), max_concurrent_requests=16, max_retries=0)
"""


def baseten(stack, model, script, **asked):
    """Runs what a user writes; `client` is there, and what it prints last is JSON."""
    assert CLIENT.exists(), f"{CLIENT} is not there: scripts/python/venv bei"
    base = f"{stack.url('gateway')}/model/{model}/production"
    done = subprocess.run([CLIENT, "-c", HEAD + script, base, stack.key, json.dumps(asked)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def golden(name, route):
    return [asked for asked in json.loads((KINDS / name / "golden.json").read_text()) if asked["route"] == route]


@pytest.fixture(scope="module")
def models(stack):
    stack.push(DEPS / "models/all-MiniLM-L6-v2", "minilm")
    for kind in ("roberta-rerank", "bert-classify", "modernbert-tokens"):
        stack.push(KINDS / kind, kind)


def test_embed(stack, models):
    said = baseten(stack, "minilm", """
reply = client.embed(input=asked["texts"], model="minilm", preference=few)
print(json.dumps({"vectors": [item.embedding for item in reply.data], "indices": [item.index for item in reply.data],
                  "tokens": reply.usage.total_tokens, "requests": len(reply.individual_request_times), "model": reply.model}))
""", texts=TEXTS)  # fmt: skip
    whole = stack.http("POST", "/model/minilm/production/sync/v1/embeddings", {"model": "minilm", "input": TEXTS}).json
    assert said["indices"] == list(range(len(TEXTS))) and said["requests"] == 13
    assert said["tokens"] == whole["usage"]["total_tokens"] and said["model"] == "minilm"
    for got, want in zip(said["vectors"], whole["data"]):
        assert max(abs(a - b) for a, b in zip(got, want["embedding"])) < 1e-5


def test_rerank(stack, models):
    for asked in golden("roberta-rerank", "/rerank"):
        body = {"raw_scores": False, "return_text": False, "truncation_direction": "Right", **asked["body"]}
        said = baseten(stack, "roberta-rerank", """
reply = client.rerank(query=asked["query"], texts=asked["texts"], raw_scores=asked["raw_scores"], return_text=asked["return_text"],
                      truncate=asked["truncate"], truncation_direction=asked["truncation_direction"], preference=few)
print(json.dumps([[item.index, item.score, item.text] for item in reply.data]))
""", batch=128, **body)  # fmt: skip
        want = [[item["index"], item["score"], item.get("text")] for item in asked["answer"]]
        assert [row[::2] for row in said] == [row[::2] for row in want], (said, want)
        assert all(abs(a[1] - b[1]) < 1e-4 for a, b in zip(said, want))


def test_classify(stack, models):
    asked = golden("bert-classify", "/predict")[1]
    said = baseten(stack, "bert-classify", """
reply = client.classify(inputs=asked["texts"], truncate=True, preference=few)
print(json.dumps([[[item.label, item.score] for item in labels] for labels in reply.data]))
""", texts=[text for [text] in asked["body"]["inputs"]])  # fmt: skip
    for got, want in zip(said, asked["answer"], strict=True):
        assert [label for label, _ in got] == [item["label"] for item in want]
        assert all(abs(score - item["score"]) < 1e-4 for (_, score), item in zip(got, want))


def test_any_route(stack, models):
    """What the client has no name for goes by batch_post: one request each, in order."""
    asked = golden("modernbert-tokens", "/predict_tokens")
    said = baseten(stack, "modernbert-tokens", """
reply = client.batch_post(url_path="/predict_tokens", payloads=asked["payloads"], preference=few)
print(json.dumps(reply.data))
""", payloads=[one["body"] for one in asked])  # fmt: skip
    for got, want in zip(said, asked, strict=True):
        assert [[token["token"] for token in text] for text in got] == [[token["token"] for token in text] for text in want["answer"]]


def test_what_is_wrong_is_told(stack, models):
    said = baseten(stack, "minilm", """
import requests
try:
    client.rerank(query="a", texts=["b"], preference=few)
except requests.HTTPError as error:
    print(json.dumps([error.response.status_code if error.response is not None else None, str(error)]))
""")  # fmt: skip
    assert "400" in json.dumps(said) and "there is POST /v1/embeddings" in said[1], said
