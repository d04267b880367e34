# SPDX-License-Identifier: Apache-2.0
"""Goal: a sample of the table of bench/chaos holds on this machine: no accepted job lost, none
published twice. Method: bench/chaos itself, on a stack of its own, with leases and faults scaled
down; which cells, the seed of the commit decides, and it is printed. HEADRACE_CHAOS_SEED and
HEADRACE_CHAOS_CELLS choose others."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CELLS = int(os.environ.get("HEADRACE_CHAOS_CELLS", "12"))


def commit_seed():
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True,
                          check=False)
    return int(done.stdout[:7], 16) if done.returncode == 0 else 1


@pytest.mark.timeout(540)
def test_sample_of_the_table():
    seed = os.environ.get("HEADRACE_CHAOS_SEED") or str(commit_seed())
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/chaos"), "--quick", "--no-record", "--sample", str(CELLS), "--seed", seed,
         "--within", "330",
         "--binary", os.environ["HEADRACE_BIN"]],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=520)
    print("\n" + done.stdout)
    assert done.returncode == 0, done.stdout
    closing = re.search(r"^chaos: seed \d+: (\d+) cells ok, 0 failed, (\d+) skipped(.*)$", done.stdout, re.M)
    assert closing, done.stdout
    ok, skipped = int(closing[1]), int(closing[2])
    if "not begun" in closing[3]:  # twelve take two minutes and a half on two quiet cores
        pytest.skip(f"this machine is busy: {closing[0]}")
    assert ok + skipped == CELLS
    if skipped > 0:
        pytest.skip(f"{ok} cells ok; {skipped} cells need namespaces{closing[3]}")
