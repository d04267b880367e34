# SPDX-License-Identifier: Apache-2.0
"""A chain of the truss package as its documentation teaches it: typed, in bytes, in pieces, and failing.

    headrace chains push examples/truss_chain/poem.py --python=PYTHON     one that has truss
    headrace chains run poem --input '{"words": ["water", "wheel"], "times": 2}'
    python examples/truss_chain/poem.py                                   the same, without Headrace
"""

import asyncio
from collections.abc import AsyncIterator

import pydantic
import truss_chains as chains


class Line(pydantic.BaseModel):
    text: str
    data: bytes = b""


class Poem(pydantic.BaseModel):
    lines: list[str]
    digest: str
    shouted: str


class Rhyme(chains.ChainletBase):
    """Typed: a model in, a model out."""

    async def run_remote(self, word: str, times: int = 1) -> Line:
        if word == "silver":
            raise ValueError("nothing rhymes with silver")
        return Line(text=" ".join([word] * times), data=word.encode() * times)


class Digest(chains.ChainletBase):
    """Bytes, which travel as msgpack; and it calls nobody."""

    def run_remote(self, lines: list[Line]) -> str:
        return "-".join("%02x" % (sum(line.data) % 256) for line in lines)


class Shout(chains.ChainletBase):
    """In pieces."""

    async def run_remote(self, text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield word.upper() + "!"


@chains.mark_entrypoint("poem")
class Poet(chains.ChainletBase):
    def __init__(
        self,
        rhyme: Rhyme = chains.depends(Rhyme, retries=2),
        digest: Digest = chains.depends(Digest, use_binary=True),
        shout: Shout = chains.depends(Shout),
    ) -> None:
        self._rhyme, self._digest, self._shout = rhyme, digest, shout

    async def run_remote(self, words: list[str], times: int = 1) -> Poem:
        lines = await asyncio.gather(*(self._rhyme.run_remote(word, times) for word in words))
        pieces = [piece async for piece in self._shout.run_remote(" ".join(words))]
        return Poem(
            lines=[line.text for line in lines],
            digest=await asyncio.to_thread(self._digest.run_remote, list(lines)),
            shouted="".join(pieces),
        )


if __name__ == "__main__":
    with chains.run_local():
        print(asyncio.run(Poet().run_remote(["water", "wheel"], 2)).model_dump_json())
