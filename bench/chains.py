# SPDX-License-Identifier: Apache-2.0
"""`bench/run chains`: what a durable step of a chain costs, beside BullMQ's flow and Celery's chain.

Row 5 of the goals. Steps do nothing and take 256 B. At low load, one run after the other: the median of runs of 1, 3
and 10 steps; what a step adds is the slope. A fan-out is a map of 100 items and a join. At full load: runs of ten
steps, many at once, with the CPU of the coordinator (the engine host of the chain) and of everybody. At last a map of
10,000 items of 20 ms over 32 slots: how much of the pool was at work from the first item to the last one.

BullMQ and Celery keep their jobs in a Redis with the AOF flushed each second, a step of ours is a row in a Postgres with
fsync and a record in Kafka.
"""

import asyncio
import json
import shutil
import statistics
import subprocess
import time
import urllib.parse

import peers

LENGTHS = (1, 3, 10)
RUNS, WARM, PAUSE_S = 150, 30, 0.02
WIDTH, FANS = 100, 40
PEAK_RUNS, PEAK_STEPS, PEAK_AT_ONCE = 3000, 10, 300
POOL, MAP_ITEMS, MAP_MS = 32, 10000, 20
TEXT = "x" * 256


def linear(length):
    steps = {}
    for n in range(length):
        steps[f"s{n}"] = {"model": "step", "input": {"text": "{{input.text}}"} if n == 0 else
                          {"text": "{{steps.s%d.output.output.text}}" % (n - 1)}}
    return {"steps": steps, "output": "{{steps.s%d.output.output.text}}" % (length - 1)}


def fan(model, items, parallel):
    return {"steps": {"each": {"model": model, "map": "{{input.items}}", "max_parallel": parallel,
                               "input": {"text": "{{item}}"}},
                      "join": {"model": "step", "input": "{{steps.each.output}}"}},
            "output": "{{steps.join.state}}"}


