#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which of our programs needs CUDA: the plugin, for matrix products and attention, and no other.

    tests/cuda/symbols.py BUILD-DIRECTORY

Needs binutils (readelf).
"""

import pathlib
import re
import subprocess
import sys

CUDA = re.compile(r"lib(cuda|cudart|cublas|cublasLt|cudnn\w*|nvrtc|nvidia-\w+)\.so")
PLUGIN = "encoder_cuda.so"


def read(flags, path):
    return subprocess.run(["readelf", "--wide", *flags, path], check=True, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


def needed(path):
    return re.findall(r"\(NEEDED\).*\[(.*)\]", read(["--dynamic"], path))


def undefined(path):
    return set(re.findall(r"\bUND +(\w+)", read(["--dyn-syms"], path)))


def programs(build):
    for folder in ("bin", "lib"):
        for path in sorted((build / folder).rglob("*")):
            # tests of the plugin are made of its parts
            if path.is_file() and not path.name.startswith(("cuda_", "gpu_")):
                with open(path, "rb") as file:
                    if file.read(4) == b"\x7fELF":
                        yield path


def main():
    build = pathlib.Path(sys.argv[1])
    faults, seen = [], 0
    for path in programs(build):
        seen += 1
        libraries = [name for name in needed(path) if CUDA.match(name)]
        if path.name != PLUGIN and libraries:
            faults.append(f"{path} needs {', '.join(libraries)}: only {PLUGIN} may")
    plugin = build / "lib" / "engines" / PLUGIN
    symbols = undefined(plugin)
    for name in ("cublasLtMatmul", "cudnnBackendExecute"):
        if name not in symbols:
            faults.append(f"{plugin} does not call {name}")
    print(f"{seen} programs and libraries below {build}; {PLUGIN} needs "
          f"{', '.join(name for name in needed(plugin) if CUDA.match(name))}")
    print("\n".join(faults), end="")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
