# SPDX-License-Identifier: Apache-2.0
"""Goal: what people ask of jobs happens, once, and is answered: cancel, replay and priority by SQL,
HTTP and the command line, by id and by filter; kill switches hold what waits and refuse what comes.

Method: the whole platform with the sim engine, whose requests say how they end; brokers are killed
while they carry commands out.
"""

import json
import subprocess
import time

import msgpack
import pytest
from receiver import Receiver
from stack import wait_until

BAD = {"sim": {"fail": "bad_input"}}
LONG = {"sim": {"sleep_ms": 600000}}
COMPLETED = 30


@pytest.fixture(scope="module")
def stack(request):
    from conftest import run_stack

    for stack in run_stack(request):
        stack.push_sim("sim")
        stack.push_sim("narrow", slots=1)
        yield stack


def failed(stack, model="sim", **fields):
    job = stack.submit(model, BAD, **fields)
    assert stack.wait_final(job)["status"] == "FAILED"
    return job


def ledger(stack, job):
    return stack.sql("SELECT state, round, attempt_count, rank, seq FROM headrace.job WHERE id = :'a1'", job)[0]


def wait_round(stack, job, round, states=("3", "4")):
    wait_until(f"round {round} of {job} to end",
               lambda: ledger(stack, job)[1] == str(round) and ledger(stack, job)[0] in states)


def command(stack, number):
    """Its status and why, once it is decided."""

    def ask():
        ((status, reason),) = stack.sql(
            "SELECT status, coalesce(reason, '') FROM headrace_v1.commands WHERE id = :a1", number)
        return status != "PENDING" and (status, reason)

    return wait_until(f"command {number} to be acknowledged", ask)


def ask(stack, call, *args):
    return stack.sql(f"SELECT headrace_v1.{call}", *args)[0][0]


def completed_rounds(stack, job):
    found = set()
    for record in stack.consume("completed"):
        _, kind, fields = msgpack.unpackb(record.value, strict_map_key=False)
        if kind == COMPLETED and fields[1].hex() == job.replace("-", ""):
            found.add(fields[2])
    return found


# --- SQL -----------------------------------------------------------------------------------------


def test_a_replay_is_a_round_of_the_same_job(stack):
    job = failed(stack)
    dead = stack.sql("SELECT status, error_class, attempts, worker IS NOT NULL, replayable FROM "
                     "headrace_v1.dead_jobs WHERE id = :'a1'", job)
    assert dead == [["FAILED", "bad_input", "1", "t", "t"]]
    first = ledger(stack, job)
    number = ask(stack, "replay(:'a1')", job)
    assert command(stack, number) == ("APPLIED", "")
    wait_round(stack, job, 2)
    assert ledger(stack, job)[2] == "1"  # attempts are numbered anew
    assert int(ledger(stack, job)[4]) > int(first[4])  # and it has another place
    rounds = stack.sql("SELECT round, number FROM headrace_v1.attempts WHERE job_id = :'a1' ORDER BY 1", job)
    assert rounds == [["1", "1"], ["2", "1"]]
    assert stack.sql("SELECT replayed_at > accepted_at FROM headrace_v1.jobs WHERE id = :'a1'", job) == [["t"]]
    wait_until("both rounds to be told", lambda: completed_rounds(stack, job) == {1, 2})
    actions = stack.sql("SELECT action FROM headrace_v1.audit WHERE target = :'a1'", job)
    assert actions == [["JOB_REPLAY_ASKED"]]


def test_a_round_is_replayed_once(stack):
    job = failed(stack)
    two = stack.sql("SELECT headrace_v1.replay(:'a1') FROM generate_series(1, 2)", job)
    outcomes = sorted(command(stack, number)[0] for (number,) in two)
    assert outcomes == ["APPLIED", "REFUSED"]
    wait_round(stack, job, 2)


