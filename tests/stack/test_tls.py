# SPDX-License-Identifier: Apache-2.0
"""Goal: the gateway speaks TLS to clients that check it, and names what is wrong with its files.

Method: certificates made here; a second gateway beside a stack's own; Python's ssl as the client.
"""

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess

import pytest
from fleet import Client, Fleet
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from conftest import run_stack
from stack import ROOT, wait_until

DEPS = os.environ["HEADRACE_DEPS"]

EXIT_USAGE = 1


@pytest.fixture(scope="module")
def stack(request):
    yield from run_stack(request, env={"HEADRACE_ISOLATION_READ": f"{DEPS}/venv-tests"})


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """cert.pem and key.pem for localhost; other-*.pem for nobody."""
    folder = tmp_path_factory.mktemp("tls")
    for name, host in (("", "localhost"), ("other-", "elsewhere.example")):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-days", "2", "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}",
                        "-keyout", folder / f"{name}key.pem", "-out", folder / f"{name}cert.pem"],
                       check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def world(stack, certificates, tmp_path_factory):
    """The stack, and a gateway of it that speaks TLS."""
    stack.push_sim("sim")
    with Fleet(stack, tmp_path_factory.mktemp("fleet")) as fleet:
        gateway = fleet.start("gateway", "tls", tls_cert=certificates / "cert.pem", tls_key=certificates / "key.pem",
                              lame_duck="100ms")
        wait_ready(gateway, stack.key, certificates)
        yield stack, gateway, fleet


def context(certificates, name="cert.pem"):
    return ssl.create_default_context(cafile=certificates / name)


def wait_ready(gateway, key, certificates):
    gateway.wait_log("started")
    client = Client(gateway.port, key, context(certificates))
    wait_until(f"{gateway} to be ready", lambda: client.request("GET", "/readyz")[0] == 200, 60)
    client.close()


def test_client_that_verifies_gets_its_job_done(world, certificates):
    stack, gateway, _ = world
    client = Client(gateway.port, stack.key, context(certificates))
    for n in range(3):  # over one connection
        status, answer = client.request("POST", "/model/sim/production/async_predict", {"model_input": {"n": n}})
        assert status == 201, answer
        assert stack.wait_final(answer["request_id"])["status"] == "SUCCEEDED"
    assert client.connection.sock.version() in ("TLSv1.2", "TLSv1.3")
    client.close()


@pytest.fixture(scope="module")
def chat(world, certificates, tmp_path_factory):
    """chat() opens a websocket to an echo, over TLS."""
    stack, gateway, _ = world
    folder = tmp_path_factory.mktemp("chat")
    shutil.copy(ROOT / "tests/lib/websocket_model/server.py", folder)
    (folder / "headrace.json").write_text(json.dumps({"engine": "server", "slots": 32, "settings": {
        "start_command": f"exec {DEPS}/venv-tests/bin/python server.py", "predict_endpoint": "/chat",
        "readiness_endpoint": "/health", "liveness_endpoint": "/health"}}))
    stack.push(folder, "chat")

    @contextlib.contextmanager
    def open_one():
        with connect(f"wss://localhost:{gateway.port}/model/chat/production/websocket", ssl=context(certificates), max_size=None,
                     additional_headers={"Authorization": f"Bearer {stack.key}"}, open_timeout=60, compression=None) as link:
            yield link, link.response.headers["X-Headrace-Request-Id"]

    return open_one


def closed_with(link):
    with pytest.raises(ConnectionClosed) as told:
        while True:
            link.recv(timeout=30)
    assert told.value.rcvd is not None, told.value
    return told.value.rcvd.code, told.value.rcvd.reason


def test_a_websocket_over_tls_carries_all_of_it(world, chat):
    """Messages far over what sockets and records hold, both ways, by several at once: libmicrohttpd's own
    passage stood still here."""
    stack, _, _ = world

    def echo(n):
        with chat() as (link, job):
            for size in (0, 1, 1 << 14, 8 << 20):
                message = os.urandom(size)
                link.send(message)
                assert link.recv(timeout=60) == message
            link.send("!send 3000")
            assert [int(link.recv(timeout=60)) for _ in range(3000)] == list(range(3000))
        return job

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        jobs = list(pool.map(echo, range(3)))
    for job in jobs:
        assert stack.wait_final(job)["status"] == "SUCCEEDED"
        said = stack.result(job).json
        assert said["close_code"] == 1000 and said["closed_by"] == "client" and said["client_messages"] == 5, said


