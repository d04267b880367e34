# SPDX-License-Identifier: Apache-2.0
"""Goal: models, keys and secrets are managed over HTTP as documented, a key opens what it should
and no more, tenants do not see each other, and a hostile archive changes nothing.

Method: the whole platform; archives made here.
"""

import base64
import gzip
import hashlib
import http.client
import io
import json
import os
import signal
import subprocess
import tarfile
import urllib.parse

import pytest
from conftest import run_stack
from stack import command_line, descendants, wait_until


@pytest.fixture(scope="module")
def stack(request):
    yield from run_stack(request, env={"HEADRACE_LOAD_TIMEOUT": "4s"})


@pytest.fixture(scope="module")
def platform(stack):
    stack.push_sim("sim")
    return stack


def make_tar(files, edit=None):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if edit is not None:
                edit(info)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


SIM = {"headrace.json": b'{"engine": "sim", "slots": 2, "settings": {"test_mode": true}}'}


def push(stack, name, body, headers=None, query=""):
    return stack.http("POST", f"/v1/models/{name}/deployments{query}", body,
                      {"Content-Type": "application/x-tar", **(headers or {})})


def wait_active(stack, model, deployment):
    return wait_until(f"{model}/{deployment} to be ACTIVE", lambda: stack.http(
        "GET", f"/v1/models/{model}/deployments/{deployment}").json["status"] == "ACTIVE")


def model_names(stack):
    return {model["name"] for model in stack.http("GET", "/v1/models").json["models"]}


# --- models --------------------------------------------------------------------------------------


def test_push_serves_and_promotes_the_first(platform):
    body = make_tar(SIM)
    digest = hashlib.sha256(body).hexdigest()
    first = push(platform, "fresh", body, {"X-Headrace-Digest": f"sha-256={digest}"})
    assert first.status == 201 and first.json["name"] == "deployment-1"
    assert first.json["status"] == "DEPLOYING" and first.json["promote_to"] == "production"
    assert first.json["archive_digest"] == digest and first.json["engine"] == "sim"
    assert (platform.data_dir / "blobs" / "archives" / digest).exists()
    wait_active(platform, "fresh", "deployment-1")
    model = platform.http("GET", "/v1/models/fresh").json
    assert model["production_deployment_id"] == first.json["id"]
    job = platform.submit("fresh", {"sim": {"echo": 1}})
    assert platform.wait_final(job)["deployment_id"] == first.json["id"]
    assert platform.submit(model["id"], {})  # by its id, too

    second = push(platform, "fresh", body, query="?name=second")
    assert second.json["name"] == "second" and second.json["promote_to"] is None
    wait_active(platform, "fresh", "second")
    assert platform.http("GET", "/v1/models/fresh").json["production_deployment_id"] == first.json["id"]
    taken = push(platform, "fresh", body, query="?name=second")
    assert taken.status == 409 and "second" in taken.json["error"]

    moved = platform.http("POST", "/v1/models/fresh/environments/production/promote",
                          {"deployment_id": "second"})
    assert moved.status == 200 and moved.json["done"] is True
    wait_until("production to be the second one", lambda: platform.wait_final(
        platform.submit("fresh", {}))["deployment_id"] == second.json["id"])
    (environment,) = platform.http("GET", "/v1/models/fresh/environments").json["environments"]
    assert environment["name"] == "production"
    assert [t["deployment_id"] for t in environment["targets"]] == [second.json["id"]]

    held = platform.http("DELETE", "/v1/models/fresh/deployments/second")
    assert held.status == 409
    gone = platform.http("DELETE", f"/v1/models/fresh/deployments/{first.json['id']}")
    assert gone.status == 200 and gone.json["deleted"] is True
    names = [d["name"] for d in platform.http("GET", "/v1/models/fresh/deployments").json["deployments"]]
    assert names == ["second"]


def test_logs_of_a_deployment(platform):
    push(platform, "talks", make_tar(SIM))
    wait_active(platform, "talks", "deployment-1")
    page = platform.http("GET", "/v1/models/talks/deployments/deployment-1/logs").json
    assert any("model_loaded" in line["message"] for line in page["logs"])
    assert all(line["replica"] for line in page["logs"])
    again = platform.http("GET", "/v1/models/talks/deployments/deployment-1/logs?cursor="
                          + urllib.parse.quote(page["next_cursor"]))
    assert again.json["logs"] == [] or len(again.json["logs"]) < len(page["logs"])
    assert platform.http("GET", "/v1/models/talks/deployments/none/logs").status == 404


