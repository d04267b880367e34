# SPDX-License-Identifier: Apache-2.0
"""A text in passages: paragraphs, the long ones cut between sentences."""

import re

LENGTH = 300


class Model:
    def predict(self, model_input):
        passages = []
        for paragraph in re.split(r"\n\s*\n", model_input["text"]):
            passage = ""
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                if passage and len(passage) + 1 + len(sentence) > LENGTH:
                    passages.append(passage)
                    passage = ""
                passage = f"{passage} {sentence}".strip()
            if passage:
                passages.append(passage)
        return {"passages": passages}
