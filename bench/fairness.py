# SPDX-License-Identifier: Apache-2.0
"""`bench/run fairness`: what a backlog costs those who have none, what tenants get of a shared pool, and
what limits cost. Figures of PERFORMANCE row 17, and of ageing, rates and cancels.

Waiting times are the ledger's own: from Kafka's append time to the time that the worker's engine began.
Shares are slot-time of the attempts that ended while both sides had jobs waiting.
"""

import concurrent.futures
import http.client
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse

SLOTS = 32
SERVICE_MS = 20
RATE = 20  # of the jobs that are watched, a second
POOL = "fair"
IDLE_SECONDS = 5
ENV = {"HEADRACE_AGEING_AFTER": "2s", "HEADRACE_TENANT_WAITING_MAX": "100000000"}
OWN_STACK = 100_000  # above it a backlog takes longer to run out than a new stack to start


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


class Client:
    """Keep-alive connections, one a thread."""

    def __init__(self, stack, key, model):
        url = urllib.parse.urlsplit(stack.url("gateway"))
        self.address, self.key, self.model = (url.hostname, url.port), key, model
        self.local = threading.local()

    def call(self, method, path, body=None):
        if time.monotonic() - getattr(self.local, "used", 0) > IDLE_SECONDS:  # the gateway ends idle connections
            self.local.client = http.client.HTTPConnection(*self.address, timeout=60)
        self.local.used = time.monotonic()
        self.local.client.request(method, path, None if body is None else json.dumps(body), {
            "Authorization": f"Bearer {self.key}", "Content-Type": "application/json"})
        answer = self.local.client.getresponse()
        text = answer.read()
        return answer.status, json.loads(text)

    def submit(self, **fields):
        return self.call("POST", f"/model/{self.model}/production/async_predict", {"model_input": {}, **fields})

    def stream(self, seconds, **fields):
        """Jobs at fixed times; their ids."""
        jobs, begun = [], time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for i in range(int(RATE * seconds)):
                time.sleep(max(0, begun + i / RATE - time.monotonic()))
                jobs.append(pool.submit(self.submit, **fields))
        return [job.result()[1]["request_id"] for job in jobs]


