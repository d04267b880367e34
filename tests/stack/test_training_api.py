# SPDX-License-Identifier: Apache-2.0
"""Goal: the routes of training jobs say what is so, and the command line shows it: projects, jobs, lines,
figures, checkpoints and their files, what a job waits for; bad input is refused by field, value and limit.
Method: one real stack; its jobs ask for hardware that no trainer has, so that they wait, and the rows that a
trainer would write are written here (what a trainer does is tested in tests/stack/test_training.py)."""

import hashlib
import io
import json
import os
import signal
import subprocess
import tarfile
import time
import urllib.parse

import pytest
from stack import BINARY, wait_until

TRUSS_PYTHON = os.environ["HEADRACE_DEPS"] + "/venv-compare/bin/python"
ACCELERATOR = {"accelerator": "B300", "count": 8}  # that nobody has here


def training_job(**more):
    job = {"image": {"base_image": "none"}, "runtime": {"start_commands": ["true"]},
           "compute": {"accelerator": ACCELERATOR, "cpu_count": 2}}
    for path, value in more.items():
        group, _, name = path.rpartition("__")
        (job.setdefault(group, {}) if group else job)[name] = value
    return job


def project(stack, name):
    reply = stack.http("POST", "/v1/training_projects", {"training_project": {"name": name}})
    assert reply.status == 200, reply
    return reply.json["training_project"]


def create(stack, owner, **more):
    reply = stack.http("POST", f"/v1/training_projects/{owner}/jobs", {"training_job": training_job(**more)})
    assert reply.status == 200, reply
    return reply.json["training_job"]


@pytest.fixture(scope="module")
def job(stack):
    """A job that has run twice, as a trainer would have written it down: its id."""
    project(stack, "shown")
    id = create(stack, "shown", name="first")["id"]
    stack.sql(f"""
        INSERT INTO headrace.training_log (job_id, rank, number, line_count, placement, at, at_last, text) VALUES
            ('{id}', 0, 1, 2, 1, now() - interval '9 s', now(), E'zero one\\nzero two\\n'),
            ('{id}', 1, 1, 1, 1, now() - interval '8 s', now(), E'one one\\n'),
            ('{id}', 0, 3, 3, 2, now() - interval '10 s', now(), E'\\nzero four\\nzero five\\n');
        INSERT INTO headrace.training_metric (job_id, rank, name, at, step, value)
            SELECT '{id}', r, n, now() - interval '1 minute' + i * interval '1 s',
                   CASE WHEN n LIKE 'user%' THEN i END, i + r
              FROM generate_series(0, 19) i, generate_series(0, 1) r,
                   unnest(ARRAY['cpu', 'memory_bytes', 'gpu.0.utilization', 'user.loss']) n""")
    return id


def blob(stack, project_id, data):
    digest = hashlib.sha256(data).hexdigest()
    folder = stack.data_dir / "blobs" / "training" / project_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / digest).write_bytes(data)
    return digest


def lines(stack, id, query="", **body):
    path = f"/v1/training_projects/-/jobs/{id}/logs"
    reply = stack.http("POST", path, body) if body else stack.http("GET", path + query)
    assert reply.status == 200, reply
    return [line["message"] for line in reply.json["logs"]], reply.json["next_cursor"]


def test_projects_are_made_once_and_listed(stack):
    one = project(stack, "digits of pi")
    assert project(stack, "digits of pi")["id"] == one["id"]
    assert one["latest_job"] is None
    made = create(stack, one["id"], name="second")
    shown = stack.http("GET", "/v1/training_projects/digits%20of%20pi").json["training_project"]
    assert shown["latest_job"]["id"] == made["id"] and shown["open_job_count"] == 1
    listed = [p["name"] for p in stack.http("GET", "/v1/training_projects").json["training_projects"]]
    assert "digits of pi" in listed
    # It is a model only for the ledger.
    assert one["id"] not in [m["id"] for m in stack.http("GET", "/v1/models").json["models"]]
    assert stack.http("POST", f"/model/{one['id']}/production/async_predict", {"model_input": {}}).status == 404
    assert stack.http("DELETE", f"/v1/training_projects/{one['id']}").status == 409
    assert stack.http("POST", f"/v1/training_projects/-/jobs/{made['id']}/stop", {}).status == 200
    assert stack.http("DELETE", f"/v1/training_projects/{one['id']}").json["deleted"]
    assert stack.http("GET", f"/v1/training_projects/{one['id']}").status == 404


