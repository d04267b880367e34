# SPDX-License-Identifier: Apache-2.0
"""The Truss directories that are asked on both sides, and what each is asked.

    signatures   every signature of preprocess, predict and postprocess     signatures.py
    results      what a method may return or raise
    inputs       what a body may hold, and what it may not
    schemas      what annotations become at /schema
    request      what a method may ask the request
    routes       paths and methods beside predict
    refused      what is no model

Source of the contract: SURFACE.md 3.3; of the truth: the server that the truss package makes.
"""

import json
import os
import sys
import textwrap

import results
import signatures

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "workers", "host_py"))

from headrace_host import msgpack  # noqa: E402
PREDICT = "/v1/models/model:predict"
BINARY = "application/octet-stream"
JSON = "application/json"


class Request:
    """accept: the client's Accept header; without one an answer in pieces is streamed."""

    def __init__(self, name, body=b"", media_type=JSON, accept="", method="POST", path=PREDICT):
        self.name = name
        self.body = body
        self.media_type = media_type
        self.accept = accept
        self.method = method
        self.path = path


class Case:
    def __init__(self, name, model, requests, config=None, files=None):
        self.name = name
        self.requests = requests
        self.config = dict(config or {}, model_name=name.lower())
        self.files = dict({"model/model.py": model}, **(files or {}))


def four(name, body, binary):
    """A request in JSON and in msgpack, each with an answer that may come in pieces and one whole."""
    return [
        Request(name + " json stream", body),
        Request(name + " json whole", body, accept=JSON),
        Request(name + " msgpack stream", binary, BINARY),
        Request(name + " msgpack whole", binary, BINARY, JSON),
    ]


def pack(value):
    return msgpack.packb(value)


INPUT = {"n": 1, "text": "\u00e4 \u2713", "list": [1.5, None, True]}


def signature_cases():
    asked = four("ask", json.dumps(INPUT).encode(), pack(INPUT)) + [
        Request("no json", b'{"n": '),
        Request("no msgpack", b"\xc1", BINARY),
    ]
    good, bad = signatures.all_of()
    cases = [Case(name, text, asked) for name, text in good.items()]
    return cases + [Case("refused-" + name, text, []) for name, text in bad.items()]


# ---- what a method may return or raise ----


def result_requests(path=PREDICT, prefix=""):
    found = []
    for name in results.NAMES:
        body = {"want": name}
        for request in four(prefix + name, json.dumps(body).encode(), pack(body)):
            request.path = path
            found.append(request)
    return found


def result_cases():
    asked = result_requests() + result_requests("/v1/chat/completions", "chat ")
    staged = result_requests()
    return [
        Case("results-%s" % kind, text, asked if "post" not in kind else staged)
        for kind, text in results.models().items()
    ]


# ---- what a body may hold ----

SAY = """
    import json
    from datetime import datetime, date, time, timedelta

    class Model:
        def predict(self, inputs):
            return repr(inputs)
"""

DEEP = 4000

BODIES_JSON = {
    "none": b"",
    "spaces": b"  ",
    "null": b"null",
    "number": b"-12.5e3",
    "text": b'"a"',
    "big": b"1" * 30,
    "nan": b"[NaN, Infinity]",
    "twice": b'{"a": 1, "a": 2}',
    "surrogate": b'"\\ud800"',
    "rest": b"{} {}",
    "comma": b"[1,]",
    "control": b'"a\nb"',
    "no text": b"\xff\xfe\xfd",
    "bom": b"\xef\xbb\xbf{}",
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "digits": b"1" * 5000,
    "deep": b"[" * DEEP + b"]" * DEEP,
}


def mapped(key, value, **more):
    return pack({key: True, b"data": value, **more})


def bodies_msgpack():
    return {
        "none": b"",
        "text": pack("a"),
        "bytes": pack(b"a\xff"),
        "no text": b"\xa1\xff",
        "cut": pack([1, 2, 3])[:-1],
        "rest": pack(1) + pack(2),
        "unknown head": b"\xc1",
        "number as a key": pack({1: 2}),
        "list as a key": b"\x81\x90\x01",
        "array that lies": b"\xdd\xff\xff\xff\xff",
        "ext": b"\xd4\x05a",
        "timestamp": b"\xd6\xff\x00\x00\x00\x01",
        "deep": b"\x91" * DEEP + b"\x01",
        "datetime": mapped(b"__dt_datetime_iso__", "2026-01-02T03:04:05.678901"),
        "datetime utc": mapped(b"__dt_datetime_iso__", "2026-01-02T03:04:05Z"),
        "datetime offset": mapped(b"__dt_datetime_iso__", "2026-01-02T03:04:05+02:00"),
        "datetime bad": mapped(b"__dt_datetime_iso__", "yesterday"),
        "date": mapped(b"__dt_date_iso__", "2026-01-02"),
        "date bad": mapped(b"__dt_date_iso__", "2026-13-02"),
        "time": mapped(b"__dt_time_iso__", "03:04:05"),
        "timedelta": mapped(b"__dt_timedelta__", [1, 2, 3]),
        "timedelta short": mapped(b"__dt_timedelta__", [1, 2]),
        "decimal": mapped(b"__decimal__", "1.50"),
        "uuid": mapped(b"__uuid__", "12345678" * 4),
        "uuid bad": mapped(b"__uuid__", "12345678"),
        "no data": pack({b"__uuid__": True}),
        "text key": pack({"__uuid__": True, "data": "x"}),
        "array": pack({b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2], b"data": b"\0" * 8}),
        "array short": pack({b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [9], b"data": b""}),
        "array fields": pack({b"nd": True, b"type": [["a", "<i4"]], b"kind": b"V", b"shape": [1],
                              b"data": b"\1\0\0\0"}),
        "scalar": pack({b"nd": False, b"type": "<i8", b"data": b"\7" + b"\0" * 7}),
        "complex": pack({b"complex": True, b"data": "(1+2j)"}),
        "pickle": pack({b"nd": True, b"type": "O", b"kind": b"O", b"shape": [1], b"data": b"x"}),
    }


