# SPDX-License-Identifier: Apache-2.0
"""Goal: a chain that was declared runs durably: its steps are jobs, a run goes on where it was when its
coordinator, a worker or the broker is killed, no step has two jobs, and a cancel leaves nothing running.
Method: one stack, chains over the simulated engine, which answers {"output": its input, "sim": …}."""

import http.server
import json
import os
import pathlib
import signal
import tempfile
import threading
import time

import pytest

from conftest import run_stack
import chain_kills
from stack import command_line, descendants, wait_until

NOBODYS_RUN = "01900000-0000-7000-8000-000000000000"
LINEAR = {"steps": {
    "one": {"model": "echo", "input": {"text": "{{input.text}}"}},
    "two": {"model": "echo", "input": {"text": "{{steps.one.output.output.text}}!"}},
    "three": {"model": "echo", "input": ["{{steps.two.output.output.text}}", "{{run.id}}"]}},
    "output": "{{steps.three.output.output}}"}
MAP = {"steps": {
    "each": {"model": "echo", "map": "{{input.items}}", "max_parallel": 32,
             "input": {"n": "{{item}}", "i": "{{index}}", "sim": {"sleep_ms": "{{input.ms}}"}}},
    "join": {"model": "echo", "input": {"all": "{{steps.each.output}}"}}},
    "output": "{{steps.join.output.output.all}}"}
FAILS = {"steps": {
    "bad": {"model": "echo", "input": {"sim": {"fail": "bad_input"}}},
    "slow": {"model": "echo", "input": {"sim": {"sleep_ms": 60000}}},
    "after": {"model": "echo", "input": "{{steps.bad.output}}", "needs": ["slow"]}}}
PASSES = {"steps": {
    "bad": {"model": "echo", "input": {"sim": {"fail": "bad_input"}}, "on_error": "skip"},
    "after": {"model": "echo", "input": {"was": "{{steps.bad.state}}", "why": "{{steps.bad.error.class}}"}}},
    "output": "{{steps.after.output.output}}"}
OUTER = {"steps": {"inner": {"model": "linear", "input": {"text": "{{input.text}}"}}},
         "output": "{{steps.inner.output.0}}"}
SELF = {"steps": {"again": {"model": "self", "input": {}}}}
PADDED = {"steps": {"a": {"model": "echo", "input": {"sim": {"output_bytes": "{{input.bytes}}"}}}}}
LANGUAGE = {"steps": {
    "each": {"model": "echo", "map": "${ [$input.n[] | select(. > 2)] }", "input": {"n": "${ $item * 10 }", "i": "{{index}}"}},
    "after": {"model": "echo", "when": "${ $steps.each.output | length > 1 }",
              "input": {"sum": "${ [$steps.each.output[].output.n] | add }", "run": "{{run.id}}"}},
    "kind": {"transform": {"big": "${ $input.n[0] > 10 }", "n": "{{input.n}}"}},
    "large": {"model": "echo", "when": "{{steps.kind.output.big}}", "input": {"was": "large"}},
    "small": {"model": "echo", "unless": "{{steps.kind.output.big}}", "input": {"sim": {"fail": "bad_input"}},
              "on_error": "fallback", "fallback": {"output": {"was": "small"}}},
    "one": {"transform": "${ $steps.large.output // $steps.small.output | .output.was }"},
    "count": {"model": "echo", "when": "{{input.from?}}", "input": {"n": "${ ($item.output.n // $input.from) * 2 }"},
              "loop": {"until": "${ $item.output.n > 100 }", "max_iterations": 6}}},
    "output": "${ if .loop then last(range(1e18)) else {state: $steps.after.state, sum: $steps.after.output.output.sum,"
              " one: $steps.one.output, count: $steps.count.output.output.n} end }"}
ROUTED = {"steps": {
    "route": {"switch": "{{input.to}}", "cases": {"a": "left", "7": ["right"], "null": []}},
    "left": {"model": "echo", "input": "L"}, "right": {"model": "echo", "input": "R"}},
    "output": ["{{steps.left.state}}", "{{steps.right.state}}", "{{steps.route.output}}"]}
UNDONE = {"steps": {
    "book": {"model": "echo", "input": {"id": "{{input.id}}"}, "compensate": "unbook"},
    "beside": {"model": "echo", "input": {"sim": {"sleep_ms": 60000}}, "compensate": "not-beside"},
    "pay": {"model": "echo", "input": {"sim": {"fail": "bad_input"}}, "needs": ["book"]},
    "unbook": {"model": "echo", "input": {"undo": "{{steps.book.output.output.id}}"}},
    "not-beside": {"model": "echo", "input": 1}}, "output": 1}
CALLS = {"secrets": ["TOKEN"], "steps": {
    "get": {"http": {"url": "http://127.0.0.1:PORT/{{input.path}}", "headers": {"X-Run": "{{run.id}}", "Authorization": {
        "secret": "TOKEN", "prefix": "Bearer "}}, "max_bytes": 2000}, "timeout_seconds": 5, "retry": {"max_attempts": 3, "initial_delay_ms": 50}},
    "put": {"http": {"method": "PUT", "url": "http://127.0.0.1:PORT/echo", "body": {"got": "{{item}}"}, "statuses": [201]},
            "map": "{{steps.get.output.body.items?}}", "needs": ["get"]}},
    "output": ["{{steps.get.output}}", "{{steps.put.output}}"]}
ESCAPES = {"steps": {"get": {"http": {"url": "{{input.url}}"}, "on_error": "skip", "retry": {"max_attempts": 1}}},
           "output": ["{{steps.get.error.class}}", "{{steps.get.error.message}}"]}
LATER = {"steps": {"wait": {"wait": 3}, "get": {"http": {"url": "{{input.url}}"}, "needs": ["wait"]}}, "output": "{{steps.get.output.status}}"}
STREAMS = {"steps": {
    "first": {"model": "echo", "input": {"sim": {"sleep_ms": 600}}},
    "tell": {"model": "echo", "input": {"sim": {"pieces": 5, "piece_gap_ms": 100}}, "stream": True, "needs": ["first"]},
    "after": {"transform": {"text": "{{steps.tell.output}}"}}}, "output": "{{steps.after.output}}"}
STANDS_IN = {"steps": {
    "big": {"model": "echo", "input": {"sim": "{{input.sim}}"}, "on_error": "fallback", "fallback_step": "small"},
    "small": {"model": "echo", "input": {"for": "{{steps.big.error.class}}"}},
    "after": {"model": "echo", "input": {"was": "{{steps.big.output}}"}}},
    "output": ["{{steps.big.output.output.for?}}", "{{steps.small.state}}"]}
CHECKED = {"steps": {
    "told": {"model": "echo", "input": "{{input.tell}}", "on_error": "skip",
             "output_schema": {"required": ["output"], "properties": {"output": {"type": "string", "maxLength": 5}}}},
    "strict": {"transform": {"n": "{{input.n}}"}, "output_schema": {"properties": {"n": {"type": "integer"}}}}},
    "output": ["{{steps.told.state}}", "{{steps.told.error.class?}}", "{{steps.told.error.message?}}", "{{steps.strict.output.n}}"]}
