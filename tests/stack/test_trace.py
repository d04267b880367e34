# SPDX-License-Identifier: Apache-2.0
"""Goal: one request is one trace over all programs, and every number of theirs can be scraped.

Method: the whole platform with the sim engine and a collector of our own behind it; Prometheus'
own parser reads each /metrics page.
"""

import json
import re
import secrets
import subprocess
import urllib.request

import pytest
from collector import Collector
from prometheus_client.parser import text_string_to_metric_families
from receiver import Receiver
from stack import BINARY, ROOT, wait_until

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


def test_lines_carry_job_tenant_and_trace(world):
    stack, collector, receiver = world
    trace_id, _, parent = new_parent()
    request_id = stack.submit("echo", {"sim": {"fail": "bad_input"}},
                              headers={"traceparent": parent},
                              webhook_endpoint=receiver.url("/logged"))
    stack.wait_final(request_id)
    wait_until("the delivery", lambda: receiver.at("/logged"))

    def lines():
        found = {}
        for path in [*stack.data_dir.glob("logs/*.log"), *stack.data_dir.glob("agent/logs/*.log")]:
            for line in path.read_text(errors="replace").splitlines():
                if request_id in line and line.startswith("{"):
                    line = json.loads(line)
                    found.setdefault((line["program"], line["event"]), []).append(line)
        return found

    wanted = {("gateway", "request"), ("broker", "job_published"), ("worker", "attempt_failed"),
              ("webhook", "try_ended")}
    wait_until(f"lines {wanted}", lambda: wanted <= lines().keys())
    for key in wanted:
        line = [line for line in lines()[key] if line.get("route", "SUBMIT") == "SUBMIT"][0]
        assert (line["job"], line["tenant"], line["trace"]) == (request_id, "default", trace_id), line
        if key[1] == "attempt_failed":
            assert line["attempt"] == 1 and line["class"] == "BAD_INPUT"


def test_programs_say_what_they_speak(world):
    stack, _, _ = world
    said = {}
    for path in [*stack.data_dir.glob("logs/*.log"), *stack.data_dir.glob("agent/logs/*.log")]:
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("{") and '"wire":' in line:
                line = json.loads(line)
                said[line["program"]] = (line["version"], line["wire"])
    assert said.keys() == {"gateway", "broker", "agent", "webhook", "ingest", "worker"}
    ((version, wire),) = set(said.values())
    done = subprocess.run([BINARY, "gateway", "--version"], capture_output=True, text=True,
                          check=True, timeout=30)
    assert done.stdout == f"headrace {version} (wire {wire})\n"


def pages(stack):
    """The text of /metrics by program; workers tell their port in their logs."""
    urls = {name: stack.url(name) for name in ("gateway", "broker", "agent", "webhook", "ingest")}
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


def check_family(page, family):
    """What Prometheus' parser lets pass and its users would still trip over."""
    assert family.documentation and family.type != "unknown", f"{page}: {family.name} has no HELP or TYPE"
    names = {sample.name for sample in family.samples}
    if family.type == "counter":
        assert names == {family.name + "_total"}, f"{page}: counter {family.name}: {names}"
    if family.type == "histogram":
        assert names == {family.name + end for end in ("_bucket", "_sum", "_count")}, (page, names)
    for sample in family.samples:
        assert family.type == "gauge" or sample.value >= 0, (page, sample)


def test_every_page_is_read_by_prometheus(world):
    stack, _, _ = world
    found = pages(stack)
    assert found.keys() == {"gateway", "broker", "agent", "webhook", "ingest", "worker"}
    for name, page in found.items():
        families = list(text_string_to_metric_families(page))
        for family in families:
            check_family(name, family)
        seen = [(s.name, tuple(sorted(s.labels.items()))) for f in families for s in f.samples]
        assert len(seen) == len(set(seen)), f"{name}: a series appears twice"
        assert len({f.name for f in families}) == len(families), f"{name}: a metric appears twice"
        ours = {f.name.removeprefix("headrace_") for f in families if f.name.startswith("headrace_")}
        again = {f.name.removeprefix("baseten_") for f in families if f.name.startswith("baseten_")}
        assert ours and ours == again, name


