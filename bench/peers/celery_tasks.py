# SPDX-License-Identifier: Apache-2.0
"""Celery as a peer of `bench/run peers`: one apply_async() a job, results kept in Redis.

    python celery_tasks.py peak    redis://HOST:PORT JOBS PRODUCERS
    python celery_tasks.py latency redis://HOST:PORT RATE SECONDS
    python celery_tasks.py chain   redis://HOST:PORT STEPS RUNS
    python celery_tasks.py fan     redis://HOST:PORT WIDTH RUNS     a chord

Its worker is `celery -A celery_tasks worker`, with the broker's address in CELERY_PEER_URL.
"""

import json
import multiprocessing
import os
import sys
import threading
import time

from celery import Celery, chain, chord

URL = sys.argv[2] if __name__ == "__main__" else os.environ["CELERY_PEER_URL"]
INPUT = "x" * 256
app = Celery("celery_tasks", broker=URL + "/0", backend=URL + "/1")
app.conf.update(worker_prefetch_multiplier=64, broker_pool_limit=10, worker_send_task_events=False,
                task_send_sent_event=False, result_expires=3600, worker_disable_rate_limits=True)


@app.task(name="bench")
def bench(text):
    return {"output": text}


def turns(runs, make):
    """One after the other, with a pause between: how long each took."""
    found = []
    for _ in range(runs):
        time.sleep(0.02)
        began = time.monotonic()
        make().get(timeout=60)
        found.append((time.monotonic() - began) * 1e3)
    return {"ms": found}


def run_chain(length, runs):
    signatures = [bench.s(INPUT)] + [bench.s() for _ in range(length - 1)]
    return turns(runs, chain(*signatures))


def run_fan(width, runs):
    return turns(runs, lambda: chord([bench.s(INPUT) for _ in range(width)])(bench.s()))


def produce(count):
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(count):
            bench.apply_async((INPUT,), producer=producer)


def peak(jobs, producers):
    """A producer costs a process: its GIL is what one submit a job is limited by."""
    results = app.backend.client
    before = results.dbsize()
    shares = [jobs // producers + (n < jobs % producers) for n in range(producers)]
    began = time.monotonic()
    processes = [multiprocessing.Process(target=produce, args=(share,)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    while results.dbsize() - before < jobs:
        time.sleep(0.01)
    return {"seconds": time.monotonic() - began, "sent": jobs, "delivered": results.dbsize() - before}


def percentiles(values, prefix):
    values.sort()
    return {f"{prefix}_{name}_ms": values[min(len(values) - 1, int(len(values) * share))] * 1e3
            for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))}


def latency(rate, seconds):
    submits, results = [], []

    def one(due):
        answer = bench.delay(INPUT)
        submits.append(time.monotonic() - due)
        answer.get(timeout=60)
        results.append(time.monotonic() - due)

    began, threads = time.monotonic() + 1, []
    for number in range(rate * seconds):
        due = began + number / rate
        time.sleep(max(0, due - time.monotonic()))
        threads.append(threading.Thread(target=one, args=(due,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return {"sent": len(threads), "delivered": len(results), **percentiles(submits, "submit"),
            **percentiles(results, "result")}


if __name__ == "__main__":
    run = {"peak": peak, "latency": latency, "chain": run_chain, "fan": run_fan}[sys.argv[1]]
    print(json.dumps(run(int(sys.argv[3]), int(sys.argv[4]))))
