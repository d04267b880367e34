# SPDX-License-Identifier: Apache-2.0
"""`bench/run embed`: lines of real text through MiniLM by OpenAI's own client for Python, by /v1/batches.

The lines are what this machine has of English text: licenses, manual pages, the documentation in Python's own
library; each is there once. The client runs as a user's script in an environment of its own (scripts/python/venv llm)
and knows nothing of us but its base_url. It ends with an error unless each line has one vector, in order, of length 1,
and those of a sample are what the same text gets by itself.

Then, and before, the engine alone: `encoder_bench` (built beside the binary) gets the same requests, in the same order, as many
at a time as a worker holds, with as many threads and no platform around it, while the platform idles. What is told is the
platform's share of that rate, from the upload's end to the last line, with what strangers used of the machine in each run; and
the same in core-seconds, which strangers change little: what the engine alone needs of what everything needed is the share that
can be had where all share the cores, and of what the engine's host needed the share where the engine has its cores to itself.
Kafka's JVM is new: what its compilers took is told besides, for that falls as it runs on.
"""

import gzip
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile

MODEL, DIMENSIONS, SAMPLE = "minilm", 384, 25
SHORTEST, LONGEST = 40, 400
STRANGERS_MOST = 10
ENGINE, HELD = "host-c", 64  # the program that runs the engine, and the requests that it holds
DEPS = pathlib.Path(os.environ.get("HEADRACE_DEPS", pathlib.Path(__file__).resolve().parents[1] / ".headrace/deps"))

CLIENT = """
import json, sys, time, openai
url, key, path, output = sys.argv[1:5]
client = openai.OpenAI(base_url=url, api_key=key)
begun = time.monotonic()
file = client.files.create(file=open(path, "rb"), purpose="batch")
uploaded = time.monotonic() - begun
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
validated = None
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(0.2)
    batch = client.batches.retrieve(batch.id)
    if validated is None and batch.status != "validating":
        validated = time.monotonic() - begun
seconds = time.monotonic() - begun
if batch.status == "completed":
    client.files.content(batch.output_file_id).write_to_file(output)
print(json.dumps({"status": batch.status, "counts": batch.request_counts.model_dump(), "uploaded": uploaded,
                  "validated": validated, "seconds": seconds, "read": time.monotonic() - begun - seconds,
                  "client": openai.__version__, "errors": str(batch.errors)}))
"""


def texts(count):
    """Sentences of what is installed here, each once."""
    found, seen = [], set()
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    sources = [*sorted(pathlib.Path("/usr/share/common-licenses").glob("*")), *sorted(library.rglob("*.py")),
               *sorted(pathlib.Path("/usr/share/man").glob("man*/*.gz")), *sorted(pathlib.Path("/usr/share/doc").glob("*/copyright"))]
    for source in sources:
        try:
            raw = gzip.decompress(source.read_bytes()) if source.suffix == ".gz" else source.read_bytes()
        except OSError:
            continue
        content = raw.decode("utf-8", "replace")
        parts = re.findall(r'"""(.+?)"""', content, re.S) if source.suffix == ".py" else [content]
        for sentence in (s for part in parts for s in re.split(r"(?<=[.!?])\s+|\n\s*\n", part)):
            line = " ".join(re.sub(r"^\.\w+.*$|\\f.|\\", " ", sentence, flags=re.M).split())
            if SHORTEST <= len(line) <= LONGEST and "\ufffd" not in line and line not in seen:
                seen.add(line)
                found.append(line)
                if len(found) == count:
                    return found
    sys.exit(f"bench/embed: this machine has {len(found):,} lines of text, {count:,} are wanted")


