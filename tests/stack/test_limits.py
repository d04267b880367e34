# SPDX-License-Identifier: Apache-2.0
"""Goal: limits of tenants and keys hold, exactly where that is promised: what runs, over a takeover;
rates, over two gateways; and a refusal says which limit, its value and the figure, and produces nothing.

Method: the whole platform and a second gateway; what ran at a time is read from the attempts' own times.
"""

import concurrent.futures
import http.client
import json
import pathlib
import socket
import subprocess
import time
import urllib.parse

import pytest
from stack import BINARY, ROOT, Reply, die_with_parent, wait_until

SUBMIT = "/model/{}/production/async_predict"


@pytest.fixture(scope="module")
def platform(request):
    from conftest import run_stack

    for stack in run_stack(request):
        stack.gateway = stack.url("gateway")
        stack.push_sim("sim", slots=8)
        stack.cli("tenants", "create", "acme", "--name", "Acme Inc")
        stack.sql("UPDATE headrace.model SET tenant = 'acme' WHERE id = 'sim'")
        stack.acme = json.loads(stack.cli("keys", "create", "--tenant", "acme", "--json").stdout)["api_key"]
        wait_until("acme's model to be known", lambda: post(stack, {"model_input": {}}).status == 201)
        yield stack


@pytest.fixture
def acme(platform):
    """Leaves the tenant without limits."""
    yield platform
    limits = json.loads(platform.cli("tenants", "show", "acme", "--json").stdout)["limits"]
    if limits:
        platform.cli("tenants", "set", "acme", *[f"{name}=" for name in limits])
        wait_until("the gateway to know", lambda: post(platform, {"model_input": {}}).status == 201)
    wait_until("the tenant's jobs to end", lambda: platform.sql(
        "SELECT count(*) FROM headrace.job WHERE tenant = 'acme' AND state IN (1, 2)") == [["0"]], 60)


def post(stack, body, key=None, base=None, headers=None, model="sim"):
    url = urllib.parse.urlsplit(base or stack.gateway)
    client = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    client.request("POST", SUBMIT.format(model), json.dumps(body), {
        "Content-Type": "application/json", "Authorization": f"Bearer {key or stack.acme}", **(headers or {})})
    answer = client.getresponse()
    reply = Reply(answer.status, answer.getheaders(), answer.read())
    client.close()
    return reply


def limit(stack, *limits):
    stack.cli("tenants", "set", "acme", *limits)


def refused(stack, body=None, seconds=10, **options):
    """Submits until one is refused; how many were taken, and the refusal."""
    taken = []

    def ask():
        reply = post(stack, body or {"model_input": {}}, **options)
        if reply.status == 201:
            taken.append(reply.json["request_id"])
        return reply if reply.status != 201 else None

    return taken, wait_until("a refusal", ask, seconds, step=0.1)


def most_at_once(stack, jobs, weight=1):
    """The highest number of these jobs' attempts that ran at the same time, by their own clocks."""
    rows = stack.sql("SELECT extract(epoch FROM started_at), extract(epoch FROM ended_at) FROM headrace.attempt "
                     "WHERE job_id = ANY (string_to_array(:'a1', ',')::uuid[])", ",".join(jobs))
    edges = sorted([(float(start), weight) for start, _ in rows] + [(float(end), -weight) for _, end in rows],
                   key=lambda edge: (edge[0], edge[1]))
    most = now = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    assert len(rows) >= len(jobs)
    return most


# --- tenants ------------------------------------------------------------------------------------