class Caller:
    """One keep-alive connection that runs chains and waits for their outputs."""

    def __init__(self, stack):
        url = urllib.parse.urlsplit(stack.url("gateway"))
        self.address, self.key = (url.hostname, url.port), stack.key

    async def open(self):
        self.reader, self.writer = await asyncio.open_connection(*self.address, limit=1 << 24)
        return self

    async def run(self, chain, given):
        body = json.dumps(given).encode()
        self.writer.write(f"POST /chain/{chain}/production/run_remote HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer "
                          f"{self.key}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.split("content-length: ", 1)[1].split("\r\n", 1)[0])
        answer = await self.reader.readexactly(size)
        assert head.split(" ", 2)[1] == "200", (head, answer)
        return json.loads(answer)


async def in_turn(stack, chain, given, count, wanted):
    """Milliseconds of runs that come one after the other."""
    caller, found = await Caller(stack).open(), []
    for _ in range(count):
        await asyncio.sleep(PAUSE_S)
        began = time.monotonic()
        assert await caller.run(chain, given) == wanted
        found.append((time.monotonic() - began) * 1e3)
    return found[min(WARM, count // 5):]


async def at_once(stack, chain, given, count, connections):
    left = count

    async def work():
        nonlocal left
        caller = await Caller(stack).open()
        while left > 0:
            left -= 1
            assert await caller.run(chain, given) == given["text"]

    began = time.monotonic()
    await asyncio.gather(*(work() for _ in range(connections)))
    return time.monotonic() - began


def quantiles(values):
    values = sorted(values)
    return {"p50": values[len(values) // 2], "p99": values[int(len(values) * 0.99)]}


def measure_ours(stack):
    found = {length: quantiles(asyncio.run(in_turn(stack, f"linear-{length}", {"text": TEXT}, RUNS + WARM, TEXT)))
             for length in LENGTHS}
    found["fan"] = quantiles(asyncio.run(in_turn(stack, "fan", {"items": [TEXT] * WIDTH}, FANS, "succeeded")))
    return found


def measure_peer(peer):
    found = {}
    with peer.worker("chain"):
        for what, *numbers in [(length, "chain", length, RUNS + WARM) for length in LENGTHS] + \
                [("fan", "fan", WIDTH, FANS)]:
            done = subprocess.run(peer.load_command(numbers[0], numbers[1:]), capture_output=True, text=True,
                                  timeout=peers.LOAD_SECONDS_MAX)
            if done.returncode != 0:
                raise SystemExit(f"bench/run: {peer.name} failed: {done.stderr[-2000:]}")
            found[what] = quantiles(json.loads(done.stdout)["ms"][min(WARM, numbers[2] // 5):])
    return found


def added(found, length):
    return (found[length]["p50"] - found[1]["p50"]) / (length - 1)


def measure_peak(stack, bench):
    rows = int(stack.sql("SELECT count(*) FROM headrace.chain_step")[0][0])
    meter = bench.Meter(stack)
    seconds = asyncio.run(at_once(stack, f"linear-{PEAK_STEPS}", {"text": TEXT}, PEAK_RUNS, PEAK_AT_ONCE))
    used, machine = meter.read()
    steps = int(stack.sql("SELECT count(*) FROM headrace.chain_step s JOIN headrace.job j ON j.id = s.job_id "
                          "WHERE j.state = 3")[0][0]) - rows
    if steps != PEAK_RUNS * PEAK_STEPS:
        raise SystemExit(f"bench/run: {steps} steps succeeded, not {PEAK_RUNS * PEAK_STEPS}")
    return {"steps_per_s": steps / seconds, "cpu_us": {name: us / steps for name, us in used.items()},
            "memory_mb": meter.memory_mb().get("host-chain", 0), "machine": machine / steps}


def measure_map(stack):
    """Share of the slots that were at work from the first item's start to the last one's end, by the attempts."""
    reply = stack.http("POST", "/chain/wide/production/async_run_remote", {"model_input": {"items": ["x"] * MAP_ITEMS}})
    run = reply.json["request_id"]
    assert stack.wait_final(run, 300)["status"] == "SUCCEEDED", stack.job(run)
    ((seconds, last_s),) = stack.sql(
        "WITH item AS (SELECT a.started_at, a.ended_at FROM headrace.chain_step s JOIN headrace.attempt a "
        "ON a.job_id = s.job_id WHERE s.run_id = :'a1' AND s.step = 'each') "
        "SELECT extract(epoch FROM max(ended_at) - min(started_at)), extract(epoch FROM max(ended_at) - "
        "(SELECT started_at FROM item ORDER BY started_at DESC OFFSET :a2 LIMIT 1)) FROM item", run, POOL - 1)
    return {"seconds": float(seconds), "full": MAP_ITEMS * MAP_MS / 1000 / POOL / float(seconds),
            "last_s": float(last_s)}


def push(stack):
    chains = {f"linear-{length}": linear(length) for length in LENGTHS}
    chains["fan"] = fan("step", WIDTH, WIDTH)
    chains["wide"] = fan("busy", MAP_ITEMS, 2 * POOL)
    stack.push_sim("step", slots=256, test_mode=False)
    stack.push_sim("busy", slots=POOL, test_mode=False, service_ms=MAP_MS)
    ids = []
    for name, chain in chains.items():
        reply = stack.http("POST", f"/v1/models/{name}/deployments", {"engine": "chain", "settings": chain})
        assert reply.status == 201, reply
        ids.append(reply.json["id"])
    for one in ids:
        stack.wait_active(one)


def print_report(ours, theirs, peaks, maps):
    names = list(theirs)
    print("\n| one run at a time, ms | Headrace | " + " | ".join(f"{name} | ratio" for name in names) + " |")
    print("| --- | ---: | " + " | ".join("---: | ---" for _ in names) + " |")
    rows = [(f"a step adds (of {length}), p50", lambda r, n=length: added(r, n)) for length in LENGTHS[1:]]
    rows += [(f"{length} step{'s' * (length > 1)}, {rank}", lambda r, n=length, q=rank: r[n][q])
             for length in LENGTHS for rank in ("p50", "p99")]
    rows += [(f"fan-out of {WIDTH} and join, {rank}", lambda r, q=rank: r["fan"][q]) for rank in ("p50", "p99")]
    for what, figure in rows:
        mine, cells = [figure(r) for r in ours], []
        for name in names:
            other = [figure(r) for r in theirs[name]]
            cells += [peers.spread(other, 2), peers.ratio(mine, other)]
        print(f"| {what} | {peers.spread(mine, 2)} | " + " | ".join(cells) + " |")
    print(f"\n| {PEAK_RUNS:,} runs of {PEAK_STEPS}, {PEAK_AT_ONCE} at once | median (range) |\n| --- | ---: |")
    print(f"| steps/s | {peers.spread([p['steps_per_s'] for p in peaks], 0)} |")
    for name in sorted(peaks[0]["cpu_us"], key=lambda n: -peaks[0]["cpu_us"][n]):
        print(f"| core-µs a step, {name} | {peers.spread([p['cpu_us'][name] for p in peaks], 1)} |")
    print(f"| core-µs a step, the whole machine, callers too | {peers.spread([p['machine'] for p in peaks], 0)} |")
    print(f"| memory (Pss) of all coordinators, MB | {peers.spread([p['memory_mb'] for p in peaks], 1)} |")
    print(f"\n| map of {MAP_ITEMS:,} × {MAP_MS} ms over {POOL} slots | median (range) |\n| --- | ---: |")
    print(f"| seconds (least possible {MAP_ITEMS * MAP_MS / 1000 / POOL:.2f}) | "
          f"{peers.spread([m['seconds'] for m in maps], 2)} |")
    print(f"| of the pool at work, % | {peers.spread([100 * m['full'] for m in maps], 1)} |")
    print(f"| from the start of the last {POOL} to the end, ms | {peers.spread([1e3 * m['last_s'] for m in maps], 0)} |")


def run(options, bench):
    from stack import Stack

    wanted = [name for name in (options.parts.split(",") if options.parts else ["BullMQ", "Celery"]) if name != "none"]
    if wanted:
        subprocess.run([bench.ROOT / "bench/peers/fetch"], check=True)
        for script in (bench.ROOT / "bench/peers").glob("*.mjs"):
            shutil.copy(script, peers.DEPS / "peers" / script.name)
    ours, peaks, maps, theirs = [], [], [], {name: [] for name in wanted}
    with Stack() as stack, Stack(only="redis,postgres") as store:
        push(stack)
        rivals = [peers.Peer(name, store, bench) for name in wanted]
        asyncio.run(at_once(stack, "linear-10", {"text": TEXT}, PEAK_RUNS // 3, PEAK_AT_ONCE))
        for number in range(options.rounds):
            ours.append(measure_ours(stack))
            for rival in rivals:
                theirs[rival.name].append(measure_peer(rival))
            peaks.append(measure_peak(stack, bench))
            maps.append(measure_map(stack))
            print(f"round {number + 1} of {options.rounds}: {added(ours[-1], 10):.2f} ms a step, "
                  f"{peaks[-1]['steps_per_s']:.0f} steps/s, {peaks[-1]['cpu_us'].get('host-chain', 0):.1f} core-µs",
                  flush=True)
    if options.json:
        print(json.dumps({"ours": ours, "theirs": theirs, "peaks": peaks, "maps": maps}))
    else:
        print_report(ours, theirs, peaks, maps)