def test_a_replay_may_succeed_and_is_delivered_again(stack):
    with Receiver() as receiver:
        job = failed(stack, webhook_endpoint=receiver.url("/replayed"))
        wait_until("the first delivery", lambda: len(receiver.at("/replayed")) == 1)
        # The input is mended, as a fixed model would mend it.
        stack.sql("UPDATE headrace.job_input SET input = '{}' WHERE job_id = :'a1';"
                  "UPDATE headrace.job SET input_digest = sha256('{}') WHERE id = :'a1'", job)
        assert command(stack, ask(stack, "replay(:'a1')", job))[0] == "APPLIED"
        assert stack.wait_final(job)["status"] in ("SUCCEEDED", "FAILED")
        wait_until("status to be that of the second round", lambda: stack.job(job)["status"] == "SUCCEEDED")
        assert stack.result(job).status == 200
        wait_until("the second delivery", lambda: len(receiver.at("/replayed")) == 2)
        ids = {post.headers["webhook-id"] for post in receiver.at("/replayed")}
        assert len(ids) == 2


def test_cancel_and_priority_by_sql(stack):
    running = stack.submit("narrow", LONG)
    wait_until("it to run", lambda: stack.job(running)["status"] == "IN_PROGRESS")
    waiting = stack.submit("narrow", {})
    wait_until("its row", lambda: stack.sql("SELECT 1 FROM headrace.job WHERE id = :'a1'", waiting))
    assert command(stack, ask(stack, "set_priority(:'a1', 2)", waiting)) == ("APPLIED", "")
    assert ledger(stack, waiting)[3] == "3"
    status, why = command(stack, ask(stack, "set_priority(:'a1', 1)", running))
    assert status == "REFUSED" and "IN_PROGRESS" in why
    assert command(stack, ask(stack, "cancel(:'a1')", running)) == ("APPLIED", "")
    assert stack.job(running)["status"] == "CANCELED"
    assert stack.wait_final(waiting)["status"] == "SUCCEEDED"


@pytest.mark.parametrize("call, why", [
    ("replay('019ab2c4-7d51-7c11-8000-5d1f0a6c9e42')", "there is no job"),
    ("replay(:'a1')", "is SUCCEEDED: only FAILED and EXPIRED jobs are replayed"),
    ("cancel(:'a1')", "is SUCCEEDED already"),
    ("set_priority(:'a1', 3)", "it must be 0, 1 or 2"),
])
def test_refused_at_once_by_name(stack, call, why):
    job = stack.submit("sim", {})
    stack.wait_final(job)
    with pytest.raises(AssertionError, match=why):
        ask(stack, call, job)


def test_a_job_without_its_input_is_not_replayed(stack):
    job = failed(stack)
    stack.sql("DELETE FROM headrace.job_input WHERE job_id = :'a1'", job)
    with pytest.raises(AssertionError, match="input of job .* is gone"):
        ask(stack, "replay(:'a1')", job)
    reply = stack.http("POST", "/v1/jobs/replay", {"request_ids": [job]})
    assert reply.status == 200 and reply.json["accepted"] == 0
    assert reply.json["refused"] == [{"request_id": job, "message": "its input is gone"}]


def test_only_operators_may(stack):
    job = failed(stack)
    call = f"SELECT headrace_v1.replay('{job}')"
    with pytest.raises(AssertionError, match="permission denied"):
        stack.sql(f"SET ROLE headrace_reader; {call}")
    with pytest.raises(AssertionError, match="permission denied"):
        stack.sql("SET ROLE headrace_operator; DELETE FROM headrace.command")
    number = stack.sql(f"SET ROLE headrace_operator; {call}")[0][0]
    assert command(stack, number)[0] == "APPLIED"


# --- HTTP ----------------------------------------------------------------------------------------


def operation(stack, number, seconds=60):
    def done():
        reply = stack.http("GET", f"/v1/jobs/operations/{number}")
        assert reply.status == 200, reply
        return reply.json["pending"] == 0 and reply.json

    return wait_until(f"operation {number} to end", done, seconds)


