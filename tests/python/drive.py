# SPDX-License-Identifier: Apache-2.0
"""A worker's side of the talk with host-py, for tests: starts it, loads a model, asks it.

    with drive.Host({"model/model.py": TEXT}, config={...}) as host:
        host.ask(b'{"a": 1}').data
"""

import array
import atexit
import collections
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.path.join(ROOT, "workers", "host_py")
sys.path.insert(0, PROGRAM)

from headrace_host import frames  # noqa: E402
from headrace_host.link import Gone, Link, memfd_of  # noqa: E402

WAIT_SECONDS = 60

CACHE = tempfile.mkdtemp(prefix="host-py-cache-")  # of all hosts of this process
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

CONFIG = {
    "model_module_dir": "model",
    "model_class_filename": "model.py",
    "model_class_name": "Model",
    "bundled_packages_dir": "packages",
    "data_dir": "data",
    "python_version": "py3%d" % sys.version_info[1],
    "requirements": [],
    "runtime": {"predict_concurrency": 1, "streaming_read_timeout": 60},
    "secrets": {},
}


def write_files(folder, files):
    for name, text in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


class Answer:
    """All that came for one request: the pieces, then the final EVT."""

    def __init__(self, pieces, final):
        self.pieces = [piece.get("data", b"") for piece in pieces]
        self.piece_type = pieces[0].get("output_type", "") if pieces else ""
        self.kind = final["kind"]
        self.data = final.get("data", b"")
        self.media_type = final.get("output_type", "") or "application/json"
        self.status = final.get("http_status", 0)
        self.error_class = final.get("error_class", 0)
        self.text = final.get("text", "")

    def json(self):
        return json.loads(self.data)


class Host:
    def __init__(self, files, config=None, cache=None, env=None, **load):
        self.folder = tempfile.mkdtemp(prefix="host-py-test-")
        self.cache = cache or CACHE
        model = os.path.join(self.folder, "app")
        os.makedirs(model)
        if isinstance(files, str):
            shutil.copytree(files, model, dirs_exist_ok=True)
        else:
            write_files(model, files)
        merged = dict(CONFIG, **(config or {}))
        merged["runtime"] = dict(CONFIG["runtime"], **(config or {}).get("runtime", {}))
        settings = dict({"truss": merged}, **load.pop("settings", {}))
        self.log_path = os.path.join(self.folder, "log")
        ours, theirs = socket.socketpair()
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-IS", PROGRAM],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(os.environ, **(env or {})),
                preexec_fn=lambda: os.dup2(theirs.fileno(), 3),
                pass_fds=(3, theirs.fileno()),
            )
        theirs.close()
        self.link = Link(ours)
        self.inbox = collections.deque()
        self.pieces = {}
        self.finals = {}
        self.last_id = 0
        self.loading_count = 0
        self.hello = self.frame(frames.HELLO)
        self.link.send_now(
            frames.LOAD,
            engine="python",
            dir=model,
            settings=json.dumps(settings),
            cache_dir=self.cache,
            deployment="d1",
            **load,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.link.sock.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- frames ----

    def next(self, seconds=WAIT_SECONDS):
        """The next frame that is no STATS; None: the host has closed, TimeoutError: nothing came."""
        end = time.monotonic() + seconds
        while True:
            try:
                frame = self.link.next()
                if frame is None:
                    if not select.select([self.link.sock], [], [], max(0, end - time.monotonic()))[0]:
                        raise TimeoutError("no frame came; log:\n" + self.log())
                    self.link.receive()
                    continue
            except Gone:
                return None
            kind, fields = frame
            if kind == frames.EVT and fields.get("data_fd_size"):
                fields["data"] = self.link._take_fd(fields["data_fd_size"])
            if kind == frames.EVT and fields["kind"] == frames.LOADING:
                self.loading_count += 1
                continue
            if kind != frames.STATS:
                return kind, fields

    def frame(self, kind):
        got = self.next()
        assert got is not None, "the host has closed; log:\n" + self.log()
        assert got[0] == kind, (got, self.log())
        return got[1]

    def ready(self):
        self.ready_frame = self.frame(frames.READY)
        return self

    def bye(self):
        return self.frame(frames.BYE)

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    # ---- requests ----

    def send(self, body, **fields):
        """Sends a request and returns its id."""
        self.last_id += 1
        fields = dict(fields, id=self.last_id)
        if len(body) <= frames.INLINE_MAX:
            self.link.send_now(frames.REQ, input=body, **fields)
            return self.last_id
        assert self.link.flush()
        fd = memfd_of(body)
        raw = frames.encode(frames.REQ, dict(fields, input_fd_size=len(body)))
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        assert self.link.sock.sendmsg([raw], beside) == len(raw)
        os.close(fd)
        return self.last_id

    def send_tunnel(self, body, sock, **fields):
        """A request of a websocket, with its connection beside it."""
        self.last_id += 1
        assert self.link.flush()
        raw = frames.encode(frames.REQ, dict(fields, id=self.last_id, input=body, tunnel=True))
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
        assert self.link.sock.sendmsg([raw], beside) == len(raw)
        sock.close()
        return self.last_id

    def answer(self, id, seconds=WAIT_SECONDS):
        while id not in self.finals:
            got = self.next(seconds)
            assert got is not None, "the host has closed; log:\n" + self.log()
            kind, evt = got
            assert kind == frames.EVT, got
            if evt["kind"] == frames.TOKENS:
                self.pieces.setdefault(evt["id"], []).append(evt)
            else:
                self.finals[evt["id"]] = evt
        return Answer(self.pieces.pop(id, []), self.finals.pop(id))

    def ask(self, body, seconds=WAIT_SECONDS, **fields):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return self.answer(self.send(body, **fields), seconds)

    def cancel(self, id):
        self.link.send_now(frames.CANCEL, id=id)
