# SPDX-License-Identifier: Apache-2.0
"""Chainlets of a Python chain find each other by a file, /etc/b10_dynamic_config/dynamic_chainlet_config.

`headrace chains push` has written the paths of the others into model_metadata; the address of the
gateway is this machine's. In a sandbox of level `strict` the file is mounted where it is looked for;
elsewhere it is in the folder for temporary files, and the truss package is told so.
"""

import json
import os
import sys

from . import errors

KEY = "headrace_chainlets"
FOLDER = "/etc/b10_dynamic_config"
NAME = "dynamic_chainlet_config"
RESOLVER = "truss.templates.shared.dynamic_config_resolver"


def text(config, gateway):
    """The file's text; "": it is no chainlet."""
    paths = (config.get("model_metadata") or {}).get(KEY)
    if not isinstance(paths, dict):
        return ""
    if paths and not gateway:
        raise errors.LoadError(
            "it calls other chainlets, and this agent was not told of a gateway (--gateway)", True
        )
    return json.dumps(
        {name: {"predict_url": gateway.rstrip("/") + path} for name, path in sorted(paths.items())}
    )


def bind(wired, cache):
    """An argument of `headrace confine`. Files of the same text are one and stay."""
    import hashlib  # loads OpenSSL, and most models are no chainlets

    folder = os.path.join(cache, "chainlets")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, hashlib.sha256(wired.encode()).hexdigest())
    if not os.path.exists(path):
        new = "%s.%d" % (path, os.getpid())
        with open(new, "w") as file:
            file.write(wired)
        os.chmod(new, 0o444)
        os.replace(new, path)
    return "--bind=%s=%s/%s" % (path, FOLDER, NAME)


def wire(wired):
    """After the model's modules were imported, before it is made."""
    if not wired or os.path.exists(os.path.join(FOLDER, NAME)):
        return
    folder = os.path.join(os.environ.get("TMPDIR", "/tmp"), "b10_dynamic_config-%d" % os.getpid())
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with open(os.path.join(folder, NAME), "w") as file:
        file.write(wired)
    os.environ["B10_DYNAMIC_CONFIG_DIR"] = folder
    resolver = sys.modules.get(RESOLVER)
    if resolver is not None:
        resolver.DYNAMIC_CONFIG_MOUNT_DIR = folder
