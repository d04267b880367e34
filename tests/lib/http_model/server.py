# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server that stands in for a user's: ready after a while, then it does as each request
says. Standard library only.

    READY_AFTER   seconds until /health answers 200; "never"
    START         "exit": ends at once, with a last line
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BEGAN = time.monotonic()
PORT = int(os.environ["PORT"])
state = {"sick": False, "dead": False, "canceled": 0, "seen": 0}


def attempt(what):
    """What came of it, in words: a sandbox shows in what fails."""
    try:
        return {"ok": what()}
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error)}


def read(path):
    with open(path, "rb") as file:
        return file.read(100).decode(errors="replace")


def write(path):
    with open(path, "wb") as file:
        file.write(b"mine")
    return "written"


def connect(host, port):
    with socket.create_connection((host, port), timeout=3):
        return "connected"


def connect_unix(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        return "connected"


def forks(count):
    made = []
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                time.sleep(600)
                os._exit(0)
            made.append(pid)
        return len(made)
    finally:
        for pid in made:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def kill(pid):
    os.kill(pid, 0)
    return "there"


class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    def answer(self, status, body, kind="application/json", headers=()):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        ready = os.environ.get("READY_AFTER", "0")
        is_ready = ready != "never" and time.monotonic() - BEGAN >= float(ready)
        if self.path == "/health":
            good = is_ready and not state["sick"]
            self.answer(200 if good else 503, {"ready": good})
        elif self.path == "/alive":
            self.answer(500 if state["dead"] else 200, {})
        elif self.path == "/state":
            self.answer(200, state)
        else:
            self.answer(404, {"detail": f"no {self.path}"})

    def do_POST(self):
        state["seen"] += 1
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        is_json = self.headers.get("Content-Type", "").startswith("application/json")
        order = json.loads(body) if is_json and body else {}
        order = order if isinstance(order, dict) else {}
        name = "do_" + order.get("do", "echo") + "_order"
        getattr(self, name)(order, body)

    def do_echo_order(self, order, body):
        if order.get("sleep"):
            time.sleep(order["sleep"])
        kind = self.headers.get("Content-Type", "")
        if not kind.startswith("application/json"):
            self.answer(200, body, kind)
            return
        self.answer(200, {
            "input": json.loads(body) if body else None, "path": self.path, "type": kind,
            "id": self.headers.get("x-baseten-request-id"), "trace": self.headers.get("traceparent"),
            "peer": self.client_address[1], "env": os.environ.get("GREETING")})

    def do_late_204_order(self, order, body):
        self.send_response(204)
        self.send_header("Content-Length", "3")
        self.end_headers()
        time.sleep(0.05)
        self.wfile.write(b"abc")

    def do_status_order(self, order, body):
        self.answer(order["status"], order.get("body", {"detail": "as ordered"}),
                    order.get("kind", "application/json"), order.get("headers", {}).items())

    def do_sse_order(self, order, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i in range(order["pieces"]):
            piece = b"data: %d%s\n\n" % (i, b"x" * order.get("pad", 0))
            try:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                self.wfile.flush()
            except OSError:
                state["canceled"] += 1
                return
            time.sleep(order.get("every", 0))
        self.wfile.write(b"0\r\n\r\n")

    def do_exit_order(self, order, body):
        if order.get("times") and state["seen"] > order["times"]:
            self.answer(200, {})
            return
        print("about to fall over", flush=True)
        os._exit(order.get("code", 7))

    def do_hang_order(self, order, body):
        self.connection.settimeout(600)
        while self.connection.recv(1):  # nothing comes but the end
            pass
        state["canceled"] += 1

    def do_flood_order(self, order, body):
        end = time.monotonic() + order["seconds"]
        lines = 0
        while time.monotonic() < end:
            sys.stdout.write("flood " * 30 + "\n")
            lines += 1
        self.answer(200, {"lines": lines})

    def do_big_order(self, order, body):
        piece = b"z" * (1 << 20)
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(order["mib"] << 20))
        self.end_headers()
        try:
            for _ in range(order["mib"]):
                self.wfile.write(piece)
        except OSError:
            state["canceled"] += 1

    def do_children_order(self, order, body):
        """Leaves processes behind that nobody waits for, one of them in a session of its own."""
        for own_session in (False, True):
            subprocess.Popen(["sleep", order["sleep"]], start_new_session=own_session)
        self.answer(200, {})

    def do_state_order(self, order, body):
        state.update(order["state"])
        self.answer(200, state)

    def do_try_order(self, order, body):
        does = {
            "read": read, "write": write, "connect": connect, "unix": connect_unix, "forks": forks, "kill": kill,
            "list": os.listdir, "memory": lambda mib: len(b"m" * (mib << 20)),
        }
        self.answer(200, {key: attempt(lambda key=key: does[key](*args)) for key, args in order["what"].items()})


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    if os.environ.get("START") == "exit":
        print("cannot find weights.bin", file=sys.stderr, flush=True)
        sys.exit(3)
    server = Server(("127.0.0.1", PORT), Model)
    print(f"listening on {PORT}", flush=True)
    threading.Thread(target=server.serve_forever).start()


main()