def test_delete_takes_a_model_out_of_use(platform):
    assert push(platform, "short-lived", make_tar(SIM)).status == 201
    assert "short-lived" in model_names(platform)
    assert platform.http("DELETE", "/v1/models/short-lived").json["deleted"] is True
    assert "short-lived" not in model_names(platform)
    assert platform.http("GET", "/v1/models/short-lived").status == 404
    wait_until("its submits to be refused", lambda: platform.http(
        "POST", "/model/short-lived/production/async_predict", {"model_input": {}}).status == 404)
    assert push(platform, "short-lived", make_tar(SIM)).json["name"] == "deployment-1"


def test_environment_not_ready_is_503(platform):
    never = json.dumps({"engine": "sim", "settings": {"load_fails": True}}).encode()
    made = push(platform, "never", make_tar({"headrace.json": never}))
    reply = platform.http("POST", "/model/never/production/async_predict", {"model_input": {}})
    assert made.status == 201 and reply.status == 503
    assert reply.json["error_code"] == "model_not_ready" and reply.headers["retry-after"]


def test_a_load_that_says_nothing_is_ended(platform):
    slow = json.dumps({"engine": "sim", "settings": {"load_ms": 600000}}).encode()
    made = push(platform, "silent", make_tar({"headrace.json": slow})).json

    def hosts():  # not those of other models, which come and go meanwhile
        workers = [pid for pid in platform.pids("worker") if f"--deployment={made['id']}" in command_line(pid)]
        return [child for pid in workers for child in descendants(pid) if "host-c" in command_line(child)]

    (host,) = wait_until("its host", hosts)
    os.kill(host, signal.SIGSTOP)

    def failed():
        ((status, reason),) = platform.sql(
            "SELECT status, status_reason FROM headrace.deployment WHERE id = :'a1'", made["id"])
        return reason if status == "DEPLOY_FAILED" else None

    assert "said nothing for 4 s while it was loaded (load_timeout)" in wait_until("it to fail", failed, 30)
    assert platform.http("DELETE", "/v1/models/silent").json["deleted"] is True


def test_every_packing_is_taken(platform):
    body = make_tar(SIM)
    zstd = subprocess.run(["zstd", "-q", "-c"], input=body, capture_output=True, check=True).stdout
    for packed in (gzip.compress(body), zstd):
        digest = base64.b64encode(hashlib.sha256(packed).digest()).decode()
        reply = push(platform, "packed", packed, {"Content-Digest": f"sha-256=:{digest}:"})
        assert reply.status == 201, reply


def as_link(info):
    info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0


def as_device(info):
    info.type, info.size = tarfile.CHRTYPE, 0


HOSTILE = [
    (make_tar({"../escape": b"x"}), 400, ".."),
    (make_tar({"/etc/escape": b"x"}), 400, "absolute"),
    (make_tar({"a/../../escape": b"x"}), 400, ".."),
    (make_tar({"link": b"x"}, as_link), 400, "link"),
    (make_tar({"device": b"x"}, as_device), 400, "device"),
    (make_tar({"a": b"x", "./a": b"y"}), 400, "twice"),
    (make_tar({f"f{i}": b"" for i in range(10001)}), 413, "10000"),
    (make_tar(SIM)[:700], 400, "archive"),
    (b"no tar at all", 400, "archive"),
    (b"", 400, "archive"),
    (make_tar({"notes.txt": b"x"}), 422, "config.json"),
    (make_tar({"config.json": b"{}", "vocab.txt": b"a"}), 422, "safetensors"),
    (make_tar({"config.json": b'{"model_type":"bert"}', "vocab.txt": b"a",
               "model.safetensors": b"\xff" * 16}), 400, "safetensors"),
    (make_tar({"headrace.json": b'{"engine": "warp"}'}), 422, "warp"),
    (make_tar({"headrace.json": b'{"engine": "sim", "slots": 0}'}), 400, "slots"),
    (make_tar({"headrace.json": b"{"}), 400, "headrace.json"),
]


@pytest.mark.parametrize("body,status,word", HOSTILE)
def test_hostile_archive_changes_nothing(platform, body, status, word):
    reply = push(platform, "hostile", body)
    assert reply.status == status, reply
    assert word in reply.json["error"]
    assert "hostile" not in model_names(platform)
    assert list((platform.data_dir / "blobs" / "tmp").iterdir()) == []


