# SPDX-License-Identifier: Apache-2.0
"""A websocket of a model: the `websocket` method of a Truss, and its client at a gateway.

    dial     the connection that came with the request stands; our token, and the gateway's go
    accept   one line of JSON, and the gateway says 101 to the client
    frames   RFC 6455, by the frame protocol of wsproto (headrace_host/wsproto), until both have closed

The model is given starlette's own WebSocket when its environment has starlette, else one of ours with the
same methods. What came and was not received yet is bounded: beyond it nothing is read, and the client's
sends come to a stop. Compression is not offered: what a message expands to would have no bound.
"""

import asyncio
import collections
import enum
import importlib
import json
import logging
import os
import socket
from urllib.parse import unquote

from . import errors
from .wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode, ParseFailed

PATH = "/v1/websocket"
GO = b"\n"
DIAL_SECONDS = 60
CLOSE_SECONDS = 5  # for the client's own close, after ours
READ_SIZE = 64 << 10
QUEUED_SIZE_MAX = 1 << 20
QUEUED_COUNT_MAX = 64
MESSAGE_SIZE_MAX = 100 << 20
NOT_IMPLEMENTED = "WebSocket is not implemented on this deployment."


class WebSocketDisconnect(Exception):
    """Where there is no starlette: the client has closed."""

    def __init__(self, code=1000, reason=None):
        self.code = code
        self.reason = reason or ""


class WebSocketState(enum.Enum):
    CONNECTING = 0
    CONNECTED = 1
    DISCONNECTED = 2
    RESPONSE = 3


