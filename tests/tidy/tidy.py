#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The gates of the house style: what the compiler cannot refuse, this does.

    tests/tidy/tidy.py                 all gates over the tree
    tests/tidy/tidy.py length todo     these gates only
    tests/tidy/tidy.py --list          their names, a line each

Each finding is `path:line: gate: what is wrong`, so that editors jump to it; the exit status is 1
when there is one. A gate is a function that takes the tree and yields findings; its doc string is
its rule. Exceptions stand beside their gate with a reason, never in the code that they excuse.

Needs Python 3.9 and its standard library. Tests: tests/tidy/test_tidy.py
"""

import functools
import os
import re
import subprocess
import sys

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 1000
COLUMNS_MAX = 100
BASE_MODULES_MAX = 16

CODE = (".c", ".h", ".cc", ".cu", ".cuh")
C_LIKE = CODE + (".def",)


class File:
    """One text file of the tree; `code` is its text with comments and strings blanked out."""

    def __init__(self, path, text):
        self.path = path
        self.text = text
        self.name = os.path.basename(path)
        self.folder = path.split("/")[0] if "/" in path else ""
        self.suffix = os.path.splitext(path)[1]

    @functools.cached_property
    def lines(self):
        return self.text.split("\n")

    @functools.cached_property
    def code(self):
        return blank(self.text)

    @functools.cached_property
    def code_lines(self):
        return self.code.split("\n")

    @property
    def is_code(self):
        return self.suffix in CODE

    @property
    def is_main(self):
        return self.name.endswith("_main.c") or "/main/" in self.path


TOKEN = re.compile(
    r"""/\*.*?\*/ | //[^\n]* | R"\((.*?)\)" | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])+'""",
    re.S | re.X,
)


def blank(text):
    """Replaces comments and literals by spaces, so that lines and columns stay where they are."""

    def spaces(match):
        piece = match.group(0)
        if piece[0] in "\"'":
            return piece[0] + re.sub(r"[^\n]", " ", piece[1:-1]) + piece[-1]
        return re.sub(r"[^\n]", " ", piece)

    return TOKEN.sub(spaces, text)


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


# ---- Gates

GATES = {}


def gate(function):
    GATES[function.__name__.replace("gate_", "")] = function
    return function


@gate
def gate_length(tree):
    """A function has at most 70 lines, a file at most 1,000 (S1, S2)."""
    for f in tree:
        if (f.is_code or f.suffix in (".py", ".sh")) and len(f.lines) - 1 > FILE_LINES_MAX:
            yield f, FILE_LINES_MAX + 1, f"file has {len(f.lines) - 1} lines, the limit is 1,000"
        if not f.is_code:
            continue
        for start, end in functions(f):
            if end - start + 1 > FUNCTION_LINES_MAX:
                yield f, start, f"function has {end - start + 1} lines, the limit is 70"


def functions(f):
    """First and last line of each function: its brace stands alone in the first column."""
    start = None
    for number, line in enumerate(f.code_lines, 1):
        if line.startswith("{") and start is None:
            start = number - 1
            while start > 1 and re.match(r"[\w\s*(]", f.code_lines[start - 2] or ";"):
                if re.match(r"\s*$|#|}", f.code_lines[start - 2]):
                    break
                start -= 1
        elif line.startswith("}") and start is not None:
            yield start, number
            start = None


BANNED = {
    "sprintf": "snprintf, or buf_printf",
    "vsprintf": "vsnprintf",
    "strcpy": "mem_copy_text, or memcpy",
    "strcat": "buf_append_text",
    "strncpy": "mem_copy_text",
    "strncat": "buf_append_text",
    "strtok": "strcspn, strchrnul",
    "atoi": "settings_parse_int",
    "atol": "settings_parse_int",
    "atoll": "settings_parse_int",
    "atof": "json_fast_double",
    "gets": "fgets",
    "system": "uv_spawn",
    "alloca": "a named limit, or xmalloc",
    "tmpnam": "mkstemp",
    "mktemp": "mkstemp",
}
NUMBERS = "strtol strtoll strtoul strtoull strtod strtof".split()
CLOCKS = "clock_gettime gettimeofday time clock ftime".split()
RANDOM = "rand srand random srandom drand48 lrand48 rand_r getrandom getentropy".split()
MEMORY = "malloc calloc realloc strdup strndup asprintf vasprintf".split()
SLEEPS = "sleep usleep nanosleep clock_nanosleep".split()

