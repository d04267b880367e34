# SPDX-License-Identifier: Apache-2.0
"""Goal: a websocket's bytes reach a model and come back as they are, and each way for it to end is told to
both sides and to the ledger. Method: one stack; the clients and the server are the `websockets` package's."""

import asyncio
import concurrent.futures
import http.client
import json
import os
import shutil
import signal
import urllib.parse

import pytest
from websockets.asyncio.client import connect as connect_later
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from conftest import run_stack
from stack import ROOT, wait_until

DEPS = os.environ["HEADRACE_DEPS"]
SLOTS = 120


@pytest.fixture(scope="module")
def stack(request):
    yield from run_stack(request, env={"HEADRACE_ISOLATION_READ": f"{DEPS}/venv-tests", "HEADRACE_RESTART_DELAY": "50ms",
                                       "HEADRACE_WEBSOCKET_MESSAGE_MAX": "32MiB", "PIP_NO_INDEX": "1",
                                       "PIP_FIND_LINKS": f"{DEPS}/wheels-truss", "PIP_NO_COMPILE": "1"})


@pytest.fixture(scope="module")
def server(stack, truss, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(ROOT / "tests/lib/websocket_model/server.py", folder)
    (folder / "headrace.json").write_text(json.dumps({"engine": "server", "slots": SLOTS, "settings": {
        "start_command": f"exec {DEPS}/venv-tests/bin/python server.py", "predict_endpoint": "/chat",
        "readiness_endpoint": "/health", "liveness_endpoint": "/health"}}))
    stack.push(folder, "chat")
    return "chat"


@pytest.fixture(scope="module")
def truss(stack):
    """The deployment of an example, with fastapi's WebSocket; its environment is made while the server is tested."""
    return stack.push(ROOT / "examples/truss/websocket", "words", wait=False).stdout.strip()


def url(stack, model, route="production/websocket"):
    return stack.url("gateway").replace("http://", "ws://") + f"/model/{model}/{route}"


def headers(stack):
    return {"Authorization": f"Bearer {stack.key}"}


def call(stack, model, route="production/websocket", **options):
    return connect(url(stack, model, route), additional_headers=headers(stack), max_size=None, open_timeout=60, **options)


def job_of(socket):
    return socket.response.headers["X-Headrace-Request-Id"]


def ended(stack, job):
    return stack.wait_final(job)["status"]


def closed_with(socket):
    """(code, reason) that the client is told."""
    with pytest.raises(ConnectionClosed) as told:
        while True:
            socket.recv(timeout=30)
    assert told.value.rcvd is not None, told.value
    return told.value.rcvd.code, told.value.rcvd.reason


# --- what goes through --------------------------------------------------------------------------------


def test_echo_and_the_job_of_it(stack, server):
    with call(stack, server) as socket:
        for message in ("hello", b"\x00\xff", "", "ä" * 70000):
            socket.send(message)
            assert socket.recv(timeout=30) == message
        job = job_of(socket)
        wait_until("the job to run", lambda: stack.job(job)["status"] == "IN_PROGRESS")
    assert ended(stack, job) == "SUCCEEDED"
    said = stack.result(job).json
    assert said["close_code"] == 1000 and said["closed_by"] == "client" and said["client_messages"] == 4, said


def test_a_server_closes(stack, server):
    with call(stack, server) as socket:
        socket.send("!close 4321")
        assert closed_with(socket) == (4321, "as ordered")
        job = job_of(socket)
    assert ended(stack, job) == "SUCCEEDED"
    assert stack.result(job).json["close_code"] == 4321


def test_big_and_many_messages(stack, server):
    big = os.urandom(24 << 20)
    with call(stack, server, compression=None) as socket:
        socket.send(big)
        assert socket.recv(timeout=60) == big
        socket.send("!send 20000")
        assert [int(socket.recv(timeout=30)) for _ in range(20000)] == list(range(20000))


def test_what_the_server_is_told(stack, server):
    with call(stack, server, "environments/production/websocket?room=a%20b", subprotocols=["v1.chat", "v9"]) as socket:
        assert socket.subprotocol == "v1.chat"
        socket.send("!who")
        assert socket.recv(timeout=30).split()[:2] == ["/chat?room=a%20b", "v1.chat"]
        names = socket.recv(timeout=30).split()
        assert "authorization" not in names and "x-baseten-request-id" in names
    with call(stack, server, "production/sync/other?x=1") as socket:
        socket.send("!who")
        assert socket.recv(timeout=30).split()[0] == "/other?x=1"


def test_a_hundred_at_once(stack, server):
    async def one(n):
        async with connect_later(url(stack, server), additional_headers=headers(stack), open_timeout=120,
                                 max_size=None) as socket:
            for i in range(5):
                await socket.send(f"{n}.{i}")
                assert await socket.recv() == f"{n}.{i}"
            await everybody.wait()
            await socket.send(b"%d" % n * 1000)
            assert await socket.recv() == b"%d" % n * 1000

    async def all_of_them():
        await asyncio.wait_for(asyncio.gather(*(one(n) for n in range(100))), 120)

    everybody = asyncio.Barrier(100)
    asyncio.run(all_of_them())


def test_a_truss(stack, truss):
    stack.wait_active(truss, 120)
    truss = "words"
    with call(stack, truss) as socket:
        for message, words in (("to be or not", 4), (b"to be", 2), ("x " * 100000, 100000)):
            socket.send(message)
            assert json.loads(socket.recv(timeout=60))["words"] == words
        job = job_of(socket)
        socket.send("bye")
        assert closed_with(socket) == (4000, "bye")
    assert ended(stack, job) == "SUCCEEDED"
    said = stack.result(job).json
    assert (said["close_code"], said["closed_by"], said["client_messages"]) == (4000, "model", 4)
    with call(stack, truss) as socket:
        job = job_of(socket)
        assert stack.cancel(job).status == 200
        assert closed_with(socket) == (1001, "the request was canceled")
    assert ended(stack, job) == "CANCELED"
    with call(stack, truss) as socket:
        job = job_of(socket)
        stack.kill("worker")
        assert closed_with(socket) == (1011, "the worker was lost")
    assert ended(stack, job) == "CANCELED"


# --- what is refused ----------------------------------------------------------------------------------


def handshake(stack, path, key=None, **more):
    """(status, headers, body) of a GET with these headers."""
    where = urllib.parse.urlsplit(stack.url("gateway"))
    client = http.client.HTTPConnection(where.hostname, where.port, timeout=30)
    try:
        said = {"Authorization": f"Bearer {key or stack.key}", "Connection": "Upgrade", "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        said.update({name.replace("_", "-"): value for name, value in more.items()})
        client.request("GET", path, headers={name: value for name, value in said.items() if value is not None})
        reply = client.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        client.close()


def test_bad_handshakes(stack, server):
    path = f"/model/{server}/production/websocket"
    status, told, body = handshake(stack, path, Upgrade=None, Connection=None)
    assert status == 426 and told["Upgrade"] == "websocket" and b"Upgrade: websocket" in body, (status, body)
    status, told, body = handshake(stack, path, Sec_WebSocket_Version="8")
    assert status == 426 and told["Sec-WebSocket-Version"] == "13" and b"must be 13" in body
    for more, text in (({"Sec_WebSocket_Key": "short"}, b"16 bytes in base64"), ({"Connection": "close"}, b"Connection"),
                       ({"Idempotency_Key": "k"}, b"Idempotency-Key"), ({"Request_Timeout_Ms": "soon"}, b"Request-Timeout-Ms"),
                       ({"Sec_WebSocket_Protocol": "x" * 2000}, b"1024")):
        status, _, body = handshake(stack, path, **more)
        assert status == 400 and text in body, (more, status, body)
    assert handshake(stack, path, key="hr_nobody")[0] == 401
    status, _, body = handshake(stack, "/model/nobody/production/websocket")
    assert status == 404 and b"nobody" in body
    assert stack.http("POST", path).status == 405


def test_a_refusal_of_the_server_is_the_answer(stack, server):
    with pytest.raises(InvalidStatus) as refused, call(stack, server, "production/sync/elsewhere"):
        pass
    assert refused.value.response.status_code == 403 and refused.value.response.body == b"not here\n"
    job = refused.value.response.headers["X-Headrace-Request-Id"]
    assert ended(stack, job) == "FAILED"


def test_an_engine_without_websockets_says_so(stack):
    stack.push_sim("plain")
    chain = {"engine": "chain", "settings": {"steps": {"only": {"model": "plain", "input": "{{input}}"}}}}
    assert stack.http("POST", "/v1/models/chain/deployments", chain).status == 201
    wait_until("the chain to run", lambda: stack.http("POST", "/chain/chain/production/run_remote", 1).status == 200)
    for model in ("plain", "chain"):
        status, _, body = handshake(stack, f"/model/{model}/production/websocket")
        assert status == 400 and b"websocket" in body.lower(), (model, status, body)
    reply = stack.http("GET", "/model/chain/production/sync/elsewhere")
    assert reply.status == 400 and "run_remote" in reply.json["error"], reply


def test_a_message_over_the_limit(stack, server):
    with call(stack, server, compression=None) as socket:
        socket.send("before")
        assert socket.recv(timeout=30) == "before"
        with pytest.raises(ConnectionClosed) as told:
            socket.send(b"x" * (33 << 20))
            socket.recv(timeout=30)
        assert told.value.rcvd is None or told.value.rcvd.code == 1009, told.value
        job = job_of(socket)
    assert ended(stack, job) in ("CANCELED", "SUCCEEDED")


# --- how it ends --------------------------------------------------------------------------------------


def test_a_cancel_closes_it(stack, server):
    with call(stack, server) as socket:
        job = job_of(socket)
        assert stack.cancel(job).status == 200
        assert closed_with(socket) == (1001, "the request was canceled")
    assert ended(stack, job) == "CANCELED"


def test_a_client_that_just_leaves(stack, server):
    with call(stack, server) as socket:
        job = job_of(socket)
        socket.socket.shutdown(2)
        assert ended(stack, job) == "SUCCEEDED"
    assert stack.result(job).json["close_code"] == 1006


def test_a_server_that_breaks_off(stack, server):
    with call(stack, server) as socket:
        socket.send("!cut")
        assert closed_with(socket) == (1011, "the model ended without a close frame")
        job = job_of(socket)
    assert ended(stack, job) == "FAILED"
    ((error_class, text),) = stack.sql("SELECT error_class, error_message FROM headrace.job WHERE id = :'a1'", job)
    assert error_class == "2" and "without a close frame" in text


def test_a_worker_that_is_killed(stack, server):
    with call(stack, server) as socket:
        job = job_of(socket)
        stack.kill("worker")
        assert closed_with(socket) == (1011, "the worker was lost")
    assert ended(stack, job) == "CANCELED"


def test_a_worker_is_lost_before_the_101(stack, server):
    """The client waits for the next one, as a sync call does."""
    before = jobs(stack)
    wait_until("a worker", lambda: stack.pids("worker"))
    stack.kill("worker", signal.SIGSTOP)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        later = pool.submit(say_hello, stack, server)
        try:
            wait_until("the job to wait", lambda: jobs(stack) > before)
        finally:
            stack.kill("worker")
        assert later.result(60) == "hello"


def jobs(stack):
    return int(stack.sql("SELECT count(*) FROM headrace.job")[0][0])


def say_hello(stack, model):
    with call(stack, model) as socket:
        socket.send("hello")
        return socket.recv(timeout=30)


def test_a_gateway_that_drains_says_so(stack, server):
    with call(stack, server) as socket:
        job = job_of(socket)
        stack.stop_service("gateway")
        assert closed_with(socket) == (1001, "the gateway is going away")
    stack.start_service("gateway")
    assert ended(stack, job) == "SUCCEEDED"


def test_a_gateway_that_is_killed_takes_its_websockets_along(stack, server):
    with call(stack, server) as socket:
        job = job_of(socket)
        stack.restart_service("gateway", kill=True)
        with pytest.raises(ConnectionClosed):
            socket.recv(timeout=30)
    assert ended(stack, job) == "SUCCEEDED"
    assert stack.result(job).json["close_code"] == 1006


def test_figures(stack, server):
    with call(stack, server) as socket:
        socket.send("x")
        socket.recv(timeout=30)
        assert metric(stack, "headrace_ongoing_websocket_connections") == 1
    wait_until("it to be counted", lambda: metric(stack, 'headrace_gateway_websockets_total{code="1000"}') >= 1)
    assert metric(stack, "headrace_ongoing_websocket_connections") == 0


def metric(stack, name):
    for line in stack.http("GET", "/metrics").body.decode().splitlines():
        if line.startswith(name + " "):
            return float(line.rsplit(" ", 1)[1])
    return 0
