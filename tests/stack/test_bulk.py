# SPDX-License-Identifier: Apache-2.0
"""Goal: OpenAI's own client, with nothing changed but its base_url, uploads files and runs bulk jobs; what it
is refused names what is wrong, by line.

Method: one stack; the client runs as a user's script in its own environment (scripts/python/venv llm).
"""

import gzip
import http.server
import json
import os
import pathlib
import socket
import subprocess
import threading
import urllib.parse

import bulk_kill
import pytest
from conftest import run_stack
from stack import wait_until


DEPS = pathlib.Path(os.environ["HEADRACE_DEPS"])
CLIENT = DEPS / "venv-llm/bin/python"
MODELS = DEPS / "models"
SLOTS = 64
SOME_KILLS = [("ingest", 0.2), ("worker", 0.4), ("broker", 0.6)]
EVERY_KILL = [(victim, 0.1 * n) for n, victim in enumerate(bulk_kill.VICTIMS, 2)]


@pytest.fixture(scope="module")
def stack(request, tmp_path_factory):
    journal = tmp_path_factory.mktemp("journal") / "calls"
    env = {**bulk_kill.LEASE, "HEADRACE_SIM_JOURNAL": journal, "HEADRACE_URL_ALLOW": "127.0.0.1", "HEADRACE_URL_MAX": "2MiB"}
    for stack in run_stack(request, env=env):
        stack.journal = journal
        yield stack


def openai(stack, script, *args, timeout=120):
    """Runs what a user writes; `client` is there, and what it prints last is JSON."""
    assert CLIENT.exists(), f"{CLIENT} is not there: scripts/python/venv llm"
    head = ("import io, json, sys, time, openai\n"
            "client = openai.OpenAI(base_url=sys.argv[1], api_key=sys.argv[2], max_retries=0, timeout=60)\n")
    done = subprocess.run([CLIENT, "-c", head + script, stack.url("gateway") + "/v1", stack.key, *map(str, args)],
                          capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def upload(stack, content, purpose="batch", filename="lines.jsonl", fields=(), order=None):
    parts = {"purpose": f'Content-Disposition: form-data; name="purpose"\r\n\r\n{purpose}'.encode(),
             "file": f'Content-Disposition: form-data; name="file"; filename="{filename}"\r\n'
                     f"Content-Type: application/jsonl\r\n\r\n".encode() + content}
    for name, value in fields:
        parts[name] = f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()
    body = b"".join(b"--edge\r\n" + parts[name] + b"\r\n" for name in (order or parts)) + b"--edge--\r\n"
    return stack.http("POST", "/v1/files", body, {"Content-Type": "multipart/form-data; boundary=edge"})


FILES = """
content = ("\\n".join(json.dumps({"n": n, "text": "\\u00e4" * 100}) for n in range(20000)) + "\\n").encode()
first = client.files.create(file=("first.jsonl", io.BytesIO(content), "application/jsonl"), purpose="batch")
second = client.files.create(file=("second.jsonl", b"{}"), purpose="user_data",
                             expires_after={"anchor": "created_at", "seconds": 3600})
found = client.files.retrieve(first.id)
assert found == first and first.bytes == len(content) and first.filename == "first.jsonl" and first.status == "processed"
assert second.expires_at == second.created_at + 3600 and first.expires_at is None
assert client.files.content(first.id).read() == content
listed = {order: [f.id for f in client.files.list(order=order)] for order in ("asc", "desc")}
paged = [f.id for f in client.files.list(limit=1)]
of_purpose = [f.id for f in client.files.list(purpose="user_data")]
gone = client.files.delete(first.id)
codes = {}
for what in (client.files.retrieve, client.files.content, client.files.delete):
    try:
        what(first.id)
    except openai.NotFoundError as error:
        codes[what.__name__] = [error.status_code, error.type, error.code]
try:
    client.files.create(file=("x.jsonl", b"{}"), purpose="nonsense")
except openai.BadRequestError as error:
    codes["purpose"] = [error.status_code, error.type, error.message]
left = [f.id for f in client.files.list()]
print(json.dumps({"ids": [first.id, second.id], "listed": listed, "paged": paged, "of_purpose": of_purpose,
                  "deleted": gone.deleted, "codes": codes, "left": left}))
"""


def test_files_by_openais_client(stack):
    said = openai(stack, FILES)
    first, second = said["ids"]
    assert said["listed"] == {"asc": [first, second], "desc": [second, first]}
    assert said["paged"] == [second, first] and said["of_purpose"] == [second]
    assert said["deleted"] is True and said["left"] == [second]
    for name in ("retrieve", "content", "delete"):
        assert said["codes"][name] == [404, "invalid_request_error", "client_error"], said["codes"]
    assert "purpose is 'nonsense'" in said["codes"]["purpose"][2]
    blobs = [path for path in stack.data_dir.glob("blobs/files/**/*") if path.is_file()]
    assert len(blobs) == 1  # the bytes of the deleted one are gone as well
    assert stack.sql("SELECT count(*) FROM headrace.file") == [["1"]]


def test_files_that_are_refused(stack):
    rows = [
        (dict(content=b""), 400, "the file is empty"),
        (dict(content=b"x", order=["file"]), 400, "no field 'purpose'"),
        (dict(content=b"x", order=["purpose"]), 400, "no field 'file'"),
        (dict(content=b"x", order=["file", "purpose", "file"]), 400, "two fields 'file'"),
        (dict(content=b"x", filename=""), 400, "has no file name"),
        (dict(content=b"x", filename="x" * 300), 400, "300 bytes; at most 255"),
        (dict(content=b"x", purpose="batch" * 20), 400, "purpose is longer than 63 bytes"),
        (dict(content=b"x", fields=[("expires_after[anchor]", "yesterday")]), 400, "must be created_at"),
        (dict(content=b"x", fields=[("expires_after[anchor]", "created_at"), ("expires_after[seconds]", "60")]), 400,
         "expires_after[seconds] is '60'; it must be 3600 to 2592000"),
    ]
    before = stack.sql("SELECT count(*) FROM headrace.file")
    for asked, status, text in rows:
        reply = upload(stack, **asked)
        assert reply.status == status and text in reply.json["error"]["message"], (asked, reply)
    for body, headers, text in (
            (b"{}", {}, "Content-Type is 'application/json'; it must be multipart/form-data"),
            (b"{}", {"Content-Type": "multipart/form-data"}, "no boundary"),
            (b"--edge\r\nnonsense", {"Content-Type": "multipart/form-data; boundary=edge"}, "ends in the middle")):
        reply = stack.http("POST", "/v1/files", body, headers)
        assert reply.status == 400 and text in reply.json["error"]["message"], reply
    for path in ("/v1/files/x", "/v1/files/file-00", "/v1/files?after=x"):
        assert stack.http("GET", path).status == 404
    for path in ("/v1/files?limit=0", "/v1/files?limit=10001", "/v1/files?order=up"):
        assert stack.http("GET", path).status == 400
    assert stack.http("GET", "/v1/files", key="nobody").json["error"]["code"] == "unauthorized"
    assert upload(stack, b"x", order=["file", "purpose"]).status == 200  # any order
    assert stack.sql("SELECT count(*) - 1 FROM headrace.file") == before


def test_an_upload_that_stops_leaves_nothing(stack):
    before = stack.sql("SELECT count(*) FROM headrace.file")
    host, port = stack.url("gateway").removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.key}\r\n"
                       "Content-Type: multipart/form-data; boundary=edge\r\nContent-Length: 50000000\r\n\r\n"
                       '--edge\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode()
                       + b"x" * (3 << 20))
    reply = stack.http("POST", "/v1/files", b"x", {"Content-Type": "multipart/form-data; boundary=e",
                                                   "X-Padding": "1"})
    assert reply.status == 400
    assert stack.sql("SELECT count(*) FROM headrace.file") == before


