# SPDX-License-Identifier: Apache-2.0
"""A module that travels with the model."""


def total(numbers):
    return sum(numbers)
