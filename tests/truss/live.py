# SPDX-License-Identifier: Apache-2.0
"""The directories of examples/truss, live on both sides: what the server that the truss package makes of each answers,
and what Headrace answers when the same directory is pushed. Prints a row for each directory, and what differs.

    scripts/python/venv compare; scripts/python/venv tests; tests/truss/live

Status, media type and body are compared. Where Headrace answers otherwise on purpose, deliberate.py says it.
"""

import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile

import cases
import deliberate
import examples

sys.path.insert(0, os.path.join(cases.ROOT, "tests", "lib"))

from stack import Stack  # noqa: E402

WHEELS = os.environ["HEADRACE_DEPS"] + "/wheels-truss"


def theirs():
    work = pathlib.Path(tempfile.mkdtemp(prefix="truss-live-"))
    try:
        return examples.ask_theirs(work)
    finally:
        os.chdir("/")
        shutil.rmtree(work, ignore_errors=True)


def push(stack, name):
    done = stack.cli("push", os.path.join(examples.FOLDER, name), "--json", timeout=180)
    return done.stdout.strip()


def compare(stack, name, answers):
    """(equal, on purpose, what differs)"""
    equal, purpose, wrong = 0, 0, []
    for request in examples.REQUESTS[name]:
        want, rule = deliberate.ours("example-" + name, request.name, answers[request.name])
        got = examples.call(stack, name, request)
        if got != want:
            wrong.append("%s, %s: %s, there %s" % (name, request.name, got, answers[request.name]))
        elif rule:
            purpose += 1
        else:
            equal += 1
    return equal, purpose, wrong


def main():
    answers, wrong = theirs(), []
    version = importlib.metadata.version("truss")
    env = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS, "PIP_NO_COMPILE": "1"}
    with Stack(env=env) as stack:
        for name in examples.REQUESTS:
            push(stack, name)
        print("| examples/truss | requests | answers as of truss %s | otherwise on purpose | differ |" % version)
        print("| --- | ---: | ---: | ---: | ---: |")
        for name, requests in examples.REQUESTS.items():
            equal, purpose, found = compare(stack, name, answers["example-" + name])
            wrong += found
            print("| %s | %d | %d | %d | %d |" % (name, len(requests), equal, purpose, len(found)), flush=True)
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
