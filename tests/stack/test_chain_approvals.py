# SPDX-License-Identifier: Apache-2.0
"""Goal: a run waits for somebody's word, by key or by a token, whoever is killed meanwhile; one answer counts, and who
guesses tokens is held back. Method: one stack, a chain that asks."""

import http.client
import json
import subprocess
import threading
import time
import urllib.parse

import pytest

from conftest import run_stack
from stack import wait_until
from test_chains import NOBODYS_RUN, begin, error_of, push, status_of, step_of

ASKS = {"steps": {
    "wait": {"wait": "{{input.seconds}}"},
    "hurry": {"approval": 1, "timeout_seconds": 1, "when": "{{input.hurry?}}", "needs": ["wait"]},
    "ask": {"approval": {"draft": "{{input.draft}}"}, "timeout_seconds": 60, "needs": ["wait"]},
    "send": {"model": "echo", "input": {"as": "{{steps.ask.output}}"}}},
    "output": "{{steps.send.output.output.as}}"}
CACHED = {"steps": {
    "ask": {"approval": 1, "timeout_seconds": 600},
    "once": {"model": "echo", "input": {"q": "{{input.q}}"}, "needs": ["ask"], "cache": {"ttl_seconds": 600}}},
    "output": "{{steps.once.output.output}}"}


@pytest.fixture(scope="module")
def stack(request):
    for stack in run_stack(request, env={"HEADRACE_RESTART_DELAY": "50ms"}):
        stack.push_sim("echo", slots=8)
        for name, chain in (("asks", ASKS), ("cached", CACHED)):
            push(stack, name, chain)
        for name in ("asks", "cached"):
            wait_until(f"{name} to be ready", lambda: status_of(stack, name) == "ACTIVE", 60)
        yield stack


def asked(stack):
    run = begin(stack, "asks", {"seconds": 0, "draft": "d"})
    wait_until("it to be asked for", lambda: step_of(stack, run, "ask")["status"] == "WAITING_FOR_APPROVAL", 20)
    return run


def make(stack, run):
    reply = stack.http("POST", f"/v1/chain_runs/{run}/steps/ask/token")
    assert reply.status == 201, reply
    return reply.json


def test_approvals(stack):
    """A run waits for a time and then for a person, whoever is killed meanwhile; what was decided counts once."""
    def ask(draft, seconds=0):
        run = begin(stack, "asks", {"draft": draft, "seconds": seconds})
        wait_until("it to be asked for", lambda: steps_at(run) == "WAITING_FOR_APPROVAL", 30)
        return run

    def steps_at(run):
        reply = stack.http("GET", f"/v1/chain_runs/{run}")
        return reply.status == 200 and step_of(stack, run, "ask")["status"]

    began = time.monotonic()
    yes = ask("a", 1.5)
    assert time.monotonic() - began >= 1.5 and step_of(stack, yes, "wait")["status"] == "SUCCEEDED"
    assert step_of(stack, yes, "ask")["asked"] == {"draft": "a"}
    no, late = ask("b"), begin(stack, "asks", {"draft": "c", "seconds": 0, "hurry": True})
    assert stack.kill("host-chain")
    where = f"/v1/chain_runs/{yes}/steps/ask/approve"
    assert stack.http("POST", where, {"by": "me"}).json == {"run_id": yes, "step": "ask", "approved": True}
    again = stack.http("POST", where, {"by": "another"})
    assert again.status == 409 and "was approved before" in again.body.decode(), again
    assert stack.wait_final(yes, 30)["status"] == "SUCCEEDED", (stack.job(yes), stack.tell())
    assert stack.result(yes).json == {"by": "me"} and step_of(stack, yes, "ask")["status"] == "APPROVED"
    told = json.loads(stack.cli("chains", "reject", no, "ask", "--reason", "too dear", "--json").stdout)
    assert told["approved"] is False and told["step"] == "ask", told
    assert error_of(stack, no) == "step ask: it was rejected: too dear"
    for path in (f"/v1/chain_runs/{yes}/steps/send/approve", f"/v1/chain_runs/{NOBODYS_RUN}/steps/ask/approve"):
        assert stack.http("POST", path).status == 404
    assert stack.http("POST", f"/v1/chain_runs/{yes}/steps/ask/reject", {"why": 1}).status == 400
    assert error_of(stack, late) == "step hurry: nobody has approved it in time"
    gone = stack.http("POST", f"/v1/chain_runs/{late}/steps/hurry/approve")
    assert gone.status == 409 and "is not asked for any more" in gone.body.decode(), gone
    wrong = begin(stack, "asks", {"draft": 1, "seconds": "2026-13-40T00:00:00Z"})
    assert error_of(stack, wrong).startswith("step wait: "), stack.job(wrong)
    assert stack.sql("SELECT step, approved FROM headrace_v1.chain_waits WHERE run_id = :'a1' ORDER BY step", no) == [
        ["ask", "f"], ["wait", None]]


