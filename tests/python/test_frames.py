# SPDX-License-Identifier: Apache-2.0
"""Goal: host-py speaks the frames of the tables in C, and the packages that it carries are whole."""

import hashlib
import os
import re
import unittest

import drive
from headrace_host import errors, frames

VENDORED = {  # msgpack 1.1.0, the version that the Truss server pins, and of wsproto 1.2.0; verbatim
    "msgpack/__init__.py": "ade45a88eb44cd28cf9ebed3a718e022f6df967e6957ae8586b89c02cd9e0be8",
    "msgpack/exceptions.py": "7424d67a2f1da64accb100dc8d093be004e5f47b08047d326edf3338f36a3187",
    "msgpack/ext.py": "92d789bf4de7f6d633779a28df1628a554e8e2f45a031a27050409857a21659a",
    "msgpack/fallback.py": "d20d4fce9d2fb66044989e70f45decffe24c55444ff114b81b571ce5345a02c2",
    "wsproto/frame_protocol.py": "079a7fc11ab9e20bd38a17a06c9dfd46438dadd86d8a9a180c4898abde417409",
}


def read(*path):
    with open(os.path.join(drive.ROOT, *path), encoding="utf-8") as file:
        return file.read()


class Frames(unittest.TestCase):
    def test_tables_are_those_of_frame_def(self):
        text = read("workers", "frame.def")
        in_c = {}
        for name, number, version in re.findall(r"^FRAME\((\w+), \w+, (\d+), (\d+)\)", text, re.M):
            fields = re.findall(r"^FIELD\(%s, +(\d+), +\w+, +(\w+)," % name, text, re.M)
            in_c[int(number)] = {field: int(key) for key, field in fields}
            self.assertEqual(int(version), frames.VERSION)
        self.assertEqual(in_c, frames.FIELDS)

    def test_limits_are_those_of_frame_h(self):
        text = read("workers", "frame.h")
        self.assertIn("FRAME_PROTOCOL %du" % frames.PROTOCOL, text)
        self.assertIn("FRAME_INLINE_MAX (1u << 20)", text)
        self.assertIn("FRAME_FD_SIZE_MAX (256u << 20)", text)
        self.assertEqual((frames.INLINE_MAX, frames.FD_SIZE_MAX), (1 << 20, 256 << 20))

    def test_classes_are_those_of_the_table(self):
        text = read("schema", "error_classes.def")
        in_c = dict(re.findall(r"^ERROR_CLASS\((\w+), +(\d+),", text, re.M))
        for name in ("BAD_INPUT", "MODEL_ERROR", "MODEL_UNAVAILABLE", "MODEL_TIMEOUT", "OOM"):
            self.assertEqual(getattr(errors, name), int(in_c[name]))
        self.assertEqual(errors.LOST_WORKER, int(in_c["LOST_WORKER"]))
        self.assertEqual(errors.CANCELED, int(in_c["CANCELED"]))

    def test_a_frame_that_is_none_is_malformed(self):
        for body in (b"", b"\x93", b"\x01", b"\x93\x01\x63\x80", b"\xc1", b"\x93\x02\x04\x80"):
            with self.assertRaises(frames.Malformed):
                frames.decode(body)
        self.assertEqual(frames.decode(b"\x93\x01\x05\x82\x01\x07\x63\x01"), (5, {"id": 7}))

    def test_texts_are_cut_between_characters(self):
        self.assertEqual(frames.cut("ä" * 10, 20), "ä" * 10)
        self.assertLessEqual(len(frames.cut("ä" * 100, 20).encode()), 20)

    def test_vendored_files_are_verbatim(self):
        folder = os.path.join(drive.PROGRAM, "headrace_host")
        for name, digest in VENDORED.items():
            with open(os.path.join(folder, name), "rb") as file:
                self.assertEqual(hashlib.sha256(file.read()).hexdigest(), digest, name)


if __name__ == "__main__":
    unittest.main()
