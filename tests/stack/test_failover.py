# SPDX-License-Identifier: Apache-2.0
"""Goal: when the primary of Postgres dies and its synchronous standby is promoted, nothing that was
accepted is lost, nothing is published twice, and a client sees nothing worse than 503 for submits
with an Idempotency-Key. Method: a pair of servers on two ports, kill -9 of the first under load,
all programs with host=a,b and target_session_attrs=read-write; jobs are counted as bench/chaos does."""

import chaos
import chaos_cells


def test_failover_to_a_synchronous_standby():
    cell = chaos_cells.Cell("postgres", "load", "failover")
    with chaos.World(chaos.QUICK, pair=True) as world:
        assert world.stack.sql("SHOW synchronous_standby_names") == [["FIRST 1 (*)"]]
        outcome = chaos.run_cell(world, cell, seed=1)
        (server,) = world.stack.sql("SELECT inet_server_port()")
    counts = outcome.counts
    print(f"\nfailover: {counts}")
    assert outcome.verdict == "ok"
    assert int(server[0]) == world.pair.standby.port
    assert counts["in_flight"] >= chaos.IN_FLIGHT
    assert counts["refused_unkeyed"] == 0 and counts["unheard"] == 0
