# SPDX-License-Identifier: Apache-2.0
"""Goal: a record of a bound topic is one job, whatever is killed or rebalanced meanwhile; bad records are
named, by offset; results go out with the caller's key and headers. Method: one real stack whose Kafka
serves both sides; the users' programs are kcat; ingests besides dev's own are started by hand."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import msgpack
import pytest

import kafka
from conftest import run_stack
from ingests import bind, start_ingest, tagged, through_rebalances, topic, wait_custody
from secure_kafka import SecureKafka
from stack import BINARY, die_with_parent, wait_until

LONG = bool(os.environ.get("HEADRACE_LONG"))
PARTITIONS = 4
ROUND_RECORDS = 300
SESSION = "1s"


@pytest.fixture(scope="module")
def platform(request):
    for stack in run_stack(request, env={"HEADRACE_TOPICS_SESSION": SESSION}):
        stack.push_sim("sim", slots=32, service_ms=1)
        kafka.make_topics(stack.url("kafka"), ["one", "one.bad", "one.out", "keyed", "packed", "slow", "all.out"])
        kafka.make_topics(stack.url("kafka"), ["four", "four.out"], PARTITIONS)
        yield stack


def unbind(stack, name):
    assert stack.http("DELETE", f"/v1/topics/{name}").status == 200


def wait_read(stack, name, count, seconds=60):
    """count: records that were accepted, refused or known by their key."""
    def ask():
        now = topic(stack, name)
        return now if now["accepted"] + now["refused"] + now["repeated"] >= count else None

    return wait_until(f"{name} to have read {count} records", ask, seconds, 0.05)


def test_records_become_jobs_and_results_go_out(platform):
    """One topic in, one out; a record that is none of JSON and one without a value are dead letters."""
    brokers = platform.url("kafka")
    bind(platform, "one", topic="one", brokers=brokers, dead_letter_topic="one.bad", result_topic="one.out",
         mapping={"input": {"text": "{{input.value.text}}", "who": "{{input.key}}",
                            "lang": "{{input.headers.lang?}}"}}, tags="from-kafka")
    kafka.produce(brokers, "one", [(f"k{i}".encode(), json.dumps({"text": f"t{i}"}).encode()) for i in range(50)],
                  headers=[("lang", "de")])
    kafka.produce(brokers, "one", [(b"bad", b"{\"text\": "), (b"none", b"{\"other\": 1}")])
    kafka.produce(brokers, "one", [(b"last", b"{\"text\": \"end\"}")])
    now = wait_read(platform, "one", 53)
    assert (now["accepted"], now["refused"]) == (51, 2)
    wait_until("51 results", lambda: len(kafka.consume(brokers, "one.out")) >= 51, 30, 0.2)

    results = kafka.consume(brokers, "one.out")
    assert len({r["headers"]["headrace-request-id"] for r in results}) == 51
    by_key = {r["key"]: r for r in results}
    assert set(by_key) == {f"k{i}" for i in range(50)} | {"last"}
    seventh = by_key["k7"]
    assert seventh["headers"]["lang"] == "de" and seventh["headers"]["headrace-status"] == "SUCCEEDED"
    assert seventh["headers"]["headrace-offset"] == "7" and seventh["headers"]["headrace-partition"] == "0"
    body = json.loads(seventh["payload"])
    assert body["request_id"] == seventh["headers"]["headrace-request-id"] and body["errors"] == []
    assert platform.job(body["request_id"])["status"] == "SUCCEEDED"

    bad = {r["key"]: r for r in kafka.consume(brokers, "one.bad")}
    assert set(bad) == {"bad", "none"}
    assert bad["bad"]["payload"] == "{\"text\": " and bad["bad"]["headers"]["headrace-offset"] == "50"
    assert "JSON" in bad["bad"]["headers"]["headrace-error"]
    assert "input.value.text" in bad["none"]["headers"]["headrace-error"]
    assert sorted((r["partition"], r["offset"]) for r in now["refusals"]) == [(0, 50), (0, 51)]
    wait_until("no lag", lambda: topic(platform, "one")["lag"] == 0, 10)
    unbind(platform, "one")


def test_keys_and_msgpack(platform):
    """A key of the records themselves is one job, however often it comes; it is an Idempotency-Key."""
    bind(platform, "keyed", topic="keyed", mapping={"key": "{{input.value.id}}"}, tags="keyed")
    values = [json.dumps({"id": f"order-{i % 10}"}).encode() for i in range(30)]
    kafka.produce(platform.url("kafka"), "keyed", values)
    bind(platform, "packed", topic="packed", format="msgpack", on_bad_record="skip", tags="packed",
         mapping={"priority": "{{input.value.urgency?}}"})
    kafka.produce(platform.url("kafka"), "packed",
                  [msgpack.packb({"urgency": 2, "data": b"\xff\x00"}), msgpack.packb({"urgency": 7}), b"\xc1",
                   msgpack.packb({"other": [1, 2.5, None]})])
    now = wait_read(platform, "keyed", 30)
    assert (now["accepted"], now["repeated"]) == (10, 20)
    now = wait_read(platform, "packed", 4)
    assert (now["accepted"], now["refused"]) == (2, 2)
    assert "7" in now["refusals"][0]["reason"] + now["refusals"][1]["reason"]
    wait_until("12 jobs", lambda: len(tagged(platform, "keyed")) + len(tagged(platform, "packed")) == 12, 20)
    again = platform.http("POST", "/model/sim/production/async_predict", {"model_input": {}},
                          {"Idempotency-Key": "order-3"})
    assert again.status == 422, again  # the same key, another input
    unbind(platform, "keyed")
    unbind(platform, "packed")


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(platform):
    """A topic that is not there, one that may not be read, a cluster that is away, a bad record that stops
    its partition; beside them a binding that works, and one of results only."""
    denying = kafka.DenyingCluster("denied")
    bind(platform, "denied", topic="denied", brokers=denying.bootstrap)
    bind(platform, "away", topic="one", brokers="127.0.0.1:9")
    bind(platform, "absent", topic="absent")
    bind(platform, "all", result_topic="all.out", start="beginning")
    bind(platform, "stops", topic="one", start="beginning", tags="stops")
    for name, words in (("absent", "there is no topic 'absent'"), ("denied", "authorization"),
                        ("stops", "stands still at offset 50"), ("away", "metadata of 'one'")):
        wait_until(f"{name} to say '{words}'",
                   lambda: words in (topic(platform, name)["problem"] or ""), 20, 0.1)  # noqa: B023
    assert topic(platform, "stops")["accepted"] == 50 and topic(platform, "stops")["lag"] == 3
    wait_until("results of what was refused nowhere", lambda: len(kafka.consume(platform.url("kafka"), "all.out"))
               >= len(tagged(platform, "stops")), 30, 0.2)
    kafka.make_topics(platform.url("kafka"), ["absent"])
    kafka.produce(platform.url("kafka"), "absent", [b"{}"] * 3)
    assert wait_read(platform, "absent", 3)["accepted"] == 3
    wait_until("nothing to be wrong", lambda: topic(platform, "absent")["problem"] is None, 20, 0.1)
    for name in ("denied", "away", "absent", "all", "stops"):
        unbind(platform, name)
    denying.close()


def test_a_cluster_with_tls_and_passwords(platform, tmp_path):
    """Records come and results go over SASL_SSL, by a user of SCRAM whose password is a secret; a wrong
    password, a certificate that nobody vouches for, and topics and groups that are denied, are named."""
    with SecureKafka(tmp_path) as theirs:
        login = "sasl.mechanism=SCRAM-SHA-512;sasl.username=alice;sasl.password="
        for name, password in (("login", "alice-password"), ("wrong", "alice-passwort")):
            platform.cli("secrets", "set", name, input=f"{login}{password}\n")
        known = {"security.protocol": "SASL_SSL", "ssl.ca.pem": theirs.pem("ca")}
        more = {"brokers": theirs.bootstrap, "secret": "login", "properties": known}
        bind(platform, "open", topic="open", result_topic="open.out", tags="open", **more)
        bind(platform, "closed", topic="closed", **more)
        bind(platform, "group", topic="open", group="somebody", **more)
        bind(platform, "wrong", topic="open", **{**more, "secret": "wrong"})
        bind(platform, "stranger", topic="open", **{**more, "properties": {**known, "ssl.ca.pem": theirs.pem("other")}})
        bind(platform, "plain", topic="open", brokers=theirs.bootstrap)
        kafka.produce(theirs.bootstrap, "open", [(b"%d" % n, b"{}") for n in range(20)], properties=theirs.admin())
        wait_read(platform, "open", 20)
        wait_until("20 results", lambda: len({r["key"] for r in kafka.consume(theirs.bootstrap, "open.out",
                                                                              theirs.admin())}) == 20, 30, 0.2)
        assert len(tagged(platform, "open")) == 20 and topic(platform, "open")["problem"] is None
        for name, words in (("closed", "Topic authorization failed"), ("group", "Group authorization failed"),
                            ("wrong", "SASL authentication error"), ("stranger", "certificate verify failed"),
                            ("plain", "metadata of 'open'")):
            wait_until(f"{name} to say '{words}'",
                       lambda: words in (topic(platform, name)["problem"] or ""), 30, 0.1)  # noqa: B023
        assert "alice-passwor" not in json.dumps([topic(platform, name) for name in ("open", "wrong")])
        for name in ("open", "closed", "group", "wrong", "stranger", "plain"):
            unbind(platform, name)


def test_bindings_that_cannot_be_are_refused(platform):
    def refused(status, words, **fields):
        reply = platform.http("POST", "/v1/topics", {"name": "x", "model": "sim", "topic": "one", **fields})
        assert reply.status == status and words in reply.json["error"], reply

    refused(501, "Avro", format="avro")
    refused(400, "topic of the platform", topic="intake")
    refused(400, "properties.plugin.library.paths", properties={"plugin.library.paths": "/tmp/x.so"})
    refused(400, "mapping has the member 'inputs'", mapping={"inputs": {}})
    refused(400, "opens {{", mapping={"input": "{{input.value"})
    refused(400, "need each other", on_bad_record="dead_letter")
    refused(400, "read and written", result_topic="one")
    refused(400, "priority is 3", priority=3)
    assert platform.http("GET", "/v1/topics/none").status == 404


def test_limits_make_it_wait_and_lose_nothing(platform):
    platform.http("PATCH", "/v1/tenants/default", {"limits": {"waiting_jobs": 60}})
    platform.push_sim("slow", slots=8, service_ms=20)
    bind(platform, "slow", topic="slow", model="slow", tags="slow")
    kafka.produce(platform.url("kafka"), "slow", [b"{}"] * 150)
    wait_until("the limit to be named", lambda: "waiting_jobs is 60" in (topic(platform, "slow")["problem"] or ""),
               10, 0.05)
    assert platform.cli("topics", "pause", "slow").returncode == 0
    before = topic(platform, "slow")
    assert before["paused"] and before["accepted"] < 150
    platform.http("PATCH", "/v1/tenants/default", {"limits": {"waiting_jobs": None}})
    assert "slow" in platform.cli("topics", "ls").stdout
    assert topic(platform, "slow")["accepted"] < 150
    assert platform.cli("topics", "resume", "slow").returncode == 0
    assert wait_read(platform, "slow", 150)["accepted"] == 150
    wait_until("150 jobs", lambda: len(tagged(platform, "slow")) == 150, 20)
    assert platform.cli("topics", "unbind", "slow").returncode == 0


# --- who reads results ----------------------------------------------------------------------------

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples" / "consumer"


def lines_of(process, count):
    """The first lines that it prints; then it is told to end, and must end well."""
    lines = [process.stdout.readline().strip() for _ in range(count)]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    return lines, process.returncode


def test_examples_read_results(platform):
    """C and Python read `completed`, Java (which takes its time to compile) a result topic; each sees every
    job once."""
    brokers, here = platform.url("kafka"), platform.data_dir
    libs = f"{os.environ['HEADRACE_DEPS']}/kafka/libs/*"
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "rdkafka", "msgpack"], capture_output=True, text=True,
                           check=True).stdout.split()
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-o", here / "consumer", EXAMPLES / "consumer.c", *flags],
                   check=True, timeout=60)
    commands = {"c": [here / "consumer", brokers], "python": [sys.executable, EXAMPLES / "consumer.py", brokers]}
    if LONG and shutil.which("javac"):
        subprocess.run(["javac", "-cp", libs, "-d", here, EXAMPLES / "Consumer.java"], check=True, timeout=60)
        commands["java"] = ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{libs}:{here}", "Consumer", brokers, "one.out"]
    finals = {row[0] for row in platform.sql("SELECT id FROM headrace.job WHERE state > 2")}
    expected = {"c": finals, "python": finals,
                "java": {r["headers"]["headrace-request-id"] for r in kafka.consume(brokers, "one.out")}}
    running = {name: subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent)
               for name, command in commands.items()}
    for name, process in running.items():
        lines, code = lines_of(process, len(expected[name]))
        assert {line.split()[0] for line in lines} == expected[name], name
        assert all("SUCCEEDED" in line for line in lines), name
        assert code == (143 if name == "java" else 0), name  # a JVM says so of an end by SIGTERM


def test_tail_shows_jobs_as_they_end(platform):
    tail = subprocess.Popen([BINARY, "tail", "--url", platform.url("gateway"), "--api-key", platform.key, "--json",
                             "--tag", "seen", "--model", "sim", "--count", "3"], stdout=subprocess.PIPE, text=True,
                            preexec_fn=die_with_parent)
    ids = set()

    def submit():
        platform.submit("sim", {}, headers={"X-Headrace-Tags": "unseen"})
        ids.add(platform.submit("sim", {}, headers={"X-Headrace-Tags": "seen"}))
        return tail.poll() is not None

    wait_until("tail to have seen three jobs", submit, 20, 0.2)
    events = [json.loads(line) for line in tail.stdout]
    assert tail.returncode == 0 and len(events) == 3
    assert {event["request_id"] for event in events} <= ids
    assert all(event["status"] == "SUCCEEDED" and event["tags"] == "seen" and event["model_name"] == "sim"
               for event in events)
    assert platform.http("GET", "/v1/tail?cursor=x").status == 400
    assert platform.http("GET", "/v1/tail?status=QUEUED").status == 400
    first = platform.http("GET", "/v1/tail").json
    assert first["events"] == [] and platform.http("GET", f"/v1/tail?cursor={first['cursor']}").status == 200


# --- two ingests, kills, rebalances --------------------------------------------------------------


def stopped(process):
    return "T" == pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.mark.parametrize("point", ["ingest_claimed", "ingest_sent", "ingest_results_sent"])
def test_killed_between_its_steps(platform, tmp_path, point):
    """An ingest of its own stops itself right behind the step, with records in its hands, and is killed there;
    dev's makes the same jobs of them, and sends no result under another id."""
    brokers, name = platform.url("kafka"), point.replace("_", "-")
    kafka.make_topics(brokers, [name, f"{name}.out"])
    (tmp_path / point).touch()
    platform.stop_service("ingest")
    second, _ = start_ingest(platform, name, SESSION, HEADRACE_FAULT_DIR=str(tmp_path))
    bind(platform, name, topic=name, result_topic=f"{name}.out", tags=name)
    kafka.produce(brokers, name, [(f"{i}".encode(), b"{}") for i in range(40)])
    wait_until(f"it to stop behind {point}", lambda: stopped(second), 30)
    second.kill()
    second.wait()
    platform.start_service("ingest")
    wait_until("40 results", lambda: len({r["key"] for r in kafka.consume(brokers, f"{name}.out")}) == 40, 30, 0.2)
    wait_until("no lag", lambda: topic(platform, name)["lag"] == 0, 20)
    results = {(r["key"], r["headers"]["headrace-request-id"]) for r in kafka.consume(brokers, f"{name}.out")}
    assert len(tagged(platform, name)) == len(results) == 40
    unbind(platform, name)


def test_two_ingests_through_kills_and_rebalances(platform):
    """Distinct ids = records. The long form is bench/run ingest."""
    sent = through_rebalances(platform, "four", 1, ROUND_RECORDS, SESSION)
    print(f"\n{wait_custody(platform, 'four', sent)}")
    unbind(platform, "four")
