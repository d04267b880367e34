# SPDX-License-Identifier: Apache-2.0
"""Goal: the environment of a Truss is made once, of the Python that policy says, or says why not."""

import os
import shutil
import sys
import tempfile
import unittest

import drive
from headrace_host import building, environment, errors

ECHO = "class Model:\n    def predict(self, x):\n        return x\n"
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/nonexistent"}
OTHER = "py39" if sys.version_info[1] != 9 else "py314"


class Pythons(unittest.TestCase):
    def test_nearest_is_named(self):
        found = environment.find_python({"python_version": "py3%d" % sys.version_info[1]}, "exact")
        self.assertEqual(found[1][:2], sys.version_info[:2])
        path = os.environ["PATH"]
        os.environ["PATH"] = "/nowhere"
        try:
            _, version, detail = environment.find_python({"python_version": OTHER}, "nearest")
            self.assertEqual(version[:2], sys.version_info[:2])
            self.assertIn("the nearest installed to 3.", detail)
            with self.assertRaises(errors.LoadError) as refused:
                environment.find_python({"python_version": OTHER}, "exact")
            self.assertIn("on this machine", str(refused.exception))
        finally:
            os.environ["PATH"] = path


class Requirements(unittest.TestCase):
    def lines(self, files, **config):
        with tempfile.TemporaryDirectory() as folder:
            drive.write_files(folder, files)
            return environment.requirements(folder, config)

    def test_imports_bring_what_the_server_has(self):
        files = {"model/model.py": "import os, numpy.linalg\nfrom fastapi import Request\n"}
        self.assertEqual(self.lines(files), ["fastapi>=0.114", "numpy>=1.23.5"])
        self.assertEqual(
            self.lines(files, requirements=["NumPy==1.26.4"]), ["NumPy==1.26.4", "fastapi>=0.114"]
        )
        self.assertEqual(self.lines({"model/model.py": "import json"}), [])
        self.assertEqual(self.lines({"m.py": "import numpy", "packages/numpy.py": ""}), [])
        self.assertEqual(self.lines({"model/model.py": "this is no Python"}), [])

    def test_files_of_requirements(self):
        text = "# packages\nrequests==2.31.0\n\n"
        self.assertEqual(
            self.lines({"r.txt": text}, requirements_file="r.txt"), ["requests==2.31.0"]
        )
        text = '[project]\nname = "x"\nversion = "1"\ndependencies = ["a>=1", "b"]\n'
        if sys.version_info >= (3, 11):
            found = self.lines({"pyproject.toml": text}, requirements_file="pyproject.toml")
            self.assertEqual(found, ["a>=1", "b"])
        for name in ("../r.txt", "/etc/passwd", "none.txt"):
            with self.assertRaises(errors.LoadError):
                self.lines({}, requirements_file=name)


