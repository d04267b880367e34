# SPDX-License-Identifier: Apache-2.0
"""Files of training jobs that came along with the model: training_checkpoints of its config.yaml.

They are in the archive, below training_checkpoints/. In a sandbox of level `strict` they stand at
download_folder as well (workers/engine_host.c binds them there); elsewhere that place is the
machine's, and a variable says where they are.
"""

import os

from . import logs

FOLDER = "training_checkpoints"
VARIABLE = "BT_TRAINING_CHECKPOINTS_DIR"


def variables(config, model, strict):
    """What the model's environment gets of them."""
    wanted = config.get(FOLDER) or {}
    if not wanted.get("artifact_references"):
        return {}
    if strict:
        return {VARIABLE: wanted["download_folder"]}
    path = os.path.join(model, FOLDER)
    logs.write("WARN", "training_checkpoints are in %s (%s); only a sandbox of level strict has "
               "them at %s" % (path, VARIABLE, wanted["download_folder"]))
    return {VARIABLE: path}
