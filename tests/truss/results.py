# SPDX-License-Identifier: Apache-2.0
"""What a model's method may return or raise, each under a name that a request asks for.

Every expression is evaluated where it is asked for, so that a second request finds it fresh.
"""

TOP = '''import asyncio
import datetime as dt
import uuid
from decimal import Decimal

import fastapi
import numpy as np
import starlette.exceptions
from fastapi import responses
from pydantic import BaseModel


class Point(BaseModel):
    x: float = 1.5
    label: str = "\\u00e4"
    when: dt.datetime = dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc)
    price: Decimal = Decimal("1.50")


class Outer(BaseModel):
    points: list = [1, {"a": 2}]
    inner: Point = Point()


def circle():
    value = []
    value.append(value)
    return value


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def fail(error):
    raise error



def pieces(*parts):
    yield from parts


def cut_off(*parts):
    yield from parts
    raise ValueError("broken off")


async def apieces(*parts):
    for part in parts:
        await asyncio.sleep(0)
        yield part


async def acut_off(*parts):
    for part in parts:
        yield part
    raise ValueError("broken off")


def http_cut_off(*parts):
    yield from parts
    raise fastapi.HTTPException(418, "broken off")


class Deadend(Exception):
    def __str__(self):
        raise RuntimeError("no words")


'''

