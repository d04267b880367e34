# SPDX-License-Identifier: Apache-2.0
"""Goal: a model answers in host-py, byte for byte, as in the server that the truss package makes.

Method: the cases of cases.py, each a Truss directory, asked over the frames of a worker; what the
other server says to the same requests is in tests/data/truss/answers.json (record.py). Where the two
differ on purpose, deliberate.py has what Headrace answers. Status, media type and body are compared.

    HEADRACE_DEPS=… python3 tests/truss/test_matrix.py [WORD]     cases with WORD in their names

All cases when HEADRACE_LONG is set, otherwise a sample that HEADRACE_TRUSS_SEED or the commit decides.
"""

import collections
import concurrent.futures
import os
import random
import subprocess
import sys
import time

import cases
import deliberate
import golden
import ours

SHOWN_MAX = 30

# How many cases of a kind a sample has; of the others all.
SAMPLE = {"pre": 16, "schema": 5, "health": 4, "refused": 4}


def kind_of(case):
    return case.name.partition("-")[0].partition("_")[0]


def commit():
    command = ["git", "-C", cases.ROOT, "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "0"


def choose(found):
    if os.environ.get("HEADRACE_LONG"):
        return found, "all"
    seed = os.environ.get("HEADRACE_TRUSS_SEED") or commit()
    dice = random.Random(seed)
    by_kind = collections.defaultdict(list)
    for case in found:
        by_kind[kind_of(case)].append(case)
    chosen = []
    for kind, members in by_kind.items():
        chosen += dice.sample(members, min(len(members), SAMPLE.get(kind, len(members))))
    return chosen, "HEADRACE_TRUSS_SEED=%s" % seed


class Tally:
    """What came of the cases of one kind."""

    def __init__(self):
        self.cases = self.equal = 0
        self.rules = collections.Counter()
        self.wrong = []


def check_refusal(case, refused, tally):
    got = ours.refusal(case)
    if got == refused[case.name].strip():
        tally.equal += 1
    else:
        tally.wrong.append("%s: refused with %r, wanted %r" % (case.name, got, refused[case.name]))


def check_answers(case, theirs, tally):
    for name, got in ours.answers(case).items():
        want, rule = deliberate.ours(case.name, name, theirs[name])
        if got != want:
            tally.wrong.append("%s, %s: %r, wanted %r" % (case.name, name, got, want))
        elif rule:
            tally.rules[rule] += 1
        else:
            tally.equal += 1


def check(case, theirs, refused):
    tally = Tally()
    try:
        if case.name in refused:
            check_refusal(case, refused, tally)
        else:
            check_answers(case, theirs[case.name], tally)
    except Exception as error:  # one case that breaks must not hide what the others say
        tally.wrong.append("%s: %r" % (case.name, error))
    return tally


def tell(tallies, made):
    print("truss %(truss)s, fastapi %(fastapi)s, pydantic %(pydantic)s, numpy %(numpy)s" % made)
    print("%-10s %7s %9s  on purpose" % ("kind", "cases", "equal"))
    for kind, tally in tallies.items():
        rules = ", ".join("%s %d" % item for item in sorted(tally.rules.items()))
        print("%-10s %7d %9d  %s" % (kind, tally.cases, tally.equal, rules))


def main():
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    made, theirs, refused = golden.read()
    chosen, which = choose([case for case in cases.all_cases() if word in case.name])
    print("%d cases (%s)" % (len(chosen), which))
    tallies = collections.defaultdict(Tally)
    begun = time.monotonic()
    # The first alone: it builds the environment that all of them share.
    first = check(chosen[0], theirs, refused)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        rest = pool.map(lambda case: check(case, theirs, refused), chosen[1:])
        for case, got in zip(chosen, [first, *rest]):
            tally = tallies[kind_of(case)]
            tally.cases += 1
            tally.equal += got.equal
            tally.rules += got.rules
            tally.wrong += got.wrong
    tell(tallies, made)
    wrong = [line for tally in tallies.values() for line in tally.wrong]
    for line in wrong[:SHOWN_MAX]:
        print("differs: " + line)
    print("%d differ, %.0f s" % (len(wrong), time.monotonic() - begun))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
