# SPDX-License-Identifier: Apache-2.0
"""Goal: what a person does in a second shell works, and says clearly what does not.

Method: the verbs of the binary against the whole platform, with a tiny encoder of random weights.
"""

import json
import math
import os
import shutil
import signal
import subprocess

import pytest
from fleet import Fleet
from stack import BINARY, ROOT, wait_until

TINY = ROOT / "tests/data/encoder/tiny"


@pytest.fixture(scope="module")
def tiny(stack):
    state = json.loads(stack.push(TINY, "tiny").stdout)
    assert state["status"] == "ACTIVE" and state["engine"] == "encoder"
    return state


def test_probe_says_what_a_push_will_do(stack, tiny, tmp_path):
    def probe(directory):
        command = [BINARY, "probe", "--json", directory]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    said = json.loads(probe(TINY).stdout)
    assert said["engine"] == tiny["engine"] and said["task"] == "embed"
    assert said["settings"] == tiny["config"]
    (tmp_path / "notes.txt").write_text("nothing to run")
    refused = probe(tmp_path)
    assert refused.returncode == 2 and "looked for" in refused.stderr
    pushed = stack.cli("push", str(tmp_path), check=False)
    assert pushed.returncode == 2 and refused.stderr.split(": ", 1)[1].strip() in pushed.stderr


def test_predict_prints_the_output_alone(stack, tiny):
    done = stack.cli("predict", "tiny", "--input", '{"input": ["one", "two"]}')
    answer = json.loads(done.stdout)
    assert [row["index"] for row in answer["data"]] == [0, 1]
    norm = math.sqrt(sum(x * x for x in answer["data"][0]["embedding"]))
    assert abs(norm - 1) < 1e-5
    assert "request " in done.stderr
    again = stack.cli("predict", "tiny", "--input", '{"input": ["one", "two"]}', "--async", "--wait")
    assert json.loads(again.stdout)["data"] == answer["data"] and "SUCCEEDED" in again.stderr


def test_input_from_standard_input_and_file(stack, tiny, tmp_path):
    assert json.loads(stack.cli("predict", "tiny", "--input", "-", input='{"input": "x"}').stdout)
    (tmp_path / "input.json").write_text('{"input": "x"}')
    assert json.loads(stack.cli("predict", "tiny", "--input", f"@{tmp_path}/input.json").stdout)


def test_bad_input_is_told_with_its_reason(stack, tiny):
    done = stack.cli("predict", "tiny", "--input", '{"input": 7}', check=False)
    assert done.returncode == 3 and "HTTP 400" in done.stderr and "input" in done.stderr
    done = stack.cli("predict", "tiny", "--input", '{"input": 7}', "--async", "--wait", check=False)
    assert done.returncode == 3 and "MODEL_INVALID_INPUT" in done.stderr and "input" in done.stderr
    done = stack.cli("predict", "tiny", "--input", "{oops", check=False)
    assert done.returncode == 1 and "no JSON: line 1" in done.stderr
    done = stack.cli("predict", "nobody", "--input", "{}", check=False)
    assert done.returncode == 2 and "404" in done.stderr


def test_jobs(stack, tiny):
    id = stack.cli("predict", "tiny", "--input", '{"input": "x"}', "--async").stdout.strip()
    watched = stack.cli("jobs", "watch", id, "--json")
    assert json.loads(watched.stdout)["status"] == "SUCCEEDED"
    assert id in stack.cli("jobs", "ls", "--model", "tiny").stdout
    assert json.loads(stack.cli("jobs", "show", id, "--json").stdout)["request_id"] == id
    assert json.loads(stack.cli("jobs", "result", id).stdout)["object"] == "list"
    assert json.loads(stack.cli("jobs", "cancel", id, "--json").stdout)["canceled"] is False


def test_models_and_deployments(stack, tiny):
    assert "tiny" in stack.cli("models", "ls").stdout
    assert tiny["id"] in stack.cli("deployments", "ls", "tiny").stdout
    shown = json.loads(stack.cli("deployments", "show", "tiny", tiny["id"], "--json").stdout)
    assert shown["status"] == "ACTIVE"
    assert " info: model_loaded engine=encoder" in stack.cli("logs", "tiny").stdout
    (line,) = [line for line in stack.cli("logs", "tiny", "--json").stdout.splitlines() if "model_loaded" in line]
    assert json.loads(json.loads(line)["message"])["engine"] == "encoder"  # --json: as it was written


def test_a_push_says_what_to_do_next(stack):
    said = stack.cli("push", TINY, "--name", "said").stdout
    assert said.startswith("said is ready: deployment-1 (") and "predict said --environment=production" in said
    said = stack.cli("push", TINY, "--name", "said").stdout
    assert "deployment-2" in said and "headrace deployments promote said " in said


def production(stack):
    return json.loads(stack.cli("models", "show", "tiny", "--json").stdout)["production_deployment_id"]


