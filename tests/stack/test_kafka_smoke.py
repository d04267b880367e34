# SPDX-License-Identifier: Apache-2.0
"""Goal: the Kafka that we pin and the client library that we ship understand each other."""

import subprocess

from stack import TOOLS


def test_smoke_program(servers):
    done = subprocess.run([TOOLS / "kafka_smoke", servers.url("kafka")], capture_output=True,
                          text=True, timeout=120)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("kafka_smoke: ok\n")