CACHED = {"steps": {
    "once": {"model": "echo", "input": {"q": "{{input.q}}", "sim": {"output_bytes": "{{input.bytes}}"}}, "cache": {"ttl_seconds": 600}},
    "each": {"model": "echo", "map": "{{input.items}}", "input": {"n": "{{item}}"}, "cache": {"ttl_seconds": 600}},
    "after": {"model": "echo", "input": ["{{input.q}}", "{{steps.each.output}}"], "needs": ["once"]}},
    "output": ["{{steps.once.output}}", "{{steps.each.output}}"]}
PNG = {"sim": {"pieces": 4, "piece_bytes": "{{input.bytes}}", "media_type": "image/png"}}
BODIES = {"steps": {
    "make": {"model": "echo", "input": PNG},
    "hand": {"model": "echo", "input": "{{steps.make.output}}", "cache": {"ttl_seconds": 600}},
    "wrong": {"model": "echo", "input": {"image": "{{steps.make.output}}"}, "when": "{{input.wrong?}}", "on_error": "skip"},
    "inner": {"model": "linear", "input": "{{steps.make.output}}", "when": "{{input.wrong?}}", "on_error": "skip"}},
    "output": ["{{steps.hand.state}}", "{{steps.wrong.error?}}", "{{steps.inner.error.message?}}"]}
HASTY = {"timeout_seconds": 1, "steps": {"slow": {"model": "echo", "map": [1, 2], "input": {"sim": {"sleep_ms": 60000}}}}}
VERSION = {"steps": {"ask": {"approval": 1, "timeout_seconds": 120, "when": "{{input.hold?}}"},
                     "a": {"model": "echo", "input": 1, "needs": ["ask"]}}, "output": "one"}
LONELY = {"steps": {"a": {"model": "nobody", "input": 1}}}
SLOWLY = {"steps": {"each": {"model": "echo", "map": "{{input.items}}", "max_parallel": 2,
                             "input": {"n": "{{item}}", "sim": {"sleep_ms": 150}}}}}
GATED = {"steps": {name: step for n in range(7) for name, step in (
    (f"s{n}", {"model": "echo", "input": n, "needs": [f"ask{n - 1}"] if n else []}),
    (f"ask{n}", {"approval": n, "timeout_seconds": 600, "needs": [f"s{n}"]}))}, "output": 1}
GATED["steps"]["hold"] = {"model": "echo", "input": {"sim": {"sleep_ms": 600000}}, "on_error": "skip"}
DOOMED = {"steps": {"each": {"model": "doomed", "map": [1, 2, 3], "input": {"sim": {"sleep_ms": 60000}}},
                    "beside": {"model": "echo", "input": {"sim": {"sleep_ms": 60000}}}}, "output": 1}


@pytest.fixture(scope="module")
def stack(request):
    def begin(stack):
        stack.push_sim("echo", slots=32)
        stack.push_sim("doomed", slots=1)
        stack.push_sim("counted", slots=1, replicas=2)
        push(stack, "kills", chain_kills.chain("counted", 15))
        push(stack, "undone-slowly", chain_kills.undone_chain("counted", 200))
        for name, chain in (("slowly", SLOWLY), ("doomed-run", DOOMED),
                            ("linear", LINEAR), ("map", MAP), ("fails", FAILS), ("passes", PASSES),
                            ("outer", OUTER), ("self", SELF), ("lonely", LONELY), ("padded", PADDED), ("language", LANGUAGE), ("routed", ROUTED), ("undone", UNDONE), ("hasty", HASTY), ("cached", CACHED), ("bodies", BODIES), ("checked", CHECKED), ("stands-in", STANDS_IN), ("streams", STREAMS)):
            push(stack, name, chain)
        for name in ("kills", "undone-slowly", "slowly", "doomed-run", "linear", "map", "fails", "passes", "outer", "self", "lonely", "padded", "language", "routed", "undone", "hasty", "cached", "bodies", "checked", "stands-in", "streams"):
            wait_until(f"{name} to be ready", lambda: status_of(stack, name) == "ACTIVE", 60)
        for name, chain in (("versions", VERSION), ("gated", GATED)):
            push(stack, name, chain)
            wait_until(f"{name} to be ready", lambda: status_of(stack, name) == "ACTIVE", 60)

    with tempfile.TemporaryDirectory() as folder:
        journal = pathlib.Path(folder) / "journal"
        for stack in run_stack(request, env={"HEADRACE_RESTART_DELAY": "50ms", "HEADRACE_SIM_JOURNAL": journal, "HEADRACE_HTTP_ALLOW": "127.0.0.1"}):
            stack.journal = journal
            begin(stack)
            yield stack


def push(stack, name, chain):
    reply = stack.http("POST", f"/v1/models/{name}/deployments", {"engine": "chain", "settings": chain})
    assert reply.status == 201, reply
    return reply.json


def status_of(stack, name):
    rows = stack.sql("SELECT d.status FROM headrace.deployment d JOIN headrace.model m ON m.id = d.model_id "
                     "WHERE m.name = :'a1'", name)
    assert rows[0][0] not in ("FAILED", "DEPLOY_FAILED"), stack.tell()
    return rows[0][0]


def begin(stack, chain, given):
    reply = stack.http("POST", f"/chain/{chain}/production/async_run_remote", {"model_input": given})
    assert reply.status == 201, reply
    return reply.json["request_id"]


def steps_of(stack, run):
    return stack.sql("SELECT step, item, status, attempts FROM headrace_v1.chain_steps WHERE run_id = :'a1' "
                     "ORDER BY accepted_at, step, item", run)


def check_each_once(stack, run, steps):
    """As many jobs as steps, all over, each with one result; and the run knows of no other."""
    rows = steps_of(stack, run)
    assert len(rows) == steps and {row[2] for row in rows} == {"SUCCEEDED"}
    assert len({(row[0], row[1]) for row in rows}) == steps
    ((results,),) = stack.sql("SELECT count(*) FROM headrace.chain_step s JOIN headrace.job_result r "
                              "ON r.job_id = s.job_id WHERE s.run_id = :'a1'", run)
    assert int(results) == steps
    return rows


def test_linear(stack):
    run = begin(stack, "linear", {"text": "a"})
    ended = stack.wait_final(run)
    assert ended["status"] == "SUCCEEDED", (ended, stack.tell())
    assert ended["chain_id"] and "model_id" not in ended, ended
    assert stack.result(run).json == ["a!", run]
    assert [row[0] for row in check_each_once(stack, run, 3)] == ["one", "two", "three"]
    ((chain, status, jobs),) = stack.sql("SELECT chain, status, jobs FROM headrace_v1.chain_runs "
                                         "WHERE run_id = :'a1'", run)
    assert (chain, status, jobs) == ("linear", "SUCCEEDED", "3")
    wait_until("the run to be closed", lambda: stack.sql(
        "SELECT closed_at IS NOT NULL FROM headrace.chain_run WHERE run_id = :'a1'", run)[0][0] == "t")


def test_sync(stack):
    reply = stack.http("POST", "/chain/linear/production/run_remote", {"text": "b"})
    assert reply.status == 200 and reply.json[0] == "b!", reply
    for name, text in (("nothing", "there is no chain 'nothing'"), ("echo", "'echo' is a model and no chain")):
        for call, body in (("run_remote", {"text": "b"}), ("async_run_remote", {"model_input": 1})):
            reply = stack.http("POST", f"/chain/{name}/production/{call}", body)
            assert reply.status == 404 and text in reply.body.decode(), reply