def test_a_job_waits_says_why_and_stops(stack):
    project(stack, "waits")
    low, high = create(stack, "waits", priority=-1), create(stack, "waits", priority=5)
    assert low["current_status"] == "TRAINING_JOB_PENDING" and low["instance_type"]["gpu_count"] == 8
    assert "8 B300" in low["outlook"] and "waits" in low["outlook"]
    assert low["outlook"].startswith("1 trainer with ") and " is needed and 0 are there" in low["outlook"], low["outlook"]
    queue = stack.http("GET", f"/v1/training/jobs/{low['id']}/queue_context").json
    assert [one["training_job_id"] for one in queue["pending_ahead_at_submit"]].count(high["id"]) == 1
    assert [event["status"] for event in queue["events"]] == ["TRAINING_JOB_PENDING"]
    assert 0 <= queue["pending_seconds"] < 60 and queue["released_at"] is None
    assert queue["org_capacity"] == {"baseline": 0, "limit": 0, "usage_count": 0} and queue["team_capacity"] is None
    waited = stack.sql("UPDATE headrace.training_job SET started_at = created_at + interval '90 s' WHERE job_id = :'a1' RETURNING 1", high["id"])
    assert waited and stack.http("GET", f"/v1/training/jobs/{high['id']}/queue_context").json["pending_seconds"] == 90
    path = f"/v1/training_projects/waits/jobs/{low['id']}"
    assert stack.http("PATCH", path, {"priority": 9}).json["training_job"]["priority"] == 9
    assert stack.http("GET", f"/v1/training_projects/other/jobs/{low['id']}").status == 404
    again = stack.http("POST", path + "/recreate", {}).json["training_job"]
    assert again["id"] != low["id"]
    assert stack.http("DELETE", path).status == 409
    assert stack.http("POST", path + "/stop", {}).json["training_job"]["current_status"] == "TRAINING_JOB_STOPPED"
    assert stack.http("PATCH", path, {"priority": 1}).status == 409
    stopped = stack.http("POST", "/v1/training_jobs/search", {"statuses": ["TRAINING_JOB_STOPPED"]}).json
    assert low["id"] in [one["id"] for one in stopped["training_jobs"]]
    ours = stack.http("POST", "/v1/training_jobs/search", {"project_id": "waits", "order_by": [
        {"field": "created_at", "order": "asc"}]}).json["training_jobs"]
    assert [one["id"] for one in ours] == [low["id"], high["id"], again["id"]]
    assert stack.http("DELETE", path).json["deleted"]
    assert stack.http("GET", path).status == 404


BAD = [
    ({"compute": {"node_count": 0}}, 400, "training_job: compute.node_count is 0; it must be 1 to 64"),
    ({"compute": {"accelerator": {"accelerator": "P100", "count": 1}}}, 400, "compute.accelerator must be one of"),
    ({"runtime": {"start_commands": []}}, 400, "start_commands is empty"),
    ({"runtime": {"start_commands": ["a"], "environment_variables": {"A": {"name": "nobody"}}}}, 400, "no secret 'nobody'"),
    ({"runtime": {"start_commands": ["a" * 70000]}}, 400, "has 70000 bytes; at most 32768"),
    ({"runtime": {"start_commands": ["a" * 30000] * 3}}, 413, "at most 65536"),
    ({"workspace": {"archive": "0" * 64}}, 400, "workspace.archive: " + "0" * 64 + " was not sent"),
    ({"runtime": {"start_commands": ["a"], "artifacts": [{"s3_bucket": "a", "s3_key": "b"}]}}, 422, "/v1/training_archives"),
    ({"interactive_session": {"trigger": "on_startup"}}, 422, "interactive_session is not honoured"),
    ({"runtime": {"start_commands": ["a"], "load_checkpoint_config": {"enabled": True, "checkpoints": [
        {"project_name": "nowhere"}]}}}, 400, "there is no project 'nowhere'"),
    ({"epochs": 3}, 400, "there is no key 'epochs'"),
]


def test_bad_jobs_are_refused_by_name(stack):
    project(stack, "bad")
    for change, status, words in BAD:
        reply = stack.http("POST", "/v1/training_projects/bad/jobs", {"training_job": {**training_job(), **change}})
        assert reply.status == status and words in reply.json["error"], (change, reply)
    assert stack.http("GET", "/v1/training_projects/bad/jobs").json["training_jobs"] == []
    assert stack.http("GET", "/v1/training_projects/none/jobs").status == 404
    assert stack.http("POST", "/v1/training_projects/none/jobs", {"training_job": training_job()}).status == 404
    assert stack.http("POST", "/v1/training_projects", {"training_project": {"name": "a/b"}}).status == 400


