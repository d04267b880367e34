# SPDX-License-Identifier: Apache-2.0
"""Load for the chaos cells, and what must hold of every job that was answered 201.

Of the submits a third carry an Idempotency-Key and are sent again with it until they are answered
201, a fifth have a webhook, some have an input or a result that goes through the blob store.
"""

import collections
import http.client
import json
import random
import threading
import time
import urllib.parse
import uuid

import msgpack

from stack import wait_until

THREADS = 8
CLIENT_SECONDS = 8
FINAL_SECONDS = 120
SLOW_SECONDS = 0.8  # between two submits of a thread once the burst is over
LARGE_INPUT, LARGE_RESULT = 80000, 600000  # over the inline limits (schema/job.h)
SUCCEEDED = 3


class Accepted:
    def __init__(self, job, at, hook):
        self.job, self.at, self.hook = job, at, hook


class Load:
    """Submits from a few threads, fast until burst() has what it wants, then slowly."""

    def __init__(self, urls, api_key, hook_url, seed, model="sim", orders=None, fields=None):
        """orders: what a job asks of the model, and one with a large result; None: as `sim` takes them.
        fields: of the request, beside its input."""
        self.urls, self.api_key, self.hook_url, self.seed = list(urls), api_key, hook_url, seed
        self.path = f"/model/{model}/production/async_predict"
        self.orders = orders or ({}, {"sim": {"output_bytes": LARGE_RESULT}})
        self.fields = fields or {}
        self.accepted, self.refused, self.unheard, self.odd = [], 0, 0, []
        self.refused_unkeyed = 0
        self.jobs, self.keys = set(), collections.defaultdict(set)
        self.stopping, self.fast, self.lock = threading.Event(), threading.Event(), threading.Lock()
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def _run(self, number):
        rng = random.Random(f"{self.seed}/{number}")
        while not self.stopping.is_set():
            body, key, hook = self._make(rng)
            while not self.stopping.is_set() and not self._submit(rng.choice(self.urls), body, key, hook):
                self.stopping.wait(0.1)
                if key is None:
                    break
            if key is not None and rng.random() < 0.3:
                self._submit(rng.choice(self.urls), body, key, hook)  # must be answered with the same job
            if not self.fast.is_set():
                self.stopping.wait(SLOW_SECONDS)

    def _make(self, rng):
        kind = rng.random()
        model_input = {"text": "x" * rng.randrange(200), **self.orders[0.06 <= kind < 0.10]}
        if kind < 0.06:
            model_input["text"] = "y" * LARGE_INPUT
        body = {"model_input": model_input, **self.fields}
        hook = rng.random() < 0.2
        if hook:
            body["webhook_endpoint"] = self.hook_url
        return json.dumps(body), f"key-{rng.getrandbits(64):x}" if rng.random() < 0.33 else None, hook

    def _submit(self, url, body, key, hook):
        """True when there is no use in sending it again: 201, or an answer that should not be."""
        try:
            status, answer = request(url, "POST", self.path, self.api_key, body, key)
            job = answer["request_id"] if status == 201 else None
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            status, job, answer = 0, None, None  # nobody heard an answer: nothing was promised
        with self.lock:
            if job:
                self.keys[key].add(job)
                if job not in self.jobs:
                    self.accepted.append(Accepted(job, time.time(), hook))
                self.jobs.add(job)
            elif status == 0:
                self.unheard += 1
            elif status in (429, 503):
                self.refused += 1
                self.refused_unkeyed += key is None
            else:
                self.odd.append((status, answer))
        return job is not None or status not in (0, 429, 503)

    def burst(self, count, seconds=FINAL_SECONDS):
        """Until so many more were accepted."""
        target = len(self.accepted) + count
        self.fast.set()
        try:
            wait_until(f"{count} jobs to be accepted", lambda: len(self.accepted) >= target, seconds, 0.05)
        finally:
            self.fast.clear()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        return self.accepted


