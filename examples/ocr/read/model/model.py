# SPDX-License-Identifier: Apache-2.0
"""Texts of the recogniser's outputs: the likeliest character of each step; repeats are one, and the
first class is none. The characters are those of the model's own file, data/characters.txt."""

import base64

import numpy as np


class Model:
    def __init__(self, data_dir, **kwargs):
        self.characters = ["", *(data_dir / "characters.txt").read_text().split("\n"), " "]

    def text(self, output):
        (output,) = output["outputs"].values()
        steps = np.frombuffer(base64.b64decode(output["data"]), np.float32).reshape(output["shape"])[0]
        best = steps.argmax(axis=1)
        kept = [i for i, one in enumerate(best) if one != 0 and (i == 0 or best[i - 1] != one)]
        score = float(steps[kept].max(axis=1).mean()) if kept else 0.0
        return "".join(self.characters[best[i]] for i in kept).strip(), round(score, 3)

    def predict(self, model_input):
        lines = []
        for box, output in zip(model_input["boxes"], model_input["lines"], strict=True):
            text, score = self.text(output)
            if text:
                lines.append({"text": text, "score": score, "box": box})
        return {"text": "\n".join(line["text"] for line in lines), "lines": lines}
