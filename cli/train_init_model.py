# SPDX-License-Identifier: Apache-2.0
"""What train.py has found, served: each of its checkpoints is this folder with the numbers in data/line.json."""

import json


class Model:
    def __init__(self, data_dir):
        self.path = data_dir / "line.json"

    def load(self):
        self.line = json.loads(self.path.read_text())

    def predict(self, model_input):
        return {"y": self.line["slope"] * model_input["x"] + self.line["height"]}