def test_by_filter_with_a_dry_run_first(stack):
    tag = {"X-Headrace-Tags": "exp-7, team/a"}
    jobs = [stack.submit("sim", BAD, headers=tag) for _ in range(5)]
    for job in jobs:
        stack.wait_final(job)
    assert stack.sql("SELECT tags::text FROM headrace_v1.jobs WHERE id = :'a1'", jobs[0]) == [["{exp-7,team/a}"]]
    asked = {"filter": {"tag": "exp-7", "error_class": "bad_input", "model": "sim"}}
    plan = stack.http("POST", "/v1/jobs/replay", {**asked, "dry_run": True}).json
    assert plan["matched"] == 5 and plan["is_complete"] and plan["groups"][0]["count"] == 5
    assert {row["request_id"] for row in plan["sample"]} == set(jobs)
    assert all(ledger(stack, job)[1] == "1" for job in jobs)
    pages, cursor, number = 0, None, None
    while pages == 0 or cursor:
        reply = stack.http("POST", "/v1/jobs/replay", {**asked, "limit": 2, "cursor": cursor, "operation_id": number})
        assert reply.status in (200, 202), reply
        cursor, number, pages = reply.json["next_cursor"], reply.json["operation_id"], pages + 1
    assert pages == 3
    assert operation(stack, number)["applied"] == 5
    for job in jobs:
        wait_round(stack, job, 2)
    assert stack.http("POST", "/v1/jobs/replay", {"filter": {"tag": "nobody"}, "dry_run": True}).json["matched"] == 0
    assert stack.sql("SELECT count(*) FROM headrace_v1.audit WHERE action = 'JOBS_REPLAY_ASKED' AND target = :'a1'",
                     number) == [["3"]]


def test_several_by_id(stack):
    jobs = [stack.submit("narrow", LONG) for _ in range(3)]
    wait_until("rows", lambda: all(stack.sql("SELECT 1 FROM headrace.job WHERE id = :'a1'", job) for job in jobs))
    over = failed(stack)
    nobody = "019ab2c4-7d51-7c11-8000-5d1f0a6c9e42"
    reply = stack.http("POST", "/v1/jobs/cancel", {"request_ids": [*jobs, over, nobody]})
    assert reply.status == 202 and reply.json["accepted"] == 3
    refused = {row["request_id"]: row["message"] for row in reply.json["refused"]}
    assert refused == {over: "it is FAILED", nobody: "there is no such request"}
    assert operation(stack, reply.json["operation_id"])["applied"] == 3
    assert all(stack.job(job)["status"] == "CANCELED" for job in jobs)


@pytest.mark.parametrize("body, why", [
    ({}, "which jobs"),
    ({"filter": {}}, "matches every job"),
    ({"filter": {"status": "SUCCEEDED"}}, "must be FAILED or EXPIRED"),
    ({"filter": {"error_class": "bad luck"}}, "filter.error_class"),
    ({"filter": {"id; DROP TABLE job": 1}}, "is not known"),
    ({"filter": {"model": "x' OR '1'='1"}, "limit": 0}, "limit must be"),
    ({"filter": {"accepted_after": "yesterday"}}, "accepted_after"),
    ({"filter": {"model": "x' OR '1'='1"}}, "filter.model"),
    ({"all": True, "dryrun": True}, "dryrun is not known"),
    ({"request_ids": []}, "1 to 1000"),
    ({"request_ids": ["x"]}, "request_ids"),
    ({"request_ids": ["019ab2c4-7d51-7c11-8000-5d1f0a6c9e42"], "all": True}, "not both"),
    ({"all": True, "filter": {"model": "sim"}}, "not both"),
])
def test_what_cannot_be_read_is_refused(stack, body, why):
    reply = stack.http("POST", "/v1/jobs/replay", body)
    assert reply.status == 400 and why in reply.json["error"], reply


@pytest.mark.parametrize("window", [
    {"accepted_after": "2026-02-01", "accepted_before": "2026-01-01"}, {"accepted_before": "1969-12-31"},
])
def test_an_empty_window_matches_nothing(stack, window):
    reply = stack.http("POST", "/v1/jobs/replay", {"filter": window, "dry_run": True})
    assert reply.status == 200 and reply.json["matched"] == 0