class WebSocket:
    """Where there is no starlette: its WebSocket, as far as a Truss uses it."""

    def __init__(self, scope, receive, send):
        self.scope = scope
        self._receive = receive
        self._send = send
        self.client_state = self.application_state = WebSocketState.CONNECTING

    @property
    def headers(self):
        return {name.decode(): value.decode("latin-1") for name, value in self.scope["headers"]}

    async def receive(self):
        if self.client_state == WebSocketState.DISCONNECTED:
            raise RuntimeError('Cannot call "receive" once a disconnect message has been received.')
        message = await self._receive()
        gone = message["type"] == "websocket.disconnect"
        self.client_state = WebSocketState.DISCONNECTED if gone else WebSocketState.CONNECTED
        return message

    async def send(self, message):
        if self.application_state == WebSocketState.DISCONNECTED:
            raise RuntimeError('Cannot call "send" once a close message has been sent.')
        closes = message["type"] == "websocket.close"
        self.application_state = WebSocketState.DISCONNECTED if closes else WebSocketState.CONNECTED
        try:
            await self._send(message)
        except OSError:
            self.application_state = WebSocketState.DISCONNECTED
            raise WebSocketDisconnect(1006) from None

    async def accept(self, subprotocol=None, headers=None):
        if self.client_state == WebSocketState.CONNECTING:
            await self.receive()
        message = {"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers or []}
        await self.send(message)

    async def _message(self):
        if self.application_state != WebSocketState.CONNECTED:
            raise RuntimeError('WebSocket is not connected. Need to call "accept" first.')
        message = await self.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"], message.get("reason"))
        return message

    async def receive_text(self):
        return (await self._message())["text"]

    async def receive_bytes(self):
        return (await self._message())["bytes"]

    async def receive_json(self, mode="text"):
        message = await self._message()
        return json.loads(message["text"] if mode == "text" else message["bytes"].decode())

    async def _each(self, receive):
        try:
            while True:
                yield await receive()
        except WebSocketDisconnect:
            pass

    def iter_text(self):
        return self._each(self.receive_text)

    def iter_bytes(self):
        return self._each(self.receive_bytes)

    def iter_json(self):
        return self._each(self.receive_json)

    async def send_text(self, data):
        await self.send({"type": "websocket.send", "text": data})

    async def send_bytes(self, data):
        await self.send({"type": "websocket.send", "bytes": data})

    async def send_json(self, data, mode="text"):
        text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
        if mode == "text":
            await self.send_text(text)
        else:
            await self.send_bytes(text.encode())

    async def close(self, code=1000, reason=None):
        await self.send({"type": "websocket.close", "code": code, "reason": reason or ""})


def _kinds():
    """(WebSocket, WebSocketDisconnect) of the environment; of fastapi they are starlette's."""
    try:
        module = importlib.import_module("starlette.websockets")
    except ImportError:
        return WebSocket, WebSocketDisconnect
    return module.WebSocket, module.WebSocketDisconnect


async def dial(call):
    """(reader, writer) of the connection to the gateway, which has said go."""
    offer = json.loads(call.body)
    sock, loop = call.tunnel, asyncio.get_running_loop()
    if sock is None:
        raise errors.Unreachable("the gateway cannot be reached")
    sock.setblocking(False)
    stands = loop.create_future()
    loop.add_writer(sock, lambda: stands.done() or stands.set_result(None))
    try:
        await stands
    finally:
        loop.remove_writer(sock)
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise errors.Unreachable("the gateway cannot be reached: %s" % os.strerror(error))
    reader, writer = await asyncio.open_connection(sock=sock, limit=READ_SIZE)
    try:
        writer.write(offer["token"].encode() + b"\n")
        go = await reader.read(1)
    except OSError as error:
        raise errors.Unreachable("the gateway cannot be reached: %s" % error) from error
    if go != GO:
        writer.close()
        raise errors.Left("the client of this websocket has left")
    return reader, writer


class Passage:
    """The messages of ASGI on one side, the gateway's connection on the other."""

    def __init__(self, reader, writer, ping_interval, ping_timeout):
        self.reader = reader
        self.writer = writer
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.frames = FrameProtocol(False, [])
        self.queue = collections.deque()
        self.queued_size = 0
        self.news = asyncio.Condition()
        self.asked = False  # "websocket.connect" was received
        self.disconnect = None  # what the model receives once the queue is empty
        self.sent_close = self.got_close = self.closed_by = None  # codes, and whose was first
        self.partial_size = 0  # of a message that is not whole
        self.held = False  # nothing is read, because the model does not receive
        self.ponged = asyncio.Event()
        self.counts = {"client_bytes": 0, "model_bytes": 0, "client_messages": 0, "model_messages": 0}

    # ---- towards the model ----

    async def receive(self):
        if not self.asked:
            self.asked = True
            return {"type": "websocket.connect"}
        async with self.news:
            await self.news.wait_for(lambda: self.queue or self.disconnect)
            if not self.queue:
                return self.disconnect
            message = self.queue.popleft()
            self.queued_size -= len(message.get("text") or message.get("bytes") or b"")
            self.news.notify_all()
            return message

    async def _give(self, message, size):
        async with self.news:
            self.queue.append(message)
            self.queued_size += size
            self.news.notify_all()
            self.held = self.queued_size > QUEUED_SIZE_MAX or len(self.queue) > QUEUED_COUNT_MAX
            await self.news.wait_for(
                lambda: self.queued_size <= QUEUED_SIZE_MAX and len(self.queue) <= QUEUED_COUNT_MAX
            )
            self.held = False

    async def _over(self, code, reason=""):
        async with self.news:
            if self.disconnect is None:
                self.disconnect = {"type": "websocket.disconnect", "code": code, "reason": reason}
            self.news.notify_all()

    async def _take(self, frame, parts):
        if frame.opcode is Opcode.PING:
            self.write(self.frames.pong(frame.payload))
        elif frame.opcode is Opcode.PONG:
            self.ponged.set()
        elif frame.opcode is Opcode.CLOSE:
            code, reason = frame.payload
            self.got_close = int(code)
            self.closed_by = self.closed_by or "client"
            if self.sent_close is None:  # 1005 and 1006 are never sent
                self.close(None if code == CloseReason.NO_STATUS_RCVD else code, reason)
            await self._over(int(code), reason or "")
        else:
            parts.append(frame.payload)
            self.partial_size += len(frame.payload)
            if self.partial_size > MESSAGE_SIZE_MAX:
                raise ParseFailed("a message is over 100 MiB", CloseReason.MESSAGE_TOO_BIG)
            if frame.message_finished:
                is_text = frame.opcode is Opcode.TEXT
                data = ("" if is_text else b"").join(parts)
                parts.clear()
                self.partial_size = 0
                self.counts["client_messages"] += 1
                kind = "text" if is_text else "bytes"
                await self._give({"type": "websocket.receive", kind: data}, len(data))

    async def read(self):
        """Until the client has closed, or is gone."""
        parts = []
        try:
            while self.got_close is None:
                data = await self.reader.read(READ_SIZE)
                if not data:
                    break
                self.counts["client_bytes"] += len(data)
                self.frames.receive_bytes(data)
                for frame in self.frames.received_frames():
                    await self._take(frame, parts)
        except ParseFailed as error:
            self.close(error.code, str(error))
            await self._over(int(error.code), str(error))
        except OSError:
            pass
        await self._over(1006)

    async def ping(self):
        while self.ping_interval:
            await asyncio.sleep(self.ping_interval)
            self.ponged.clear()
            self.write(self.frames.ping(b"headrace"))
            if not self.ping_timeout:
                continue
            try:
                await asyncio.wait_for(self.ponged.wait(), self.ping_timeout)
            except asyncio.TimeoutError:
                if self.held:  # it may be behind what the model does not receive
                    continue
                self.close(1011, "keepalive ping timeout")
                await self._over(1006)
                return

    # ---- towards the client ----

    def write(self, data):
        if not self.writer.is_closing():
            self.counts["model_bytes"] += len(data)
            self.writer.write(data)

    def close(self, code, reason=None):
        if self.sent_close is None:
            self.sent_close = int(code or CloseReason.NO_STATUS_RCVD)
            self.closed_by = self.closed_by or "model"
            self.write(self.frames.close(code, reason or None))

    async def send(self, message):
        kind = message["type"]
        if kind == "websocket.accept":
            answer = {"protocol": message.get("subprotocol") or "", "extensions": ""}
            self.writer.write(json.dumps(answer).encode() + b"\n")
        elif kind == "websocket.close":
            self.close(message.get("code", 1000), message.get("reason"))
        elif self.disconnect is not None or self.sent_close is not None:
            raise ConnectionResetError("the client has left")
        else:
            data = message.get("text")
            data = message["bytes"] if data is None else data
            self.counts["model_messages"] += 1
            self.write(self.frames.send_data(data, True))
        await self.writer.drain()

    async def end(self, reading):
        """Waits a while for the client's own close."""
        if self.sent_close is not None and self.got_close is None:
            async with self.news:  # what it says now is not for the model
                self.queue.clear()
                self.queued_size = 0
                self.news.notify_all()
            await asyncio.wait([reading], timeout=CLOSE_SECONDS)
        try:
            await asyncio.wait_for(self.writer.drain(), CLOSE_SECONDS)
        except (OSError, asyncio.TimeoutError):
            pass

    def said(self):
        """The request's output: how it was closed, and what went through."""
        first = self.got_close if self.closed_by == "client" else self.sent_close
        said = {"close_code": first or 1006, "closed_by": self.closed_by or "client"}
        return dict(said, **self.counts)


def scope_of(call, offer):
    path, _, query = call.target.partition("?")
    headers = [(b"host", b"model"), (b"x-baseten-request-id", call.job.encode())]
    if call.trace:
        headers.append((b"traceparent", call.trace.encode("latin-1", "replace")))
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": unquote(path),
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": query.encode("utf-8", "replace"),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 8080),
        "subprotocols": [name.strip() for name in offer["protocols"].split(",") if name.strip()],
        "state": {},
        "extensions": {},
    }


