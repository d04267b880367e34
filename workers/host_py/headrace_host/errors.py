# SPDX-License-Identifier: Apache-2.0
"""How what goes wrong is named: the errors of the Truss server and what we make of them.

Truss answers an error with a status and {"error": text}; a job ends in a class of
schema/error_classes.def. Both follow from the exception, here and nowhere else.
"""

import json
import sys

# Numbers of schema/error_classes.def; tests/python/test_frames.py compares.
BAD_INPUT = 1
MODEL_ERROR = 2
MODEL_UNAVAILABLE = 3
MODEL_TIMEOUT = 4
OOM = 7
LOST_WORKER = 9
CANCELED = 11

USER_CODE_TEXT = "Internal Server Error (in model/chainlet)."


class InputParsingError(ValueError):
    """The body is not what the model takes."""


class UserCodeError(Exception):
    """The model raised; its own error is the cause."""


class ModelMethodNotImplemented(Exception):
    pass


class ModelDefinitionError(TypeError):
    """The model does not keep the contract."""


class LoadError(Exception):
    """The model cannot be loaded. final: trying again would end the same way."""

    def __init__(self, text, final):
        super().__init__(text)
        self.final = final


class Disconnected(Exception):
    """Nobody waits for the answer any more."""


class Unreachable(Exception):
    """The gateway of a websocket cannot be dialed: another worker, or another time, may do better."""


class Left(Exception):
    """Nobody waits for a websocket at its gateway any more."""


class StreamGap(Exception):
    """The next piece of a stream took too long."""


def loaded(module, name):
    """An attribute of a module, if the model's code has that module loaded; else None."""
    return getattr(sys.modules.get(module), name, None)


def is_a(value, module, name):
    kind = loaded(module, name)
    return kind is not None and isinstance(value, kind)


def status_of(error):
    """(HTTP status, text) as the Truss server answers them."""
    if isinstance(error, InputParsingError):
        return 400, str(error)
    if isinstance(error, ModelDefinitionError):
        return 412, "%s: %s" % (type(error).__name__, error)
    if isinstance(error, UserCodeError):
        return 500, USER_CODE_TEXT
    if isinstance(error, ModelMethodNotImplemented):
        return 404, str(error)
    if isinstance(error, Disconnected):
        return 499, str(error)
    if isinstance(error, Unreachable):
        return 503, str(error)
    if isinstance(error, Left):
        return 410, str(error)
    if isinstance(error, StreamGap):
        return 504, str(error)
    if is_a(error, "fastapi", "HTTPException"):
        return error.status_code, error.detail
    return 500, "Unhandled exception: %s: %s" % (type(error).__name__, error)


def class_of_status(status):
    if status == 499:
        return CANCELED
    if status in (408, 504):
        return MODEL_TIMEOUT
    if status in (429, 502, 503):
        return MODEL_UNAVAILABLE
    return BAD_INPUT if status < 500 else MODEL_ERROR


def is_out_of_memory(error):
    """Of this process or of the device, at any depth of causes; those of a model may be a circle."""
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, MemoryError) or is_a(error, "torch.cuda", "OutOfMemoryError"):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def class_of(error, status):
    return OOM if is_out_of_memory(error) else class_of_status(status)


def body_of(text):
    """The bytes of the Truss server's answer (starlette's JSONResponse)."""
    return json.dumps(
        {"error": text}, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode("utf-8")