def test_public_names(world):
    """Each request is counted once: by the gateway that refused it, or by the broker at its end."""
    stack, _, receiver = world

    def counts():
        total = {}
        for page in (found := pages(stack))["gateway"], found["broker"]:
            for labels, value in samples(page, "baseten_inference_requests_total"):
                assert labels["model_id"] == "echo" and labels["environment"] == "production"
                assert labels["model_name"] == "echo" and labels["deployment_id"] == "echo"
                assert labels["rollout_phase"] == "stable" and labels["is_async"] == "true"
                code = labels["status_code"]
                total[code] = total.get(code, 0) + value
        return total

    before = counts()
    stack.wait_final(stack.submit("echo", {"a": 1}, webhook_endpoint=receiver.url("/counted")))
    wait_until("the delivery", lambda: receiver.at("/counted"))
    stack.wait_final(stack.submit("echo", {"sim": {"fail": "bad_input"}}))
    assert stack.http("POST", "/model/echo/production/async_predict", {}).status == 400
    after = counts()
    assert {code: after[code] - before.get(code, 0) for code in after
            if after[code] != before.get(code, 0)} == {"200": 1, "400": 1, "422": 1}

    found = pages(stack)
    for page, name in (("broker", "end_to_end_response_time_seconds"),
                       ("broker", "response_size_bytes"), ("broker", "time_in_async_queue_seconds"),
                       ("gateway", "request_size_bytes"),
                       ("webhook", "async_webhook_latency_seconds")):
        rows = samples(found[page], f"headrace_{name}_count")
        assert rows and sum(value for _, value in rows) >= 1, name
        assert all(labels["model_id"] == "echo" for labels, _ in rows), name

    def gauges():  # the agent tells each second, the gateway every two
        now = pages(stack)
        return [samples(now[page], f"headrace_{name}")[0][1] for page, name in (
            ("agent", "replicas_active"), ("agent", "replicas_starting"),
            ("agent", "container_restarts_total"), ("gateway", "async_queue_size"))]

    wait_until("one active replica and an empty queue", lambda: gauges() == [1, 0, 0, 0])
    assert sum(v for _, v in samples(found["webhook"], "headrace_async_webhook_requests_total")) >= 1


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


def test_the_dashboard_asks_for_what_is_there(world):
    """docs/grafana/headrace.json: its SQL runs as the reader, its metrics are on the pages."""
    stack, _, _ = world
    dashboard = json.loads((ROOT / "docs/grafana/headrace.json").read_text())
    statements = [v["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    statements += [a["rawQuery"] for a in dashboard["annotations"]["list"]]
    expressions = []
    for target in (t for panel in dashboard["panels"] for t in panel.get("targets", ())):
        (statements if "rawSql" in target else expressions).append(target.get("rawSql") or target["expr"])
    assert len(statements) >= 15 and len(expressions) >= 20
    for statement in statements:
        for macro, value in (("$__timeFrom()", "(now() - interval '1 hour')"), ("$__timeTo()", "(now() + interval '1 hour')"),
                             ("${model:sqlstring}", "'echo', 'other'")):
            statement = statement.replace(macro, value)
        assert "$" not in statement
        rows = stack.sql(f"SET ROLE headrace_reader; {statement}")
        # Not there when all is well and at rest: receivers that fail, queues, deployments made over HTTP.
        assert rows or re.search("webhook_endpoints|queue_depth q|audit", statement), statement
    check_expressions(expressions, pages(stack))


def check_expressions(expressions, found):
    """Each metric is on a page, and has the labels that the expression names."""
    types = {}
    for page in found.values():
        types.update(dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M)))
    guide = (ROOT / "docs/observability.md").read_text()  # its tables are made from the programs' own
    labels = {}
    for name, kind, row in re.findall(r"^\| `(headrace_\w+)` \| (\w+) \|([^|]*)\|", guide, re.M):
        labels[name] = set(re.findall(r"`(\w+)`", row))
        if labels[name]:
            types.setdefault(name, kind)  # it is on its page once it has a series
    for expression in expressions:
        plain = expression.replace("$__rate_interval", "5m")
        named = re.findall(r"\b(?:headrace|process)_\w+", plain)
        assert named, expression
        used = set(re.findall(r"(\w+)=~?\"", plain))
        for by in re.findall(r"by \(([^)]*)\)", plain):
            used |= {label.strip() for label in by.split(",")}
        for name in named:
            base = re.sub(r"_bucket$", "", name)
            assert (types.get(name) or types.get(base)) is not None, f"{name}: {expression}"
            assert ("_bucket" in name) == (types.get(base) == "histogram") == ("le" in used), expression
            assert used - {"le"} <= labels.get(base, set()), expression
        assert "rate(" in plain or all(types[name] == "gauge" for name in named), expression
