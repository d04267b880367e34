# SPDX-License-Identifier: Apache-2.0
"""Trains a small network to read digits that it draws itself, in plain Python: no package is needed.

Digits are seven segments on a 5 x 7 grid, shifted and with noise; the network has one hidden layer, trained by
stochastic gradient descent. Everything follows from the step: a run that was stopped and went on ends with the
same weights as one that was not.

Every `--save` steps the state goes to $BT_CHECKPOINT_DIR as a Truss that serves it: into a folder of another name
first, which is then renamed. A new attempt finds the newest one below $BT_LOAD_CHECKPOINT_DIR.
"""

import argparse
import glob
import json
import math
import os
import random
import shutil
import sys
import time

SERVE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "serve")
sys.path.insert(0, SERVE + "/model")
from model import HEIGHT, HIDDEN, WIDTH, run  # noqa: E402

#         top, left above, right above, middle, left below, right below, bottom
SEGMENTS = ["1110111", "0010010", "1011101", "1011011", "0111010", "1101011", "1101111", "1010010", "1111111", "1111011"]
PLACES = [[(x, 0) for x in range(5)], [(0, y) for y in range(4)], [(4, y) for y in range(4)], [(x, 3) for x in range(5)],
          [(0, y) for y in range(3, 7)], [(4, y) for y in range(3, 7)], [(x, 6) for x in range(5)]]
HELD_OUT = 0  # steps begin at 1: no step has seen what this seed draws


def draw(digit, noise):
    """35 numbers: a digit with the noise of that generator."""
    pixels = [0.0] * (WIDTH * HEIGHT)
    for on, places in zip(SEGMENTS[digit], PLACES):
        if on == "1":
            for x, y in places:
                pixels[y * WIDTH + x] = 1.0
    return [p + noise.gauss(0, 0.25) for p in pixels]


def new_state():
    first = random.Random(1)
    return {"step": 0,
            "w1": [[first.gauss(0, 0.3) for _ in range(WIDTH * HEIGHT)] for _ in range(HIDDEN)], "b1": [0.0] * HIDDEN,
            "w2": [[first.gauss(0, 0.3) for _ in range(HIDDEN)] for _ in range(10)], "b2": [0.0] * 10}


def learn(state, pixels, digit, rate):
    hidden, shares = run(state, pixels)
    wrong = [s - (k == digit) for k, s in enumerate(shares)]
    back = [sum(state["w2"][k][j] * wrong[k] for k in range(10)) * (1 - h * h) for j, h in enumerate(hidden)]
    for k, row in enumerate(state["w2"]):
        state["w2"][k] = [w - rate * wrong[k] * h for w, h in zip(row, hidden)]
        state["b2"][k] -= rate * wrong[k]
    for j, row in enumerate(state["w1"]):
        state["w1"][j] = [w - rate * back[j] * p for w, p in zip(row, pixels)]
        state["b1"][j] -= rate * back[j]
    return -math.log(max(shares[digit], 1e-9))


def held_out(count):
    noise = random.Random(HELD_OUT)
    return [(i % 10, draw(i % 10, noise)) for i in range(count)]


def accuracy(state):
    right = 0
    for digit, pixels in held_out(200):
        _, shares = run(state, pixels)
        right += shares.index(max(shares)) == digit
    return right / 200


def save(state, folder):
    new = f"{folder}/.new-{state['step']}"
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(SERVE, new, ignore=shutil.ignore_patterns("__pycache__"))
    os.makedirs(new + "/data")
    with open(f"{new}/data/weights.json", "w") as out:
        json.dump(state, out)
    os.rename(new, f"{folder}/step-{state['step']:05}")


def load():
    found = glob.glob(os.environ.get("BT_LOAD_CHECKPOINT_DIR", "") + "/rank-0/*/data/weights.json")
    if not found:
        return new_state()
    with open(found[0]) as file:
        state = json.load(file)
    print(f"goes on from step {state['step']}, retry {os.environ['BT_RETRY_COUNT']}", flush=True)
    return state


class Counter:
    """Steps that were run, over all attempts: a byte each in a file that stays on the machine."""

    def __init__(self):
        path = f"{os.environ['BT_RW_CACHE_DIR']}/steps-{os.environ['BT_TRAINING_JOB_ID']}"
        self.file = open(path, "ab", buffering=0)

    def add(self):
        self.file.write(b".")

    def value(self):
        return os.fstat(self.file.fileno()).st_size


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--save", type=int, default=50)
    options.add_argument("--pause", type=float, default=0, help="seconds after each save, for who wants to watch")
    options = options.parse_args()
    state, counter = load(), Counter()
    while state["step"] < options.steps:
        state["step"] += 1
        counter.add()
        noise = random.Random(state["step"])  # of this step alone, whoever runs it
        loss = sum(learn(state, draw(d, noise), d, 0.03) for d in range(10)) / 10
        if state["step"] % 10 == 0:
            print(f"headrace_metric loss={loss:.4f} step={state['step']}", flush=True)
        if state["step"] % options.save == 0:
            save(state, os.environ["BT_CHECKPOINT_DIR"])
            print(f"saved step {state['step']}, accuracy {accuracy(state):.3f}", flush=True)
            time.sleep(options.pause)
    print(f"headrace_metric accuracy={accuracy(state):.4f} step={state['step']}", flush=True)
    print(f"ran {counter.value()} steps for {state['step']}, {os.environ['BT_RETRY_COUNT']} retries", flush=True)


if __name__ == "__main__":
    main()