def test_tenants_by_command_line(platform):
    made = json.loads(platform.cli("tenants", "create", "small", "running_jobs=3", "rate_per_second=0.5",
                                   "payload_bytes=2G", "--json").stdout)
    assert made["limits"] == {"running_jobs": 3, "rate_per_second": 0.5, "payload_bytes": 2000000000}
    assert made["usage"] == {"waiting_jobs": 0, "delayed_jobs": 0, "running_jobs": 0, "payload_bytes": 0}
    again = platform.cli("tenants", "create", "small", check=False)
    assert again.returncode == 2 and "there is, or was, a tenant" in again.stderr
    changed = json.loads(platform.cli("tenants", "set", "small", "weight=300", "running_jobs=", "--json").stdout)
    assert changed["limits"] == {"weight": 300, "rate_per_second": 0.5, "payload_bytes": 2000000000}
    assert "small" in platform.cli("tenants", "ls").stdout
    for words, text in ((["weight=0"], "weight is 0; it must be a whole number of 1 to 1000"),
                        (["running_jobs=-1"], "running_jobs is -1; it must be a whole number of 0 to 1000000"),
                        (["waiting_jobs=1T"], "waiting_jobs is 1000000000000"),
                        (["wieght=3"], "there is no limit 'wieght' on a tenant; there are waiting_jobs"),
                        (["weight=many"], "weight is 'many'; it must be a number")):
        wrong = platform.cli("tenants", "set", "small", *words, check=False)
        assert wrong.returncode in (1, 2) and text in wrong.stderr, wrong.stderr
    assert platform.http("PATCH", "/v1/tenants/small", {"limits": {"weight": "3"}}).status == 400
    wrong = platform.http("PATCH", "/v1/tenants/small", {"limit": {"weight": 3}})
    assert wrong.status == 400 and "there is no field 'limit'" in wrong.json["error"]
    assert platform.http("PATCH", "/v1/tenants/nobody", {"limits": {"weight": 3}}).status == 404

    key = json.loads(platform.cli("keys", "create", "--tenant", "small", "running_jobs=1", "--json").stdout)
    (shown,) = json.loads(platform.cli("keys", "ls", "--tenant", "small", "--json").stdout)["keys"]
    assert shown["prefix"] == key["prefix"] and shown["limits"] == {"running_jobs": 1}
    wrong = platform.cli("keys", "set", key["prefix"], "--tenant", "small", "weight=3", check=False)
    assert wrong.returncode == 2 and "there is no limit 'weight' on an API key" in wrong.stderr
    own = platform.http("GET", "/v1/tenants", key=key["api_key"]).json["tenants"]
    assert [tenant["id"] for tenant in own] == ["small"]
    assert platform.http("GET", "/v1/tenants/acme", key=key["api_key"]).status == 404
    for method, path, body in (("PATCH", "/v1/tenants/small", {"limits": {}}), ("DELETE", "/v1/tenants/small", None),
                               ("POST", "/v1/tenants", {"id": "mine"}), ("GET", "/v1/api_keys?tenant=acme", None)):
        assert platform.http(method, path, body, key=key["api_key"]).status == 403, (method, path)

    held = platform.cli("tenants", "rm", "acme", check=False)
    assert held.returncode == 2 and "has models" in held.stderr
    platform.cli("tenants", "rm", "small")
    wait_until("its key to be refused", lambda: platform.http(
        "GET", "/v1/tenants", key=key["api_key"]).status == 401)
    assert platform.cli("tenants", "rm", "default", check=False).returncode == 2


# --- what runs ----------------------------------------------------------------------------------


def jobs_of(stack, count, milliseconds, **options):
    body = {"model_input": {"sim": {"sleep_ms": milliseconds}}, **options.pop("fields", {})}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: post(stack, body, **options), range(count)))
    assert {reply.status for reply in replies} == {201}, replies
    return [reply.json["request_id"] for reply in replies]


def wait_all(stack, jobs, seconds=60):
    wait_until("all jobs to succeed", lambda: stack.sql(
        "SELECT count(*) FROM headrace.job WHERE state = 3 AND id = ANY (string_to_array(:'a1', ',')::uuid[])",
        ",".join(jobs)) == [[str(len(jobs))]], seconds, step=0.1)


def test_running_jobs_are_exact_over_a_takeover(acme):
    limit(acme, "running_jobs=2")
    jobs = jobs_of(acme, 16, 400)
    wait_until("some of them to have ended", lambda: int(acme.sql(
        "SELECT count(*) FROM headrace.job WHERE state = 3 AND id = ANY (string_to_array(:'a1', ',')::uuid[])",
        ",".join(jobs))[0][0]) >= 4)
    acme.kill_service("broker")
    acme.start_service("broker")
    wait_all(acme, jobs)
    assert most_at_once(acme, jobs) == 2
    limit(acme, "running_jobs=4")
    jobs = jobs_of(acme, 16, 300)
    wait_all(acme, jobs)
    assert most_at_once(acme, jobs) == 4


def test_a_key_has_a_limit_of_its_own(acme):
    made = json.loads(acme.cli("keys", "create", "--tenant", "acme", "--json").stdout)
    acme.cli("keys", "set", made["prefix"], "running_jobs=1", "--tenant", "acme")
    slow = jobs_of(acme, 6, 300, key=made["api_key"])
    others = jobs_of(acme, 12, 300)
    wait_all(acme, others + slow)
    assert most_at_once(acme, slow) == 1
    assert most_at_once(acme, others) > 2
    acme.cli("keys", "rm", made["prefix"], "--tenant", "acme")


