# SPDX-License-Identifier: Apache-2.0
"""Goal: large inputs and results pass through the blob store, S3 or a directory, without ever being
whole in a program's memory; a store that refuses is said before anything is promised; what is lost
or forged fails its job by name; nothing is removed that a job may need, everything else is.

Method: the whole platform on an S3 server that checks signatures, then on a directory; objects are
looked at, forged and removed behind its back; programs are killed between two steps.
"""

import hashlib
import http.client
import json
import os
import pathlib
import threading
import time
import urllib.parse
import urllib.request
import uuid

import pytest
from s3 import S3Server
from stack import wait_until

MIB = 1 << 20
LARGE = int(os.environ.get("LARGE_MIB", 20)) * MIB
SUBMIT = "/model/{}/production/async_predict"
QUICK = {
    "HEADRACE_BODY_MAX": "255MiB",
    "HEADRACE_MAINTENANCE": "1s",
    "HEADRACE_INPUT_KEEP": "0s",
    "HEADRACE_ORPHAN_KEEP": "1h",
    "HEADRACE_ACCEPT_WAIT": "30s",
    # What was freed must count as free, or the figures below are those of the sanitizer.
    "ASAN_OPTIONS": "quarantine_size_mb=1:thread_local_quarantine_size_kb=64",
}


@pytest.fixture(scope="module")
def s3():
    with S3Server() as server:
        yield server


@pytest.fixture(scope="module")
def platform(request, s3):
    from conftest import run_stack

    env = QUICK | s3.env | {"HEADRACE_BLOBS": s3.url(part_mib=5)}
    for stack in run_stack(request, env=env):
        stack.push_sim("sim")
        yield stack


def post_large(stack, model, size, headers=None):
    """A body that is made as it is sent; its input's digest and the answer."""
    url = urllib.parse.urlsplit(stack.url("gateway"))
    begin, end = b'{"priority":1,"model_input":', b',"other":1}'
    head, tail = b'{"text":"', b'"}'
    pad = size - len(head) - len(tail)
    client = http.client.HTTPConnection(url.hostname, url.port, timeout=120)
    client.putrequest("POST", SUBMIT.format(model))
    client.putheader("Authorization", f"Bearer {stack.key}")
    client.putheader("Content-Length", str(size + len(begin) + len(end)))
    for name, value in (headers or {}).items():
        client.putheader(name, value)
    client.endheaders(begin + head)
    digest = hashlib.sha256(head)
    piece = bytes(range(ord("a"), ord("z") + 1)) * 10000
    while pad > 0:
        client.send(piece[:pad])
        digest.update(piece[:pad])
        pad -= min(pad, len(piece))
    client.send(tail + end)
    digest.update(tail)
    reply = client.getresponse()
    answer = json.loads(reply.read())
    client.close()
    return reply.status, answer, digest.hexdigest()


def anonymous_kib(pid):
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["RssAnon"].split()[0])


class Memory:
    """The most anonymous memory that programs have while the block runs, over what they had."""

    def __init__(self, pids):
        self.pids, self.over, self.grown = pids, threading.Event(), 0

    def watch(self):
        before = {pid: anonymous_kib(pid) for pid in self.pids}
        while not self.over.wait(0.005):
            self.grown = max([self.grown] + [anonymous_kib(p) - before[p] for p in self.pids])

    def __enter__(self):
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self.over.set()
        self.thread.join()


# --- S3 -------------------------------------------------------------------------------------------


def test_large_both_ways(platform, s3):
    pids = [platform.services()["gateway"]["pid"], *platform.pids("worker")]
    post_large(platform, "sim", 2 * MIB)  # what a first one leaves in place
    with Memory(pids) as memory:
        status, answer, digest = post_large(platform, "sim", LARGE)
        assert status == 201, answer
        assert answer["warnings"] == ["unknown field 'other' is ignored"]
        job = answer["request_id"]
        assert platform.wait_final(job)["status"] == "SUCCEEDED"
        result = platform.result(job)
    assert result.status == 200 and int(result.headers["content-length"]) == len(result.body)
    assert len(result.json["output"]["text"]) == LARGE - len('{"text":""}')
    keys = {key: size for key, size in s3.keys().items() if job in key}
    row = platform.sql("SELECT kind, key, size FROM headrace_v1.blobs WHERE job_id = '%s' ORDER BY kind" % job)
    assert [(kind, f"head/{key}") for kind, key, _ in row] == [
        ("input", f"head/{row[0][1]}"), ("output", next(key for key in keys if not key.endswith("/input")))]
    assert int(row[0][2]) == LARGE and keys[f"head/{row[1][1]}"] == int(row[1][2]) == len(result.body)
    (stored,) = platform.sql("SELECT input_digest FROM headrace_v1.jobs WHERE id = '%s'" % job)[0]
    assert stored == digest
    print(f"anonymous memory grew by at most {memory.grown} KiB for {LARGE >> 10} KiB of body")
    assert memory.grown < 12 * 1024
    for pid in platform.pids("host-c"):
        with open(f"/proc/{pid}/environ", "rb") as file:
            assert b"AWS_SECRET" not in file.read(), "a user's code has no business with the bucket"