# ---- bulk jobs ----

EMBED = """
words = "the quick brown fox jumps over a lazy dog while seven wizards brew strong coffee in old kettles".split()
def text(n):
    return " ".join(words[(n * 7 + k * k) % len(words)] for k in range(3 + n % 9)) + " " + str(n)
lines = [{"custom_id": "line-%d" % n, "method": "POST", "url": "/v1/embeddings",
          "body": {"model": "minilm", "input": text(n)}} for n in range(int(sys.argv[3]))]
lines[7]["body"]["input"] = []  # the engine refuses it
file = client.files.create(file=("lines.jsonl", "\\n".join(map(json.dumps, lines)).encode()), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h",
                              metadata={"team": "search"})
assert batch.status == "validating" and batch.metadata == {"team": "search"} and batch.object == "batch"
states = [batch.status]
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(0.05)
    batch = client.batches.retrieve(batch.id)
    if states[-1] != batch.status:
        states.append(batch.status)
assert batch.status == "completed", batch
output = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
errors = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
info = client.files.retrieve(batch.output_file_id)
assert info.purpose == "batch_output" and info.bytes == len(client.files.content(batch.output_file_id).read())
listed = [b.id for b in client.batches.list(limit=1)]
try:
    client.batches.cancel(batch.id)
    refused = None
except openai.ConflictError as error:
    refused = error.message
print(json.dumps({"batch": batch.model_dump(), "states": states, "ids": [o["custom_id"] for o in output],
                  "first": output[0], "errors": errors, "listed": listed, "refused": refused, "text": text(0)}))
"""


@pytest.fixture(scope="module")
def minilm(stack):
    stack.push(MODELS / "all-MiniLM-L6-v2", "minilm")


@pytest.fixture(scope="module")
def sim(stack):
    stack.push_sim("sim", slots=SLOTS, replicas=1)


def test_embeddings_by_openais_client(stack, minilm):
    count = 300
    said = openai(stack, EMBED, count)
    batch = said["batch"]
    assert said["states"][-1] == "completed" and said["listed"] == [batch["id"]]
    counts = {name: batch["request_counts"][name] for name in ("total", "completed", "failed")}
    assert counts == {"total": count, "completed": count - 1, "failed": 1}
    assert said["ids"] == [f"line-{n}" for n in range(count) if n != 7]  # each once, in the input's order
    body = said["first"]["response"]["body"]
    assert said["first"]["response"]["status_code"] == 200 and said["first"]["error"] is None
    assert body["object"] == "list" and len(body["data"][0]["embedding"]) == 384
    sync = stack.http("POST", "/model/minilm/production/sync/v1/embeddings", {"model": "minilm", "input": said["text"]})
    pairs = zip(sync.json["data"][0]["embedding"], body["data"][0]["embedding"])
    assert all(abs(one - other) < 1e-4 for one, other in pairs)
    (error,) = said["errors"]
    assert error["custom_id"] == "line-7" and error["error"]["class"] == "BAD_INPUT", error
    assert error["error"]["attempts"] == 1 and error["error"]["line"] == 8, error
    assert "is completed cannot be cancelled" in said["refused"]
    for name in ("created_at", "in_progress_at", "finalizing_at", "completed_at", "expires_at"):
        assert batch[name] > 0, name
    assert batch["expires_at"] - batch["created_at"] == 24 * 3600
    # A line is a job like any other, below all priorities; SQL finds it by the bulk job and its number.
    job = said["first"]["response"]["request_id"]
    id = batch["id"].removeprefix("batch_")
    assert stack.sql("SELECT headrace.bulk_line_job(:'a1'::uuid, 1, j.shard), class FROM headrace.job j "
                     "JOIN headrace_v1.jobs v USING (id) WHERE j.id = :'a2'", id, job) == [[job, "bulk"]]
    assert stack.job(job)["status"] == "SUCCEEDED"


