# SPDX-License-Identifier: Apache-2.0
"""Goal: every result is delivered, signed all ways, and what a receiver answers has its effect.

Method: the whole platform with the sim engine; the schedule between tries and the times of circuits
are scaled to 1 %, the claim of a lost delivery to 2 s, a try to 4 s, an endpoint to four POSTs.
"""

import base64
import contextlib
import json
import os
import socket
import subprocess
import threading
import time

import pytest
from receiver import Receiver
from stack import BINARY, wait_until

QUICK = {"HEADRACE_SCHEDULE_PERCENT": "1", "HEADRACE_CLAIM": "2s", "HEADRACE_TIMEOUT": "4s",
         "HEADRACE_CIRCUIT_FAILURES": "5", "HEADRACE_CONNECTIONS_PER_ENDPOINT": "4"}


@pytest.fixture(scope="module")
def world(request):
    from conftest import run_stack

    for stack in run_stack(request, env=QUICK):
        stack.push_sim("echo")
        with Receiver() as receiver:
            yield stack, receiver


def delivery(stack, request_id):
    rows = stack.sql("SELECT state, try_count, last_http_status, coalesce(last_error, '') FROM "
                     "headrace.delivery WHERE job_id = :'a1'", request_id)
    return rows[0] if rows else None


def wait_state(stack, request_id, state, seconds=30):
    wait_until(f"delivery of {request_id} in state {state}",
               lambda: (delivery(stack, request_id) or [None])[0] == state, seconds)
    return delivery(stack, request_id)


PENDING, SUCCEEDED, FAILED, CANCELED = "1", "2", "3", "4"


def cli_json(stack, *words, code=0):
    done = stack.cli("webhooks", *words, "--json", check=False)
    assert done.returncode == code, done
    return json.loads(done.stdout)


def endpoint(stack, url):
    rows = [row for row in cli_json(stack, "endpoints", "ls")["endpoints"] if row["url"] == url]
    return rows[0] if rows else None


def audited(stack, action, target):
    return stack.sql("SELECT actor FROM headrace_v1.audit WHERE action = :'a1' AND target = :'a2' "
                     "ORDER BY id", action, target)


