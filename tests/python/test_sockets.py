# SPDX-License-Identifier: Apache-2.0
"""Goal: the `websocket` method of a model talks to its client, and each way for it to end is told to both.

The test is worker and gateway at once; the client's frames are made by the same library, as a client. With
nothing but Python, so the model is given our own WebSocket; starlette's is in tests/stack/test_websocket.py.
"""

import json
import os
import socket
import time
import unittest

import drive
from headrace_host import errors
from headrace_host.wsproto.frame_protocol import FrameProtocol, Opcode
from test_host import model

TOKEN = "0123456789abcdef" * 2
OFFER = json.dumps({"gateway": "127.0.0.1:1", "token": TOKEN, "key": "", "protocols": "a, b", "extensions": ""}).encode()

ECHO = """
async def websocket(self, websocket):
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        await websocket.send({"type": "websocket.send", **{k: v for k, v in message.items() if k != "type"}})
"""


class Client:
    """At the gateway's end of a tunnel."""

    def __init__(self, host, go=b"\n", route="WEBSOCKET /v1/websocket?x=1"):
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(drive.WAIT_SECONDS)
        self.id = host.send_tunnel(OFFER, theirs, route=route, input_type="application/vnd.headrace.websocket+json")
        self.frames = FrameProtocol(True, [])
        self.waiting = []
        self.closed = False
        if go is not None and route.startswith("WEBSOCKET /v1/websocket"):
            assert self.line() == TOKEN
            self.sock.sendall(go)

    def line(self):
        got = b""
        while not got.endswith(b"\n"):
            byte = self.sock.recv(1)
            assert byte, got
            got += byte
        return got[:-1].decode()

    def accepted(self):
        self.answer = json.loads(self.line())
        return self

    def send(self, data):
        self.sock.sendall(self.frames.send_data(data, True))

    def next(self):
        """The next (opcode, payload), whole; None: the host has closed."""
        parts = []
        while True:
            for frame in self.received():
                parts.append(frame.payload)
                if frame.message_finished and frame.opcode not in (Opcode.TEXT, Opcode.BINARY):
                    return frame.opcode, parts[-1]
                if frame.message_finished:
                    return frame.opcode, ("" if frame.opcode is Opcode.TEXT else b"").join(parts)
            if self.closed:
                return None
            data = self.sock.recv(65536)
            self.closed = not data
            self.frames.receive_bytes(data)

    def received(self):
        while True:
            frame = next(iter(self.frames.received_frames()), None)
            if frame is None:
                return
            yield frame

    def close(self, code=1000, reason=None):
        self.sock.sendall(self.frames.close(code, reason))


