# SPDX-License-Identifier: Apache-2.0
"""A head for MiniLM: one layer from a vector to a topic. Each checkpoint of train.py is this Truss with the weights.

    {"embeddings": <what MiniLM answers>}  ->  {"topics": ["music", ...], "shares": [0.93, ...]}
"""

import json
import math


def shares(state, vector):
    """Of each topic the share that it gets."""
    scores = [sum(w * v for w, v in zip(row, vector)) + b for row, b in zip(state["weights"], state["bias"])]
    top = max(scores)
    parts = [math.exp(s - top) for s in scores]
    total = sum(parts)
    return [p / total for p in parts]


class Model:
    def __init__(self, data_dir):
        self.path = data_dir / "head.json"

    def load(self):
        self.state = json.loads(self.path.read_text())

    def predict(self, model_input):
        vectors = [one["embedding"] for one in model_input["embeddings"]["data"]]
        if any(len(vector) != len(self.state["weights"][0]) for vector in vectors):
            raise ValueError(f"vectors must have {len(self.state['weights'][0])} numbers")
        found = [max(zip(shares(self.state, vector), self.state["topics"])) for vector in vectors]
        return {"topics": [topic for _, topic in found], "shares": [round(share, 4) for share, _ in found]}