class World:
    def __init__(self, stack, options, alone):
        self.stack, self.options, self.alone = stack, options, alone
        stack.push_sim(POOL, slots=SLOTS, test_mode=True, service_ms=SERVICE_MS)
        self.key = {"default": stack.key}
        for tenant in ("a", "b"):
            stack.cli("tenants", "create", tenant)
            self.key[tenant] = json.loads(stack.cli("keys", "create", "--tenant", tenant, "--json").stdout)["api_key"]
            stack.sql("""
                INSERT INTO headrace.model (id, tenant, name, deployment_count) VALUES (:'a1', :'a1', :'a1', 1);
                INSERT INTO headrace.deployment (id, model_id, name, number, pool, shard, engine, slot_count,
                        replicas_min, replicas_max, replicas_wanted, status)
                    VALUES (:'a1', :'a1', 'deployment-1', 1, :'a2', 0, 'sim', :a3, 0, 0, 0, 'ACTIVE');
                INSERT INTO headrace.environment (model_id, name) VALUES (:'a1', 'production');
                INSERT INTO headrace.environment_target (model_id, environment, deployment_id)
                    VALUES (:'a1', 'production', :'a1');
                """, tenant, POOL, SLOTS)
        self.clients = {name: Client(stack, key, POOL if name == "default" else name)
                        for name, key in self.key.items()}
        self.until(lambda: all(client.submit()[0] == 201 for client in self.clients.values()))

    def until(self, ask, seconds=3600):
        end = time.monotonic() + seconds
        while not ask():
            if time.monotonic() > end:
                sys.exit(f"bench/fairness: not in {seconds} s\n{self.stack.tell(5)}")
            time.sleep(0.1)

    def fill(self, tenant, jobs, fields):
        """So many copies of one job, straight into `intake`; the owner makes their rows as of any others."""
        status, answer = self.clients[tenant].submit(max_time_in_queue_seconds=259200, **fields)
        if status != 201:
            sys.exit(f"bench/fairness: {status} {answer}")
        job = answer["request_id"]
        self.until(lambda: self.stack.sql("SELECT seq FROM headrace.job WHERE id = :'a1'", job))
        offset = self.stack.sql("SELECT seq FROM headrace.job WHERE id = :'a1'", job)[0][0]
        subprocess.run([pathlib.Path(self.options.binary).parent / "backlog_fill",
                        self.stack.url("kafka").removeprefix("kafka://"), "0", offset, str(jobs - 1)], check=True)

    def hold(self, tenant, *fills):
        """Fills while the tenant may run nothing, until all of it waits; the backlog is whole then."""
        self.stack.cli("tenants", "set", tenant, "running_jobs=0")
        self.until(lambda: sum(self.running(tenant)) == 0)
        for jobs, fields in fills:
            self.fill(tenant, jobs, fields)
        self.until(lambda: self.waiting(tenant) >= sum(jobs for jobs, _ in fills))

    def release(self, *tenants):
        for tenant in tenants:
            self.stack.cli("tenants", "set", tenant, "running_jobs=")

    def running(self, tenant):
        return [int(row[0]) for row in self.stack.sql(
            "SELECT coalesce(sum(running), 0)::bigint FROM headrace.queue_delta WHERE deployment = :'a1'",
            POOL if tenant == "default" else tenant)]

    def waiting(self, tenant, rank=None):
        rows = self.stack.sql("SELECT coalesce(sum(waiting), 0)::bigint FROM headrace.queue_delta WHERE deployment = "
                              ":'a1' AND (:'a2' = '' OR rank = nullif(:'a2', '')::int)",
                              POOL if tenant == "default" else tenant, rank if rank is not None else "")
        return int(rows[0][0])

    def waits_ms(self, jobs):
        rows = self.stack.sql("""
            SELECT extract(epoch FROM a.started_at - j.accepted_at) * 1000 FROM headrace.job j
            JOIN headrace.attempt a ON a.job_id = j.id AND a.number = 1
            WHERE j.id = ANY (string_to_array(:'a1', ',')::uuid[])""", ",".join(jobs))
        return [float(row[0]) for row in rows]

    def final(self, jobs):
        self.until(lambda: int(self.stack.sql(
            "SELECT count(*) FROM headrace.job WHERE state IN (1, 2) AND id = ANY (string_to_array(:'a1', ',')::uuid[])",
            ",".join(jobs))[0][0]) == 0)

    def slot_ms(self, begun, column):
        """Slot-time of each tenant or rank, of the attempts that were dispatched while all of them waited: from
        when the last of them began to when the first of them had nothing left."""
        rows = self.stack.sql(f"""
            WITH run AS (SELECT j.{column} AS who, a.dispatched_at AS at, a.ended_at - a.dispatched_at AS took
                         FROM headrace.attempt a JOIN headrace.job j ON j.id = a.job_id WHERE a.dispatched_at > :'a1'),
                 span AS (SELECT max(first) AS first, min(last) AS last
                          FROM (SELECT min(at) AS first, max(at) AS last FROM run GROUP BY who) each)
            SELECT who, sum(extract(epoch FROM took)) * 1000 FROM run, span WHERE at BETWEEN first AND last
            GROUP BY who""", begun)
        return {row[0]: float(row[1]) for row in rows}

    def now(self):
        return self.stack.sql("SELECT clock_timestamp()")[0][0]

    def drop_backlog(self):
        """Lets the rest run out, for the next part; a large one goes with its stack."""
        if not self.alone:
            self.until(lambda: all(self.waiting(tenant) == 0 for tenant in self.clients))


