# SPDX-License-Identifier: Apache-2.0
"""A webhook receiver for tests: keeps every POST, answers what it is told to, checks signatures.

The checks are written from the two specifications, not from the sender's code.
"""

import base64
import hashlib
import hmac
import http.server
import json
import threading


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


class Receiver:
    """with Receiver() as receiver: … receiver.url("/path"), receiver.posts

    answers maps a path to a list of statuses: each POST takes the next one, the last one stays.
    """

    def __init__(self):
        self.posts, self.answers, self.lock = [], {}, threading.Lock()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status = receiver.take(Post(self.path, headers, body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def take(self, post):
        with self.lock:
            self.posts.append(post)
            plan = self.answers.get(post.path, [200])
            return plan.pop(0) if len(plan) > 1 else plan[0]

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