# The one place for each, and who cannot use it: a plugin links nothing of ours but its own folder.
HOMES = (
    (("strtol", "strtoll", "strtoul", "strtoull"), ("base/settings.c",), "settings_parse_int"),
    (tuple(CLOCKS), ("base/clock.c",), "base/clock.h"),
    (tuple(RANDOM), ("base/rng.c",), "base/rng.h"),
    (tuple(MEMORY), ("base/", "workers/engines/"), "base/mem.h"),
)

# Programs of their own that link nothing of ours: they measure or probe what ours stands on.
STANDALONE = ("bench/", "tests/stack/")

# (file, function) -> why it may.
EXCUSED = {
    ("cli/dev_command.c", "vasprintf"): "builds an argument from its caller's format",
    ("cli/dev_run.c", "vasprintf"): "builds a line from its caller's format",
    ("cli/dev_introduce.c", "strtol"): "libpq's own count of rows",
    ("cli/dev_kafka.c", "strtoul"): "a number inside of java's version line",
    ("cli/dev_process.c", "strtoull"): "a number inside of /proc/…/stat",
    ("cli/dev_redis.c", "strtol"): "a number inside of INFO's answer, a port inside of a URL",
    ("cli/dev_main.c", "usleep"): "nothing tells of a lock's release; bounded by a deadline",
    ("tests/unit/test_blob.c", "system"): "removes its own temporary folder",
    ("tests/unit/test_dev_process.c", "strtoul"): "a pid written by its own child",
    ("tests/sim/sim_main.c", "strtoull"): "a seed has all 64 bits",
    ("workers/child.c", "strtoull"): "a number inside of /proc/…/stat",
    ("workers/confine_group.c", "strtoull"): "a number inside of the files of a cgroup",
    ("workers/confine_keeper.c", "strtoull"): "a number inside of /proc/…/stat",
    ("workers/engines/sim/sim.c", "nanosleep"): "simulates a slow load, which is its purpose",
}


def calls(f, name):
    """Lines where a function of this name is called (not declared as a member, not longer)."""
    for match in re.finditer(r"(?<![\w.>])" + name + r"\s*\(", f.code):
        yield line_of(f.code, match.start())


@gate
def gate_banned(tree):
    """Banned functions (W3), clocks and randomness outside their modules (C7), sleeps (C5)."""
    used = set()
    for f in tree:
        if not f.is_code or f.path.startswith(STANDALONE):
            continue
        names = [(n, use) for n, use in BANNED.items()]
        for group, homes, use in HOMES:
            if not f.path.startswith(homes):
                names += [(n, use) for n in group]
        names += [(n, "a timer or an event with a deadline") for n in SLEEPS]
        if not f.is_main and not f.path.startswith("tests/"):
            names.append(("exit", "an error code; only mains leave"))
        wanted = [(n, use) for n, use in names if n in f.code]
        for name, use in wanted:
            for number in calls(f, name):
                if (f.path, name) in EXCUSED:
                    used.add((f.path, name))
                else:
                    yield f, number, f"{name}() is banned here; use {use}"
    for f in tree:
        for path, name in EXCUSED:
            if f.path == path and (path, name) not in used:
                yield f, 1, f"{name}() is excused in tests/tidy/tidy.py and not called: drop that"


# What each folder stands on.
MAY_INCLUDE = {
    "base": {"base"},
    "schema": {"base", "schema"},
    "brokers": {"base", "schema", "brokers"},
    "chains": {"base", "schema", "brokers", "chains"},
    "producers": {"base", "schema", "brokers", "producers"},
    "workers": {"base", "schema", "brokers", "workers"},
    "migrations": {"base", "schema", "brokers", "migrations"},
    "cli": {"base", "schema", "brokers", "cli"},
}


