#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A webhook receiver in the standard library alone: verifies every signature of every POST.

    webhook_receiver.py --secret-file FILE [--public-key whpk_…]… [--port N] [--out FILE]

Prints `listening http://127.0.0.1:PORT/` first. Each delivery becomes one JSON line in --out
(default: standard output): id, request_id, a verdict for each scheme, whether the id was seen
before, arrival time, and the body. A POST with a signature missing or wrong is answered 401, and
so is tried again by the sender. A real receiver needs to check one scheme, keeps the ids that it
has seen (delivery is at least once), and answers within the sender's time limit: do slow work
elsewhere. GET answers how many deliveries came and how many of them verified.

The schemes, over the same bytes:
  X-BASETEN-SIGNATURE  v1=<hex HMAC-SHA256 of the body, keyed by the whole secret>[,v1=…]
  webhook-signature    v1,<base64 HMAC-SHA256 of "<id>.<timestamp>.<body>", keyed by the base64
                       bytes behind whsec_>[ v1,…]
                       v1a,<base64 Ed25519 of the same text>[ v1a,…]  (Standard Webhooks 1.0)

`headrace webhooks secret public` shows the public key, GET /v1/webhook_keys has it as a JWK.
"""

import argparse
import base64
import binascii
import hashlib
import hmac
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ed25519_verify import verify as ed25519_verify

TOLERANCE_SECONDS = 300
BODY_BYTES_MAX = 128 << 20


def verify_baseten(secret, header, body):
    expected = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    given = [part.strip() for part in (header or "").split(",")]
    return any(part.startswith("v1=") and hmac.compare_digest(part[3:], expected) for part in given)


def signed_text(message_id, timestamp, body, now):
    """What Standard Webhooks sign; None when the time stamp is missing, odd or old."""
    if not message_id or not (timestamp or "").isdigit():
        return None
    if abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        return None
    return f"{message_id}.{timestamp}.".encode() + body


def signatures(header, scheme):
    """The bytes of each signature of one scheme in the list."""
    for part in (header or "").split(" "):
        name, _, text = part.partition(",")
        if name == scheme:
            try:
                yield base64.b64decode(text, validate=True)
            except binascii.Error:
                continue


def verify_standard(secret, signed, header):
    key = base64.b64decode(secret.removeprefix("whsec_"))
    expected = hmac.new(key, signed, hashlib.sha256).digest()
    return any(hmac.compare_digest(given, expected) for given in signatures(header, "v1"))


def verify_ed25519(public_keys, signed, header):
    keys = [base64.b64decode(key.removeprefix("whpk_")) for key in public_keys]
    return any(ed25519_verify(key, signed, given)
               for given in signatures(header, "v1a") for key in keys)


class Receiver(ThreadingHTTPServer):
    """Checks what it was given keys for. `fail` may answer a status instead of 200, for one
    delivery: the demo and tests use that."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, secret, port=0, on_delivery=None, fail=None, public_keys=()):
        super().__init__(("127.0.0.1", port), Handler)
        self.secret, self.public_keys = secret, list(public_keys)
        self.on_delivery, self.fail = on_delivery, fail
        self.deliveries, self.seen = [], set()
        self.changed = threading.Condition()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def verdicts(self, headers, body, now):
        """One for each scheme that there is a key for."""
        signed = signed_text(headers.get("webhook-id"), headers.get("webhook-timestamp"), body, now)
        header = headers.get("webhook-signature")
        found = {
            "baseten_ok": verify_baseten(self.secret, headers.get("X-BASETEN-SIGNATURE"), body),
            "standard_ok": signed is not None and verify_standard(self.secret, signed, header),
        }
        if self.public_keys:
            found["ed25519_ok"] = (signed is not None and
                                   verify_ed25519(self.public_keys, signed, header))
        return found

    def take(self, delivery):
        with self.changed:
            delivery["repeated"] = delivery["id"] in self.seen
            if delivery["verified"]:
                self.seen.add(delivery["id"])
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
        verdicts = self.server.verdicts(self.headers, body, now)
        verified = all(verdicts.values())
        delivery = {
            "id": self.headers.get("webhook-id"),
            "request_id": self.headers.get("X-BASETEN-REQUEST-ID"),
            **verdicts,
            "verified": verified,
            "at": now,
            "body": json.loads(body) if body and verified else None,
        }
        status = self.server.fail(delivery) if self.server.fail else None
        self.server.take(delivery | {"answered": status or (200 if verified else 401)})
        self.answer(status or (200 if verified else 401))

    def do_GET(self):
        with self.server.changed:
            deliveries = len(self.server.deliveries)
            verified = sum(one["verified"] for one in self.server.deliveries)
        self.answer(200, json.dumps({"deliveries": deliveries, "verified": verified}).encode())

    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if body:
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--secret-file", required=True, help="file whose first line is the whsec_… secret")
    parser.add_argument("--public-key", action="append", default=[], help="whpk_…; may be repeated")
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

    server = Receiver(secret, options.port, write, public_keys=options.public_key)
    print(f"listening {server.url}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
