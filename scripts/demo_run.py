# SPDX-License-Identifier: Apache-2.0
"""The part of ./demo that talks to the running platform, as a user's own program would.

    demo_run.py BINARY MODEL_DIRECTORY RUN_DIRECTORY

Pushes the model, sends real sentences as async predicts with a webhook, verifies all signatures
of every delivery, and prints which sentences the vectors call similar and what SQL says of one
job. RUN_DIRECTORY/result is the line `demo: ok …`, or what failed; then the exit code is 1.

What is timed: a few clients (IN_FLIGHT) each send one sentence and wait for its webhook before they
send the next, so that the times are those of the platform and not of a queue that the demo made.
p50_ms and p99_ms are from the call of async_predict to the arrival of the webhook, this process's
share included. The time to the result alone, by the ledger's clock, is printed beside it.
"""

import concurrent.futures
import json
import math
import pathlib
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
sys.dont_write_bytecode = True

from webhook_receiver import Receiver  # noqa: E402

MODEL = "minilm"
IN_FLIGHT = 2
DELIVERY_SECONDS = 60
PAIRS_SHOWN = 6

SENTENCES = [
    "The river carries meltwater down to the mill.",
    "Water from melting snow flows along the stream to the mill.",
    "A message queue keeps work until somebody can do it.",
    "Jobs wait in a log and workers pick them up later.",
    "She kneaded the dough and left it to rise overnight.",
    "Bread tastes better when the dough ferments slowly.",
    "The goalkeeper saved a penalty in the last minute.",
    "Their striker missed from the spot just before the whistle.",
    "Interest rates rose for the third time this year.",
    "The central bank made borrowing more expensive again.",
    "A cat slept on the warm hood of the car.",
    "The kitten curled up on the engine cover and dozed.",
    "Photosynthesis turns sunlight into sugar.",
    "Plants make their food from light, water and air.",
    "The violinist tuned her instrument before the concert.",
    "Backstage, the orchestra's musicians were warming up.",
    "Engineers found a crack in the bridge's main cable.",
    "The suspension bridge was closed after damage was discovered.",
    "Vaccines teach the immune system to recognise a virus.",
    "An injection can prepare the body to fight an infection.",
    "The train to Zürich leaves from platform seven.",
    "Der Zug fährt heute von Gleis sieben ab.",
    "Our telescope photographed a galaxy ten billion light years away.",
    "Astronomers captured an image of a very distant galaxy.",
]


def say(text):
    print(f"== {text}", flush=True)


class Failure(Exception):
    """What the last line says."""


class Client:
    def __init__(self, file):
        self.settings = json.loads(pathlib.Path(file).read_text())

    def call(self, method, path, body=None):
        request = urllib.request.Request(self.settings["url"] + path, method=method)
        request.add_header("Authorization", "Bearer " + self.settings["api_key"])
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise Failure(f"{method} {path} answered {error.code}: {error.read().decode()[:500]}")


def push(binary, model_directory, client_file):
    say(f"pushing {pathlib.Path(model_directory).name}: a Hugging Face directory, no code")
    started = time.monotonic()
    done = subprocess.run([binary, "push", model_directory, "--name", MODEL, "--client", client_file])
    if done.returncode != 0:
        raise Failure("headrace push failed")
    say(f"the model is ready after {time.monotonic() - started:.1f} s")


def await_webhook(receiver, request_id):
    """The first delivery of the job; copies of it are allowed."""
    end = time.monotonic() + DELIVERY_SECONDS
    with receiver.changed:
        while True:
            for delivery in receiver.deliveries:
                if delivery["request_id"] == request_id:
                    return delivery
            if not receiver.changed.wait(timeout=end - time.monotonic()):
                raise Failure(f"the webhook of {request_id} did not come in {DELIVERY_SECONDS} s")


def send_all(client, receiver):
    """Returns {request id: (sentence's index, its delivery, ms from the call to that)}."""

    def send(index):
        started = time.time()
        reply = client.call("POST", f"/model/{MODEL}/production/async_predict", {
            "model_input": {"input": SENTENCES[index]},
            "webhook_endpoint": receiver.url,
        })
        delivery = await_webhook(receiver, reply["request_id"])
        return reply["request_id"], (index, delivery, (delivery["at"] - started) * 1000)

    say(f"sending {len(SENTENCES)} sentences as async predicts, {IN_FLIGHT} at a time, each with a webhook "
        f"to {receiver.url}")
    with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT) as pool:
        return dict(pool.map(send, range(len(SENTENCES))))


