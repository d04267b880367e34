# SPDX-License-Identifier: Apache-2.0
"""The request that a model's methods are given: a fastapi.Request when its environment has one."""

import asyncio
import contextlib
import threading
from urllib.parse import unquote

from . import errors


class Call:
    """One request of the worker, from its REQ to its final EVT."""

    def __init__(self, fields):
        self.id = fields["id"]
        self.body = fields.get("input", b"")
        self.media_type = fields.get("input_type", "") or "application/json"
        self.number = fields.get("number", 0)
        self.stream = bool(fields.get("stream"))
        self.trace = fields.get("trace", "")
        self.tunnel = fields.get("tunnel")  # of a websocket: a socket
        self.job = id_text(fields.get("job")) or str(self.id)
        # What its model calls belongs to the same run of a chain; a job of none begins one.
        self.run = id_text(fields.get("run")) or self.job
        method, _, target = (fields.get("route", "") or "").partition(" ")
        self.method = method or "POST"
        self.target = target or "/v1/models/model:predict"
        self.canceled = asyncio.Event()
        self.canceled_flag = threading.Event()  # the same, for threads
        self.task = None
        self.interruptible = False  # in an await of the model's own async code

    @property
    def path(self):
        return self.target.partition("?")[0]

    def cancel(self):
        self.canceled.set()
        self.canceled_flag.set()
        if self.interruptible and self.task is not None:
            self.task.cancel()

    def check(self, step):
        """Before each of the model's methods, as the Truss server does."""
        if self.canceled.is_set():
            raise errors.Disconnected("Client disconnected, skipping `%s`." % step)


def id_text(raw):
    """A job's id as text."""
    if not raw:
        return ""
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _scope(call):
    path, _, query = call.target.partition("?")
    headers = [
        (b"host", b"model"),
        (b"content-type", call.media_type.encode("latin-1", "replace")),
        (b"content-length", str(len(call.body)).encode()),
        (b"x-baseten-request-id", call.job.encode()),
        (b"x-baseten-chain-request-id", call.run.encode()),
    ]
    if not call.stream:
        headers.append((b"accept", b"application/json"))
    if call.trace:
        headers.append((b"traceparent", call.trace.encode("latin-1", "replace")))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": query.encode("utf-8", "replace"),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 8080),
        "state": {},
    }


async def make(call):
    """The Request, with its body read; None when the environment has no starlette, so that no method can ask for one."""
    kind = errors.loaded("fastapi", "Request") or errors.loaded("starlette.requests", "Request")
    if kind is None:
        return None
    given = False

    async def receive():
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": bytes(call.body), "more_body": False}
        if not call.canceled.is_set():
            await call.canceled.wait()
        return {"type": "http.disconnect"}

    request = kind(_scope(call), receive)
    request.state.watch_disconnect = _watcher(call)
    await request.body()  # or is_disconnected() would take it for itself
    return request


def _watcher(call):
    @contextlib.contextmanager
    def watch_disconnect():
        yield call.canceled_flag

    return watch_disconnect
