# SPDX-License-Identifier: Apache-2.0
"""Goal: what is accepted is promised, what is refused says why, and a key stands for one job.

Method: the whole platform with the sim engine; bad requests come over raw sockets where a library
would not send them; servers are stopped under the gateway.
"""

import concurrent.futures
import hashlib
import http.client
import json
import socket
import time
import urllib.parse

import msgpack
import pytest
from stack import wait_until

QUICK = {
    "HEADRACE_ACCEPT_WAIT": "1s",
    "HEADRACE_HEADER_TIMEOUT": "1s",
    "HEADRACE_BODY_TIMEOUT": "1s",
}
SUBMIT = "/model/sim/production/async_predict"
REPEAT, INPUT_BLOB = 20, 9  # fields of a Submit, schema/messages.def


@pytest.fixture(scope="module")
def stack(request):
    from conftest import run_stack

    for stack in run_stack(request, env=QUICK):
        stack.push_sim("sim")
        yield stack


def address(stack):
    url = urllib.parse.urlsplit(stack.url("gateway"))
    return url.hostname, url.port


def connect(stack):
    return socket.create_connection(address(stack), timeout=20)


def read_all(client):
    return b"".join(iter(lambda: client.recv(65536), b""))


def head(stack, *lines):
    return "\r\n".join([f"POST {SUBMIT} HTTP/1.1", "Host: x", f"Authorization: Bearer {stack.key}",
                        *lines, "", ""]).encode()


def submits_in_intake(stack):
    found = {}
    for record in stack.consume("intake"):
        _, kind, fields = msgpack.unpackb(record.value, strict_map_key=False)
        if kind == 1:
            found.setdefault(fields[1].hex(), []).append(fields)
    return found


# --- accepted ----------------------------------------------------------------------------------


def test_accepted_and_answered(stack):
    reply = stack.http("POST", SUBMIT, {"model_input": {"sim": {"echo": {"a": [1, "ä"]}}}})
    assert reply.status == 201
    job = reply.json["request_id"]
    assert len(job) == 36 and "warnings" not in reply.json
    assert reply.headers["x-baseten-request-id"] == job == reply.headers["x-headrace-request-id"]
    base = stack.url("gateway")
    assert reply.json["status_url"] == f"{base}/async_request/{job}" == reply.json["cancel_url"]
    assert reply.json["result_url"] == f"{base}/async_request/{job}/result"
    status = stack.wait_final(job)
    assert status.keys() >= {"request_id", "model_id", "deployment_id", "status", "webhook_status",
                             "created_at", "status_at", "errors"}
    assert status["status"] == "SUCCEEDED" and status["errors"] == []
    assert status["webhook_status"] == "NO_WEBHOOK_PROVIDED" and status["model_name"] == "sim"
    result = stack.result(job)
    assert result.status == 200 and result.json["output"] == {"a": [1, "ä"]}
    plain = stack.http("GET", f"/async_request/{job.replace('-', '')}")
    assert plain.json["request_id"] == job
    assert stack.http("GET", f"/model/sim/async_request/{job}/result").json == result.json


@pytest.mark.parametrize("path", [
    "/model/sim/environments/production/async_predict",
    "/model/sim/deployment/sim/async_predict",
    "/model/sim/deployment/deployment-1/async_predict",
])
def test_every_path_form(stack, path):
    reply = stack.http("POST", path, {"model_input": {}})
    assert reply.status == 201
    assert stack.wait_final(reply.json["request_id"])["status"] == "SUCCEEDED"


def test_failure_is_told_in_its_words(stack):
    job = stack.submit("sim", {"sim": {"fail": "bad_input"}})
    status = stack.wait_final(job)
    assert status["status"] == "FAILED" and status["errors"][0]["code"] == "MODEL_INVALID_INPUT"
    result = stack.result(job)
    assert result.status == 409 and result.json["status"] == "FAILED"
    assert result.json["errors"] == status["errors"]


def test_not_final_is_202(stack):
    job = stack.submit("sim", {"sim": {"sleep_ms": 1500}})
    result = stack.result(job)
    assert result.status == 202 and result.json["status"] in ("QUEUED", "IN_PROGRESS")
    assert result.headers["retry-after"]
    assert stack.wait_final(job)["status"] == "SUCCEEDED"


def test_status_is_never_404_after_201(stack):
    for _ in range(20):
        assert stack.job(stack.submit("sim", {}))["status"]