def test_a_job_may_take_several_slots(acme):
    jobs = jobs_of(acme, 6, 200, fields={"slot_count": 5})
    wait_all(acme, jobs)
    assert most_at_once(acme, jobs) == 1  # 5 + 5 > 8
    wrong = post(acme, {"model_input": {}, "slot_count": 9})
    assert wrong.status == 400 and "slot_count is 9; it must be 1 to 8" in wrong.json["error"]


def test_what_sql_wrote_wrongly_is_no_limit(acme):
    """And it is nobody else's trouble: the others' limits are read all the same."""
    acme.sql("""UPDATE headrace.tenant SET limits =
             '{"running_jobs": 1e400, "waiting_jobs": -5, "weight": "heavy", "odd": 1}' WHERE id = 'acme'""")
    try:
        made = json.loads(acme.cli("keys", "create", "--tenant", "acme", "running_jobs=1", "--json").stdout)
        wait_all(acme, jobs_of(acme, 8, 200))
        slow = jobs_of(acme, 4, 200, key=made["api_key"])
        wait_all(acme, slow)
        assert most_at_once(acme, slow) == 1
    finally:
        acme.sql("UPDATE headrace.tenant SET limits = '{}' WHERE id = 'acme'")


# --- caps ---------------------------------------------------------------------------------------


def intake_end(stack):
    return sum(1 for _ in stack.consume("intake"))


def test_waiting_jobs_are_capped(acme):
    limit(acme, "running_jobs=0", "waiting_jobs=3")
    taken, reply = refused(acme)
    assert reply.status == 429 and int(reply.headers["retry-after"]) >= 1
    assert reply.json["limit"] == "waiting_jobs" and reply.json["limit_value"] == 3
    assert 3 <= reply.json["current"] <= len(taken)
    assert reply.json["error_code"] == "rate_limited" and "waiting_jobs" in reply.json["error"]
    before = intake_end(acme)
    assert post(acme, {"model_input": {}}).status == 429
    assert intake_end(acme) == before  # nothing was produced
    assert acme.sql("SELECT count(*) FROM headrace.job WHERE tenant = 'acme' AND state = 1") == [[str(len(taken))]]
    usage = acme.http("GET", "/v1/tenants/acme").json["usage"]
    assert usage["waiting_jobs"] == len(taken) and usage["running_jobs"] == 0
    limit(acme, "waiting_jobs=1000")
    wait_until("submits to be taken", lambda: post(acme, {"model_input": {}}).status == 201)
    limit(acme, "running_jobs=")
    wait_all(acme, taken)


def test_payload_bytes_are_capped(acme):
    limit(acme, "running_jobs=0", "payload_bytes=100k")
    taken, reply = refused(acme, {"model_input": {"text": "x" * 30000}})
    assert reply.status == 429 and reply.json["limit"] == "payload_bytes"
    assert 4 <= len(taken) and 100000 <= reply.json["current"] <= 30012 * len(taken)
    for job in taken:
        acme.http("DELETE", f"/async_request/{job}", key=acme.acme)
    wait_until("the bytes to be free", lambda: acme.http(
        "GET", "/v1/tenants/acme").json["usage"]["payload_bytes"] == 0)
    wait_until("submits to be taken", lambda: post(acme, {"model_input": {}}).status == 201)


def test_delayed_jobs_are_capped(acme):
    limit(acme, "delayed_jobs=2")
    failing = {"model_input": {"sim": {"fail": "model_error", "fail_times": 1}},
               "inference_retry_config": {"max_attempts": 2, "initial_delay_ms": 10000, "max_delay_ms": 20000}}
    taken, reply = refused(acme, failing)
    assert reply.status == 429 and reply.json["limit"] == "delayed_jobs" and reply.json["current"] >= 2
    for job in taken:
        acme.http("DELETE", f"/async_request/{job}", key=acme.acme)
    wait_until("nobody to be delayed", lambda: acme.http(
        "GET", "/v1/tenants/acme").json["usage"]["delayed_jobs"] == 0)


