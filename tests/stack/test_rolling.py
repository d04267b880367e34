# SPDX-License-Identifier: Apache-2.0
"""Goal: shards move as brokers come, go, sleep and return, and everything can be restarted one by
one under load: nothing accepted is lost, and clients see no error.

Method: two of each program beside a stack's servers, four shards, a model in each. Clients keep their
connections as usual libraries do, and send nothing twice. The figures are printed: pytest -s.
"""

import os
import signal
import time

import pytest
from fleet import Fleet, Load, check_accepted, free_port
from receiver import Receiver
from stack import command_line, descendants, wait_until

SHARDS = 4
SESSION_SECONDS = 3
HANDOVER_SECONDS = 5  # the goal is 1 s; a loaded machine is given more
ACCEPT_SECONDS = 45  # submits wait so long for a Kafka that restarts


@pytest.fixture(scope="module")
def platform(request):
    from conftest import run_stack

    for stack in run_stack(request, only="kafka,redis,postgres,migrate,broker,gateway",
                           env={"HEADRACE_SHARDS": SHARDS}):
        stack.stop_service("broker")  # it has made the topics
        yield stack


@pytest.fixture(scope="module")
def fleet(platform, tmp_path_factory):
    """Agents and webhook senders of the whole file, two of each; brokers come with the tests."""
    with Fleet(platform, tmp_path_factory.mktemp("fleet")) as fleet:
        first = start_broker(fleet, "first")
        first.wait_ready()
        for shard in range(SHARDS):
            platform.push_sim_rows(f"m{shard}", slots=4, replicas=2, shard=shard, service_ms=10)
        agents = [fleet.start("agent", f"agent-{n}", agent_host=f"host-{n}", drain_timeout="5s") for n in (1, 2)]
        for shard in range(SHARDS):
            platform.wait_active(f"m{shard}", 60)
        for n in (1, 2):
            fleet.start("webhook", f"webhook-{n}", instance=f"webhook-{n}", allow="127.0.0.0/8",
                        claim="2s", drain_timeout="5s")
        for program in agents:
            program.wait_ready()
        yield fleet


def start_broker(fleet, name, **settings):
    settings = {"instance": name, "shards": SHARDS, "session": f"{SESSION_SECONDS}s"} | settings
    return fleet.start("broker", name, **settings)


@pytest.fixture
def brokers(fleet):
    """Two brokers with two shards each; at the end only these two run, or are started again."""
    pair = []
    for name in ("first", "second"):
        found = [p for p in fleet.programs if p.name == name]
        broker = found[0] if found else start_broker(fleet, name)
        if not broker.is_running():
            broker.mark = broker.log.stat().st_size
            broker.start()
        pair.append(broker)
    wait_spread(fleet, pair)
    return pair


def wait_spread(fleet, pair, seconds=30):
    """Each has two of the four shards, and dispatches them."""
    wait_until("two shards on each broker", lambda: [len(fleet.shards_of(b)) for b in pair] == [2, 2], seconds)


def bodies(url=None):
    hook = {} if url is None else {"webhook_endpoint": url}
    return [(f"/model/m{shard}/production/async_predict", {"model_input": {"text": "x" * 100}, **hook})
            for shard in range(SHARDS)]


def load_on(platform, **options):
    port = int(platform.url("gateway").rsplit(":", 1)[1])
    return Load(port, platform.key, bodies(), **options)


def finish(platform, load, what, excused=()):
    """Ends the load; all that was accepted ended well, and nobody saw an error (but those excused)."""
    ids = load.stop()
    copies = check_accepted(platform, ids)
    print(f"\n{what}: accepted {len(ids)}, lost 0, doubly published 0, equal copies {copies}, "
          f"errors {len(load.errors)}")
    errors = [error for error in load.errors if error not in excused]
    assert not errors, errors