def test_tokens_of_approvals(stack):
    """Who has one answers once, without a key; the same answer again is the same, everything else has its own name."""
    def answer(url, body=None):
        reply = stack.http("POST", url.removeprefix(stack.url("gateway")), body, key=None)
        return reply.status, reply.json.get("error_code", reply.json.get("approved"))

    run = asked(stack)
    old, token = make(stack, run), make(stack, run)
    assert len({old["token"], token["token"]}) == 2 and token["approve_url"].endswith(f"/v1/approvals/{token['token']}/approve")
    ((digest, by),) = stack.sql("SELECT token_digest, token_prefix FROM headrace.chain_wait WHERE run_id = :'a1' AND step = 'ask'", run)
    assert token["token"].split(".")[1] not in digest and token["token"].startswith(by)
    assert answer(old["approve_url"]) == (404, "approval_unknown")  # there is a newer one
    wrong = token["token"][:-1] + ("A" if token["token"][-1] != "A" else "B")
    for text in (wrong, "x", "abcdefgh." + "a" * 43):
        assert answer(f"/v1/approvals/{text}/approve") == (404, "approval_unknown")
    assert answer(token["reject_url"], [1])[0] == 400
    assert stack.http("POST", f"/v1/chain_runs/{run}/steps/ask/approve", {}, key=None).status == 401
    for _ in range(2):
        assert answer(token["approve_url"], {"to": "all"}) == (200, True)
    assert answer(token["approve_url"], {"to": "one"}) == answer(token["reject_url"]) == (409, "approval_answered")
    assert stack.wait_final(run)["status"] == "SUCCEEDED" and stack.result(run).json == {"to": "all"}
    assert stack.sql("SELECT decided_by FROM headrace_v1.chain_waits WHERE run_id = :'a1' AND step = 'ask'", run) == [[f"token {by}"]]
    assert stack.http("POST", f"/v1/chain_runs/{run}/steps/ask/token").status == 409
    run = asked(stack)
    token = make(stack, run)
    stack.http("POST", f"/v1/chain_runs/{run}/steps/ask/approve", {})
    assert answer(token["reject_url"]) == (409, "approval_answered")
    run = asked(stack)
    token = json.loads(stack.cli("chains", "token", run, "ask", "--json").stdout)
    assert token["run_id"] == run
    assert answer(token["reject_url"], {"reason": "no"}) == (200, False)
    assert stack.wait_final(run)["status"] == "FAILED" and "rejected: no" in stack.job(run)["errors"][0]["message"]
    run = asked(stack)
    token = make(stack, run)
    stack.cancel(run)
    stack.wait_final(run)
    assert answer(token["approve_url"]) == (410, "approval_expired")


