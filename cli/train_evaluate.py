# SPDX-License-Identifier: Apache-2.0
"""Run by `headrace train push config.py`, in a Python that has the truss package: what the file's one
TrainingProject says becomes JSON on standard output, as config.yaml would say it.

    python -c PROGRAM FILE

Exit code 3: this Python has no truss package; 1: the file is no such config, and why is on standard error.
"""

import json
import os
import pathlib
import sys
import traceback


def main():
    file = pathlib.Path(sys.argv[1]).resolve()
    answer = os.dup(1)
    os.dup2(2, 1)  # what the file prints is for people
    try:
        from truss_train import loader
    except ImportError as error:
        print("%s has no truss package: %s" % (sys.executable, error), file=sys.stderr)
        sys.exit(3)
    sys.path.insert(0, str(file.parent))
    try:
        with loader.import_training_project(file) as project:
            document = {"name": project.name, "team_name": project.team_name, "job": project.job.model_dump()}
            text = json.dumps(document)
    except Exception:
        traceback.print_exc(limit=-3)
        sys.exit(1)
    with os.fdopen(answer, "w") as out:
        out.write(text)


main()
