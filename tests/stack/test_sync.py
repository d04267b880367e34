# SPDX-License-Identifier: Apache-2.0
"""Goal: a caller gets its model's own answer, at once or piece by piece, or is told why not; nobody who
left costs a slot; streams of async jobs survive gateways, clients, workers and a flushed Redis, and say
what they have lost. Method: one stack, the simulated engine, raw connections."""

import http.client
import json
import os
import signal
import socket
import threading
import time
import urllib.request

import pytest
from conftest import run_stack
from fleet import Fleet
from stack import wait_until

MODEL = "sim"
BYTES = "application/octet-stream"


@pytest.fixture(scope="module")
def stack(request):
    asan = os.environ.get("ASAN_OPTIONS", "")  # memory is looked at: what was freed is to be gone
    for stack in run_stack(request, env={"HEADRACE_SYNC_TIMEOUT": "20s", "HEADRACE_GATEWAY_LEASE": "4s",
                                         "ASAN_OPTIONS": f"{asan}:quarantine_size_mb=1".lstrip(":")}):
        stack.push_sim(MODEL, slots=64)
        yield stack


def call(stack, body=b"", path=f"/model/{MODEL}/production/predict", method="POST", port=None, **headers):
    """One connection, one request: the response, not read yet."""
    host = stack.url("gateway").removeprefix("http://") if port is None else f"127.0.0.1:{port}"
    connection = http.client.HTTPConnection(host, timeout=30)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers.setdefault("Authorization", f"Bearer {stack.key}")
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    reply.connection_of = connection  # closed with it
    return reply


def predict(stack, model_input, **headers):
    reply = call(stack, model_input, **headers)
    return reply, reply.read()


def pieces_of(count, size=16):
    return "".join(f"{n}:".ljust(size - 1, "x") + "\n" for n in range(count))


def state_of(stack, job):
    rows = stack.sql("SELECT state, sync, rank FROM headrace.job WHERE id = :'a1'", job)
    return rows[0][0] if rows else None


def job_of(reply):
    return reply.getheader("X-Baseten-Request-Id")


# --- bodies and types ------------------------------------------------------------------------------


def test_json_is_the_input_and_the_output(stack):
    reply, body = predict(stack, {"n": 1})
    assert reply.status == 200 and reply.getheader("Content-Type") == "application/json"
    assert json.loads(body)["output"] == {"n": 1}
    assert reply.getheader("X-BASETEN-MODEL-PREDICTION-ATTEMPTS") == "1"
    ((state, sync, rank),) = stack.sql("SELECT state, sync, rank FROM headrace.job WHERE id = :'a1'", job_of(reply))
    assert (state, sync, rank) == ("3", "t", "0")  # in the same ledger, above priority 0
    assert json.loads(predict(stack, [1, "a"])[1])["output"] == [1, "a"]
    forms = {"Content_Type": "application/x-www-form-urlencoded"}  # as curl -d says when told nothing
    assert json.loads(predict(stack, {"n": 2}, **forms)[1])["output"] == {"n": 2}


@pytest.mark.parametrize("path", ["environments/production", "deployment/deployment-1"])
def test_other_targets(stack, path):
    assert call(stack, {}, path=f"/model/{MODEL}/{path}/predict").status == 200


@pytest.mark.parametrize("media_type", [BYTES, "multipart/form-data; boundary=x", "image/png"])
@pytest.mark.parametrize("size", [0, 300, 100_000, 3_000_000])
def test_bytes_stay_bytes(stack, media_type, size):
    """Inline, by claim check, and through files; the result has them too."""
    sent = os.urandom(size)
    reply, body = predict(stack, sent, Content_Type=media_type)
    assert reply.status == 200, body[:500]
    if size > 0:
        assert reply.getheader("Content-Type") == media_type and body == sent
        again = stack.result(job_of(reply))
        assert again.headers["content-type"] == media_type and again.body == sent


def test_what_is_no_json_or_no_type_is_refused(stack):
    for body in (b"", b"{", b"{} {}", b"\xff"):
        reply, text = predict(stack, body)
        assert reply.status == 400 and json.loads(text)["error_code"] == "client_error", text
    assert predict(stack, {}, Content_Type="nothing")[0].status == 400
    assert predict(stack, {}, Request_Timeout_Ms="soon")[0].status == 400


