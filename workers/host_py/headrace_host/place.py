# SPDX-License-Identifier: Apache-2.0
"""Where a model's code runs: a folder with its files in it, where it may write beside them.

    not confined   <cache>/work/<pid>, made by the first half
    strict         /app, which the confinement makes
    basic          app in the scratch folder, the only one that it may write to
"""

import os


def link_into(files, folder):
    for name in os.listdir(files):
        os.symlink(os.path.join(files, name), os.path.join(folder, name))


def enter(folder, files):
    """folder: what the first half has made; "": it is confined."""
    if not folder and os.environ.get("HOME") == "/home/app" and os.path.isdir("/app"):
        folder = "/app"
    elif not folder:
        folder = os.path.join(os.environ["TMPDIR"], "app")
        os.mkdir(folder)
        link_into(files, folder)
    os.chdir(folder)
    os.environ["APP_HOME"] = folder
