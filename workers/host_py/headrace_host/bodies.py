# SPDX-License-Identifier: Apache-2.0
"""Bodies: JSON or msgpack in, JSON or msgpack out, with the extension maps of the Truss server.

Source of the maps: truss/templates/shared/serialization.py and msgpack-numpy 0.4.8. Object arrays
are refused in both directions, because they are pickles.
"""

import json
import re
import warnings
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

from . import errors, msgpack

HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE

BINARY = "application/octet-stream"
JSON = "application/json"


def is_binary(media_type):
    return media_type.partition(";")[0].strip().lower() == BINARY


# ---- msgpack, out ----


def _type_name(value):
    """As CPython's own tp_name: types that are written in C have their module in it."""
    kind = type(value)
    if kind.__flags__ & HEAP_TYPE or kind.__module__ == "builtins":
        return kind.__name__
    return "%s.%s" % (kind.__module__, kind.__name__)


def _pack_numpy(value):
    ndarray = errors.loaded("numpy", "ndarray")
    if ndarray is not None and isinstance(value, ndarray):
        if value.dtype.hasobject:
            raise TypeError("an array of objects cannot be encoded")
        structured = value.dtype.kind == "V"
        return {
            b"nd": True,
            b"type": value.dtype.descr if structured else value.dtype.str,
            b"kind": b"V" if structured else b"",
            b"shape": value.shape,
            b"data": value.data if value.flags["C_CONTIGUOUS"] else value.tobytes(),
        }
    if errors.is_a(value, "numpy", "bool_") or errors.is_a(value, "numpy", "number"):
        return {b"nd": False, b"type": value.dtype.str, b"data": value.data}
    if isinstance(value, complex):
        return {b"complex": True, b"data": repr(value)}
    if isinstance(value, int):
        raise OverflowError("Integer value out of range")
    raise TypeError("can not serialize '%s' object" % _type_name(value))


def _pack_other(value):
    if isinstance(value, datetime):
        text = value.isoformat()
        if text.endswith("+00:00"):
            text = text[:-6] + "Z"
        return {b"__dt_datetime_iso__": True, b"data": text}
    if isinstance(value, date):
        return {b"__dt_date_iso__": True, b"data": value.isoformat()}
    if isinstance(value, time):
        if value.utcoffset() is not None:
            raise ValueError("Cannot represent timezone-aware times.")
        return {b"__dt_time_iso__": True, b"data": value.isoformat()}
    if isinstance(value, timedelta):
        parts = (value.days, value.seconds, value.microseconds)
        return {b"__dt_timedelta__": True, b"data": parts}
    if isinstance(value, Decimal):
        return {b"__decimal__": True, b"data": str(value)}
    if isinstance(value, UUID):
        return {b"__uuid__": True, b"data": str(value)}
    return _pack_numpy(value)


# ---- msgpack, in ----

# What the msgpack of pure Python says, to be said in the words of the one in C.
NO_KEY = re.compile(r"<class '(?:\w+\.)*(\w+)'> is not allowed for map key$")


def _timedelta(parts):
    days, seconds, microseconds = parts
    return timedelta(days=days, seconds=seconds, microseconds=microseconds)


def _iso_datetime(text):
    if text.endswith("Z"):  # before Python 3.11 fromisoformat() does not know it
        text = text[:-1] + "+00:00"
    return datetime.fromisoformat(text)


READERS = {
    b"__dt_datetime_iso__": _iso_datetime,
    b"__dt_date_iso__": date.fromisoformat,
    b"__dt_time_iso__": time.fromisoformat,
    b"__dt_timedelta__": _timedelta,
    b"__decimal__": Decimal,
    b"__uuid__": UUID,
}


def _dtype(description):
    """A structured type's fields, with the text that msgpack may have kept as bytes."""
    if not isinstance(description, (list, tuple)):
        return description
    return [
        tuple(_dtype(part) if i == 1 else _text(part) for i, part in enumerate(field))
        for field in description
    ]