def priority(world, seconds):
    idle = world.clients["default"].stream(seconds)
    world.final(idle)
    world.hold("default", (world.options.backlog, {"priority": 2}))
    world.release("default")
    waiting = world.waiting("default", 3)
    loaded = world.clients["default"].stream(seconds)
    world.final(loaded)
    left = world.waiting("default", 3)
    idle_ms, loaded_ms = world.waits_ms(idle), world.waits_ms(loaded)
    world.drop_backlog()
    return {"waiting": waiting, "left": left, "idle_p50": percentile(idle_ms, 0.5), "idle_p99": percentile(idle_ms, 0.99),
            "p50": percentile(loaded_ms, 0.5), "p99": percentile(loaded_ms, 0.99)}


def newcomer(world, seconds):
    world.hold("a", (world.options.backlog, {}))
    world.release("a")
    waiting = world.waiting("a")
    jobs = world.clients["b"].stream(seconds)
    world.final(jobs)
    waits = world.waits_ms(jobs)
    left = world.waiting("a")
    world.drop_backlog()
    return {"waiting": waiting, "left": left, "p50": percentile(waits, 0.5), "p99": percentile(waits, 0.99), "max": max(waits)}


def shares(world, seconds, weights):
    """Ten times the load against once, both with all of it waiting: what ended while both still waited."""
    for tenant, weight in zip(("a", "b"), weights):
        world.stack.cli("tenants", "set", tenant, f"weight={weight}")
    capacity = SLOTS * 1000 / SERVICE_MS
    world.hold("a", (int(5 * capacity * seconds), {}))
    world.hold("b", (int(capacity * seconds / 2), {}))
    begun = world.now()
    world.release("a", "b")
    world.drop_backlog()
    used = world.slot_ms(begun, "tenant")
    for tenant in ("a", "b"):
        world.stack.cli("tenants", "set", tenant, "weight=")
    return 100 * used.get("b", 0) / max(1, used.get("a", 0) + used.get("b", 0))


def ageing(world, seconds):
    """A lower class that is overdue, against a higher one that never ends."""
    capacity = SLOTS * 1000 / SERVICE_MS
    world.hold("default", (int(capacity * seconds / 4), {"priority": 2}), (int(capacity * seconds), {}))
    time.sleep(3)  # until the lower class is overdue: HEADRACE_AGEING_AFTER
    begun = world.now()
    world.release("default")
    world.drop_backlog()
    used = world.slot_ms(begun, "rank")
    return 100 * used.get("3", 0) / max(1, sum(used.values()))


def rates(world, seconds):
    """What a rate of 200/s lets pass of all that come, and what asking Redis adds to a submit."""
    def times(client, count):
        taken = []
        for _ in range(count):
            begun = time.monotonic()
            client.submit()
            taken.append((time.monotonic() - begun) * 1000)
        return statistics.median(taken)

    client = world.clients["b"]
    without = times(client, 200)
    world.stack.cli("tenants", "set", "b", "rate_per_second=1000000")
    time.sleep(0.5)
    asking = times(client, 200)
    world.stack.cli("tenants", "set", "b", "rate_per_second=200", "rate_burst=50")
    time.sleep(0.5)
    world.stack.redis("FLUSHALL")
    begun, passed, asked = time.monotonic(), 0, 0

    def hammer(_):
        codes = []
        while time.monotonic() < begun + seconds:
            codes.append(client.submit()[0])
        return codes

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for codes in pool.map(hammer, range(8)):
            passed += codes.count(201)
            asked += len(codes)
    took = time.monotonic() - begun
    world.stack.cli("tenants", "set", "b", "rate_per_second=", "rate_burst=")
    return {"without_ms": without, "with_ms": asking, "asked": asked, "passed": passed, "may": 50 + 200 * took}


