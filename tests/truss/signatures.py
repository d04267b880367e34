# SPDX-License-Identifier: Apache-2.0
"""Models of every signature that model.py may have, written by rule.

A name says what it is: `pre_s_i-predict_ag_ir-post_0` has a sync preprocess(inputs), a predict(inputs,
request) that is an async generator, and no postprocess. Every pair of preprocess and predict is
there, and every pair of predict and postprocess: each stage sees only what the one before it gave.
"""

import itertools

# What a method is, and the arguments that it names.
KINDS = {
    "s": "sync",
    "a": "async",
    "g": "generator",
    "ag": "async generator",
    "sg": "sync, returns a generator",
    "aag": "async, returns an async generator",
}
ARGUMENTS = {"0": "", "i": ", inputs", "r": ", request: Request", "ir": ", inputs, request: Request"}

TOP = '''import json

from starlette.requests import Request


def seen(value):
    return value if isinstance(value, (dict, list, str, int)) else type(value).__name__


def of(request):
    return [request.method, request.url.path, request.headers["content-type"]]


class Model:
'''

# The second piece has a character of two bytes, the third is cut within one.
PIECES = '[json.dumps(said), " \\u00fcnd ", "\\u00e9".encode()[:1], "\\u00e9".encode()[1:], ""]'

BODIES = {
    "s": "    def {name}(self{arguments}):\n        said = {said}\n        return said\n",
    "a": "    async def {name}(self{arguments}):\n        said = {said}\n{body}        return said\n",
    "g": "    def {name}(self{arguments}):\n        said = {said}\n        yield from {pieces}\n",
    "ag": (
        "    async def {name}(self{arguments}):\n        said = {said}\n{body}"
        "        for piece in {pieces}:\n            yield piece\n"
    ),
    "sg": (
        "    def {name}(self{arguments}):\n        said = {said}\n"
        "        return (piece for piece in {pieces})\n"
    ),
    "aag": (
        "    async def {name}(self{arguments}):\n        said = {said}\n{body}"
        "        return self.later({pieces})\n\n"
        "    async def later(self, pieces):\n        for piece in pieces:\n            yield piece\n"
    ),
}

# Async code may read the body a second time.
BODY = '        said["size"] = len(await request.body())\n'


def method(name, kind, arguments):
    said = ['"%s": "%s"' % (name, KINDS[kind])]
    if "i" in arguments:
        said.append('"inputs": seen(inputs)')
    if "r" in arguments:
        said.append('"request": of(request)')
    return BODIES[kind].format(
        name=name,
        arguments=ARGUMENTS[arguments],
        said="{%s}" % ", ".join(said),
        body=BODY if "r" in arguments else "",
        pieces=PIECES,
    )


def model(pre, predict, post):
    """The text of a model.py; each argument is (kind, arguments) or None."""
    stages = (("preprocess", pre), ("predict", predict), ("postprocess", post))
    return TOP + "\n".join(method(name, *stage) for name, stage in stages if stage)


def name_of(pre, predict, post):
    def part(stage, what):
        return "%s_%s" % (stage, "_".join(what) if what else "0")

    return "-".join((part("pre", pre), part("predict", predict), part("post", post)))


def legal(pre, predict, post):
    return not (pre and predict[1] == "r") and not (post and post[1] == "r")


def all_of():
    """{name: text of model.py}, and the same of what the contract refuses."""
    predicts = list(itertools.product(KINDS, ARGUMENTS))
    pres = list(itertools.product("sa", ARGUMENTS)) + [("g", "i"), ("ag", "i")]
    posts = list(itertools.product("sa", ("0", "i", "r", "ir"))) + [("g", "i"), ("ag", "i")]
    rows = [(None, predict, None) for predict in predicts]
    rows += [(pre, predict, None) for pre in pres for predict in predicts]
    rows += [(None, predict, post) for predict in predicts for post in posts]
    rows += [
        (("s", "ir"), (kind, "ir"), ("a", "ir")) for kind in KINDS
    ]
    good, bad = {}, {}
    for row in rows:
        (good if legal(*row) else bad)[name_of(*row)] = model(*row)
    # One of each kind of refusal is enough.
    keep = ("pre_s_i-predict_s_r-post_0", "pre_0-predict_s_i-post_s_r")
    return good, {name: bad[name] for name in keep}