def test_large_answers_come_from_the_blob_store(stack):
    reply, body = predict(stack, {"sim": {"output_bytes": 2_000_000}})
    assert reply.status == 200 and len(body) >= 1_999_000 and json.loads(body)


# --- routes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_passthrough_takes_method_path_and_query(stack, method):
    reply = call(stack, b"{}" if method != "GET" else b"", method=method,
                 path=f"/model/{MODEL}/production/sync/v1/a%20b/?x=1&y")
    body = json.loads(reply.read())
    assert reply.status == 200 and body["sim"]["route"] == f"{method} /v1/a%20b/?x=1&y"


def test_head_has_no_body(stack):
    reply = call(stack, method="HEAD", path=f"/model/{MODEL}/production/sync/health")
    assert reply.status == 200 and reply.read() == b""


def test_wake_and_chains(stack):
    stack.push_sim_rows("sleepy", replicas=1)
    stack.sql("UPDATE headrace.deployment SET replicas_wanted = 0, replicas_min = 0 WHERE id = 'sleepy'")
    assert stack.http("POST", "/model/sleepy/production/wake").status == 202
    wait_until("a replica to be wanted", lambda: stack.sql(
        "SELECT replicas_wanted FROM headrace.deployment WHERE id = 'sleepy'")[0][0] == "1")
    reply = stack.http("POST", "/chain/c/production/run_remote", {})
    assert reply.status == 404 and reply.json["error_code"] == "model_does_not_exist"
    assert stack.http("POST", "/model/nobody/production/predict", {}).status == 404


# --- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order, status, code, source", [
    ({"fail": "model_error"}, 500, "application_error", "600"),
    ({"fail": "bad_input"}, 400, "client_error", "700"),
    ({"fail": "model_unavailable", "fail_times": 1}, 200, None, None),
])
def test_a_class_of_error_has_its_status(stack, order, status, code, source):
    reply, body = predict(stack, {"sim": order})
    assert reply.status == status, body
    assert reply.getheader("X-BASETEN-ERROR-CODE") == source
    assert reply.getheader("X-BASETEN-ERROR-SOURCE") == ("04" if source else None)
    if code:
        assert json.loads(body)["error_code"] == code
    attempts = "2" if status == 200 else "1"  # only what could not take it is asked again
    assert reply.getheader("X-BASETEN-MODEL-PREDICTION-ATTEMPTS") == attempts


def test_a_models_own_answer_is_passed_on(stack):
    orders = {"fail": "model_error", "http_status": 418, "body": "short and stout", "media_type": "text/x-tea"}
    reply, body = predict(stack, {"sim": orders})
    assert (reply.status, body, reply.getheader("Content-Type")) == (418, b"short and stout", "text/x-tea")
    reply, body = predict(stack, {"sim": {"http_status": 201, "body": "made"}})
    assert (reply.status, body) == (201, b"made")
    with urllib.request.urlopen(stack.url("broker") + "/metrics", timeout=10) as page:
        counts = [line for line in page.read().decode().splitlines() if "inference_requests_total{" in line]
    for status in ("418", "201"):
        assert any(f'status_code="{status}"' in line and 'is_async="false"' in line for line in counts), counts
    assert metric(stack, "headrace_inference_requests_total", 'status_code="418"') == 0  # counted once


def test_the_limit_of_a_call_is_504(stack):
    begun = time.monotonic()
    reply, body = predict(stack, {"sim": {"hang": "soft"}}, Request_Timeout_Ms="700")
    assert reply.status == 504 and json.loads(body)["error_code"] == "timeout"
    assert 0.6 < time.monotonic() - begun < 5
    wait_until("the job to be over", lambda: state_of(stack, job_of(reply)) in ("5", "6"))


def test_waiting_for_a_replica_counts(stack):
    stack.push_sim("parked", slots=1)
    stack.sql("UPDATE headrace.deployment SET replicas_wanted = 0, replicas_min = 0 WHERE id = 'parked'")
    wait_until("its worker to end", lambda: stack.sql(
        "SELECT count(*) FROM headrace.replica WHERE deployment_id = 'parked' AND state = 'READY'")[0][0] == "0")
    reply = call(stack, {}, path="/model/parked/production/predict", Request_Timeout_Ms="600")
    assert reply.status == 504 and json.loads(reply.read())["error_code"] == "timeout"
    wait_until("the job to be over", lambda: state_of(stack, job_of(reply)) in ("5", "6"))


