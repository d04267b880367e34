# SPDX-License-Identifier: Apache-2.0
"""The parts of host-py; workers/host_py/__main__.py says how they come together."""