@pytest.mark.parametrize("verbs", [("approve", "reject"), ("approve", "approve")])
def test_two_answers_by_a_token_at_once(stack, verbs):
    """Both are there before one is taken, since somebody else holds the row: the second hears of the first."""
    run = asked(stack)
    token = make(stack, run)["token"]
    holder = subprocess.Popen(["psql", "-X", "-q", "-A", "-t", stack.url("postgres")], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    holder.stdin.write(f"BEGIN; SELECT 'held' FROM headrace.chain_wait WHERE run_id = '{run}' AND step = 'ask' FOR UPDATE;\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "held\n"
    replies = []
    callers = [threading.Thread(target=lambda verb=verb: replies.append((verb, stack.http(
        "POST", f"/v1/approvals/{token}/{verb}", None, key=None)))) for verb in verbs]
    for caller in callers:
        caller.start()
    wait_until("both to wait for the row", lambda: stack.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%chain_token_decide%'") == [["2"]], 10)
    holder.communicate("COMMIT;\n", timeout=10)
    for caller in callers:
        caller.join(20)
    taken = [verb for verb, reply in replies if reply.status == 200]
    refused = [reply.json["error_code"] for _, reply in replies if reply.status == 409]
    assert len(replies) == 2 and len(taken) + len(refused) == 2, replies
    assert refused == (["approval_answered"] if verbs[0] != verbs[1] else []), replies
    assert stack.wait_final(run)["status"] == ("SUCCEEDED" if taken[0] == "approve" else "FAILED")


def test_wrong_tokens_are_bounded(stack):
    """So many a minute from an address, and of a prefix from all of them; who is right elsewhere does not notice."""
    def answer(token, at):
        connection = http.client.HTTPConnection("127.0.0.1", urllib.parse.urlsplit(stack.url("gateway")).port, source_address=(at, 0))
        connection.request("POST", f"/v1/approvals/{token}/approve")
        reply = connection.getresponse()
        said = json.loads(reply.read())
        connection.close()
        return reply.status, said.get("error_code"), said.get("limit"), int(reply.getheader("Retry-After") or 0)

    def guess(make_token, addresses):
        """Wrong ones until one is refused: how many there were, the refusal, and for how long."""
        began, count = time.monotonic(), 0
        while (said := answer(make_token(count), addresses[count % len(addresses)]))[0] == 404:
            count += 1
            assert count < 1000
        return count, said, time.monotonic() - began

    first, second = (make(stack, asked(stack))["token"] for _ in range(2))
    count, said, seconds = guess(lambda n: f"{n // 8 % 8 + 2}{n % 8 + 2}aaaaaa." + "a" * 43 if n % 2 else "x", ["127.0.0.9"])
    assert 60 <= count <= 61 + seconds, (count, seconds)
    assert said[:3] == (429, "rate_limited", "approval-guesses") and said[3] == 1, said
    assert answer(first, "127.0.0.9")[0] == 429 and answer(first, "127.0.0.1")[0] == 200
    prefix = second.split(".")[0]
    count, said, seconds = guess(lambda n: f"{prefix}." + "a" * 43, ["127.0.0.10", "127.0.0.11", "127.0.0.12"])
    assert 60 <= count <= 61 + seconds and said[0] == 429, (count, said)
    assert answer("2" * 8 + "." + "a" * 43, "127.0.0.10")[0] == 404  # its address may go on with another prefix
    wait_until("the prefix to be free again", lambda: answer(second, "127.0.0.1")[0] == 200, 20)


def test_a_run_that_has_waited_asks_the_cache(stack):
    """Its attempt before was put off, and the round before was refused: neither has sent the job."""
    def decide(run, verb):
        wait_until("the run to be put off", lambda: stack.sql(
            "SELECT state, due_at > now() FROM headrace.job WHERE id = :'a1'", run) == [["1", "t"]], 30)
        assert stack.http("POST", f"/v1/chain_runs/{run}/steps/ask/{verb}").status == 200
        return stack.wait_final(run, 30)["status"]

    first, second = (begin(stack, "cached", {"q": "x"}) for _ in range(2))
    assert decide(first, "approve") == "SUCCEEDED" and "cached" not in step_of(stack, first, "once")
    assert decide(second, "reject") == "FAILED"
    stack.cli("chains", "retry", second)
    assert decide(second, "approve") == "SUCCEEDED", stack.job(second)
    assert step_of(stack, second, "once")["cached"] == 1 and stack.result(second).json == {"q": "x"}
    assert stack.sql("SELECT round, error_class, error_message FROM headrace.attempt WHERE job_id = :'a1' AND error_class = 12 "
                     "ORDER BY token", second) == [[n, "12", "it waits, and holds no slot meanwhile"] for n in ("1", "2")]
