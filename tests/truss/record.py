#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/truss/answers.json: asks the server that the truss package makes.

    scripts/python/venv compare
    $HEADRACE_DEPS/venv-compare/bin/python tests/truss/record.py [--check] [--only WORD]

--check compares with the file instead, and names what differs. --only prints the answers of the cases
with WORD in their names.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import shutil
import sys
import tempfile

import cases
import examples
import golden
import theirs

PACKAGES = "truss fastapi starlette pydantic numpy msgpack msgpack-numpy uvicorn".split()
COMMAND = "scripts/python/venv compare; venv-compare/bin/python tests/truss/record.py"


def write_truss(case, folder):
    import yaml

    for name, text in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(case.config))


def ask_cases(wanted, work):
    answers, refused, server = {}, {}, None
    for number, case in enumerate(wanted):
        root = work / str(number)
        write_truss(case, root / "truss")
        theirs.build(root / "truss", root)
        server = server or theirs.Server(root / "app")
        if case.name.startswith("refused"):
            refused[case.name] = server.refusal(root)
            continue
        got = server.answers(root, case.requests)
        answers[case.name] = {
            request.name: golden.Answer(*answer) for request, answer in zip(case.requests, got)
        }
        if number:
            shutil.rmtree(root)
    return answers, refused


def compare(made, answers, refused):
    old_made, old_answers, old_refused = golden.read()
    wrong = ["made: %s, was %s" % (made, old_made)] if made != old_made else []
    wrong += ["refused: %s, was %s" % (refused, old_refused)] if refused != old_refused else []
    for case in sorted(set(answers) | set(old_answers)):
        new, old = answers.get(case, {}), old_answers.get(case, {})
        wrong += [
            "%s, %s: %s, was %s" % (case, name, new.get(name), old.get(name))
            for name in sorted(set(new) | set(old))
            if new.get(name) != old.get(name)
        ]
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only")
    options = parser.parse_args()
    made = {name: importlib.metadata.version(name) for name in PACKAGES}
    made.update(python=platform.python_version(), command=COMMAND)
    wanted = cases.all_cases()
    if options.only:
        wanted = [case for case in wanted if options.only in case.name]
    work = pathlib.Path(tempfile.mkdtemp(prefix="truss-record-"))
    try:
        answers, refused = {}, {}
        if not options.only:
            answers.update(examples.ask_theirs(work / "examples"))
        more, refused = ask_cases(wanted, work)
        answers.update(more)
    finally:
        os.chdir("/")
        shutil.rmtree(work, ignore_errors=True)
    if options.only:
        for case, got in answers.items():
            for name, answer in got.items():
                print("%s | %s | %r" % (case, name, answer))
        print(refused)
    elif options.check:
        wrong = compare(made, answers, refused)
        print("\n".join(wrong) or "%d cases: as recorded" % len(answers))
        sys.exit(1 if wrong else 0)
    else:
        golden.write(made, answers, refused)
        print("%d cases, %d answers" % (len(answers), sum(map(len, answers.values()))))


if __name__ == "__main__":
    main()
