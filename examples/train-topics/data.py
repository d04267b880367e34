# SPDX-License-Identifier: Apache-2.0
"""From files of sentences to what the models take, and back.

data.py input sentences.tsv          what MiniLM is asked
data.py vectors sentences.tsv ANSWER what train.py reads, of MiniLM's answer
data.py sentences held_out.tsv       what the chain is asked
data.py compare held_out.tsv ANSWER  how many of its topics are right; exit code 1: fewer than nine of ten
"""

import json
import sys


def read(path):
    with open(path) as file:
        return [line.rstrip("\n").split("\t") for line in file if line.strip()]


def answer(path):
    with open(path) as file:
        return json.load(file)


def compare(rows, said):
    right = 0
    for (topic, sentence), guess, share in zip(rows, said["topics"], said["shares"], strict=True):
        right += topic == guess
        print(f"   {guess:8} {share:6.3f}  {sentence}{'' if topic == guess else f'  (it is {topic})'}")
    print(f"{right} of {len(rows)} sentences that it has never seen are put right")
    return 10 * right >= 9 * len(rows)


what, path, *rest = sys.argv[1:]
rows = read(path)
if what == "input":
    json.dump({"input": [sentence for _, sentence in rows]}, sys.stdout)
elif what == "sentences":
    json.dump({"sentences": [sentence for _, sentence in rows]}, sys.stdout)
elif what == "vectors":
    vectors = [one["embedding"] for one in answer(rest[0])["data"]]
    assert len(vectors) == len(rows)
    json.dump({"topics": [topic for topic, _ in rows], "vectors": vectors}, sys.stdout)
else:
    sys.exit(0 if compare(rows, answer(rest[0])) else 1)