def test_second_push_waits_for_its_promotion(stack, tiny):
    second = json.loads(stack.push(TINY, "tiny").stdout)
    assert second["id"] != tiny["id"] and production(stack) == tiny["id"]
    done = stack.cli("deployments", "rm", "tiny", tiny["id"], check=False)
    assert done.returncode == 2 and "points at" in done.stderr
    stack.cli("deployments", "promote", "tiny", second["id"])
    wait_until("production to be the second", lambda: production(stack) == second["id"])
    stack.cli("deployments", "rm", "tiny", tiny["id"])
    assert tiny["id"] not in stack.cli("deployments", "ls", "tiny").stdout
    assert json.loads(stack.cli("predict", "tiny", "--input", '{"input": "x"}').stdout)


def test_keys(stack):
    made = json.loads(stack.cli("keys", "create", "--name", "second", "--json").stdout)
    key = made["api_key"]
    assert stack.http("GET", "/v1/models", key=key).status == 200
    assert key.split(".")[0] in stack.cli("keys", "ls").stdout
    assert key not in stack.cli("keys", "ls").stdout
    stack.cli("keys", "rm", key.split(".")[0])
    done = stack.cli("keys", "ls", "--api-key", key, check=False)
    assert done.returncode in (0, 2)  # gateways may remember a key for some seconds


