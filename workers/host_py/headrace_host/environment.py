# SPDX-License-Identifier: Apache-2.0
"""The Python environment of a Truss: which Python, which packages, built once.

    <cache>/python/<digest>/      a virtual environment; the digest is of Python's version, of what
                                  is required and of what our base list adds
    <cache>/python/<digest>.lock  exclusive while it is built or removed, shared while it is taken
    <cache>/python-known/<digest> which environment a model had when everything that decides it was as
                                  it is: its files, its config, the Pythons of this machine
    <environment>/host-<digest>/  this program, with bytecode of its Python

What the model requires is installed as it says. Of the packages that the Truss server always has
(base.txt) those are added that the model's files import and it does not require itself; without any
package nothing is downloaded.

building.py installs into it.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time

from . import building, errors, logs

MINORS = range(9, 15)  # Python 3.9 … 3.14
KNOWN_MAX = 1000  # then all are forgotten
KEPT_MAX = 40  # environments; the longest unused ones go
SCAN_FILES_MAX = 2000
SCAN_FILE_SIZE_MAX = 1 << 20

class Made:
    def __init__(self, python, detail, lock_fd):
        self.python = python
        self.detail = detail
        self.lock_fd = lock_fd


# ---- which Python ----


def _version_of(python):
    """(3, 11, 2) of a program that can make environments; None: it cannot."""
    probe = "import sys, venv, ensurepip; print(*sys.version_info[:3])"
    import subprocess

    try:
        done = subprocess.run(
            [python, "-I", "-c", probe], capture_output=True, timeout=30, check=False
        )
        return tuple(int(part) for part in done.stdout.split()) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def _wanted_minor(config):
    match = re.fullmatch(r"py3(\d{1,2})", config.get("python_version") or "")
    return int(match.group(1)) if match else sys.version_info[1]


def find_python(config, policy):
    """(program, version, detail): the asked Python, or the nearest that is installed."""
    wanted = _wanted_minor(config)
    # Nearest first; of two that are equally near the newer one.
    for minor in sorted(MINORS, key=lambda m: (abs(m - wanted), -m)):
        names = ["python3.%d" % minor]
        if minor == sys.version_info[1]:
            names.append(sys.executable)
        for name in names:
            program = shutil.which(name)
            version = program and _version_of(program)
            if not version or version[1] != minor:
                continue
            if minor == wanted:
                return program, version, "Python %d.%d.%d" % version
            if policy == "exact":
                break
            detail = "Python %d.%d.%d, the nearest installed to 3.%d" % (*version, wanted)
            return program, version, detail
        if policy == "exact":
            break
    raise errors.LoadError(
        "no Python 3.%d%s on this machine (looked for python3.N in PATH, with its venv module)"
        % (wanted, "" if policy == "exact" else " nor another from 3.9 on"),
        True,
    )


# ---- what it needs ----


def check_system_packages(names):
    import subprocess

    missing = []
    for name in names:
        plain = re.split(r"[=:/\s]", name)[0]
        try:
            done = subprocess.run(
                ["dpkg-query", "-W", "-f", "${db:Status-Status}", "--", plain],
                capture_output=True,
                timeout=30,
                check=False,
            )
        except OSError as error:
            raise errors.LoadError(
                "system_packages: this machine has no dpkg-query to check %s with"
                % ", ".join(names),
                True,
            ) from error
        if done.stdout.strip() != b"installed":
            missing.append(plain)
    if missing:
        raise errors.LoadError(
            "system_packages: not installed on this machine: %s. As root: apt-get install -y %s"
            % (", ".join(missing), " ".join(missing)),
            True,
        )


def _imports_of(folder):
    """Top-level names that the Python files of a model import."""
    import ast

    found, count = set(), 0
    for above, names, files in os.walk(folder):
        names[:] = sorted(n for n in names if not n.startswith("."))
        for name in sorted(files):
            path = os.path.join(above, name)
            if not name.endswith(".py") or os.path.getsize(path) > SCAN_FILE_SIZE_MAX:
                continue
            count += 1
            if count > SCAN_FILES_MAX:
                return found
            try:
                with open(path, "rb") as file:
                    tree = ast.parse(file.read())
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue  # its import tells
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    found.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    return found


def canonical(requirement):
    """The name of a requirement, as packages compare names; "" for a URL or an option."""
    match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    return re.sub(r"[-_.]+", "-", match.group(1)).lower() if match else ""


def _own_modules(folder):
    """Top-level names that the archive brings itself."""
    names = set()
    for above in (folder, os.path.join(folder, "packages")):
        if os.path.isdir(above):
            names.update(name[:-3] if name.endswith(".py") else name for name in os.listdir(above))
    return names


def _base(imports, required):
    """Lines of base.txt that are imported and not required: "module = requirement"."""
    names = {canonical(line) for line in required}
    lines = []
    with open(os.path.join(os.path.dirname(__file__), "base.txt"), encoding="utf-8") as file:
        for line in file:
            module, equals, requirement = line.partition("=")
            requirement = requirement.strip()
            if line.startswith("#") or not equals or module.strip() not in imports:
                continue
            if canonical(requirement) not in names:
                lines.append(requirement)
    return lines


def _lines_of_file(folder, name):
    """The requirement lines behind requirements_file, and what of it a digest must cover."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise errors.LoadError("requirements_file: there is no %s in the archive" % name, True)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    base = os.path.basename(name)
    if base == "pyproject.toml":
        return _lines_of_pyproject(text, name)
    if base == "uv.lock":
        return _lines_of_uv_lock(os.path.dirname(path))
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _lines_of_pyproject(text, name):
    try:
        import tomllib
    except ImportError as error:
        raise errors.LoadError("requirements_file: pyproject.toml needs Python 3.11", True) from error
    try:
        lines = tomllib.loads(text)["project"].get("dependencies", [])
    except (tomllib.TOMLDecodeError, KeyError, AttributeError) as error:
        raise errors.LoadError("%s: no [project] dependencies: %s" % (name, error), True) from error
    return [str(line) for line in lines]