TYPED = """
    from typing import Dict, List, Optional
    from pydantic import BaseModel, Field

    class Part(BaseModel):
        name: str
        weight: float = Field(gt=0)

    class Inputs(BaseModel):
        count: int = Field(ge=1, le=10)
        parts: List[Part] = []
        names: Dict[str, int] = {}
        note: Optional[str] = None

    class Model:
        def predict(self, inputs: Inputs) -> Inputs:
            return inputs
"""

TYPED_PRE = TYPED.replace("predict", "preprocess").replace("-> Inputs", "") + """
        async def predict(self, inputs):
            return [type(inputs).__name__, inputs.count]
"""

VALUES = {
    "good": {"count": 3, "parts": [{"name": "a", "weight": 1.5}], "names": {"x": 1}, "note": "\u00e4"},
    "missing": {},
    "many": {"count": 0, "parts": [{"name": 1, "weight": 1}, {"name": "b", "weight": -1}, {}]},
    "text": {"count": "7"},
    "no number": {"count": "seven", "names": {"x": "y"}},
    "list": [1],
    "null": None,
    "more": {"count": 1, "extra": 1},
}


def input_cases():
    raw = [Request("json " + name, body) for name, body in BODIES_JSON.items()]
    raw += [Request("msgpack " + name, body, BINARY, JSON) for name, body in bodies_msgpack().items()]
    raw += [
        Request("type %s" % media_type, b"{}", media_type)
        for media_type in ("text/plain", "application/json; charset=utf-8", "multipart/form-data")
    ]
    raw += [
        Request("type %s" % media_type, pack({}), media_type)
        for media_type in ("Application/Octet-Stream", "application/octet-stream; a=b")
    ]
    typed = [r for name, value in VALUES.items() for r in four(name, json.dumps(value).encode(), pack(value))]
    typed += [Request("no json", b"{"), Request("no text", b"\xff"), Request("no msgpack", b"\xc1", BINARY)]
    typed += [Request("schema", method="GET", path="/v1/models/model/schema")]
    return [
        Case("inputs-any", textwrap.dedent(SAY), raw),
        Case("inputs-typed", textwrap.dedent(TYPED), typed),
        Case("inputs-typed-pre", textwrap.dedent(TYPED_PRE), typed),
    ]


# ---- annotations ----

SCHEMA_TOP = """import typing
from typing import *
from pydantic import BaseModel, Field
from starlette.requests import Request


class A(BaseModel):
    x: int = Field(description="\u00e4 number")


class B(BaseModel):
    parts: List[A]


class Model:
"""

ANNOTATIONS = {
    "none": "def predict(self, i):",
    "dict": "def predict(self, i: dict) -> dict:",
    "generic": "def predict(self, i: List[A]) -> Dict[str, A]:",
    "in": "def predict(self, i: A):",
    "in-request": "async def predict(self, i: A, request: Request):",
    "out": "def predict(self, i) -> A:",
    "both": "def predict(self, i: A) -> B:",
    "stream": "def predict(self, i: A) -> Generator[str, None, None]:",
    "stream-only": "def predict(self, i) -> Iterator[str]:",
    "astream": "async def predict(self, i) -> AsyncGenerator[str, None]:",
    "aiter": "async def predict(self, i) -> AsyncIterator[bytes]:",
    "awaitable": "def predict(self, i) -> Awaitable[A]:",
    "awaitable-dict": "def predict(self, i) -> Awaitable[dict]:",
    "union": "def predict(self, i) -> Union[A, Generator[str, None, None]]:",
    "union-await": "def predict(self, i) -> Union[Awaitable[A], AsyncGenerator[str, None]]:",
    "union-three": "def predict(self, i) -> Union[A, B, Generator[str, None, None]]:",
    "union-models": "def predict(self, i) -> Union[A, B]:",
    "optional": "def predict(self, i: Optional[A]) -> Optional[A]:",
    "text": "def predict(self, i: 'A') -> 'A':",
    "return-none": "def predict(self, i: A) -> None:",
    "stages": "def preprocess(self, i: A):\n        return i\n\n    def postprocess(self, r) -> B:"
    "\n        return r\n\n    def predict(self, i: B) -> A:",
}


