# SPDX-License-Identifier: Apache-2.0
"""`bench/run serve`: the gateway as an HTTP server beside nginx and FastAPI, Python code in a worker beside FastAPI,
a thousand streams beside Node, and how soon a worker that is started has done its first job.

All servers on this machine, load by wrk, rounds in turn. What a peer needs (wrk, nginx, node, the environment
venv-compare for FastAPI) is left out, and named, where it is not installed. --parts: of gateway,python,streams,cold.
"""

import asyncio
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.parse

import sync

SECONDS = 4
CONNECTIONS = (32, 256)
NGINX_PORTS = 58081, 58082
FASTAPI_PORT, NODE_PORT = 58084, 58085
SPAWNS = 10
DEPS = pathlib.Path(os.environ.get("HEADRACE_DEPS", ".headrace/deps")).absolute()

NGINX = """worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log crit; daemon off;
events {{ worker_connections 8192; }}
http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;
 fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
 server {{ listen 127.0.0.1:{0}; location / {{ return 200 '{{"echo":true}}'; }} }}
 upstream e {{ server 127.0.0.1:{0}; keepalive 64; }}
 server {{ listen 127.0.0.1:{1}; location / {{ proxy_pass http://e; proxy_http_version 1.1;
  proxy_set_header Connection ""; }} }} }}
"""

FASTAPI = """from fastapi import FastAPI, Request
app = FastAPI()
@app.post('/')
async def echo(request: Request):
    return await request.json()
"""

NODE = """require('http').createServer((q, s) => {
  q.resume(); s.writeHead(200, {'content-type': 'application/octet-stream'});
  let n = 0; const tick = () => { s.write(`${n}:xxxxxxxxxxxxx\\n`.slice(-16)); if (++n === PIECES) s.end();
    else setTimeout(tick, GAP); }; tick();
}).listen(PORT, '127.0.0.1');
"""

ECHO = "class Model:\n    async def predict(self, x):\n        return x\n"


class Peer:
    """Another server, with what it uses of the processors."""

    def __init__(self, bench, command, port):
        self.bench = bench
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(500):
            try:
                asyncio.run(connect(port))
                return
            except OSError:
                time.sleep(0.02)
        sys.exit(f"bench/run: {command[0]} does not listen on {port}")

    def cpu_us(self):
        from stack import descendants

        return sum(map(self.bench.cpu_us, [self.process.pid, *descendants(self.process.pid)]))

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


async def connect(port):
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()


def wrk(folder, url, connections, method="GET", body="", headers=None):
    """Requests a second; an answer that is no 2xx ends the run."""
    script = folder / "wrk.lua"
    lines = [f"wrk.method='{method}'", f"wrk.body='{body}'"]
    lines += [f"wrk.headers['{name}']='{value}'" for name, value in (headers or {}).items()]
    script.write_text("\n".join(lines + [
        "function done(s, l, r) io.write(string.format('JSON {\"n\":%d,\"us\":%d,\"bad\":%d,\"p99\":%f}\\n', s.requests, "
        "s.duration, s.errors.status + s.errors.read + s.errors.timeout, l:percentile(99) / 1000)) end"]))
    done = subprocess.run(["wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", "-s", str(script), url],
                          capture_output=True, text=True, check=True)
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("JSON "))[5:])
    if found["bad"]:
        sys.exit(f"bench/run: {url}: {found['bad']} of {found['n']} answers are bad\n{done.stdout}")
    return found


def row(name, connections, rates, cpus):
    print(f"| {name} | {connections} | {statistics.median(rates):,.0f} ({min(rates):,.0f} … {max(rates):,.0f}) | "
          f"{statistics.median(cpus):.1f} |")


# --- the gateway ----------------------------------------------------------------------------------------


