# SPDX-License-Identifier: Apache-2.0
"""The table of bench/chaos: (program or server) × (protocol step) × fault.

The steps of our own programs are the fault points of brokers/fault_points.def. A server has one
step of its own, `load`; and it dies while the broker stands at one of its steps: then the cell's
program is the server and its step the broker's.
"""

import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
POINT = re.compile(r'^FAULT_POINT\((\w+), (\w+), "(.*)"\)$', re.M)

FAULTS = {
    "kill": "kill -9",
    "stop": "SIGSTOP for 30 s, then it goes on",
    "restart": "SIGTERM and a new start",
    "cut": "its machine's network is cut for 30 s, then heals",
    "full": "its disk is full for 15 s",
    "flush": "FLUSHALL",
    "failover": "kill -9 of the primary, the synchronous standby is promoted",
}

# A step that exists only while a program leaves or comes cannot be cut off: nobody has it yet.
NOT_CUT = {"broker_epoch_raised", "broker_offsets_read", "broker_revoked", "gateway_late"}
# Where a server is killed while the broker stands there.
HELD = ("broker_attempt_sent", "broker_flush_written", "broker_committed", "broker_told", "broker_completed")


# Of the engine hosts of user code (tests/lib/chaos_hosts.py).
HOSTS = ("host-server", "host-py")
HOST_STEPS = {
    "loading": "the model is being loaded",
    "running": "jobs run in it",
    "streaming": "jobs run in it that answer in pieces",
}


class Cell(NamedTuple):
    program: str
    step: str
    fault: str

    @property
    def name(self):
        return f"{self.program}.{self.step.removeprefix(self.program + '_')}.{self.fault}"

    @property
    def needs_namespace(self):
        return self.fault in ("cut", "full")

    @property
    def needs_pair(self):
        return self.fault == "failover"


def points():
    """(name, program, text) of each fault point."""
    return POINT.findall((ROOT / "brokers/fault_points.def").read_text())


def step_text(step):
    if step == "load":
        return "under load"
    if step in HOST_STEPS:
        return HOST_STEPS[step]
    return {name: text for name, _, text in points()}[step]


def cells():
    table = []
    for name, program, _ in points():
        faults = ["kill", "stop", "restart"] + ([] if name in NOT_CUT else ["cut"])
        table += [Cell(program, name, fault) for fault in faults]
    table += [Cell("agent", "load", fault) for fault in ("kill", "stop", "restart")]
    table += [Cell("host-c", "load", fault) for fault in ("kill", "stop")]
    table += [Cell(host, step, fault) for host in HOSTS for step in HOST_STEPS for fault in ("kill", "stop")]
    for server in ("kafka", "postgres", "redis"):
        table += [Cell(server, "load", fault) for fault in ("kill", "stop", "restart", "full")]
        table += [Cell(server, step, "kill") for step in HELD]
    table += [Cell("redis", step, "flush") for step in ("load", *HELD)]
    table += [Cell("blobs", "load", "full"), Cell("everything", "load", "kill")]
    table += [Cell("postgres", step, "failover") for step in ("load", "broker_flush_written", "broker_committed")]
    assert len({cell.name for cell in table}) == len(table)
    return table