def test_large_input_goes_by_claim_check(stack):
    text = "x" * 200_000
    job = stack.submit("sim", {"text": text})
    assert stack.wait_final(job)["status"] == "SUCCEEDED"
    assert stack.result(job).json["output"]["text"] == text
    (fields,) = submits_in_intake(stack)[job.replace("-", "")]
    assert job in fields[INPUT_BLOB] and (stack.data_dir / "blobs" / fields[INPUT_BLOB]).exists()


def test_numbers_of_any_size_come_back_as_they_were(stack):
    """The input is the model's: nothing on the way makes 64 bits of its numbers."""
    numbers = b'{"n":123456789012345678901234567890,"e":[1e400,-0.10]}'
    reply = stack.http("POST", SUBMIT, b'{"model_input":' + numbers + b"}")
    assert reply.status == 201, reply
    assert stack.wait_final(reply.json["request_id"])["status"] == "SUCCEEDED"
    assert numbers in stack.result(reply.json["request_id"]).body
    refused = stack.http("POST", SUBMIT, b'{"model_input":{},"priority":99999999999999999999}')
    assert refused.status == 400 and "priority is 99999999999999999999" in refused.json["error"]


def test_trace_is_carried(stack):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    job = stack.submit("sim", {}, headers={"traceparent": trace})
    (fields,) = submits_in_intake(stack)[job.replace("-", "")]
    assert fields[22].startswith("00-0af7651916cd43dd8448eb211c80319c-")


# --- refused ------------------------------------------------------------------------------------

BAD_BODIES = [
    (b"", ["body"]),
    (b"{", ["body"]),
    (b"[1]", ["body"]),
    (b'{"model_input":{}} x', ["body"]),
    (b'{"model_input":{"a":"\xff"}}', ["body"]),
    (b"{}", ["model_input"]),
    (b'{"model_input":7}', ["model_input", "number", "object"]),
    (b'{"model_input":{},"priority":3}', ["priority", "3", "0 to 2"]),
    (b'{"model_input":{},"priority":"1"}', ["priority", "string"]),
    (b'{"model_input":{},"max_time_in_queue_seconds":9}', ["max_time_in_queue_seconds", "9", "10"]),
    (b'{"model_input":{},"inference_retry_config":{"max_attempts":11}}', ["max_attempts", "11", "10"]),
    (b'{"model_input":{},"webhook_endpoint":"http://example.com"}', ["webhook_endpoint", "https"]),
    (b'{"model_input":{},"webhook_endpoint":"file:///etc/passwd"}', ["webhook_endpoint", "file"]),
]


@pytest.mark.parametrize("body,words", BAD_BODIES)
def test_bad_body(stack, body, words):
    reply = stack.http("POST", SUBMIT, body)
    assert reply.status == 400 and reply.json["error_code"] == "client_error"
    for word in words:
        assert word in reply.json["error"]


def test_unknown_fields_are_named(stack):
    reply = stack.http("POST", SUBMIT, {"model_input": {}, "colour": 1,
                                        "inference_retry_config": {"jitter": True}})
    assert reply.status == 201
    assert reply.json["warnings"] == ["unknown field 'colour' is ignored",
                                      "unknown field 'inference_retry_config.jitter' is ignored"]


def test_too_big_says_how_big(stack):
    body = json.dumps({"model_input": {"a": "x" * 262144}}).encode()
    reply = stack.http("POST", SUBMIT, body)
    assert reply.status == 413 and reply.json["error_code"] == "payload_too_large"
    assert str(len(body)) in reply.json["error"] and "262144" in reply.json["error"]


def test_too_big_in_chunks(stack):
    client = http.client.HTTPConnection(*address(stack), timeout=20)
    client.putrequest("POST", SUBMIT)
    client.putheader("Authorization", f"Bearer {stack.key}")
    client.putheader("Transfer-Encoding", "chunked")
    client.endheaders()
    try:
        for _ in range(40):
            client.send(b"2000\r\n" + b"x" * 8192 + b"\r\n")
    except OSError:
        pass  # refused in mid-body
    assert client.getresponse().status == 413
    client.close()


@pytest.mark.parametrize("path,word", [
    ("/model/none/production/async_predict", "none"),
    ("/model/sim/environments/none/async_predict", "none"),
    ("/model/sim/deployment/none/async_predict", "none"),
    ("/model/sim/development/async_predict", "development"),
])
def test_unknown_target(stack, path, word):
    reply = stack.http("POST", path, {"model_input": {}})
    assert reply.status == 404 and reply.json["error_code"] == "model_does_not_exist"
    assert word in reply.json["error"]


