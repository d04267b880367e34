# SPDX-License-Identifier: Apache-2.0
"""Goal: who waits for a run of a chain gets the pieces of its step that streams as they are made, a whole error
before the first, and an event that says so after it. Method: one stack, chains over the simulated engine."""

import http.client
import json
import os
import re
import signal
import time

import pytest

from conftest import run_stack
from stack import wait_until
from test_chains import push, status_of

TOLD = {"steps": {
    "tell": {"model": "echo", "input": {"sim": "{{input.sim}}"}, "stream": True},
    "after": {"model": "after", "input": {"sim": "{{input.after?}}"}, "when": "{{input.after?}}", "needs": ["tell"]}},
    "output": {"told": "{{steps.tell.output}}"}}
OUTER = {"steps": {"inner": {"model": "told", "input": "{{input}}", "stream": True}}}
PLAIN = {"steps": {"tell": {"model": "echo", "input": {"sim": "{{input.sim}}"}}}}
EVENTS = "text/event-stream"


@pytest.fixture(scope="module")
def stack(request):
    for stack in run_stack(request, env={"HEADRACE_RESTART_DELAY": "50ms"}):
        stack.push_sim("echo", slots=8)
        stack.push_sim("after", slots=8)
        for name, chain in (("told", TOLD), ("outer", OUTER), ("plain", PLAIN)):
            push(stack, name, chain)
        for name in ("told", "outer", "plain"):
            wait_until(f"{name} to be ready", lambda: status_of(stack, name) == "ACTIVE", 60)
        yield stack


def run(stack, given, chain="told", **headers):
    """One connection, one run: the response, not read yet."""
    connection = http.client.HTTPConnection(stack.url("gateway").removeprefix("http://"), timeout=30)
    headers.setdefault("Authorization", f"Bearer {stack.key}")
    connection.request("POST", f"/chain/{chain}/production/run_remote", json.dumps(given), headers)
    reply = connection.getresponse()
    reply.connection_of = connection
    return reply


def told(pieces, gap_ms=0, **more):
    return {"sim": {"pieces": pieces, "piece_gap_ms": gap_ms, "piece_bytes": 16, **more}}


def text_of(pieces):
    return "".join(f"{n}:".ljust(15, "x") + "\n" for n in range(pieces))


def events_of(text):
    """(event, data) of each."""
    blocks = [dict(line.split(": ", 1) for line in block.split("\n") if ": " in line) for block in text.split("\n\n")]
    return [(block.get("event"), json.loads(block["data"])) for block in blocks if block.get("data", "")[:1] == "{"]


@pytest.mark.parametrize("chain", ["told", "outer"])
def test_pieces_come_as_they_are_made(stack, chain):
    """Also when the step is a chain itself, and its step streams."""
    for _ in range(2):  # the second time all that is needed is warm
        began = time.monotonic()
        reply = run(stack, {"stream": True, **told(10, 200)}, chain)
        first = reply.read1(100)
        took = time.monotonic() - began
    assert reply.status == 200 and reply.getheader("Content-Type") == "application/octet-stream"
    assert first == text_of(1).encode() and took < 1.2, took  # all ten take 2 s
    assert (first + reply.read()).decode() == text_of(10)
    job = reply.getheader("X-Baseten-Request-Id")
    assert stack.wait_final(job)["status"] == "SUCCEEDED"
    if chain == "told":
        assert stack.result(job).json == {"told": text_of(10)}


def test_what_is_no_event_becomes_one(stack):
    reply = run(stack, told(3, 50), Accept=EVENTS)
    assert reply.getheader("Content-Type") == EVENTS
    events = events_of(reply.read().decode())
    assert [event for event, _ in events] == [None] * len(events) and len(events) > 1
    assert "".join(data["text"] for _, data in events) == text_of(3)
    reply = run(stack, told(2, 50, media_type=EVENTS), Accept=EVENTS)
    assert reply.getheader("Content-Type") == EVENTS and re.fullmatch("(data: .*\n\n){2}", reply.read().decode())


def test_who_does_not_ask_gets_the_output(stack):
    given = told(3)
    for headers, chain, more in (({}, "told", {}), ({"Accept": "application/json"}, "told", {"stream": True}),
                                 ({}, "told", {"stream": "yes"})):
        reply = run(stack, {**given, **more}, chain, **headers)
        assert json.loads(reply.read()) == {"told": text_of(3)} and reply.status == 200
    reply = run(stack, {"sim": {"output_bytes": 100}, "stream": True})  # its model makes no pieces
    assert reply.getheader("Content-Type") == "application/json" and "told" in json.loads(reply.read())
    reply = run(stack, {"sim": {}, "stream": True}, "plain")  # none of its steps streams
    assert reply.status == 200 and reply.getheader("Content-Type") == "application/json"
    reply.read()


def test_a_failure_before_the_first_piece_is_whole(stack):
    for headers, more in (({"Accept": EVENTS}, {}), ({}, {"stream": True})):
        reply = run(stack, {"sim": {"fail": "bad_input"}, **more}, **headers)
        body = json.loads(reply.read())
        assert reply.status == 502 and "step tell" in body["error"], (reply.status, body)


def test_a_failure_after_it_is_an_event(stack):
    for sim in (told(3, 20), told(3, 20, media_type=EVENTS)):
        reply = run(stack, {**sim, "after": {"fail": "bad_input"}}, Accept=EVENTS)
        text = reply.read().decode()
        event, data = events_of(text)[-1]
        assert reply.status == 200 and event == "error" and "step after" in data["error"], text
        assert stack.wait_final(reply.getheader("X-Baseten-Request-Id"))["status"] == "FAILED"
    reply = run(stack, {"stream": True, **told(3, 20), "after": {"fail": "bad_input"}})
    with pytest.raises(http.client.IncompleteRead):  # there is no room for words in bytes
        reply.read()


def test_a_cancel_and_a_lost_worker_are_events(stack):
    reply = run(stack, told(200, 50), Accept=EVENTS)
    first = reply.read1(100).decode()
    stack.cancel(reply.getheader("X-Baseten-Request-Id"))
    event, data = events_of(first + reply.read().decode())[-1]
    assert event == "error" and data["error_code"] == "client_error", data
    reply = run(stack, told(200, 50), Accept=EVENTS)
    first = reply.read1(100).decode()
    ((pid,),) = stack.sql("SELECT pid FROM headrace.replica WHERE deployment_id = 'echo' AND state = 'READY'")
    os.kill(int(pid), signal.SIGKILL)
    event, data = events_of(first + reply.read().decode())[-1]
    assert event == "error" and "void" in data["error"], data
    assert stack.wait_final(reply.getheader("X-Baseten-Request-Id"))["status"] == "CANCELED"
    stack.wait_active("echo")


def test_leaving_cancels_the_run(stack):
    reply = run(stack, {"stream": True, **told(1000, 50)})
    assert reply.read1(100)
    reply.connection_of.sock.close()
    reply.close()
    assert stack.wait_final(reply.getheader("X-Baseten-Request-Id"))["status"] == "CANCELED"


def test_a_flushed_redis_costs_nothing(stack):
    """What is missing comes from the step's result."""
    reply = run(stack, {"stream": True, **told(20, 50)})
    first = reply.read1(100)
    stack.redis("flushall")
    assert (first + reply.read()).decode() == text_of(20)