def test_rates_and_switches_hold_for_sync_calls(stack):
    assert stack.http("POST", "/v1/switches", {"tag": "off"}).status == 201
    # The owner may know it first, and holds what the gateway still took.
    wait_until("the switch to be known",
               lambda: predict(stack, {}, X_Headrace_Tags="off", Request_Timeout_Ms="500")[0].status == 503)
    assert predict(stack, {})[0].status == 200
    made = stack.http("POST", "/v1/api_keys", {"name": "slow", "type": "WORKSPACE_INVOKE",
                                               "limits": {"rate_per_second": 0.01, "rate_burst": 1}})
    assert made.status in (200, 201), made
    slow = {"Authorization": f"Bearer {made.json['api_key']}"}

    def refused():
        reply, body = predict(stack, {}, **slow)
        return reply.status == 429 and json.loads(body)["limit"] == "rate_per_second"

    wait_until("the rate to be known", refused)


def running(stack):
    return int(stack.sql("SELECT count(*) FROM headrace.job WHERE deployment = :'a1' AND state = 2 AND sync",
                         MODEL)[0][0])


def metric(stack, name, *labels):
    lines = stack.http("GET", "/metrics").body.decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines
               if line.startswith(name) and all(label in line for label in labels))


def test_a_client_that_leaves_cancels_its_job(stack):
    """Down to the engine: the request that would never end has left its slot."""
    before = metric(stack, "headrace_gateway_requests_total", 'route="PREDICT"', 'status="499"')
    host, port = stack.url("gateway").removeprefix("http://").split(":")
    body = json.dumps({"sim": {"hang": "soft"}}).encode()
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"POST /model/{MODEL}/production/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
                       f"{stack.key}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until("the job to run", lambda: running(stack) == 1)
        ((job,),) = stack.sql("SELECT id FROM headrace.job WHERE deployment = :'a1' AND state = 2", MODEL)
    wait_until("the job to be canceled", lambda: state_of(stack, job) == "6")
    wait_until("the engine to let go of it", lambda: worker_metric(stack, "headrace_worker_slots_busy") == 0)
    assert metric(stack, "headrace_gateway_requests_total", 'route="PREDICT"', 'status="499"') == before + 1