def test_what_would_start_too_late_is_refused_on_demand(acme):
    wait_all(acme, jobs_of(acme, 8, 2000))  # teaches the pool what a job takes
    wait_until("the pace to be written", lambda: acme.sql(
        "SELECT count(*) FROM headrace.pool_pace WHERE pool = 'sim' AND slots = 8 AND service_us > 500000") == [["1"]])
    limit(acme, "running_jobs=0")
    fields = {"max_time_in_queue_seconds": 10}
    waiting = jobs_of(acme, 300, 0)

    def ask():
        reply = post(acme, {"model_input": {}, "refuse_late": True, **fields})
        return reply if reply.status != 201 else None

    reply = wait_until("a refusal", ask)
    assert reply.status == 429 and reply.json["limit"] == "max_time_in_queue_seconds"
    assert reply.json["limit_value"] == 10 and reply.json["estimated_wait_seconds"] > 10
    assert "x-headrace-request-id" not in reply.headers
    assert post(acme, {"model_input": {}, **fields}).status == 201  # nobody asked
    limit(acme, "running_jobs=")
    wait_all(acme, waiting)


# --- rates, and two gateways --------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateways(platform):
    """Two of them: the stack's own and one more with the same environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pid = platform.services()["gateway"]["pid"]
    lines = pathlib.Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    env = {**dict(line.split("=", 1) for line in lines if "=" in line), "HEADRACE_PORT": str(port),
           "HEADRACE_LOG_FILE": str(platform.data_dir / "logs" / "gateway2.log")}
    process = subprocess.Popen([BINARY, "gateway"], env=env, stdin=subprocess.DEVNULL, cwd=ROOT,
                               preexec_fn=die_with_parent)

    def ready():
        assert process.poll() is None, platform.tell()
        try:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            client.request("GET", "/readyz")
            return client.getresponse().status == 200
        except OSError:
            return False

    try:
        wait_until("the second gateway", ready, 60)
        yield [platform.url("gateway"), f"http://127.0.0.1:{port}"]
    finally:
        process.terminate()
        process.wait(timeout=60)


def rush(stack, gateways, count):
    """That many submits at once over all gateways: replies, and the seconds that it took."""
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda i: post(stack, {"model_input": {}}, base=gateways[i % len(gateways)]),
                                range(count)))
    return replies, time.monotonic() - begun


def test_rates_are_exact_over_gateways_and_a_flush(acme, gateways):
    limit(acme, "rate_per_second=2", "rate_burst=10")
    for base in gateways:
        wait_until("the rate to hold", lambda: post(acme, {"model_input": {}}, base=base).status == 429)
    for _ in range(2):  # the second time after a flush: one burst more, and no other harm
        acme.redis("FLUSHALL")
        replies, seconds = rush(acme, gateways, 60)
        passed = sum(reply.status == 201 for reply in replies)
        assert 10 <= passed <= 10 + 2 * seconds + 1, (passed, seconds)
        refusals = [reply for reply in replies if reply.status == 429]
        assert len(refusals) + passed == 60
        for reply in refusals:
            assert reply.json["limit"] == "rate_per_second" and reply.json["limit_value"] == 2
            assert "rate_burst" in reply.json["error"] and 1 <= int(reply.headers["retry-after"]) <= 2


def test_rates_without_redis_hold_in_each_gateway(acme, gateways):
    limit(acme, "rate_per_second=2", "rate_burst=10")
    for base in gateways:
        wait_until("the rate to hold", lambda: post(acme, {"model_input": {}}, base=base).status == 429)
    acme.stop_service("redis")
    try:
        begun = time.monotonic()
        replies, _ = rush(acme, gateways, 80)
        passed = sum(reply.status == 201 for reply in replies)
        assert {reply.status for reply in replies} <= {201, 429}
        assert passed <= 2 * (10 + 2 * (time.monotonic() - begun) + 1)
    finally:
        acme.start_service("redis")


def test_a_key_stands_for_one_job_over_gateways_and_a_flush(acme, gateways):
    def keyed(n, base, key="one"):
        return post(acme, {"model_input": {"n": n}}, base=base, headers={"Idempotency-Key": key})

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda i: keyed(1, gateways[i % 2]), range(16)))
    assert {reply.status for reply in replies} == {201}
    (job,) = {reply.json["request_id"] for reply in replies}
    acme.redis("FLUSHALL")
    for base in gateways:
        again = keyed(1, base)
        assert again.status == 201 and again.json["request_id"] == job
        assert again.headers["x-headrace-idempotent-replay"] == "true"
        other = keyed(2, base)
        assert other.status == 422 and "Idempotency-Key 'one'" in other.json["error"]
    acme.sql("UPDATE headrace.idempotency SET expires_at = now() - interval '1 second' WHERE key = 'one'")
    later = keyed(2, gateways[1])  # its lifetime is over: the key is free again
    assert later.status == 201 and later.json["request_id"] != job
    wait_all(acme, [job, later.json["request_id"]])
