# SPDX-License-Identifier: Apache-2.0
"""An OTLP/HTTP collector for tests: takes JSON on /v1/traces and keeps the spans.

    with Collector() as collector:
        … HEADRACE_OTLP_ENDPOINT=collector.endpoint …
        spans = collector.trace(trace_id)
"""

import http.server
import json
import threading


class Span:
    """One span: its service and, with Python's names, what the JSON says about it."""

    def __init__(self, service, data):
        self.service, self.name, self.kind = service, data["name"], data["kind"]
        self.trace_id, self.id = data["traceId"], data["spanId"]
        self.parent_id = data.get("parentSpanId")
        self.start_ns, self.end_ns = int(data["startTimeUnixNano"]), int(data["endTimeUnixNano"])
        self.failed = data.get("status", {}).get("code") == 2
        self.attributes = {}
        for attribute in data.get("attributes", []):
            ((kind, value),) = attribute["value"].items()
            self.attributes[attribute["key"]] = int(value) if kind == "intValue" else value

    def __repr__(self):
        return (f"{self.service}/{self.name} {self.id} below {self.parent_id}, "
                f"{(self.end_ns - self.start_ns) / 1e6:.1f} ms, {self.attributes}")


class Collector:
    def __init__(self):
        self.spans, self.posts, self.lock = [], 0, threading.Lock()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces", self.path
                collector.take(json.loads(body))
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def take(self, body):
        with self.lock:
            self.posts += 1
            for resource in body["resourceSpans"]:
                about = {a["key"]: a["value"].get("stringValue")
                         for a in resource["resource"]["attributes"]}
                for scope in resource["scopeSpans"]:
                    self.spans += [Span(about["service.name"], span) for span in scope["spans"]]

    def trace(self, trace_id):
        with self.lock:
            return [span for span in self.spans if span.trace_id == trace_id]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