def _text(value):
    return value.decode() if isinstance(value, bytes) else value


def _unpack_numpy(value):
    import numpy

    if value.get(b"kind") == b"O" or (
        isinstance(value[b"type"], str) and "O" in value[b"type"]
    ):
        raise ValueError("unsupported payload")
    dtype = numpy.dtype(_dtype(value[b"type"]))
    if dtype.hasobject:
        raise ValueError("unsupported payload")
    if value[b"nd"] is True:
        return numpy.ndarray(buffer=value[b"data"], dtype=dtype, shape=value[b"shape"])
    return numpy.frombuffer(value[b"data"], dtype=dtype)[0]


def _unpack_map(value):
    try:
        for key, read in READERS.items():
            if key in value:
                return read(value[b"data"])
        if b"nd" in value:
            return _unpack_numpy(value)
        if b"complex" in value:
            return complex(_text(value[b"data"]))
    except KeyError:
        pass
    except ImportError as error:
        raise ValueError("an array came, and the model's environment has no numpy") from error
    return value


def _pack(value):
    try:
        return msgpack.packb(value, default=_pack_other)
    except ValueError as error:
        if str(error) == "recursion limit exceeded":
            raise ValueError("recursion limit exceeded.") from None  # in the words of msgpack in C
        raise


# ---- requests ----


def _validation_text(error):
    """pydantic's errors in the words of the Truss server."""
    parts = ["Input Parsing Error%s:" % ("" if error.error_count() == 1 else "s")]
    try:
        for item in error.errors(include_url=False, include_input=False):
            where = ""
            for i, part in enumerate(item["loc"]):
                if isinstance(part, int):
                    where += "[%d]" % part
                else:
                    where += "." * (i > 0) + part
            text = item["msg"] or str({k: v for k, v in item.items() if k != "loc"})
            parts.append("  `%s`: %s." % (where, text))
    except Exception:
        return "Input Parsing Error, %s" % error
    return "\n".join(parts)


def _with_type(input_type, parse, value):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parse_raw is deprecated, and its texts are the contract
            return parse(value)
    except errors.loaded("pydantic", "ValidationError") as error:
        raise errors.InputParsingError(_validation_text(error)) from error


def _unpack(body):
    """Whatever is wrong with the bytes, it is the client's fault: that server says 500 to some of it."""
    try:
        return msgpack.unpackb(body, object_hook=_unpack_map)
    except MemoryError:
        raise
    except Exception as error:
        text = NO_KEY.sub(r"\1 is not allowed for map key when strict_map_key=True", str(error))
        raise errors.InputParsingError(text) from error


def read(body, media_type, input_type):
    """The inputs of a request; input_type: a pydantic model, or None. Raises InputParsingError."""
    if is_binary(media_type):
        inputs = _unpack(body)
        if input_type is not None:
            inputs = _with_type(input_type, input_type.parse_obj, inputs)
        return inputs
    if input_type is not None:
        return _with_type(input_type, input_type.parse_raw, body)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise errors.InputParsingError("Invalid JSON payload: %s" % error) from error


# ---- answers ----


class _Encoder(json.JSONEncoder):
    def default(self, value):
        if errors.is_a(value, "numpy", "integer"):
            return int(value)
        if errors.is_a(value, "numpy", "floating"):
            return float(value)
        if errors.is_a(value, "numpy", "ndarray"):
            return value.tolist()
        return super().default(value)


def write(result, binary):
    """(bytes, media type) of what a model returned: binary answers a binary request."""
    is_model = errors.is_a(result, "pydantic", "BaseModel")
    if binary:
        if is_model:
            result = result.model_dump() if hasattr(result, "model_dump") else result.dict()
        if not isinstance(result, bytes):
            result = _pack(result)
        return result, BINARY
    if is_model:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return result.json().encode("utf-8"), JSON
    return json.dumps(result, cls=_Encoder).encode("utf-8"), JSON