IN_NODE = """
const OpenAI = require("openai"), assert = require("assert");
const [url, key, count] = process.argv.slice(1);
const client = new OpenAI({baseURL: url + "/v1", apiKey: key, maxRetries: 0, timeout: 60000});
const text = n => "a line of text number " + n;
async function main() {
  const lines = [...Array(+count).keys()].map(n => JSON.stringify({custom_id: "js-" + n, method: "POST", url: "/v1/embeddings",
    body: {model: "minilm", input: text(n)}})).join("\\n");
  const file = await client.files.create({file: await OpenAI.toFile(Buffer.from(lines), "lines.jsonl"), purpose: "batch"});
  assert.equal(file.bytes, Buffer.byteLength(lines));
  assert.deepEqual(await client.files.retrieve(file.id), file);
  assert.equal(await (await client.files.content(file.id)).text(), lines);
  let batch = await client.batches.create({input_file_id: file.id, endpoint: "/v1/embeddings", completion_window: "24h",
    metadata: {team: "js"}});
  assert.equal(batch.status, "validating");
  while (!["completed", "failed", "expired", "cancelled"].includes(batch.status)) {
    await new Promise(go => setTimeout(go, 50));
    batch = await client.batches.retrieve(batch.id);
  }
  assert.equal(batch.status, "completed");
  const output = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\\n").map(JSON.parse);
  const listed = [];
  for await (const one of client.batches.list({limit: 1})) { listed.push(one.id); if (listed.length === 2) break; }
  const named = [];
  for await (const one of client.files.list({purpose: "batch", limit: 1})) { named.push(one.id); if (named.length === 2) break; }
  const conflict = await client.batches.cancel(batch.id).catch(error => error);
  assert(conflict instanceof OpenAI.ConflictError, conflict);
  const unknown = await client.files.retrieve("file-" + "0".repeat(32)).catch(error => error);
  assert(unknown instanceof OpenAI.NotFoundError, unknown);
  const wrong = await client.files.create({file: await OpenAI.toFile(Buffer.from("x"), "x"), purpose: "nonsense"}).catch(error => error);
  assert(wrong instanceof OpenAI.BadRequestError && wrong.message.includes("purpose is 'nonsense'"), wrong);
  const direct = new OpenAI({baseURL: url + "/model/minilm/production/sync/v1", apiKey: key, maxRetries: 0});
  const asked = await direct.embeddings.create({model: "minilm", input: [text(0), text(1)]});
  const gone = await client.files.delete(file.id);
  console.log(JSON.stringify({batch, output, listed, named, file: file.id, message: conflict.message, gone: gone.deleted,
    asked: asked.data.map(one => one.embedding)}));
}
main().catch(error => { console.error(error); process.exit(1); });
"""


def test_embeddings_by_openais_client_in_node(stack, minilm):
    """OpenAI's client for JavaScript, unmodified: files, bulk jobs and embeddings."""
    node, count = DEPS / "node/node", 50
    assert node.exists(), f"{node} is not there: scripts/node/fetch"
    done = subprocess.run([node, "-e", IN_NODE, stack.url("gateway"), stack.key, str(count)], capture_output=True, text=True,
                          timeout=120, env={**os.environ, "NODE_PATH": DEPS / "node/node_modules"})
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    batch = said["batch"]
    assert batch["request_counts"] == {"total": count, "completed": count, "failed": 0} and batch["metadata"] == {"team": "js"}
    assert [one["custom_id"] for one in said["output"]] == [f"js-{n}" for n in range(count)]
    assert said["listed"][0] == batch["id"] and said["named"][0] == said["file"] and said["gone"] is True
    assert "is completed cannot be cancelled" in said["message"]
    for one, asked in zip(said["output"], said["asked"]):
        found = one["response"]["body"]["data"][0]["embedding"]
        assert len(found) == len(asked) == 384 and all(abs(a - b) < 1e-4 for a, b in zip(found, asked))


def line(n, model="sim", endpoint="/v1/embeddings", **body):
    return {"custom_id": f"line-{n}", "method": "POST", "url": endpoint, "body": {"model": model, **body}}


def jsonl(lines):
    return "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines).encode()


def create(stack, content, endpoint="/v1/embeddings", window="24h"):
    file = upload(stack, content if isinstance(content, bytes) else jsonl(content)).json["id"]
    reply = stack.http("POST", "/v1/batches", {"input_file_id": file, "endpoint": endpoint, "completion_window": window})
    assert reply.status == 200, reply
    return reply.json["id"]


def batch_of(stack, id):
    return stack.http("GET", f"/v1/batches/{id}").json


def wait_over(stack, id, seconds=60):
    def ask():
        batch = batch_of(stack, id)
        return batch if batch["status"] in ("completed", "failed", "expired", "cancelled") else None

    return wait_until(f"bulk job {id} to be over", ask, seconds)


def content_of(stack, file):
    if file is None:
        return []
    return [json.loads(text) for text in stack.http("GET", f"/v1/files/{file}/content").body.splitlines()]


