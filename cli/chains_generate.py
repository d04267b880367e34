# SPDX-License-Identifier: Apache-2.0
"""Run by `headrace chains push FILE.py`, in a Python that has the truss package: its own generator makes a
Truss of each chainlet, and each is told under which paths of the gateway it finds those that it depends on.

    python -c PROGRAM FILE ENTRYPOINT CHAIN DEPLOYMENT FOLDER

ENTRYPOINT and CHAIN may be empty. Trusses are made below FOLDER, and FOLDER/chain.json names them, the
entrypoint last. Exit code 3: this Python has no truss package; 1: the file is no chain, and why is on
standard error.
"""

import json
import os
import pathlib
import re
import sys
import tempfile

NAME_MAX = 64

# What generated code imports beside truss, and the image of a chainlet has from the Truss server.
SERVER = ("aiofiles", "aiohttp", "fastapi", "msgpack", "msgpack-numpy", "numpy", "prometheus-client")


def name_of(*parts):
    """A model's name: what may not be in one becomes a dash."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", ".".join(parts)).strip("-")
    if not name or len(name) > NAME_MAX:
        sys.exit("the name '%s' has %d characters, a model's has 1 to %d; --name=NAME makes it shorter"
                 % (name, len(name), NAME_MAX))  # fmt: skip
    return name


def distribution(line):
    """The name that a line of requirements begins with."""
    return re.split(r"[^A-Za-z0-9_.-]", line.strip(), maxsplit=1)[0].lower().replace("_", "-")


def require_server(place):
    """Adds what the image would have, in the versions that the package pins, unless the file names it."""
    import truss

    file = place / "pip_requirements.txt"
    if not file.exists():
        return  # a pyproject.toml or uv.lock has to name all itself
    lines = file.read_text().splitlines()
    named = {distribution(line) for line in lines}
    pinned = pathlib.Path(truss.__file__).parent / "templates/server/requirements.txt"
    for line in pinned.read_text().splitlines():
        name = distribution(line)
        if name in SERVER and name not in named:
            lines.append(line.partition("#")[0].strip())
    file.write_text("\n".join(lines) + "\n")


def generate(file, entrypoint, chain, deployment, folder):
    from truss.base import truss_config
    from truss_chains import framework
    from truss_chains.deployment import code_gen, deployment_client

    with framework.ChainletImporter.import_target(file, entrypoint or None) as entry:
        framework.raise_validation_errors()
        chain = name_of(chain or entry.meta_data.chain_name or entry.display_name)
        chainlets = list(deployment_client._get_ordered_dependencies([entry]))
        models = {
            one.display_name: chain if one.chainlet_cls == entry else name_of(chain, one.display_name)
            for one in chainlets
        }
        if len(set(models.values())) != len(chainlets):
            sys.exit("two chainlets have the same name: %s" % ", ".join(sorted(models.values())))
        made = []
        for one in chainlets:
            if issubclass(one.chainlet_cls, framework.EngineBuilderChainlet):
                sys.exit("chainlet %s is an EngineBuilderLLMChainlet: that needs Baseten's engine builder, which is not "
                         "here; a TrussChainlet of a server, or a model that is called, takes its place" % one.display_name)
            place = code_gen.gen_truss_chainlet(file.parent, chain, one, models[one.display_name])
            require_server(place)
            config = truss_config.TrussConfig.from_yaml(place / "config.yaml")
            config.model_metadata["headrace_chainlets"] = {
                needed.display_name: "/chain/%s/deployment/%s/run_remote"
                % (models[needed.display_name], deployment)
                for needed in one.dependencies.values()
            }
            if one.chainlet_cls == entry:
                config.model_metadata["headrace_entrypoint"] = True
            config.write_to_yaml_file(place / "config.yaml", verbose=True)
            made.append({"name": one.display_name, "model": models[one.display_name], "folder": str(place),
                         "entrypoint": one.chainlet_cls == entry})  # fmt: skip
    made.sort(key=lambda one: one["entrypoint"])
    (folder / "chain.json").write_text(json.dumps({"chain": chain, "deployment": deployment, "chainlets": made}))


def main():
    file, entrypoint, chain, deployment, folder = sys.argv[1:]
    tempfile.tempdir = folder  # the generator's place
    # It calls programs that were installed beside it.
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
    os.dup2(2, 1)
    try:
        import truss_chains  # noqa: F401
    except ImportError as error:
        print("%s has no truss package: %s" % (sys.executable, error), file=sys.stderr)
        sys.exit(3)
    try:
        generate(pathlib.Path(file).absolute(), entrypoint, chain, deployment, pathlib.Path(folder))
    except Exception as error:
        sys.exit("%s: %s" % (type(error).__name__, error))


main()
