# SPDX-License-Identifier: Apache-2.0
"""Building the environment of a Truss: a virtual environment, then pip, which is confined as the model is.

What pip runs is anybody's code: build scripts of packages that come as source. It may write to the new
environment only (its temporary files and what it builds of the archive are in there, too), read what the
model may, and connect to the ports of web servers and of the indexes and proxies that pip is told of.

pip has its own variables of the worker's environment and its files (PIP_INDEX_URL, PIP_NO_INDEX with
PIP_FIND_LINKS, pip.conf, proxies): they say where packages come from. No cache is shared: who could write to
it could change what others install.

What it leaves is not trusted: before the environment counts, its Python is put right, and nothing is
written through links. Failures: a LoadError with pip's own words.
"""

import json
import os
import re
import shutil
import signal
import stat
import time

from . import errors, logs

SECONDS_MAX = 1800
PROGRESS_SECONDS = 2
END_SECONDS = 10
TEXT_MAX = 3000
COPIED_SIZE_MAX = 16 << 20  # of a file of the archive; larger ones are linked to

# pip's words for a network that is away: trying again may help.
NETWORK = re.compile(
    "Connection|Timeout|timed out|Temporary failure|Name or service not known|Network is unreach"
    "|HTTP error 5|Proxy"
)

PASSED = re.compile("PIP_|(http|https|no|all)_proxy$|SSL_CERT_(FILE|DIR)$|REQUESTS_CA_BUNDLE$|GIT_SSL", re.I)
CONFIG_FILES = ("~/.config/pip/pip.conf", "~/.pip/pip.conf", "/etc/xdg/pip/pip.conf", "/etc/pip.conf")

# Becomes pip with variables that nobody sees on a command line: an index may have a password.
STUB = "import json, os, sys; v, c = json.load(sys.stdin); os.environ.update(v); os.execv(c[0], c)"


# ---- what it may ----


def names_files(lines):
    """Whether requirements name files of the archive, or options that may."""
    return any(line.lstrip().startswith(("-", ".", "/")) for line in lines)


def _texts():
    """What pip is told by whoever runs this machine: variables, and files of its configuration."""
    variables = {name: value for name, value in os.environ.items() if PASSED.match(name)}
    files = [os.path.expanduser(name) for name in CONFIG_FILES]
    files = [name for name in files + [variables.get("PIP_CONFIG_FILE", "")] if os.path.isfile(name)]
    texts = list(variables.values())
    for name in files:
        with open(name, encoding="utf-8", errors="replace") as file:
            texts.append(file.read(1 << 20))
    return variables, files, texts


def _ports(texts):
    found = {"80", "443"}
    for text in texts:
        found.update(re.findall(r"://[^/\s]*?:(\d{1,5})(?!\d*@)", text))
    return ",".join(sorted(port for port in found if 0 < int(port) < 65536))


def _paths(texts):
    """Folders of packages and certificates that are named there."""
    found = [word for text in texts for word in re.findall(r"(?:^|[\s=]|file://)(/[^\s,:]+)", text)]
    return [path for path in found if os.path.exists(path) and os.path.realpath(path) != "/"]