def test_map_and_join(stack):
    run = begin(stack, "map", {"items": list(range(100)), "ms": 1})
    assert stack.wait_final(run)["status"] == "SUCCEEDED", stack.tell()
    answer = stack.result(run).json
    assert [one["output"]["n"] for one in answer] == list(range(100))
    check_each_once(stack, run, 101)
    empty = begin(stack, "map", {"items": [], "ms": 1})
    assert stack.wait_final(empty)["status"] == "SUCCEEDED"
    assert stack.result(empty).json == []


def test_large_values(stack):
    """An input and an output over what a message takes go by the blob store."""
    text = "x" * 100_000
    run = begin(stack, "linear", {"text": text})
    assert "a text of a template is over its limit of 65536 bytes" in error_of(stack, run)
    run = begin(stack, "map", {"items": [{"pad": text}, {"pad": text}], "ms": 1})
    assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
    assert [one["output"]["n"]["pad"] for one in stack.result(run).json] == [text, text]
    run = begin(stack, "padded", {"bytes": 700_000})
    assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
    assert len(stack.result(run).json["pad"]) > 650_000
    assert stack.sql("SELECT r.output_blob IS NOT NULL FROM headrace.chain_step s JOIN headrace.job_result r "
                     "ON r.job_id = s.job_id WHERE s.run_id = :'a1'", run) == [["t"]]


def error_of(stack, run, error_class=None):
    ended = stack.wait_final(run)
    assert ended["status"] == "FAILED", ended
    if error_class:
        assert stack.sql("SELECT error_class, reason FROM headrace_v1.dead_jobs WHERE id = :'a1'",
                         run) == [error_class]
    return stack.sql("SELECT error_message FROM headrace.job WHERE id = :'a1'", run)[0][0]


def test_failures_name_the_step(stack):
    began = time.monotonic()
    run = begin(stack, "fails", {})
    assert error_of(stack, run, ["step_failed", "step_failed"]).startswith("step bad: FAILED (BAD_INPUT)")
    wait_until("the other step to be canceled", lambda: sorted(
        (row[0], row[2]) for row in steps_of(stack, run)) == [("bad", "FAILED"), ("slow", "CANCELED")], 20)
    assert time.monotonic() - began < 30
    run = begin(stack, "map", {"items": 5, "ms": 1})
    assert error_of(stack, run, ["bad_input", "bad_input"]) == "step each: map is over a number, it must be a list"
    run = begin(stack, "map", {"ms": 1})
    assert error_of(stack, run) == "step each: map: input.items: there is no 'items'"
    run = begin(stack, "lonely", {})
    assert error_of(stack, run) == "step a: there is no model 'nobody' with environment 'production'"
    run = begin(stack, "passes", {})
    assert stack.wait_final(run)["status"] == "SUCCEEDED"
    assert stack.result(run).json == {"was": "failed", "why": "BAD_INPUT"}


def test_a_chain_in_a_chain(stack):
    run = begin(stack, "outer", {"text": "deep"})
    assert stack.wait_final(run)["status"] == "SUCCEEDED", stack.tell()
    assert stack.result(run).json == "deep!"
    assert "over 8 deep" in error_of(stack, begin(stack, "self", {}))


def test_the_language(stack):
    """Expressions, transforms, fallbacks and loops; also an expression that does not end: it ends its run alone."""
    loop = begin(stack, "language", {"n": [3], "loop": True})
    run = begin(stack, "language", {"n": [1, 2, 3, 4, 5], "from": 20})
    assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
    assert stack.result(run).json == {"state": "succeeded", "sum": 120, "one": "small", "count": 160}
    assert sorted(row[:3] for row in steps_of(stack, run)) == sorted(
        [["each", str(i), "SUCCEEDED"] for i in range(3)] + [["count", str(i), "SUCCEEDED"] for i in range(3)]
        + [["after", "0", "SUCCEEDED"], ["small", "0", "FAILED"]])
    assert step_of(stack, run, "kind")["status"] == "NO_JOB" and step_of(stack, run, "large")["status"] == "NOT_RUN"
    run = begin(stack, "language", {"n": [11, 1]})
    assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
    assert stack.result(run).json == {"state": "skipped", "sum": None, "one": "large", "count": None}
    assert error_of(stack, loop) == "output: jq: the expression took over 2 s of processor time"
    assert error_of(stack, begin(stack, "language", {"n": [3, {}]})).startswith("step each: input: jq: object ({}) and number")
    assert error_of(stack, begin(stack, "language", {"n": [], "from": 1})) == (
        "step count: loop.until did not hold after 6 iterations")
    reply = stack.http("POST", "/v1/models/worse/deployments", {"engine": "chain", "settings": {"steps": {
        "a": {"model": "m", "input": {"x": "${ foo(1) }"}}}}})
    assert reply.status == 400 and "step a: input.x: jq: line 1: foo/1 is not defined" in reply.body.decode(), reply


def test_a_switch(stack):
    runs = {json.dumps(to): begin(stack, "routed", {"to": to}) for to in ("a", 7, None, "b")}
    for to, output in (('"a"', ["succeeded", "skipped", "a"]), ("7", ["skipped", "succeeded", 7]), ("null", ["skipped", "skipped", None])):
        assert stack.wait_final(runs[to])["status"] == "SUCCEEDED", (stack.job(runs[to]), stack.tell())
        assert stack.result(runs[to]).json == output
    assert error_of(stack, runs['"b"']) == "step route: switch came to 'b', no case is that, and there is no default"
    reply = stack.http("POST", "/v1/models/worse/deployments", {"engine": "chain", "settings": {"steps": {
        "a": {"switch": 1, "cases": {"x": "b"}}}}})
    assert reply.status == 400 and "step a: cases.x: there is no step 'b'" in reply.body.decode(), reply


def test_compensation(stack):
    """What succeeded is undone before the run is over; a retry of it begins anew, with the same end."""
    run = begin(stack, "undone", {"id": 7})
    assert error_of(stack, run, ["step_failed", "step_failed"]).startswith("step pay: FAILED (BAD_INPUT)")
    once = [["beside", "CANCELED"], ["book", "SUCCEEDED"], ["pay", "FAILED"], ["unbook", "SUCCEEDED"]]
    assert sorted(row[0::2] for row in steps_of(stack, run)) == once
    stack.cli("chains", "retry", run)
    wait_until("all of it to run again", lambda: sorted(row[0::2] for row in steps_of(stack, run)) == sorted(2 * once)
               and stack.job(run)["status"] == "FAILED", 30)


class Receiver(http.server.BaseHTTPRequestHandler):
    """GET /flaky: 503 once; /items: JSON; /moved: a redirect; /large; /never: hangs. PUT answers 201 with what it got."""
    seen = []

    def answer(self, status, body, type="application/json", **headers):
        self.send_response(status)
        for name, value in {"Content-Type": type, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.seen.append((self.path, dict(self.headers)))
        if self.path == "/flaky" and sum(path == "/flaky" for path, _ in self.seen) == 1:
            return self.answer(503, b"busy")
        if self.path in ("/items", "/flaky"):
            return self.answer(200, b'{"items": [1, 2]}')
        if self.path == "/moved":
            return self.answer(302, b"", Location="http://127.0.0.1:1/")
        if self.path == "/never":
            time.sleep(20)
        return self.answer(200 if self.path == "/large" else 404, b"x" * 3000, "text/plain")

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, dict(self.headers)))
        self.answer(201, body)

    def do_POST(self):
        self.seen.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self.answer(200, b"{}")

    def log_message(self, *words):
        pass