def cancels(world):
    """From the DELETE to its verdict: of jobs that wait, and of jobs that run."""
    client = world.clients["default"]
    world.stack.cli("tenants", "set", "default", "running_jobs=0")
    time.sleep(0.5)
    waiting = [client.submit()[1]["request_id"] for _ in range(100)]
    taken = {"waiting": [], "running": []}

    def cancel(kind, jobs):
        for job in jobs:
            begun = time.monotonic()
            status, answer = client.call("DELETE", f"/async_request/{job}")
            taken[kind].append((time.monotonic() - begun) * 1000)
            if status != 200 or not answer["canceled"]:
                sys.exit(f"bench/fairness: not canceled: {status} {answer}")

    cancel("waiting", waiting)
    world.stack.cli("tenants", "set", "default", "running_jobs=")
    for _ in range(100 // SLOTS + 1):
        jobs = [client.submit(model_input={"sim": {"sleep_ms": 30000}})[1]["request_id"] for _ in range(SLOTS)]
        world.until(lambda: int(world.stack.sql(
            "SELECT count(*) FROM headrace.job WHERE state = 2 AND id = ANY (string_to_array(:'a1', ',')::uuid[])",
            ",".join(jobs))[0][0]) == SLOTS)
        cancel("running", jobs)
    return {kind: (percentile(values, 0.5), percentile(values, 0.99)) for kind, values in taken.items()}


def run(options):
    from stack import Stack

    seconds = 4 if options.small else 30
    if options.small:
        options.backlog = min(options.backlog, 20000)
    parts = {
        "cancel": cancels, "rates": lambda world: rates(world, seconds),
        "shares": lambda world: shares(world, seconds, (100, 100)),
        "weights": lambda world: shares(world, seconds, (300, 100)),
        "ageing": lambda world: ageing(world, seconds), "priority": lambda world: priority(world, seconds),
        "newcomer": lambda world: newcomer(world, seconds)}
    chosen = [name for name in parts if not options.parts or name in options.parts.split(",")]
    alone = [[name] for name in chosen if name in ("priority", "newcomer")] if options.backlog > OWN_STACK else []
    together = [name for name in chosen if [name] not in alone]
    figures = {}
    for names in [together] * bool(together) + alone:
        with Stack(env=ENV) as stack:
            world = World(stack, options, names in alone)
            figures |= {name: parts[name](world) for name in names}
    load = os.getloadavg()[0]
    if options.json:
        print(json.dumps(figures))
        return
    print(f"\n{SLOTS} slots, {SERVICE_MS} ms a job, load average at the end {load:.0f}\n\n| figure | value | mark |\n| --- | ---: | ---: |")
    print("\n".join(lines(figures)))


def lines(figures):
    if "priority" in figures:
        part = figures["priority"]
        yield f"| wait of priority 0, idle: p50 / p99, ms | {part['idle_p50']:.1f} / {part['idle_p99']:.1f} | |"
        yield (f"| the same with {part['waiting']:,} of priority 2 waiting ({part['left']:,} at the end) | "
               f"{part['p50']:.1f} / {part['p99']:.1f} | p99 ≤ {2 * part['idle_p99']:.1f} |")
    if "newcomer" in figures:
        part = figures["newcomer"]
        yield (f"| wait of a tenant's single jobs, another has {part['waiting']:,} waiting ({part['left']:,} at the end): "
               f"p50 / p99 / max, ms | {part['p50']:.1f} / {part['p99']:.1f} / {part['max']:.1f} | {SERVICE_MS} + 50 |")
    if "shares" in figures:
        yield f"| slot-time of the tenant with a tenth of the load, % | {figures['shares']:.1f} | ≥ 45 |"
    if "weights" in figures:
        yield f"| the same at weights 300 to 100, % | {figures['weights']:.1f} | 25 |"
    if "ageing" in figures:
        yield f"| slot-time of an overdue lower class, % | {figures['ageing']:.1f} | 5 |"
    if "rates" in figures:
        part = figures["rates"]
        yield (f"| rate 200/s, burst 50: passed of {part['asked']:,} / may pass | {part['passed']:,} / {part['may']:.0f} | |")
        yield (f"| submit, one at a time, p50, ms: without a rate / with one | {part['without_ms']:.2f} / "
               f"{part['with_ms']:.2f} | |")
    for kind, (p50, p99) in figures.get("cancel", {}).items():
        yield f"| cancel of a {kind} job to its verdict: p50 / p99, ms | {p50:.1f} / {p99:.1f} | 250 |"