def test_bad_keys(stack):
    prefix = stack.key.split(".")[0]
    for header in [None, "", "Bearer ", "Bearer x", f"Basic {stack.key}", stack.key,
                   f"Bearer {prefix}." + "A" * 43, "Api-Key aaaaaaaa." + "A" * 43]:
        headers = {} if header is None else {"Authorization": header}
        reply = stack.http("POST", SUBMIT, {"model_input": {}}, headers, key=None)
        assert reply.status == 401 and reply.json["error_code"] == "unauthorized", header
        assert reply.headers["www-authenticate"] == "Bearer"
    for scheme in ["Api-Key", "api-key", "bearer"]:
        reply = stack.http("POST", SUBMIT, {"model_input": {}},
                           {"Authorization": f"{scheme} {stack.key}"}, key=None)
        assert reply.status == 201


def test_bad_ids(stack):
    for bad in ["x", "0" * 31, "0" * 33, "%00", "..", "0198-"]:
        assert stack.http("GET", f"/async_request/{bad}").status in (400, 404)
    reply = stack.http("GET", "/async_request/no-uuid")
    assert reply.status == 400 and "no-uuid" in reply.json["error"]
    old = "01800000-0000-7000-8000-000000000000"
    for method, path in [("GET", ""), ("GET", "/result"), ("DELETE", "")]:
        assert stack.http(method, f"/async_request/{old}{path}").status == 404


def test_wrong_method_and_path(stack):
    reply = stack.http("PUT", SUBMIT, {})
    assert reply.status == 405 and reply.headers["allow"] == "POST"
    assert stack.http("GET", "/nothing").status == 404
    assert stack.http("GET", "/healthz", key=None).json == {"alive": True}


# --- rude clients -----------------------------------------------------------------------------


def test_slow_headers_are_cut_off(stack):
    with connect(stack) as client:
        client.sendall(b"POST " + SUBMIT.encode())
        assert b" 408 " in read_all(client).split(b"\r\n")[0] + b" "


def test_slow_body_is_cut_off(stack):
    with connect(stack) as client:
        client.sendall(head(stack, "Content-Length: 100") + b'{"model_')
        assert b" 408 " in read_all(client).split(b"\r\n")[0] + b" "


def test_cut_body_promises_nothing(stack):
    before = len(submits_in_intake(stack))
    for _ in range(20):
        with connect(stack) as client:
            client.sendall(head(stack, "Content-Length: 100") + b'{"model_input":{}}')
    assert stack.job(stack.submit("sim", {}))["status"]
    assert len(submits_in_intake(stack)) == before + 1

    def waiting():
        text = stack.http("GET", "/metrics").body.decode()
        return [line for line in text.splitlines() if line.startswith("headrace_gateway_submits_waiting ")]

    wait_until("no submit to be left over", lambda: waiting() == ["headrace_gateway_submits_waiting 0"])


@pytest.mark.parametrize("lines", [
    ["Content-Length: 18", "Content-Length: 19"],
    ["Content-Length: 18", "Transfer-Encoding: chunked"],
])
def test_two_readings_are_refused(stack, lines):
    with connect(stack) as client:
        client.sendall(head(stack, *lines) + b'{"model_input":{}}')
        assert b" 400 " in read_all(client).split(b"\r\n")[0]


# --- Idempotency-Key ----------------------------------------------------------------------------


def keyed(stack, key, body, path=SUBMIT):
    return stack.http("POST", path, body, {"Idempotency-Key": key})


def test_same_key_same_job(stack):
    body = {"model_input": {"n": 1}}
    first = keyed(stack, "same", body)
    assert first.status == 201 and "x-headrace-idempotent-replay" not in first.headers
    again = keyed(stack, "same", body)
    assert again.status == 201 and again.json["request_id"] == first.json["request_id"]
    assert again.headers["x-headrace-idempotent-replay"] == "true"
    by_id = keyed(stack, "same", body, "/model/sim/environments/production/async_predict")
    assert by_id.json["request_id"] == first.json["request_id"]
    other = keyed(stack, "same", {"model_input": {"n": 2}})
    assert other.status == 422 and "same" in other.json["error"]
    assert keyed(stack, "same", body, "/model/sim/deployment/sim/async_predict").status == 422
    assert keyed(stack, "x" * 256, body).status == 400