class Sockets(unittest.TestCase):
    def client(self, host, **more):
        client = Client(host, **more)
        self.addCleanup(client.sock.close)
        return client

    def test_messages_and_what_is_left(self):
        with drive.Host(model(ECHO)) as host:
            client = self.client(host.ready()).accepted()
            self.assertEqual(client.answer, {"protocol": "", "extensions": ""})
            for message in ("hello", b"\x00\xff", "", "ä" * 70000):
                client.send(message)
                self.assertEqual(client.next()[1], message)
            client.close(1000, "done")
            self.assertEqual(client.next(), (Opcode.CLOSE, (1000, "done")))
            self.assertIsNone(client.next())
            answer = host.answer(client.id)
            self.assertEqual(answer.error_class, 0, answer.text)
            said = answer.json()
            self.assertEqual((said["close_code"], said["closed_by"], said["client_messages"]), (1000, "client", 4))
            self.assertGreater(said["client_bytes"], 140000)

    def test_big_messages(self):
        big = os.urandom(12 << 20)
        body = "async def websocket(self, ws):\n    async for data in ws.iter_bytes():\n        await ws.send_bytes(data[::-1])"
        with drive.Host(model(body)) as host:
            client = self.client(host.ready()).accepted()
            client.send(big)
            self.assertTrue(client.next()[1] == big[::-1])

    def test_methods_of_the_object(self):
        body = """
async def websocket(self, websocket):
    await websocket.send_json({"path": websocket.scope["path"], "query": websocket.scope["query_string"].decode(),
                               "id": websocket.headers["x-baseten-request-id"], "offered": websocket.scope["subprotocols"]})
    await websocket.send_text(await websocket.receive_text())
    await websocket.send_json(await websocket.receive_json())
    await websocket.send_bytes(await websocket.receive_bytes())
    async for text in websocket.iter_text():
        await websocket.send_text("got " + text)
    self.after = True
"""
        with drive.Host(model(body)) as host:
            client = self.client(host.ready()).accepted()
            first = json.loads(client.next()[1])
            self.assertEqual((first["path"], first["query"], first["offered"]), ("/v1/websocket", "x=1", ["a", "b"]))
            for message in ("text", '{"a":[1]}', b"bytes"):
                client.send(message)
                self.assertEqual(client.next()[1], message)
            client.send("more")
            self.assertEqual(client.next()[1], "got more")
            client.close(4000)
            self.assertEqual(client.next()[0], Opcode.CLOSE)
            self.assertEqual(host.answer(client.id).json()["close_code"], 4000)

    def test_how_a_model_ends(self):
        rows = (
            ("return", (1000, None), 0, 1000),
            ("await websocket.close(4001, 'mine')", (4001, "mine"), 0, 4001),
            ("await websocket.close()\n    raise ValueError('after')", (1000, None), errors.MODEL_ERROR, None),
            ("raise ValueError('no')", (1011, errors.USER_CODE_TEXT), errors.MODEL_ERROR, None),
            ("await websocket.receive_text()\n    raise SystemExit(3)", (1011, errors.USER_CODE_TEXT),
             errors.MODEL_ERROR, None),
        )
        for end, close, error_class, code in rows:
            with self.subTest(end), drive.Host(model("async def websocket(self, websocket):\n    " + end)) as host:
                client = self.client(host.ready()).accepted()
                client.send("x")
                kind, payload = client.next()
                self.assertEqual((kind, (payload[0], payload[1] or None)), (Opcode.CLOSE, close), host.log())
                client.close(payload[0])
                answer = host.answer(client.id)
                self.assertEqual(answer.error_class, error_class, answer.text)
                if code:
                    self.assertEqual((answer.json()["close_code"], answer.json()["closed_by"]), (code, "model"))

    def test_a_client_that_leaves(self):
        body = """
async def websocket(self, websocket):
    try:
        await websocket.receive_text()
    except Exception as error:
        print("told", error.code, flush=True)
        raise
"""
        with drive.Host(model(body)) as host:
            client = self.client(host.ready()).accepted()
            client.sock.close()
            self.assertEqual(host.answer(client.id).json()["close_code"], 1006)
            self.assertIn("told 1006", host.log())

    def test_a_model_without_the_method(self):
        with drive.Host(model("def predict(self, x):\n    return x")) as host:
            client = self.client(host.ready()).accepted()
            self.assertEqual(client.next(), (Opcode.CLOSE, (1003, "WebSocket is not implemented on this deployment.")))
            client.close(1003)
            self.assertEqual(host.answer(client.id).json()["close_code"], 1003)
            self.assertEqual(host.ask(5).data, b"5")
            other = self.client(host, route="WEBSOCKET /elsewhere")
            self.assertEqual(host.answer(other.id).status, 404)

    def test_a_cancel_ends_it(self):
        with drive.Host(model(ECHO)) as host:
            client = self.client(host.ready()).accepted()
            host.cancel(client.id)
            self.assertEqual(host.answer(client.id).error_class, errors.CANCELED)
            self.assertIsNone(client.next())
            before = self.client(host, go=None)
            host.cancel(before.id)
            self.assertEqual(host.answer(before.id).error_class, errors.CANCELED)

    def test_a_gateway_that_has_nobody(self):
        with drive.Host(model(ECHO)) as host:
            client = self.client(host.ready(), go=None)
            self.assertEqual(client.line(), TOKEN)
            client.sock.close()
            answer = host.answer(client.id)
            self.assertEqual((answer.error_class, answer.status), (errors.BAD_INPUT, 410))
            lost = host.send(OFFER, route="WEBSOCKET /v1/websocket")
            self.assertEqual(host.answer(lost).error_class, errors.MODEL_UNAVAILABLE)

    def test_pings(self):
        body = "async def websocket(self, ws):\n    await ws.receive_text()"
        config = {"runtime": {"transport": {"kind": "websocket", "ping_interval_seconds": 0.1, "ping_timeout_seconds": 0.3}}}
        with drive.Host(model(body), config=config) as host:
            client = self.client(host.ready()).accepted()
            for _ in range(3):
                kind, payload = client.next()
                self.assertEqual(kind, Opcode.PING)
                client.sock.sendall(client.frames.pong(payload))
            client.sock.sendall(client.frames.ping(b"me"))
            kinds = []
            while Opcode.CLOSE not in kinds:  # nobody answers its pings any more
                kind, payload = client.next()
                kinds.append(kind)
            self.assertIn(Opcode.PONG, kinds)
            self.assertEqual(payload[0], 1011)
            client.sock.close()
            self.assertEqual(host.answer(client.id).json()["close_code"], 1011)

    def test_a_model_that_does_not_receive(self):
        """Its client comes to a stop, and so does nothing else."""
        body = """
async def websocket(self, ws):
    import asyncio
    while (await ws.receive_text()) != "go":
        pass
    await asyncio.sleep(1)
    for n in range(50):
        await ws.receive_bytes()
    await ws.send_text("all")
"""
        with drive.Host(model(body)) as host:
            client = self.client(host.ready()).accepted()
            client.send("go")
            client.sock.settimeout(0.3)
            began, sent = time.monotonic(), 0
            raw = b"".join(client.frames.send_data(bytes(1 << 18), True) for _ in range(50))
            while sent < len(raw):
                try:
                    sent += client.sock.send(raw[sent:])
                except socket.timeout:
                    self.assertLess(sent, 6 << 20)
            self.assertGreater(time.monotonic() - began, 0.5)
            client.sock.settimeout(drive.WAIT_SECONDS)
            self.assertEqual(client.next()[1], "all")

    def test_what_is_no_frame(self):
        with drive.Host(model(ECHO)) as host:
            client = self.client(host.ready()).accepted()
            client.sock.sendall(b"\xff" * 20)
            kind, payload = client.next()
            self.assertEqual((kind, payload[0]), (Opcode.CLOSE, 1002))
            client.sock.close()
            self.assertEqual(host.answer(client.id).json()["close_code"], 1002)


if __name__ == "__main__":
    unittest.main()