def test_digest_must_match(platform):
    reply = push(platform, "hostile", make_tar(SIM), {"X-Headrace-Digest": "sha-256=" + "0" * 64})
    assert reply.status == 422 and "SHA-256" in reply.json["error"]
    reply = push(platform, "hostile", make_tar(SIM), {"X-Headrace-Digest": "md5=0"})
    assert reply.status == 400
    assert "hostile" not in model_names(platform)


def test_cut_upload_leaves_nothing(platform):
    url = urllib.parse.urlsplit(platform.url("gateway"))
    client = http.client.HTTPConnection(url.hostname, url.port, timeout=20)
    client.putrequest("POST", "/v1/models/hostile/deployments")
    client.putheader("Authorization", f"Bearer {platform.key}")
    client.putheader("Content-Length", str(50_000_000))
    client.endheaders()
    client.send(b"x" * 5_000_000)
    client.close()
    wait_until("its file to go", lambda: not list((platform.data_dir / "blobs" / "tmp").iterdir()))
    assert "hostile" not in model_names(platform)


def test_bad_names(platform):
    for name in ["-a", "a%20b", "a" * 65]:
        assert push(platform, name, make_tar(SIM)).status == 400
    assert push(platform, "sim", make_tar(SIM), query="?name=a%2Cb").status == 400


# --- lists ------------------------------------------------------------------------------------------


def test_requests_by_page_and_filter(platform):
    jobs = [platform.submit("sim", {"n": n}) for n in range(7)]
    failed = platform.submit("sim", {"sim": {"fail": "bad_input"}})
    for job in jobs + [failed]:
        platform.wait_final(job)
    seen, cursor = [], ""
    while cursor is not None and len(seen) < 8:
        page = platform.http("GET", f"/v1/requests?model=sim&limit=3&{cursor}").json
        seen += [row["request_id"] for row in page["requests"]]
        cursor = page["next_cursor"] and f"cursor={page['next_cursor']}"
    assert seen[:8] == sorted(jobs + [failed], reverse=True)
    rows = platform.http("GET", "/v1/requests?status=FAILED&model=sim").json["requests"]
    assert [row["request_id"] for row in rows] == [failed]
    assert rows[0]["model_name"] == "sim" and rows[0]["errors"][0]["code"] == "MODEL_INVALID_INPUT"
    assert platform.http("GET", "/v1/requests?since=2000-01-01&limit=1").json["requests"]
    assert platform.http("GET", "/v1/requests?since=2100-01-01").json["requests"] == []
    assert platform.http("GET", "/v1/requests?environment=none").json["requests"] == []
    for query, word in [("status=DONE", "DONE"), ("limit=0", "limit"), ("limit=x", "limit"),
                        ("cursor=x", "cursor"), ("since=monday", "monday")]:
        reply = platform.http("GET", f"/v1/requests?{query}")
        assert reply.status == 400 and word in reply.json["error"]


def test_queue_status_counts(platform):
    jobs = [platform.submit("sim", {"sim": {"sleep_ms": 60000}}) for _ in range(6)]

    def depth():
        answer = platform.http("GET", "/model/sim/production/async_queue_status").json
        return answer["num_queued_requests"], answer["num_in_progress_requests"]

    wait_until("4 to run and 2 to wait", lambda: depth() == (2, 4))
    for job in jobs:
        assert platform.cancel(job).json["canceled"] is True
    wait_until("nothing to be left", lambda: depth() == (0, 0))


# --- keys -------------------------------------------------------------------------------------------