def _lines_of_uv_lock(folder):
    import subprocess

    uv = shutil.which("uv")
    if uv is None:
        raise errors.LoadError(
            "requirements_file: uv.lock needs the program uv on this machine, which is not in PATH",
            True,
        )
    done = subprocess.run(
        [uv, "export", "--frozen", "--no-emit-project", "--no-header", "--directory", folder],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        raise errors.LoadError("uv export: %s" % done.stderr.strip()[-building.TEXT_MAX:], True)
    return done.stdout.splitlines()


def requirements(folder, config):
    """(lines for pip, their folder): what the model requires, and what our base list adds."""
    required = list(config.get("requirements") or [])
    name = config.get("requirements_file")
    if name:
        if os.path.isabs(name) or ".." in name.split("/"):
            raise errors.LoadError("requirements_file: '%s' is not in the archive" % name, True)
        required = _lines_of_file(folder, name)
    return required + _base(_imports_of(folder) - _own_modules(folder), required)


# ---- keeping ----


def _in_use(path):
    """Whether a process runs that was started with a program of this environment."""
    wanted = (path + "/bin/python").encode()
    for name in os.listdir("/proc"):
        try:
            with open("/proc/%s/cmdline" % name, "rb") as file:
                if name.isdigit() and wanted in file.read().split(b"\0"):
                    return True
        except OSError:
            continue
    return False


def _forget_old(above, keep):
    """The longest unused environments past the limit, when nobody runs in them."""
    found = []
    for name in os.listdir(above):
        path = os.path.join(above, name)
        if name.endswith(".lock") and name[:-5] != keep:
            found.append((os.path.getmtime(path), path[:-5]))
    for _, path in sorted(found)[: max(0, len(found) + 1 - KEPT_MAX)]:
        fd = os.open(path + ".lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _in_use(path):
                shutil.rmtree(path, ignore_errors=True)
                os.unlink(path + ".lock")
        except OSError:
            pass  # somebody takes it just now
        finally:
            os.close(fd)


def _lock(target, progress):
    """The lock of one environment: shared when it is there, else held alone to build it."""
    path = target + ".lock"
    waited = False
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        kind = fcntl.LOCK_SH if os.path.exists(target + "/ready") else fcntl.LOCK_EX
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            # The file may be another by now, if the environment was forgotten meanwhile.
            if os.path.exists(path) and os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        except OSError:
            if not waited:
                logs.write("INFO", "environment: another process builds it, waiting")
            waited = True
            progress()
            time.sleep(0.2)
        os.close(fd)


# ---- what was found out before ----


def _stamp_of(path):
    try:
        about = os.stat(path)
    except OSError:
        return None
    return [path, about.st_mtime_ns, about.st_size, about.st_ino]


def _known_path(cache, folder, config, policy):
    """Where it is written down which environment this is; its name covers all that decides it."""
    pythons = [shutil.which("python3.%d" % minor) for minor in MINORS] + [sys.executable]
    stamps = [path and [path, _stamp_of(os.path.realpath(path))] for path in pythons]
    files = [_stamp_of(os.path.join(os.path.dirname(__file__), "base.txt"))]
    for at, names, found in os.walk(folder):
        names.sort()
        files += [
            _stamp_of(os.path.join(at, name))
            for name in sorted(found)
            if name.endswith((".py", ".txt", ".toml", ".lock"))
        ]
    said = json.dumps([os.path.realpath(folder), config, policy, stamps, files], sort_keys=True)
    return os.path.join(cache, "python-known", hashlib.sha256(said.encode()).hexdigest()[:32])


def _recall(known, above):
    """(digest, detail, how many requirements), when its environment is there; else None."""
    try:
        with open(known, encoding="utf-8") as file:
            digest, detail, count = json.load(file)
        return (digest, detail, count) if os.path.exists(above + "/%s/ready" % digest) else None
    except (OSError, ValueError, TypeError):
        return None


def _remember(known, *what):
    """Lost when the disk is full, which costs time only."""
    above = os.path.dirname(known)
    try:
        os.makedirs(above, exist_ok=True)
        names = os.listdir(above)
        for name in names if len(names) > KNOWN_MAX else []:
            os.unlink(os.path.join(above, name))
        new = "%s.%d" % (known, os.getpid())
        with open(new, "w", encoding="utf-8") as file:
            json.dump(what, file)
        os.rename(new, known)
    except OSError as error:
        logs.write("WARNING", "environment: not written down: %s" % error)


def compiled(made, program):
    """A copy of this program in the environment, with bytecode of its Python: what was read from
    sources anew at each start took longer than all else that we do. The original when it cannot be
    made."""
    stamps = [
        _stamp_of(os.path.join(at, name))[1:3] + [name]
        for at, _, names in os.walk(program)
        for name in sorted(names)
        if not name.endswith(".pyc")
    ]
    digest = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
    above = os.path.join(os.path.dirname(os.path.dirname(made.python)), "host-" + digest)
    copy = os.path.join(above, os.path.basename(program))
    if os.path.exists(copy):
        return copy
    import subprocess

    new = "%s.%d" % (above, os.getpid())
    try:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(program, os.path.join(new, os.path.basename(program)), ignore=skip)
        # Not by the environment's own program: what built it may have changed that.
        compile_all = [os.path.realpath(made.python), "-I", "-S", "-m", "compileall", "-q", new]
        if subprocess.run(compile_all, stdin=subprocess.DEVNULL, check=False).returncode == 0:
            os.rename(new, above)
    except OSError as error:
        if not os.path.exists(copy):  # else another process was faster
            logs.write("WARNING", "environment: host-py is not compiled: %s" % error)
    shutil.rmtree(new, ignore_errors=True)
    return copy if os.path.exists(copy) else program


def _find(folder, config, policy):
    """(python, digest, detail, lines) of the environment that this model needs."""
    python, version, detail = find_python(config, policy)
    lines = requirements(folder, config)
    said = json.dumps([os.path.realpath(python), version, lines])
    if building.names_files(lines):
        said += os.path.realpath(folder)  # files of the archive are part of it: no other's will do
    return python, hashlib.sha256(said.encode()).hexdigest()[:32], detail, lines


def make(folder, config, policy, cache, progress, words=None):
    """The environment for a model's folder; built when it is not there. Raises LoadError. words: what
    confines a program that stands behind them; None: nothing does."""
    if not cache:
        raise errors.LoadError("the worker was given no cache folder (--cache-dir)", True)
    above = os.path.join(cache, "python")
    os.makedirs(above, exist_ok=True)
    known = _known_path(cache, folder, config, policy)
    python, lines, recalled = None, [], _recall(known, above)
    if recalled:
        digest, detail, count = recalled
    else:
        python, digest, detail, lines = _find(folder, config, policy)
        count = len(lines)
    target = os.path.join(above, digest)
    lock_fd = _lock(target, progress)
    if not os.path.exists(target + "/ready"):
        if python is None:  # it was forgotten after we had looked
            os.close(lock_fd)
            os.unlink(known)
            return make(folder, config, policy, cache, progress, words)
        logs.write("INFO", "environment: building %s for %s" % (digest[:12], detail))
        building.build(folder, target, python, lines, progress, words)
        _forget_old(above, digest)
    os.utime(target + ".lock")
    fcntl.flock(lock_fd, fcntl.LOCK_SH)
    if not recalled:
        _remember(known, digest, detail, count)
    logs.write("INFO", "environment: %s, %d requirements" % (detail, count))
    return Made(target + "/bin/python", detail, lock_fd)
