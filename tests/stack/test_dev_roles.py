# SPDX-License-Identifier: Apache-2.0
"""Goal: `headrace dev` runs every role, drains them in order, and says who died and why."""

import json
import os
import signal

from stack import wait_until


def test_all_roles_run_and_drain(new_stack):
    stack = new_stack().start()
    services = stack.services()
    assert {service["state"] for service in services.values()} == {"ready"}
    assert {"migrate", "broker", "webhook", "agent", "gateway"} <= services.keys()
    assert stack.stop() == 0
    events = [json.loads(line) for line in stack.output.read_text().splitlines()]
    stopped = [e["service"] for e in events if e.get("event") == "stopped"]
    roles = [name for name, service in services.items() if service["role"] and name != "migrate"]
    assert stopped[:len(roles)] == list(reversed(roles))  # what is started last stops first
    ends = {e["service"]: e["text"] for e in events if e.get("event") == "stopped"}
    assert {ends[name] for name in roles} == {"exited with code 0"}


def test_key_and_client_file_outlive_a_restart(new_stack):
    stack = new_stack().start()
    file = stack.data_dir / "client.json"
    assert file.stat().st_mode & 0o777 == 0o600
    first = json.loads(file.read_text())
    assert first["url"] == stack.url("gateway") and first["api_key"] == stack.key
    assert first["webhook_secret"].startswith("whsec_") and len(first["webhook_secret"]) == 46
    assert stack.http("GET", "/v1/models").status == 200
    assert stack.http("GET", "/v1/models", key=None).status == 401
    assert stack.stop() == 0
    stack.start()
    assert json.loads(file.read_text()) == first
    assert stack.http("GET", "/v1/models").status == 200


def test_role_that_dies_is_restarted_when_asked(new_stack):
    stack = new_stack(on_death="restart").start()
    first = stack.services()["broker"]["pid"]
    os.kill(first, signal.SIGKILL)
    wait_until("another broker", lambda: (stack.services()["broker"]["state"] == "ready"
                                          and stack.services()["broker"]["pid"] != first), 60)
    assert '"died","service":"broker","text":"was killed by signal 9 (Killed)"' in stack.output.read_text()
