# SPDX-License-Identifier: Apache-2.0
"""The server that the truss package makes of a Truss directory: built as for an image, then run here.

    build(folder, root)      the package's build context, laid out below `root` as its Dockerfile says
    Process(root)            the server as a process of its own, which listens on a port
    answers(root, requests)  its ASGI application in this process, for the many small models

Runs in scripts/python/venv compare.
"""

import asyncio
import contextlib
import http.client
import io
import json
import logging
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time

START_SECONDS = 60
ANSWER_SECONDS = 30

# What came of a request: the status, the media type, the body; cut: the connection broke off.
CUT = "cut"


def build(folder, root):
    """Makes `root`/context with the package's generator, and `root`/app and …/packages from it."""
    from truss.contexts.image_builder.serving_image_builder import ServingImageBuilderContext

    context = pathlib.Path(root) / "context"
    context.parent.mkdir(parents=True, exist_ok=True)
    ServingImageBuilderContext.run(pathlib.Path(folder)).prepare_image_build_dir(context)
    play(context, pathlib.Path(root))


def play(context, root):
    """Does what the COPY lines of the Dockerfile do; ENV lines go to `root`/environment.json, and
    so do the variables of config.yaml, which the platform sets."""
    import yaml

    variables = {"APP_HOME": "/app"}
    (root / "app").mkdir()
    for line in (context / "Dockerfile").read_text().splitlines():
        if line.startswith("ENV "):
            name, _, value = line[4:].strip().partition("=")
            variables[name] = " ".join(shlex.split(value))
        elif line.startswith("COPY "):
            *options, source, target = line.split()[1:]
            if target.startswith("${APP_HOME}"):
                target = "/app" + target[len("${APP_HOME}") :]
            if not target.startswith(("/app", "/packages")):
                continue  # lists of requirements, read by pip alone
            copy(context / source, root / target.lstrip("/"))
    keep = {k: v for k, v in variables.items() if k not in ("PATH", "HOME", "APP_HOME")}
    keep.update(yaml.safe_load((context / "config.yaml").read_text())["environment_variables"])
    (root / "environment.json").write_text(json.dumps(keep))


def copy(source, target):
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# What the platform mounts at a fixed path is read from another one.
MOUNTED = """import runpy, sys
sys.path.insert(0, ".")
from _truss_shared import dynamic_config_resolver
dynamic_config_resolver.DYNAMIC_CONFIG_MOUNT_DIR = %r
runpy.run_path("main.py", run_name="__main__")
"""


class Process:
    """The server of one Truss. command: a custom server's own, with what it listens on."""

    def __init__(self, root, command=None, port=0, ready="/v1/models/model", environment=None):
        self.root = pathlib.Path(root)
        self.port = port or free_port()
        self.log = self.root / "log"
        env = dict(os.environ, HOME=str(self.root), PYTHONPATH=str(self.root / "packages"))
        env.update(json.loads((self.root / "environment.json").read_text()))
        env.update(APP_HOME=str(self.root / "app"), INFERENCE_SERVER_PORT=str(self.port))
        mounted = self.root / "b10_dynamic_config"
        mounted.mkdir()
        if environment:
            (mounted / "environment").write_text(json.dumps(environment))
        command = command or [sys.executable, "-c", MOUNTED % str(mounted)]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.root / "app", env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.wait_ready(ready)

    def wait_ready(self, path):
        end = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if self.ask("GET", path, b"", {})[0] == 200:
                    return
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError("the server did not start:\n" + self.log.read_text())
            time.sleep(0.05)

    def ask(self, method, path, body, headers):
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            link.request(method, path, body, headers)
            reply = link.getresponse()
            try:
                return reply.status, reply.getheader("content-type"), reply.read(), False
            except http.client.IncompleteRead as error:
                return reply.status, reply.getheader("content-type"), error.partial, True
        finally:
            link.close()

    def close(self):
        self.process.kill()
        self.process.wait()


def headers_of(request):
    headers = {"content-type": request.media_type}
    if request.accept:
        headers["accept"] = request.accept
    return headers


# ---- in this process ----


@contextlib.contextmanager
def inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


class Server:
    """The application of one Truss after another. code: the app folder of any of them."""

    def __init__(self, code):
        os.environ["HOME"] = tempfile.mkdtemp(prefix="truss-home-")
        sys.path.insert(0, str(code))
        import truss_server

        truss_server.REGISTRY.unregister = lambda collector: None  # once is enough
        self.module = truss_server

    def refusal(self, root):
        """Why the server would not load this model; None: it does."""
        with inside(root / "app"):
            server = self.module.TrussServer(0, "config.yaml")
            logging.disable(logging.CRITICAL)
            try:
                server._model._load_impl()
            except Exception as error:
                return "%s: %s" % (type(error).__name__, error)
        return None

    def answers(self, root, requests):
        with inside(root / "app"):
            server = self.module.TrussServer(0, "config.yaml")
            logging.disable(logging.CRITICAL)
            with contextlib.redirect_stderr(io.StringIO()):
                return asyncio.run(self._answers(server, requests))

    async def _answers(self, server, requests):
        app = server.create_application()
        async with app.router.lifespan_context(app):
            end = time.monotonic() + START_SECONDS
            while not server._model.ready:
                assert not server._model.load_failed and time.monotonic() < end
                await asyncio.sleep(0.002)
            return [await ask(app, request) for request in requests]


async def ask(app, request):
    """One request to an ASGI application."""
    path, _, query = request.path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": re.sub("%20", " ", path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(k.encode(), v.encode()) for k, v in headers_of(request).items()]
        + [(b"content-length", b"%d" % len(request.body))],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8080),
    }
    given, start, body, cut = [], {}, bytearray(), False

    async def receive():
        if not given:
            given.append(True)
            return {"type": "http.request", "body": request.body, "more_body": False}
        await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            body.extend(message.get("body", b""))
            start["ended"] = not message.get("more_body", False)

    try:
        await asyncio.wait_for(app(scope, receive, send), ANSWER_SECONDS)
    except Exception:  # it was answered with 500 before, or its connection breaks
        cut = not start.get("ended")
    headers = {k.decode().lower(): v.decode() for k, v in start.get("headers", [])}
    return start.get("status", 0), headers.get("content-type"), bytes(body), cut