EXPRESSIONS = {
    # JSON
    "dict": '{"a": 1, "\\u00e4": ["\\u2713", None, True, 1.5e-9], "": {}}',
    "list": "[1, [2, [3]]]",
    "tuple": "(1, 2)",
    "text": '"plain \\u00e4 \\" \\\\ \\n \\u2028"',
    "empty text": '""',
    "surrogate": '"\\ud800"',
    "int": "7",
    "big": "2**64",
    "bigger": "10**30",
    "negative": "-(2**63)",
    "float": "0.1 + 0.2",
    "nan": '[float("nan"), float("inf")]',
    "none": "None",
    "bool": "True",
    "int keys": '{1: "a", None: "b", True: "c", 1.5: "d"}',
    "tuple keys": '{(1, 2): "a"}',
    "circle": "circle()",
    "deep": "deep(5000)",
    # bytes
    "bytes": 'b"raw \\xff"',
    "bytearray": 'bytearray(b"raw")',
    "bytes inside": '{"a": b"\\xff"}',
    # what only msgpack holds
    "datetime": "dt.datetime(2026, 1, 2, 3, 4, 5, 678901)",
    "datetime utc": "dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc)",
    "datetime offset": "[dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2)))]",
    "date": "dt.date(2026, 1, 2)",
    "time": "dt.time(3, 4, 5)",
    "time offset": "dt.time(3, 4, 5, tzinfo=dt.timezone.utc)",
    "timedelta": "dt.timedelta(days=-1, seconds=2, microseconds=3)",
    "decimal": 'Decimal("1.50")',
    "uuid": 'uuid.UUID("12345678" * 4)',
    "complex": "1 + 2j",
    "set": "{1}",
    "object": "object",
    "ext": "memoryview(b'abc')",
    # numpy
    "np int": "np.int64(7)",
    "np uint8": '{"a": np.uint8(7)}',
    "np float": "[np.float32(0.1), np.float64(0.1), np.float16(0.1)]",
    "np float32": "np.float32(0.1)",
    "np bool": "np.bool_(True)",
    "np text": 'np.str_("a")',
    "np datetime": 'np.datetime64("2026-01-02")',
    "array": "np.arange(6, dtype=np.float32).reshape(2, 3)",
    "array inside": '{"a": [np.arange(3)], "b": np.zeros((0, 2))}',
    "array turned": "np.arange(6).reshape(2, 3).T",
    "array bool": "np.array([True, False])",
    "array text": 'np.array(["a", "bc"])',
    "array object": "np.array([None, 1], dtype=object)",
    "array fields": 'np.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", "<f8")])',
    "array nan": "np.array([np.nan, np.inf])",
    "array scalar": "np.array(7)",
    # pydantic
    "model": "Point()",
    "model outer": "Outer()",
    "model inside": '{"a": Point()}',
    "model list": "[Point(), Point()]",
    # Responses
    "response": 'responses.Response(b"plain", media_type="text/plain")',
    "response type": 'responses.Response(b"\\xff", media_type="image/png")',
    "response charset": 'responses.Response("\\u00e4", headers={"content-type": "text/html; a=b"})',
    "response bare": 'responses.Response(b"bare")',
    "response 201": 'responses.JSONResponse({"a": 1}, 201)',
    "response 204": "responses.Response(status_code=204)",
    "response 404": 'responses.JSONResponse({"why": "none"}, 404)',
    "response 429": 'responses.PlainTextResponse("later", 429)',
    "response 503": 'responses.HTMLResponse("<p>no", 503)',
    "response redirect": 'responses.RedirectResponse("/elsewhere")',
    "response stream": 'responses.StreamingResponse(pieces("a", b"b", "\\u00e4"), media_type="text/plain")',
    "response astream": 'responses.StreamingResponse(apieces("a", "b"), media_type="text/event-stream")',
    "response stream 202": 'responses.StreamingResponse(pieces("a"), 202)',
    "response stream bare": 'responses.StreamingResponse(pieces("a", "b"))',
    "response task": 'responses.JSONResponse([], background=fastapi.BackgroundTasks())',
    # generators
    "generator": 'pieces("a", "\\u00e4", b"\\xc3", b"\\xa4", "")',
    "generator async": 'apieces("a", b"b")',
    "generator empty": "pieces()",
    "generator bytes": 'pieces(b"\\xff\\xfe")',
    "generator one": 'pieces("data: 1\\n\\n")',
    "generator int": "pieces(1, 2)",
    "generator cut": 'cut_off("a", "b")',
    "generator cut at once": "cut_off()",
    "generator cut async": 'acut_off("a", "b")',
    "generator http": 'http_cut_off("a")',
    "generator http at once": "http_cut_off()",
    # errors
    "value error": 'fail(ValueError("no"))',
    "key error": '{}["a"]',
    "type error": 'fail(TypeError("no"))',
    "not implemented": "fail(NotImplementedError())",
    "timeout": "fail(TimeoutError())",
    "assertion": "fail(AssertionError())",
    "stop": 'fail(StopIteration("x"))',
    "validation": 'Point(x="seven")',
    "no words": "fail(Deadend())",
    "http 400": 'fail(fastapi.HTTPException(400, "bad \\u00e4"))',
    "http 404": "fail(fastapi.HTTPException(404))",
    "http 418": 'fail(fastapi.HTTPException(418, {"code": [1, None]}))',
    "http 422": 'fail(fastapi.HTTPException(422, ["a", {"b": 1}]))',
    "http 429": 'fail(fastapi.HTTPException(429, "later", {"Retry-After": "1"}))',
    "http 500": 'fail(fastapi.HTTPException(500, "own words"))',
    "http 503": 'fail(fastapi.HTTPException(503, "busy"))',
    "http empty": 'fail(fastapi.HTTPException(400, ""))',
    "http starlette": 'fail(starlette.exceptions.HTTPException(418, "not ours"))',
}
NAMES = tuple(EXPRESSIONS)

# WORD and INPUTS are filled in by models().
RETURNS = """        want = INPUTS["want"]
        return {
%s        }[want]()
""" % "".join(
    '            "%s": lambda: %s,\n' % (name, text) for name, text in EXPRESSIONS.items()
)

PREDICT = "class Model:\n    WORDdef predict(self, inputs):\n" + RETURNS
CHAT = "\n    WORDdef chat_completions(self, inputs):\n" + RETURNS
POST = (
    "class Model:\n    def predict(self, inputs):\n        return [inputs]\n"
    "\n    WORDdef postprocess(self, result):\n" + RETURNS
)


def models():
    """{kind: text of a model.py}"""
    found = {}
    for kind, word in (("sync", ""), ("async", "async ")):
        for name, text, inputs in ((kind, PREDICT + CHAT, "inputs"), ("post-" + kind, POST, "result[0]")):
            found[name] = TOP + text.replace("WORD", word).replace("INPUTS", inputs)
    return found
