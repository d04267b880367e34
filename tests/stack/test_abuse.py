# SPDX-License-Identifier: Apache-2.0
"""Goal: what a hostile or unlucky user does hurts nobody else, and says what it was.

Method: the whole platform; models, jobs, tenants and a blob store that misbehave, one a test.
"""

import concurrent.futures
import http.client
import json
import secrets
import threading
import time

import pytest
from receiver import Receiver
from stack import wait_until

POISON_TRIES = 5
OTHER_PREFIX = "tenanttw"  # 8 letters of an API key's alphabet


@pytest.fixture(scope="module")
def platform(stack):
    stack.push_sim("sim", slots=8)
    return stack


@pytest.fixture(scope="module")
def other_key(platform):
    """The key of a second tenant."""
    key = f"{OTHER_PREFIX}.{secrets.token_urlsafe(32)}"
    platform.sql("INSERT INTO headrace.tenant (id, name) VALUES ('other', 'other')")
    platform.sql("""INSERT INTO headrace.api_key (prefix, digest, tenant)
                    VALUES (:'a1', sha256(convert_to(:'a2', 'UTF8')), 'other')""", OTHER_PREFIX, key)
    wait_until("the other tenant's key to work",
               lambda: platform.http("GET", "/v1/models", key=key).status == 200)
    return key


# --- models --------------------------------------------------------------------------------------


def test_failed_deployment_stays_failed_when_the_agent_starts_again(platform, tmp_path):
    def row():
        return platform.sql("""SELECT d.status, d.status_reason, d.status_at FROM headrace.deployment d
                               JOIN headrace.model m ON m.id = d.model_id WHERE m.name = 'bad'""")

    (tmp_path / "headrace.json").write_text(
        json.dumps({"engine": "sim", "settings": {"no_such_setting": 1}}))
    pushed = platform.cli("push", tmp_path, "--name", "bad", check=False)
    assert pushed.returncode != 0 and "no_such_setting" in pushed.stderr
    before = row()
    assert before[0][0] == "DEPLOY_FAILED" and "no_such_setting" in before[0][1]
    worker = platform.sql("""SELECT r.worker FROM headrace.replica r JOIN headrace.deployment d
                             ON d.id = r.deployment_id WHERE d.status = 'DEPLOY_FAILED'""")[0][0]
    platform.restart_service("agent", kill=True)
    platform.wait_final(platform.submit("sim", {}))  # it has read what there is, and adopted
    wait_until("the agent to adopt", lambda: "worker_adopted" in log_of(platform, "agent"))
    assert row() == before
    starts = [line for line in log_of(platform, "agent").splitlines()
              if '"worker_started"' in line and f'"{worker}"' in line]
    assert len(starts) == 1


def log_of(stack, name):
    return (stack.data_dir / "logs" / f"{name}.log").read_text()


# --- jobs ----------------------------------------------------------------------------------------


def test_a_job_that_kills_its_worker_takes_no_neighbour_along(platform):
    neighbours = [platform.submit("sim", {"sim": {"sleep_ms": 300}}) for _ in range(5)]
    poison = platform.submit("sim", {"sim": {"crash": True}})
    job = platform.wait_final(poison)
    assert job["status"] == "FAILED" and job["attempts"] >= POISON_TRIES
    assert "signal 6" in job["errors"][0]["message"]
    assert {platform.wait_final(one)["status"] for one in neighbours} == {"SUCCEEDED"}


def test_results_wait_for_the_blob_store(platform):
    """A store that cannot be written to is no reason to fail a job for good."""
    tmp = platform.data_dir / "blobs" / "tmp"
    away = tmp.with_name("tmp.away")
    tmp.rename(away)
    try:
        job = platform.submit("sim", {"sim": {"output_bytes": 1000000}})
        wait_until("more attempts than poison has",
                   lambda: platform.job(job).get("attempts", 0) > POISON_TRIES, 30)
        refused = platform.http("POST", "/model/sim/production/async_predict",
                                {"model_input": {"text": "x" * 100000}})
        assert refused.status >= 500 and "blob" in refused.json["error"]
    finally:
        away.rename(tmp)
    assert platform.wait_final(job)["status"] == "SUCCEEDED"
    assert len(platform.result(job).body) > 999000


def test_webhooks_of_many_jobs_that_trickle_in(platform):
    """Records that come one by one, as fast as the reader can say that it is at the end."""
    count, local = 1000, threading.local()
    url, key = platform.url("gateway").removeprefix("http://"), platform.key

    def submit(n):
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(url, timeout=60)
        body = json.dumps({"model_input": {"sim": {"sleep_ms": n % 20}}, "priority": n % 3,
                           "webhook_endpoint": receiver.url()})
        local.connection.request("POST", "/model/sim/production/async_predict", body,
                                 {"Authorization": f"Bearer {key}"})
        reply = local.connection.getresponse()
        answer = json.loads(reply.read())
        assert reply.status == 201, answer
        return answer["request_id"]

    sender = platform.services()["webhook"]["pid"]
    with Receiver() as receiver:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            ids = set(pool.map(submit, range(count)))
        wait_until("every webhook to arrive",
                   lambda: {post.headers["x-baseten-request-id"] for post in list(receiver.posts)} >= ids,
                   60, 0.2)
    assert len(ids) == count
    assert platform.services()["webhook"]["pid"] == sender, "the sender was started anew"


def test_a_delivery_outlives_its_sender(platform):
    """What a sender that was killed left undone is claimed from its row and sent by the next one."""
    with Receiver() as receiver:
        receiver.answers["/hook"] = [503, 503, 200]
        job = platform.submit("sim", {}, webhook_endpoint=receiver.url())
        wait_until("the first try", lambda: receiver.posts)
        wait_until("its failure to be written", lambda: platform.sql(
            "SELECT tries FROM headrace_v1.deliveries WHERE job_id = :'a1'", job) not in ([], [["0"]]))
        platform.sql("UPDATE headrace.delivery SET next_at = now() WHERE job_id = :'a1'", job)
        platform.restart_service("webhook", kill=True)
        wait_until("a try of the new sender", lambda: len(receiver.posts) >= 2, 30)
        assert {post.json["request_id"] for post in receiver.posts} == {job}
    assert platform.services()["webhook"]["state"] == "ready"


# --- tenants -------------------------------------------------------------------------------------


def test_cancel_tells_nothing_of_another_tenants_job(platform, other_key):
    """Not while it waits for its row, not while it runs, not when it ends meanwhile."""
    running = platform.submit("sim", {"sim": {"sleep_ms": 1500}})
    began = time.monotonic()
    reply = platform.http("DELETE", f"/async_request/{running}", key=other_key)
    assert reply.status == 404 and time.monotonic() - began < 1, reply
    assert platform.wait_final(running)["status"] == "SUCCEEDED"
    assert platform.http("DELETE", f"/async_request/{running}", key=other_key).status == 404


def test_cancel_of_a_young_id_that_nobody_has_is_404_at_once(platform):
    real = platform.submit("sim", {})
    nobodys = real[:-8] + ("00000000" if real[-8:] != "00000000" else "11111111")
    began = time.monotonic()
    reply = platform.cancel(nobodys)
    assert reply.status == 404 and time.monotonic() - began < 2, reply
