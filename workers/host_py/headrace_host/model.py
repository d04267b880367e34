# SPDX-License-Identifier: Apache-2.0
"""Loading a Truss: where its code comes from, what __init__ is given, load() with its retries."""

import importlib.util
import inspect
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from . import chainlets, errors, methods

LOAD_GAP_SECONDS = 1.0


class SecretNotFound(Exception):
    pass


class Secrets(Mapping):
    """Lookup only. A name must stand in config.yaml; its value comes from the deployment's secrets,
    else from TRUSS_SECRET_<name>, else from config.yaml."""

    def __init__(self, declared, values):
        self._declared = declared or {}
        self._values = values

    def __getitem__(self, name):
        value = None
        if name in self._declared:
            value = self._declared[name]
            value = os.environ.get("TRUSS_SECRET_" + name, value)
            value = self._values.get(name, value)
        if not value:
            raise SecretNotFound(
                "Secret '%s' not found. It must be named under 'secrets' in config.yaml, and have "
                "a value: headrace secrets set %s" % (name, name)
            )
        return value

    def __iter__(self):
        raise NotImplementedError("Secrets are meant for lookup and can't be iterated on")

    def __len__(self):
        return len(self._declared)


def write_secret_files(declared, values):
    """/secrets/NAME, for code that looks there: only in a sandbox, whose folder is nobody else's."""
    folder = os.environ.get("SECRETS_DIR")
    if not folder or not declared:
        return
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for name, value in declared.items():
        value = values.get(name, value)
        if value:
            path = os.path.join(folder, name)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
                file.write(value)


class LazyDataResolver:
    """There is no data that comes later: all of it was pushed with the model."""

    def block_until_download_complete(self, *_args, **_kwargs):
        return None


def _module_of(folder, config):
    """Runs the model's file as a module of its own name and returns it."""
    path = (folder / config["model_module_dir"] / config["model_class_filename"]).absolute()
    if not path.is_file():
        raise errors.LoadError("there is no %s/%s" % (path.parent.name, path.name), True)
    stem = path.stem
    # model/model.py must not take the name "model": that is the package beside it.
    nested = path.parent.name == stem
    name = "%s.%s" % (stem, stem) if nested else stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise errors.LoadError("%s is no Python file" % path.name, True)
    module = importlib.util.module_from_spec(spec)
    if nested:
        module.__package__ = None
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _init_arguments(kind, offered):
    parameters = inspect.signature(kind).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in offered.items() if takes_all or name in parameters}


def _load_with_retries(load):
    retries = int(os.environ.get("NUM_LOAD_RETRIES_TRUSS", "1"))
    for attempt in range(retries + 1):
        try:
            load()
            return
        except Exception:
            if attempt == retries:
                raise
            logging.warning(
                "Failed to load model. Retrying.%s",
                " Retry count: %d" % attempt if attempt else "..",
            )
            time.sleep(LOAD_GAP_SECONDS)


def load(folder, config, secrets, environment, wired=""):
    """wired: how it finds other chainlets (chainlets.py). (model, its methods). Raises LoadError, or what the model's own code raised."""
    folder = Path(folder)
    write_secret_files(config.get("secrets"), secrets)
    data = Path("data")
    data.mkdir(exist_ok=True)
    packages = folder / config["bundled_packages_dir"]
    if packages.is_dir():
        sys.path.append(str(packages))
    sys.path.insert(0, str(folder))
    module = _module_of(folder, config)
    kind = getattr(module, config["model_class_name"], None)
    if kind is None:
        raise errors.LoadError(
            "%s has no class %s" % (config["model_class_filename"], config["model_class_name"]), True
        )
    chainlets.wire(wired)
    model = kind(
        **_init_arguments(
            kind,
            {
                "config": config,
                "data_dir": data,
                "secrets": Secrets(config.get("secrets"), secrets),
                "lazy_data_resolver": LazyDataResolver(),
                "environment": environment,
            },
        )
    )
    found = methods.Methods(model)
    if found.setup_environment is not None and environment is not None:
        logging.info("Executing model.setup_environment with environment: %s", environment)
        model.setup_environment(environment)
    if hasattr(model, "load"):
        begun = time.perf_counter()
        logging.info("Executing model.load()...")
        _load_with_retries(model.load)
        took_ms = int((time.perf_counter() - begun) * 1000)
        logging.info("Completed model.load() execution in %d ms", took_ms)
    return model, methods.Methods(model)


def is_final(error):
    """Whether loading again would fail the same way: the code is wrong, not its surroundings."""
    if isinstance(error, errors.LoadError):
        return error.final
    return isinstance(
        error, (errors.ModelDefinitionError, SyntaxError, ImportError, SecretNotFound, NameError)
    )
