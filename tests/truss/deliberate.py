# SPDX-License-Identifier: Apache-2.0
"""Where Headrace answers otherwise than the truss package's server, on purpose. docs/models.md has the reasons.

Each rule gets (request name, their answer) and returns ours, or None when it is not about this one.
"""

import json
import re

from golden import Answer

BINARY = "application/octet-stream"
JSON = "application/json"
MODEL = b'{"error":"Internal Server Error (in model/chainlet)."}'

# A generator that ends in an error: what it gave before, and the answer when that was nothing.
BREAKS = {
    "generator int": (b"", Answer(500, JSON, MODEL)),
    "generator cut": (b"ab", Answer(500, JSON, MODEL)),
    "generator cut at once": (b"", Answer(500, JSON, MODEL)),
    "generator cut async": (b"ab", Answer(500, JSON, MODEL)),
    "generator http": (b"a", Answer(418, JSON, b'{"error":"broken off"}')),
    "generator http at once": (b"", Answer(418, JSON, b'{"error":"broken off"}')),
}


def broken_stream(case, request, theirs):
    """They end it as if it were whole; here it is an error, or is cut off where it broke."""
    name = re.sub("^chat | (json|msgpack) (stream|whole)$", "", request)
    if name not in BREAKS or theirs.media_type != BINARY or theirs.status != 200:
        return None
    if name == "generator int" and not theirs.cut:
        return None  # gathered: numbers are text then
    given, error = BREAKS[name]
    return Answer(200, BINARY, given, True) if given and request.endswith("stream") else error


def no_media_type(case, request, theirs):
    """A Response without Content-Type has one here: what nobody names is bytes."""
    return Answer(theirs.status, BINARY, theirs.body) if theirs.media_type is None else None


def undecodable(case, request, theirs):
    """A body that cannot be decoded is the client's fault, and the answer says what is wrong."""
    if request in ("no msgpack", "msgpack unknown head") and theirs.status == 400:
        return Answer(400, JSON, b'{"error":"Unknown header: 0xc1"}')
    if case != "inputs-any" or theirs.status != 500:
        return None
    text = json.loads(theirs.body)["error"].split(": ", 2)[2]
    if request.startswith("json"):
        text = "Invalid JSON payload: " + text
    return Answer(400, JSON, json.dumps({"error": text}, separators=(",", ":")).encode())


def pickles(case, request, theirs):
    """msgpack of an array of objects is a pickle, which runs code in whoever reads it."""
    if "array object msgpack" not in request:
        return None
    text = b'{"error":"Unhandled exception: TypeError: an array of objects cannot be encoded"}'
    return Answer(500, JSON, text)


RULES = (broken_stream, no_media_type, undecodable, pickles)


def ours(case, request, theirs):
    """(the answer that Headrace has to give, the name of the rule or "")."""
    for rule in RULES:
        answer = rule(case, request, theirs)
        if answer is not None:
            return answer, rule.__name__
    return theirs, ""
