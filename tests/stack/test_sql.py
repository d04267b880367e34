# SPDX-License-Identifier: Apache-2.0
"""headrace migrate and headrace sql, as a person at a terminal uses them.

Method: a Postgres server of its own by tests/lib/postgres.sh, which lives as long as the pipe to
it; the binary is run as a person runs it, and what it prints and returns is compared.
"""

import csv
import io
import json
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ["HEADRACE_BIN"]


@pytest.fixture(scope="module")
def postgres():
    """The address of an empty server."""
    server = subprocess.Popen(
        [ROOT / "tests/lib/postgres.sh", "sh", "-c", "echo $HEADRACE_POSTGRES; cat >&2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield server.stdout.readline().strip()
    server.stdin.close()
    assert server.wait(timeout=30) == 0


def headrace(postgres, *arguments):
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")},
        "HEADRACE_POSTGRES": postgres,
    }
    return subprocess.run(
        [BINARY, *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def migrated(postgres):
    done = headrace(postgres, "migrate")
    assert done.returncode == 0, done.stderr
    return postgres


def sql(migrated, *arguments):
    return headrace(migrated, "sql", *arguments)


def test_before_the_migration(postgres):
    status = headrace(postgres, "migrate", "--status", "--json")
    assert status.returncode == 0
    assert not any(row["applied"] for row in json.loads(status.stdout))
    early = headrace(postgres, "sql")
    assert early.returncode == 2
    assert "headrace migrate" in early.stderr


def test_migrate_says_what_it_did(migrated):
    again = headrace(migrated, "migrate")
    assert again.returncode == 0
    assert again.stdout.endswith("up to date, 0 applied now\n")
    rows = json.loads(headrace(migrated, "migrate", "--status", "--json").stdout)
    assert [row["number"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(row["applied"] and row["applied_at"] for row in rows)


def test_no_server():
    done = headrace("postgresql://a:b@127.0.0.1:1/x", "migrate")
    assert done.returncode == 2
    assert "Connection refused" in done.stderr
    assert "b@" not in done.stderr  # no password in what people paste


def test_lists_views_and_columns(migrated):
    views = sql(migrated)
    assert views.returncode == 0
    names = [line.split()[0] for line in views.stdout.splitlines()[1:]]
    assert {"jobs", "attempts", "deliveries", "queue_depth", "shards", "workers"} <= set(names)
    columns = sql(migrated, "--views", "queue_depth", "--json")
    assert [row["column"] for row in json.loads(columns.stdout)] == [
        "pool",
        "deployment_id",
        "class",
        "waiting",
        "running",
    ]
    assert sql(migrated, "--views", "nothing").returncode == 3


VALUES = """SELECT 1 AS a, true AS b, '{"x":[1]}'::jsonb AS j, NULL AS n,
    E'a,"b\\nc' AS t, 1.50::numeric AS d, 'NaN'::float8 AS nan"""


def test_json_keeps_types(migrated):
    rows = json.loads(sql(migrated, "--json", VALUES).stdout)
    assert rows == [
        {"a": 1, "b": True, "j": {"x": [1]}, "n": None, "t": 'a,"b\nc', "d": 1.5, "nan": "NaN"}
    ]
    assert json.loads(sql(migrated, "--json", "SELECT 1 WHERE false").stdout) == []


def test_csv_can_be_read(migrated):
    rows = list(csv.reader(io.StringIO(sql(migrated, "--csv", VALUES).stdout, newline="")))
    assert rows == [
        ["a", "b", "j", "n", "t", "d", "nan"],
        ["1", "t", '{"x": [1]}', "", 'a,"b\nc', "1.50", "NaN"],
    ]


def test_an_error_points_at_its_place(migrated):
    done = sql(migrated, "SELECT id\nFROM jobs WHER id IS NULL")
    assert done.returncode == 3
    line, mark, text = done.stderr.splitlines()
    assert line == "  FROM jobs WHER id IS NULL"
    assert line[mark.index("^")] == "i"
    assert text.startswith("headrace sql: ") and "syntax error" in text
    done = sql(migrated, "SELECT 'äöü', nothing FROM jobs")
    line, mark = done.stderr.splitlines()[:2]
    assert line[mark.index("^") :].startswith("nothing")


@pytest.mark.parametrize(
    "statement, why",
    [
        ("SELECT 1; SELECT 2", "multiple commands"),
        ("DELETE FROM headrace.job", "permission denied"),
        ("SELECT * FROM headrace.api_key", "permission denied"),
        ("CREATE TABLE x (x integer)", "read-only"),
        ("SELECT pg_sleep(60)", "timeout"),
        ("SELECT set_config('transaction_read_only', 'off', false)", "read-write"),
    ],
)
def test_refuses(migrated, statement, why):
    done = sql(migrated, "--timeout=200ms", statement)
    assert done.returncode == 3
    assert why in done.stderr


def test_wrong_use(migrated):
    assert sql(migrated, "SELECT", "1").returncode == 1
    assert sql(migrated, "--json", "--csv", "SELECT 1").returncode == 1
    done = headrace("", "migrate")
    assert done.returncode == 1
    assert "HEADRACE_POSTGRES" in done.stderr
