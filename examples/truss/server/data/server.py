# SPDX-License-Identifier: Apache-2.0
"""A server of your own: whatever speaks HTTP can be a model. This one counts words.

POST /answer {"text": …}                   {"words": 3}
POST /answer {"text": …, "stream": true}   a word a piece, as server-sent events
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def say(self, status, body, media_type="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def say_pieces(self, words):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in words:
            piece = b"data: %s\n\n" % json.dumps(word).encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self):
        known = self.path == "/health"
        self.say(200 if known else 404, b'{"ready": true}' if known else b'{"error": "no such path"}')

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/answer":
            return self.say(404, b'{"error": "no such path"}')
        try:
            asked = json.loads(body)
            words = asked["text"].split()
        except (ValueError, KeyError, TypeError, AttributeError):
            return self.say(422, b'{"error": "there is no text in this"}')
        if asked.get("stream"):
            return self.say_pieces(words)
        return self.say(200, json.dumps({"words": len(words)}).encode())

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, required=True)
    ThreadingHTTPServer(("127.0.0.1", options.parse_args().port), Handler).serve_forever()