def test_shards_spread_and_come_back_as_a_broker_joins_and_leaves(platform, fleet, brokers):
    first, second = brokers
    load = load_on(platform)
    try:
        load.wait_more(50)
        began = time.monotonic()
        second.send(signal.SIGTERM)
        wait_until("the first to dispatch all", lambda: len(fleet.shards_of(first)) == SHARDS)
        took = time.monotonic() - began
        assert second.wait() == 0
        load.wait_more(50)
        second.mark = second.log.stat().st_size
        second.start()
        wait_spread(fleet, brokers)
        load.wait_more(50)
    finally:
        load.stop()
    finish(platform, load, f"SIGTERM of a broker, the other dispatches its shards after {took:.2f} s; and back")
    assert took < HANDOVER_SECONDS


def test_standby_is_promoted_under_load(platform, fleet, brokers):
    """Five brokers for four shards: one has none. It leaves no trace in the group when it goes, and gets
    a shard when an owner goes."""
    more = [start_broker(fleet, f"more-{n}") for n in (1, 2, 3)]
    everybody = brokers + more
    load = load_on(platform)
    try:
        wait_until("four owners and a standby",
                   lambda: sorted(len(fleet.shards_of(b)) for b in everybody) == [0, 1, 1, 1, 1], 30)
        (standby,) = [b for b in everybody if not fleet.shards_of(b)]
        load.wait_more(30)
        assert standby.stop() < HANDOVER_SECONDS and standby.wait() == 0
        standby.mark = standby.log.stat().st_size
        standby.start()
        wait_until("a standby again", lambda: standby.get("/readyz")[0] == 200 and
                   sorted(len(fleet.shards_of(b)) for b in everybody) == [0, 1, 1, 1, 1], 30)
        (standby,) = [b for b in everybody if not fleet.shards_of(b)]
        owner = next(b for b in everybody if b is not standby)
        began = time.monotonic()
        owner.send(signal.SIGTERM)
        wait_until("the standby to dispatch", lambda: fleet.shards_of(standby))
        took = time.monotonic() - began
        assert owner.wait() == 0
        load.wait_more(50)
    finally:
        for broker in more:
            if broker.is_running():
                broker.stop()
        load.stop()
    finish(platform, load, f"SIGTERM of an owner, the standby dispatches after {took:.2f} s")
    assert took < HANDOVER_SECONDS


def test_stopped_broker_writes_nothing_when_it_wakes_up(platform, fleet, brokers):
    """SIGSTOP for longer than the session: its shards are taken, epochs fence what it still sends."""
    first, second = brokers
    load = load_on(platform)
    try:
        load.wait_more(50)
        shards = fleet.shards_of(second)
        second.send(signal.SIGSTOP)
        began = time.monotonic()
        try:
            wait_until("the first to dispatch all", lambda: len(fleet.shards_of(first)) == SHARDS, 20)
            took = time.monotonic() - began
            epochs = dict(platform.sql("SELECT id, epoch FROM headrace.shard"))
            load.wait_more(30)
        finally:
            second.send(signal.SIGCONT)
        second.wait_log("lost")
        wait_spread(fleet, brokers)
        load.wait_more(50)
    finally:
        load.stop()
    late = platform.sql("""
        SELECT f.shard, f.epoch, f.number FROM headrace.flush f
        WHERE f.at > (SELECT min(g.at) FROM headrace.flush g WHERE g.shard = f.shard AND g.epoch > f.epoch)""")
    assert not late, late  # no flush of an epoch after one of a higher
    assert all(int(epochs[str(shard)]) > 0 for shard in shards)
    finish(platform, load, f"SIGSTOP of a broker, its shards dispatched elsewhere after {took:.2f} s")


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM with --keep-place"])
def test_quick_restart_under_its_name_moves_nothing(platform, fleet, brokers, how):
    first, second = brokers
    number = signal.SIGKILL if how == "SIGKILL" else signal.SIGTERM
    second.stop()
    second.env |= {"HEADRACE_KEEP_PLACE": "true", "HEADRACE_SESSION": "20s"}
    second.mark = second.log.stat().st_size
    second.start()
    wait_spread(fleet, brokers)
    load = load_on(platform)
    try:
        load.wait_more(50)
        shards, takeovers = fleet.shards_of(second), len(first.events("shard_taken"))
        revoked = len(first.events("revoked"))
        began = time.monotonic()
        second.restart(number)
        wait_until("the second to dispatch its shards again", lambda: fleet.shards_of(second) == shards)
        took = time.monotonic() - began
        load.wait_more(50)
    finally:
        load.stop()
        second.env |= {"HEADRACE_KEEP_PLACE": "false", "HEADRACE_SESSION": f"{SESSION_SECONDS}s"}
    assert len(first.events("shard_taken")) == takeovers and len(first.events("revoked")) == revoked
    finish(platform, load, f"{how} and restart: the same shards after {took:.2f} s")


