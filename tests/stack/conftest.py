# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the stack tests. Each test file is one CTest test; they run one after another."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "lib"))

from stack import Stack  # noqa: E402


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        item.session.stash[FAILED] = True
    return report


FAILED = pytest.StashKey[bool]()


def run_stack(request, **options):
    stack = Stack(**options)
    try:
        stack.start()
        yield stack
    except BaseException:
        print(stack.tell())
        raise
    finally:
        stack.close(failed=request.session.stash.get(FAILED, False))


@pytest.fixture(scope="module")
def stack(request):
    """The whole platform, shared by the tests of a file."""
    yield from run_stack(request)


@pytest.fixture(scope="module")
def servers(request):
    """Kafka, Redis and PostgreSQL alone, shared by the tests of a file."""
    yield from run_stack(request, only="kafka,redis,postgres")


@pytest.fixture
def new_stack(request):
    """Makes stacks for one test: new_stack(only=…, env={…}, on_death=…).start()."""
    made = []

    def make(**options):
        made.append(Stack(**options))
        return made[-1]

    yield make
    for one in made:
        one.close(failed=request.session.stash.get(FAILED, False))