def test_the_webhook_of_a_run(stack):
    """A run is delivered as a job is: once, when all of it is over, with its output or with the step that failed."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for chain, given, status in (("linear", {"text": "w"}, "SUCCEEDED"), ("fails", {}, "FAILED")):
        reply = stack.http("POST", f"/chain/{chain}/production/async_run_remote", {
            "model_input": given, "webhook_endpoint": f"http://127.0.0.1:{server.server_address[1]}/{chain}"})
        assert reply.status == 201, reply
        run = reply.json["request_id"]
        body = wait_until("its webhook", lambda: next((b for path, b in Receiver.seen if path == f"/{chain}"), None), 30)
        assert body["request_id"] == run and stack.job(run)["status"] == status, body
        if status == "SUCCEEDED":
            assert body["data"] == ["w!", run] and not body["errors"], body
        else:
            assert body["errors"][0]["message"].startswith("step bad: FAILED"), body
        assert sum(path == f"/{chain}" for path, _ in Receiver.seen) == 1
    push(stack, "tells", {**LINEAR, "webhook": f"http://127.0.0.1:{server.server_address[1]}/default"})
    wait_until("tells to be ready", lambda: status_of(stack, "tells") == "ACTIVE", 60)
    own = stack.http("POST", "/chain/tells/production/async_run_remote", {
        "model_input": {"text": "o"}, "webhook_endpoint": f"http://127.0.0.1:{server.server_address[1]}/own"}).json["request_id"]
    run = begin(stack, "tells", {"text": "t"})
    for path, told in (("/own", own), ("/default", run)):
        body = wait_until(f"{path} to be told", lambda: next((b for seen, b in Receiver.seen if seen == path), None), 30)
        assert body["request_id"] == told, body
    assert sum(path == "/default" for path, _ in Receiver.seen) == 1
    server.shutdown()


def test_calls(stack):
    """A step calls a URL, with a secret that is nowhere to be read; what may change is tried again, and addresses
    inside are refused but for those that the operator lists."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    stack.cli("secrets", "set", "TOKEN", input="hunter2")
    push(stack, "calls", json.loads(json.dumps(CALLS).replace("PORT", str(port))))
    push(stack, "escapes", ESCAPES)
    push(stack, "later", LATER)
    for name in ("calls", "escapes", "later"):
        wait_until(f"{name} to be ready", lambda: status_of(stack, name) == "ACTIVE", 60)
    run = begin(stack, "calls", {"path": "flaky"})
    assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
    get, put = stack.result(run).json
    assert get == {"status": 200, "type": "application/json", "body": {"items": [1, 2]}}
    assert [one["body"] for one in put] == [{"got": 1}, {"got": 2}]
    flaky = [headers for path, headers in Receiver.seen if path == "/flaky"]
    assert len(flaky) == 2 and len({headers["Idempotency-Key"] for headers in flaky}) == 1, flaky
    assert flaky[0]["Authorization"] == "Bearer hunter2" and flaky[0]["X-Run"] == run
    assert stack.sql("SELECT step, item, status, attempts, http_status FROM headrace_v1.chain_calls WHERE run_id = :'a1' "
                     "ORDER BY step, item", run) == [["get", "0", "SUCCEEDED", "2", "200"], ["put", "0", "SUCCEEDED", "1", "201"],
                                                     ["put", "1", "SUCCEEDED", "1", "201"]]
    shown = {name: step_of(stack, run, name) for name in ("get", "put")}
    assert shown["get"]["status"] == "SUCCEEDED" and shown["get"]["attempts"] == 2 and shown["put"]["jobs"] == 2, shown
    for path, error in (("moved", "step get: the answer is HTTP 302"), ("nothing", "step get: the answer is HTTP 404"),
                        ("large", "step get: the answer has over 2000 bytes (http.max_bytes)")):
        failed = begin(stack, "calls", {"path": path})
        assert error_of(stack, failed, ["step_failed", "step_failed"]) == error
    assert step_of(stack, failed, "put")["status"] == "NOT_RUN"
    again = stack.http("POST", f"/v1/chain_runs/{run}/rerun", {"from": "put"}).json["request_id"]
    assert stack.wait_final(again)["status"] == "SUCCEEDED" and stack.result(again).json == [get, put]
    assert step_of(stack, again, "get")["status"] == "REUSED" and len([1 for path, _ in Receiver.seen if path == "/flaky"]) == 2
    assert not any("hunter2" in str(row) for row in stack.sql("SELECT to_jsonb(c)::text FROM headrace.chain_call c"))
    run = begin(stack, "later", {"url": f"http://127.0.0.1:{port}/items"})
    wait_until("it to wait", lambda: stack.sql("SELECT 1 FROM headrace.chain_wait WHERE run_id = :'a1'", run), 20)
    stack.sql("DELETE FROM headrace.chain_run WHERE run_id = :'a1'", run)  # as a crash of Postgres may: it begins again
    assert stack.wait_final(run)["status"] == "SUCCEEDED" and stack.result(run).json == 200, stack.job(run)
    for url, error in ((f"http://[::1]:{port}/", "http_blocked"), ("http://169.254.169.254/", "http_blocked"),
                       ("file:///etc/passwd", "bad_input"), ("http://127.0.0.1:1/", "http_unreachable")):
        run = begin(stack, "escapes", {"url": url})
        assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
        assert stack.result(run).json[0] == error, (url, stack.result(run).json)
    shown = json.loads(stack.cli("chains", "rerun", again, "--dry-run", "--json").stdout)  # one answer is of the run before
    assert shown["output"] == [get, put] and [one["calls"] for one in shown["steps"]] == [1, 2], shown
    shown = json.loads(stack.cli("chains", "rerun", failed, "--dry-run", "--json").stdout)
    assert "over 2000 bytes" in shown["error"], shown
    calls = len(Receiver.seen)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "chain.json"
        file.write_text(json.dumps(CALLS).replace("PORT", str(port)).replace('"put": {', '"other": {').replace("steps.put", "steps.other"))
        shown = stack.cli("chains", "rerun", again, "--dry-run", "--chain", file).stdout
    assert "step other: call 0 has no recorded answer, and a dry run calls nobody" in shown, shown
    assert len(Receiver.seen) == calls
    for given in ("a/b?c=d&e", "ü 1"):
        run = begin(stack, "calls", {"path": given})
        assert stack.wait_final(run)["status"] == "FAILED"
    assert [path for path, _ in Receiver.seen[calls:]] == ["/a%2Fb%3Fc%3Dd%26e", "/%C3%BC%201"]
    run = begin(stack, "calls", {"path": ".."})
    assert "'..' cannot be a part of a URL" in error_of(stack, run)
    calls = len(Receiver.seen)
    run = begin(stack, "calls", {"path": "never"})
    wait_until("it to be called", lambda: len(Receiver.seen) > calls)
    stack.cancel(run)
    assert stack.wait_final(run)["status"] == "CANCELED"
    server.shutdown()


def test_a_step_streams(stack):
    """Who follows the run before its step has begun gets the step's pieces and the run's end; who comes late, too."""
    run = begin(stack, "streams", {})
    for path in (f"/chain/streams/async_request/{run}/stream", f"/async_request/{run}/stream"):
        reply = stack.http("GET", path)
        assert reply.status == 200, reply
        events = [dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
                  for block in reply.body.decode().split("\n\n")]
        text = "".join(json.loads(event["data"])["text"] for event in events if "data" in event and "event" not in event)
        assert text.startswith("0:") and text.count("\n") == 5, text
        final = json.loads(next(event for event in events if event.get("event") == "final")["data"])
        assert final["status"] == "SUCCEEDED" and final["request_id"] == run, final
        assert stack.result(run).json == {"text": text}
    plain = begin(stack, "linear", {"text": "a"})
    assert stack.http("GET", f"/async_request/{plain}/stream").status == 409


