# SPDX-License-Identifier: Apache-2.0
"""Trains a head for MiniLM: a layer of softmax on its vectors, which stay as they are. Plain Python.

vectors.json has the topics of sentences.tsv and a vector of each. Every 20 passes the head goes to
$BT_CHECKPOINT_DIR as a Truss that serves it; a new attempt goes on from the newest one.
"""

import glob
import json
import math
import os
import random
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE + "/serve/model")
from model import shares  # noqa: E402

PASSES, SAVE, RATE = 60, 20, 0.5


def learn(state, vector, topic):
    parts = shares(state, vector)
    for k, row in enumerate(state["weights"]):
        step = RATE * (parts[k] - (k == topic))
        state["weights"][k] = [w - step * v for w, v in zip(row, vector)]
        state["bias"][k] -= step
    return -math.log(max(parts[topic], 1e-9))


def save(state, folder):
    new = f"{folder}/.new-{state['pass']}"
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(HERE + "/serve", new, ignore=shutil.ignore_patterns("__pycache__"))
    os.makedirs(new + "/data")
    with open(new + "/data/head.json", "w") as out:
        json.dump(state, out)
    os.rename(new, f"{folder}/pass-{state['pass']:04}")


def load(data):
    topics = sorted(set(data["topics"]))
    state = {"pass": 0, "topics": topics, "weights": [[0.0] * len(data["vectors"][0]) for _ in topics],
             "bias": [0.0] * len(topics)}
    for path in glob.glob(os.environ["BT_LOAD_CHECKPOINT_DIR"] + "/rank-0/*/data/head.json"):
        with open(path) as file:
            state = json.load(file)
        print(f"goes on from pass {state['pass']}", flush=True)
    return state


def main():
    with open(HERE + "/vectors.json") as file:
        data = json.load(file)
    state = load(data)
    pairs = [(vector, state["topics"].index(topic)) for vector, topic in zip(data["vectors"], data["topics"])]
    while state["pass"] < PASSES:
        state["pass"] += 1
        order = random.Random(state["pass"]).sample(pairs, len(pairs))
        loss = sum(learn(state, vector, topic) for vector, topic in order) / len(pairs)
        print(f"headrace_metric loss={loss:.4f} step={state['pass']}", flush=True)
        if state["pass"] % SAVE == 0:
            save(state, os.environ["BT_CHECKPOINT_DIR"])
            print(f"saved pass {state['pass']}, loss {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