def schema_cases():
    asked = [Request("schema", method="GET", path="/v1/models/model/schema")]
    return [
        Case("schema-" + name, "%s    %s\n        return i\n" % (SCHEMA_TOP, line), asked)
        for name, line in ANNOTATIONS.items()
    ]


# ---- the Request ----

LOOK = """
    import json
    from fastapi import Request

    class Model:
        async def predict(self, request: Request):
            ask = request.query_params.get("ask")
            said = [await request.is_disconnected(), request.method, str(request.url.path)]
            if ask == "stream":
                return said + [(b"".join([part async for part in request.stream()])).decode()]
            if ask == "json":
                return said + [await request.json()]
            with request.state.watch_disconnect() as gone:
                return said + [len(await request.body()), gone.is_set()]
"""


def request_cases():
    bodies = {"json": b'{"a": [1]}', "stream": b"one two", "": b"\xff" * 100, "nothing": b""}
    asked = [
        Request("ask " + name, body, "text/plain", path="%s?ask=%s&x=1" % (PREDICT, name))
        for name, body in bodies.items()
    ]
    return [Case("request-looks", textwrap.dedent(LOOK), asked)]


# ---- routes ----

OPENAI = ("chat/completions", "completions", "embeddings", "messages", "responses")
PROBES = ("/", "/ping", "/v1/models/model", "/v1/models/model/loaded", "/v1/models/model/schema")

ALL_ROUTES = """
    class Model:
        def predict(self, i):
            return {"predict": i}

        def is_healthy(self):
            return HEALTHY
"""
OPENAI_ROUTE = """
        async def %s(self, i):
            return {"%s": i}
"""


def route_requests():
    found = []
    for path in PROBES + ("/nowhere", "/v1/models/other", "/v1/models/a%20b/loaded", "/v1/models/"):
        found += [Request("%s %s" % (m, path), b"1", method=m, path=path) for m in ("GET", "POST", "PUT")]
    for path in ("/v1/models/other:predict", "/v1/models/model:predict_binary", "/invocations",
                 "/v1/models/model:other", PREDICT + "?a=b") + tuple("/v1/" + part for part in OPENAI):
        found += [Request("%s %s" % (m, path), b"1", method=m, path=path) for m in ("POST", "GET")]
    return found


def health_cases():
    asked = [Request("GET " + path, method="GET", path=path) for path in PROBES]
    kinds = {"true": "True", "false": "False", "none": "None", "zero": "0", "raises": "1 / 0"}
    found = []
    for name, value in kinds.items():
        text = ALL_ROUTES.replace("HEALTHY", value)
        found.append(Case("health-" + name, textwrap.dedent(text), asked))
        text = text.replace("def is_healthy", "async def is_healthy")
        found.append(Case("health-async-" + name, textwrap.dedent(text), asked))
    return found


def route_cases():
    bare = ALL_ROUTES.replace("HEALTHY", "True")
    full = bare + "".join(
        OPENAI_ROUTE % (part.replace("/", "_"), part) for part in OPENAI
    )
    asked = route_requests()
    return [
        Case("routes-bare", textwrap.dedent(bare), asked),
        Case("routes-full", textwrap.dedent(full), asked),
    ] + health_cases()


# ---- no models ----

REFUSED = {
    "empty": "class Model:\n    pass\n",
    "three": "class Model:\n    def predict(self, a, b, c):\n        pass\n",
    "two": "class Model:\n    def predict(self, a, b):\n        pass\n",
    "request-first": "class Model:\n    def predict(self, request: Request, b):\n        pass\n",
    "requests": "class Model:\n    def predict(self, r: Request, s: Request):\n        pass\n",
    "healthy": "class Model:\n    def predict(self, a):\n        pass\n    def is_healthy(self, a):\n        pass\n",
    "chat": "class Model:\n    def predict(self, a):\n        pass\n"
    "    def chat_completions(self, a, b, c):\n        pass\n",
    "both": "class Model:\n    def predict(self, a):\n        pass\n    async def websocket(self, w):\n        pass\n",
    "websocket-sync": "class Model:\n    def websocket(self, w):\n        pass\n",
    "websocket-none": "class Model:\n    async def websocket(self):\n        pass\n",
    "only-preprocess": "class Model:\n    def preprocess(self, a):\n        pass\n",
}


def refused_cases():
    top = "from starlette.requests import Request\n\n\n"
    return [Case("refused-" + name, top + text, []) for name, text in REFUSED.items()]


def all_cases():
    return (
        signature_cases()
        + result_cases()
        + input_cases()
        + schema_cases()
        + request_cases()
        + route_cases()
        + refused_cases()
    )