def test_another_model_stands_in(stack):
    runs = [begin(stack, "stands-in", {"sim": sim}) for sim in ({"fail": "bad_input"}, {})]
    for run, output in zip(runs, (["BAD_INPUT", "succeeded"], [None, "skipped"])):
        assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
        assert stack.result(run).json == output
    assert step_of(stack, runs[0], "small")["needs"] == ["big"]
    for run, path in zip(runs, (["big", "small", "after"], ["big", "after"])):
        assert [row[0] for row in stack.sql("SELECT step FROM headrace_v1.chain_critical_path WHERE run_id = :'a1' "
                                            "ORDER BY place", run)] == path


def test_outputs_are_checked(stack):
    runs = [begin(stack, "checked", {"tell": tell, "n": 1}) for tell in ("short", "much longer")]
    for run, output in zip(runs, (["succeeded", None, None, 1],
                                  ["failed", "output_mismatch", "output_schema: 'maxLength' does not hold at /output", 1])):
        assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
        assert stack.result(run).json == output
    assert error_of(stack, begin(stack, "checked", {"tell": "x", "n": "x"}), ["step_failed", "step_failed"]) == (
        "step strict: output_schema: 'type' does not hold at /n")


def test_a_cache(stack):
    """What had the same input is not asked again: also an output in the blob store; the run says so, and its rows."""
    def run(**given):
        run = begin(stack, "cached", {"bytes": 700_000, **given})
        assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
        return run, {name: step_of(stack, run, name) for name in ("once", "each", "after")}

    first, steps = run(q="x", items=[1, 2, 3])
    assert all("cached" not in step for step in steps.values()), steps
    second, steps = run(q="x", items=[3, 4, 1])
    assert [steps[name].get("cached", 0) for name in ("once", "each", "after")] == [1, 2, 0], steps
    assert steps["each"]["status"] == "SUCCEEDED" and steps["each"]["jobs"] == 3 and steps["once"]["attempts"] == 0
    one, each = stack.result(second).json
    assert one == stack.result(first).json[0] and [item["output"]["n"] for item in each] == [3, 4, 1]
    assert stack.sql("SELECT step, item, taken_at IS NOT NULL, job_id IN (SELECT o.job_id FROM headrace_v1.chain_steps o "
                     "WHERE o.run_id = :'a2') FROM headrace_v1.chain_steps WHERE run_id = :'a1' ORDER BY step, item", second, first
                     ) == [["after", "0", "f", "f"], ["each", "0", "t", "t"], ["each", "1", "f", "f"], ["each", "2", "t", "t"], ["once", "0", "t", "t"]]
    assert "1 cached" in stack.cli("chains", "show", second).stdout
    third, steps = run(q="y", items=[])
    assert "cached" not in steps["once"]
    stack.sql("UPDATE headrace.chain_cache SET stored_at = now() - interval '700 s'")
    fourth, steps = run(q="x", items=[1])
    assert "cached" not in steps["once"] and "cached" not in steps["each"], steps


@pytest.mark.parametrize("size", [100, 250_000])
def test_outputs_that_are_no_json(stack, size):
    """A model gets them whole, with their type, inline or from the blob store; elsewhere they are an error that names them."""
    run = begin(stack, "bodies", {"bytes": size})
    assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
    made, handed = (step_of(stack, run, name) for name in ("make", "hand"))
    one, other = (stack.http("GET", f"/async_request/{step['request_id']}/result") for step in (made, handed))
    assert len(one.body) == 4 * size and one.body == other.body
    assert one.headers["content-type"] == other.headers["content-type"] == made["output_type"] == handed["output_type"] == "image/png"
    assert made["output_size"] == handed["output_size"] == 4 * size and "cached" not in handed
    assert f"image/png of {4 * size} bytes" in stack.cli("chains", "show", run).stdout
    assert stack.result(run).json == ["succeeded", None, None]


def test_an_output_that_is_no_json_and_is_not_handed_whole(stack):
    run = begin(stack, "bodies", {"bytes": 100, "wrong": True})
    assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
    state, wrong, inner = stack.result(run).json
    assert state == "succeeded" and wrong == {"class": "bad_input", "message": (
        "input: an output is no JSON but image/png of 400 bytes: it can be the whole input of a model, and nothing else")}
    assert inner == "input: it is image/png, and the input of a chain must be JSON"


def test_a_limit_of_the_run(stack):
    run = begin(stack, "hasty", {})
    assert error_of(stack, run) == "the run was not over after 1 s (timeout_seconds)"
    wait_until("its jobs to be over", lambda: {row[2] for row in steps_of(stack, run)} <= {"CANCELED", "EXPIRED"}, 20)


def test_versions(stack):
    """A run ends on the version that it began with; environments move between versions, and back."""
    def call(method, path, body=None, status=200):
        reply = stack.http(method, f"/v1/chains/versions{path}", body)
        assert reply.status == status, (path, reply)
        return reply.json

    def output(target):
        reply = stack.http("POST", f"/chain/versions/{target}/run_remote", {})
        assert reply.status == 200, reply
        return reply.json

    def gives(target, wanted):
        path = f"/chain/versions/{target}/run_remote"
        wait_until(f"{target} to give {wanted}", lambda: stack.http("POST", path, {}).json == wanted)

    (first,) = call("GET", "/deployments")["deployments"]
    assert first["environment"] == "production" and first["status"] == "ACTIVE", first
    assert [one["name"] for one in first["chainlets"]] == ["versions"], first
    run = begin(stack, "versions", {"hold": True})
    wait_until("it to be asked for", lambda: stack.http("GET", f"/v1/chain_runs/{run}").status == 200
               and step_of(stack, run, "ask")["status"] == "WAITING_FOR_APPROVAL", 30)
    second = push(stack, "versions", {**VERSION, "output": "two"})["id"]
    call("POST", "/environments", {"name": "staging"}, 201)
    call("POST", "/environments", {"name": "staging"}, 409)
    call("POST", "/environments", {"name": "other", "promotion_settings": {"rolling_deploy": True}}, 400)
    assert call("GET", "/environments/staging")["current_deployment"] is None
    stack.wait_active(second)
    call("POST", "/environments/staging/promote", {"deployment_id": second})
    call("POST", "/environments/staging/promote", {"deployment_id": "nothing"}, 404)
    assert call("GET", "/environments/staging")["current_deployment"]["id"] == second
    gives("environments/staging", "two")
    assert output("production") == "one" and output(f"deployment/{second}") == "two"
    assert call("POST", "/environments/production/promote", {"deployment_id": second})["environment"] == "production"
    gives("production", "two")
    assert "not over" in call("POST", f"/deployments/{first['id']}/deactivate", {}, 409)["error"]
    assert stack.http("POST", f"/v1/chain_runs/{run}/steps/ask/approve", {}).status == 200
    assert stack.wait_final(run)["status"] == "SUCCEEDED" and stack.result(run).json == "one"
    call("POST", "/environments/production/promote", {"deployment_id": first["id"]})
    gives("production", "one")
    assert "'staging' points at it" in call("DELETE", f"/deployments/{second}", None, 409)["error"]
    call("POST", "/environments/staging/promote", {"deployment_id": first["id"]})
    wait_until("it to be stopped, when the last of its runs is counted", lambda: stack.http(
        "POST", f"/v1/chains/versions/deployments/{second}/deactivate", {}).status == 200)
    wait_until("gateways to know", lambda: b"is deactivated" in stack.http(
        "POST", f"/chain/versions/deployment/{second}/async_run_remote", {"model_input": {}}).body)
    call("POST", f"/deployments/{second}/activate", {})
    stack.wait_active(second)
    gives(f"deployment/{second}", "two")
    chainlet = {"chainlet_name": "versions", "autoscaling_settings": {"min_replica": 1, "max_replica": 3}}
    settings = "/environments/production/chainlet_settings"
    moved = call("PATCH", f"{settings}/autoscaling_settings", {"updates": [chainlet]})
    assert moved["chainlet_settings"][0]["autoscaling_settings"]["max_replica"] == 3, moved
    call("PATCH", f"{settings}/autoscaling_settings", {"updates": [{**chainlet, "chainlet_name": "x"}]}, 404)
    kind = {"chainlet_name": "versions", "instance_type_id": "local"}
    assert call("POST", f"{settings}/instance_types/update", {"updates": [kind]})["requires_redeployment"] is False
    call("POST", f"{settings}/instance_types/update", {"updates": [{**kind, "instance_type_id": "H100"}]}, 400)
    assert call("PATCH", "/environments/production", {"promotion_settings": {}}) == {"ok": True}
    assert call("GET", f"/deployments/{second}/chainlets/{second}/logs")["logs"]
    wait_until("it to be deleted", lambda: stack.http("DELETE", f"/v1/chains/versions/deployments/{second}").status == 200)
    assert [one["id"] for one in call("GET", "/deployments")["deployments"]] == [first["id"]]
    assert call("GET", f"/deployments/{second}", None, 404)
    for path in ("", "/deployments", "/environments", "/environments/production"):
        assert stack.http("GET", f"/v1/chains/echo{path}").status == 404, path


