# SPDX-License-Identifier: Apache-2.0
from fastapi import WebSocket, WebSocketDisconnect


class Model:
    """Counts the words of each message, until its client leaves."""

    def load(self):
        self.total = 0

    async def websocket(self, websocket: WebSocket):
        try:
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                if message.get("text") == "bye":
                    await websocket.close(4000, "bye")
                    break
                words = len((message.get("text") or message["bytes"].decode()).split())
                self.total += words
                await websocket.send_json({"words": words, "total": self.total})
        except WebSocketDisconnect:
            pass
