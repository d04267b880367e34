# SPDX-License-Identifier: Apache-2.0
"""Goal: every result is delivered, signed both ways, and what a receiver answers has its effect.

Method: the whole platform with the sim engine; the schedule between tries is scaled to 1 %, the
claim of a lost delivery to 2 s.
"""

import pytest
from receiver import Receiver
from stack import wait_until

QUICK = {"HEADRACE_SCHEDULE_PERCENT": "1", "HEADRACE_CLAIM": "2s"}


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
