#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Rows of .def tables become rows of pages, whatever their texts hold."""

import unittest

import pages

SETTINGS = """\
/* a table */
SETTING_STRING(log_file, "", "file, by name (or none) | nothing")
SETTING_INT(port, 8080, 0, 65535, "port; 0 picks a free one")
SETTING_DURATION(lease, "4s", "100ms", "1h", "how long; " "in two parts")
SETTING_SECRET(api_key, "hidden", "say \\"please\\"")
"""

METRICS = """\
METRIC_COUNTER(a_total, "x,y", "things")
METRIC_HISTOGRAM(b_seconds, "", METRIC_SECONDS, "time, in all")
"""


class Pages(unittest.TestCase):
    def test_settings(self):
        page = pages.settings_page([("gate", SETTINGS)])
        self.assertIn("## headrace gate\n", page)
        self.assertIn("| `--log-file` | `HEADRACE_LOG_FILE` | text |  |  | "
                      "file, by name (or none) \\| nothing |\n", page)
        self.assertIn("| `--port` | `HEADRACE_PORT` | number | `8080` | 0 to 65535 | ", page)
        self.assertIn("| duration | `4s` | 100ms to 1h | how long; in two parts |\n", page)
        self.assertIn('say "please" |', page)
        self.assertNotIn("hidden", page)

    def test_metrics(self):
        old = f"# Head\n{pages.BEGIN}\nold\n{pages.END}\ntail\n"
        page = pages.metrics_page(old, [("gate", METRICS)])
        self.assertIn("| `headrace_a_total` | counter | `x`, `y` | things |\n", page)
        self.assertIn("| `headrace_b_seconds` | histogram |  | time, in all |\n", page)
        self.assertTrue(page.startswith("# Head\n") and page.endswith("\ntail\n"))
        self.assertNotIn("old", page)
        self.assertEqual(pages.metrics_page(page, [("gate", METRICS)]), page)
        self.assertEqual(pages.metrics_page("no marks", [("gate", METRICS)]), "no marks")


if __name__ == "__main__":
    unittest.main()
