# SPDX-License-Identifier: Apache-2.0
"""The network that examples/train-digits/train.py trains: each of its checkpoints is this Truss with the weights.

    {"digits": [[35 numbers, row by row], ...]}  ->  {"digits": ["7", ...], "shares": [0.98, ...]}
"""

import json
import math

WIDTH, HEIGHT, HIDDEN = 5, 7, 24
DIGITS_MAX = 1000


def run(state, pixels):
    """The hidden layer, and of each digit the share that it gets."""
    hidden = [math.tanh(sum(w * p for w, p in zip(row, pixels)) + b) for row, b in zip(state["w1"], state["b1"])]
    scores = [sum(w * h for w, h in zip(row, hidden)) + b for row, b in zip(state["w2"], state["b2"])]
    top = max(scores)
    shares = [math.exp(s - top) for s in scores]
    total = sum(shares)
    return hidden, [s / total for s in shares]


class Model:
    def __init__(self, data_dir):
        self.path = data_dir / "weights.json"

    def load(self):
        self.state = json.loads(self.path.read_text())

    def predict(self, model_input):
        digits = model_input["digits"]
        if not 1 <= len(digits) <= DIGITS_MAX or any(len(pixels) != WIDTH * HEIGHT for pixels in digits):
            raise ValueError(f"digits must be 1 to {DIGITS_MAX} lists of {WIDTH * HEIGHT} numbers")
        shares = [run(self.state, pixels)[1] for pixels in digits]
        best = [max(range(10), key=one.__getitem__) for one in shares]
        return {"digits": [str(digit) for digit in best],
                "shares": [round(one[digit], 4) for one, digit in zip(shares, best)],
                "trained_steps": self.state["step"]}
