# SPDX-License-Identifier: Apache-2.0
"""Goal: one request is one trace over all programs, and every number of theirs can be scraped.

Method: the whole platform with the sim engine and a collector of our own behind it; promtool
judges each /metrics page.
"""

import json
import re
import secrets
import subprocess
import urllib.request

import pytest
from collector import Collector
from receiver import Receiver
from stack import wait_until

SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5
EXPORT_SECONDS = 20  # programs post every 5 s


@pytest.fixture(scope="module")
def world(request):
    from conftest import run_stack

    with Collector() as collector, Receiver() as receiver:
        env = {"HEADRACE_OTLP_ENDPOINT": collector.endpoint, "HEADRACE_OTLP_SAMPLE_PERCENT": "0",
               "HEADRACE_METRICS_PREFIX": "baseten_", "HEADRACE_LOG_LEVEL": "debug"}
        for stack in run_stack(request, env=env):
            stack.push_sim("echo")
            yield stack, collector, receiver


def new_parent(sampled=True):
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return trace_id, span_id, f"00-{trace_id}-{span_id}-{'01' if sampled else '00'}"


def spans_of(collector, trace_id, count):
    wait_until(f"{count} spans of {trace_id}", lambda: len(collector.trace(trace_id)) >= count,
               EXPORT_SECONDS)
    return collector.trace(trace_id)


def by_name(spans):
    found = {}
    for span in spans:
        found.setdefault(span.name, []).append(span)
    return found


def test_one_submit_is_one_trace(world):
    stack, collector, receiver = world
    trace_id, caller, parent = new_parent()
    request_id = stack.submit("echo", {"sim": {"sleep_ms": 200}}, headers={"traceparent": parent},
                              webhook_endpoint=receiver.url("/traced"))
    spans = spans_of(collector, trace_id, 5)
    assert len(spans) == 5, spans
    assert {span.service for span in spans} == {
        "headrace-gateway", "headrace-broker", "headrace-worker", "headrace-webhook"}
    (submit,), (queue,), (job,), (run,), (deliver,) = (
        by_name(spans)[name] for name in ("SUBMIT", "queue", "job", "run", "deliver"))

    assert [s.kind for s in (submit, queue, job, run, deliver)] == [
        SERVER, PRODUCER, CONSUMER, CONSUMER, CLIENT]
    assert submit.parent_id == caller
    assert job.parent_id == submit.id
    assert queue.parent_id == job.id and run.parent_id == job.id
    assert deliver.parent_id == submit.id
    assert len({span.id for span in spans}) == 5
    (post,) = receiver.at("/traced")
    assert post.headers["traceparent"] == f"00-{trace_id}-{deliver.id}-01"

    assert all(span.attributes["headrace.job"] == request_id for span in spans)
    assert not [span for span in spans if span.failed]
    assert submit.attributes["http.response.status_code"] == 201
    assert run.attributes["headrace.batch_count"] == 1
    assert job.attributes["headrace.state"] == "SUCCEEDED"
    assert deliver.attributes["http.response.status_code"] == 200

    # One machine, one clock; Kafka's append time is in whole milliseconds.
    slack = 2_000_000
    assert all(span.start_ns <= span.end_ns for span in spans)
    assert submit.start_ns - slack <= job.start_ns == queue.start_ns
    assert queue.end_ns <= run.start_ns + slack
    assert 200e6 <= run.end_ns - run.start_ns < 5e9
    assert run.end_ns <= job.end_ns + slack
    assert job.end_ns <= deliver.start_ns + slack


def test_every_attempt_has_its_spans(world):
    stack, collector, _ = world
    trace_id, _, parent = new_parent()
    request_id = stack.submit(
        "echo", {"sim": {"fail": "model_error"}}, headers={"traceparent": parent},
        inference_retry_config={"max_attempts": 2, "initial_delay_ms": 300, "max_delay_ms": 300})
    assert stack.wait_final(request_id)["status"] == "FAILED"
    found = by_name(spans_of(collector, trace_id, 6))
    assert {name: len(spans) for name, spans in found.items()} == {
        "SUBMIT": 1, "job": 1, "queue": 2, "run": 2}
    assert sorted(span.attributes["headrace.attempt"] for span in found["run"]) == [1, 2]
    assert all(span.failed and span.attributes["error.type"] == "MODEL_ERROR"
               for span in found["run"])
    assert found["job"][0].failed and found["job"][0].attributes["headrace.attempts"] == 2


def test_unsampled_traces_are_handed_on_in_silence(world):
    """The caller's flag rules; without a traceparent the share does, which is 0 here."""
    stack, collector, receiver = world
    trace_id, _, parent = new_parent(sampled=False)
    for headers, path in ({"traceparent": parent}, "/unsampled"), ({}, "/untraced"):
        stack.submit("echo", {}, headers=headers, webhook_endpoint=receiver.url(path))
        wait_until(f"a POST to {path}", lambda path=path: receiver.at(path))
    got = receiver.at("/unsampled")[0].headers["traceparent"]
    assert re.fullmatch(f"00-{trace_id}-[0-9a-f]{{16}}-00", got)
    later, _, parent = new_parent()
    stack.submit("echo", {}, headers={"traceparent": parent})
    spans_of(collector, later, 4)
    assert collector.trace(trace_id) == []
    assert all(span.attributes.get("headrace.job") for span in collector.spans)


def pages(stack):
    """The text of /metrics by program; workers tell their port in their logs."""
    urls = {name: stack.url(name) for name in ("gateway", "broker", "agent", "webhook")}
    for path in stack.data_dir.glob("agent/logs/*.log"):
        for line in path.read_text(errors="replace").splitlines():
            if '"worker_started"' in line:
                urls["worker"] = f"http://127.0.0.1:{json.loads(line)['port']}"
    found = {}
    for name, url in urls.items():
        request = urllib.request.Request(url + "/metrics")
        request.add_header("Authorization", f"Bearer {stack.key}")
        with urllib.request.urlopen(request, timeout=20) as reply:
            found[name] = reply.read().decode()
    return found


def samples(page, name):
    """[(labels, value)] of one metric."""
    found = []
    for line in page.splitlines():
        match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if match:
            found.append((dict(re.findall(r'(\w+)="([^"]*)"', match[1] or "")), float(match[2])))
    return found


def test_without_an_endpoint_nothing_is_made(new_stack):
    """The caller's context reaches the receiver as it came: nobody made a span of it."""
    stack = new_stack().start()
    stack.push_sim("echo")
    _, _, parent = new_parent()
    with Receiver() as receiver:
        stack.submit("echo", {}, headers={"traceparent": parent},
                     webhook_endpoint=receiver.url("/plain"))
        wait_until("the delivery", lambda: receiver.at("/plain"))
        assert receiver.at("/plain")[0].headers["traceparent"] == parent
    assert samples(pages(stack)["gateway"], "headrace_gateway_spans_dropped") == [({}, 0)]
    assert "baseten_" not in pages(stack)["broker"]