@gate
def gate_includes(tree):
    """Includes point one way: base, schema, brokers, then the rest, which never meet (L2)."""
    for f in tree:
        if f.suffix not in C_LIKE or f.folder not in MAY_INCLUDE:
            continue
        for number, line in enumerate(f.lines, 1):
            match = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if match is None:
                if re.match(r"\s*#\s*include\s+<assert\.h>", line):
                    yield f, number, "<assert.h> vanishes with NDEBUG; use base/assert.h"
                continue
            target = match.group(1)
            if "/" not in target:
                yield f, number, f'"{target}" is not named from the root of the tree'
                continue
            folder = target.split("/")[0]
            if folder in MAY_INCLUDE and folder not in MAY_INCLUDE[f.folder] and not f.is_main:
                yield f, number, f"{f.folder}/ may not include {folder}/"


NOUNS = set(
    "job jobs model models topic topics chain chains webhook webhooks tenant tenants "
    "deployment deployments".split()
)


@gate
def gate_base(tree):
    """base/ has at most 16 modules, each with a unit test, and none of our nouns (L3)."""
    headers = [f for f in tree if f.folder == "base" and f.suffix == ".h"]
    modules = [f for f in headers if not f.name.endswith("_int.h")]
    if len(modules) > BASE_MODULES_MAX:
        yield modules[-1], 1, f"base/ has {len(modules)} modules, the limit is {BASE_MODULES_MAX}"
    tests = {f.path for f in tree}
    for f in modules:
        test = f"tests/unit/test_{f.name[:-2]}.c"
        if f.name != "assert.h" and test not in tests:
            yield f, 1, f"module has no {test}"
        if re.match(r"(util|utils|misc|helper|helpers|common)\b", f.name):
            yield f, 1, "file is not named for the thing that it holds"
    for f in tree:
        if f.folder != "base" or f.suffix not in C_LIKE:
            continue
        for number, line in enumerate(f.code_lines, 1):
            for word in re.findall(r"[A-Za-z_]\w*", line):
                noun = NOUNS & set(word.lower().split("_"))
                if noun:
                    yield f, number, f"'{word}' holds the noun '{noun.pop()}': not base's business"


@gate
def gate_todo(tree):
    """A TODO carries the number of its issue: TODO(#12) (K3)."""
    for f in tree:
        if f.path.startswith("tests/tidy/"):
            continue
        for number, line in enumerate(f.lines, 1):
            if re.search(r"\b(TODO|FIXME|XXX|HACK)\b(?!\(#\d+\))", line):
                yield f, number, "write TODO(#issue), or do it"


@gate
def gate_spdx(tree):
    """The first lines name the license."""
    for f in tree:
        if f.suffix in C_LIKE + (".py", ".sh", ".sql", ".cmake") or f.name == "CMakeLists.txt":
            if "SPDX-License-Identifier: Apache-2.0" not in "\n".join(f.lines[:3]):
                yield f, 1, "first line is no SPDX-License-Identifier: Apache-2.0"


@gate
def gate_headers(tree):
    """A header has #pragma once, and a source of its name (or is a contract with adapters) (H1)."""
    stems = {os.path.splitext(f.path)[0] for f in tree if f.suffix in (".c", ".cc", ".cu")}
    for f in tree:
        if f.suffix not in (".h", ".cuh"):
            continue
        if "#pragma once" not in f.lines:
            yield f, 1, "header lacks #pragma once"
        stem = os.path.splitext(f.path)[0]
        if f.path.startswith("tests/") or f.name.endswith("_int.h") or stem in stems:
            continue
        if any(other.startswith(stem + "_") for other in stems):
            continue
        if f.path not in CONTRACTS:
            yield f, 1, "header has no source of its name"


@gate
def gate_tests(tree):
    """A test that a file's head names is there."""
    there = {f.path for f in tree}
    for f in tree:
        if f.suffix not in (".h", ".c", ".cu", ".cuh", ".def"):
            continue
        for number, line in enumerate(f.lines, 1):
            for path in re.findall(r"\btests/(?:\w+/)+\w+\.(?:cc?|py)\b", line):
                if path not in there:
                    yield f, number, f"there is no {path}"


# Headers that only say what others do.
CONTRACTS = {
    "brokers/owner_guard.h": "a list of bits and its enum, nothing to carry out",
    "workers/engine.h": "the ABI of plugins; each of workers/engines/ carries it out",
}

# Of no machine: /home/app, the home of a model's user as containers of Trusses have it, and /root/.cache and /mnt/ckpts, where training
# jobs have theirs.
PATHS = re.compile(r"""(?<![\w.$}/-])/(?:root(?!/\.cache\b)|home/(?!app\b)\w+|Users/\w+|mnt/(?!ckpts\b)\w+)(?=[/\s'"`]|$)""")


