#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""docs/guarantees.md is what bench/chaos --doc makes of the record, byte for byte; each cell of the
record is one of the table, and none of them lost or doubled a job."""

import pathlib
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/lib"))

import chaos_cells  # noqa: E402


class ChaosPage(unittest.TestCase):
    def test_the_page_is_fresh(self):
        done = subprocess.run([sys.executable, "-B", str(ROOT / "bench/chaos"), "--doc", "--check"],
                              capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_every_program_and_server_is_hurt_in_every_way_that_it_can_be(self):
        table = chaos_cells.cells()
        points = {name for name, _, _ in chaos_cells.points()}
        self.assertLessEqual(points, {cell.step for cell in table})
        self.assertEqual({cell.step for cell in table} - points, {"load", *chaos_cells.HOST_STEPS})
        self.assertEqual({cell.fault for cell in table}, set(chaos_cells.FAULTS))
        for program in ("gateway", "broker", "worker", "agent", "webhook", "ingest"):
            faults = {cell.fault for cell in table if cell.program == program}
            self.assertEqual(faults, {"kill", "stop", "restart", "cut"}, program)
        hosts = {(cell.program, cell.step, cell.fault) for cell in table if cell.step in chaos_cells.HOST_STEPS}
        self.assertEqual(len(hosts), len(chaos_cells.HOSTS) * len(chaos_cells.HOST_STEPS) * 2)

    def test_the_record_is_of_this_table(self):
        lines = (ROOT / "bench/chaos.tsv").read_text().splitlines()
        head, rows = lines[0].split("\t"), [line.split("\t") for line in lines[1:]]
        names = {cell.name for cell in chaos_cells.cells()}
        for row in rows:
            self.assertEqual(len(row), len(head), row)
            self.assertIn(row[0], names)


if __name__ == "__main__":
    unittest.main()