class Building(unittest.TestCase):
    def setUp(self):
        self.cache = tempfile.mkdtemp(prefix="host-py-cache-")

    def tearDown(self):
        shutil.rmtree(self.cache, ignore_errors=True)

    def test_pips_own_words(self):
        config = {"requirements": ["no-such-package-of-ours==1"]}
        with drive.Host({"model/model.py": ECHO}, config, self.cache, OFFLINE) as host:
            bye = host.bye()
            self.assertIn("No matching distribution found for no-such-package-of-ours", bye["reason"])
            self.assertTrue(bye["final"])
            self.assertGreater(host.loading_count, 0)
            left = os.listdir(os.path.join(host.cache, "python"))
            self.assertEqual([name for name in left if not name.endswith(".lock")], [])

    def test_one_process_builds_for_all(self):
        hosts = [drive.Host({"model/model.py": ECHO}, cache=self.cache) for _ in range(3)]
        try:
            for host in hosts:
                self.assertEqual(host.ready().ask(1).data, b"1")
            built = sum("environment: building" in host.log() for host in hosts)
            self.assertEqual(built, 1)
        finally:
            for host in hosts:
                host.close()

    def test_what_was_found_out_before(self):
        folder = os.path.join(self.cache, "model")
        drive.write_files(folder, {"model.py": ECHO})
        asked = []
        find_python = environment.find_python

        def counted(*args):
            asked.append(args)
            return find_python(*args)

        def make(config):
            made = environment.make(folder, config, "nearest", self.cache, lambda: None)
            os.close(made.lock_fd)
            return os.path.dirname(os.path.dirname(made.python)), len(asked)

        environment.find_python = counted
        try:
            first, _ = make({"requirements": []})
            self.assertEqual(make({"requirements": []}), (first, 1))
            self.assertEqual(make({}), (first, 2))  # another config, the same environment
            drive.write_files(folder, {"model.py": ECHO + "# longer\n"})
            self.assertEqual(make({}), (first, 3))
            shutil.rmtree(first)
            self.assertEqual(make({}), (first, 4))  # it was forgotten, and is made again
            self.assertTrue(os.path.exists(first + "/ready"))
        finally:
            environment.find_python = find_python

    def test_links_that_a_package_has_left(self):
        target, other = os.path.join(self.cache, "target"), os.path.join(self.cache, "other")
        os.makedirs(target + "/bin")
        with open(other, "w", encoding="utf-8") as file:
            file.write("of somebody else")
        os.symlink(other, target + "/ready")
        os.symlink(other, target + "/bin/python")
        building._seal(target, "/usr/bin/python3", "made\n")
        self.assertEqual(os.readlink(target + "/bin/python"), "/usr/bin/python3")
        self.assertFalse(os.path.islink(target + "/ready"))
        with open(other, encoding="utf-8") as file:
            self.assertEqual(file.read(), "of somebody else")
        os.rename(target + "/bin", target + "/away")
        os.symlink(self.cache, target + "/bin")
        with self.assertRaises(errors.LoadError):
            building._seal(target, "/usr/bin/python3", "made\n")

    def test_what_pip_may(self):
        words = ["headrace", "confine", "--level=strict", "--network=none", "--app=/models/m", "--read=/srv"]
        before = dict(os.environ)
        os.environ.update(PIP_INDEX_URL="http://u:1@index:8081/x", HTTPS_PROXY="http://p:3128",
                          PIP_FIND_LINKS=self.cache, HEADRACE_POSTGRES="secret")
        try:
            command, fd = building._confined(words + ["--"], "/t", "/models/m", "/usr/bin/python3", ["pip"])
        finally:
            os.environ.clear()
            os.environ.update(before)
        told = os.pread(fd, 1 << 20, 0)
        os.close(fd)
        self.assertEqual(command[:3], words[:3])
        self.assertIn("--network=out", command)
        self.assertNotIn("--network=none", command)
        (ports,) = [word for word in command if word.startswith("--ports=")]
        self.assertTrue({"80", "443", "8081", "3128"} <= set(ports[8:].split(",")))
        (read,) = [word for word in command if word.startswith("--read=")]
        self.assertTrue({"/srv", self.cache} <= set(read[7:].split(":")))
        self.assertIn(b"index:8081", told)
        self.assertNotIn(b"secret", told)
        self.assertNotIn("index:8081", " ".join(command))  # others may see it

    def test_our_program_is_compiled_once(self):
        with drive.Host({"model/model.py": ECHO}, cache=self.cache) as host:
            host.ready()
        above = os.path.join(self.cache, "python")
        (target,) = [name for name in os.listdir(above) if not name.endswith(".lock")]
        made = environment.Made(os.path.join(above, target, "bin/python"), "", -1)
        copy = environment.compiled(made, drive.PROGRAM)
        self.assertTrue(os.listdir(os.path.join(copy, "headrace_host/__pycache__")))
        self.assertEqual(environment.compiled(made, drive.PROGRAM), copy)
        (only,) = [n for n in os.listdir(os.path.join(above, target)) if n.startswith("host-")]
        self.assertTrue(copy.startswith(os.path.join(above, target, only) + "/"))

    def test_packages_of_the_system(self):
        config = {"system_packages": ["no-such-package-of-debian", "libc6"]}
        with drive.Host({"model/model.py": ECHO}, config) as host:
            reason = host.bye()["reason"]
        if shutil.which("dpkg-query"):
            self.assertIn("apt-get install -y no-such-package-of-debian", reason)
            self.assertNotIn("libc6", reason)
        else:
            self.assertIn("no dpkg-query", reason)

    def test_old_environments_go_unless_they_are_used(self):
        above = os.path.join(self.cache, "python")
        with drive.Host({"model/model.py": ECHO}, cache=self.cache) as host:
            host.ready()
            used = [name for name in os.listdir(above) if not name.endswith(".lock")][0]
            os.utime(os.path.join(above, used + ".lock"), (1, 1))
            for i in range(environment.KEPT_MAX + 3):
                os.mkdir(os.path.join(above, "e%d" % i))
                open(os.path.join(above, "e%d.lock" % i), "w").close()
            environment._forget_old(above, "e5")
            left = [name for name in os.listdir(above) if not name.endswith(".lock")]
            self.assertIn(used, left)
            self.assertEqual(len(left), environment.KEPT_MAX + 1)


if __name__ == "__main__":
    unittest.main()