def test_lines_by_page_by_search_and_behind_a_cursor(stack, job):
    everything = ["zero one", "zero two", "one one", "", "zero four", "zero five"]
    up, cursor = lines(stack, job, "?direction=asc")
    # The clock of node 0 went back before its second placement: its lines stay in order all the same.
    assert [line for line in up if line != "one one"] == [line for line in everything if line != "one one"]
    assert sorted(up) == sorted(everything)
    assert lines(stack, job)[0] == up[::-1]
    assert lines(stack, job, f"?cursor={cursor}") == ([], cursor)
    assert lines(stack, job, direction="asc", limit=500)[0] == up
    seen, cursor = [], ""
    while True:  # a line a page: nothing twice, nothing left out
        page, cursor = lines(stack, job, f"?limit=1&direction=asc&cursor={cursor}")
        if not page:
            break
        seen += page
    assert seen == up
    assert lines(stack, job, "?direction=asc&search_pattern=" + urllib.parse.quote("o (two|four)$"))[0] == ["zero two", "zero four"]
    assert lines(stack, job, "?direction=asc&includes=zero&includes=f&excludes=four")[0] == ["zero five"]
    assert lines(stack, job, "?replica=node-1")[0] == ["one one"]
    for query, words in (("?limit=0", "limit is 0; it must be 1 to 1000"), ("?search_pattern=(", "parentheses"),
                         ("?cursor=1", "next_cursor"), ("?replica=x", "node-<rank>"), ("?min_level=INFO", "min_level"),
                         ("?direction=up", "asc or desc")):
        reply = stack.http("GET", f"/v1/training_projects/-/jobs/{job}/logs{query}")
        assert reply.status == 400 and words in reply.json["error"], (query, reply)
    assert stack.http("GET", f"/v1/training_projects/-/jobs/{job[:-4]}ffff/logs").status == 404


def test_figures_of_each_node(stack, job):
    path = f"/v1/training_projects/shown/jobs/{job}/metrics"
    start = int(time.time() * 1000) - 3_000_000
    fine = stack.http("GET", path + f"?step_seconds=1&start_epoch_millis={start}").json
    assert [point["value"] for point in fine["cpu_usage"]] == list(range(20))
    assert fine["user_metrics"]["loss"][-1]["step"] == 19
    assert [node["node_id"] for node in fine["per_node_metrics"]] == ["node-0", "node-1"]
    assert fine["per_node_metrics"][1]["metrics"]["gpu_utilization"]["0"][0]["value"] == 1
    coarse = stack.http("POST", path, {"step_seconds": 3600, "start_epoch_millis": start}).json
    assert [point["value"] for point in coarse["cpu_usage"]] == [9.5]
    assert stack.http("GET", path).json["cpu_usage"] == []  # of the time since it was accepted
    assert stack.http("GET", path + "?step_seconds=0").status == 400