def test_lines_that_are_refused(stack, minilm, sim):
    good = line(1)
    rows = [
        ([good, "{\"custom_id\": "], 2, "invalid_json_line", ""),
        ([good, "", "[]"], 3, "invalid_json_line", "object"),
        ([good, line(1)], 2, "duplicate_custom_id", "earlier line"),
        ([line(1, endpoint="/v1/completions")], 1, "mismatched_endpoint", "the batch's endpoint is /v1/embeddings"),
        ([dict(good, method="GET")], 1, "invalid_method", "must be POST"),
        ([dict(good, custom_id="x" * 513)], 1, "invalid_custom_id", "513 bytes; it must have 1 to 512"),
        ([dict(good, body=[])], 1, "invalid_type", "body is a array"),
        ([good, line(2, model="nobody")], 2, "model_not_found",
         "model 'nobody' is not there for /v1/embeddings; served there: minilm, sim"),
        ([line(1, text="x" * (1 << 20))], 1, "line_too_long", "1048576 bytes of bulk-line-max"),
        (b"\xff\xfe" + jsonl([good]), 1, "invalid_json_line", ""),
        (b"\xef\xbb\xbf" + jsonl([good]), 1, "invalid_json_line", "byte order mark"),
        (json.dumps(good).encode("utf-16-le"), 1, "invalid_json_line", ""),
        (b"\n \n", 3, "empty_file", "no request"),
    ]
    made = [(create(stack, content), number, code, text) for content, number, code, text in rows]
    chat = create(stack, [line(1, model="minilm", endpoint="/v1/chat/completions")], "/v1/chat/completions")
    made.append((chat, 1, "model_not_found", "does not serve /v1/chat/completions; served there: sim"))
    for id, number, code, text in made:
        batch = wait_over(stack, id)
        assert batch["status"] == "failed" and batch["failed_at"] > 0, batch
        first = batch["errors"]["data"][0]
        assert first["line"] == number and first["code"] == code and text in first["message"], (code, batch["errors"])
        assert batch["output_file_id"] is None and batch["error_file_id"] is None
    assert stack.sql("SELECT count(*) FROM headrace.job WHERE model = 'sim'") == [["0"]]  # no line was run
    many = wait_over(stack, create(stack, ["x"] * 300))
    assert len(many["errors"]["data"]) == 100

    file = upload(stack, jsonl([good])).json["id"]
    other = upload(stack, jsonl([good]), purpose="user_data").json["id"]
    base = {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    for change, text in (
            ({"input_file_id": "file-" + "0" * 32}, "there is no such file"), ({"input_file_id": "x"}, "no file 'x'"),
            ({"input_file_id": other}, "its purpose is 'user_data'; it must be batch"),
            ({"endpoint": "/v1/images"}, "endpoint is '/v1/images'"), ({"endpoint": None}, "endpoint must be a string"),
            ({"completion_window": "24"}, "it must be 24h"), ({"completion_window": "73h"}, "1h to 72h"),
            ({"metadata": {"a": 1}}, "metadata 'a' must be a string"), ({"metadata": []}, "metadata must be an object"),
            ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after")):
        reply = stack.http("POST", "/v1/batches", {**base, **change})
        assert reply.status == (404 if "no such" in text or "no file" in text else 400), (change, reply)
        assert text in reply.json["error"]["message"], (change, reply)
    assert stack.http("GET", "/v1/batches/batch_0").status == 404


def test_outputs_large_and_small_in_order(stack, sim):
    """Inputs and answers beyond what is kept inline, failures in between, and a model that is slow for some."""
    lines = [line(n, text="x" * (100_000 if n % 10 == 0 else 10)) for n in range(120)]
    lines[50]["body"]["sim"] = {"fail": "model_error"}
    id = create(stack, lines)
    batch = wait_over(stack, id)
    counts = batch["request_counts"]
    assert batch["status"] == "completed" and counts["total"] == 120 == counts["completed"] + counts["failed"]
    output, errors = content_of(stack, batch["output_file_id"]), content_of(stack, batch["error_file_id"])
    assert [one["custom_id"] for one in output] == [f"line-{n}" for n in range(120) if n != 50]
    assert [one["custom_id"] for one in errors] == ["line-50"]
    assert errors[0]["error"]["attempts"] == 3 and errors[0]["error"]["class"] == "MODEL_ERROR", errors


def test_what_is_there_can_be_read_and_a_cancel_ends_it(stack):
    stack.push_sim("slow", slots=100, replicas=1)
    lines = [line(n, model="slow", sim={"sleep_ms": 0 if n < 2000 else 30000}) for n in range(6000)]
    id = create(stack, lines)

    def half():
        return batch_of(stack, id)["request_counts"]["completed"] >= 2000

    wait_until("the first lines to be written", half, 60)
    there = [json.loads(text) for text in stack.http("GET", f"/v1/batches/{id}/output").body.splitlines()]
    assert [one["custom_id"] for one in there] == [f"line-{n}" for n in range(2000)]
    reply = stack.http("POST", f"/v1/batches/{id}/cancel")
    assert reply.status == 200 and reply.json["status"] == "cancelling"
    batch = wait_over(stack, id)
    counts = batch["request_counts"]
    assert batch["status"] == "cancelled" and batch["cancelled_at"] > 0
    assert counts["completed"] + counts["failed"] == counts["total"] == 6000
    output, errors = content_of(stack, batch["output_file_id"]), content_of(stack, batch["error_file_id"])
    assert [one["custom_id"] for one in output + errors] == [f"line-{n}" for n in range(6000)]
    assert {one["error"]["code"] for one in errors} == {"batch_cancelled"}
    assert stack.sql("SELECT count(*) FROM headrace.job WHERE model = 'slow' AND state IN (1, 2)") == [["0"]]


def test_what_has_not_run_in_time_expires(stack):
    stack.stop_service("ingest")
    id = create(stack, [line(n, model="slow", sim={"sleep_ms": 0 if n < 1000 else 30000}) for n in range(3000)], window="1h")
    stack.sql("UPDATE headrace.bulk SET expires_at = now() + interval '4 seconds' WHERE status = 'validating'")
    stack.start_service("ingest")
    batch = wait_over(stack, id)
    assert batch["status"] == "expired" and batch["expired_at"] > 0
    output, errors = content_of(stack, batch["output_file_id"]), content_of(stack, batch["error_file_id"])
    assert [one["custom_id"] for one in output + errors] == [f"line-{n}" for n in range(3000)]
    assert len(output) == 1000 and "batch_expired" in {one["error"]["code"] for one in errors}


def test_an_input_that_is_gone_fails_by_name(stack, sim):
    stack.stop_service("ingest")
    id = create(stack, [line(n) for n in range(3)])
    ((blob,),) = stack.sql("SELECT input_blob FROM headrace.bulk WHERE status = 'validating'")
    (stack.data_dir / "blobs" / blob).unlink()
    stack.sql("UPDATE headrace.bulk SET epoch = 3 WHERE status = 'validating'")  # claimed three times, in vain
    stack.start_service("ingest")
    wait_until("a fourth claim, in vain as well", lambda: "bulk_input_not_read" in
               (stack.data_dir / "logs/ingest.log").read_text())
    assert batch_of(stack, id)["status"] == "validating"
    stack.sql("UPDATE headrace.bulk SET leased_until = now() WHERE status = 'validating'")
    batch = wait_over(stack, id)
    assert batch["status"] == "failed" and batch["errors"]["data"][0]["code"] == "input_lost", batch
    # Lost when it has been validated: what is written stays, and counts add up.
    stack.push_sim("lost", slots=16)
    id = create(stack, [line(n, model="lost", sim={"sleep_ms": 0 if n < 1000 else 100_000}) for n in range(3000)])
    wait_until("the first lines to be written", lambda: batch_of(stack, id)["request_counts"]["completed"] == 1000)
    stack.stop_service("ingest")
    ((blob,),) = stack.sql("SELECT input_blob FROM headrace.bulk WHERE status = 'in_progress'")
    (stack.data_dir / "blobs" / blob).unlink()
    stack.sql("UPDATE headrace.bulk SET epoch = 4 WHERE status = 'in_progress'")
    stack.start_service("ingest")
    batch = wait_over(stack, id)
    assert batch["status"] == "failed" and batch["errors"]["data"][0]["code"] == "input_lost", batch
    assert batch["request_counts"] == {"total": 3000, "completed": 1000, "failed": 2000}
    assert len(stack.http("GET", f"/v1/batches/{id}/output").body.splitlines()) == 1000


def test_an_input_that_changes_fails_by_its_line(stack):
    """Somebody writes into the blob between validation and sending: what was written stays, counts add up."""
    stack.push_sim("changed", slots=16)
    id = create(stack, [line(n, model="changed", sim={"sleep_ms": 0 if n < 1000 else 100_000}) for n in range(3000)])
    wait_until("the first lines to be written", lambda: batch_of(stack, id)["request_counts"]["completed"] == 1000)
    stack.stop_service("ingest")
    ((blob,),) = stack.sql("SELECT input_blob FROM headrace.bulk WHERE id = :'a1'", id.removeprefix("batch_"))
    path = stack.data_dir / "blobs" / blob
    lines = path.read_bytes().split(b"\n")
    lines[1500] = b"?" * len(lines[1500])  # of the same size
    path.chmod(0o600)
    path.write_bytes(b"\n".join(lines))
    stack.start_service("ingest")
    batch = wait_over(stack, id)
    (error,) = batch["errors"]["data"]
    assert batch["status"] == "failed" and error["code"] == "input_changed" and error["line"] == 1501, batch
    assert batch["request_counts"] == {"total": 3000, "completed": 1000, "failed": 2000}
    assert len(stack.http("GET", f"/v1/batches/{id}/output").body.splitlines()) == 1000


def test_kills_under_a_bulk_job(stack, tmp_path):
    """kill -9 while lines are sent, run and written: each line once, none again whose output was there, half of it can be
    read at half. Here of some; `bench/run bulk-kills` has all of them at 30, 60 and 90 % of a million lines."""
    count, kills = (20000, EVERY_KILL) if os.environ.get("HEADRACE_LONG") else (8000, SOME_KILLS)
    stack.push_sim("counted", slots=SLOTS, service_ms=10)
    os.truncate(stack.journal, 0)
    bulk_kill.write_lines(tmp_path / "lines.jsonl", "counted", count)
    id = bulk_kill.begin(stack, tmp_path / "lines.jsonl")
    seen, half = bulk_kill.run(stack, "counted", id, count, kills, stack.journal, tmp_path)
    assert [one["victim"] for one in seen] == [victim for victim, _ in kills] and half is not None
    assert [one["written"] for one in seen] == sorted(one["written"] for one in seen)
    told = bulk_kill.check(stack, id, count, seen, stack.journal, tmp_path, SLOTS)
    assert stack.sql("SELECT count(*), count(DISTINCT id) FROM headrace.job WHERE id IN (SELECT headrace.bulk_line_job("
                     ":'a1'::uuid, n, 0::smallint) FROM generate_series(1, :a2) n)",
                     id.removeprefix("batch_"), count) == [[str(count), str(count)]], told


def test_online_work_is_yielded_to(stack):
    """While a job of a higher class waits in its pool, no more of a bulk job enters; it goes on when that is over."""
    stack.push_sim("shared", slots=4, service_ms=10)
    id = create(stack, [line(n, model="shared") for n in range(5000)])
    lines = "SELECT count(*) FROM headrace.job WHERE model = 'shared' AND rank = 4"
    wait_until("lines to be jobs", lambda: stack.sql(lines) != [["0"]])
    urgent = [stack.submit("shared", {"sim": {"sleep_ms": 100_000}}) for _ in range(8)]  # four of them wait
    log = stack.data_dir / "logs/ingest.log"
    wait_until("the bulk job to yield", lambda: "bulk_yields" in log.read_text())
    ((live,),) = stack.sql(lines + " AND state IN (1, 2)")
    assert int(live) <= 2000  # what was in stays in
    for job in urgent:
        stack.cancel(job)
    wait_until("the bulk job to go on", lambda: "bulk_goes_on" in log.read_text())
    assert stack.http("POST", f"/v1/batches/{id}/cancel").status == 200
    counts = wait_over(stack, id)["request_counts"]
    assert counts["completed"] + counts["failed"] == 5000


def test_a_kill_switch_holds_the_lines_of_a_model(stack, sim):
    """Nothing of a bulk job runs while its model is switched off, and nothing of it is lost by that."""
    stack.push_sim("held", slots=8)
    count = 1500

    def ended():
        return int(stack.sql("SELECT count(*) FROM headrace.job WHERE model IN (SELECT id FROM headrace.model "
                             "WHERE name = 'held') AND state = 3")[0][0])

    id = create(stack, [line(n, model="held", sim={"sleep_ms": 10}) for n in range(count)])
    wait_until("lines to run", ended)
    stack.cli("switch", "on", "--model", "held")
    other = {"model_input": {}}
    wait_until("submits to be refused", lambda: stack.http("POST", "/model/held/production/async_predict", other).status == 503)
    for _ in range(2):  # the same broker goes on, for longer than a line takes
        assert stack.wait_final(stack.submit("sim", {"sim": {"sleep_ms": 200}}))["status"] == "SUCCEEDED"
    held = ended()
    assert stack.wait_final(stack.submit("sim", {"sim": {"sleep_ms": 200}}))["status"] == "SUCCEEDED"
    assert ended() == held < count and batch_of(stack, id)["status"] == "in_progress"
    stack.cli("switch", "off", "--model", "held")
    batch = wait_over(stack, id)
    assert batch["request_counts"] == {"total": count, "completed": count, "failed": 0}, batch
    assert [one["custom_id"] for one in content_of(stack, batch["output_file_id"])] == [f"line-{n}" for n in range(count)]


def test_files_go_when_nobody_needs_them(stack, sim):
    id = create(stack, [line(1), line(2)])
    batch = wait_over(stack, id)
    for file in (batch["input_file_id"], batch["output_file_id"]):
        assert stack.http("DELETE", f"/v1/files/{file}").json["deleted"] is True
        assert stack.http("GET", f"/v1/files/{file}").status == 404
    day = stack.data_dir / "blobs/bulk"
    mine = id.removeprefix("batch_")

    def gone():
        stack.sql("NOTIFY headrace_bulk")
        left = [name for folder, _, names in os.walk(day) if os.path.basename(folder).replace("-", "") == mine
                for name in names if name.endswith(".output")]  # folders go while they are walked
        return not left and stack.sql("SELECT count(*) FROM headrace.file WHERE deleted_at IS NOT NULL") == [["0"]]

    wait_until("the blobs and rows to go", gone)


# ---- lines of one model, packed files, retries, the command line ----


def submit_lines(stack, content, model="sim", environment="production", query="", headers=None):
    return stack.http("POST", f"/model/{model}/environments/{environment}/bulk{query}", content, headers)


def zstd(content):
    """A frame of blocks that are not compressed: RFC 8878."""
    step = 1 << 16
    parts = [content[at:at + step] for at in range(0, len(content), step)]
    return b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(
        ((len(part) << 3) | (n == len(parts) - 1)).to_bytes(3, "little") + part for n, part in enumerate(parts))


def test_lines_of_one_model(stack, sim):
    lines = [{"model_input": {"number": n}} for n in range(50)]
    lines[3] = {"custom_id": "mine", "model_input": "a text"}
    reply = submit_lines(stack, jsonl(lines))
    assert reply.status == 201 and reply.json["endpoint"] == "predict", reply
    batch = wait_over(stack, reply.json["id"])
    output = content_of(stack, batch["output_file_id"])
    assert [one["custom_id"] for one in output] == ["mine" if n == 3 else str(n + 1) for n in range(50)]
    assert output[5]["response"]["body"]["output"] == {"number": 5}
    # The same file again, packed, and by its id.
    for content in (gzip.compress(jsonl(lines)), None):
        query = "" if content else f"?input_file_id={batch['input_file_id']}&completion_window=2h"
        again = wait_over(stack, submit_lines(stack, content or b"", query=query).json["id"])
        assert again["status"] == "completed" and again["request_counts"]["completed"] == 50, again
        assert [one["custom_id"] for one in content_of(stack, again["output_file_id"])] == [
            one["custom_id"] for one in output]
    whole = wait_over(stack, submit_lines(stack, zstd(jsonl(lines))).json["id"])
    assert whole["status"] == "completed" and whole["request_counts"]["completed"] == 50, whole
    for part in (gzip.compress(jsonl(lines) * 2000)[:3000], zstd(jsonl(lines) * 200)[:100_000], zstd(jsonl(lines))[:-1]):
        cut = wait_over(stack, submit_lines(stack, part).json["id"])
        assert cut["status"] == "failed" and "broken or cut off" in cut["errors"]["data"][0]["message"], cut["errors"]
    bad = wait_over(stack, submit_lines(stack, jsonl([{"model_input": 1}, {"input": 1}])).json["id"])
    assert bad["errors"]["data"] == [{"code": "missing_required_parameter", "line": 2, "param": None,
                                      "message": "model_input is missing"}]
    for reply, status, text in (
            (submit_lines(stack, b"x", model="nobody"), 404, "nobody"), (submit_lines(stack, b""), 400, "is empty"),
            (submit_lines(stack, b"x", query="?completion_window=1d"), 400, "completion_window is '1d'"),
            (submit_lines(stack, b"", query="?input_file_id=x"), 404, "no file 'x'")):
        assert reply.status == status and text in reply.body.decode(), reply


class Lender(http.server.BaseHTTPRequestHandler):
    """A server of inputs: by path, with what goes wrong."""

    protocol_version = "HTTP/1.1"
    files, asked = {}, []

    def do_GET(self):
        type(self).asked.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        to = self.path.removeprefix("/to/")
        content = type(self).files.get(self.path)
        if to != self.path:
            self.send_response(302)
            self.send_header("Location", to)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif content is None:
            self.send_error(404)
        else:
            self.give(content)

    def give(self, content):
        cut, start = self.path.startswith("/cut"), 0
        if self.headers.get("Range") and self.headers.get("If-Range") == '"v1"':
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", '"v1"' if not self.path.endswith("weak") else 'W/"v1"')
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not cut or len([one for one in type(self).asked if one[0] == self.path]) > 1:
            self.wfile.write(content[start:])
            return
        self.wfile.write(content[:len(content) // 2])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def lender():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Lender)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_input_at_a_url(stack, sim, lender):
    """Read through the guard, as it is or packed, through redirects and cuts; then it is a file as any other."""
    lines = jsonl([{"model_input": {"n": n, "padding": "x" * 800}} for n in range(1500)])
    Lender.files = {"/plain.jsonl": lines, "/packed.jsonl.gz": gzip.compress(lines), "/cut.jsonl": lines, "/cut.weak": lines,
                    "/empty": b"", "/large": lines * 2}

    def submit(url):
        reply = submit_lines(stack, b"", query="?input_url=" + urllib.parse.quote(url, safe=""))
        assert reply.status == 201 and reply.json["status"] == "validating", reply
        return reply.json["id"]

    names = ["/plain.jsonl", "/packed.jsonl.gz", "/cut.jsonl", "/cut.weak", f"/to/{lender}/plain.jsonl"]
    good = {name: submit(lender + name) for name in names}
    refused = [
        (lender + "/nobody", "url_not_read", "answers 404"), (lender + "/empty", "empty_file", "is empty"),
        (lender + "/large", "url_not_read", "has more than the 2097152 bytes of url-max"),
        (lender.replace("127.0.0.1", "127.0.0.2") + "/plain.jsonl", "url_not_read", "an address that is not public"),
        (lender + "/to/http://10.0.0.1/x", "url_not_read", "an address that is not public"),
        (lender + "/to/file:///etc/passwd", "url_not_read", "neither http nor https"),
        (lender + "/to/" + "/to/".join([lender] * 7) + "/plain.jsonl", "url_not_read", "more than 5 redirects"),
    ]
    bad = [(submit(url), code, text) for url, code, text in refused]
    for name, id in good.items():
        batch = wait_over(stack, id)
        assert batch["status"] == "completed" and batch["request_counts"]["completed"] == 1500, (name, batch)
    file = stack.http("GET", f"/v1/files/{batch_of(stack, good['/plain.jsonl'])['input_file_id']}").json
    assert file["filename"] == "plain.jsonl" and file["bytes"] == len(lines) and file["purpose"] == "batch", file
    assert stack.http("GET", f"/v1/files/{file['id']}/content").body == lines
    ranges = {name: [one[1:] for one in Lender.asked if one[0] == name] for name in names}
    assert ranges["/cut.jsonl"] == [(None, None), (f"bytes={len(lines) // 2}-", '"v1"')]  # it went on
    assert ranges["/cut.weak"] == [(None, None), (None, None)]  # it began anew
    for id, code, text in bad:
        batch = wait_over(stack, id)
        assert batch["status"] == "failed" and batch["errors"]["data"][0]["code"] == code, batch
        assert text in batch["errors"]["data"][0]["message"], batch
    assert stack.sql("SELECT count(*) FROM headrace.bulk WHERE input_url IS NOT NULL") == [["0"]]
    batch = {"endpoint": "/v1/embeddings", "completion_window": "24h"}
    Lender.files["/openai.jsonl"] = jsonl([line(n) for n in range(3)])
    made = stack.http("POST", "/v1/batches", {**batch, "input_url": lender + "/openai.jsonl"})
    assert made.status == 200 and wait_over(stack, made.json["id"])["request_counts"]["completed"] == 3, made
    done = stack.cli("bulk", "submit", "--model", "sim", "--input-url", lender + "/plain.jsonl", "--wait", "--json")
    assert json.loads(done.stdout)["request_counts"]["completed"] == 1500
    for fields, text in (({"input_url": "ftp://a/b"}, "neither http nor https"), ({"input_url": "x" * 2049}, "2049 bytes"),
                         ({"input_url": "no url"}, "input_url: "), ({}, "one of input_file_id and input_url"),
                         ({"input_url": lender, "input_file_id": file["id"]}, "one of input_file_id and input_url")):
        reply = stack.http("POST", "/v1/batches", {**batch, **fields})
        assert reply.status == 400 and text in reply.json["error"]["message"], (fields, reply)


def test_a_url_is_read_again_after_a_kill(stack, sim):
    """The ingest dies while it reads; the next one begins anew, and nothing remains of the first."""
    content, gates = jsonl([{"model_input": {"n": n, "padding": "x" * 1000}} for n in range(1200)]), []

    def serve(server):
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content[:1_100_000])
            gates.append(peer)
            if len(gates) > 1:
                peer.sendall(content[1_100_000:])
                peer.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        url = urllib.parse.quote(f"http://127.0.0.1:{server.getsockname()[1]}/lines", safe="")
        id = submit_lines(stack, b"", query="?input_url=" + url).json["id"]
        wait_until("the first half to be sent", lambda: gates)
        stack.restart_service("ingest", kill=True)
        batch = wait_over(stack, id)
        assert batch["status"] == "completed" and batch["request_counts"]["completed"] == 1200 and len(gates) == 2, batch
        gates[0].close()
        # One that is canceled while it is read.
        gates.clear()
        id = submit_lines(stack, b"", query="?input_url=" + url).json["id"]
        wait_until("the first half to be sent", lambda: gates)
        assert stack.http("POST", f"/v1/batches/{id}/cancel").status == 200
        assert wait_over(stack, id)["status"] == "cancelled"
        gates[0].close()


def test_bad_lines_are_skipped(stack, sim):
    """As the caller wants it, bad lines fail alone: in their place in the error file, with what is wrong; counts add up."""
    lines = [line(n, text="x") for n in range(2500)]
    lines[3] = '{"custom_id": '
    lines[10] = dict(lines[10], method="GET")
    lines[1500] = line(1499)  # twice
    lines[1501] = line(1501, text="y" * (1 << 20))
    lines[1502] = ""
    lines[2499] = dict(lines[2499], url="/v1/" + "\u20ac" * 60)  # its message is cut inside of a character
    file = upload(stack, jsonl(lines)).json["id"]
    reply = stack.http("POST", "/v1/batches", {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h",
                                               "on_bad_line": "skip"})
    assert reply.status == 200, reply
    batch = wait_over(stack, reply.json["id"])
    assert batch["status"] == "completed" and batch["request_counts"] == {"total": 2499, "completed": 2494, "failed": 5}, batch
    bad = [(4, None, "invalid_json_line"), (11, "line-10", "invalid_method"), (1501, "line-1499", "duplicate_custom_id"),
           (1502, None, "line_too_long"), (2500, "line-2499", "mismatched_endpoint")]
    assert [(one["line"], one["code"]) for one in batch["errors"]["data"]] == [(number, code) for number, _, code in bad]
    output, errors = content_of(stack, batch["output_file_id"]), content_of(stack, batch["error_file_id"])
    assert [one["custom_id"] for one in output] == [f"line-{n}" for n in range(2499) if n not in (3, 10, 1500, 1501, 1502)]
    assert [(one["error"]["line"], one["custom_id"], one["error"]["code"]) for one in errors] == bad
    assert all(one["response"] is None and one["error"]["attempts"] == 0 and one["error"]["message"] for one in errors)
    again = wait_over(stack, stack.http("POST", f"/v1/batches/{batch['id']}/retry").json["id"])  # as bad as before
    assert again["request_counts"] == {"total": 5, "completed": 0, "failed": 5}
    assert [one["error"] for one in content_of(stack, again["error_file_id"])] == [one["error"] for one in errors]
    # Of one model, and where nothing is good; what is wrong with all of a file fails it.
    native = wait_over(stack, submit_lines(stack, b"x\n" + jsonl([{"model_input": 1}]), query="?on_bad_line=skip").json["id"])
    assert native["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    nothing = wait_over(stack, submit_lines(stack, b"x\ny\n", query="?on_bad_line=skip").json["id"])
    assert nothing["status"] == "completed" and nothing["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
    empty = wait_over(stack, submit_lines(stack, b"\n", query="?on_bad_line=skip").json["id"])
    assert empty["status"] == "failed" and empty["errors"]["data"][0]["code"] == "empty_file"
    wrong = submit_lines(stack, b"x", query="?on_bad_line=go")
    assert wrong.status == 400 and "on_bad_line is 'go'; it must be stop or skip" in wrong.body.decode()
    wrong = stack.http("POST", "/v1/batches", {"input_file_id": file, "endpoint": "/v1/embeddings", "completion_window": "24h",
                                               "on_bad_line": 1})
    assert wrong.status == 400 and "on_bad_line must be a string" in wrong.json["error"]["message"]


def test_what_failed_can_be_tried_again(stack, sim):
    lines = [line(n, sim={"fail": "model_error"} if n % 700 == 5 else {}) for n in range(2100)]
    first = wait_over(stack, create(stack, lines))
    assert first["request_counts"] == {"total": 2100, "completed": 2097, "failed": 3}
    reply = stack.http("POST", f"/v1/batches/{first['id']}/retry")
    assert reply.status == 200 and reply.json["request_counts"]["total"] == 3, reply
    second = wait_over(stack, reply.json["id"])
    errors = content_of(stack, second["error_file_id"])
    assert [one["custom_id"] for one in errors] == ["line-5", "line-705", "line-1405"]
    assert [one["error"]["line"] for one in errors] == [6, 706, 1406]
    assert second["request_counts"] == {"total": 3, "completed": 0, "failed": 3}
    good = wait_over(stack, create(stack, [line(1)]))
    reply = stack.http("POST", f"/v1/batches/{good['id']}/retry")
    assert reply.status == 409 and "0 failed lines" in reply.json["error"]["message"], reply


def test_command_line(stack, sim, tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(jsonl([{"model_input": {"n": n, **({"sim": {"fail": "bad_input"}} if n == 2 else {})}}
                            for n in range(5)]))
    done = stack.cli("bulk", "submit", path, "--model", "sim", "--wait", "--json", check=False)
    assert done.returncode == 3, done  # one line failed
    batch = json.loads(done.stdout)
    assert batch["request_counts"] == {"total": 5, "completed": 4, "failed": 1} and "completed, 5 of 5" in done.stderr
    assert len(stack.cli("bulk", "output", batch["id"]).stdout.splitlines()) == 4
    (error,) = stack.cli("bulk", "output", batch["id"], "--errors").stdout.splitlines()
    assert json.loads(error)["custom_id"] == "3"
    assert batch["id"] in stack.cli("bulk", "ls").stdout and "completed" in stack.cli("bulk", "show", batch["id"]).stdout
    again = json.loads(stack.cli("bulk", "retry-failed", batch["id"], "--json").stdout)
    assert stack.cli("bulk", "watch", again["id"], check=False).returncode == 3
    refused = stack.cli("bulk", "cancel", batch["id"], check=False)
    assert refused.returncode == 2 and "is completed cannot be cancelled" in refused.stderr
    id = stack.cli("bulk", "submit", path, "--model", "sim").stdout.strip()
    assert stack.cli("bulk", "watch", id, check=False).returncode == 3
    for words, text in ((("bulk", "submit", path), "say --model"), (("bulk", "submit", tmp_path / "no", "--model", "sim"), "no"),
                        (("bulk", "watch"), "id of one bulk job")):
        wrong = stack.cli(*words, check=False)
        assert wrong.returncode == 1 and text in wrong.stderr, wrong
