# SPDX-License-Identifier: Apache-2.0
"""Goal: chainlets find each other by a file, whatever confines them.

    python3 tests/python/test_chainlets.py
"""

import json
import os
import pathlib
import sys
import tempfile
import types
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "workers/host_py"))

from headrace_host import chainlets, errors  # noqa: E402

PATHS = {"B": "/chain/c.B/deployment/push-1/run_remote"}


def config(paths):
    return {"model_metadata": {"headrace_chainlets": paths}}


class Chainlets(unittest.TestCase):
    def test_text(self):
        text = chainlets.text(config(PATHS), "http://127.0.0.1:80/")
        self.assertEqual(json.loads(text), {"B": {"predict_url": "http://127.0.0.1:80" + PATHS["B"]}})
        self.assertEqual(chainlets.text({"model_metadata": {}}, ""), "")
        self.assertEqual(chainlets.text({}, "http://g"), "")
        self.assertEqual(chainlets.text(config({}), ""), "{}")

    def test_without_a_gateway(self):
        with self.assertRaises(errors.LoadError) as caught:
            chainlets.text(config(PATHS), "")
        self.assertTrue(caught.exception.final)
        self.assertIn("--gateway", str(caught.exception))

    def test_bind(self):
        with tempfile.TemporaryDirectory() as cache:
            words = {chainlets.bind(text, cache) for text in ("{}", "{}", '{"B": 1}')}
            self.assertEqual(len(words), 2)
            for word in words:
                path, place = word.removeprefix("--bind=").split("=")
                self.assertEqual(place, "/etc/b10_dynamic_config/dynamic_chainlet_config")
                self.assertIn(pathlib.Path(path).read_text(), ("{}", '{"B": 1}'))

    def test_wire_tells_the_package(self):
        resolver = types.ModuleType(chainlets.RESOLVER)
        sys.modules[chainlets.RESOLVER] = resolver
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TMPDIR"] = folder
            chainlets.wire('{"B": 2}')
            self.assertEqual(resolver.DYNAMIC_CONFIG_MOUNT_DIR, os.environ["B10_DYNAMIC_CONFIG_DIR"])
            self.assertTrue(resolver.DYNAMIC_CONFIG_MOUNT_DIR.startswith(folder))
            file = pathlib.Path(resolver.DYNAMIC_CONFIG_MOUNT_DIR, "dynamic_chainlet_config")
            self.assertEqual(file.read_text(), '{"B": 2}')


if __name__ == "__main__":
    unittest.main()
