# SPDX-License-Identifier: Apache-2.0
"""`bench/run bulk-kills`: each program and server killed (kill -9) at 30, 60 and 90 % of a bulk job of the `sim` engine.

One bulk job for each of them (--parts names some; `scan` kills the ingest while it validates). It ends with an error
when a line stands in the output twice or not at all, counts do not add up, a line was run again whose output was
there, nothing of the output can be read at half, or a program grows by more than 64 MB.
"""

import pathlib
import shutil
import sys
import tempfile
import time

MODEL, SLOTS, SHARES = "counted", 256, (0.3, 0.6, 0.9)
DISK_BYTES_LINE = 6000  # seen: input, intake, outcome, completed, ledger with its log, output
GROWTH_MB_MAX = 64


def kill_scan(stack, id, count, kills):
    """Kills the ingest while it looks at lines: of these no job may be there yet."""
    for share in SHARES:
        while True:
            ((status, chunks),) = stack.sql(
                "SELECT b.status, (SELECT count(*) FROM headrace.bulk_chunk c WHERE c.bulk_id = b.id) FROM headrace.bulk b "
                "WHERE b.id = :'a1'", id.removeprefix("batch_"))
            if status != "validating":
                return
            if 1000 * int(chunks) >= share * count:
                break
            time.sleep(0.01)
        stack.restart_service("ingest", kill=True)
        kills.append(share)


def one(options, victim, folder, bulk_kill, stack_class):
    journal = folder / "journal"
    journal.unlink(missing_ok=True)
    journal.touch()
    env = {**bulk_kill.LEASE, "HEADRACE_SIM_JOURNAL": journal, "HEADRACE_BULK_LINES_MAX": "20000000",
           "HEADRACE_FILE_MAX": "20GB"}
    with stack_class(env=env) as stack:
        stack.push_sim(MODEL, slots=SLOTS, test_mode=False, service_ms=10)
        growth = bulk_kill.Growth(stack)
        growth.start()
        began = time.monotonic()
        id = bulk_kill.begin(stack, folder / "lines")
        kills, scanned = [(victim, share) for share in SHARES], []
        if victim == "scan":
            kill_scan(stack, id, options.lines, scanned)
            kills = []
        seen, half = bulk_kill.run(stack, MODEL, id, options.lines, kills, journal, folder, 3600)
        seconds = time.monotonic() - began
        growth.over.set()
        growth.join()
        told = bulk_kill.check(stack, id, options.lines, seen, journal, folder, SLOTS)
        grown = growth.growth_mb()
        used = sum(path.stat().st_blocks * 512 for path in stack.data_dir.rglob("*") if path.is_file())
    over = {name: mb for name, mb in grown.items() if mb > GROWTH_MB_MAX}
    print(f"| {victim} | {len(seen) + len(scanned)} | {seconds:.0f} | {told['lines']:,} | {told['again']} | 0 | "
          f"{'–' if half is None else f'{half:,}'} | " + ", ".join(f"{n} {mb:.0f}" for n, mb in sorted(grown.items())) +
          f" | {used / 1e9:.1f} |", flush=True)
    if over:
        sys.exit(f"bench/bulk-kills: grew by more than {GROWTH_MB_MAX} MB: {over}")


def run(options, bench):
    import bulk_kill
    from stack import Stack

    if options.small:
        options.lines = min(options.lines, 100_000)
    needed, free = options.lines * DISK_BYTES_LINE, shutil.disk_usage(tempfile.gettempdir()).free
    print(f"{options.lines:,} lines need about {needed / 1e9:.1f} GB of disk at a time in {tempfile.gettempdir()}; {free / 1e9:.1f} GB are free", flush=True)
    if free < needed:
        sys.exit("bench/bulk-kills: that is not enough")
    wanted = [name for name in options.parts.split(",") if name] or ["scan", *bulk_kill.VICTIMS]
    unknown = set(wanted) - {"scan", *bulk_kill.VICTIMS}
    if unknown:
        sys.exit(f"bench/bulk-kills: --parts may name scan, {', '.join(bulk_kill.VICTIMS)}; not {', '.join(sorted(unknown))}")
    print("\n| killed at 30, 60, 90 % | kills | s | lines in the output, each once, in order | calls more than lines | of lines "
          "whose output was there | readable at 50 % | growth of RSS, MB | disk, GB |\n"
          "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |", flush=True)
    with tempfile.TemporaryDirectory(prefix="headrace-bulk-kills-") as name:
        folder = pathlib.Path(name)
        bulk_kill.write_lines(folder / "lines", MODEL, options.lines, 200)
        for victim in wanted:
            one(options, victim, folder, bulk_kill, Stack)
