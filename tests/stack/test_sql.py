# SPDX-License-Identifier: Apache-2.0
"""headrace migrate and headrace sql, as a person at a terminal uses them; the questions of docs/sql.md.

Method: a Postgres server of its own by tests/lib/postgres.sh, which lives as long as the pipe to
it; the binary is run as a person runs it, and what it prints and returns is compared.
"""

import csv
import fnmatch
import io
import json
import os
import pathlib
import re
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


@pytest.fixture(scope="module")
def world(migrated):
    """Rows of two tenants, and a login for each."""
    psql(migrated, (ROOT / "tests/data/sql/rows.sql").read_text(), check=True)
    for tenant, may_write in (("acme", "true"), ("globex", "false")):
        psql(
            migrated,
            f"CREATE ROLE {tenant}_login LOGIN PASSWORD 'x'; GRANT headrace_tenant TO {tenant}_login;"
            f"SELECT headrace.tenant_bind('{tenant}_login', '{tenant}', {may_write});",
            check=True,
        )
    return migrated


def psql(url, script, check=False):
    done = subprocess.run(
        ["psql", "-XqAt", *(["-v", "ON_ERROR_STOP=1"] if check else []), url],
        input=script,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert not check or done.returncode == 0, done.stdout
    return done.stdout


def login_of(url, tenant):
    return re.sub(r"//[^@]*@", f"//{tenant}_login:x@", url)


def cookbook():
    """The questions of docs/sql.md with their statements."""
    page = (ROOT / "docs/sql.md").read_text()
    page = page[page.index("## Cookbook") : page.index("\n## Writing")]
    found = dict(re.findall(r"^### (.+?)\n(?:[^#]*?)```sql\n(.*?)```", page, re.S | re.M))
    assert len(found) == page.count("\n### ") >= 25
    return found


def ask_all(url, questions, begin):
    """What each question is answered, by one session."""
    lines = [begin] + [f"\\echo '## {q}'\n{statement}" for q, statement in questions.items()]
    answers = psql(url, "\n".join(lines)).split("## ")
    assert answers[0] == ""
    return dict(one.split("\n", 1) for one in answers[1:])


def test_the_cookbook_is_true(world):
    questions = cookbook()
    told = ask_all(world, questions, "SET ROLE headrace_reader; SET search_path = headrace_v1;")
    text = (ROOT / "tests/data/sql/answers.txt").read_text()
    wanted = dict(one.split("\n", 1) for one in text.split("## ")[1:])
    assert list(told) == list(wanted) == list(questions)
    for question, answer in told.items():
        assert answer, question
        assert fnmatch.fnmatchcase(answer, re.sub(r"\[", "[[]", wanted[question])), (question, answer)


def test_a_tenant_sees_its_own(world):
    questions = cookbook()
    begin = "SET search_path = headrace_tenant_v1;"
    for tenant, other in (("acme", "globex"), ("globex", "acme")):
        told = ask_all(login_of(world, tenant), questions, begin)
        strange = [q for q, answer in told.items() if "ERROR:" in answer]
        assert strange == ["Is every shard owned, and how far behind is it?"]
        words = {"acme": ("acme", "summarize", "d-sum2", "w1"), "globex": ("globex", "embed", "hr_glob1", "w3")}
        text = "\n".join(told.values())
        assert [w for w in words[other] if w in text] == []
        assert [w for w in words[tenant] if w not in text] == []


COUNTS = """SELECT count(*) FROM {0}.jobs; SELECT count(*) FROM {0}.attempts; SELECT count(*) FROM {0}.workers;
    SELECT count(*) FROM {0}.queue_depth; SELECT count(*) FROM {0}.results; SELECT count(*) FROM {0}.environments;
    SELECT count(*) FROM {0}.delivery_tries;"""


def test_tenants_add_up(world):
    """Nothing is lost between them, and nothing is in both."""
    all_of_it = psql(world, COUNTS.format("headrace_v1")).split()
    parts = [psql(login_of(world, t), COUNTS.format("headrace_tenant_v1")).split() for t in ("acme", "globex")]
    assert [str(int(a) + int(b)) for a, b in zip(*parts)] == all_of_it


@pytest.mark.parametrize(
    "statement, why",
    [
        ("SELECT * FROM headrace_v1.jobs", "permission denied"),
        ("SELECT * FROM headrace.job", "permission denied"),
        ("SELECT * FROM headrace.sql_login", "permission denied"),
        ("SET ROLE headrace_reader", "permission denied"),
        ("SET SESSION AUTHORIZATION globex_login", "permission denied"),
        ("SELECT headrace.tenant_bind('acme_login', 'globex')", "permission denied"),
        ("SELECT headrace_v1.cancel(gen_random_uuid())", "permission denied"),
        # A function that is cheaper than the filter, and tells what it is shown.
        (
            "CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS "
            "$$BEGIN RAISE NOTICE 'tenant %', $1; RETURN true; END$$;"
            "SELECT count(*) > 0 FROM headrace_tenant_v1.jobs WHERE pg_temp.leak(tenant)",
            "tenant acme",
        ),
    ],
)
def test_a_tenant_is_kept_in(world, statement, why):
    told = psql(login_of(world, "acme"), statement)
    assert why in told
    assert "tenant globex" not in told


def tell_views(url, schema):
    """By view of that schema: all rows that this login sees, as texts."""
    views = psql(url, f"SELECT relname FROM pg_class WHERE relnamespace = '{schema}'::regnamespace AND relkind = 'v' "
                      "ORDER BY relname", check=True).split()
    told = psql(url, "\n".join(f"\\echo '## {v}'\nSELECT v::text FROM {schema}.{v} v;" for v in views), check=True)
    return {one.split("\n", 1)[0]: one.split("\n", 1)[1].splitlines() for one in told.split("## ")[1:]}


# Of these rows.sql has none of anybody; another one that is empty is a view that this test does not see.
EMPTY = {"bulk_jobs", "chain_calls", "chain_critical_path", "chain_waits", "files", "job_hours", "topic_partitions", "topic_refusals",
         "topics"}


def test_no_view_shows_another_tenant(world):
    """Every view there is, row by row: nobody's row is seen by two, and none has the other one's words."""
    everything = tell_views(world, "headrace_v1")
    acme, globex = (tell_views(login_of(world, t), "headrace_tenant_v1") for t in ("acme", "globex"))
    assert set(acme) == set(globex) == set(everything) - {"devices", "shards", "training_trainers"}
    words = {"acme": ("acme", "m-sum", "d-sum", "hr_acme1", "p-sum2"), "globex": ("globex", "m-emb", "d-emb", "hr_glob1")}
    for view in acme:
        for mine, other in ((acme[view], "globex"), (globex[view], "acme")):
            assert [row for row in mine if any(word in row for word in words[other])] == [], view
        assert not set(acme[view]) & set(globex[view]), view
        if not view.startswith("training"):
            assert acme[view] or globex[view] or view in EMPTY, f"{view}: no row to tell tenants apart by"


OPEN_FUNCTIONS = """
SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace::regnamespace::text ~ '^headrace'
   AND p.prosecdef AND p.prosqlbody IS NULL AND NOT coalesce(p.proconfig::text ~ 'search_path=[^"]*pg_temp"', false);
SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace::regnamespace::text ~ '^headrace_'
   AND p.proname <> 'id_at' AND has_function_privilege('loose', p.oid, 'EXECUTE');
SELECT c.oid::regclass FROM pg_class c WHERE c.relnamespace::regnamespace::text ~ '^headrace'
   AND c.relkind IN ('r', 'p', 'v', 'S') AND has_table_privilege('loose', c.oid, 'SELECT, INSERT, UPDATE, DELETE');
SELECT nspname FROM pg_namespace WHERE nspname ~ '^headrace'
   AND (has_schema_privilege('loose', oid, 'CREATE, USAGE')
        OR nspname = 'headrace' AND has_schema_privilege('acme_login', oid, 'CREATE, USAGE')
        OR has_schema_privilege('acme_login', oid, 'CREATE'));
"""


def test_nothing_is_open_to_everybody(world):
    """Functions that run as their owner look nothing up in pg_temp first; whoever was granted nothing has nothing."""
    psql(world, "CREATE ROLE loose LOGIN PASSWORD 'x'", check=True)
    assert psql(world, OPEN_FUNCTIONS, check=True) == ""


def test_a_login_holds_nothing_up(world):
    """A tenant takes what locks a login can, and keeps them: the care of the ledger and commands go on."""
    holder = subprocess.Popen(["psql", "-XqAt", login_of(world, "globex")], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    holder.stdin.write("SELECT count(pg_advisory_lock(4851712031900 + n)) FROM generate_series(1, 150) n;"
                       "SELECT * FROM headrace.care_lock FOR UPDATE;\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "150\n"
    assert "permission denied for schema headrace" in holder.stdout.readline()
    job = psql(world, "SELECT id FROM headrace_v1.jobs WHERE model_name = 'summarize' AND status = 'QUEUED' LIMIT 1").strip()
    told = psql(
        world,
        "BEGIN; INSERT INTO headrace.queue_delta SELECT 0, 2, 'd-x', 'p-x', 0, 0, now() - interval '1 minute';"
        "SELECT headrace.queue_compact() > 0; SELECT headrace.hours_fill() > 0; ROLLBACK;"
        f"SET ROLE headrace_operator; BEGIN; SELECT headrace_v1.set_priority('{job}', 1) > 0; ROLLBACK;",
        check=True,
    )
    holder.kill()
    holder.wait()
    assert told.split() == ["t", "t", "t"]


def test_a_tenant_writes_its_own(world):
    waiting = psql(world, "SELECT id FROM headrace_v1.jobs WHERE model_name = 'summarize' AND status = 'QUEUED' LIMIT 1")
    dead = psql(world, "SELECT id FROM headrace_v1.dead_jobs WHERE reason = 'expired'").strip()
    other = psql(world, "SELECT id FROM headrace_v1.jobs WHERE model_name = 'embed' LIMIT 1").strip()
    waiting = waiting.strip()
    ask = (
        f"SELECT headrace_tenant_v1.set_priority('{waiting}', 0) > 0, headrace_tenant_v1.cancel('{waiting}') > 0,"
        f" headrace_tenant_v1.retry('{dead}') > 0;"
    )
    assert psql(login_of(world, "acme"), ask) == "t|t|t\n"
    assert "may read" in psql(login_of(world, "globex"), f"SELECT headrace_tenant_v1.cancel('{other}')")
    assert f"there is no job {other}" in psql(
        login_of(world, "acme"), f"SELECT headrace_tenant_v1.cancel('{other}')"
    )
    assert "it must be 0, 1 or 2" in psql(
        login_of(world, "acme"), f"SELECT headrace_tenant_v1.set_priority('{waiting}', 7)"
    )
    assert psql(
        login_of(world, "acme"),
        "SELECT kind, status, asked_by FROM headrace_tenant_v1.commands WHERE asked_by = 'acme_login' ORDER BY id;"
        "SELECT count(*) FROM headrace_tenant_v1.audit WHERE actor = 'acme_login' AND action ~ '^JOB_.*_ASKED$'",
    ).split() == [f"{k}|PENDING|acme_login" for k in ("priority", "cancel", "replay")] + ["3"]
    # The same for everybody's jobs, by its other name.
    psql(world, f"SET ROLE headrace_operator; SELECT headrace_v1.retry('{dead}')", check=True)


def test_binding_says_what_is_wrong(world):
    for arguments, why in (
        ("'nobody', 'acme'", "there is no role nobody"),
        ("'acme_login', 'nothing'", "there is no tenant nothing"),
        ("'headrace_operator', 'acme'", "sees all tenants"),
        ("'headrace', 'acme'", "a superuser"),
    ):
        assert why in psql(world, f"SELECT headrace.tenant_bind({arguments})")
    assert "bound to no tenant" in psql(world, "SELECT headrace.tenant_unbind('nobody')")
    script = "CREATE ROLE loose_login LOGIN PASSWORD 'x'; GRANT headrace_tenant TO loose_login"
    psql(world, script, check=True)
    assert psql(login_of(world, "loose"), "SELECT count(*) FROM headrace_tenant_v1.jobs") == "0\n"


def test_the_command_shows_a_tenant_its_views(world):
    login = login_of(world, "acme")
    assert json.loads(sql(login, "--json", "SELECT DISTINCT tenant FROM jobs").stdout) == [{"tenant": "acme"}]
    views = {line.split()[0] for line in sql(login).stdout.splitlines()[1:]}
    assert "jobs" in views and "shards" not in views
    assert "tenant" in sql(login, "--views", "jobs").stdout


# Line, zone, behind which moment, and the moments that follow.
CRON = [
    ("*/20 * * * *", "UTC", "2026-11-26 10:19:30Z", "11-26 10:20, 11-26 10:40, 11-26 11:00"),
    ("0 9 * * mon-fri", "Asia/Kathmandu", "2026-11-27 03:15Z", "11-30 03:15, 12-01 03:15"),
    ("0 12 13 * fri", "UTC", "2026-11-12 13:00Z", "11-13 12:00, 11-20 12:00"),  # either day
    ("0 12 * * 7", "UTC", "2026-11-26 00:00Z", "11-29 12:00, 12-06 12:00"),
    ("0 0 31 1-3/2,dec *", "UTC", "2026-01-31 00:00Z", "03-31 00:00, 12-31 00:00"),
    ("@hourly", "America/St_Johns", "2026-06-01 00:00Z", "06-01 00:30, 06-01 01:30"),
    # Clocks go forward over it: when they do, once. Those that keep their pace leave it out.
    ("30 2 * * *", "Europe/Berlin", "2026-03-28 12:00Z", "03-29 01:00, 03-30 00:30"),
    ("0,15,30 2 * * *", "Europe/Berlin", "2026-03-29 00:30Z", "03-29 01:00, 03-30 00:00"),
    ("30 * * * *", "Europe/Berlin", "2026-03-29 00:00Z", "03-29 00:30, 03-29 01:30"),
    # Clocks go back over it: the first time. Those that keep their pace run both times.
    ("30 2 * * *", "Europe/Berlin", "2026-10-24 12:00Z", "10-25 00:30, 10-26 01:30"),
    ("30 * * * *", "Europe/Berlin", "2026-10-25 00:00Z", "10-25 00:30, 10-25 01:30, 10-25 02:30"),
    # Two hours, and half an hour.
    ("0 * * * *", "Antarctica/Troll", "2026-10-24 22:30Z", "10-24 23:00, 10-25 00:00, 10-25 01:00, 10-25 02:00"),
    ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04 12:00Z", "04-04 14:45, 04-05 15:15"),
]


@pytest.mark.parametrize("line, zone, behind, moments", CRON)
def test_cron_moments(migrated, line, zone, behind, moments):
    count = len(moments.split(", "))
    told = psql(
        migrated,
        f"""SET search_path = headrace; SET timezone = 'UTC';
        WITH RECURSIVE r (at, n) AS (SELECT cron_next('{line}', '{zone}', '{behind}'), 1 UNION ALL
            SELECT cron_next('{line}', '{zone}', at), n + 1 FROM r WHERE n < {count})
        SELECT string_agg(to_char(at, 'MM-DD HH24:MI'), ', ' ORDER BY at) FROM r;
        SELECT cron_last('{line}', '{zone}', (SELECT cron_next('{line}', '{zone}', '{behind}') + interval '1 second'))
             = cron_next('{line}', '{zone}', '{behind}');""",
        check=True,
    )
    assert told.splitlines() == [moments, "t"]


@pytest.mark.parametrize(
    "line, why",
    [
        ("60 * * * *", "minute: '60' is not from 0 to 59"),
        ("* 24 * * *", "hour: '24' is not from 0 to 23"),
        ("* * 0 * *", "day: '0' is not from 1 to 31"),
        ("* * * foo *", "month: 'foo' is not from 1 to 12"),
        ("* * * * 8", "weekday: '8' is not from 0 to 7"),
        ("*/0 * * * *", "minute: the step of '*/0' is not from 1 to 59"),
        ("5-1 * * * *", "minute: '5-1' ends before it begins"),
        ("1,,2 * * * *", "minute: '' is no number"),
        ("1;2 * * * *", "minute: '1;2' is no number"),
        ("", "it has 1 fields"),
        ("* * * * * *", "it has 6 fields"),
        ("@never", "it has 1 fields"),
    ],
)
def test_a_bad_cron_line(migrated, line, why):
    assert why in psql(migrated, f"SELECT headrace.cron_next('{line}', 'UTC', now())")


def test_missed_ticks_and_many_that_claim(migrated):
    """What is caught up, and that no tick is claimed by two."""
    psql(
        migrated,
        """SET search_path = headrace;
        INSERT INTO tenant (id, name) VALUES ('late', 'late');
        INSERT INTO model (id, tenant, name) VALUES ('late', 'late', 'late');
        INSERT INTO deployment (id, model_id, name, number, pool, shard, engine)
            VALUES ('late', 'late', 'd', 1, 'p', 5, 'sim');
        INSERT INTO environment (model_id, name) VALUES ('late', 'production');
        INSERT INTO environment_target VALUES ('late', 'production', 'late', 100);
        SELECT schedule_set('late', policy, 'late', 'production', '{}', '*/10 * * * *', 'UTC', NULL, 0, policy, 'k', 9)
          FROM unnest('{skip,one,all}'::text[]) policy;
        UPDATE schedule SET next_at = '2026-01-01 00:00Z' WHERE tenant = 'late';""",
        check=True,
    )
    claim = "SELECT tick_at, job_id FROM headrace.schedule_claim('2026-01-01 01:05Z', 100)"
    racers = [
        subprocess.Popen(["psql", "-XqAt", migrated, "-c", claim], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    claimed = [line for racer in racers for line in racer.communicate(timeout=60)[0].splitlines()]
    assert len(claimed) == len(set(claimed)) == 8  # one of "one", seven of "all"
    told = psql(
        migrated,
        "SET timezone = 'UTC'; SELECT schedule, status, count(*), to_char(max(tick_at), 'HH24:MI') FROM "
        "headrace_v1.schedule_ticks WHERE tenant = 'late' GROUP BY 1, 2 ORDER BY 1, 2;"
        "SELECT DISTINCT to_char(next_at, 'HH24:MI') FROM headrace_v1.schedules WHERE tenant = 'late'",
    )
    assert told.split() == ["all|PENDING|7|01:00", "one|PENDING|1|01:00", "skip|MISSED|1|00:00", "01:10"]
    later = claim.replace("01:05Z", "01:06Z")  # the claims have lapsed: the same ticks, the same jobs
    again = psql(migrated, later).splitlines()
    assert sorted(again) == sorted(claimed)
