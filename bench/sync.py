# SPDX-License-Identifier: Apache-2.0
"""`bench/run sync`: what a sync call costs over the engine's own time, how soon the first piece is
there, and what a thousand streams at once cost one gateway.

The `sim` engine with a known service time, one gateway, everything on loopback. Overhead is the time from
the first byte of the request to the last of the answer, less the service time that the engine reports.
"""

import asyncio
import json
import sys
import time
import urllib.parse

from fairness import percentile

SERVICE_MS = 10
RATE = 20  # calls a second: low load
STREAMS = 1000
PIECES, PIECE_GAP_MS = 20, 500
MODEL = "sync"


class Caller:
    """One keep-alive connection."""

    def __init__(self, stack):
        url = urllib.parse.urlsplit(stack.url("gateway"))
        self.address, self.key = (url.hostname, url.port), stack.key

    async def open(self):
        self.reader, self.writer = await asyncio.open_connection(*self.address, limit=1 << 20)
        return self

    async def send(self, model_input):
        """The head of the answer: status and headers."""
        body = json.dumps(model_input).encode()
        self.writer.write(f"POST /model/{MODEL}/production/predict HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer "
                          f"{self.key}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status = int(head.split(" ", 2)[1])
        assert status == 200, head
        return {name.lower(): value for name, _, value in
                (line.partition(": ") for line in head.split("\r\n")[1:])}

    async def body(self, headers):
        return await self.reader.readexactly(int(headers["content-length"]))

    async def chunks(self):
        """Pieces of a chunked answer as they arrive."""
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()

    def close(self):
        self.writer.close()


async def low_load(stack, seconds, model_input):
    """Overheads in ms of calls at fixed times over one connection."""
    caller, found, begun = await Caller(stack).open(), [], time.monotonic()
    for n in range(int(RATE * seconds)):
        await asyncio.sleep(max(0, begun + n / RATE - time.monotonic()))
        sent = time.monotonic()
        answer = json.loads(await caller.body(await caller.send(model_input)))
        found.append((time.monotonic() - sent) * 1000 - answer["sim"]["service_us"] / 1000)
    caller.close()
    return found


async def first_bytes(stack, count):
    """From the request to the first piece, which the engine makes as soon as it has the request."""
    caller, found = await Caller(stack).open(), []
    for _ in range(count):
        sent, first = time.monotonic(), None
        headers = await caller.send({"sim": {"pieces": 2, "piece_gap_ms": 100}})
        assert headers.get("transfer-encoding") == "chunked", headers
        async for _ in caller.chunks():
            first = first or (time.monotonic() - sent) * 1000
        found.append(first)
    caller.close()
    return found


async def one_stream(stack, found):
    caller = await Caller(stack).open()
    sent, first, late, size, n = time.monotonic(), None, [], 0, 0
    await caller.send({"sim": {"pieces": PIECES, "piece_gap_ms": PIECE_GAP_MS}})
    async for chunk in caller.chunks():
        now = time.monotonic()
        first = first or now
        late.append((now - first) * 1000 - n * PIECE_GAP_MS)  # against the rhythm of the engine
        size += len(chunk)
        n = size // 16
    caller.close()
    found.append(((first - sent) * 1000, max(late), size))


async def many_streams(stack):
    found = []
    tasks = []
    for _ in range(STREAMS):
        tasks.append(asyncio.create_task(one_stream(stack, found)))
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    return found


def line(name, values):
    print(f"| {name} | {percentile(values, 0.5):.2f} | {percentile(values, 0.99):.2f} | {max(values):.2f} |")


def run(options, bench):
    from stack import Stack

    with Stack() as stack:
        stack.push_sim(MODEL, slots=STREAMS + 100, service_ms=SERVICE_MS)
        stack.push_sim(bench.MODEL, slots=options.slots, test_mode=False)
        bench.load(stack, options, options.warm // 2, options.connections, 0)  # the JVM compiles what is hot
        asyncio.run(low_load(stack, 3, {}))
        overheads, bare = [], []
        for _ in range(options.rounds):
            overheads += asyncio.run(low_load(stack, options.latency_seconds, {}))
            bare += asyncio.run(low_load(stack, options.latency_seconds, {"sim": {"sleep_ms": 0}}))
        first = asyncio.run(first_bytes(stack, 50 * options.rounds))
        meter, begun = bench.Meter(stack), time.monotonic()
        found = asyncio.run(many_streams(stack))
        used, machine = meter.read()
        took, memory = time.monotonic() - begun, meter.memory_mb()
        whole = sum(size == PIECES * 16 for _, _, size in found)
        if whole != STREAMS:
            sys.exit(f"bench/run: {whole} of {STREAMS} streams are whole\n{stack.tell(5)}")
        states = dict(stack.sql("SELECT state, count(*) FROM headrace.job WHERE sync GROUP BY state"))
        print(f"\n| ms | p50 | p99 | max |\n| --- | ---: | ---: | ---: |")
        line(f"sync call over the engine's time ({SERVICE_MS} ms), {RATE} a second", overheads)
        line(f"sync call of no service time, {RATE} a second", bare)
        line("first byte of a stream", first)
        line(f"first byte, {STREAMS:,} streams at once", [ms for ms, _, _ in found])
        line(f"a stream's latest piece behind its rhythm, {STREAMS:,} at once", [ms for _, ms, _ in found])
        pieces = STREAMS * PIECES
        print(f"\n{STREAMS:,} streams of {PIECES} pieces, {PIECE_GAP_MS} ms apart, in {took:.1f} s; all whole; sync jobs by state: {states}")
        print("\n| program | core-µs a piece | memory (Pss), MB |\n| --- | ---: | ---: |")
        for name in sorted(used, key=lambda name: -used[name]):
            print(f"| {name} | {used[name] / pieces:.1f} | {memory.get(name, 0):.1f} |")
        print(f"\nCPU of the machine: {machine / took / 1e6:.2f} cores, "
              f"of these programs {sum(used.values()) / took / 1e6:.2f}")
