# SPDX-License-Identifier: Apache-2.0
"""What the model says: log records and prints, one JSON object a line on standard error.

    {"asctime": …, "levelname": …, "message": …, "request_id": …}

With DISABLE_JSON_LOGGING set, plain text. The newest lines are kept for the texts of errors.
"""

import collections
import contextvars
import io
import json
import os
import sys
import threading
import time

LINE_MAX = 16 << 10  # bytes of one message; more is cut
TAIL_LINES = 200
TAIL_TEXT_MAX = 1500

request_id = contextvars.ContextVar("headrace_request_id", default=None)

_tail = collections.deque(maxlen=TAIL_LINES)
_lock = threading.Lock()


def _stamp():
    now = time.time()
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + ",%03d" % (now % 1 * 1000)


def write(level, message):
    """One line. Never raises: a log that cannot be written must not end a request."""
    if len(message) > LINE_MAX:
        message = message[:LINE_MAX] + "… (%d characters)" % len(message)
    request = request_id.get()
    _tail.append((request, message))
    if os.environ.get("DISABLE_JSON_LOGGING"):
        line = "%s %s %s" % (_stamp(), level, message)
    else:
        record = {"asctime": _stamp(), "levelname": level, "message": message}
        if request:
            record["request_id"] = request
        line = json.dumps(record)
    try:
        with _lock:
            os.write(2, line.encode("utf-8", "replace") + b"\n")
    except OSError:
        pass


def tail(request=None):
    """The newest lines, of one request when it said anything, for the text of an error."""
    lines = list(_tail)
    own = [message for said_in, message in lines if request and said_in == request]
    text = "\n".join((own or [message for _, message in lines])[-20:])
    return text[-TAIL_TEXT_MAX:]


class Prints(io.TextIOBase):
    """Takes the place of sys.stdout and sys.stderr: whole lines become records."""

    encoding = "utf-8"

    def __init__(self, level):
        self.level = level
        self.parts = threading.local()

    def writable(self):
        return True

    def write(self, text):
        text = str(text)
        whole, line_feed, rest = (getattr(self.parts, "text", "") + text).rpartition("\n")
        if line_feed:
            for line in whole.split("\n"):
                write(self.level, line)
        self.parts.text = rest
        if len(rest) > LINE_MAX:
            self.flush()
        return len(text)

    def flush(self):
        text = getattr(self.parts, "text", "")
        self.parts.text = ""
        if text:
            write(self.level, text)

    def fileno(self):
        return 2


def open_logs(debug):
    """What the code of this process prints and logs is told from now on. Descriptor 1 is 2."""
    import logging  # the first half does without, and starts faster

    class Handler(logging.Handler):
        def emit(self, record):
            try:
                message = record.getMessage()
                if record.exc_info:
                    message += "\n" + logging.Formatter().formatException(record.exc_info)
                write(record.levelname, message)
            except Exception:  # a record that cannot be formatted is the model's fault, and no end
                write("ERROR", "a log record could not be formatted: %r" % (record.msg,))

    os.dup2(2, 1)
    sys.stdout = Prints("INFO")
    sys.stderr = Prints("ERROR")
    root = logging.getLogger()
    root.handlers = [Handler()]
    root.setLevel(logging.DEBUG if debug else logging.INFO)
