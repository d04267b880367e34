# SPDX-License-Identifier: Apache-2.0
"""Goal: real models deploy from their files alone and give answers that mean something.

Method: one platform; MiniLM through `onnx` against the same weights through `encoder`, PP-OCRv4's
recogniser on a line of text that is rendered here, Silero VAD on a clip that is made here. Pictures
and sounds are turned into tensors and back by the few lines that any client would need.
"""

import array
import base64
import json
import math
import os
import pathlib
import random
import shutil

import pytest
from onnx_file import metadata
from PIL import Image, ImageDraw, ImageFont
from stack import ROOT, wait_until

MODELS = pathlib.Path(os.environ["HEADRACE_DEPS"]) / "models"
DATA = ROOT / "tests/data/onnx"
KINDS = ROOT / "tests/data/encoder/kinds"
TEXTS = ["The wheel turns.", "water", "A headrace carries water to the mill. " * 30,
         "Kafka, Redis, Postgres", "naïve café 北京", ""]  # fmt: skip
LINE = "Kafka 2026 words"
RATE, WINDOW, CONTEXT = 16000, 512, 64


def run(stack, model, model_input):
    id = stack.submit(model, model_input)
    job = stack.wait_final(id)
    assert job["status"] == "SUCCEEDED", job
    return stack.result(id).json


def tensor(shape, numbers):
    data = array.array("f", numbers).tobytes()
    return {"shape": shape, "dtype": "float32", "data": base64.b64encode(data).decode()}


def numbers_of(output):
    return array.array("f", base64.b64decode(output["data"]))


# ---- texts


@pytest.fixture(scope="module")
def minilm(stack):
    stack.push(MODELS / "all-MiniLM-L6-v2", "native")
    state = json.loads(stack.push(MODELS / "all-MiniLM-L6-v2-onnx", "graph").stdout)
    assert state["engine"] == "onnx" and state["config"]["file"] == "onnx/model.onnx"
    return state


def test_minilm_agrees_with_the_encoder(stack, minilm):
    native, graph = (run(stack, name, {"input": TEXTS}) for name in ("native", "graph"))
    assert graph["usage"] == native["usage"] and graph["truncated"] == native["truncated"]
    for text, a, b in zip(TEXTS, native["data"], graph["data"]):
        x, y = a["embedding"], b["embedding"]
        assert len(x) == len(y) == 384
        assert abs(math.hypot(*y) - 1) < 1e-5
        assert sum(p * q for p, q in zip(x, y)) >= 0.9999, text
    assert list(graph) == list(native) and graph["model"] == "graph"


def test_texts_alone_and_in_company_are_the_same(stack, minilm):
    ids = [stack.submit("graph", {"input": text}) for text in TEXTS]
    together = run(stack, "graph", {"input": TEXTS})["data"]
    for id, beside in zip(ids, together):
        assert stack.wait_final(id)["status"] == "SUCCEEDED"
        alone = stack.result(id).json["data"][0]["embedding"]
        assert max(abs(p - q) for p, q in zip(alone, beside["embedding"])) < 1e-5


# ---- heads


def close(got, want):
    """The same but for rounding: numbers to 1e-4, everything else exactly."""
    if isinstance(want, float):
        return isinstance(got, (int, float)) and abs(got - want) < 1e-4
    if isinstance(want, list):
        return isinstance(got, list) and len(got) == len(want) and all(map(close, got, want))
    if isinstance(want, dict):
        return isinstance(got, dict) and got.keys() == want.keys() and all(close(got[k], want[k]) for k in want)
    return type(got) is type(want) and got == want