@gate
def gate_paths(tree):
    """No path of anybody's machine stands in the tree."""
    for f in tree:
        if f.path.startswith("tests/tidy/"):
            continue
        for number, line in enumerate(f.lines, 1):
            match = PATHS.search(line)
            if match:
                yield f, number, f"path of a machine: {match.group(0)}"


@gate
def gate_text(tree):
    """No blanks at the ends of lines; C has no tabs and fits 100 columns, but for tables (W1)."""
    for f in tree:
        if f.path.startswith(("tests/data/", "tests/fuzz/corpus/", "LICENSE")):
            continue
        if f.suffix in (".pem", ".tsv", ".md", ".json", ".txt", ".xml", ""):
            continue
        if f.text and not f.text.endswith("\n"):
            yield f, len(f.lines), "file does not end in a line feed"
        for number, line in enumerate(f.lines, 1):
            if line != line.rstrip():
                yield f, number, "blanks at the end of the line"
            if f.is_code and len(line) > COLUMNS_MAX and "http" not in line:
                yield f, number, f"line has {len(line)} columns, the limit is {COLUMNS_MAX}"
            if f.suffix in C_LIKE and "\t" in line:
                yield f, number, "tab"


@gate
def gate_words(tree):
    """C comments are /* */ (K3); structs have no typedef (N1)."""
    for f in tree:
        if f.suffix not in (".c", ".h"):
            continue
        without_strings = re.sub(r'"(?:\\.|[^"\\\n])*"', '""', f.text)
        without_comments = re.sub(
            r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m.group(0)), without_strings, flags=re.S
        )
        for number, line in enumerate(without_comments.split("\n"), 1):
            if "//" in line:
                yield f, number, "comments are /* like this */"
        for number, line in enumerate(f.code_lines, 1):
            if re.match(r"\s*typedef\s+struct\b(?!.*[(*])", line):  # a pointer or a function is none
                yield f, number, "structs have no typedef"


@gate
def gate_answers(tree):
    """Whom Postgres answers looks at the error before the rows, of which there may be none."""
    begin = re.compile(
        r"\(void \*opaque, const struct pg_answer \*answer\)\n\{((?:\n    .*;|\n)*)"
    )
    for f in tree:
        if not f.is_code:
            continue
        for match in begin.finditer(f.code):
            read = re.search(r"= pg_\w+\(answer\b", match[1])
            if read is not None:
                number = line_of(f.code, match.start(1) + read.start())
                yield f, number, "rows are read before answer->err.code"


# ---- The tree


def tree_paths(root):
    """What git would commit; without git, everything but build and hidden folders."""
    git = subprocess.run(
        ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if git.returncode == 0:
        yield from sorted(set(git.stdout.decode().split("\0")) - {""})
        return
    for folder, names, files in os.walk(root):
        names[:] = [n for n in names if not n.startswith((".", "build"))]
        for name in files:
            yield os.path.relpath(os.path.join(folder, name), root)


# Somebody else's files, verbatim; tests/python/test_frames.py has their digests.
VENDORED = ("workers/host_py/headrace_host/msgpack/", "workers/host_py/headrace_host/wsproto/")


def tree_read(root):
    tree = []
    for path in tree_paths(root):
        if path.startswith(VENDORED):
            continue
        try:
            with open(os.path.join(root, path), encoding="utf-8") as file:
                tree.append(File(path, file.read()))
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # data, or deleted and not yet committed
    return tree


def check(tree, names):
    """All findings of these gates, as lines of text."""
    found = []
    for name in names:
        for f, number, what in GATES[name](tree):
            found.append(f"{f.path}:{number}: {name}: {what}")
    return found


def main(args):
    if "--list" in args:
        for name, function in GATES.items():
            print(f"{name:10} {function.__doc__}")
        return 0
    unknown = [name for name in args if name not in GATES]
    if unknown:
        print(f"tidy: there is no gate '{unknown[0]}'; --list names them", file=sys.stderr)
        return 2
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    tree = tree_read(os.path.normpath(root))
    found = check(tree, args or list(GATES))
    print("\n".join(found) if found else f"tidy: {len(tree)} files, {len(GATES)} gates, all well")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