def result_ms(binary, client_file, jobs):
    """From Kafka's append time of each job to the commit of its result, both in the ledger."""
    ids = ", ".join(f"'{request_id}'" for request_id in jobs)
    query = f"SELECT extract(epoch FROM finished_at - accepted_at) * 1000 AS ms FROM jobs WHERE id IN ({ids})"
    done = subprocess.run([binary, "sql", "--client", client_file, "--json", query], capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"headrace sql failed: {done.stderr}")
    return [float(row["ms"]) for row in json.loads(done.stdout)]


def vector_of(delivery):
    body = delivery["body"]
    if body.get("errors"):
        raise Failure(f"job {delivery['request_id']} failed: {body['errors']}")
    return body["data"]["data"][0]["embedding"]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def show_similar(vectors):
    pairs = sorted(((cosine(vectors[i], vectors[j]), i, j)
                    for i in range(len(vectors)) for j in range(i)), reverse=True)
    say(f"the most similar of {len(pairs)} pairs, and the least, by cosine of {len(vectors[0])} numbers:")
    for similarity, i, j in pairs[:PAIRS_SHOWN] + pairs[-1:]:
        print(f"   {similarity:6.3f}  {SENTENCES[j]}\n           {SENTENCES[i]}")
    related = sum(cosine(vectors[i], vectors[i + 1]) for i in range(0, len(vectors), 2))
    every = sum(similarity for similarity, _, _ in pairs) / len(pairs)
    if related / (len(vectors) / 2) < every + 0.2:
        raise Failure("sentences that say the same are not nearer than others: the vectors mean nothing")


def show_timeline(binary, client_file, request_id):
    say(f"what SQL says of job {request_id}:")
    lines = (ROOT / "scripts/demo_timeline.sql").read_text().splitlines()
    query = "\n".join(line for line in lines if not line.startswith("--")).replace(":job", f"'{request_id}'")
    done = subprocess.run([binary, "sql", "--client", client_file, query])
    if done.returncode != 0:
        raise Failure("headrace sql failed")


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def run(binary, model_directory, client_file):
    """Returns the closing line."""
    client = Client(client_file)
    key = client.call("POST", "/v1/webhook_secrets/rotate", {"type": "ed25519"})["public_key"]
    say(f"webhooks are signed by a shared secret and a key pair; the public key is {key}")
    push(binary, model_directory, client_file)
    receiver = Receiver(client.settings["webhook_secret"], public_keys=[key])
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    jobs = send_all(client, receiver)
    deliveries = [delivery for _, delivery, _ in jobs.values()]
    verified = [d for d in deliveries if d["verified"]]
    if len(verified) != len(jobs):
        raise Failure(f"{len(jobs) - len(verified)} deliveries have a wrong signature")
    took_ms = [ms for _, _, ms in jobs.values()]
    ledger_ms = result_ms(binary, client_file, jobs)
    say(f"accepted to result p50 {percentile(ledger_ms, 0.5):.1f} ms, p99 {percentile(ledger_ms, 0.99):.1f} ms; "
        f"call to webhook p50 {percentile(took_ms, 0.5):.1f} ms, p99 {percentile(took_ms, 0.99):.1f} ms")
    vectors = [None] * len(SENTENCES)
    for index, delivery, _ in jobs.values():
        vectors[index] = vector_of(delivery)
    show_similar(vectors)
    show_timeline(binary, client_file, next(iter(jobs)))
    return (f"demo: ok jobs={len(jobs)} webhooks={len(deliveries)} verified={len(verified)} "
            f"p50_ms={percentile(took_ms, 0.5):.1f} p99_ms={percentile(took_ms, 0.99):.1f}")


def main():
    binary, model_directory, run_directory = sys.argv[1:]
    result = pathlib.Path(run_directory) / "result"
    try:
        result.write_text(run(binary, model_directory, str(pathlib.Path(run_directory) / "client.json")) + "\n")
    except Failure as failure:
        result.write_text(f"{failure}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
