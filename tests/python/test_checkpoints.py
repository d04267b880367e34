# SPDX-License-Identifier: Apache-2.0
"""Goal: a model is told where the files of training jobs are, whatever confines it.

    python3 tests/python/test_checkpoints.py
"""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "workers/host_py"))

from headrace_host import checkpoints, start  # noqa: E402

NAMED = {"training_checkpoints": {"download_folder": "/d", "artifact_references": [{}]}}


class Checkpoints(unittest.TestCase):
    def test_where(self):
        self.assertEqual(checkpoints.variables(NAMED, "/m", True), {"BT_TRAINING_CHECKPOINTS_DIR": "/d"})
        self.assertEqual(
            checkpoints.variables(NAMED, "/m", False),
            {"BT_TRAINING_CHECKPOINTS_DIR": "/m/training_checkpoints"},
        )

    def test_none(self):
        for config in ({}, {"training_checkpoints": None}, {"training_checkpoints": {"artifact_references": []}}):
            self.assertEqual(checkpoints.variables(config, "/m", True), {})

    def test_one_setting_holds_all_binds(self):
        words = ["confine", "--bind=/a=/b", "--", "python"]
        start._add_bind(words, "--bind=/c=/d")
        self.assertEqual(words, ["confine", "--bind=/a=/b;/c=/d", "--", "python"])
        words = ["confine", "--", "python"]
        start._add_bind(words, "--bind=/c=/d")
        self.assertEqual(words, ["confine", "--bind=/c=/d", "--", "python"])


if __name__ == "__main__":
    unittest.main()