def _confined(words, target, cwd, python, command):
    """(command, its standard input): pip behind what confines it."""
    variables, files, texts = _texts()
    if len(files) > 0 and files[0].startswith(os.path.expanduser("~/")):
        variables.setdefault("PIP_CONFIG_FILE", files[0])  # its home is another there
    variables.update(TMPDIR=target + "/tmp", PIP_NO_CACHE_DIR="1", PYTHONUNBUFFERED="1")
    base = os.path.dirname(os.path.dirname(python))
    read = ":".join([base] + files + _paths(texts))
    swapped = {
        "--network": "out",
        "--app": cwd,
        "--ports": _ports(texts),
        "--write": target,
    }
    kept = [word for word in words[:-1] if word.partition("=")[0] not in swapped]
    kept = [word + ":" + read if word.startswith("--read=") else word for word in kept]
    kept += ["%s=%s" % pair for pair in swapped.items()]
    fd = os.memfd_create("headrace-pip", os.MFD_CLOEXEC)
    os.write(fd, json.dumps([variables, command]).encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return kept + ["--", python, "-I", "-c", STUB], fd


# ---- building ----


def _run(command, cwd, progress, deadline, stdin=None):
    """Runs it; each line goes to the log. Returns (exit code, its last lines)."""
    import select
    import subprocess

    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=dict(os.environ, PYTHONUNBUFFERED="1"),
    )
    tail, rest = [], b""
    try:
        while True:
            readable, _, _ = select.select([child.stdout], [], [], PROGRESS_SECONDS)
            progress()
            if time.monotonic() > deadline:
                raise errors.LoadError("the environment took over %d s" % SECONDS_MAX, False)
            if not readable:
                continue
            data = os.read(child.stdout.fileno(), 65536)
            *whole, rest = (rest + data).split(b"\n") if data else (rest, b"")
            for line in whole:
                text = line.decode("utf-8", "replace").rstrip()
                if text:
                    logs.write("INFO", "environment: " + text)
                    tail = (tail + [text])[-60:]
            if not data:
                return child.wait(), tail
    finally:
        if child.poll() is None:
            _end(child)
        child.stdout.close()


def _end(child):
    """With all that it has started: what confines it is told, and has some time for that."""
    child.send_signal(signal.SIGUSR1)
    try:
        child.wait(END_SECONDS)
    except Exception:
        child.kill()
        child.wait()


def _complaint(tail):
    """pip's own error, without what led to it."""
    wrong = [line for line in tail if line.startswith(("ERROR", "error:", "  ERROR", "      ×"))]
    text = "\n".join(wrong or tail[-15:])
    return text[-TEXT_MAX:]


def _copy_of(folder, target):
    """The archive, for pip to build packages of it: they write beside their sources."""

    def copy(source, to):
        if os.path.getsize(source) > COPIED_SIZE_MAX:
            os.symlink(source, to)
        else:
            shutil.copyfile(source, to)

    shutil.copytree(folder, target + "/source", copy_function=copy)
    return target + "/source"


def _pip(folder, target, python, lines, progress, deadline, words):
    asked = target + "/requirements.txt"
    with open(asked, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    os.mkdir(target + "/tmp")
    logs.write("INFO", "environment: installing %d requirements" % len(lines))
    command = [target + "/bin/python", "-I", "-m", "pip", "install", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "-r", asked]
    cwd, stdin = _copy_of(folder, target) if names_files(lines) else folder, None
    if words:
        command, stdin = _confined(words, target, cwd, python, command)
    try:
        return _run(command, cwd, progress, deadline, stdin)
    finally:
        if stdin is not None:
            os.close(stdin)
        shutil.rmtree(target + "/tmp", ignore_errors=True)


def _seal(target, python, detail):
    """Puts right what must be: anything may stand there by now, also links to elsewhere."""
    for name in ("bin", "."):
        if not stat.S_ISDIR(os.lstat(os.path.join(target, name)).st_mode):
            raise errors.LoadError("a package has removed the environment it was installed in", True)
    program, ready = target + "/bin/python", target + "/ready"
    for name in (program, ready):
        if os.path.lexists(name):
            os.unlink(name)
    os.symlink(python, program)
    fd = os.open(ready, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    os.write(fd, detail.encode())
    os.close(fd)


def build(folder, target, python, lines, progress, words):
    """Makes the environment in `target`, whose lock the caller holds; the last file is `ready`. Raises
    LoadError."""
    deadline = time.monotonic() + SECONDS_MAX
    shutil.rmtree(target, ignore_errors=True)
    command = [python, "-I", "-m", "venv", "--symlinks"] + ([] if lines else ["--without-pip"])
    code, tail = _run(command + [target], folder, progress, deadline)
    if code == 0:
        python = os.path.realpath(target + "/bin/python")
        if lines:
            code, tail = _pip(folder, target, python, lines, progress, deadline, words)
    if code != 0:
        shutil.rmtree(target, ignore_errors=True)
        raise errors.LoadError(
            "pip could not install the requirements (exit code %d):\n%s" % (code, _complaint(tail)),
            NETWORK.search("\n".join(tail)) is None,
        )
    _seal(target, python, "%d requirements\n" % len(lines))
