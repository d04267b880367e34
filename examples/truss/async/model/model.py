# SPDX-License-Identifier: Apache-2.0
"""Async code with all three stages: many requests wait at the same time in one thread."""

import asyncio

from sums import total


class Model:
    async def preprocess(self, model_input):
        return [float(number) for number in model_input["numbers"]]

    async def predict(self, numbers):
        await asyncio.sleep(0.01)
        return total(numbers)

    def postprocess(self, result):
        return {"total": result}