def worker_metric(stack, name):
    ((path,),) = stack.sql("SELECT log_path FROM headrace.replica WHERE deployment_id = :'a1' AND state = 'READY'",
                           MODEL)
    with open(path) as log:
        port = [line for line in map(json.loads, log) if line["event"] == "worker_started"][-1]["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        for line in reply.read().decode().splitlines():
            if line.startswith(name):
                return float(line.rsplit(" ", 1)[1])
    raise AssertionError(name)


def test_a_key_answers_the_same_job(stack):
    first, body = predict(stack, {"n": 1}, Idempotency_Key="k-1")
    again, same = predict(stack, {"n": 1}, Idempotency_Key="k-1")
    assert job_of(first) == job_of(again) and body == same
    assert again.getheader("X-Headrace-Idempotent-Replay") == "true"
    assert predict(stack, {"n": 2}, Idempotency_Key="k-1")[0].status == 422


def test_answers_go_on_without_redis(stack):
    stack.stop_service("redis")
    try:
        assert predict(stack, {"n": 1})[0].status == 200
        reply, body = predict(stack, {"sim": {"pieces": 3}})
        assert reply.status == 200 and body.decode() == pieces_of(3)
    finally:
        stack.start_service("redis")
    wait_until("pieces to come again", lambda: call(stack, {"sim": {"pieces": 2, "piece_gap_ms": 100}}).getheader(
        "Transfer-Encoding") == "chunked")


# --- pieces ----------------------------------------------------------------------------------------


def test_the_first_piece_comes_when_it_is_made(stack):
    orders = {"sim": {"pieces": 10, "piece_gap_ms": 100}}
    begun = time.monotonic()
    reply = call(stack, orders)
    first = reply.read1(100)
    took = time.monotonic() - begun
    assert reply.status == 200 and reply.getheader("Transfer-Encoding") == "chunked"
    assert reply.getheader("Content-Type") == BYTES and first == pieces_of(1).encode() and took < 0.5
    assert (first + reply.read()).decode() == pieces_of(10)
    assert time.monotonic() - begun > 0.9
    job = job_of(reply)
    again = stack.result(job)
    assert again.body.decode() == pieces_of(10) and again.headers["content-type"] == BYTES
    assert state_of(stack, job) == "3"
    events = call(stack, {"sim": {"pieces": 2, "piece_gap_ms": 50, "media_type": "text/event-stream"}})
    assert events.getheader("Content-Type") == "text/event-stream" and events.read().count(b"data: ") == 2


def test_who_wants_json_gets_it_whole(stack):
    reply, body = predict(stack, {"sim": {"pieces": 3}}, Accept="application/json")
    assert reply.getheader("Content-Type") == "application/json" and json.loads(body) == pieces_of(3)
    reply, body = predict(stack, {"sim": {"pieces": 3, "piece_gap_ms": 20}}, Accept="application/json",
                          User_Agent="OpenAI/Python")
    assert body.decode() == pieces_of(3)


def test_leaving_in_the_middle_cancels(stack):
    reply = call(stack, {"sim": {"pieces": 1000, "piece_gap_ms": 20}})
    assert reply.read1(100)
    reply.connection_of.sock.shutdown(socket.SHUT_RDWR)
    reply.connection_of.close()
    wait_until("the job to be canceled", lambda: state_of(stack, job_of(reply)) == "6")


def test_a_flushed_redis_costs_a_stream_nothing(stack):
    """What is missing comes from the result."""
    reply = call(stack, {"sim": {"pieces": 20, "piece_gap_ms": 50}})
    first = reply.read1(100)
    stack.redis("flushall")
    assert (first + reply.read()).decode() == pieces_of(20)


def test_a_lost_worker_cuts_a_stream_off(stack):
    reply = call(stack, {"sim": {"pieces": 100, "piece_gap_ms": 30}})
    assert reply.read1(100)
    os.kill(worker_pid(stack), signal.SIGKILL)
    with pytest.raises(http.client.IncompleteRead):
        reply.read()
    stack.wait_active(MODEL)


def worker_pid(stack):
    return int(stack.sql("SELECT pid FROM headrace.replica WHERE deployment_id = :'a1' AND state = 'READY'",
                         MODEL)[0][0])


def gateway_memory(stack):
    with open(f"/proc/{stack.services()['gateway']['pid']}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def test_a_slow_reader_costs_no_memory(stack):
    """40 MB wait in Redis (its newest 4 MiB) and in the blob store, not in the gateway."""
    count, size = 640, 65536
    before = gateway_memory(stack)
    reply = call(stack, {"sim": {"pieces": count, "piece_bytes": size, "piece_gap_ms": 1}})
    got = len(reply.read(1000))
    wait_until("the job to be over", lambda: state_of(stack, job_of(reply)) == "3", 30)
    assert gateway_memory(stack) - before < 20_000, "kB"
    assert got + len(reply.read()) == count * size  # what Redis had no room for comes from the blob store


# --- streams of async jobs ------------------------------------------------------------------------------


class Events:
    """A client of a stream, in a thread: events as (event, id, data)."""

    def __init__(self, stack, job, port=None, last=None):
        headers = {} if last is None else {"Last_Event_ID": last}
        self.reply = call(stack, method="GET", path=f"/async_request/{job}/stream", port=port, **headers)
        self.status, self.events, self.ended = self.reply.status, [], False
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        event = {}
        try:
            while line := self.reply.readline():
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name in ("event", "id", "data"):
                    event[name] = value
                elif name == "" and "data" in event:
                    self.events.append((event.get("event"), event.get("id"), json.loads(event["data"])))
                    event = {}
        except (http.client.HTTPException, OSError):
            pass
        self.ended = True

    def wait(self, ask, what):
        return wait_until(what, lambda: ask(self.events), 30)

    def wait_pieces(self, count):
        self.wait(lambda events: sum(e[0] is None for e in events) >= count, f"{count} pieces")

    def wait_final(self):
        self.wait(lambda events: events and events[-1][0] == "final", "the final event")
        wait_until("the stream to end", lambda: self.ended)
        return self.events[-1][2]

    def text(self):
        return "".join(data["text"] for event, _, data in self.events if event is None)

    def kinds(self):
        return [event for event, _, _ in self.events if event is not None]

    def last_id(self):
        return next(key for event, key, _ in reversed(self.events) if event is None)


def submit(stack, **orders):
    reply = stack.http("POST", f"/model/{MODEL}/production/async_predict",
                       {"model_input": {"sim": orders}, "stream": True})
    assert reply.status == 201 and reply.json["stream_url"].endswith("/stream")
    return reply.json["request_id"]


def test_an_async_job_is_followed_by_many_and_again(stack):
    job = submit(stack, pieces=20, piece_gap_ms=20)
    followers = [Events(stack, job) for _ in range(3)]
    for one in followers:
        final = one.wait_final()
        assert final["status"] == "SUCCEEDED" and final["request_id"] == job
        assert one.text() == pieces_of(20) and one.kinds() == ["begin", "final"]
    late = Events(stack, job)
    late.wait_final()
    assert late.text() == pieces_of(20)
    middle = next(key for event, key, data in late.events if event is None and data["text"].startswith("10:"))
    behind = Events(stack, job, last=middle)
    behind.wait_final()
    assert behind.text() == pieces_of(20)[11 * 16:]
    assert call(stack, method="GET", path=f"/async_request/{job}/stream", Last_Event_ID="final").status == 204
    assert stack.result(job).body.decode() == pieces_of(20)


def test_bytes_of_an_async_job_and_what_cannot_be_followed(stack):
    plain = stack.submit(MODEL, {})
    stack.wait_final(plain)
    stream = f"/async_request/{plain}/stream"
    assert stack.http("GET", stream).status == 409
    assert stack.http("GET", stream, headers={"Last-Event-ID": "x"}).status == 400
    assert stack.http("GET", "/async_request/00000000-0000-7000-8000-000000000000/stream").status == 404
    failed = submit(stack, fail="bad_input", pieces=1)
    events = Events(stack, failed)
    assert events.wait_final()["status"] == "FAILED"
    binary = stack.http("POST", f"/model/{MODEL}/production/async_predict",
                        {"model_input": {"sim": {"body": "x"}}, "stream": True}).json["request_id"]
    assert Events(stack, binary).wait_final()["status"] == "SUCCEEDED"


def test_a_stream_survives_its_gateway(stack, tmp_path):
    """kill -9 of the gateway in mid-stream: the client goes on at another one, behind its last event. One
    that is told to end does not wait for the job."""
    with Fleet(stack, tmp_path) as fleet:
        first, second = [fleet.start("gateway", name, lame_duck="0ms") for name in ("g1", "g2")]
        first.wait_ready()
        second.wait_ready()
        job = submit(stack, pieces=100, piece_gap_ms=40)
        events = Events(stack, job, port=first.port)
        events.wait_pieces(5)
        first.send(signal.SIGKILL)
        first.wait()
        wait_until("the client to notice", lambda: events.ended)
        middle = Events(stack, job, port=second.port, last=events.last_id())
        middle.wait_pieces(5)
        assert second.stop() < 2
        wait_until("the stream to be handed over", lambda: middle.ended)
        rest = Events(stack, job, last=middle.last_id())
        assert rest.wait_final()["status"] == "SUCCEEDED"
        assert events.text() + middle.text() + rest.text() == pieces_of(100)


def begin_call(stack, port=None, **headers):
    """A call of a minute, sent; its connection."""
    host = stack.url("gateway").removeprefix("http://") if port is None else f"127.0.0.1:{port}"
    connection = http.client.HTTPConnection(host, timeout=30)
    headers["Authorization"] = f"Bearer {stack.key}"
    connection.request("POST", f"/model/{MODEL}/production/predict", b'{"sim": {"sleep_ms": 60000}}', headers)
    return connection


def test_what_callers_of_a_lost_gateway_wait_for_is_canceled(stack, tmp_path):
    """kill -9 of a gateway with callers: what has no key is canceled down to the engine by the other gateway, whose
    own callers notice nothing."""
    ask = ("SELECT state, id FROM headrace.job WHERE sync AND state IN (2, 6) AND accepted_at > :'a1'::timestamptz AND "
           "(gateway IN (SELECT boot FROM headrace.gateway), idempotency_key IS NOT NULL) = (:'a2'::boolean, :'a3'::boolean)")
    begun = stack.sql("SELECT now()")[0][0]
    with Fleet(stack, tmp_path) as fleet:
        gone = fleet.start("gateway", "gone", lame_duck="0ms", gateway_lease="4s")
        gone.wait_ready()
        at_gone = [begin_call(stack, gone.port), begin_call(stack, gone.port, **{"Idempotency-Key": "comes-again"})]
        stays = begin_call(stack)
        wait_until("all three to run", lambda: len(stack.sql(ask, begun, "t", "f") + stack.sql(ask, begun, "t", "t")) == 3)
        gone.send(signal.SIGKILL)
        gone.wait()
    ((state, job),) = wait_until("the lost one's to be canceled",
                                 lambda: [row for row in stack.sql(ask, begun, "f", "f") if row[0] == "6"])
    assert stack.sql("SELECT asked_by ~ '^gateway gw-[0-9a-f]{16} is lost$' FROM headrace.command WHERE job_id = :'a1'",
                     job) == [["t"]]
    ((state, kept),) = stack.sql(ask, begun, "f", "t")
    assert state == "2", "what has a key goes on"
    ((state, job),) = stack.sql(ask, begun, "t", "f")
    assert state == "2", "so does what waits at another gateway"
    stack.sql("SELECT headrace_v1.cancel(:'a1')", kept)
    stack.wait_final(kept)
    for connection in [*at_gone, stays]:
        connection.close()
    assert stack.wait_final(job)["status"] == "CANCELED"


def test_a_lost_worker_is_said_in_the_stream(stack):
    pid = worker_pid(stack)
    job = submit(stack, pieces=60, piece_gap_ms=40)
    events = Events(stack, job)
    events.wait_pieces(2)
    os.kill(pid, signal.SIGKILL)
    assert events.wait_final()["status"] == "SUCCEEDED"
    assert events.kinds() == ["begin", "reset", "final"]
    at = next(i for i, event in enumerate(events.events) if event[0] == "reset")
    assert events.events[at][2]["attempt"] == 2
    assert "".join(data["text"] for event, _, data in events.events[at:] if event is None) == pieces_of(60)
    stack.wait_active(MODEL)


def test_what_redis_loses_is_said_as_a_gap(stack):
    job = submit(stack, pieces=40, piece_gap_ms=30)
    events = Events(stack, job)
    events.wait_pieces(3)
    last = events.last_id()
    events.reply.connection_of.sock.shutdown(socket.SHUT_RDWR)
    wait_until("five pieces more", lambda: int(stack.redis("xlen", f"headrace:stream:{job}")) > 8)
    stack.redis("flushall")
    rest = Events(stack, job, last=last)
    assert rest.wait_final()["status"] == "SUCCEEDED"
    assert rest.kinds()[:2] == ["gap", "final"], rest.events
    assert pieces_of(40).endswith(rest.text()) and len(rest.text()) < 40 * 16
    assert stack.result(job).body.decode() == pieces_of(40)
    stack.redis("flushall")
    nothing = Events(stack, job)
    nothing.wait_final()
    assert nothing.kinds() == ["gap", "final"] and nothing.events[0][2] == {"lost_bytes": 640}


# --- the command line --------------------------------------------------------------------------------------


def test_predict_waits_and_prints(stack):
    done = stack.cli("predict", MODEL, "--input", '{"n": 1}')
    assert json.loads(done.stdout)["output"] == {"n": 1}
    done = stack.cli("predict", MODEL, "--input", '{"sim": {"pieces": 3}}', "--stream")
    assert done.stdout == pieces_of(3)
    done = stack.cli("predict", MODEL, "--input", '{"sim": {"fail": "bad_input"}}', check=False)
    assert done.returncode == 3 and "failed as ordered" in done.stderr
    done = stack.cli("predict", MODEL, "--input", '{"sim": {"pieces": 3, "piece_gap_ms": 20}}', "--async", "--stream")
    assert done.stdout == pieces_of(3)
