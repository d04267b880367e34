# SPDX-License-Identifier: Apache-2.0
"""What the directories of examples/truss are asked, on both sides.

`requests` is pushed to an environment; that server reads its name from a file that the platform
mounts, so it gets one.
"""

import http.client
import json
import os
import shlex

import cases
import golden
from cases import BINARY, JSON, Request

FOLDER = os.path.join(cases.ROOT, "examples", "truss")
ENVIRONMENT = {"name": "production"}
IMAGE = {
    b"nd": True,
    b"type": "<f4",
    b"kind": b"",
    b"shape": [2, 2],
    b"data": b"\0\0\x80?\0\0\0@\0\0@@\0\0\x80@",
}


def asked(name, value, accept="", path=cases.PREDICT, binary=False):
    body = cases.pack(value) if binary else json.dumps(value).encode()
    return Request(name, body, BINARY if binary else JSON, accept, path=path)


def get(path):
    return Request("GET " + path, method="GET", path=path)


CHAT = "/v1/chat/completions"
MESSAGE = {"messages": [{"role": "user", "content": "abc \u00e4"}]}

REQUESTS = {
    "hello": [
        asked("name", {"name": "Ada \u00e4"}),
        asked("nobody", {}),
        asked("msgpack", {"name": "Ada"}, binary=True),
        asked("no mapping", [1]),
        get("/v1/models/model"),
    ],
    "stream": [
        asked("pieces", {"text": "one two \u00e4"}),
        asked("whole", {"text": "one two \u00e4"}, JSON),
        asked("whole, msgpack", {"text": "one two"}, JSON, binary=True),
        asked("nothing", {"text": ""}),
    ],
    "async": [
        asked("sum", {"numbers": [1, 2.5]}),
        asked("msgpack", {"numbers": [1, 2.5]}, binary=True),
        asked("no list", {"numbers": 7}),
        asked("no numbers", {}),
    ],
    "pydantic": [
        asked("order", {"item": "tea", "count": 2}),
        asked("msgpack", {"item": "tea", "count": 2}, binary=True),
        asked("too few", {"item": "tea", "count": 0}),
        asked("wrong types", {"item": 1, "count": "x", "notes": [1, {}]}),
        asked("empty", {}),
        get("/v1/models/model/schema"),
    ],
    "binary": [
        asked("lists", {"image": [[1, 2], [3, 4]]}),
        asked("array", {"image": IMAGE}, binary=True),
        asked("no image", {"image": [[1], [2, 3]]}),
    ],
    "routes": [
        asked("predict", {"text": "abc"}),
        asked("chat", MESSAGE, path=CHAT),
        asked("chat in pieces", dict(MESSAGE, stream=True), path=CHAT),
        asked("chat whole", dict(MESSAGE, stream=True), JSON, path=CHAT),
        asked("missing", {}, path="/v1/embeddings"),
        asked("no messages", {}, path=CHAT),
    ],
    "requests": [
        asked("environment", {}),
        asked("error", {"want": "error"}),
        asked("text", {"want": "text"}),
        asked("secret", {"want": "secret"}),
    ],
    "server": [
        asked("words", {"text": "one two three"}),
        asked("pieces", {"text": "one two", "stream": True}),
        asked("no text", {}),
        asked("another path", {}, path="/nowhere"),
        get("/health"),
    ],
}


def docker_server(folder):
    import yaml

    with open(os.path.join(folder, "config.yaml"), encoding="utf-8") as file:
        return yaml.safe_load(file).get("docker_server")


def ask_one(name, root):
    """[(request, answer)] of the server of one example, started as a process."""
    import golden
    import theirs

    folder = os.path.join(FOLDER, name)
    theirs.build(folder, root)
    own = docker_server(folder)
    if own:
        server = theirs.Process(
            root, shlex.split(own["start_command"]), own["server_port"], own["readiness_endpoint"]
        )
    else:
        server = theirs.Process(root, environment=ENVIRONMENT)
    try:
        found = []
        for request in REQUESTS[name]:
            path = request.path
            if own and path == cases.PREDICT:
                path = own["predict_endpoint"]  # what the image's proxy does
            answer = server.ask(request.method, path, request.body, theirs.headers_of(request))
            found.append((request, golden.Answer(*answer)))
        return found
    finally:
        server.close()


def ask_theirs(work):
    return {
        "example-" + name: {request.name: answer for request, answer in ask_one(name, work / name)}
        for name in REQUESTS
    }


def call(stack, model, request):
    """A request of tests/truss through the gateway, as a golden.Answer."""
    path = "predict" if request.path == cases.PREDICT else "sync" + request.path
    link = http.client.HTTPConnection(stack.url("gateway").removeprefix("http://"), timeout=60)
    headers = {"Authorization": f"Bearer {stack.key}", "Content-Type": request.media_type}
    if request.accept:
        headers["Accept"] = request.accept
    try:
        link.request(request.method, f"/model/{model}/production/{path}", request.body, headers)
        reply = link.getresponse()
        try:
            body, cut = reply.read(), False
        except http.client.IncompleteRead as error:
            body, cut = error.partial, True
        return golden.Answer(reply.status, reply.getheader("Content-Type"), body, cut)
    finally:
        link.close()