async def _safe_close(socket, code, reason=None):
    try:
        await socket.close(code=code, reason=reason)
    except RuntimeError:  # the model has closed it
        pass


async def _talk(runner, call, passage, scope):
    """What the Truss server does with its `websocket` method."""
    kind, disconnect = _kinds()
    socket = kind(scope, passage.receive, passage.send)
    method = runner.methods.websocket
    try:
        await socket.accept()
        if method is None:
            logging.error(NOT_IMPLEMENTED)
            await socket.close(code=1003, reason=NOT_IMPLEMENTED)
            return
        try:
            await method.call(socket)
        except disconnect as left:
            logging.info("Client terminated websocket connection: `%s`.", left.code)
            return
        except BaseException as error:
            if not (isinstance(error, asyncio.CancelledError) and call.canceled.is_set()):
                await _safe_close(socket, 1011, errors.USER_CODE_TEXT)
            raise
        await _safe_close(socket, 1000)
    except disconnect:
        pass


async def _live(runner, call):
    reader, writer = await asyncio.wait_for(dial(call), DIAL_SECONDS)
    passage = Passage(reader, writer, *runner.pings)
    loop = asyncio.get_running_loop()
    reading = loop.create_task(passage.read())
    pinging = loop.create_task(passage.ping())
    try:
        try:
            with runner.intercept(call):
                await _talk(runner, call, passage, scope_of(call, json.loads(call.body)))
        finally:
            if not call.canceled.is_set():
                await passage.end(reading)
        return passage.said()
    finally:
        reading.cancel()
        pinging.cancel()
        if call.canceled.is_set():
            writer.transport.abort()
        writer.close()


async def answer(runner, call):
    """The request's output as JSON, once both sides have closed; None: there is no such path."""
    if call.path != PATH:
        return None
    said = await runner.interruptible(call, _live(runner, call))
    return json.dumps(said, separators=(",", ":")).encode()
