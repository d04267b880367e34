#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Keeps the tables in docs/ as fresh as the .def tables that they come from.

    tests/tidy/pages.py            exit 1 when a page is stale, and which
    tests/tidy/pages.py --write    writes them anew

docs/settings.md is made whole from each *_settings.def; docs/observability.md has the metrics of
each *_metrics.def between two marks and is a person's everywhere else.

Needs Python 3.9 and its standard library. Tests: tests/tidy/test_pages.py
"""

import glob
import os
import re
import sys

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

ROW = re.compile(r"^(?:SETTING|METRIC)_(\w+)\((.*)\)\s*$", re.M)
ARGUMENT = re.compile(r'\s*((?:"(?:\\.|[^"\\])*"\s*)+|[^,"]+)\s*(?:,|$)')

BEGIN = "<!-- metrics: made by tests/tidy/pages.py -->"
END = "<!-- metrics: end -->"

SETTINGS_HEAD = """\
# Settings

Every program takes its settings from flags, each with a twin in the environment; flags win, then
the environment, then the default. `headrace PROGRAM --help` prints the same, `--help-settings` this
table, and `--check` says whether a set of settings is right without starting anything.

Durations are written `250ms`, `4s`, `5m`, `2h`, `3d`; sizes `512`, `64KiB`, `1MiB`, `2GB`. A secret
may come from the first line of a file instead: `--NAME-file`, `HEADRACE_NAME_FILE`.

This page is made from the tables beside the programs: `tests/tidy/pages.py --write`.
"""


def arguments(text):
    """The arguments of a row: strings without their quotes (adjacent ones joined), words as is."""
    found = []
    for match in ARGUMENT.finditer(text):
        piece = match.group(1).strip()
        if piece.startswith('"'):
            piece = "".join(re.findall(r'"((?:\\.|[^"\\])*)"', piece)).replace('\\"', '"')
        found.append(piece)
    return found


def rows(text):
    return [(kind, arguments(rest)) for kind, rest in ROW.findall(text)]


def cell(text):
    return text.replace("|", "\\|")


def code(text):
    return f"`{text}`" if text else ""


TYPES = {
    "STRING": "text",
    "SECRET": "secret",
    "URL": "URL",
    "INT": "number",
    "DURATION": "duration",
    "BYTES": "size",
    "BOOL": "yes or no",
}


def settings_row(kind, args):
    name, initial = args[0], args[1]
    bounds = f"{args[2]} to {args[3]}" if len(args) == 5 else ""
    cells = (
        f"`--{name.replace('_', '-')}`",
        f"`HEADRACE_{name.upper()}`",
        TYPES[kind],
        "" if kind == "SECRET" else code(initial),
        bounds,
        cell(args[-1]),
    )
    return "| " + " | ".join(cells) + " |\n"


def settings_page(tables):
    page = SETTINGS_HEAD
    for program, text in tables:
        page += f"\n## headrace {program}\n\n"
        page += "| flag | variable | type | default | range | what it does |\n"
        page += "| --- | --- | --- | --- | --- | --- |\n"
        page += "".join(settings_row(kind, args) for kind, args in rows(text))
    return page


def metrics_row(kind, args):
    labels = ", ".join(f"`{label}`" for label in args[1].split(",") if label)
    return f"| `headrace_{args[0]}` | {kind.lower()} | {labels} | {cell(args[-1])} |\n"


def metrics_tables(tables):
    text = ""
    for program, table in tables:
        text += f"\n### headrace {program}\n\n| metric | type | labels | what it counts |\n"
        text += "| --- | --- | --- | --- |\n"
        text += "".join(metrics_row(kind, args) for kind, args in rows(table))
    return text + "\n"


def metrics_page(page, tables):
    """The page with what is between its marks made anew; unchanged when it has none."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        return page
    return head + begin + "\n" + metrics_tables(tables) + end + tail


def tables_read(suffix):
    tables = []
    for path in sorted(glob.glob(os.path.join(ROOT, "*", f"*{suffix}"))):
        with open(path, encoding="utf-8") as file:
            tables.append((os.path.basename(path)[: -len(suffix)], file.read()))
    return tables


def read(path):
    try:
        with open(os.path.join(ROOT, path), encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def main(args):
    observability = read("docs/observability.md")
    pages = {
        "docs/settings.md": settings_page(tables_read("_settings.def")),
        "docs/observability.md": metrics_page(observability, tables_read("_metrics.def")),
    }
    stale = [path for path, text in pages.items() if read(path) != text]
    if "--write" in args:
        for path in stale:
            with open(os.path.join(ROOT, path), "w", encoding="utf-8") as file:
                file.write(pages[path])
            print(f"pages: wrote {path}")
        return 0
    for path in stale:
        print(f"{path}:1: pages: stale; run tests/tidy/pages.py --write")
    if not stale:
        print(f"pages: {len(pages)} pages are fresh")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
