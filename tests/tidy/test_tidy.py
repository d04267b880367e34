#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Each gate finds what it is for, and passes what is right. Method: trees made of text."""

import unittest

import tidy
from tidy import File

HEAD = "/* SPDX-License-Identifier: Apache-2.0 */\n"


def find(gate, *files):
    return tidy.check([File(path, text) for path, text in files], [gate])


class Gates(unittest.TestCase):
    def expect(self, gate, count, *files):
        found = find(gate, *files)
        self.assertEqual(len(found), count, "\n".join(found))
        return found

    def test_length(self):
        def function(lines):
            return "static int f(int a,\n             int b)\n{\n" + "    a++;\n" * lines + "}\n"

        self.expect("length", 0, ("base/a.c", HEAD + "\n" + function(66)))
        found = self.expect("length", 1, ("base/a.c", HEAD + "\n" + function(67)))
        self.assertIn("base/a.c:3: length: function has 71 lines", found[0])
        self.expect("length", 2, ("base/a.c", function(70) + "\n" + function(70)))
        self.expect("length", 0, ("base/a.c", "struct a {\n" + "    int b;\n" * 90 + "};\n"))
        self.expect("length", 1, ("base/a.c", "int a;\n" * 1001))
        self.expect("length", 0, ("base/a.c", "int a;\n" * 1000), ("b.def", "A(1)\n" * 2000))

    def test_banned(self):
        self.expect("banned", 1, ("base/a.c", "sprintf(to, x);"))
        self.expect("banned", 0, ("base/a.c", "snprintf(to, 1, x); /* sprintf(x) */"))
        self.expect("banned", 0, ("base/a.c", 'puts("sprintf(x)"); my_sprintf(x);'))
        self.expect("banned", 0, ("base/a.c", "x = malloc(1);"))
        self.expect("banned", 1, ("schema/a.c", "x = malloc(1);"))
        self.expect("banned", 0, ("schema/a.c", "x = xmalloc(1); y.calloc(1); z->strdup(2);"))
        self.expect("banned", 1, ("base/a.c", "clock_gettime(0, &t);"))
        self.expect("banned", 0, ("base/clock.c", "clock_gettime(0, &t);"))
        self.expect("banned", 1, ("base/a.c", "t = time(NULL);"))
        self.expect("banned", 0, ("base/a.c", "t = run_time(NULL);"))
        self.expect("banned", 1, ("tests/unit/test_a.c", "usleep (5);"))
        self.expect("banned", 1, ("workers/a.c", "exit(1);"))
        self.expect("banned", 0, ("workers/a_main.c", "exit(1);"), ("workers/b.c", "_exit(1);"))
        self.expect("banned", 1, ("cli/a.c", "n = strtol(x, &e, 10);"))
        self.expect("banned", 0, ("base/settings.c", "n = strtol(x, &e, 10);"))
        self.expect("banned", 0, ("bench/a.c", "sleep(1); exit(1);"))

    def test_excuses_that_are_not_needed_are_found(self):
        path, name = next(iter(tidy.EXCUSED))
        rest = [n for p, n in tidy.EXCUSED if p == path and n != name]
        self.expect("banned", len(rest), (path, f"x = {name}(a, b, c);"))
        self.expect("banned", len(rest) + 1, (path, "int a;"))

    def test_answers(self):
        head = "static void on_a(void *opaque, const struct pg_answer *answer)\n{\n    struct a *a = opaque;\n"
        check = "    if (answer->err.code != ERR_OK)\n        return;\n"
        found = self.expect("answers", 1, ("workers/a.c", head + "    size_t n = pg_row_count(answer, 0);\n\n" + check))
        self.assertIn("workers/a.c:4", found[0])
        self.expect("answers", 1, ("workers/a.c", head + "\n    a->n = pg_i64(answer, 0, 0, 0);\n" + check))
        self.expect("answers", 0, ("workers/a.c", head + "    size_t n;\n\n" + check + "    n = pg_row_count(answer, 0);\n"))

    def test_includes(self):
        self.expect("includes", 0, ("brokers/a.c", '#include "schema/b.h"\n#include "base/c.h"\n'))
        found = self.expect("includes", 1, ("base/a.c", '#include "schema/b.h"\n'))
        self.assertIn("base/ may not include schema/", found[0])
        self.expect("includes", 1, ("producers/a.c", '#include "workers/b.h"\n'))
        self.expect("includes", 0, ("producers/a_main.c", '#include "workers/b.h"\n'))
        self.expect("includes", 1, ("base/a.c", '#include "b.h"\n'))
        self.expect("includes", 1, ("base/a.c", "#include <assert.h>\n"))

    def test_base(self):
        test = ("tests/unit/test_a.c", "")
        self.expect("base", 0, ("base/a.h", "int a_size;"), test)
        self.expect("base", 1, ("base/a.h", ""))
        self.expect("base", 1, ("base/a.h", "int a_job_count;"), test)
        self.expect("base", 1, ("base/a.h", "enum { WEBHOOK_A };"), test)
        self.expect("base", 0, ("base/a.h", "/* a job */ int chained; /* jobless */"), test)
        many = [(f"base/m{i}.h", "") for i in range(17)]
        tests = [(f"tests/unit/test_m{i}.c", "") for i in range(17)]
        self.expect("base", 1, *many, *tests)
        self.expect("base", 0, *many[:16], ("base/m1_int.h", ""), *tests)
        self.expect("base", 1, ("base/util.h", ""), ("tests/unit/test_util.c", ""))

    def test_todo(self):
        self.expect("todo", 0, ("a.c", "/* TODO(#12): more */"))
        self.expect("todo", 1, ("a.c", "/* TODO: more */"))
        self.expect("todo", 1, ("a.md", "FIXME"))
        self.expect("todo", 0, ("a.c", "int TODOS; /* JOB_TODO_DROP */"))

    def test_spdx(self):
        self.expect("spdx", 1, ("a.c", "int a;\n"))
        self.expect("spdx", 0, ("a.c", HEAD), ("a.sh", "#!/bin/sh\n# SPDX-License-Identifier: "
                                               "Apache-2.0\n"), ("a.json", "{}"))

    def test_headers(self):
        self.expect("headers", 0, ("base/a.h", "#pragma once\n"), ("base/a.c", ""))
        self.expect("headers", 1, ("base/a.h", "#pragma once\n"))
        self.expect("headers", 1, ("base/a.h", "#ifndef A\n"), ("base/a.cc", ""))
        self.expect("headers", 0, ("brokers/a.h", "#pragma once\n"), ("brokers/a_kafka.c", ""))
        self.expect("headers", 0, ("base/a_int.h", "#pragma once\n"))

    def test_tests(self):
        head = HEAD + "/*\n * Tests: tests/unit/test_a.c,\n * tests/stack/test_b.py\n */\n"
        self.expect("tests", 2, ("base/a.h", head))
        self.expect("tests", 0, ("base/a.h", head), ("tests/unit/test_a.c", ""), ("tests/stack/test_b.py", ""))
        self.expect("tests", 0, ("base/a.h", "/* tests/unit/ and tests/stack */"), ("a.md", "tests/unit/test_a.c"))

    def test_paths(self):
        for text in ('cd /root/x', "/home/ann/x", "'/Users/ann/x'", "/mnt/disk/x"):
            self.expect("paths", 1, ("a.md", text))
        for text in ("/var/root/x", "/rootless/x", "https://a/home/b", "/tmp/test_x", "a/root/b"):
            self.expect("paths", 0, ("a.md", text))

    def test_text(self):
        self.expect("text", 0, ("a.c", "int a;\n"))
        self.expect("text", 1, ("a.c", "int a; \n"))
        self.expect("text", 1, ("a.c", "\tint a;\n"))
        self.expect("text", 1, ("a.c", "int a;"))
        self.expect("text", 1, ("a.c", "x" * 101 + "\n"))
        self.expect("text", 0, ("a.c", "ä" * 100 + "\n"), ("a.def", "x" * 101 + "\n"))

    def test_words(self):
        self.expect("words", 1, ("a.c", "int a; // no\n"))
        self.expect("words", 0, ("a.c", 'x("http://a"); /* see https://b\n// c */\n'))
        self.expect("words", 1, ("a.h", "typedef struct a {} a_t;\n"))
        self.expect("words", 0, ("a.h", "typedef void a_call(struct a *a);\n"), ("a.cc", "// ok\n"))


if __name__ == "__main__":
    unittest.main()
