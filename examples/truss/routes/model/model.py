# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-style chat model beside predict: server-sent events when the client asks for a stream."""

import json


class Model:
    def predict(self, model_input):
        return {"reversed": str(model_input["text"])[::-1]}

    async def chat_completions(self, model_input):
        text = model_input["messages"][-1]["content"]
        if model_input.get("stream"):
            return self._events(text)
        message = {"role": "assistant", "content": text[::-1]}
        return {
            "object": "chat.completion",
            "model": model_input.get("model", "routes"),
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }

    async def _events(self, text):
        for letter in reversed(text):
            chunk = {"choices": [{"index": 0, "delta": {"content": letter}}]}
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"