def test_ends_of_a_websocket_over_tls(world, chat):
    stack, _, _ = world
    with chat() as (link, job):
        link.send("!close 4321")
        assert closed_with(link) == (4321, "as ordered")
    assert stack.wait_final(job)["status"] == "SUCCEEDED"
    with chat() as (link, job):
        assert stack.cancel(job).status == 200
        assert closed_with(link) == (1001, "the request was canceled")
    with chat() as (link, job):
        link.socket.shutdown(socket.SHUT_RDWR)  # neither a close frame nor close_notify
        assert stack.wait_final(job)["status"] == "SUCCEEDED"
    assert stack.result(job).json["close_code"] == 1006


def test_who_cannot_verify_it_does_not_talk_to_it(world, certificates):
    stack, gateway, _ = world
    with pytest.raises(ssl.SSLCertVerificationError):
        Client(gateway.port, stack.key, context(certificates, "other-cert.pem")).request("GET", "/v1/models")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")  # that they are old is the point
def test_old_protocols_and_plain_text_get_nothing(world, certificates):
    _, gateway, _ = world
    old = context(certificates)
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(OSError):
        with socket.create_connection(("localhost", gateway.port), timeout=10) as plain:
            old.wrap_socket(plain, server_hostname="localhost")
    with socket.create_connection(("localhost", gateway.port), timeout=10) as plain:
        plain.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert not b"".join(iter(lambda: plain.recv(4096), b"")).startswith(b"HTTP/")


@pytest.mark.parametrize("files, words", [
    (("nowhere.pem", "key.pem"), ["nowhere.pem", "No such file"]),
    (("cert.pem", "nowhere.pem"), ["nowhere.pem", "No such file"]),
    (("key.pem", "key.pem"), ["key.pem", "certificate in PEM"]),
    (("cert.pem", "cert.pem"), ["cert.pem", "private key in PEM"]),
    (("cert.pem", "other-key.pem"), ["other-key.pem", "does not belong to", "cert.pem"]),
    (("cert.pem", None), ["only", "cert.pem"]),
    ((None, "key.pem"), ["only", "key.pem"]),
])
def test_bad_files_are_named_at_the_start(world, certificates, files, words):
    _, _, fleet = world
    settings = {name: certificates / file for name, file in zip(("tls_cert", "tls_key"), files) if file}
    gateway = fleet.start("gateway", f"bad-{files[0]}-{files[1]}", **settings)
    assert gateway.wait(30) == EXIT_USAGE
    (line,) = gateway.events("not_started")
    assert all(word in line["error"] for word in words), line


def test_drain_over_tls_answers_what_comes_and_says_close(world, certificates):
    stack, _, fleet = world
    lame = fleet.start("gateway", "lame", tls_cert=certificates / "cert.pem", tls_key=certificates / "key.pem",
                       lame_duck="5s")
    wait_ready(lame, stack.key, certificates)
    client = Client(lame.port, stack.key, context(certificates))
    assert client.request("GET", "/v1/models")[0] == 200
    kept = client.connection.sock
    lame.send(signal.SIGTERM)
    lame.wait_log("draining")
    assert client.request("GET", "/v1/models")[0] == 200 and client.connection.sock is None  # told to close
    status, answer = client.request("GET", "/readyz")
    assert status == 503 and "draining" in str(answer), answer
    lame.send(signal.SIGTERM)  # in haste
    assert lame.wait(10) == 0
    assert kept.fileno() == -1


def test_a_drain_closes_websockets_over_tls(world, chat):
    """Last: the gateway ends."""
    _, gateway, _ = world
    with chat() as (link, _):
        gateway.send(signal.SIGTERM)
        assert closed_with(link) == (1001, "the gateway is going away")
    assert gateway.wait(10) == 0
