# SPDX-License-Identifier: Apache-2.0
"""`bench/run chains-kills`: random kill -9 under live runs of a chain, and what is counted afterwards.

Killed are coordinators, their workers, workers of steps and their hosts, the broker and the gateway. Three parts: 200
runs of 16 steps, eight of them in a map, under 100 kills; half of these again, from the first step behind the map on;
and 100 runs whose last step fails, so that all that came before is undone, with kills from the first one that is. In
the last two, most kills hit a coordinator. It ends with an error when a run does not end as it must, a step has not exactly one result, a call is not
explained by a step or a kill, or a step is called after a later one of its run.
"""

import random
import tempfile

NAME, UNDONE, MODEL, WORKERS, SLEEP_MS = "kills", "undone", "counted", 4, 60
RUNS, KILLS, GAP_S = 200, 100, 0.4


def push(stack, name, chain):
    reply = stack.http("POST", f"/v1/models/{name}/deployments", {"engine": "chain", "settings": chain})
    assert reply.status == 201, reply
    stack.wait_active(reply.json["id"])


def tell(part, killed, seconds, told, more=""):
    kills = sum(killed.values())
    print(f"{part}, {seconds:.0f} s; killed: " + ", ".join(f"{count} × {name}" for name, count in sorted(killed.items())))
    print(f"  published step results {told['results']:,}, jobs of steps {told['steps']:,}; calls {told['calls']:,} ≤ steps + "
          f"{kills} kills; {told['lost']} attempts of steps were lost or handed back; no step was called after a later one; "
          f"most attempts of a run: {told['attempts_max']}{more}", flush=True)


def run(options, bench):
    import chain_kills
    from stack import Stack

    seed = options.seed or random.SystemRandom().randrange(1, 1 << 31)
    runs, kills = (RUNS // 10, KILLS // 10) if options.small else (RUNS, KILLS)
    print(f"seed {seed}: {runs} runs, {kills} kills", flush=True)
    with tempfile.NamedTemporaryFile() as journal, Stack(env={"HEADRACE_SIM_JOURNAL": journal.name,
                                                              "HEADRACE_RESTART_DELAY": "50ms"}) as stack:
        stack.push_sim(MODEL, slots=1, replicas=WORKERS)
        push(stack, NAME, chain_kills.chain(MODEL, SLEEP_MS))
        push(stack, UNDONE, chain_kills.undone_chain(MODEL, SLEEP_MS))
        ids, killed, seconds = chain_kills.run(stack, NAME, MODEL, runs, kills, GAP_S, seed)
        tell("runs", killed, seconds, chain_kills.check(stack, ids, sum(killed.values()), journal.name))
        sources = ids[:runs // 2]
        again, killed, seconds = chain_kills.run(stack, NAME, MODEL, 0, kills // 4, GAP_S / 4, seed + 1, sources=sources,
                                                 victims=chain_kills.COORDINATORS)
        tell("again", killed, seconds, chain_kills.check(stack, again, sum(killed.values()), journal.name, sources))
        undone, killed, seconds = chain_kills.run(stack, UNDONE, MODEL, runs // 2, kills // 2, GAP_S, seed + 2,
                                                  victims=chain_kills.COORDINATORS, until=chain_kills.undoing)
        told = chain_kills.check_undone(stack, undone, sum(killed.values()), journal.name)
        tell("undone", killed, seconds, told, f"; {told['hit']} runs lost a coordinator while they were undone")