def test_tags_are_checked(stack):
    path, body = "/model/sim/production/async_predict", {"model_input": {}}
    for bad, why in [("a b", "letters"), ("x" * 65, "64"), (",".join("abcdefghi"), "more than 8")]:
        reply = stack.http("POST", path, body, {"X-Headrace-Tags": bad})
        assert reply.status == 400 and why in reply.json["error"], reply


# --- the command line ----------------------------------------------------------------------------


def test_cli_replays_by_filter(stack):
    jobs = [stack.submit("sim", BAD, headers={"X-Headrace-Tags": "cli"}) for _ in range(3)]
    for job in jobs:
        stack.wait_final(job)
    where = ["--where", "tag=cli status=FAILED"]
    dry = stack.cli("jobs", "replay", *where, "--dry-run")
    assert "3 jobs match" in dry.stdout and jobs[0] in dry.stdout
    asked = stack.cli("jobs", "replay", *where, check=False, input="")
    assert asked.returncode == 1 and "--yes" in asked.stderr
    done = json.loads(stack.cli("jobs", "replay", *where, "--yes", "--json").stdout)
    assert done["applied"] == 3 and done["refused"] == 0 and done["pending"] == 0
    for job in jobs:
        wait_round(stack, job, 2)
    nothing = stack.cli("jobs", "replay", "--where", "tag=nobody", "--yes", check=False)
    assert nothing.returncode == 4 and "no job matches" in nothing.stderr
    for words, why in [((), "which jobs"), (("--where", "tag"), "key=value"), ((jobs[0], *where), "not both"),
                       (("--where", "tag=a tag=b"), "twice")]:
        wrong = stack.cli("jobs", "replay", *words, check=False)
        assert wrong.returncode == 1 and why in wrong.stderr, wrong
    unknown = stack.cli("jobs", "replay", "--where", "colour=blue", "--yes", check=False)
    assert unknown.returncode == 2 and "not known" in unknown.stderr


def test_cli_by_ids(stack):
    jobs = [failed(stack) for _ in range(2)]
    done = stack.cli("jobs", "replay", *jobs)
    assert "2 applied" in done.stdout
    again = stack.cli("jobs", "cancel", *jobs, "019ab2c4-7d51-7c11-8000-5d1f0a6c9e42", check=False)
    assert again.returncode == 3 and "no such request" in again.stderr


# --- a request with a time -------------------------------------------------------------------------