def test_keys_and_what_they_open(platform):
    made = platform.http("POST", "/v1/api_keys", {"name": "for predictions", "type": "WORKSPACE_INVOKE"})
    assert made.status == 201
    key, prefix = made.json["api_key"], made.json["prefix"]
    assert key.startswith(prefix + ".")
    listed = platform.http("GET", "/v1/api_keys")
    assert key not in listed.body.decode() and prefix in [k["prefix"] for k in listed.json["keys"]]
    assert platform.http("POST", "/model/sim/production/async_predict", {"model_input": {}}, key=key).status == 201
    assert platform.http("GET", "/v1/models", key=key).status == 200
    for method, path in [("GET", "/v1/api_keys"), ("POST", "/v1/api_keys"), ("DELETE", "/v1/models/sim"),
                         ("GET", "/metrics"), ("GET", "/v1/webhook_secrets")]:
        assert platform.http(method, path, key=key).status == 403, path
    metrics = platform.http("POST", "/v1/api_keys", {"type": "WORKSPACE_EXPORT_METRICS"}).json["api_key"]
    assert platform.http("GET", "/metrics", key=metrics).status == 200
    assert platform.http("GET", "/v1/models", key=metrics).status == 403
    assert platform.http("DELETE", f"/v1/api_keys/{prefix}").status == 200
    assert platform.http("GET", "/v1/models", key=key).status == 401
    assert platform.http("DELETE", f"/v1/api_keys/{prefix}").status == 404
    assert platform.http("DELETE", "/v1/api_keys/nobodys0").status == 404
    audit = platform.sql("SELECT action, target FROM headrace_v1.audit WHERE target IN (:'a1', 'nobodys0') "
                         "ORDER BY id", prefix)
    assert audit == [["API_KEY_CREATED", prefix], ["API_KEY_DELETED", prefix]]  # what changed nothing is not in it
    for body in [{"type": "ROOT"}, {"type": 7}, {"name": 7}, {"name": "x" * 65}]:
        assert platform.http("POST", "/v1/api_keys", body).status == 400
    (digests,) = platform.sql("SELECT count(*) FROM headrace.api_key WHERE position(:'a1' IN "
                              "prefix || name || encode(digest, 'hex')) > 0", key)
    assert digests == ["0"]


def test_tenants_do_not_see_each_other(platform):
    key = "zzzzzzzz." + "Z" * 43
    platform.sql("INSERT INTO headrace.tenant (id, name) VALUES ('other', 'other'); "
                 "INSERT INTO headrace.api_key (prefix, digest, tenant) VALUES "
                 "('zzzzzzzz', decode(:'a1', 'hex'), 'other')", hashlib.sha256(key.encode()).hexdigest())
    job = platform.submit("sim", {})
    platform.wait_final(job)
    assert platform.http("GET", "/v1/models", key=key).json["models"] == []
    assert platform.http("GET", "/v1/requests", key=key).json["requests"] == []
    for method, path in [("GET", f"/async_request/{job}"), ("GET", f"/async_request/{job}/result"),
                         ("DELETE", f"/async_request/{job}"), ("GET", "/v1/models/sim")]:
        assert platform.http(method, path, key=key).status == 404, path
    reply = platform.http("POST", "/model/sim/production/async_predict", {"model_input": {}}, key=key)
    assert reply.status == 404


# --- webhook secrets --------------------------------------------------------------------------------


def test_webhook_secrets(platform):
    (first,) = platform.http("GET", "/v1/webhook_secrets").json["webhook_secrets"]
    assert first["state"] == "active"
    assert platform.http("POST", "/v1/webhook_secrets").status == 409
    second = platform.http("POST", "/v1/webhook_secrets/rotate")
    assert second.status == 201 and second.json["secret"].startswith("whsec_")
    listed = platform.http("GET", "/v1/webhook_secrets")
    assert second.json["secret"] not in listed.body.decode()
    states = {s["id"]: s["state"] for s in listed.json["webhook_secrets"]}
    assert states == {second.json["id"]: "active", first["id"]: "retiring"}
    third = platform.http("POST", "/v1/webhook_secrets/rotate").json["id"]
    ids = [s["id"] for s in platform.http("GET", "/v1/webhook_secrets").json["webhook_secrets"]]
    assert ids == [third, second.json["id"]]
    for one in ids:
        assert platform.http("DELETE", f"/v1/webhook_secrets/{one}").status == 200
    assert platform.http("POST", "/v1/webhook_secrets").status == 201
    stored = platform.sql("SELECT encode(sealed, 'escape') FROM headrace.webhook_secret")
    assert not any("whsec_" in row[0] for row in stored)


# --- inside -----------------------------------------------------------------------------------------


def test_metrics_and_health(platform):
    text = platform.http("GET", "/metrics").body.decode()
    assert 'headrace_gateway_requests_total{route="SUBMIT",status="201"}' in text
    assert "headrace_gateway_ready 1" in text
    assert platform.http("GET", "/metrics", key=None).status == 401
    assert platform.http("GET", "/healthz", key=None).status == 200
    assert platform.http("GET", "/readyz", key=None).json == {"ready": True}


def test_log_has_a_line_a_request_and_no_secret(platform):
    job = platform.submit("sim", {"secret": "do-not-log-me"})
    lines = (platform.data_dir / "logs" / "gateway.log").read_text()
    (line,) = [json.loads(x) for x in lines.splitlines() if job in x]
    assert line["route"] == "SUBMIT" and line["status"] == 201 and line["tenant"] == "default"
    assert platform.key not in lines and "do-not-log-me" not in lines
