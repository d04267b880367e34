# SPDX-License-Identifier: Apache-2.0
"""Orders passages by the cosine of their vectors with the question's. MiniLM's vectors have length 1."""

TOP = 3


def vector(embedding):
    return embedding["data"][0]["embedding"]


class Model:
    def predict(self, model_input):
        question = vector(model_input["question"])
        ranked = sorted(
            (
                {"score": round(sum(a * b for a, b in zip(question, vector(embedding))), 4), "passage": passage}
                for passage, embedding in zip(model_input["passages"], model_input["vectors"], strict=True)
            ),
            key=lambda one: -one["score"],
        )
        return ranked[: model_input["top"] or TOP]
