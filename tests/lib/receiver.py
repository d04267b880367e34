# SPDX-License-Identifier: Apache-2.0
"""A webhook receiver for tests: keeps every POST, answers what it is told to, checks signatures.

The checks are written from the specifications, not from the sender's code.
"""

import base64
import hashlib
import hmac
import http.server
import json
import pathlib
import sys
import threading
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "examples"))

from ed25519_verify import verify as ed25519_verify  # noqa: E402


class Post:
    def __init__(self, path, headers, body):
        self.path, self.headers, self.body = path, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    def baseten_ok(self, secret):
        want = "v1=" + hmac.new(secret.encode(), self.body, hashlib.sha256).hexdigest()
        got = self.headers.get("x-baseten-signature", "").split(",")
        return any(hmac.compare_digest(want, one) for one in got)

    def standard_ok(self, secret):
        key = base64.b64decode(secret.removeprefix("whsec_"))
        head = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode()
        want = base64.b64encode(hmac.new(key, head + self.body, hashlib.sha256).digest()).decode()
        got = self.headers.get("webhook-signature", "").split(" ")
        return any(hmac.compare_digest("v1," + want, one) for one in got)

    def ed25519_ok(self, public_key):
        head = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode()
        key = base64.b64decode(public_key.removeprefix("whpk_"))
        got = self.headers.get("webhook-signature", "").split(" ")
        return any(ed25519_verify(key, head + self.body, base64.b64decode(one[4:]))
                   for one in got if one.startswith("v1a,"))


class Receiver:
    """with Receiver() as receiver: … receiver.url("/path"), receiver.posts

    answers maps a path to a list: each POST takes the next one, the last one stays. An answer is a
    status, or (status, headers), or (status, headers, body). A path in `held` is answered once its
    event is set.
    """

    def __init__(self):
        self.posts, self.answers, self.held, self.lock = [], {}, {}, threading.Lock()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = receiver.take(Post(self.path, headers, body))
                answer = answer if isinstance(answer, tuple) else (answer,)
                status, headers, body = (*answer, {}, b"")[:3] if len(answer) < 2 else (*answer, b"")[:3]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, address):
                pass  # a sender that was killed, or had heard enough

        self.server = Server(("127.0.0.1", 0), Handler)

    def take(self, post):
        with self.lock:
            post.at = time.monotonic()
            self.posts.append(post)
            plan = self.answers.get(post.path, [200])
            answer = plan.pop(0) if len(plan) > 1 else plan[0]
            held = self.held.get(post.path)
        if held is not None:
            held.wait(60)
        return answer

    def url(self, path="/hook"):
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def at(self, path):
        with self.lock:
            return [post for post in self.posts if post.path == path]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.server.shutdown()
        self.server.server_close()