def test_client_file_makes_a_second_shell_work(stack):
    file = stack.data_dir / "client.json"
    assert file.stat().st_mode & 0o777 == 0o600
    done = subprocess.run([BINARY, "models", "ls", "--client", str(file)], capture_output=True,
                          text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_wrong_key_and_wrong_address(stack):
    done = stack.cli("models", "ls", "--api-key", "no.such", check=False)
    assert done.returncode == 2 and "401" in done.stderr
    done = subprocess.run([BINARY, "models", "ls", "--url", "http://127.0.0.1:1", "--api-key", "x"],
                          capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "127.0.0.1:1" in done.stderr


def ticks(stack, name, count):
    """The ticks of a schedule, once that many are over."""
    rows = []

    def ask():
        rows[:] = stack.sql("SELECT status, job_id, by_hand FROM headrace_v1.schedule_ticks WHERE schedule = :'a1' "
                            "AND status <> 'PENDING' ORDER BY tick_at", name)
        return len(rows) >= count

    wait_until(f"{count} ticks of {name}", ask, 20)
    assert len(rows) == count, rows
    return rows


def create(stack, name, *words, **options):
    return stack.cli("schedules", "create", name, "--model", "tiny", "--input", '{"input": "x"}', *words, **options)


def test_a_schedule_runs_at_its_time(stack, tiny):
    said = json.loads(create(stack, "later", "--run-at", "2026-01-02T03:04:05Z", "--json").stdout)
    assert said["next_at"].startswith("2026-01-02T03:04:05") and said["cron"] is None
    ((status, job, by_hand),) = ticks(stack, "later", 1)
    assert (status, by_hand) == ("SUBMITTED", "f")
    assert stack.wait_final(job)["status"] == "SUCCEEDED"
    shown = json.loads(stack.cli("schedules", "show", "later", "--json").stdout)
    assert shown["next_at"] is None and shown["request"]["model_input"] == {"input": "x"}
    assert [(t["status"], t["request_id"]) for t in shown["ticks"]] == [("SUBMITTED", job)]
    ((key,),) = stack.sql("SELECT idempotency_key FROM headrace_v1.jobs WHERE id = :'a1'", job)
    assert key.startswith("schedule/later/2026-01-02T03:04:05")


def test_a_tick_has_one_job_whoever_dies(stack, tiny):
    """Somebody claims a tick and dies: the gateway submits it under the id that it has."""
    create(stack, "nightly", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin")
    stack.cli("schedules", "pause", "nightly")
    claimed = """
        SET search_path = headrace;
        WITH s AS (SELECT id FROM schedule WHERE name = 'nightly')
        INSERT INTO schedule_tick (schedule_id, tick_at, due_at, job_id, deployment_id, claimed_until)
        SELECT s.id, now(), now(), job_id_new(d.shard, now()), d.id, now() + interval '1 second'
          FROM s, deployment d WHERE d.id = :'a1' RETURNING job_id"""
    ((job,),) = stack.sql(claimed, production(stack))
    assert ticks(stack, "nightly", 1) == [["SUBMITTED", job, "f"]]
    assert stack.wait_final(job)["status"] == "SUCCEEDED"
    assert stack.sql("SELECT count(*) FROM headrace_v1.jobs WHERE idempotency_key LIKE 'schedule/nightly/%'") == [["1"]]


def test_two_gateways_and_kills_make_one_job_a_tick(stack, tiny, tmp_path):
    """600 ticks are due at once, two gateways make jobs of them, and each is killed amid that. While the
    schedule is paused nothing is due."""
    count = "SELECT count(*), count(*) FILTER (WHERE status = 'SUBMITTED') FROM headrace_v1.schedule_ticks WHERE schedule = 'often'"
    create(stack, "often", "--cron", "* * * * *", "--catch-up", "all")
    stack.cli("schedules", "pause", "often")
    stack.sql("UPDATE headrace.schedule SET next_at = date_trunc('minute', now()) - interval '10 hours' WHERE name = 'often'")
    with Fleet(stack, tmp_path) as fleet:
        second = fleet.start("gateway", "second")
        second.wait_log("started")
        stack.cli("schedules", "run", "often")  # it is looked at, and what is due is not
        assert len(ticks(stack, "often", 1)) == 1
        stack.sql("UPDATE headrace.schedule SET paused_at = NULL WHERE name = 'often'")
        wait_until("some ticks", lambda: int(stack.sql(count)[0][1]) >= 20, 30, 0.01)
        stack.kill_service("gateway")
        wait_until("more ticks", lambda: int(stack.sql(count)[0][0]) >= 300, 60, 0.01)
        second.stop(signal.SIGKILL)
    stack.start_service("gateway")
    stack.sql("UPDATE headrace.schedule_tick SET claimed_until = now() WHERE claimed_until > now()")  # 30 s pass
    wait_until("every tick to be over", lambda: int(stack.sql(count)[0][0]) > 600 and len(set(stack.sql(count)[0])) == 1, 60)
    stack.cli("schedules", "rm", "often")
    ((keys, jobs),) = stack.sql("SELECT count(DISTINCT idempotency_key), count(*) FROM headrace_v1.jobs "
                                "WHERE idempotency_key LIKE 'schedule/often/%'")
    assert keys == jobs and int(jobs) > 600


def test_schedules_by_hand(stack, tiny):
    said = json.loads(create(stack, "hand", "--cron", "@yearly", "--jitter", "5s", "--json").stdout)
    assert said["next_at"].endswith("-01-01T00:00:00.000000+00:00") and said["jitter_seconds"] == 5
    paused = json.loads(stack.cli("schedules", "pause", "hand", "--json").stdout)
    assert paused["paused_at"]
    stack.cli("schedules", "run", "hand")  # also while it is paused
    ((status, job, by_hand),) = ticks(stack, "hand", 1)
    assert (status, by_hand) == ("SUBMITTED", "t") and stack.wait_final(job)["status"] == "SUCCEEDED"
    assert json.loads(stack.cli("schedules", "resume", "hand", "--json").stdout)["paused_at"] is None
    listed = stack.cli("schedules", "ls").stdout
    assert "hand" in listed and "@yearly" in listed and job in listed
    stack.cli("switch", "on", "--model", "tiny", "--reason", "test")
    wait_until("the switch", lambda: stack.http("POST", "/model/tiny/production/async_predict",
                                                {"model_input": {}}).status == 503)
    stack.cli("schedules", "run", "hand")
    assert ticks(stack, "hand", 2)[1][:2] == ["REFUSED", None]
    stack.cli("switch", "off", "--model", "tiny")
    stack.cli("schedules", "rm", "hand")
    assert "no schedule of this name" in stack.cli("schedules", "show", "hand", check=False).stderr
    audit = stack.sql("SELECT action FROM headrace_v1.audit WHERE target = 'hand' ORDER BY id")
    assert [row[0] for row in audit] == ["SCHEDULE_SET", "SCHEDULE_PAUSED", "SCHEDULE_RUN", "SCHEDULE_RESUMED",
                                         "SCHEDULE_RUN", "SCHEDULE_DELETED"]


@pytest.mark.parametrize("words, why", [
    (["--cron", "61 * * * *"], "minute: '61' is not from 0 to 59"),
    (["--cron", "0 0 * *"], "it has 4 fields"),
    (["--cron", "0 0 30 feb *"], "names no day within nine years"),
    (["--cron", "@daily", "--timezone", "Europe/Atlantis"], "timezone 'Europe/Atlantis' is not known"),
    (["--cron", "@daily", "--environment", "nowhere"], "environment 'nowhere' is none of the model"),
    (["--cron", "@daily", "--catch-up", "twice"], "catch_up is 'twice'"),
    (["--cron", "@daily", "--webhook", "ftp://x"], "webhook_endpoint"),
    (["--run-at", "tomorrow"], "run_at"),
    (["--cron", "@daily", "--run-at", "2030-01-01"], "one of --cron and --run-at"),
])
def test_a_bad_schedule_is_told_why(stack, tiny, words, why):
    done = create(stack, "bad", *words, check=False)
    assert done.returncode in (1, 2) and why in done.stderr


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has an NVIDIA device")
def test_push_for_a_device_that_is_not_there_says_so(stack, tmp_path):
    shutil.copytree(TINY, tmp_path / "tiny")
    for options in (["--device", "cuda"], []):
        refused = stack.cli("push", str(tmp_path / "tiny"), "--name", "tiny-cuda", *options, check=False)
        assert refused.returncode != 0
        assert "no device: needs a device, and this machine has no NVIDIA driver" in refused.stderr, refused.stderr
        (tmp_path / "tiny/headrace.json").write_text('{"device": "cuda"}')
    refused = stack.cli("push", str(tmp_path / "tiny"), "--device", "tpu", check=False)
    assert "device is 'tpu'; it must be cpu, cuda or cuda:N" in refused.stderr, refused.stderr
