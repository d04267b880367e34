# SPDX-License-Identifier: Apache-2.0
"""compose.yaml says what the rest of the tree says: the servers' versions are the pins, each
program and each setting exists, and nothing is published beyond loopback. No YAML library is
needed for lines as plain as these; Docker itself is not run in CI.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def read(path):
    return (ROOT / path).read_text()


def pinned():
    kafka = re.search(r"<kafka.version>([^<]+)<", read("scripts/kafka/pom.xml")).group(1)
    return {"apache/kafka": kafka, "redis": "7", "postgres": "15"}


def least_versions():
    """The least versions of scripts/packages.tsv, without Debian's epochs."""
    rows = (line.split("\t") for line in read("scripts/packages.tsv").splitlines() if not line.startswith("#"))
    return {row[1]: row[2].split(":")[-1] for row in rows}


def settings():
    names = set()
    for table in ROOT.glob("*/*_settings.def"):
        names |= set(re.findall(r"^SETTING_\w+\((\w+)", table.read_text(), re.M))
    return names


def problems():
    text = read("compose.yaml")
    images = dict(re.findall(r"^    image: (\S+):(\S+)$", text, re.M))
    for name, version in pinned().items():
        have = images.pop(name, "no such image")
        if have != version and not have.startswith(version + "."):
            yield f"image {name} is {have}, the tree pins {version}"
    for name, version in (("redis-tools", pinned()["redis"]), ("postgresql-15", pinned()["postgres"])):
        if least_versions()[name] != version:
            yield f"scripts/packages.tsv asks for {name} {least_versions()[name]}, compose.yaml for {version}"
    commands = set(re.findall(r'^COMMAND\("([^"]+)"', read("cli/commands.def"), re.M))
    for command in re.findall(r"^    command: (\w+)$", text, re.M):
        if command not in commands:
            yield f"there is no command '{command}'"
    known = settings()
    for name in re.findall(r"^    HEADRACE_(\w+):", text, re.M):
        if name.lower() not in known:
            yield f"no program has the setting {name.lower()}"
    for published in re.findall(r"ports: \[(.*)\]", text):
        for port in published.split(","):
            if not port.strip(' "').startswith("127.0.0.1:"):
                yield f"port {port} is published beyond loopback"


found = list(problems())
for problem in found:
    print(f"compose.yaml: {problem}")
sys.exit(1 if found else 0)