def test_four_routes(stack, minilm):
    """An embedding model, a classifier, a reranker and a token classifier, each on its route: sync as in
    the reference's files, and async without a route. A wrong one is the caller's fault."""
    for family, head in (("bert", "classify"), ("roberta", "rerank"), ("distilbert", "tokens")):
        golden = json.loads((KINDS / f"{family}-{head}" / "golden.json").read_text())
        stack.push(KINDS / f"{family}-{head}", head)
        for asked in golden:
            reply = stack.http("POST", f"/model/{head}/production/sync{asked['route']}", asked["body"])
            assert reply.status == 200 and reply.headers["content-type"] == "application/json", reply
            assert close(reply.json, asked["answer"]), (head, asked["body"], reply.json)
        assert close(run(stack, head, golden[0]["body"]), golden[0]["answer"])
        wrong = stack.http("POST", f"/model/{head}/production/sync/v1/embeddings", {"input": "a"})
        assert wrong.status == 400 and f"there is POST {golden[0]['route']}" in wrong.json["error"], wrong
    texts = {"input": TEXTS, "model": "native"}
    assert stack.http("POST", "/model/native/production/sync/v1/embeddings", texts).json == run(stack, "native", texts)
    wrong = stack.http("POST", "/model/native/production/sync/rerank", {"query": "a", "texts": ["b"]})
    assert wrong.status == 400 and "there is POST /v1/embeddings" in wrong.json["error"], wrong


def test_head_that_there_is_not_is_refused_at_push(stack, tmp_path):
    model = shutil.copytree(KINDS / "bert-classify", tmp_path / "answers")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["BertForQuestionAnswering"]}))
    done = stack.cli("push", model, "--name", "answers", check=False)
    assert done.returncode != 0 and "BertForQuestionAnswering" in done.stderr and "ForTokenClassification of" in done.stderr
    assert stack.http("GET", "/v1/models/answers").status == 404


# ---- a picture


def rendered(text, height=48):
    font = ImageFont.load_default(36)
    picture = Image.new("RGB", (int(font.getlength(text)) + 16, height), "white")
    ImageDraw.Draw(picture).text((8, 0), text, fill="black", font=font)
    return picture


def pixels(picture):
    """[1, 3, height, width], blue first, from -1 to 1."""
    planes = [channel.tobytes() for channel in picture.split()]
    values = [byte / 127.5 - 1 for plane in reversed(planes) for byte in plane]
    return tensor([1, 3, picture.height, picture.width], values)


def read_text(output, alphabet):
    """The likeliest character of each step; repeats are one, and 0 is none."""
    steps, kinds = output["shape"][1:]
    numbers = numbers_of(output)
    text, last = "", 0
    for step in range(steps):
        row = numbers[step * kinds : (step + 1) * kinds]
        best = max(range(kinds), key=row.__getitem__)
        if best not in (last, 0):
            text += alphabet[best]
        last = best
    return text


def test_ocr_reads_a_rendered_line(stack):
    stack.push(MODELS / "pp-ocrv4-rec", "ocr")
    characters = metadata(MODELS / "pp-ocrv4-rec/model.onnx")["character"]
    alphabet = [""] + characters.split("\n") + [" "]
    answer = run(stack, "ocr", {"inputs": {"x": pixels(rendered(LINE))}, "encoding": "base64"})
    (output,) = answer["outputs"].values()
    assert output["shape"][2] == len(alphabet)
    assert read_text(output, alphabet).strip() == LINE


# ---- a sound


def spoken(seconds, start, end):
    """Noise that a room has; from start to end five vowels: pulses of a voice through formants."""
    vowels = [(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480),
              (660, 1720, 2410)]  # fmt: skip
    rng = random.Random(7)
    sound = [rng.gauss(0, 0.0005) for _ in range(int(seconds * RATE))]
    states, phase = [[0.0, 0.0] for _ in range(3)], 0.0
    for i in range(int(start * RATE), int(end * RATE)):
        t = i / RATE - start
        phase += (125 + 20 * math.sin(3 * math.pi * t) - 15 * t) / RATE
        source = rng.gauss(0, 0.01) + (phase >= 1)
        phase -= phase >= 1
        within = t % 0.24 / 0.24
        loudness = 0.05 * math.sin(math.pi * within / 0.9) if within < 0.9 else 0
        vowel = vowels[int(t / 0.24) % len(vowels)]
        for k, (pitch, width) in enumerate(zip(vowel, (80, 100, 140))):
            r, state = math.exp(-math.pi * width / RATE), states[k]
            value = source + 2 * r * math.cos(2 * math.pi * pitch / RATE) * state[0] - r * r * state[1]
            states[k] = [value, state[0]]
            sound[i] += loudness * value / (k + 1)
    return sound


