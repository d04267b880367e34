# SPDX-License-Identifier: Apache-2.0
"""`bench/run chains-kills`: random kill -9 under live runs of a chain, and what is counted afterwards.

Killed are coordinators, their workers, workers of steps and their hosts, the broker and the gateway. Each run has 16
steps, eight of them in a map. It ends with an error when a run does not succeed, a step has not exactly one result, a
call is not explained by a step or a kill, or a step is called after a later one of its run.
"""

import random
import tempfile

NAME, MODEL, WORKERS, SLEEP_MS = "kills", "counted", 4, 60
RUNS, KILLS, GAP_S = 200, 100, 0.4


def run(options, bench):
    import chain_kills
    from stack import Stack

    seed = options.seed or random.SystemRandom().randrange(1, 1 << 31)
    runs, kills = (RUNS // 10, KILLS // 10) if options.small else (RUNS, KILLS)
    print(f"seed {seed}: {runs} runs, {kills} kills", flush=True)
    with tempfile.NamedTemporaryFile() as journal, Stack(env={"HEADRACE_SIM_JOURNAL": journal.name,
                                                              "HEADRACE_RESTART_DELAY": "50ms"}) as stack:
        stack.push_sim(MODEL, slots=1, replicas=WORKERS)
        reply = stack.http("POST", f"/v1/models/{NAME}/deployments",
                           {"engine": "chain", "settings": chain_kills.chain(MODEL, SLEEP_MS)})
        assert reply.status == 201, reply
        stack.wait_active(reply.json["id"])
        ids, killed, seconds = chain_kills.run(stack, NAME, MODEL, runs, kills, GAP_S, seed)
        told = chain_kills.check(stack, ids, sum(killed.values()), journal.name)
    print(f"{seconds:.0f} s; killed: " + ", ".join(f"{count} × {name}" for name, count in sorted(killed.items())))
    print(f"published step results {told['results']:,} = steps {told['steps']:,}; calls {told['calls']:,} ≤ steps + "
          f"{sum(killed.values())} kills; {told['lost']} attempts of steps were lost or handed back; no step was called after a later one; most attempts of a run: "
          f"{told['attempts_max']}")