def at(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def planned(stack, job):
    return stack.sql("SELECT status FROM headrace_v1.planned_jobs WHERE id = :'a1'", job)


def test_a_request_runs_at_its_time(stack):
    """Until then a row keeps it; it may be canceled, its key finds it, and gateways that die cost nothing."""
    headers = {"Idempotency-Key": "planned-1", "X-Headrace-Tags": "later"}
    soon, far = at(4), at(3600)
    first = stack.submit("sim", {"number": 7}, headers=headers, run_at=soon)
    again = stack.http("POST", "/model/sim/production/async_predict", {"model_input": {"number": 7}, "run_at": soon}, headers)
    assert again.status == 201 and again.json["request_id"] == first and again.headers["x-headrace-idempotent-replay"] == "true", again
    later, past = stack.submit("sim", {}, run_at=far), stack.submit("sim", {}, run_at="2020-01-01")
    for job, when in ((first, soon), (later, far)):
        status = stack.job(job)
        assert status["status"] == "QUEUED" and status["run_at"].startswith(when[:-1]) and status["model_name"] == "sim", status
        assert planned(stack, job) == [["QUEUED"]]
    assert stack.result(first).status == 202
    assert stack.wait_final(past)["status"] == "SUCCEEDED"
    for _ in range(2):
        assert stack.cancel(later).json == {"request_id": later, "canceled": True, "message": "the request is CANCELED"}
    assert stack.job(later)["status"] == "CANCELED" and stack.job(later)["errors"][0]["code"] == "CANCELED"
    assert planned(stack, later) == [["CANCELED"]] and stack.result(later).status == 409
    stack.restart_service("gateway", kill=True)
    assert stack.wait_final(first)["status"] == "SUCCEEDED"
    row = stack.sql("SELECT extract(epoch FROM accepted_at - :'a2'::timestamptz) BETWEEN -0.01 AND 30, tags, idempotency_key "
                    "FROM headrace_v1.jobs WHERE id = :'a1'", first, soon)
    assert row == [["t", "{later}", "planned-1"]] and "run_at" not in stack.job(first)
    wait_until("their rows to go", lambda: planned(stack, first) == planned(stack, past) == [])
    # Sent and not noted, by one that has died: it goes again under its id, and the ledger has it once.
    twice = stack.submit("sim", {}, run_at=far)
    stack.sql("CREATE TABLE headrace.kept AS SELECT * FROM headrace.planned WHERE job_id = :'a1'; UPDATE headrace.planned "
              "SET run_at = now() WHERE job_id = :'a1'", twice)
    wait_until("it to be in the ledger", lambda: stack.sql("SELECT 1 FROM headrace.job WHERE id = :'a1'", twice))
    assert stack.wait_final(twice)["status"] == "SUCCEEDED"
    wait_until("its row to go", lambda: planned(stack, twice) == [])
    stack.sql("INSERT INTO headrace.planned SELECT * FROM headrace.kept; UPDATE headrace.planned SET run_at = now(); "
              "DROP TABLE headrace.kept")
    wait_until("its row to go again", lambda: planned(stack, twice) == [])
    assert stack.wait_final(stack.submit("sim", {}))["status"] == "SUCCEEDED"  # behind it in the same shard
    assert stack.job(twice)["attempts"] == 1


@pytest.mark.parametrize("fields, status, text", [
    ({"run_at": "tomorrow"}, 400, "run_at"), ({"run_at": 5}, 400, "run_at is of type number"),
    ({"run_at": "1969-01-01"}, 400, "which is before 1970"), ({"run_at": "2999-01-01"}, 400, "more than 366 days ahead"),
    ({"run_at": "2999-01-01", "model_input": {"x": "x" * 70_000}}, 400, "with run_at it may have 65536"),
])
def test_a_time_that_cannot_be_kept_is_refused(stack, fields, status, text):
    reply = stack.http("POST", "/model/sim/production/async_predict", {"model_input": {}, **fields})
    assert reply.status == status and text in reply.json["error"], reply


# --- kill switches -------------------------------------------------------------------------------


def submit_status(stack, model, headers=None):
    return stack.http("POST", f"/model/{model}/production/async_predict", {"model_input": {}}, headers)


def test_a_switch_refuses_and_holds(stack):
    running = stack.submit("narrow", LONG)
    wait_until("it to run", lambda: stack.job(running)["status"] == "IN_PROGRESS")
    held = stack.submit("narrow", {})
    on = json.loads(stack.cli("switch", "on", "--model", "narrow", "--reason", "it burns", "--json").stdout)
    assert on["kind"] == "model"
    refused = wait_until("submits to be refused", lambda: (r := submit_status(stack, "narrow")).status == 503 and r)
    assert refused.json["error_code"] == "switched_off" and "it burns" in refused.json["error"]
    assert refused.headers["retry-after"] == "30"
    assert submit_status(stack, "sim").status == 201
    assert "narrow" in stack.cli("switch", "ls").stdout
    assert stack.cancel(running).json["canceled"]
    # The slot is free; another model of the same broker goes on, this one is held.
    assert stack.wait_final(stack.submit("sim", {}))["status"] == "SUCCEEDED"
    assert stack.job(held)["status"] == "QUEUED"
    stack.kill("broker")  # the next owner knows of the switch before it dispatches anything
    stack.wait_state("broker", "down")
    stack.start_service("broker")
    assert stack.wait_final(stack.submit("sim", {}))["status"] == "SUCCEEDED"
    assert stack.job(held)["status"] == "QUEUED"
    stack.cli("switch", "off", "--model", "narrow")
    assert stack.wait_final(held)["status"] == "SUCCEEDED"
    wait_until("submits to be taken", lambda: submit_status(stack, "narrow").status == 201)
    audit = stack.sql("SELECT action FROM headrace_v1.audit WHERE action LIKE 'SWITCH%' ORDER BY id")
    assert audit == [["SWITCH_ON"], ["SWITCH_OFF"]]


def test_a_switch_by_tag_may_cancel(stack):
    tag = {"X-Headrace-Tags": "canary"}
    jobs = [stack.submit("narrow", LONG, headers=tag) for _ in range(2)]
    wait_until("rows", lambda: all(stack.sql("SELECT 1 FROM headrace.job WHERE id = :'a1'", job) for job in jobs))
    stack.cli("switch", "on", "--tag", "canary", "--cancel", "--yes")
    assert all(stack.wait_final(job)["status"] == "CANCELED" for job in jobs)
    wait_until("submits to be refused", lambda: submit_status(stack, "sim", tag).status == 503)
    assert submit_status(stack, "sim").status == 201
    stack.cli("switch", "off", "--tag", "canary")
    wrong = stack.cli("switch", "off", "--tag", "canary", check=False)
    assert wrong.returncode == 2 and "no such switch" in wrong.stderr
    assert stack.cli("switch", "on", check=False).returncode == 1
    assert stack.http("POST", "/v1/switches", {"model": "nobody"}).status == 404
    assert stack.http("POST", "/v1/switches", {"model": "sim", "tag": "x"}).status == 400


@pytest.mark.parametrize("body, why", [
    ({}, "what is to be switched"),
    ({"tag": "a", "tenant": True}, "what is to be switched"),
    ({"tenant": True, "tag_": "a"}, "there is no field 'tag_'"),
    ({"tag": "a b"}, "a b"),
    ({"tag": "a", "reason": "ä" * 1001}, "at most 1000 characters"),
])
def test_a_switch_that_cannot_be_read_is_refused(stack, body, why):
    reply = stack.http("POST", "/v1/switches", body)
    assert reply.status == 400 and why in reply.json["error"], reply
    assert stack.http("GET", "/v1/switches").json["switches"] == []


def test_a_reason_is_counted_in_characters(stack):
    reply = stack.http("POST", "/v1/switches", {"tag": "nobody", "reason": "ä" * 1000})
    assert reply.status == 201, reply
    assert stack.http("DELETE", f"/v1/switches/{reply.json['id']}").status == 200


# --- kill -9 -------------------------------------------------------------------------------------


def test_commands_survive_the_broker(stack):
    count = 120
    tag = {"X-Headrace-Tags": "storm"}
    jobs = [stack.submit("sim", BAD, headers=tag) for _ in range(count)]
    for job in jobs:
        stack.wait_final(job)
    asked = stack.http("POST", "/v1/jobs/replay", {"filter": {"tag": "storm"}})
    assert asked.status == 202 and asked.json["accepted"] == count
    for _ in range(2):
        stack.kill("broker")
        stack.wait_state("broker", "down")
        stack.start_service("broker")
    done = operation(stack, asked.json["operation_id"])
    assert done["applied"] == count and done["refused"] == 0
    wait_until("all to end in round 2", lambda: stack.sql(
        "SELECT count(*), min(round), max(round) FROM headrace_v1.jobs WHERE tags @> '{storm}' AND status = 'FAILED'")
        == [[str(count), "2", "2"]], 60)
    assert stack.sql("SELECT count(*) FROM headrace_v1.commands WHERE status = 'PENDING'") == [["0"]]
    told = {}
    for record in stack.consume("completed"):
        _, kind, fields = msgpack.unpackb(record.value, strict_map_key=False)
        if kind == COMPLETED:
            told.setdefault((fields[1].hex(), fields[2]), set()).add(record.value)
    for job in jobs:
        for round in (1, 2):
            assert len(told[(job.replace("-", ""), round)]) == 1  # told, and all copies are equal