def test_key_stands_for_one_large_body(platform):
    headers = {"Idempotency-Key": "large"}
    first = post_large(platform, "sim", 2 * MIB, headers)[1]["request_id"]
    assert post_large(platform, "sim", 2 * MIB, headers)[1]["request_id"] == first
    status, answer, _ = post_large(platform, "sim", 2 * MIB + 1, headers)
    assert status == 422 and "Idempotency-Key" in answer["error"]


def test_a_bad_large_body_is_refused(platform, s3):
    before = s3.keys()
    for body, status, word in [(b'{"model_input":{"a":"' + b"x" * 2 * MIB + b'"}}}', 400, "byte"),
                               (b'{"model_input":"' + b"x" * 2 * MIB + b'"}', 413, "model_input"),
                               (b'{"priority":9,"model_input":{"a":"' + b"x" * 2 * MIB + b'"}}', 400, "priority")]:
        url = urllib.parse.urlsplit(platform.url("gateway"))
        client = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
        client.request("POST", SUBMIT.format("sim"), body, {"Authorization": f"Bearer {platform.key}"})
        reply = client.getresponse()
        assert reply.status == status and word in json.loads(reply.read())["error"]
        client.close()
    assert {key for key in s3.keys() if key.endswith("input")} <= set(before)


def test_what_is_lost_or_forged_fails_by_name(platform, s3):
    platform.push_sim("one", slots=1)
    blocker = platform.submit("one", {"sim": {"sleep_ms": 120000}})
    wait_until("it to run", lambda: platform.job(blocker)["status"] == "IN_PROGRESS")
    jobs = {what: platform.submit("one", {"text": what * 20000}) for what in ("missing", "short", "forged")}
    stored = s3.keys()
    keys = {what: next(key for key in stored if job in key) for what, job in jobs.items()}
    size = stored[keys["forged"]]
    s3.delete(keys["missing"])
    s3.put(keys["short"], "x")
    s3.put(keys["forged"], "x" * size)
    platform.cancel(blocker)
    words = {"missing": "NoSuchKey", "short": "has 1 bytes", "forged": "not what was submitted"}
    for what, job in jobs.items():
        status = platform.wait_final(job, 60)
        assert status["status"] == "FAILED" and words[what] in status["errors"][0]["message"]
        assert platform.sql("SELECT error_class, attempts <= 5 FROM headrace_v1.jobs WHERE id = '%s'" % job) == [
                ["input_lost", "t"]]
    assert {keys["short"], keys["forged"]} <= set(s3.keys()), "they are left to be looked at"


def test_a_store_that_refuses(platform, s3):
    job = platform.submit("sim", {"sim": {"sleep_ms": 1000, "output_bytes": 2 * MIB}})
    s3.refuse(True)
    try:
        refused = platform.http("POST", SUBMIT.format("sim"), {"model_input": {"text": "x" * 100000}})
        assert refused.status == 503 and refused.headers["retry-after"]
        assert "AccessDenied" in refused.json["error"] and "cannot be stored" in refused.json["error"]
        small = platform.submit("sim", {"a": 1})
        assert platform.wait_final(small)["status"] == "SUCCEEDED", "it needs no store"
    finally:
        s3.refuse(False)
    assert platform.wait_final(job, 60)["status"] == "SUCCEEDED"
    assert len(platform.result(job).body) > 2 * MIB - 1000


# --- the collector ----------------------------------------------------------------------------------


def test_blobs_go_with_their_jobs(platform, s3):
    done = post_large(platform, "sim", 2 * MIB)[1]["request_id"]
    failed = platform.submit("sim", {"sim": {"fail": "bad_input"}, "text": "x" * 100000})
    assert platform.wait_final(done)["status"] == "SUCCEEDED"
    assert platform.wait_final(failed)["status"] == "FAILED"

    def names(job):
        return [key.rsplit("/", 1)[1] for key in s3.keys() if job in key]

    wait_until("the input of the one that succeeded to go", lambda: "input" not in names(done), 30, 0.5)
    assert len(names(done)) == 1 and names(failed) == ["input"]
    assert platform.result(done).status == 200
    platform.sql("UPDATE headrace.job SET state_at = now() - interval '25 hours' WHERE id = :'a1' OR id = :'a2'",
                 done, failed)
    wait_until("the result to go", lambda: not names(done), 30, 0.5)
    assert names(failed) == ["input"], "a replay needs it"
    platform.redis("FLUSHALL")
    gone = platform.result(done)
    assert gone.status == 404 and "limited time" in gone.json["error"]


