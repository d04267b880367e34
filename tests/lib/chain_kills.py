# SPDX-License-Identifier: Apache-2.0
"""Runs of a chain under random kill -9, and what is counted afterwards.

The model of the steps has a side effect: a line in a journal for each call (HEADRACE_SIM_JOURNAL), which the ledger
knows nothing of. Its workers have one slot each, so a kill takes one call along at most. Used by tests/stack/
test_chains.py with a few kills, and by `bench/run chains-kills` with a hundred."""

import collections
import json
import os
import random
import signal
import time

from stack import command_line, descendants, wait_until

BEFORE, AFTER, ITEMS = 4, 4, 8
STEPS = BEFORE + ITEMS + AFTER
VICTIMS = ("coordinator", "coordinator's worker", "broker", "gateway", "worker", "worker's host")


def chain(model, sleep_ms):
    """BEFORE steps in a row, a map, AFTER steps in a row; each says which it is, and what came before it."""
    steps, before = {}, "none"

    def add(name, **more):
        nonlocal before
        steps[name] = {"model": model, **more, "input": {
            "run": "{{run.id}}", "step": name, "item": "{{index}}" if "map" in more else 0, "before": before,
            "sim": {"sleep_ms": sleep_ms}}}
        before = "{{steps.%s.output.output.step}}" % name

    for n in range(BEFORE):
        add(f"a{n}")
    add("each", map=list(range(ITEMS)), max_parallel=4)
    before = "{{steps.each.output.%d.output.step}}" % (ITEMS - 1)
    for n in range(AFTER):
        add(f"b{n}")
    return {"steps": steps, "output": [before, "{{steps.each.output}}"]}


def workers_of(stack, model):
    return [pid for pid in stack.pids("worker") if f"--model={model}" in command_line(pid)]


def hosts_of(pids, command):
    return [child for pid in pids for child in descendants(pid) if command in command_line(child)]


def pids_of(stack, victim, name, model):
    if victim == "coordinator":
        return hosts_of(workers_of(stack, name), "host-chain")
    if victim == "coordinator's worker":
        return workers_of(stack, name)
    if victim == "worker":
        return workers_of(stack, model)
    return hosts_of(workers_of(stack, model), "host-c")


def kill_one(stack, victim, name, model, dice):
    """False: there was nobody to kill just now."""
    if victim in ("broker", "gateway"):
        stack.kill_service(victim)
        stack.start_service(victim)
        return True
    pids = pids_of(stack, victim, name, model)
    if not pids:
        return False
    try:
        os.kill(dice.choice(pids), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def over(stack, name):
    ((live, ended),) = stack.sql(
        "SELECT count(*) FILTER (WHERE j.state IN (1, 2)), count(*) FILTER (WHERE j.state NOT IN (1, 2)) "
        "FROM headrace.job j JOIN headrace.model m ON m.id = j.model WHERE m.name = :'a1'", name)
    return int(live), int(ended)


def begin(stack, name):
    reply = stack.http("POST", f"/chain/{name}/production/async_run_remote", {"model_input": {}})
    assert reply.status == 201, reply
    return reply.json["request_id"]


def run(stack, name, model, runs, kills, gap_s, seed, seconds=300):
    """Begins the runs, kills as they live, and waits for their ends. What was killed, and how long it took."""
    dice, killed = random.Random(seed), collections.Counter()
    began = time.monotonic()
    ids = [begin(stack, name) for _ in range(runs)]
    while sum(killed.values()) < kills:
        time.sleep(dice.uniform(0.5, 1.5) * gap_s)
        if over(stack, name)[0] == 0:
            break
        victim = dice.choice(VICTIMS)
        killed[victim] += kill_one(stack, victim, name, model, dice)
    wait_until("all runs to be over", lambda: over(stack, name)[0] == 0, seconds, 0.1)
    return ids, killed, time.monotonic() - began


def read_journal(path, ids):
    """The calls of these runs in the order in which they began, by run: (step, item)."""
    calls, wanted = collections.defaultdict(list), set(ids)
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                call = json.loads(line)
            except ValueError:
                continue  # of another model, and cut
            if isinstance(call, dict) and call.get("run") in wanted:
                calls[call["run"]].append((call["step"], call["item"]))
    return calls


def check_order(calls):
    """No step is called once a later one was: no run starts again."""
    order = [f"a{n}" for n in range(BEFORE)] + ["each"] + [f"b{n}" for n in range(AFTER)]
    furthest = 0
    for step, _ in calls:
        assert order.index(step) >= furthest, f"{step} was called after {order[furthest]}: {calls}"
        furthest = order.index(step)


def check(stack, ids, kills, journal):
    """Each run has ended well, each step has one job and one result, and was called as often as can be explained."""
    values = ",".join(ids)
    assert stack.sql("SELECT DISTINCT status FROM headrace_v1.chain_runs WHERE run_id = ANY (string_to_array(:'a1', ',')"
                     "::uuid[])", values) == [["SUCCEEDED"]]
    ((steps, names, results, attempts),) = stack.sql(
        "SELECT count(*), count(DISTINCT (s.run_id, s.step, s.item)), (SELECT count(*) FROM headrace.chain_step c JOIN "
        "headrace.job_result r ON r.job_id = c.job_id WHERE c.run_id = ANY (string_to_array(:'a1', ',')::uuid[])), "
        "max(r.attempts) FROM headrace_v1.chain_steps s JOIN headrace_v1.chain_runs r USING (run_id) "
        "WHERE s.run_id = ANY (string_to_array(:'a1', ',')::uuid[]) AND s.status = 'SUCCEEDED'", values)
    wanted = len(ids) * STEPS
    assert int(steps) == int(names) == int(results) == wanted, (steps, names, results, wanted)
    calls = read_journal(journal, ids)
    total = sum(len(calls[one]) for one in ids)
    for one in ids:
        assert len(set(calls[one])) == STEPS, (one, calls[one])
        check_order(calls[one])
        assert stack.result(one).json[0] == f"b{AFTER - 1}"
    assert total <= wanted + kills, (total, wanted, kills)
    ((lost,),) = stack.sql(
        "SELECT count(*) FROM headrace.chain_step s JOIN headrace.attempt a ON a.job_id = s.job_id "
        "WHERE s.run_id = ANY (string_to_array(:'a1', ',')::uuid[]) AND a.error_class <> 0", values)
    return {"steps": wanted, "results": int(results), "calls": total, "lost": int(lost),
            "attempts_max": int(attempts)}
