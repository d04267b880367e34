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
COORDINATORS = ("coordinator", "coordinator", "coordinator's worker") + VICTIMS
UNDONE = ("c0", "c1", "each", "c2")  # in this order, and undone in the other


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


def undone_chain(model, sleep_ms):
    """Steps that are undone one after the other, the map's as one, since the last step fails."""
    steps, before = {}, "none"
    for name in UNDONE:
        ask = {"run": "{{run.id}}", "step": name, "before": before, "sim": {"sleep_ms": sleep_ms}}
        steps[name] = {"model": model, "compensate": f"un-{name}", "input": {**ask, "item": 0}}
        before = "{{steps.%s.output.output.step}}" % name
        if name == "each":
            steps[name].update(map=list(range(ITEMS)), max_parallel=4, input={**ask, "item": "{{index}}"})
            before = "{{steps.each.output.%d.output.step}}" % (ITEMS - 1)
        steps[f"un-{name}"] = {"model": model, "input": {**ask, "step": f"un-{name}", "item": 0, "before": before}}
    steps["fails"] = {"model": model, "needs": [UNDONE[-1]],
                      "input": {"run": "{{run.id}}", "step": "fails", "item": 0, "sim": {"fail": "bad_input"}}}
    return {"steps": steps, "output": 1}


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


def begin_again(stack, run, step):
    reply = stack.http("POST", f"/v1/chain_runs/{run}/rerun", {"from": step})
    assert reply.status == 201, reply
    return reply.json["request_id"]


def undoing(stack, ids):
    return stack.sql("SELECT 1 FROM headrace.chain_step WHERE run_id = ANY (string_to_array(:'a1', ',')::uuid[]) AND step LIKE "
                     "'un-%' LIMIT 1", ",".join(ids))


def run(stack, name, model, runs, kills, gap_s, seed, seconds=300, sources=None, victims=VICTIMS, until=None):
    """Begins the runs, kills as they live (from `until` on), and waits for their ends. What was killed, and how long it
    took. Sources: runs that are begun again, from their first step behind the map on."""
    dice, killed = random.Random(seed), collections.Counter()
    began = time.monotonic()
    ids = [begin_again(stack, one, "b0") for one in sources] if sources else [begin(stack, name) for _ in range(runs)]
    if until:
        wait_until("the time to kill", lambda: until(stack, ids), seconds, 0.1)
    while sum(killed.values()) < kills:
        time.sleep(dice.uniform(0.5, 1.5) * gap_s)
        if over(stack, name)[0] == 0:
            break
        victim = dice.choice(victims)
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


def check_order(calls, order):
    """No step is called once a later one was: no run starts again."""
    furthest = 0
    for step, _ in calls:
        assert order.index(step) >= furthest, f"{step} was called after {order[furthest]}: {calls}"
        furthest = order.index(step)


def counts_of(stack, ids):
    """Jobs of steps, their distinct places, their results, those that did not succeed, most attempts of a run."""
    (row,) = stack.sql(
        "SELECT count(*), count(DISTINCT (s.run_id, s.step, s.item)), (SELECT count(*) FROM headrace.chain_step c JOIN "
        "headrace.job j ON j.id = c.job_id AND j.state = 3 JOIN headrace.job_result r ON r.job_id = c.job_id WHERE "
        "c.run_id = ANY (string_to_array(:'a1', ',')::uuid[])), count(*) FILTER (WHERE s.status <> 'SUCCEEDED'), "
        "max(r.attempts), (SELECT count(*) FROM headrace.chain_step c JOIN headrace.attempt a ON a.job_id = c.job_id "
        "WHERE c.run_id = ANY (string_to_array(:'a1', ',')::uuid[]) AND a.error_class IN (9, 12)) "
        "FROM headrace_v1.chain_steps s JOIN headrace_v1.chain_runs r USING (run_id) "
        "WHERE s.run_id = ANY (string_to_array(:'a1', ',')::uuid[])", ",".join(ids))
    return [int(value) for value in row]


def check_calls(ids, journal, order, places, kills):
    """Each place is called, in order, and as often as can be explained."""
    calls = read_journal(journal, ids)
    total = sum(len(calls[one]) for one in ids)
    for one in ids:
        assert len(set(calls[one])) == places, (one, calls[one])
        check_order(calls[one], order)
    assert total <= len(ids) * places + kills, (total, len(ids) * places, kills)
    return total


def statuses(stack, ids):
    return stack.sql("SELECT DISTINCT status FROM headrace_v1.chain_runs WHERE run_id = ANY (string_to_array(:'a1', ',')"
                     "::uuid[])", ",".join(ids))


def check(stack, ids, kills, journal, sources=None):
    """Each run has ended well, each step has one job and one result, and was called as often as can be explained. Of
    runs again: only what is behind the map, and the map's outputs are those of the source."""
    assert statuses(stack, ids) == [["SUCCEEDED"]], statuses(stack, ids)
    jobs, places, results, bad, attempts, lost = counts_of(stack, ids)
    each = AFTER if sources else STEPS
    assert jobs == places == results == len(ids) * each and bad == 0, (jobs, places, results, bad)
    order = [f"a{n}" for n in range(BEFORE)] + ["each"] + [f"b{n}" for n in range(AFTER)]
    total = check_calls(ids, journal, order, each, kills)
    for one, source in zip(ids, sources or ids):
        last, items = stack.result(one).json
        assert last == f"b{AFTER - 1}" and items == stack.result(source).json[1], one
    return {"steps": jobs, "results": results, "calls": total, "lost": lost, "attempts_max": attempts}


def check_undone(stack, ids, kills, journal):
    """Each run has failed for its own reason, and all that succeeded is undone once, the last first."""
    assert statuses(stack, ids) == [["FAILED"]], statuses(stack, ids)
    ((other,),) = stack.sql(
        "SELECT count(*) FROM headrace.job WHERE id = ANY (string_to_array(:'a1', ',')::uuid[]) AND (error_message NOT LIKE "
        "'step fails: FAILED (BAD_INPUT)%' OR error_message LIKE '%is not undone%')", ",".join(ids))
    assert other == "0", other
    places = 2 * len(UNDONE) + ITEMS  # the map's items for one, and the step that fails
    jobs, named, results, bad, attempts, lost = counts_of(stack, ids)
    assert jobs == named == len(ids) * places and bad == len(ids), (jobs, named, bad)
    assert results == len(ids) * (places - 1), (results, places)
    order = [*UNDONE, "fails"] + [f"un-{name}" for name in reversed(UNDONE)]
    total = check_calls(ids, journal, order, places, kills)
    ((hit,),) = stack.sql(
        "SELECT count(DISTINCT a.job_id) FROM headrace.attempt a WHERE a.job_id = ANY (string_to_array(:'a1', ',')::uuid[]) "
        "AND a.error_class = 16 AND a.ended_at > (SELECT min(j.accepted_at) FROM headrace.chain_step s JOIN headrace.job j "
        "ON j.id = s.job_id WHERE s.run_id = a.job_id AND s.step LIKE 'un-%')", ",".join(ids))
    return {"steps": jobs, "results": results, "calls": total, "lost": lost, "attempts_max": attempts, "hit": int(hit)}