@contextlib.contextmanager
def odd_server(behave):
    """A listener that does to each connection what `behave` says, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    over = threading.Event()

    def serve():
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection):
        with connection, contextlib.suppress(OSError):
            behave(connection, over)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/odd"
    finally:
        over.set()
        listener.close()


def last_try(stack, job):
    rows = stack.sql("SELECT http_status, coalesce(error, ''), coalesce(answer, '') FROM "
                     "headrace_v1.delivery_tries WHERE job_id = :'a1' ORDER BY number DESC LIMIT 1", job)
    return rows[0] if rows else None


def test_delivered_with_both_signatures(world):
    stack, receiver = world
    secret = stack.http("POST", "/v1/webhook_secrets/rotate").json["secret"]
    job = stack.submit("echo", {"say": "hello"}, webhook_endpoint=receiver.url("/signed"))
    wait_state(stack, job, SUCCEEDED)
    (post,) = receiver.at("/signed")
    assert post.headers["x-baseten-request-id"] == job
    assert post.baseten_ok(secret) and post.standard_ok(secret)
    assert not post.baseten_ok(secret[:-1] + ("a" if secret[-1] != "a" else "b"))
    assert post.json["request_id"] == job and post.json["errors"] == []
    assert post.json["type"] == "async_request_completed" and post.json["data"] is not None
    assert stack.job(job)["webhook_status"] == "SUCCEEDED"


def test_rotation_keeps_the_old_secret_for_a_while(world):
    stack, receiver = world
    old = stack.http("POST", "/v1/webhook_secrets/rotate").json["secret"]
    new = stack.http("POST", "/v1/webhook_secrets/rotate").json["secret"]
    job = stack.submit("echo", {}, webhook_endpoint=receiver.url("/rotated"))
    wait_state(stack, job, SUCCEEDED)
    (post,) = receiver.at("/rotated")
    assert post.baseten_ok(new) and post.baseten_ok(old)
    assert post.standard_ok(new) and post.standard_ok(old)


def test_key_pair_signs_and_rotates(world):
    stack, receiver = world
    made = stack.http("POST", "/v1/webhook_secrets", {"type": "ed25519"})
    assert made.status == 201 and "secret" not in made.json, made
    assert stack.http("POST", "/v1/webhook_secrets", {"type": "ed25519"}).status == 409
    assert stack.http("POST", "/v1/webhook_secrets", {"type": "rsa"}).status == 400
    old, new = made.json["public_key"], json.loads(
        stack.cli("webhooks", "secret", "rotate", "--type", "ed25519", "--json").stdout)["public_key"]
    secret = stack.http("POST", "/v1/webhook_secrets/rotate").json["secret"]  # the keys stay
    job = stack.submit("echo", {}, webhook_endpoint=receiver.url("/keys"))
    wait_state(stack, job, SUCCEEDED)
    (post,) = receiver.at("/keys")
    assert post.ed25519_ok(new) and post.ed25519_ok(old)
    assert post.standard_ok(secret) and post.baseten_ok(secret)
    assert not post.ed25519_ok("whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=")
    assert "v1a" not in post.headers["x-baseten-signature"]
    keys = stack.http("GET", "/v1/webhook_keys").json["keys"]
    assert [(key["public_key"], key["state"]) for key in keys] == [(new, "active"), (old, "retiring")]
    raw = base64.urlsafe_b64decode(keys[0]["x"] + "=")
    assert new == "whpk_" + base64.b64encode(raw).decode()
    assert new in stack.cli("webhooks", "secret", "public").stdout
    stored = stack.sql("SELECT encode(sealed, 'escape') FROM headrace.webhook_secret")
    assert not any("whsk_" in row[0] for row in stored)
    for key in keys:
        assert stack.http("DELETE", f"/v1/webhook_secrets/{key['kid']}").status == 200
    job = stack.submit("echo", {}, webhook_endpoint=receiver.url("/keyless"))
    wait_state(stack, job, SUCCEEDED)
    assert "v1a" not in receiver.at("/keyless")[0].headers["webhook-signature"]


def test_server_errors_are_tried_again(world):
    stack, receiver = world
    receiver.answers["/flaky"] = [500, 503, 200]
    job = stack.submit("echo", {}, webhook_endpoint=receiver.url("/flaky"))
    state, tries, status, _ = wait_state(stack, job, SUCCEEDED)
    assert (tries, status) == ("3", "200")
    posts = receiver.at("/flaky")
    assert len(posts) == 3 and len({post.headers["webhook-id"] for post in posts}) == 1
    assert len({post.body for post in posts}) == 1
    rows = stack.sql("SELECT number, http_status FROM headrace.delivery_try WHERE job_id = :'a1' "
                     "ORDER BY number", job)
    assert rows == [["1", "500"], ["2", "503"], ["3", "200"]]


def test_refusals_are_final_after_three(world):
    stack, receiver = world
    receiver.answers["/missing"] = [404]
    job = stack.submit("echo", {}, webhook_endpoint=receiver.url("/missing"))
    state, tries, status, error = wait_state(stack, job, FAILED)
    assert (tries, status) == ("3", "404")
    final = stack.job(job)
    assert final["status"] == "WEBHOOK_FAILED" and final["webhook_status"] == "FAILED"
    assert stack.result(job).status == 200  # giving up on the delivery does not lose the result


def test_gone_disables_the_endpoint(world):
    stack, receiver = world
    receiver.answers["/gone"] = [410]
    first = stack.submit("echo", {}, webhook_endpoint=receiver.url("/gone"))
    assert wait_state(stack, first, FAILED)[1] == "1"
    second = stack.submit("echo", {}, webhook_endpoint=receiver.url("/gone"))
    assert "410" in wait_state(stack, second, FAILED)[3]
    assert len(receiver.at("/gone")) == 1


def test_private_addresses_are_refused(world):
    stack, _ = world
    job = stack.submit("echo", {}, webhook_endpoint="https://169.254.169.254/latest/meta-data")
    _, tries, status, error = wait_state(stack, job, FAILED)
    assert (tries, status) == ("3", "0") and "not public" in error


def test_failed_jobs_are_told_too(world):
    stack, receiver = world
    job = stack.submit("echo", {"sim": {"fail": "bad_input"}},
                       webhook_endpoint=receiver.url("/failed"))
    wait_state(stack, job, SUCCEEDED)
    (post,) = receiver.at("/failed")
    assert post.json["data"] is None
    assert post.json["errors"][0]["code"] == "MODEL_INVALID_INPUT"


def test_killed_sender_loses_nothing(world):
    stack, receiver = world
    stack.kill_service("webhook")
    jobs = [stack.submit("echo", {"n": n}, webhook_endpoint=receiver.url("/killed"))
            for n in range(30)]
    for job in jobs:
        stack.wait_final(job)
    stack.start_service("webhook")
    wait_until("some deliveries", lambda: len(receiver.at("/killed")) > 3)
    stack.kill_service("webhook")
    stack.start_service("webhook")
    for job in jobs:
        wait_state(stack, job, SUCCEEDED)
    ids = [post.headers["webhook-id"] for post in receiver.at("/killed")]
    assert len(set(ids)) == len(jobs)
    print(f"jobs {len(jobs)}, posts {len(ids)}, repeated {len(ids) - len(set(ids))}, lost 0")


# --- the ledger: list, show, replay -------------------------------------------------------------------


def test_list_show_and_replay_one(world):
    stack, receiver = world
    receiver.answers["/ledger?job=1"] = [(404, {}, b"no such hook"), 404, 404, 200]
    job = stack.submit("echo", {}, webhook_endpoint=receiver.url("/ledger?job=1"))
    wait_state(stack, job, FAILED)
    (row,) = cli_json(stack, "ls", "--status", "FAILED", "--endpoint", receiver.url("/ledger"))["deliveries"]
    assert row["id"] == f"msg_{job}_1" and row["request_id"] == job and row["round"] == 1
    assert row["endpoint"] == receiver.url("/ledger") and row["last_error"] == "HTTP 404"
    shown = cli_json(stack, "show", job)
    assert [one["http_status"] for one in shown["tries"]] == [404, 404, 404]
    assert shown["tries"][0]["answer"] == "no such hook" and shown["tries"][0]["address"] == "127.0.0.1"
    assert "no such hook" in stack.cli("webhooks", "show", row["id"]).stdout

    assert cli_json(stack, "replay", row["id"]) == {"id": row["id"], "status": "PENDING"}
    assert wait_state(stack, job, SUCCEEDED)[1] == "4"
    assert stack.job(job)["status"] == "SUCCEEDED"
    posts = receiver.at("/ledger?job=1")
    assert len(posts) == 4 and len({(p.headers["webhook-id"], p.body) for p in posts}) == 1
    assert cli_json(stack, "show", job)["replayed_at"] is not None
    assert audited(stack, "WEBHOOK_DELIVERY_REPLAYED", row["id"]) == [[stack.key.split(".")[0]]]
    assert stack.http("GET", "/v1/webhook_deliveries/nonsense").status == 400
    assert stack.http("GET", f"/v1/webhook_deliveries/msg_{job}_2").status == 404
    assert stack.http("POST", f"/v1/webhook_deliveries/msg_{job}_2/replay").status == 404


def test_replay_by_filter(world):
    stack, receiver = world
    receiver.answers["/many"] = [403]
    to = ("--endpoint", receiver.url("/many"))
    jobs = [stack.submit("echo", {"n": n}, webhook_endpoint=receiver.url("/many")) for n in range(3)]
    for job in jobs:
        wait_state(stack, job, FAILED)
    counted = cli_json(stack, "replay", *to)
    assert counted == {"matched": 3, "replayed": 0, "dry_run": True, "more": False}
    assert "3 deliveries match" in stack.cli("webhooks", "replay", *to).stdout
    receiver.answers["/many"] = [200]
    assert cli_json(stack, "replay", *to, "--limit", "2", "--yes") == {
        "matched": 2, "replayed": 2, "dry_run": False, "more": True}
    for job in jobs[:2]:  # the oldest first
        wait_state(stack, job, SUCCEEDED)
    assert delivery(stack, jobs[2])[0] == FAILED
    assert cli_json(stack, "replay", *to, "--model", "echo", "--since", "2020-01-01", "--yes")["replayed"] == 1
    wait_state(stack, jobs[2], SUCCEEDED)
    assert cli_json(stack, "replay", *to, "--yes", code=3)["matched"] == 0  # nothing is left
    assert "no delivery matches" in stack.cli("webhooks", "replay", *to, check=False).stdout
    wrong = stack.http("POST", "/v1/webhook_deliveries/replay", {"modle": "echo"})
    assert wrong.status == 400 and "modle" in wrong.json["error"]
    assert cli_json(stack, "replay", *to, "--status", "SUCCEEDED")["matched"] == 3
    assert len(audited(stack, "WEBHOOK_DELIVERIES_REPLAYED", receiver.url("/many"))) == 2


def test_pages_of_deliveries(world):
    stack, receiver = world
    jobs = [stack.submit("echo", {"n": n}, webhook_endpoint=receiver.url("/pages")) for n in range(5)]
    for job in jobs:
        wait_state(stack, job, SUCCEEDED)
    seen, cursor = [], ()
    while True:
        page = cli_json(stack, "ls", "--endpoint", receiver.url("/pages"), "--limit", "2", *cursor)
        seen += [row["request_id"] for row in page["deliveries"]]
        if page["next_cursor"] is None:
            break
        cursor = ("--cursor", page["next_cursor"])
    assert sorted(seen) == sorted(jobs) and seen == sorted(seen, reverse=True)


def test_each_round_is_a_delivery_of_its_own(world):
    """A second `completed` of the same job, as a replay of the job makes it."""
    stack, receiver = world
    job = stack.submit("echo", {"n": 1}, webhook_endpoint=receiver.url("/rounds"))
    wait_state(stack, job, SUCCEEDED)
    record = next(r for r in stack.consume("completed") if r.value.find(b"/rounds") > 0)
    at = record.value.index(bytes.fromhex(job.replace("-", ""))) + 16
    assert record.value[at:at + 2] == b"\x02\x01"  # field 2, the round: 1
    subprocess.run(["kcat", "-P", "-q", "-b", stack.url("kafka"), "-t", "completed", "-p",
                    str(record.partition), "-D", "\x1e\x1e"], check=True, timeout=60,
                   input=record.value[:at + 1] + b"\x02" + record.value[at + 2:])
    posts = wait_until("both rounds", lambda: len(receiver.at("/rounds")) == 2 and receiver.at("/rounds"))
    assert [p.headers["webhook-id"] for p in posts] == [f"msg_{job}_1", f"msg_{job}_2"]
    assert [p.json["round"] for p in posts] == [1, 2]
    assert {p.json["request_id"] for p in posts} == {job}
    wait_until("two rows", lambda: stack.sql(
        "SELECT round, status FROM headrace_v1.deliveries WHERE job_id = :'a1' ORDER BY round", job)
        == [["1", "SUCCEEDED"], ["2", "SUCCEEDED"]])
    assert cli_json(stack, "show", job)["round"] == 2
    assert cli_json(stack, "show", f"msg_{job}_1")["round"] == 1


# --- endpoints --------------------------------------------------------------------------------------------


def test_disable_and_enable(world):
    stack, receiver = world
    url, actor = receiver.url("/off"), stack.key.split(".")[0]
    off = cli_json(stack, "endpoints", "disable", url + "?q", "--reason", "moves on Monday")
    assert off == {"url": url, "status": "disabled", "changed": True}
    assert cli_json(stack, "endpoints", "disable", url)["changed"] is False
    job = stack.submit("echo", {}, webhook_endpoint=url + "?job=1")
    assert "moves on Monday" in wait_state(stack, job, FAILED)[3]
    assert endpoint(stack, url)["disabled_by"] == actor
    refused = stack.http("POST", f"/v1/webhook_deliveries/{job}/replay")
    assert refused.status == 409 and "enable it first" in refused.json["error"]
    assert cli_json(stack, "replay", "--endpoint", url, "--yes", code=3)["matched"] == 0
    assert cli_json(stack, "endpoints", "enable", url) == {"url": url, "status": "enabled", "changed": True}
    assert cli_json(stack, "endpoints", "enable", url)["changed"] is False
    assert cli_json(stack, "replay", "--endpoint", url, "--yes")["replayed"] == 1
    wait_state(stack, job, SUCCEEDED)
    assert len(receiver.at("/off?job=1")) == 1
    for action in ("DISABLED", "ENABLED"):
        assert audited(stack, f"WEBHOOK_ENDPOINT_{action}", url) == [[actor]]
    assert stack.http("POST", "/v1/webhook_endpoints/disable", {"url": "ftp://x"}).status == 400


def test_pending_deliveries_of_a_disabled_endpoint_end(world):
    """Also when the reason, cut in the middle of a character, is no text any more."""
    stack, receiver = world
    receiver.answers["/soon_off"] = [500]
    job = stack.submit("echo", {}, webhook_endpoint=receiver.url("/soon_off"))
    wait_until("a first try", lambda: last_try(stack, job))
    cli_json(stack, "endpoints", "disable", receiver.url("/soon_off"), "--reason", "ü" * 200)
    stack.http("POST", f"/v1/webhook_deliveries/{job}/replay")  # or wait for its next try
    wait_state(stack, job, FAILED)


def test_gone_can_be_undone(world):
    stack, receiver = world
    url = receiver.url("/gone_once")
    receiver.answers["/gone_once"] = [410, 200]
    job = stack.submit("echo", {}, webhook_endpoint=url)
    wait_state(stack, job, FAILED)
    row = endpoint(stack, url)
    assert (row["status"], row["disabled_by"]) == ("disabled", "receiver") and "410" in row["disabled_reason"]
    assert audited(stack, "WEBHOOK_ENDPOINT_DISABLED", url) == [["receiver"]]
    cli_json(stack, "endpoints", "enable", url)
    cli_json(stack, "replay", job)
    wait_state(stack, job, SUCCEEDED)


def test_circuit_opens_and_closes(world):
    stack, receiver = world
    url = receiver.url("/broken")
    receiver.answers["/broken"] = [500]
    jobs = [stack.submit("echo", {"n": n}, webhook_endpoint=url) for n in range(12)]
    wait_until("an open circuit", lambda: (endpoint(stack, url) or {}).get("circuit") in ("open", "half-open"))
    assert endpoint(stack, url)["failures"] >= 5
    assert stack.sql("SELECT last_http_status FROM headrace_v1.webhook_endpoints WHERE url = :'a1'", url) == [["500"]]
    well = stack.submit("echo", {}, webhook_endpoint=receiver.url("/well"))
    wait_state(stack, well, SUCCEEDED, 10)
    receiver.answers["/broken"] = [200]
    for job in jobs:
        stack.http("POST", f"/v1/webhook_deliveries/{job}/replay")
    for job in jobs:
        wait_state(stack, job, SUCCEEDED)
    wait_until("a closed circuit", lambda: endpoint(stack, url)["circuit"] == "closed")
    assert endpoint(stack, url)["last_success_at"] is not None


def test_retry_after_is_honoured(world):
    stack, receiver = world
    receiver.answers["/busy"] = [(429, {"Retry-After": "2"}), 200]
    first = stack.submit("echo", {}, webhook_endpoint=receiver.url("/busy"))
    wait_until("the first answer", lambda: last_try(stack, first))
    second = stack.submit("echo", {}, webhook_endpoint=receiver.url("/busy"))
    for job in (first, second):
        wait_state(stack, job, SUCCEEDED)
    posts = receiver.at("/busy")
    assert len(posts) == 3 and posts[1].at - posts[0].at >= 1.9  # the other one waited too


# --- receivers that are odd ---------------------------------------------------------------------------------


def hang(connection, over):
    over.wait(60)


def drip(connection, over):
    connection.recv(65536)
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n":
        connection.sendall(bytes([byte]))
        if over.wait(0.25):
            return


def flood(connection, over):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
    while not over.is_set():
        connection.sendall(b"x" * 65536)


def babble(connection, over):
    connection.recv(65536)
    connection.sendall(b"this is no HTTP\r\n\r\n")


def slam(connection, over):
    connection.recv(1)


def redirect(connection, over):
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\n"
                       b"Content-Length: 0\r\n\r\n")


@pytest.mark.parametrize("behave, status, error", [
    (hang, "0", "imed out"), (drip, "0", "imed out"), (flood, "200", ""), (babble, "0", "HTTP"),
    (slam, "0", ""), (redirect, "302", "HTTP 302")], ids=lambda value: getattr(value, "__name__", ""))
def test_odd_receivers(world, behave, status, error):
    """Each gets its verdict, and costs a well one nothing."""
    stack, receiver = world
    with odd_server(behave) as url:
        job = stack.submit("echo", {}, webhook_endpoint=url)
        started = time.monotonic()
        well = stack.submit("echo", {}, webhook_endpoint=receiver.url("/beside"))
        wait_state(stack, well, SUCCEEDED)
        got = wait_until("the end of its try", lambda: last_try(stack, job))
        assert got[0] == status and error in got[1], got
        assert time.monotonic() - started < 20
        if status == "200":
            wait_state(stack, job, SUCCEEDED)
        elif status == "302":
            assert wait_state(stack, job, FAILED)[1] == "3"
        else:
            assert delivery(stack, job)[0] == PENDING


def test_names_that_do_not_resolve(world):
    stack, _ = world
    job = stack.submit("echo", {}, webhook_endpoint="https://no-such-host.invalid/hook")
    got = wait_until("a try", lambda: last_try(stack, job), 30)
    assert got[0] == "0" and "resolve" in got[1].lower()
    assert delivery(stack, job)[0] == PENDING


def test_many_that_hang_cost_a_well_one_nothing(world):
    """Thirty deliveries to hosts that never answer are under way or wait; another takes no longer."""
    stack, receiver = world
    with contextlib.ExitStack() as servers:
        urls = [servers.enter_context(odd_server(hang)) for _ in range(3)]
        for n in range(30):
            stack.submit("echo", {"n": n}, webhook_endpoint=urls[n % 3])
        jobs = [stack.submit("echo", {"n": n}, webhook_endpoint=receiver.url("/quick")) for n in range(5)]
        for job in jobs:
            wait_state(stack, job, SUCCEEDED)
        (waited,) = stack.sql("SELECT max(t.started_at - d.created_at) < '3 s', max(t.started_at - d.created_at) "
                              "FROM headrace.delivery d JOIN headrace.delivery_try t USING (job_id, round) "
                              "WHERE d.url LIKE '%/quick'")
        print(f"from its row to its POST beside 30 that hang: {waited[1]}")
        assert waited[0] == "t"  # the others' tries take 4 s
        stack.sql("UPDATE headrace.delivery SET state = 3, next_at = NULL WHERE url LIKE '%/odd'")


# --- what a crash leaves --------------------------------------------------------------------------------------


def test_killed_between_row_and_post_and_between_post_and_record(world):
    """Four are posted and not answered, the others have a row and wait for a place."""
    stack, receiver = world
    held = receiver.held["/held"] = threading.Event()
    jobs = [stack.submit("echo", {"n": n}, webhook_endpoint=receiver.url("/held")) for n in range(10)]
    wait_until("four POSTs", lambda: len(receiver.at("/held")) == 4)
    wait_until("ten rows", lambda: all(delivery(stack, job) for job in jobs))
    stack.kill_service("webhook")
    held.set()
    stack.start_service("webhook")
    for job in jobs:
        wait_state(stack, job, SUCCEEDED)
    ids = [post.headers["webhook-id"] for post in receiver.at("/held")]
    assert len(set(ids)) == 10 and len(ids) >= 14


def test_stopped_sender_hands_over_at_once(world):
    stack, receiver = world
    held = receiver.held["/handed"] = threading.Event()
    jobs = [stack.submit("echo", {"n": n}, webhook_endpoint=receiver.url("/handed")) for n in range(10)]
    wait_until("four POSTs", lambda: len(receiver.at("/handed")) == 4)
    wait_until("ten rows", lambda: all(delivery(stack, job) for job in jobs))
    threading.Timer(0.5, held.set).start()
    stack.restart_service("webhook")
    tries = sum(int(wait_state(stack, job, SUCCEEDED)[1]) for job in jobs)
    assert len(receiver.at("/handed")) == tries  # what was under way was finished and written down


def test_postgres_away_between_post_and_record(world):
    stack, receiver = world
    held = receiver.held["/away"] = threading.Event()
    jobs = [stack.submit("echo", {"n": n}, webhook_endpoint=receiver.url("/away")) for n in range(3)]
    wait_until("three POSTs", lambda: len(receiver.at("/away")) == 3)
    stack.kill_service("postgres")
    held.set()
    stack.start_service("postgres")
    for job in jobs:
        wait_state(stack, job, SUCCEEDED)
    ids = [post.headers["webhook-id"] for post in receiver.at("/away")]
    assert len(set(ids)) == 3


@contextlib.contextmanager
def second_sender(stack):
    """Another process of the same group, as on another machine."""
    log = stack.data_dir / "logs" / "webhook2.log"
    process = subprocess.Popen(
        [BINARY, "webhook", "--kafka", stack.url("kafka").removeprefix("kafka://"), "--postgres",
         stack.url("postgres"), "--seal-key-file", stack.data_dir / "seal.key", "--allow", "127.0.0.0/8",
         "--instance", "second", "--log-file", log],
        env={k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")} | QUICK)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_two_senders_and_a_rebalance(world):
    """Partitions move to the second sender and back, by its death; nothing is lost or skipped."""
    stack, receiver = world
    jobs = []

    def submit(count):
        jobs.extend(stack.submit("echo", {"n": n}, webhook_endpoint=receiver.url("/two")) for n in range(count))

    submit(5)
    with second_sender(stack) as other:
        submit(5)
        stack.restart_service("webhook", kill=True)
        submit(10)
        other.kill()
        other.wait()
        submit(5)
        for job in jobs:
            wait_state(stack, job, SUCCEEDED, 60)
    ids = [post.headers["webhook-id"] for post in receiver.at("/two")]
    assert len(set(ids)) == len(jobs)
    print(f"jobs {len(jobs)}, posts {len(ids)}, repeated {len(ids) - len(set(ids))}, lost 0")
