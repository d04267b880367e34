# SPDX-License-Identifier: Apache-2.0
"""A websocket server that stands in for a user's: it echoes, and does as a text message says."""

import asyncio
import http
import os

from websockets.asyncio.server import serve

CHATS = ("v2.chat", "v1.chat")
state = {"open": 0}


async def order(socket, text):
    words = text.split()
    if words[0] == "close":
        await socket.close(int(words[1]), "as ordered")
    elif words[0] == "die":
        os._exit(7)
    elif words[0] == "cut":
        socket.transport.abort()
    elif words[0] == "send":
        for n in range(int(words[1])):
            await socket.send(b"%d" % n)
    elif words[0] == "who":
        await socket.send("%s %s %s" % (socket.request.path, socket.subprotocol, state["open"]))
        await socket.send(" ".join(sorted(name.lower() for name in socket.request.headers)))
    elif words[0] == "hang":
        await asyncio.sleep(600)
    else:
        await socket.send(text)


async def handle(socket):
    state["open"] += 1
    try:
        async for message in socket:
            if isinstance(message, str) and message.startswith("!"):
                await order(socket, message[1:])
            else:
                await socket.send(message)
    finally:
        state["open"] -= 1


def process_request(connection, request):
    path = request.path.partition("?")[0]
    if path == "/health":
        return connection.respond(http.HTTPStatus.OK, "ready\n")
    if path not in ("/chat", "/other"):
        return connection.respond(http.HTTPStatus.FORBIDDEN, "not here\n")
    return None


async def main():
    async with serve(
        handle,
        "127.0.0.1",
        int(os.environ["PORT"]),
        process_request=process_request,
        select_subprotocol=lambda connection, offered: next((s for s in offered if s in CHATS), None),
        max_size=None,
        ping_interval=None,
    ):
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
