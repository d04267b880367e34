# SPDX-License-Identifier: Apache-2.0
"""Goal: OpenAI's own client, with nothing changed but its base_url, uploads files and runs bulk jobs; what it
is refused names what is wrong, by line.

Method: one stack; the client runs as a user's script in its own environment (scripts/python/venv llm).
"""

import json
import os
import pathlib
import socket
import subprocess


DEPS = pathlib.Path(os.environ["HEADRACE_DEPS"])
CLIENT = DEPS / "venv-llm/bin/python"


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
