# SPDX-License-Identifier: Apache-2.0
"""The smallest Truss: load once, answer often."""

import os


class Model:
    def __init__(self, **kwargs):
        self._greeting = None

    def load(self):
        self._greeting = os.environ["GREETING"]

    def predict(self, model_input):
        name = model_input.get("name", "world")
        return {"greeting": f"{self._greeting}, {name}!"}