def test_calls_below_the_chain(stack):
    run = begin(stack, "linear", {"text": "c"})
    assert stack.wait_final(run)["status"] == "SUCCEEDED"
    status = stack.http("GET", f"/chain/linear/async_request/{run}")
    assert status.json["status"] == "SUCCEEDED" and status.json["chain_id"], status
    assert stack.http("GET", f"/chain/linear/async_request/{run}/result").json == ["c!", run]
    assert stack.http("DELETE", f"/chain/linear/async_request/{run}").json["canceled"] is False
    slow = begin(stack, "map", {"items": [1], "ms": 60000})
    wait_until("it to be counted", lambda: stack.http(
        "GET", "/chain/map/production/async_queue_status").json["num_in_progress_requests"] == 1)
    assert stack.http("DELETE", f"/chain/map/async_request/{slow}").json["canceled"] is True
    assert stack.wait_final(slow)["status"] == "CANCELED"
    assert stack.http("GET", "/chain/echo/production/async_queue_status").status == 404


def test_a_run_again(stack):
    """From a step on, with another input of the run or of the step; what came before is taken over and not run again."""
    def again(run, body, status=201):
        reply = stack.http("POST", f"/v1/chain_runs/{run}/rerun", body)
        assert reply.status == status, reply
        return reply.json["request_id" if status == 201 else "error"]

    def ends(run, output, steps):
        assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
        assert stack.result(run).json == output
        assert sorted(row[0] for row in steps_of(stack, run)) == steps

    run = begin(stack, "linear", {"text": "a"})
    ends(run, ["a!", run], ["one", "three", "two"])
    second = again(run, {"from": "two", "input": {"text": "of nobody"}})
    ends(second, ["a!", second], ["three", "two"])
    shown = stack.http("GET", f"/v1/chain_runs/{second}").json
    assert shown["source_run_id"] == run and step_of(stack, second, "one")["status"] == "REUSED", shown
    assert stack.sql("SELECT source_run_id, source_steps FROM headrace_v1.chain_runs WHERE run_id = :'a1'",
                     second) == [[run, "{one}"]]
    third = again(second, {"from": "three"})  # what it takes over is of two runs
    ends(third, ["a!", third], ["three"])
    fourth = again(run, {"inputs": {"two": {"text": "given"}}})
    ends(fourth, ["given", fourth], ["three", "two"])
    whole = again(run, {})
    ends(whole, ["a!", whole], ["one", "three", "two"])
    other = push(stack, "linear", {**LINEAR, "output": "{{steps.two.output.output}}"})["id"]
    stack.wait_active(other)
    ends(again(run, {"from": "three", "deployment_id": other}), {"text": "a!"}, ["three"])
    listed = begin(stack, "map", {"items": [1, 2, 3], "ms": 1})
    assert stack.wait_final(listed)["status"] == "SUCCEEDED"
    joined = again(listed, {"from": "join"})
    assert stack.wait_final(joined)["status"] == "SUCCEEDED" and stack.result(joined).json == stack.result(listed).json
    check_each_once(stack, joined, 1)
    given = again(listed, {"inputs": {"each": [7]}})
    assert stack.wait_final(given)["status"] == "SUCCEEDED"
    assert [one["output"]["n"] for one in stack.result(given).json] == [7]
    assert "no step 'nine'" in again(run, {"from": "nine"}, 404)
    assert "inputs.each" in again(listed, {"inputs": {"each": 7}}, 400)
    assert "'frm' is not known" in again(run, {"frm": "two"}, 400)
    assert again(run, {"deployment_id": "nothing"}, 404) and again(NOBODYS_RUN, {}, 404)
    slow = begin(stack, "map", {"items": [1], "ms": 60000})
    wait_until("it to begin", lambda: steps_of(stack, slow))
    assert "is not over" in again(slow, {}, 409)
    assert stack.http("DELETE", f"/async_request/{slow}").json["canceled"] is True


def step_of(stack, run, name):
    return next(step for step in stack.http("GET", f"/v1/chain_runs/{run}").json["steps"] if step["name"] == name)


def test_what_is_no_chain_is_refused(stack):
    reply = stack.http("POST", "/v1/models/worse/deployments", {"engine": "chain", "settings": {"steps": {
        "a": {"model": "m", "input": "{{steps.b.output}}"}, "b": {"model": "m", "input": "{{steps.a.output}}"}}}})
    assert reply.status == 400 or reply.status == 422, reply
    assert "wait for each other: a -> b -> a" in reply.body.decode() or "b -> a -> b" in reply.body.decode(), reply


