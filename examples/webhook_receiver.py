#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A webhook receiver in the standard library alone: verifies both signatures of every POST.

    webhook_receiver.py [--port N] [--secret-file FILE] [--out FILE]

Prints `listening http://127.0.0.1:PORT/` first. Each accepted delivery becomes one JSON line in
--out (default: standard output): id, request_id, both verdicts, arrival time, and the body. A
POST whose signatures do not verify is answered 401, and so is retried by the sender; a receiver
must answer within the sender's time limit, so do slow work elsewhere.

The two schemes, over the same bytes:
  X-BASETEN-SIGNATURE  v1=<hex HMAC-SHA256 of the body, keyed by the whole secret>[,v1=…]
  webhook-signature    v1,<base64 HMAC-SHA256 of "<id>.<timestamp>.<body>", keyed by the base64
                       bytes behind whsec_>[ v1,…]       (Standard Webhooks 1.0)
"""

import argparse
import base64
import hashlib
import hmac
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOLERANCE_SECONDS = 300
BODY_BYTES_MAX = 128 << 20


def verify_baseten(secret, header, body):
    expected = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    given = [part.strip() for part in (header or "").split(",")]
    return any(part.startswith("v1=") and hmac.compare_digest(part[3:], expected) for part in given)


def verify_standard(secret, message_id, timestamp, header, body, now):
    if not message_id or not (timestamp or "").isdigit():
        return False
    if abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    given = (header or "").split(" ")
    return any(part.startswith("v1,") and hmac.compare_digest(part[3:], expected) for part in given)


class Receiver(ThreadingHTTPServer):
    """Also used by the tests: `fail` may answer a status instead of 200, for one delivery."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, secret, port=0, on_delivery=None, fail=None):
        super().__init__(("127.0.0.1", port), Handler)
        self.secret, self.on_delivery, self.fail = secret, on_delivery, fail
        self.deliveries = []
        self.changed = threading.Condition()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def take(self, delivery):
        with self.changed:
            self.deliveries.append(delivery)
            self.changed.notify_all()
        if self.on_delivery:
            self.on_delivery(delivery)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        size = int(self.headers.get("Content-Length", "0"))
        if size > BODY_BYTES_MAX:
            return self.answer(413)
        body = self.rfile.read(size)
        now = time.time()
        delivery = {
            "id": self.headers.get("webhook-id"),
            "request_id": self.headers.get("X-BASETEN-REQUEST-ID"),
            "baseten_ok": verify_baseten(self.server.secret, self.headers.get("X-BASETEN-SIGNATURE"), body),
            "standard_ok": verify_standard(
                self.server.secret, self.headers.get("webhook-id"), self.headers.get("webhook-timestamp"),
                self.headers.get("webhook-signature"), body, now),
            "at": now,
            "body": json.loads(body) if body else None,
        }
        status = self.server.fail(delivery) if self.server.fail else None
        self.server.take(delivery | {"answered": status or 200})
        if status:
            return self.answer(status)
        return self.answer(200 if delivery["baseten_ok"] and delivery["standard_ok"] else 401)

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--secret-file", required=True, help="file whose first line is the whsec_… secret")
    parser.add_argument("--out", help="file that deliveries are appended to")
    options = parser.parse_args()
    with open(options.secret_file) as file:
        secret = file.readline().strip()
    out = open(options.out, "a") if options.out else sys.stdout
    lock = threading.Lock()

    def write(delivery):
        with lock:
            out.write(json.dumps(delivery) + "\n")
            out.flush()

    server = Receiver(secret, options.port, write)
    print(f"listening {server.url}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
