# SPDX-License-Identifier: Apache-2.0
"""The first half of host-py, in the machine's own Python: makes the model's environment.

HELLO, LOAD, then environment.py; progress goes to the log and, so that nobody thinks we hang, in
LOADING frames. It becomes the second half by execve(2), in the environment's Python: the socket
stays descriptor 3, and what was read of it is in a memfd, its standard input.

Failures: a BYE with what is missing, or with pip's own words.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import sys

from . import chainlets, checkpoints, environment, errors, frames, logs, msgpack, place
from .link import Gone, Link

VERSION = "1"

# What a Truss is told not to set, and what is nobody's business in it.
RESERVED = ("PORT", "HOST", "HOSTNAME", "PATH", "K_SERVICE", "K_REVISION", "K_CONFIGURATION")
HIDDEN = ("HEADRACE_", "PIP_", "UV_", "PG")


def _die_with_the_worker():
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (ImportError, OSError, AttributeError):
        pass  # the end of the socket ends us as well, only later


def _wait_for_load(link):
    import select

    while True:
        frame = link.next()
        if frame is not None:
            break
        select.select([link.sock], [], [])
        link.receive()
    if frame[0] != frames.LOAD:
        raise frames.Malformed("the first frame of a worker is not LOAD")
    return frame[1]


def _check_machine(load, config):
    """What the model needs of this machine, and pip cannot bring."""
    environment.check_system_packages(config.get("system_packages") or [])
    if load.get("device", "cpu") != "cpu" and not os.path.exists("/dev/nvidiactl"):
        raise errors.LoadError(
            "the deployment asks for %s (resources.accelerator), and this machine has no NVIDIA "
            "driver" % load["device"],
            True,
        )


def _work_folder(load):
    """A folder of this process with the model's files in it: relative paths work and new files may
    be written, and the unpacked archive, which others use, stays as it is."""
    above = os.path.join(load.get("cache_dir") or "/tmp", "work")
    os.makedirs(above, exist_ok=True)
    for name in os.listdir(above):
        if name.isdigit() and not os.path.exists("/proc/" + name):
            shutil.rmtree(os.path.join(above, name), ignore_errors=True)
    folder = os.path.join(above, str(os.getpid()))
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    place.link_into(load["dir"], folder)
    return folder


def _of_the_machine():
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)
    }
    variables.pop("PYTHONPATH", None)
    variables.pop("SECRETS_DIR", None)  # a sandbox sets it, to a folder of its own
    return dict(variables, PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1")


def _of_the_deployment(load, config, python):
    """Set by the second half: a confinement lets none of them through."""
    variables = {
        name: value
        for name, value in (config.get("environment_variables") or {}).items()
        if name not in RESERVED and not name.startswith("KUBERNETES_")
    }
    return dict(
        variables,
        PYTHON_EXECUTABLE=python,
        BT_MODEL_DEPLOYMENT_ID=load.get("deployment", ""),
        **checkpoints.variables(config, load["dir"], "--level=strict" in sys.argv),
    )


def _is_alone():
    """Whether something confines the model, and what is built for it."""
    return "--level=strict" in sys.argv or "--level=basic" in sys.argv


def _confined(words, python, program):
    """What stands in front of the second half, which may read its environment and our modules."""
    read = [
        os.path.dirname(os.path.dirname(python)),
        os.path.dirname(os.path.dirname(os.path.realpath(python))),
        program,
    ]
    return [
        ":".join([word] + read) if word.startswith("--read=") else word for word in words
    ]


def _add_bind(words, bind):
    """One more FILE=PLACE of the confinement, whose setting counts once."""
    for i, word in enumerate(words):
        if word.startswith("--bind="):
            words[i] = word + ";" + bind.partition("=")[2]
            return
    words.insert(words.index("--"), bind)


def _go_on(program, link, load, made, config):
    words, program = sys.argv[1:], environment.compiled(made, program)
    wired = chainlets.text(config, load.get("gateway", ""))
    if wired and "--level=strict" in words:
        _add_bind(words, chainlets.bind(wired, load.get("cache_dir") or "/tmp"))
    state = {
        "load": load,
        "rest": bytes(link.inbox),
        "python_detail": made.detail,
        "folder": "" if _is_alone() else _work_folder(load),
        "variables": _of_the_deployment(load, config, made.python),
        "chainlets": wired,
    }
    fd = os.memfd_create("headrace-load", 0)
    os.write(fd, msgpack.packb(state))
    os.dup2(fd, 0)
    os.dup2(link.sock.fileno(), 3)
    os.set_inheritable(3, True)
    # -s: no packages of this machine's user.
    words = _confined(words, made.python, program) + [made.python, "-s", program, "--loaded"]
    os.execve(words[0], words, _of_the_machine())


def _prepare(link, load):
    try:
        settings = json.loads(load.get("settings") or "{}")
        config = settings["truss"]
    except (ValueError, KeyError, TypeError) as error:
        raise errors.LoadError(
            "the deployment's settings have no 'truss': this engine runs what `headrace push` made "
            "of a config.yaml (%r)" % error,
            True,
        ) from error
    _check_machine(load, config)

    def progress():
        link.send_now(frames.EVT, kind=frames.LOADING, done_size=1, total_size=2)
        link.receive()

    made = environment.make(
        load["dir"],
        config,
        settings.get("python", "nearest"),
        load.get("cache_dir"),
        progress,
        sys.argv[1:] if _is_alone() else None,
    )
    return made, config


def main(program):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_the_worker()
    fcntl.fcntl(3, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    link = Link(socket.socket(fileno=3))
    try:
        link.send_now(
            frames.HELLO,
            protocol=frames.PROTOCOL,
            host="host-py",
            version=VERSION,
            pid=os.getpid(),
        )
        load = _wait_for_load(link)
        made, config = _prepare(link, load)
        _go_on(program, link, load, made, config)
    except Gone:
        os._exit(0)
    except errors.LoadError as error:
        _bye(link, str(error), error.final)
    except Exception as error:
        logs.write("ERROR", "host-py could not start: %r" % error)
        _bye(link, "host-py could not start: %r" % error, False)


def _bye(link, reason, final):
    try:
        link.send_now(
            frames.BYE,
            error_class=errors.MODEL_UNAVAILABLE,
            reason=frames.cut(reason),
            final=final,
        )
    except Gone:
        pass
    sys.exit(2)