def test_checkpoints_and_the_bytes_of_their_files(stack, job):
    owner = stack.http("GET", f"/v1/training_projects/-/jobs/{job}").json["training_job"]["training_project_id"]
    data = b"weights" * 1000
    files = json.dumps([{"path": "model dir/w.bin", "size": len(data), "digest": blob(stack, owner, data), "mode": 420}])
    stack.sql(f"""INSERT INTO headrace.training_checkpoint (job_id, rank, name, placement, state, size_bytes, file_count,
                       files, completed_at) VALUES
            ('{job}', 0, 'step-10', 1, 'COMPLETE', {len(data)}, 1, '{files}', now()),
            ('{job}', 1, 'step-10', 1, 'COMPLETE', {len(data)}, 1, '{files}', now()),
            ('{job}', 0, 'step-20', 1, 'SYNCING', 0, 0, NULL, NULL)""")
    path = f"/v1/training_projects/shown/jobs/{job}"
    found = stack.http("GET", path + "/checkpoints").json["checkpoints"]
    assert [(one["checkpoint_id"], one["sync_status"]) for one in found] == [("step-10", "COMPLETE"), ("step-20", "SYNCING")]
    assert found[0]["size_bytes"] == 2 * len(data) and found[0]["node_count"] == 2
    page = stack.http("GET", path + "/checkpoint_files?page_size=1").json
    assert page["total_count"] == 2 and page["next_page_token"] == 1
    assert page["presigned_urls"][0]["relative_file_name"] == "step-10/model dir/w.bin"
    target = page["presigned_urls"][0]["url"].partition("/v1/")[2]
    assert stack.http("GET", "/v1/" + target).body == data
    assert stack.http("GET", "/v1/" + target.replace("step-10", "step-20")).status == 404
    assert stack.http("GET", path + "/checkpoint_file?checkpoint=a").status == 400
    # A gang does not go on from parts that were saved by different placements.
    stack.sql(f"""INSERT INTO headrace.training_checkpoint (job_id, rank, name, placement, state, files, completed_at) VALUES
            ('{job}', 0, 'mixed', 1, 'COMPLETE', '[]', now() + '1 s'), ('{job}', 1, 'mixed', 2, 'COMPLETE', '[]', now() + '1 s')""")
    newest = f"SELECT headrace.training_newest('{job}')"
    assert stack.sql(newest) == [["step-10"]]
    stack.sql("UPDATE headrace.training_checkpoint SET placement = 2 WHERE name = 'mixed'")
    assert stack.sql(newest) == [["mixed"]]
    stack.sql("DELETE FROM headrace.training_checkpoint WHERE name = 'mixed'")