def test_vad_finds_speech(stack):
    stack.push(MODELS / "silero-vad", "vad")
    sound = spoken(2.5, 1.0, 2.0)
    count = len(sound) // WINDOW
    padded = [0.0] * CONTEXT + sound
    windows = [x for i in range(count) for x in padded[i * WINDOW :][: CONTEXT + WINDOW]]
    rest = tensor([1, 1, 128], [0.0] * 128)
    answer = run(stack, "vad", {
        "inputs": {"input": tensor([count, CONTEXT + WINDOW], windows), "h": rest, "c": rest},
        "outputs": ["speech_probs"]})  # fmt: skip
    (name, output), = answer["outputs"].items()
    assert name == "speech_probs" and output["shape"][0] == count
    speech = [value if isinstance(value, float) else value[0] for value in output["data"]]
    before, during = speech[: int(0.9 * RATE / WINDOW)], speech[int(1.15 * RATE / WINDOW) :][:15]
    assert max(before) < 0.3 and min(during) > 0.5, speech


# ---- what is refused


def test_bad_inputs_are_the_senders_fault(stack):
    stack.push(DATA / "add", "add")
    for model_input, want in [
        ({"inputs": {"a": [[1, 2]]}}, "inputs.b is missing"),
        ({"inputs": {"a": [[1, 2]], "b": [[1, 2], [3]]}}, "no one shape"),
        ({"inputs": {"a": [[1, 2]], "b": [[1, 2], [3, 4]]}}, "inputs.b has 2 rows"),
        ({"input": "a text"}, "there are inputs, outputs and encoding"),
    ]:
        job = stack.wait_final(stack.submit("add", model_input))
        assert job["status"] == "FAILED" and want in json.dumps(job), job
    assert run(stack, "add", {"inputs": {"a": [[1, 2]], "b": [[3, 4]]}})["outputs"]["sum"]["data"] == [[4, 6]]


@pytest.mark.parametrize(("model", "ours", "want"), [
    ("fixed", {"device": "cuda"}, "no device: needs a device, and this machine has no NVIDIA driver"),
    ("hostile", {"settings": {"file": "climbs.onnx"}}, "no path below the model's directory"),
    ("hostile", {"settings": {"file": "cut.onnx"}}, "cut off or malformed"),
    ("add", {"settings": {"colour": 1}}, "'colour' is unknown"),
])  # fmt: skip
def test_loads_that_fail_say_why(stack, tmp_path, model, ours, want):
    name = f"bad-{model}-{len(want)}"
    shutil.copytree(DATA / model, tmp_path / "model")
    for path in (tmp_path / "model").glob("empty*"):
        path.unlink()
    (tmp_path / "model/headrace.json").write_text(json.dumps(ours))
    stack.push(tmp_path / "model", name, wait=False)

    def ended():
        state = stack.http("GET", f"/v1/models/{name}/deployments").json["deployments"][0]
        return state if state["status"] == "DEPLOY_FAILED" else None

    assert want in wait_until("the deployment to fail", ended)["error"]


def test_batching_limits_are_the_answer_to_a_push(stack, tmp_path):
    shutil.copytree(DATA / "add", tmp_path / "model")
    (tmp_path / "model/headrace.json").write_text('{"batching": {"max_wait_ms": 5000}}')
    refused = stack.cli("push", str(tmp_path / "model"), check=False)
    assert refused.returncode == 2 and "max_wait_ms is 5000" in refused.stderr
    (tmp_path / "model/headrace.json").write_text('{"batching": {"max_items": 8, "max_wait_ms": 20}}')
    state = json.loads(stack.push(tmp_path / "model", "patient").stdout)
    assert state["config"]["batching"] == {"max_items": 8, "max_wait_ms": 20}
    shown = stack.cli("deployments", "show", "patient", state["id"]).stdout
    assert "max_wait_ms" in shown
