# SPDX-License-Identifier: Apache-2.0
"""Goal: `headrace dev` keeps data over every kind of end, leaves nothing behind, and stays away
from what it did not start. Method: the three servers alone, each time in a directory of its own."""

import os
import signal
import socket
import subprocess

from stack import BINARY, Stack, descendants, is_running, wait_until

SERVERS = "kafka,redis,postgres"


def write_everywhere(stack):
    stack.sql("CREATE TABLE kept (word text); INSERT INTO kept VALUES ('postgres')")
    assert stack.redis("SET", "kept", "redis") == "OK"
    subprocess.run(["kcat", "-b", stack.url("kafka"), "-L"], check=True, capture_output=True)


def assert_kept(stack):
    assert stack.sql("SELECT word FROM kept") == [["postgres"]]
    assert stack.redis("GET", "kept") == "redis"


def test_data_outlives_a_stop_and_a_kill(new_stack):
    stack = new_stack(only=SERVERS).start()
    addresses = {name: stack.url(name) for name in SERVERS.split(",")}
    write_everywhere(stack)
    assert stack.stop() == 0
    stack.start()
    assert {name: stack.url(name) for name in SERVERS.split(",")} == addresses
    assert_kept(stack)
    stack.kill_dev()
    stack.start()
    assert_kept(stack)


def test_kill_of_dev_leaves_no_orphan(new_stack):
    stack = new_stack(only=SERVERS).start()
    below = descendants(stack.process.pid)
    assert len(below) > 3  # the postmaster has children of its own
    stack.kill_dev()
    wait_until("all of them to end", lambda: not any(is_running(pid) for pid in below))


def test_death_of_a_server_stops_the_rest_and_is_told(new_stack):
    stack = new_stack(only=SERVERS, on_death="stop").start()
    os.kill(stack.services()["redis"]["pid"], signal.SIGKILL)
    assert stack.process.wait(timeout=60) == 3
    stack.process = None
    text = stack.output.read_text()
    assert '"died","service":"redis","text":"was killed by signal 9 (Killed)"' in text
    assert "Ready to accept connections" in text  # its last log lines


def test_one_service_stops_and_starts_again(new_stack):
    stack = new_stack(only="redis,postgres").start()
    stack.redis("SET", "kept", "redis")
    stack.stop_service("redis")
    assert stack.services()["postgres"]["state"] == "ready"
    stack.start_service("redis")
    stack.restart_service("redis", kill=True)
    assert stack.redis("GET", "kept") == "redis"


def test_second_dev_in_the_same_directory_is_refused(new_stack):
    stack = new_stack(only="redis").start()
    second = subprocess.run([BINARY, "dev", "--only=redis", "--data", stack.data_dir],
                            capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert "runs in" in second.stderr and "--down stops it" in second.stderr


def test_taken_port_is_left_alone(new_stack):
    stack = new_stack(only="redis").start()
    port = int(stack.url("redis").rsplit(":", 1)[1])
    assert stack.stop() == 0
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stranger.bind(("127.0.0.1", port))
        stranger.listen()
        stack.start()
        assert int(stack.url("redis").rsplit(":", 1)[1]) != port


def test_deep_private_directory(tmp_path):
    """120 characters deep, which no Unix socket's path could hold, below a directory that
    nobody else may enter."""
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    tmp_path.chmod(0o700)
    with Stack(only="redis,postgres", data_dir=deep / "data") as stack:
        assert stack.sql("SELECT 1") == [["1"]]
        for name in ("dev.json", "postgres/password"):
            assert (stack.data_dir / name).stat().st_mode & 0o077 == 0


def test_reset_removes_data_and_keeps_downloads(new_stack):
    stack = new_stack(only="redis").start()
    refused = subprocess.run([BINARY, "dev", "--reset", "--data", stack.data_dir],
                             capture_output=True, text=True, timeout=30)
    assert refused.returncode == 1
    stack.redis("SET", "gone", "1")
    assert stack.stop() == 0
    (stack.data_dir / "deps").mkdir()
    subprocess.run([BINARY, "dev", "--reset", "--data", stack.data_dir], check=True, timeout=30)
    assert (stack.data_dir / "deps").is_dir()
    assert not (stack.data_dir / "redis").exists()


def test_missing_server_is_named(new_stack, tmp_path):
    stack = new_stack(only="kafka", args=["--deps", tmp_path])
    try:
        stack.start()
    except AssertionError as error:
        assert "ended with 2" in str(error)
        assert "scripts/kafka/fetch" in str(error)
    else:
        raise AssertionError("dev started a Kafka that is not there")


def test_embedded_kafka_is_loud(new_stack):
    stack = new_stack(only="kafka", args=["--kafka=embedded"]).start()
    assert "KAFKA IS EMBEDDED" in stack.output.read_text()
    done = subprocess.run(["kcat", "-b", stack.url("kafka"), "-L"], capture_output=True, timeout=30)
    assert done.returncode == 0
    assert stack.stop() == 0


def test_given_servers_are_used_and_left_running(new_stack):
    theirs = new_stack(only="redis,postgres").start()
    mine = new_stack(only="redis,postgres,migrate",
                     args=["--redis", theirs.url("redis"), "--postgres", theirs.url("postgres")])
    mine.start()
    assert {s["state"] for n, s in mine.services().items() if n != "migrate"} == {"given"}
    assert mine.sql("SELECT count(*) > 0 FROM headrace.tenant") == [["f"]]  # migrated, and nobody there yet
    assert mine.stop() == 0
    assert theirs.redis("PING") == "PONG"