def test_command_line(stack, tmp_path):
    file = tmp_path / "chain.yaml"
    file.write_text("steps:\n  a: {model: echo, input: {n: '{{input.n}}'}}\noutput: '{{steps.a.output.output}}'\n")
    assert "a chain of 1 step" in stack.cli("chains", "check", file).stdout
    stack.cli("chains", "push", file, "--name", "shell")
    wait_until("it to be ready", lambda: status_of(stack, "shell") == "ACTIVE", 60)
    assert stack.cli("chains", "run", "shell", "--input", '{"n": 5}').stdout == '{"n":5}\n'
    ((run,),) = stack.sql("SELECT run_id FROM headrace_v1.chain_runs WHERE chain = 'shell'")
    assert run in stack.cli("chains", "runs", "shell").stdout
    listed = {chain["name"]: chain for chain in stack.http("GET", "/v1/chains").json["chains"]}
    assert "echo" not in listed and listed["shell"]["deployments_count"] == 1, listed
    assert stack.http("GET", "/v1/chains/shell").json == listed["shell"]
    assert stack.http("GET", "/v1/chains/echo").status == 404
    assert "shell" in stack.cli("chains", "ls").stdout
    assert stack.cli("chains", "rerun", run, "--quiet", "--input", '{"n": 6}').stdout == '{"n":6}\n'
    dry = stack.cli("chains", "rerun", run, "--dry-run").stdout.splitlines()[1].split()
    assert dry == ["a", "run", "1", "0", "0", "succeeded"], dry
    file.write_text("steps:\n  a: {model: echo, input: {n: '${ $input.n + 1 }'}}\n  b: {model: echo, input: '{{steps.a.output}}'}\n")
    dry = json.loads(stack.cli("chains", "rerun", run, "--dry-run", "--json", "--from", "b", "--chain", file).stdout)
    assert [(one["would"], one["same"], one["changed"], one["new"]) for one in dry["steps"]] == [
        ("be reused", 0, 1, 0), ("run", 0, 0, 1)] and dry["ends"] is False, dry
    assert len(stack.sql("SELECT 1 FROM headrace_v1.chain_runs WHERE chain = 'shell'")) == 2
    shown = stack.http("GET", f"/v1/chain_runs/{run}").json
    assert shown["status"] == "SUCCEEDED" and shown["steps"][0]["status"] == "SUCCEEDED", shown
    assert shown["steps"][0]["request_id"] and "SUCCEEDED" in stack.cli("chains", "show", run).stdout
    assert stack.http("GET", "/v1/chain_runs/019ab2c4-7d51-7c11-8000-5d1f0a6c9e42").status == 404
    file.write_text("steps: {a: {model: echo, input: 1, colour: red}}")
    wrong = stack.cli("chains", "check", file, check=False)
    assert wrong.returncode != 0 and "step a: there is no key 'colour'" in wrong.stderr, wrong


def test_pictures(stack, tmp_path):
    """What a file says, and what a run came to: drawn with a line for each need."""
    assert "/chain.yaml" in stack.cli("chains", "init", tmp_path / "new").stdout
    assert "a chain of 1 step" in stack.cli("chains", "check", tmp_path / "new/chain.yaml").stdout
    again = stack.cli("chains", "init", tmp_path / "new", check=False)
    assert again.returncode != 0 and "File exists" in again.stderr
    file = tmp_path / "fails.json"
    file.write_text(json.dumps(FAILS))
    drawn = [line.split() for line in stack.cli("chains", "graph", file).stdout.splitlines()]
    assert drawn == [["○", "bad", "echo"], ["│", "○", "slow", "echo"], ["○─╯", "after", "echo"]]
    assert '"slow" -> "after";' in stack.cli("chains", "graph", "--dot", file).stdout
    assert stack.cli("chains", "graph", "--svg", file).stdout.startswith("<svg ")
    run = begin(stack, "fails", {})
    watched = stack.cli("chains", "show", run, "--watch").stdout
    last = watched[watched.rindex(run):].splitlines()
    assert last[0].endswith("FAILED") and "✗ " in last[1] and "FAILED  0/1" in last[1], watched
    assert "NOT_RUN" in watched and "step bad: FAILED (BAD_INPUT)" in watched
    steps = {step["name"]: step for step in json.loads(stack.cli("chains", "graph", run, "--json").stdout)}
    assert sorted(steps["after"]["needs"]) == ["bad", "slow"] and steps["bad"]["map"] is False
    assert steps["bad"]["seconds"] > 0 and steps["after"]["seconds"] is None
    assert stack.cli("chains", "graph", "nothing", check=False).returncode != 0


def test_cancel(stack):
    run = begin(stack, "map", {"items": list(range(64)), "ms": 60000})
    wait_until("the map to be under way", lambda: len(
        [row for row in steps_of(stack, run) if row[2] == "IN_PROGRESS"]) >= 32, 20)
    assert "true" in stack.cli("chains", "cancel", run).stdout
    assert stack.wait_final(run)["status"] == "CANCELED"
    wait_until("nothing of it to run", lambda: {row[2] for row in steps_of(stack, run)} == {"CANCELED"}, 20)
    assert len(steps_of(stack, run)) == 32  # no more than were under way


def worker_of(stack, model):
    """The worker of that model: what runs its steps, or the coordinator's."""
    (pid,) = [pid for pid in stack.pids("worker") if f"--model={model}" in command_line(pid)]
    return pid


@pytest.mark.parametrize("victim", ["host-chain", "broker", "echo", "map"])
def test_kill_in_the_middle_of_a_map(stack, victim):
    """Each item is used once, and none runs again that was over; the views tell those that ran twice."""
    # A second each where it must still run when the kill comes, however late this one looks.
    run = begin(stack, "map", {"items": list(range(100)), "ms": 1000 if victim == "echo" else 150})
    wait_until("some of it to be over", lambda: len(
        [row for row in steps_of(stack, run) if row[2] == "SUCCEEDED"]) >= 10, 20)
    over = {(row[0], row[1]) for row in steps_of(stack, run) if row[2] == "SUCCEEDED"}
    if victim == "broker":
        stack.kill_service("broker")
        stack.start_service("broker")
    elif victim == "host-chain":
        assert stack.kill(victim)
    else:
        os.kill(worker_of(stack, victim), signal.SIGKILL)
    assert stack.wait_final(run, 60)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
    answer = stack.result(run).json
    assert [one["output"]["n"] for one in answer] == list(range(100))
    rows = check_each_once(stack, run, 101)
    assert all(row[3] == "1" for row in rows if (row[0], row[1]) in over)
    twice = {(row[0], row[1]) for row in rows if row[3] != "1"}
    assert twice == {(step, item) for step, item in stack.sql(
        "SELECT DISTINCT step, item FROM headrace_v1.chain_steps s JOIN headrace_v1.attempts a "
        "ON a.job_id = s.job_id WHERE s.run_id = :'a1' AND a.status = 'FAILED'", run)}
    assert bool(twice) == (victim == "echo") and len(twice) <= 32


def coordinator_of(stack, chain):
    return next((pid for pid in descendants(worker_of(stack, chain)) if "host-chain" in command_line(pid)), None)


def attempts_of(stack, run):
    return stack.sql("SELECT error_class, round(extract(epoch FROM ended_at)::numeric, 3) FROM "
                     "headrace_v1.attempts WHERE job_id = :'a1' ORDER BY number", run)


