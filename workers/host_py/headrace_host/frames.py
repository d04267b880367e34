# SPDX-License-Identifier: Apache-2.0
"""Frames between a worker and this host: the tables of workers/frame.def, and their codec.

A frame is a 4-byte length, big-endian, and the msgpack array [version, type, {key: value}].
tests/python/test_frames.py compares these tables with frame.def.
"""

import struct

from . import msgpack

PROTOCOL = 1
VERSION = 1
HEAD = struct.Struct(">I")
INLINE_MAX = 1 << 20  # longer inputs and outputs go in a memfd beside the frame
SIZE_MAX = INLINE_MAX + (64 << 10)
FD_SIZE_MAX = 256 << 20
TEXT_MAX = 4096  # of an error or a reason, in bytes

HELLO, LOAD, READY, REQ, CANCEL, EVT, STATS, DRAIN, BYE = range(1, 10)

ACCEPTED, TOKENS, OUTPUT, ERROR, LOADING = range(1, 6)  # kinds of an EVT

FIELDS = {
    HELLO: {"protocol": 1, "host": 2, "version": 3, "pid": 4},
    LOAD: {
        "engine": 1,
        "dir": 2,
        "model": 3,
        "device": 4,
        "thread_count": 5,
        "batch_token_max": 6,
        "req_count_max": 7,
        "input_size_max": 8,
        "settings": 9,
        "cache_dir": 10,
        "environment": 11,
        "secrets": 12,
        "deployment": 13,
        "gateway": 14,
    },
    READY: {
        "engine": 1,
        "version": 2,
        "task": 3,
        "detail": 4,
        "granted": 5,
        "token_count_max": 6,
        "host_size": 7,
        "dev_size": 8,
    },
    REQ: {
        "id": 1,
        "input": 2,
        "input_fd_size": 3,
        "limit_ms": 4,
        "alone": 5,
        "job": 6,
        "number": 7,
        "trace": 8,
        "input_type": 9,
        "route": 10,
        "stream": 11,
        "run": 12,
        "tunnel": 13,
    },
    CANCEL: {"id": 1},
    EVT: {
        "kind": 1,
        "id": 2,
        "data": 3,
        "data_fd_size": 4,
        "error_class": 5,
        "text": 6,
        "token_count": 7,
        "batch_count": 8,
        "granted": 9,
        "done_size": 10,
        "total_size": 11,
        "retry_after_ms": 12,
        "http_status": 13,
        "output_type": 14,
    },
    STATS: {
        "queue_req_count": 1,
        "running_req_count": 2,
        "step_count": 3,
        "step_req_count": 4,
        "step_token_count": 5,
        "step_pad_count": 6,
        "step_busy_us": 7,
        "output_count": 8,
        "error_count": 9,
        "oom_count": 10,
        "host_size": 11,
        "dev_size": 12,
        "cache_used_size": 13,
        "cache_size": 14,
    },
    DRAIN: {"haste": 1},
    BYE: {"error_class": 1, "reason": 2, "final": 3},
}
NAMES = {kind: {key: name for name, key in table.items()} for kind, table in FIELDS.items()}


class Malformed(Exception):
    """The other side does not speak this; nothing that follows can be believed."""


def encode(kind, fields):
    """The bytes of one frame. What is zero, empty or None is left out, as base/wire.c does."""
    table = FIELDS[kind]
    body = msgpack.packb([VERSION, kind, {table[k]: v for k, v in fields.items() if v}])
    if len(body) > SIZE_MAX:
        raise ValueError("a frame of %d bytes, the limit is %d" % (len(body), SIZE_MAX))
    return HEAD.pack(len(body)) + body


def decode(body):
    """(type, {name: value}) of one body; unknown keys are skipped."""
    try:
        version, kind, fields = msgpack.unpackb(body, strict_map_key=False)
        names = NAMES[kind]
        named = {names[key]: value for key, value in fields.items() if key in names}
    except Exception as error:
        raise Malformed("no frame: %s" % error) from error
    if version > VERSION:
        raise Malformed("frame version %s, we know %d" % (version, VERSION))
    return kind, named


def cut(text, limit=TEXT_MAX):
    """The text in at most so many bytes of UTF-8; what is no character becomes one."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw.decode("utf-8", "replace")
    return raw[: limit - 3].decode("utf-8", "ignore") + "…"