def archive_of(links=(), **files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
        for name, kind, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    return packed.getvalue()


def test_a_workspace_is_sent_once_and_is_its_senders(stack):
    project(stack, "packed")
    packed = archive_of(**{"train.py": "print(1)"})
    digest = hashlib.sha256(packed).hexdigest()
    assert stack.http("GET", f"/v1/training_archives/{digest}").status == 404
    sent = stack.http("POST", "/v1/training_archives", packed, headers={"X-Headrace-Digest": f"sha-256={digest}"})
    assert sent.status == 200 and sent.json["digest"] == digest and sent.json["file_count"] == 1, sent
    assert stack.http("GET", f"/v1/training_archives/{digest}").body == packed
    made = create(stack, "packed", workspace__archive=digest)
    assert made["archive_digest"] == digest
    urls = stack.http("GET", f"/v1/training_projects/packed/jobs/{made['id']}/download").json["artifact_presigned_urls"]
    assert urls[0].endswith(f"/v1/training_archives/{digest}")
    wrong = stack.http("POST", "/v1/training_archives", packed, headers={"X-Headrace-Digest": "sha-256=" + "0" * 64})
    assert wrong.status == 422
    for bad, words in ((archive_of(**{"../train.py": "x"}), "../train.py"), (archive_of(**{"/etc/passwd": "x"}), "/etc/passwd"),
                       (archive_of(**{"a/../../b": "x"}), "a/../../b"), (archive_of(**{"a": "x"}, links=[("a", tarfile.SYMTYPE, "/")]), "a"),
                       (archive_of(links=[("out", tarfile.SYMTYPE, "../..")]), "'out' in the archive is neither a file nor a directory"),
                       (archive_of(links=[("in", tarfile.LNKTYPE, "/etc/passwd")]), "'in' in the archive is neither"),
                       (archive_of(links=[("pipe", tarfile.FIFOTYPE, "")]), "'pipe' in the archive is neither"), (b"no archive", "archive")):
        escape = stack.http("POST", "/v1/training_archives", bad)
        assert escape.status == 400 and words in escape.json["error"], (words, escape)
    stack.cli("tenants", "create", "else")
    key = json.loads(stack.cli("keys", "create", "--tenant", "else", "--json").stdout)["api_key"]
    assert stack.http("GET", f"/v1/training_archives/{digest}", key=key).status == 404


CONFIG = """\
name: from a file
job:
  image: {base_image: none}
  compute: {accelerator: {accelerator: B300, count: 8}}
  runtime: {start_commands: [python3 train.py]}
  workspace: {exclude_dirs: [data], external_dirs: [../lib]}
"""


def test_a_folder_is_pushed_once_and_shown(stack, tmp_path):
    folder = tmp_path / "work"
    assert "config.yaml" in stack.cli("train", "init", folder).stdout
    assert 'name: "work"' in (folder / "config.yaml").read_text()
    again = stack.cli("train", "init", folder, check=False)
    assert again.returncode == 1 and "config.yaml': File exists" in again.stderr, again
    (folder / "config.yaml").write_text(CONFIG)
    for path, text in (("work/data/big", "x" * 1000), ("lib/shared.py", "pass"), ("work/keep/a", "a")):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    first = stack.cli("train", "push", folder)
    assert "known already" not in first.stderr and "It waits until more come" in first.stderr
    second = stack.cli("train", "push", folder, "--priority", "1000", "--job-name", "again", "--json")
    assert "known already" in second.stderr
    job = json.loads(second.stdout)
    assert job["priority"] == 1000 and job["name"] == "again" and job["queue_position"] == 1
    packed = stack.http("GET", f"/v1/training_archives/{job['archive_digest']}").body
    listed = subprocess.run(["tar", "--zstd", "-tf", "-"], input=packed, capture_output=True, check=True).stdout.decode()
    assert sorted(listed.split()) == ["config.yaml", "keep/a", "lib/shared.py", "serve/config.yaml", "serve/model/model.py",
                                      "train.py"]  # fmt: skip
    table = stack.cli("train", "ls", "--project", "from a file").stdout
    assert job["id"] in table and first.stdout.strip() in table
    assert "PENDING" in stack.cli("train", "view", job["id"]).stdout
    assert stack.cli("train", "stop", job["id"]).stdout.strip() == job["id"] + " STOPPED"
    followed = stack.cli("train", "logs", job["id"], "--follow")
    assert followed.stdout == "" and "STOPPED" in followed.stderr
    again = stack.cli("train", "recreate", job["id"]).stdout.split()
    assert again[0] != job["id"] and again[1] == "PENDING"
    unknown = stack.cli("train", "ls", "--project", "no-such", check=False)
    assert unknown.returncode == 2 and "'no-such'" in unknown.stderr, unknown
    odd = stack.cli("train", "view", "odd", check=False)
    assert odd.returncode == 2 and "job id is 'odd'; it must be a UUID" in odd.stderr, odd


def test_lines_curves_and_checkpoints_at_a_terminal(stack, job, tmp_path):
    assert "zero five" in stack.cli("train", "logs", job).stdout
    assert stack.cli("train", "logs", job, "--search", "^one", "--node", "1").stdout.endswith("node-1 one one\n")
    assert "loss: last" in stack.cli("train", "metrics", job).stdout or "no figures" in stack.cli("train", "metrics", job).stdout
    assert "step-10" in stack.cli("train", "checkpoints", job).stdout
    told = stack.cli("train", "download", job, "--to", tmp_path / "here", "--json")
    assert json.loads(told.stdout) == {"checkpoint": "step-10", "folder": str(tmp_path / "here")}
    assert (tmp_path / "here/rank-1/model dir/w.bin").read_bytes() == b"weights" * 1000
    again = stack.cli("train", "download", job, "--to", tmp_path / "here", check=False)
    assert again.returncode == 1 and "is there already" in again.stderr


def checkpoint(stack, job, name, rank=0, **files):
    """One that is complete; of its files the digests."""
    owner = stack.http("GET", f"/v1/training_projects/-/jobs/{job}").json["training_job"]["training_project_id"]
    listed = [{"path": path, "size": len(data), "digest": blob(stack, owner, data), "mode": 420} for path, data in files.items()]
    stack.sql(f"""INSERT INTO headrace.training_checkpoint (job_id, rank, name, placement, state, size_bytes, file_count,
                       files, completed_at) VALUES ('{job}', {rank}, '{name}', 1, 'COMPLETE', {sum(f["size"] for f in listed)},
                       {len(listed)}, '{json.dumps(listed)}', now())""")
    return owner, [one["digest"] for one in listed]


def test_a_checkpoint_becomes_a_deployment_with_its_lineage(stack, job):
    data = json.dumps({"engine": "sim", "settings": {"service_ms": 1}}).encode()
    checkpoint(stack, job, "served", **{"headrace.json": data})
    done = stack.cli("train", "deploy", job, "--checkpoint", "served", "--model", "trained", "--json")
    deployment = json.loads(done.stdout)
    assert deployment["status"] == "ACTIVE"
    assert stack.sql(f"SELECT project, checkpoint, training_job_id::text FROM headrace_v1.training_lineage WHERE "
                     f"deployment_id = '{deployment['id']}'") == [["shown", "served", job]]


def test_a_command_that_is_ended_leaves_no_folder(stack, job, tmp_path):
    """Ctrl-C, SIGTERM and kill -9 while a checkpoint comes: its temporary folder goes with the command."""
    checkpoint(stack, job, "large", **{"headrace.json": b"{}", "weights": bytes(64 << 20)})
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        words = [BINARY, "train", "deploy", job, "--checkpoint", "large", "--model", "never", "--url", stack.url("gateway")]
        env = {**os.environ, "TMPDIR": str(tmp_path), "HEADRACE_API_KEY": stack.key}
        with subprocess.Popen(words, env=env, stderr=subprocess.PIPE) as command:
            wait_until("the checkpoint to come", lambda: list(tmp_path.glob("headrace-train.*/model.part/*")))
            command.send_signal(number)
            assert command.wait(20) == -number
        wait_until("its folder to go", lambda: not list(tmp_path.iterdir()))


def test_what_cannot_be_deployed_says_why(stack, job):
    """An unknown job, no such checkpoint, a file that rots, an adapter, and what no engine knows: nothing is left of them."""
    owner, (digest,) = checkpoint(stack, job, "rotten", **{"headrace.json": b"as it was"})
    (stack.data_dir / "blobs/training" / owner / digest).write_bytes(b"as it is!")
    checkpoint(stack, job, "adapter", **{"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"})
    checkpoint(stack, job, "odd", **{"optimizer.pt": b"x"})
    checkpoint(stack, job, "second", rank=1, **{"headrace.json": b"{}"})
    gone = "0199a3f0-0000-7000-8000-000000000001"
    for id, name, code, words in (
            (gone, "", 2, "there is no such training job"), (job, "step-20", 2, "no complete checkpoint step-20"),
            (job, "rotten", 2, "headrace.json: 9 bytes came, and their SHA-256 is not " + digest),
            (job, "adapter", 2, "a LoRA adapter, and no engine here loads one beside its base model. Merge it"),
            (job, "odd", 2, "no engine for these 1 files; looked for at the top: for encoder config.json"),
            (job, "second", 2, "checkpoint second has no files of node 0; there are those of node 1")):  # fmt: skip
        done = stack.cli("train", "deploy", id, "--checkpoint", name, "--model", "never", check=False)
        assert done.returncode == code and words in done.stderr, (name, done)
    assert stack.http("GET", "/v1/models/never").status == 404


CARRIER = """\
model_name: carrier
docker_server: {start_command: "python3 data/server.py 18095", server_port: 18095, predict_endpoint: /, readiness_endpoint: /,
                liveness_endpoint: /}
training_checkpoints: {download_folder: /tmp/mounted, artifact_references: [{training_job_id: JOB, paths: [PATHS]}]}
"""
CARRIER_SERVER = """\
import http.server, json, os, pathlib, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        told = pathlib.Path(os.environ["BT_TRAINING_CHECKPOINTS_DIR"])
        found = {str(path.relative_to(told)): path.read_text() for path in told.rglob("*") if path.is_file()}
        body = json.dumps({"told": str(told), "found": found}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_files_of_checkpoints_come_along_with_a_truss(stack, job, tmp_path):
    """They stand where config.yaml says, in a sandbox, and where the variable says, anywhere; with their lineage."""
    for rank in (0, 1):
        checkpoint(stack, job, "step-30", rank, **{"w/a.bin": b"a%d" % rank, "w/b.txt": b"b%d" % rank})
    (tmp_path / "data").mkdir()
    (tmp_path / "data/server.py").write_text(CARRIER_SERVER)

    def push(paths):
        (tmp_path / "config.yaml").write_text(CARRIER.replace("JOB", job).replace("PATHS", paths))
        return stack.cli("push", tmp_path, "--json", check=False)

    missing = push("rank-0/step-31/")
    assert missing.returncode == 2 and "no file 'rank-0/step-31/' in a complete checkpoint" in missing.stderr
    assert "rank-0/step-30/" in missing.stderr and "rank-1/step-30/" in missing.stderr, missing
    done = push("rank-0/step-30/, 'rank-1/*.txt'")
    assert done.returncode == 0, done
    said = stack.http("POST", "/model/carrier/production/predict", {}).json
    names = {"rank-0/step-30/w/a.bin": "a0", "rank-0/step-30/w/b.txt": "b0", "rank-1/step-30/w/b.txt": "b1"}
    assert said["found"] == {f"{job}/{name}": text for name, text in names.items()}
    logs = "".join(path.read_text(errors="replace") for path in stack.data_dir.glob("agent/**/*.log"))
    assert (said["told"] == "/tmp/mounted") == ('"in_force":"strict' in logs), said
    assert stack.sql(f"SELECT checkpoint FROM headrace_v1.training_lineage WHERE deployment_id = "
                     f"'{json.loads(done.stdout)['id']}'") == [["step-30"]]
    # Sent by other means, without them, it is refused.
    bare = archive_of(**{"config.yaml": (tmp_path / "config.yaml").read_text(), "data/server.py": CARRIER_SERVER})
    refused = stack.http("POST", "/v1/models/carrier/deployments", bare, headers={"Content-Type": "application/gzip"})
    assert refused.status == 422 and "training_checkpoints: the archive has no files of them" in refused.json["error"], refused


WRONG = [
    ("name: a\njob: {image: {base_image: x}}", "config.yaml: job: runtime.start_commands is empty"),
    ("name: a\njob: {image: {base_image: x}, runtime: {start_commands: [a]}, compute: {node_count: 99}}", "node_count is 99"),
    ("name: a\njob: {image: {base_image: x}, runtime: {start_commands: [a]}, workspace: {exclude_dirs: [..]}}", "exclude_dirs"),
    ("name: a\njob: {image: {base_image: x}, runtime: {start_commands: [a]}, workspace: {external_dirs: [gone]}}", "external_dirs: 'gone'"),
    ("- a", "is no mapping"),
]


def test_a_config_that_is_none_says_why(stack, tmp_path):
    for text, words in WRONG:
        (tmp_path / "config.yaml").write_text(text)
        done = stack.cli("train", "push", tmp_path, check=False)
        assert done.returncode in (1, 2) and words in done.stderr, (text, done.stderr)
    (tmp_path / "config.yaml").unlink()
    assert "neither config.py nor config.yaml" in stack.cli("train", "push", tmp_path, check=False).stderr


TRUSS = """\
import pathlib
from truss_train import (CacheConfig, CheckpointingConfig, Compute, Image, Runtime, SecretReference, TrainingJob,
                         TrainingProject)
from truss.base.truss_config import AcceleratorSpec

print("evaluated", (pathlib.Path(__file__).parent / "beside.txt").read_text())
project = TrainingProject(name="from python", job=TrainingJob(
    image=Image(base_image="pytorch/pytorch:2.7.0"),
    compute=Compute(accelerator=AcceleratorSpec(accelerator="B300", count=8), node_count=2),
    runtime=Runtime(start_commands=["/bin/sh ./run.sh"], enable_cache=True,
                    environment_variables={"A": "b", "TOKEN": SecretReference(name="hf")},
                    checkpointing_config=CheckpointingConfig(enabled=True))))
"""


@pytest.mark.skipif(not os.environ.get("HEADRACE_LONG"), reason="the truss package is not in the quick tier; HEADRACE_LONG=1")
def test_a_truss_train_config_is_taken_as_it_is(stack, tmp_path):
    """Evaluated in the Python that has the package, where it can write nothing and reach nobody."""
    python = TRUSS_PYTHON
    (tmp_path / "config.py").write_text(TRUSS)
    (tmp_path / "beside.txt").write_text("beside")
    checked = stack.cli("train", "push", tmp_path, "--python", python, "--check")
    assert "evaluated beside" in checked.stderr
    config = json.loads(checked.stdout)
    assert config["compute"]["accelerator"] == "B300:8" and config["compute"]["node_count"] == 2
    assert config["runtime"]["environment_variables"] == {"A": "b", "TOKEN": {"name": "hf"}}
    assert config["runtime"]["cache_config"]["enabled"] and config["enable_baseten_workdir"]
    (tmp_path / "config.py").write_text("""
import socket
for act in (lambda: open(__file__ + ".new", "w"), lambda: socket.create_connection(("127.0.0.1", 1))):
    try:
        act()
    except OSError as error:
        print("refused", type(error).__name__)
raise ValueError("my words")
""")
    done = stack.cli("train", "push", tmp_path, "--python", python, check=False)
    assert done.returncode == 1 and "my words" in done.stderr and "no config of a training project" in done.stderr
    assert done.stderr.count("refused") == 2, done.stderr
    assert not (tmp_path / "config.py.new").exists()
    no_truss = stack.cli("train", "push", tmp_path, "--python", "/usr/bin/python3", check=False)
    assert "needs the truss package" in no_truss.stderr