def gateway(options, bench, stack, folder):
    auth = {"Authorization": f"Bearer {stack.key}", "Content-Type": "application/json"}
    url, job = stack.url("gateway"), "01a21692-8550-7c01-8003-5f858d1b0a2d"
    peers, subjects = [], [
        ("gateway: authenticated, routed, counted, no job", "gateway", dict(
            url=f"{url}/async_request/{job}/stream", method="HEAD", headers=auth)),
        ("gateway: sync call through the ledger", None, dict(
            url=f"{url}/model/{sync.MODEL}/production/predict", method="POST", body="{}", headers=auth))]
    if shutil.which("nginx"):
        (folder / "nginx.conf").write_text(NGINX.format(*NGINX_PORTS, dir=folder))
        peers.append(Peer(bench, ["nginx", "-c", str(folder / "nginx.conf")], NGINX_PORTS[1]))
        subjects.append(("nginx proxy to nginx", peers[-1], dict(url=f"http://127.0.0.1:{NGINX_PORTS[1]}/")))
    if fastapi := start_fastapi(bench, folder):
        peers.append(fastapi)
        subjects.append(("FastAPI echo, one uvicorn", fastapi, dict(
            url=f"http://127.0.0.1:{FASTAPI_PORT}/", method="POST", body="{}", headers=auth)))
    found = {}
    for _ in range(options.rounds):
        for name, who, what in subjects:
            for connections in CONNECTIONS:
                meter, before = bench.Meter(stack), who.cpu_us() if isinstance(who, Peer) else 0
                one = wrk(folder, connections=connections, **what)
                used, _ = meter.read()
                cpu = who.cpu_us() - before if isinstance(who, Peer) else used[who] if who else sum(used.values())
                found.setdefault((name, connections), []).append((one["n"] / one["us"] * 1e6, cpu / one["n"]))
    for peer in peers:
        peer.close()
    print("\n| requests on keep-alive connections | connections | requests/s, median (range) | core-µs a request |")
    print("| --- | ---: | ---: | ---: |")
    for (name, connections), pairs in found.items():
        row(name, connections, [rate for rate, _ in pairs], [cpu for _, cpu in pairs])


def start_fastapi(bench, folder):
    python = DEPS / "venv-compare/bin/python"
    if not python.exists():
        print("FastAPI is left out: scripts/python/venv compare installs it", file=sys.stderr)
        return None
    (folder / "app.py").write_text(FASTAPI)
    return Peer(bench, [str(python), "-m", "uvicorn", "app:app", "--app-dir", str(folder), "--port", str(FASTAPI_PORT),
                        "--log-level", "critical"], FASTAPI_PORT)


# --- Python in a worker -----------------------------------------------------------------------------------


def push_echo(stack, folder, name, concurrency):
    model = folder / name
    (model / "model").mkdir(parents=True)
    (model / "config.yaml").write_text(f"model_name: {name}\nruntime:\n  predict_concurrency: {concurrency}\n")
    (model / "model/model.py").write_text(ECHO)
    stack.push(model, name)


def python_worker(options, bench, stack, folder):
    from stack import command_line, descendants

    name = bench.MODEL = "pyecho"
    push_echo(stack, folder, name, 256)
    bench.load(stack, options, 5000, options.connections, 0)
    worker = next(pid for pid in stack.pids("worker") if f"--model={name}" in command_line(pid))
    rates, cpus = [], []
    for _ in range(options.rounds):
        before = sum(map(bench.cpu_us, descendants(worker)))
        result = bench.load(stack, options, 20000, options.connections, 0)
        rates.append(result["jobs_per_s"])
        cpus.append((sum(map(bench.cpu_us, descendants(worker))) - before) / 20000)
    print("\n| Python echo as async jobs, end to end | connections | jobs/s, median (range) | core-µs a job of Python |")
    print("| --- | ---: | ---: | ---: |")
    row("`async def predict`, 256 slots, one process", options.connections, rates, cpus)


# --- streams ------------------------------------------------------------------------------------------------


async def node_stream(found):
    reader, writer = await asyncio.open_connection("127.0.0.1", NODE_PORT)
    sent, first, late, n = time.monotonic(), None, [], 0
    writer.write(b"POST / HTTP/1.1\r\nHost: bench\r\nContent-Length: 2\r\n\r\n{}")
    await reader.readuntil(b"\r\n\r\n")
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
        now = time.monotonic()
        first = first or now
        late.append((now - first) * 1000 - n * sync.PIECE_GAP_MS)
        n += 1
    writer.close()
    found.append(((first - sent) * 1000, max(late), n))


async def many(one, *args):
    found, tasks = [], []
    for _ in range(sync.STREAMS):
        tasks.append(asyncio.create_task(one(*args, found)))
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    return found