def test_a_run_lives_through_any_number_of_coordinators(stack):
    """What is lost costs nothing as long as the run gets on; five times is where jobs are given up."""
    run = begin(stack, "gated", {})

    def asked(n):
        return stack.sql("SELECT 1 FROM headrace_v1.chain_waits WHERE run_id = :'a1' AND step = :'a2'", run, f"ask{n}")

    for n in range(7):  # a run that did nothing but wait would be given back: `hold` is under way
        wait_until("the run to get on", lambda: asked(n), 60)
        if n < 6:
            os.kill(wait_until("a coordinator", lambda: coordinator_of(stack, "gated"), 60), signal.SIGKILL)
        assert stack.http("POST", f"/v1/chain_runs/{run}/steps/ask{n}/approve", {}).status == 200
    ((hold,),) = stack.sql("SELECT job_id FROM headrace_v1.chain_steps WHERE run_id = :'a1' AND step = 'hold'", run)
    assert stack.http("DELETE", f"/async_request/{hold}").json["canceled"] is True
    assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
    rows = steps_of(stack, run)
    assert sorted((row[0], row[2], row[3]) for row in rows) == [
        ("hold", "CANCELED", "1"), *((f"s{n}", "SUCCEEDED", "1") for n in range(7))], rows
    classes = [row[0] for row in attempts_of(stack, run)]
    assert classes.count("lost_coordinator") >= 5 and set(classes) <= {"lost_coordinator", "handed_back", None}, classes
    assert stack.sql("SELECT lost_failures FROM headrace.job WHERE id = :'a1'", run) == [["0"]]


def test_a_drained_coordinator_hands_its_runs_back(stack):
    run = begin(stack, "slowly", {"items": list(range(16))})
    wait_until("the run to be under way", lambda: steps_of(stack, run), 20)
    told = time.time()
    os.kill(worker_of(stack, "slowly"), signal.SIGTERM)
    assert stack.wait_final(run)["status"] == "SUCCEEDED", (stack.job(run), stack.tell())
    first, *_ = attempts_of(stack, run)
    assert first[0] == "handed_back" and float(first[1]) - told < 2, (first, told)
    check_each_once(stack, run, 16)


def test_random_kills(stack):
    """The small form of `bench/run chains-kills`; the seed is printed where it fails."""
    seed = int(os.environ.get("HEADRACE_CHAINS_SEED") or time.time())
    print(f"HEADRACE_CHAINS_SEED={seed}")
    ids, killed, _ = chain_kills.run(stack, "kills", "counted", runs=12, kills=5, gap_s=0.3, seed=seed, seconds=60)
    print(chain_kills.check(stack, ids, sum(killed.values()), stack.journal), dict(killed))


def test_a_coordinator_that_is_killed_while_it_undoes(stack):
    ids = [chain_kills.begin(stack, "undone-slowly") for _ in range(3)]
    wait_until("one of them to be undone", lambda: any(row[0].startswith("un-") for one in ids for row in steps_of(stack, one)), 30)
    os.kill(coordinator_of(stack, "undone-slowly"), signal.SIGKILL)
    wait_until("all of them to be over", lambda: chain_kills.over(stack, "undone-slowly")[0] == 0, 60)
    assert chain_kills.check_undone(stack, ids, 1, stack.journal)["hit"] > 0


def test_a_run_that_nothing_moves_is_stuck(stack):
    """Its coordinator is held and killed, and the next one finds more losses: of eleven minutes."""
    host = coordinator_of(stack, "slowly")
    os.kill(host, signal.SIGSTOP)
    try:
        run = begin(stack, "slowly", {"items": [1]})
        wait_until("its row", lambda: stack.sql("SELECT 1 FROM headrace.job WHERE id = :'a1'", run), 20)
        stack.sql("INSERT INTO headrace.attempt (job_id, token, boot, ended_at, round, number, error_class, worker) "
                  "SELECT :'a1', n, 1, now() + n * interval '165 seconds', 1, n, 16, 'w' FROM generate_series(0, 4) n", run)
    finally:
        os.kill(host, signal.SIGKILL)
    assert "it has lost five coordinators in ten minutes" in error_of(stack, run, ["run_stuck", "poison"])
    assert steps_of(stack, run) == []


def test_one_coordinator_a_run(stack):
    run = begin(stack, "slowly", {"items": [1]})
    assert stack.wait_final(run)["status"] == "SUCCEEDED"
    assert stack.sql("SELECT b.* FROM headrace.chain_run r, headrace.chain_begin(r.run_id, r.token, r.deployment_id) b "
                     "WHERE r.run_id = :'a1'", run) == []


def test_a_model_that_is_deleted_in_mid_run(stack):
    run = begin(stack, "doomed-run", {})
    wait_until("the map to be under way", lambda: len(steps_of(stack, run)) == 4, 20)
    assert stack.http("DELETE", "/v1/models/doomed").status == 200
    assert error_of(stack, run, ["step_failed", "step_failed"]).endswith("FAILED (MODEL_MISSING): its model was deleted")
    wait_until("nothing of it to run", lambda: {row[2] for row in steps_of(stack, run) if row[0] != "each"} ==
               {"CANCELED"}, 20)


def test_a_dead_run_is_replayed_from_where_it_failed(stack):
    chain = {"steps": {
        "first": {"model": "echo", "input": "{{input}}"},
        "second": {"model": "missing-yet", "input": "{{steps.first.output.output}}"}},
        "output": "{{steps.second.output.output}}"}
    push(stack, "waits", chain)
    wait_until("it to be ready", lambda: status_of(stack, "waits") == "ACTIVE", 60)
    run = begin(stack, "waits", {"n": 7})
    assert "there is no model 'missing-yet'" in error_of(stack, run)
    assert [row[:3] for row in steps_of(stack, run)] == [["first", "0", "SUCCEEDED"]]
    stack.push_sim("missing-yet")
    stack.cli("chains", "retry", run)
    wait_until("the second round to end", lambda: stack.job(run)["status"] == "SUCCEEDED", 30)
    assert stack.result(run).json == {"n": 7}
    assert stack.sql("SELECT step, round, attempts FROM headrace_v1.chain_steps WHERE run_id = :'a1' ORDER BY step",
                     run) == [["first", "1", "1"], ["second", "2", "1"]]


def test_a_dead_run_is_tried_again_from_a_step(stack):
    """That step and what needs it run again, also what had succeeded; nothing else does."""
    chain = {"steps": {
        "root": {"model": "echo", "input": "{{input}}"},
        "again": {"model": "echo", "input": "{{steps.root.output.output}}"},
        "beside": {"model": "echo", "input": "{{steps.root.output.output}}"},
        "last": {"model": "missing-too", "input": ["{{steps.again.output.output}}"], "needs": ["beside"]}},
        "output": "{{steps.last.output.output}}"}
    push(stack, "again", chain)
    wait_until("it to be ready", lambda: status_of(stack, "again") == "ACTIVE", 60)
    run = begin(stack, "again", {"n": 7})
    assert "there is no model 'missing-too'" in error_of(stack, run)
    for from_, text in (("nothing", "the chain has no step 'nothing'"), ("", "from is missing")):
        reply = stack.http("POST", f"/v1/chain_runs/{run}/forget?from={from_}")
        assert reply.status in (400, 404) and text in reply.body.decode(), reply
    stack.push_sim("missing-too")
    stack.cli("chains", "retry", run, "--from", "again")
    wait_until("the second round to end", lambda: stack.job(run)["status"] == "SUCCEEDED", 30)
    assert stack.result(run).json == [{"n": 7}]
    assert stack.sql("SELECT step, round FROM headrace_v1.chain_steps WHERE run_id = :'a1' ORDER BY 1, 2", run) == [
        ["again", "-1"], ["again", "2"], ["beside", "1"], ["last", "2"], ["root", "1"]]
    shown = stack.http("GET", f"/v1/chain_runs/{run}").json
    assert {step["name"]: step["jobs"] for step in shown["steps"]} == {"root": 1, "again": 1, "beside": 1, "last": 1}
    assert stack.http("POST", f"/v1/chain_runs/{run}/forget?from=last").json["forgotten"] == 1
