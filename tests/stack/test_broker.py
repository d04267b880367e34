# SPDX-License-Identifier: Apache-2.0
"""Goal: the broker hands over cleanly, sets aside what nobody can read, and refuses by name what it
must not skip. Method: records written past the gateway, a second broker, a changed ledger."""

import os
import signal
import subprocess
import time

import msgpack
import pytest

from stack import BINARY, wait_until

EXIT_FATAL = 3
NEWER = msgpack.packb([99, 1, {}])  # a submit of a version that we do not know


@pytest.fixture(scope="module")
def platform(stack):
    stack.push_sim("sim", slots=4)
    return stack


def broker_start(stack, log, **settings):
    env = {"PATH": os.environ["PATH"], "HEADRACE_LOG_FILE": str(log)}
    env |= {f"HEADRACE_{name.upper()}": stack.url(name) for name in ("kafka", "redis", "postgres")}
    env |= {f"HEADRACE_{name.upper()}": value for name, value in settings.items()}
    return subprocess.Popen([BINARY, "broker"], env=env)


def read(log):
    return log.read_text() if log.exists() else ""


def test_record_that_nobody_can_read_is_set_aside(platform):
    platform.produce("intake", ["this is no message", "nor is this"])
    wait_until("both in intake.dead", lambda: len(platform.consume("intake.dead")) == 2)
    first = platform.consume("intake.dead")[0]
    assert first.value == b"this is no message" and first.key.startswith(b"intake[0]@")
    assert platform.wait_final(platform.submit("sim", {"n": 1}))["status"] == "SUCCEEDED"


def test_clean_stop_hands_the_shard_over_at_once(platform, tmp_path):
    log = tmp_path / "second.log"
    second = broker_start(platform, log, instance="second")
    try:
        wait_until("the second broker to be elected", lambda: '"elected"' in read(log))
        wait_until("one of both to own the shard", lambda: owner(platform, log))
        began = time.monotonic()
        if owner(platform, log) == "second":
            second.send_signal(signal.SIGTERM)
            assert second.wait(timeout=30) == 0
            wait_until("dev's broker to be live", lambda: owner(platform, log) == "dev")
        else:
            platform.stop_service("broker")
            wait_until("the second broker to be live", lambda: owner(platform, log) == "second")
        took = time.monotonic() - began
        print(f"\nhanded over in {took:.2f} s")
        assert platform.wait_final(platform.submit("sim", {"n": 2}))["status"] == "SUCCEEDED"
        assert took < 4
    finally:
        second.terminate()
        second.wait(timeout=30)
        if platform.services()["broker"]["state"] != "ready":
            platform.start_service("broker")


def owner(stack, log):
    text = read(log)
    if text.rfind('"shard_live"') > text.rfind('"shard_left"'):
        return "second"
    reply = subprocess.run(["curl", "-s", stack.url("broker") + "/metrics"], capture_output=True, text=True).stdout
    return "dev" if 'headrace_broker_shard_live{shard="0"} 1' in reply else None


def test_ledger_of_another_kafka_is_refused_by_name(platform, tmp_path):
    log = tmp_path / "other.log"
    ((cluster,),) = platform.sql("SELECT cluster FROM headrace.shard WHERE id = 0")
    platform.sql("UPDATE headrace.shard SET cluster = 'another' WHERE id = 0")
    try:
        other = broker_start(platform, log, group="other", instance="other")
        assert other.wait(timeout=60) == EXIT_FATAL
    finally:
        platform.sql("UPDATE headrace.shard SET cluster = :'a1' WHERE id = 0", cluster)
    assert "was written from another Kafka cluster" in read(log)


def test_record_of_a_newer_program_stops_the_shard(platform):
    """Last: this shard is over until an upgrade."""
    ((pid,),) = [platform.pids("broker")]
    offset = len(platform.consume("intake"))
    subprocess.run(["kcat", "-P", "-q", "-b", platform.url("kafka"), "-t", "intake", "-p", "0", "-X", "acks=all",
                    "-D", "\x1e"], input=NEWER, check=True)
    platform.wait_state("broker", "down", 60)
    text = (platform.data_dir / "logs/broker.log").read_text()
    assert '"shard_given_up"' in text and '"exit_code":3' in text
    ((floor,),) = platform.sql("SELECT max(intake_floor) FROM headrace.flush")
    assert int(floor) <= offset  # nothing was skipped
