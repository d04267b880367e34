# SPDX-License-Identifier: Apache-2.0
"""tests/data/truss/answers.json: what the truss package's server answered, by case and request.

    made      with what, and by which command
    answers   each different one once: [status, media type, body, cut?]
    cases     {case: {request: number of its answer}}
    refused   {case: why that server did not load it}
"""

import base64
import json
import os

PATH = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data", "truss", "answers.json"
)


class Answer:
    def __init__(self, status, media_type, body, cut=False):
        self.status, self.media_type, self.body, self.cut = status, media_type, body, cut

    def key(self):
        return self.status, self.media_type, self.body, self.cut

    def __eq__(self, other):
        return self.key() == other.key()

    def __repr__(self):
        more = " …" if len(self.body) > 300 else ""
        return "%s %s %r%s%s" % (
            self.status, self.media_type, self.body[:300], more, " (cut off)" if self.cut else ""
        )

    def pack(self):
        try:
            body = self.body.decode()
        except UnicodeDecodeError:
            body = {"base64": base64.b64encode(self.body).decode()}
        return [self.status, self.media_type, body] + ([True] if self.cut else [])

    @classmethod
    def unpack(cls, row):
        body = row[2]
        body = base64.b64decode(body["base64"]) if isinstance(body, dict) else body.encode()
        return cls(row[0], row[1], body, len(row) > 3)


def write(made, cases, refused):
    """cases: {case: {request: Answer}}"""
    numbers, rows, index = {}, [], {}
    for case, answers in cases.items():
        index[case] = {}
        for request, answer in answers.items():
            if answer.key() not in numbers:
                numbers[answer.key()] = len(rows)
                rows.append(answer.pack())
            index[case][request] = numbers[answer.key()]
    os.makedirs(os.path.dirname(PATH), exist_ok=True)
    with open(PATH, "w", encoding="utf-8") as file:
        file.write('{"made": %s,\n"answers": [\n' % json.dumps(made, indent=1))
        file.write(",\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
        file.write('\n],\n"cases": {\n')
        file.write(
            ",\n".join('%s: %s' % (json.dumps(k), json.dumps(v)) for k, v in index.items())
        )
        file.write('\n},\n"refused": %s}\n' % json.dumps(refused, indent=1))


def read():
    """(made, {case: {request: Answer}}, refused)"""
    with open(PATH, encoding="utf-8") as file:
        whole = json.load(file)
    answers = [Answer.unpack(row) for row in whole["answers"]]
    cases = {
        case: {request: answers[number] for request, number in index.items()}
        for case, index in whole["cases"].items()
    }
    return whole["made"], cases, whole["refused"]