def check(stack, told, output, lines):
    total = told["counts"]
    if told["status"] != "completed" or total != {"completed": len(lines), "failed": 0, "total": len(lines)}:
        sys.exit(f"bench/embed: {told}")
    step, compared = max(1, len(lines) // SAMPLE), 0
    with open(output, encoding="utf-8") as answers:
        count = 0
        for answer in map(json.loads, answers):
            vector = answer["response"]["body"]["data"][0]["embedding"]
            if answer["custom_id"] != f"line-{count}" or answer["response"]["status_code"] != 200:
                sys.exit(f"bench/embed: line {count} of the output is {str(answer)[:300]}")
            if len(vector) != DIMENSIONS or abs(sum(v * v for v in vector) - 1) > 1e-3:
                sys.exit(f"bench/embed: line {count} has no vector of length 1 in {DIMENSIONS} dimensions")
            if count % step == 0:
                alone = stack.http("POST", f"/model/{MODEL}/production/sync/v1/embeddings",
                                   {"model": MODEL, "input": lines[count]}).json["data"][0]["embedding"]
                if max(abs(one - other) for one, other in zip(alone, vector)) > 1e-4:
                    sys.exit(f"bench/embed: line {count} has another vector by itself")
                compared += 1
            count += 1
    if count != len(lines):
        sys.exit(f"bench/embed: {count} lines in the output of {len(lines)}")
    return compared


def compilers_us(meter):
    """CPU time of the threads with which Kafka's JVM compiles itself."""
    total = 0
    for task in (t for pid in meter.programs["kafka"] for t in pathlib.Path(f"/proc/{pid}/task").glob("*/stat")):
        name, fields = task.read_text().split("(", 1)[1].rsplit(")", 1)
        total += sum(map(int, fields.split()[11:13])) * 1_000_000 // os.sysconf("SC_CLK_TCK") if "Compiler" in name else 0
    return total


def one_round(stack, bench, folder, lines):
    path, output = folder / "lines.jsonl", folder / "output.jsonl"
    with open(path, "w", encoding="utf-8") as out:
        for n, line in enumerate(lines):
            out.write(json.dumps({"custom_id": f"line-{n}", "method": "POST", "url": "/v1/embeddings",
                                  "body": {"model": MODEL, "input": line}}) + "\n")
    meter = bench.Meter(stack)
    compilers = compilers_us(meter)
    done = subprocess.run([DEPS / "venv-llm/bin/python", "-c", CLIENT, stack.url("gateway") + "/v1", stack.key, path, output],
                          capture_output=True, text=True)
    used, machine = meter.read()
    compilers = compilers_us(meter) - compilers
    if done.returncode != 0:
        sys.exit(f"bench/embed: the client: {done.stderr}\n{stack.tell(5)}")
    told = json.loads(done.stdout)
    told["compared"] = check(stack, told, output, lines)
    told["cpu_us"] = {name: value / len(lines) for name, value in used.items()}
    told["compilers_us"] = compilers / len(lines)
    told["strangers_percent"] = 100 * max(0, machine - sum(used.values())) / max(1, machine)
    return told


def alone(options, bench, stack, folder, lines):
    """The engine by itself on these requests: lines/s, core-µs a line, tokens a line, and strangers' part of the CPU."""
    program = pathlib.Path(options.binary).parent / "encoder_bench"
    if not program.exists():
        sys.exit(f"bench/embed: {program} is not there: build encoder_bench")
    path = folder / "requests.jsonl"
    path.write_text("".join(json.dumps({"model": MODEL, "input": line}) + "\n" for line in lines), encoding="utf-8")
    meter = bench.Meter(stack)
    done = subprocess.run([program, DEPS / "models/all-MiniLM-L6-v2"], capture_output=True, text=True,
                          input=f"jobs {HELD} {min(64, os.cpu_count())} f32 {path}\n")
    used, machine = meter.read()
    if done.returncode != 0:
        sys.exit(f"bench/embed: encoder_bench: {done.stderr}")
    count, wall, cpu, tokens = map(float, done.stdout.split())
    if count != len(lines):
        sys.exit(f"bench/embed: encoder_bench answered {count:.0f} of {len(lines)} lines")
    strangers = 100 * max(0, machine - sum(used.values()) - 1e6 * cpu) / max(1, machine)
    return {"rate": count / wall, "cpu_us": 1e6 * cpu / count, "tokens": tokens / count, "strangers_percent": strangers}


def compare(told, before, after, count):
    """The platform's rate beside the engine's, which is the mean of both runs around it."""
    told["alone"] = [before, after]
    own_us = (before["cpu_us"] + after["cpu_us"]) / 2
    told["rate"] = count / (told["seconds"] - told["uploaded"])
    told["share"] = told["rate"] / statistics.mean((before["rate"], after["rate"]))
    told["share_of_cores"] = own_us / sum(told["cpu_us"].values())
    told["share_of_cores_compiled"] = own_us / (sum(told["cpu_us"].values()) - told["compilers_us"])
    told["share_of_host"] = own_us / told["cpu_us"][ENGINE]


def print_share(told):
    print(f"\n| lines of {told['alone'][0]['tokens']:.0f} tokens | lines/s | core-µs a line | CPU used by strangers, % |\n| --- | ---: | ---: | ---: |")
    for name, own in zip(("before", "after"), told["alone"]):
        print(f"| the engine alone, {name} | {own['rate']:.0f} | {own['cpu_us']:.0f} | {own['strangers_percent']:.0f} |")
    print(f"| through the platform, from the upload's end | {told['rate']:.0f} | {sum(told['cpu_us'].values()):.0f} | {told['strangers_percent']:.0f} |")
    print(f"\n**The platform's share of the engine's own rate: {100 * told['share']:.0f} %** by the clock; in core-seconds {100 * told['share_of_cores']:.0f} % with "
          f"broker and stores on the same cores ({100 * told['share_of_cores_compiled']:.0f} % without the {told['compilers_us']:.0f} core-µs a line "
          f"in which Kafka's JVM compiled itself), {100 * told['share_of_host']:.0f} % of the engine's host alone")
    if max(told["strangers_percent"], *(own["strangers_percent"] for own in told["alone"])) > STRANGERS_MOST:
        print(f"Strangers used more than {STRANGERS_MOST} % of the CPU in one of the runs: the share by the clock is no figure")


def run(options, bench):
    from stack import Stack

    lines = texts(min(options.lines, 10_000))
    with tempfile.TemporaryDirectory(prefix="headrace-embed-") as name, Stack() as stack:
        folder = pathlib.Path(name)
        stack.push(DEPS / "models/all-MiniLM-L6-v2", MODEL)
        one_round(stack, bench, folder, lines[:200])  # kernels are compiled
        before = alone(options, bench, stack, folder, lines)
        told = one_round(stack, bench, folder, lines)
        compare(told, before, alone(options, bench, stack, folder, lines), len(lines))
    if options.json:
        print(json.dumps(told))
        return
    print(f"\n{len(lines):,} lines of {sum(map(len, lines)) / len(lines):.0f} characters (of {len(set(lines)):,} texts), openai {told['client']}; "
          f"CPU used by strangers {told['strangers_percent']:.0f} %\n\n| | s |\n| --- | ---: |")
    for name, key in (("uploaded", "uploaded"), ("validated", "validated"), ("completed", "seconds"), ("output read", "read")):
        print(f"| {name} | {told[key]:.1f} |")
    print(f"\n{len(lines) / told['seconds']:.0f} lines/s; each once, in order, each vector of length 1; {told['compared']} compared with what "
          "the text gets by itself\n\n| program | core-µs a line |\n| --- | ---: |")
    for program, value in sorted(told["cpu_us"].items(), key=lambda item: -item[1]):
        print(f"| {program} | {value:.0f} |")
    print_share(told)