# --- a directory: what needs no S3, and two kills ------------------------------------------------------


@pytest.fixture(scope="module")
def folder(request):
    from conftest import run_stack

    env = QUICK | {"HEADRACE_RESULT_KEEP": "24h"}
    for stack in run_stack(request, env=env):
        stack.push_sim("sim", slots=1)
        yield stack


def files(stack, job=""):
    root = stack.data_dir / "blobs" / "jobs"
    found = (pathlib.Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return sorted(path for path in found if job in str(path))  # what goes meanwhile is gone


def metric(stack, name):
    text = urllib.request.urlopen(stack.url("broker") + "/metrics", timeout=10).read().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.split(" ")[0].split("{")[0] == name)


def id_of(day):
    """A UUIDv7 of shard 0 at noon of that day."""
    ms = int(time.mktime(time.strptime(day + " 12:00", "%Y-%m-%d %H:%M"))) * 1000
    return str(uuid.UUID(int=ms << 80 | 7 << 76 | 2 << 62 | int.from_bytes(os.urandom(6), "big")))


def test_orphans_go_with_their_day(folder):
    """An orphan of today stays however old its file is; one of a day that was dropped goes, unless it
    was written lately; a straggler of that day keeps its own."""
    today, day = time.strftime("%Y-%m-%d", time.gmtime()), "2025-03-04"
    kept, fresh, old, straggler = id_of(today), id_of(day), id_of(day), id_of(day)
    folder.sql("""
        INSERT INTO headrace.job (id, accepted_at, received_at, start_deadline_at, state_at, seq, run_limit_ms,
            queue_limit_ms, shard, state, rank, max_attempts, tenant, model, deployment, pool, input_digest, input_blob)
        VALUES (:'a1', now(), now(), now(), now(), 0, 1, 1, 900, 4, 1, 1, 'default', 'sim', 'sim', 'sim',
            decode(repeat('00', 32), 'hex'), 'x')""", straggler)
    for one in (kept, fresh, old, straggler):
        path = folder.data_dir / "blobs" / "jobs" / (today if one == kept else day) / one / "input"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"{}")
        if one != fresh:
            os.utime(path, (1, 1))
    wait_until("the orphan of the old day to go", lambda: not files(folder, old), 30)
    assert metric(folder, "headrace_broker_blobs_removed_total") >= 1
    assert files(folder, kept) and files(folder, fresh) and files(folder, straggler)


def test_gateway_killed_between_blob_and_record(folder):
    folder.kill_service("kafka")
    ended = []

    def submit():
        try:
            ended.append(post_large(folder, "sim", 2 * MIB))
        except (OSError, http.client.HTTPException) as error:
            ended.append(error)

    before = set(files(folder))
    thread = threading.Thread(target=submit)
    thread.start()
    (orphan,) = wait_until("its blob", lambda: set(files(folder)) - before)
    folder.kill_service("gateway")
    thread.join()
    assert isinstance(ended[0], Exception), "nobody was promised anything"
    folder.start_service("kafka")
    folder.start_service("gateway")
    job = folder.submit("sim", {"text": "x" * 100000})
    assert folder.wait_final(job)["status"] == "SUCCEEDED"
    wait_until("its input to go", lambda: not [f for f in files(folder, job) if f.name == "input"], 30)
    assert orphan.exists(), "no row speaks of it: it waits for its day"


def test_worker_killed_between_blob_and_finished(folder):
    job = folder.submit("sim", {"sim": {"sleep_ms": 1500, "output_bytes": 2 * MIB}})
    wait_until("it to run", lambda: folder.job(job)["status"] == "IN_PROGRESS")
    folder.kill_service("kafka")
    (first,) = wait_until("its result's blob", lambda: files(folder, job))
    folder.kill("worker")
    folder.start_service("kafka")
    assert folder.wait_final(job, 90)["status"] == "SUCCEEDED"
    assert len(folder.result(job).body) > 2 * MIB - 1000
    ((key,),) = folder.sql("SELECT key FROM headrace_v1.blobs WHERE job_id = :'a1'", job)
    assert not str(first).endswith(key), "the killed attempt's result does not count"
    assert {str(path) for path in files(folder, job)} == {str(first), str(folder.data_dir / "blobs" / key)}
    folder.sql("UPDATE headrace.job SET state_at = now() - interval '25 hours' WHERE id = :'a1'", job)
    wait_until("both to go", lambda: not files(folder, job), 30)