def test_many_at_once_are_one_job(stack):
    body = {"model_input": {"n": 3}}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda _: keyed(stack, "rush", body), range(32)))
    assert {reply.status for reply in replies} == {201}
    (job,) = {reply.json["request_id"] for reply in replies}
    assert stack.wait_final(job)["status"] == "SUCCEEDED"
    (count,) = stack.sql("SELECT count(*) FROM headrace.job_result WHERE job_id = :'a1'", job)
    assert count == ["1"]


def test_winner_that_died_is_taken_over(stack):
    """A reservation without a job: whoever comes next produces it, marked as a repeat."""
    body = json.dumps({"model_input": {"n": 4}}).encode()
    fingerprint = hashlib.sha256(b"sim\0production\0\0" + body).hexdigest()
    job = stack.submit("sim", {})  # an id of today; only its time and shard matter
    orphan = job[:-12] + "0123456789ab"
    stack.sql("INSERT INTO headrace.idempotency (tenant, key, job_id, fingerprint, deployment_id, "
              "expires_at) VALUES ('default', 'orphan', :'a1', decode(:'a2', 'hex'), 'sim', "
              "now() + interval '1 hour')", orphan, fingerprint)
    reply = keyed(stack, "orphan", body)
    assert reply.status == 201 and reply.json["request_id"] == orphan
    assert stack.wait_final(orphan)["status"] == "SUCCEEDED"
    (fields,) = submits_in_intake(stack)[orphan.replace("-", "")]
    assert fields[REPEAT] is True


# --- cancel --------------------------------------------------------------------------------------


def test_cancel_running_and_waiting(stack):
    running = [stack.submit("sim", {"sim": {"sleep_ms": 60000}}) for _ in range(4)]
    for job in running:
        wait_until("it to run", lambda job=job: stack.job(job)["status"] == "IN_PROGRESS")
    waiting = stack.submit("sim", {})
    reply = stack.cancel(waiting)
    assert reply.status == 200 and reply.json["canceled"] is True
    assert reply.json["request_id"] == waiting and reply.json["message"]
    for job in running:
        assert stack.cancel(job).json["canceled"] is True
        assert stack.job(job)["status"] == "CANCELED"
    assert stack.result(waiting).status == 409
    assert stack.cancel(waiting).json["canceled"] is True  # it is, whoever did it
    done = stack.submit("sim", {})
    stack.wait_final(done)
    reply = stack.cancel(done)
    assert reply.status == 200 and reply.json["canceled"] is False


# --- servers that are away ----------------------------------------------------------------------


def test_redis_flushed(stack):
    job = stack.submit("sim", {"sim": {"echo": 5}})
    stack.wait_final(job)
    stack.redis("FLUSHALL")
    assert stack.job(job)["status"] == "SUCCEEDED"
    assert stack.result(job).json["output"] == 5


def test_postgres_stopped(stack):
    done = stack.submit("sim", {})
    stack.wait_final(done)
    stack.stop_service("postgres")
    try:
        key = stack.key
        reply = stack.http("POST", SUBMIT, {"model_input": {}}, key=key)
        assert reply.status == 201
        job = reply.json["request_id"]
        refused = stack.http("POST", SUBMIT, {"model_input": {}}, {"Idempotency-Key": "away"})
        assert refused.status == 503 and "Postgres" in refused.json["error"]
        assert refused.headers["retry-after"]
        assert stack.http("GET", f"/async_request/{done}").json["status"] == "SUCCEEDED"  # Redis
        assert stack.http("GET", f"/async_request/{job}").status in (200, 503)
        assert stack.http("GET", "/v1/requests").status == 503
        assert stack.http("GET", "/readyz", key=None).status == 200
    finally:
        stack.start_service("postgres")
    wait_until("the gateway to see Postgres again", lambda: stack.http(
        "GET", f"/async_request/{job}").status == 200)
    assert stack.wait_final(job)["status"] == "SUCCEEDED"


def test_kafka_stopped(stack):
    stack.stop_service("kafka")
    begun = time.monotonic()
    reply = stack.http("POST", SUBMIT, {"model_input": {"sim": {"sleep_ms": 60000}}})
    try:
        assert reply.status == 503 and reply.headers["retry-after"]
        assert "not promised" in reply.json["error"]
        assert time.monotonic() - begun < 10
    finally:
        stack.start_service("kafka")
    job = reply.headers["x-headrace-request-id"]
    assert stack.wait_final(job)["status"] == "CANCELED"  # reported after the 503
    wait_until("submits to be accepted again", lambda: stack.http(
        "POST", SUBMIT, {"model_input": {}}).status == 201, seconds=60)
