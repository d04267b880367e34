# SPDX-License-Identifier: Apache-2.0
"""Headrace's side of the comparison: host-py over its socket, as a worker drives it."""

import os
import sys

import cases
import golden

sys.path.insert(0, os.path.join(cases.ROOT, "tests", "python"))

import drive  # noqa: E402
from headrace_host import frames  # noqa: E402

REQUIREMENTS = ["fastapi", "numpy", "pydantic"]


def wheels():
    """Variables with which pip installs from the wheels that scripts/python/wheels has fetched."""
    deps = os.environ["HEADRACE_DEPS"]
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": deps + "/wheels-truss"}


def host(case):
    config = dict(case.config, requirements=REQUIREMENTS)
    return drive.Host(case.files, config, env=wheels())


def fields_of(request):
    """An answer may come in pieces unless the client wants JSON: the gateway decides that."""
    return {
        "route": "%s %s" % (request.method, request.path),
        "input_type": None if request.media_type == cases.JSON else request.media_type,
        "stream": request.accept != cases.JSON,
    }


def answer(host, request):
    got = host.ask(request.body, **fields_of(request))
    if got.pieces:
        whole = b"".join(got.pieces)
        if got.kind == frames.OUTPUT:
            assert (whole, got.piece_type) == (got.data, got.media_type), request.name
        else:  # the caller has had these, and the connection breaks off
            return golden.Answer(200, got.piece_type, whole, True)
    return golden.Answer(got.status, got.media_type, got.data)


def answers(case):
    """{request: Answer}, and the log of what went wrong on our side."""
    with host(case) as started:
        started.ready()
        return {request.name: answer(started, request) for request in case.requests}


def refusal(case):
    with host(case) as started:
        return started.bye()["reason"]