def streams(bench, stack, folder):
    pieces = sync.STREAMS * sync.PIECES
    meter = bench.Meter(stack)
    ours = asyncio.run(many(sync.one_stream, stack))
    used, _ = meter.read()
    rows = [("gateway", ours, used["gateway"]), ("every program of ours and the stores", ours, sum(used.values()))]
    if shutil.which("node"):
        text = NODE.replace("PIECES", str(sync.PIECES)).replace("GAP", str(sync.PIECE_GAP_MS)).replace(
            "PORT", str(NODE_PORT))
        (folder / "stream.cjs").write_text(text)
        node = Peer(bench, ["node", str(folder / "stream.cjs")], NODE_PORT)
        before = node.cpu_us()
        theirs = asyncio.run(many(node_stream))
        rows.append(("Node's http alone, no job behind it", theirs, node.cpu_us() - before))
        node.close()
    print(f"\n| {sync.STREAMS:,} streams of {sync.PIECES} pieces, {sync.PIECE_GAP_MS} ms apart | core-µs a piece | "
          "first byte p50, ms | p99 | latest piece behind its rhythm p50, ms | p99 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, found, cpu in rows:
        figures = [sync.percentile([values[i] for values in found], share) for i in (0, 1) for share in (0.5, 0.99)]
        print(f"| {name} | {cpu / pieces:.1f} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |")


# --- cold starts ---------------------------------------------------------------------------------------------


def scale(stack, model, count):
    """When the row was written, in seconds by the clock of Postgres, which is this machine's."""
    ((at,),) = stack.sql("""UPDATE headrace.deployment d SET replicas_min = 0, replicas_max = 1, replicas_wanted = :a2
                            FROM headrace.model m WHERE m.id = d.model_id AND m.name = :'a1'
                            RETURNING extract(epoch FROM clock_timestamp())""", model, count)
    return float(at)


def spawn(stack, model):
    """ms from the wish for a replica to the end of the job that waits for it, as the ledger has both."""
    from stack import command_line, wait_until

    scale(stack, model, 0)
    wait_until("no worker", lambda: not [pid for pid in stack.pids("worker")
                                         if f"--model={model}" in command_line(pid)], 60, 0.05)
    job = stack.submit(model, {})
    wait_until("the job to be in the ledger", lambda: stack.sql(
        "SELECT 1 FROM headrace.job WHERE id = :'a1'", job), 30, 0.05)
    wished = scale(stack, model, 1)
    time.sleep(1)  # who asks for it meanwhile wants a processor, too
    stack.wait_final(job)
    ((ended,),) = stack.sql("SELECT extract(epoch FROM state_at) FROM headrace.job WHERE id = :'a1'", job)
    return (float(ended) - wished) * 1000


def cold(stack, folder):
    push_echo(stack, folder, "cold-py", 4)
    stack.push_sim("cold-sim", slots=4)
    print(f"\n| {SPAWNS} cold starts: from the wish for a replica to its first job's commit | median, ms | range |")
    print("| --- | ---: | ---: |")
    for name, model in (("native (`sim`)", "cold-sim"), ("Python, environment made before", "cold-py")):
        found = [spawn(stack, model) for _ in range(SPAWNS)]
        print(f"| {name} | {statistics.median(found):.0f} | {min(found):.0f} … {max(found):.0f} |")


def run(options, bench):
    from stack import Stack

    parts = options.parts.split(",") if options.parts else ["gateway", "python", "streams", "cold"]
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(DEPS / "wheels-truss"), "PIP_NO_COMPILE": "1"}
    if "gateway" in parts and not shutil.which("wrk"):
        sys.exit("bench/run: serve needs wrk for its part 'gateway': apt-get install wrk nginx-light")
    with Stack(env=pip) as stack:
        folder = stack.data_dir / "peers"
        folder.mkdir()
        stack.push_sim(sync.MODEL, slots=sync.STREAMS + 100)
        stack.push_sim(bench.MODEL, slots=options.slots, test_mode=False)
        bench.load(stack, options, options.warm // 4, options.connections, 0)  # the JVM compiles what is hot
        if "gateway" in parts:
            gateway(options, bench, stack, folder)
        if "python" in parts:
            python_worker(options, bench, stack, folder)
        if "streams" in parts:
            streams(bench, stack, folder)
        if "cold" in parts:
            cold(stack, folder)