def test_two_agents_share_the_workers(platform, fleet):
    """Each worker's row has one agent; none was started twice, and none failed."""
    rows = platform.sql("SELECT worker, host, state, restart_count FROM headrace.replica ORDER BY worker")
    assert len(rows) == 2 * SHARDS and {row[2] for row in rows} == {"READY"}, rows
    assert {row[3] for row in rows} == {"0"}, rows
    running = [pid for p in fleet.programs if p.role == "agent" for pid in descendants(p.process.pid)
               if "host-devices" not in command_line(pid)]  # who asks the driver of GPUs
    assert len(running) == 2 * 2 * SHARDS  # a worker and its engine host each


def ends_of(platform, url, ids):
    rows = platform.sql("""SELECT job_id FROM headrace.delivery WHERE state = 2 AND url = :'a1'""", url)
    return set(ids) - {row[0] for row in rows}


def test_rolling_restart_of_everything(platform, fleet, brokers, tmp_path):
    port = free_port()
    gateways = [fleet.start("gateway", f"gateway-{n}", port=port, reuse_port="true", lame_duck="300ms",
                            accept_wait=f"{ACCEPT_SECONDS}s", loopback_webhooks="true") for n in (1, 2)]
    for gateway in gateways:
        gateway.wait_log("started")
    agents = [p for p in fleet.programs if p.role == "agent"]
    webhooks = [p for p in fleet.programs if p.role == "webhook"]
    with Receiver() as receiver:
        load = Load(port, platform.key, bodies(receiver.url("/rolling")))
        took = {}
        try:
            load.wait_more(100)
            for program in gateways + brokers + agents + webhooks:
                began = time.monotonic()
                program.restart()
                if program.role == "gateway":
                    program.wait_log("started")
                else:
                    program.wait_ready()
                took[program.name] = time.monotonic() - began
                load.wait_more(40)
            for server in ("redis", "postgres", "kafka"):
                seen, began = len(load.errors), time.monotonic()
                platform.restart_service(server)
                took[server] = time.monotonic() - began
                load.wait_more(40)
        finally:
            ids = load.stop()
        # A Kafka that starts for longer than submits wait: they were told, and promised nothing.
        slow = took["kafka"] > ACCEPT_SECONDS - 5
        excused = [error for error in load.errors[seen:] if slow and error.startswith("503 ")]
        finish(platform, load, "restart of " + ", ".join(f"{name} {s:.1f} s" for name, s in took.items()), excused)
        wait_until("all webhooks", lambda: not ends_of(platform, receiver.url("/rolling"), ids), 60, 0.2)
        told = {post.headers["x-baseten-request-id"] for post in receiver.at("/rolling")}
        print(f"webhooks {len(told)} of {len(ids)} jobs in {len(receiver.at('/rolling'))} POSTs")
        assert told == set(ids)
    for gateway in gateways:
        assert gateway.stop() < 5