def request(url, method, path, api_key, body=None, key=None, timeout=CLIENT_SECONDS, parse=True):
    at = urllib.parse.urlsplit(url)
    client = http.client.HTTPConnection(at.hostname, at.port, timeout=timeout)
    headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
    if key is not None:
        headers["Idempotency-Key"] = key
    try:
        client.request(method, path, body, headers)
        reply = client.getresponse()
        text = reply.read()
        return reply.status, json.loads(text) if parse else text
    finally:
        client.close()


# --- what must hold ---------------------------------------------------------------------------


def ids_sql(ids):
    return "ARRAY['" + "','".join(ids) + "']::uuid[]"


def count_final(stack, ids):
    if not ids:
        return 0
    return int(stack.sql(f"SELECT count(*) FROM headrace.job WHERE id = ANY ({ids_sql(ids)}) "
                         "AND state NOT IN (1, 2)")[0][0])


def in_flight(stack, load):
    """Accepted and not final in the ledger."""
    ids = [a.job for a in list(load.accepted)]
    return len(ids) - count_final(stack, ids)


def completed_end(stack):
    """The offset that the next record of `completed` gets, as far as is known."""
    records = stack.consume("completed", 0, -1)
    return records[-1].offset + 1 if records else 0


def published(stack, ids, offset):
    """By (id, round): the different contents, and the number of copies."""
    wanted, contents, copies = set(ids), collections.defaultdict(set), collections.Counter()
    for record in stack.consume("completed", 0, offset):
        _, _, fields = msgpack.unpackb(record.value, strict_map_key=False)
        job = str(uuid.UUID(bytes=fields[1]))
        if job in wanted:
            contents[job, fields[2]].add(record.value)
            copies[job, fields[2]] += 1
    return contents, copies


def wait_or_not(ask, seconds, step=0.3):
    """Waits until it is true, or the time is over: what is missing then is counted, not raised."""
    end = time.monotonic() + seconds
    while not (done := ask()) and time.monotonic() < end:
        time.sleep(step)
    return done


def job_rows(stack, accepted):
    return stack.sql(f"""
        SELECT id, state, attempt_count, extract(epoch FROM accepted_at), extract(epoch FROM state_at)
        FROM headrace.job WHERE id = ANY ({ids_sql([a.job for a in accepted])})""")


def judge(stack, load, offset, posts):
    """Counts over all accepted jobs, once they have ended or the time is over."""
    accepted = load.accepted
    ids = [a.job for a in accepted]
    hooks = {a.job for a in accepted if a.hook}
    if wait_or_not(lambda: count_final(stack, ids) == len(ids), FINAL_SECONDS):
        wait_or_not(lambda: len(published(stack, ids, offset)[0]) == len(ids), 30)
        wait_or_not(lambda: hooks <= delivered(posts), 60)
    contents, copies = published(stack, ids, offset)
    results = stack.sql("SELECT count(*) - count(DISTINCT (job_id, round)) FROM headrace.job_result "
                        f"WHERE job_id = ANY ({ids_sql(ids)})")
    rows = job_rows(stack, accepted)
    return {
        "accepted": len(ids),
        "finished": sum(int(row[1]) == SUCCEEDED for row in rows),
        "failed": sum(int(row[1]) not in (1, 2, SUCCEEDED) for row in rows),
        "lost": len(ids) - len({job for job, _ in contents}),
        "doubled": sum(len(different) > 1 for different in contents.values()) + int(results[0][0]),
        "copies": sum(copies.values()) - len(copies),
        "again": sum(max(0, int(row[2]) - 1) for row in rows),
        "unhooked": len(hooks - delivered(posts)),
        "split_keys": sum(len(jobs) > 1 for key, jobs in load.keys.items() if key is not None),
        "rows": rows,
    }


def delivered(posts):
    return {post.headers.get("x-baseten-request-id") for post in list(posts)}
