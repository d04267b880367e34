# SPDX-License-Identifier: Apache-2.0
"""Digits that no step of the training has seen.   held_out.py input;   held_out.py compare OUTPUT-FILE"""

import json
import sys

from train import WIDTH, held_out

COUNT, SHOWN, ENOUGH = 1000, 10, 0.9
SHADES = " .:-=+*#%@"


def row(pixels, y):
    return "".join(SHADES[min(9, max(0, int(p * 9)))] for p in pixels[y * WIDTH:(y + 1) * WIDTH])


def compare(answer):
    digits = held_out(COUNT)
    for y in range(7):
        print("   ", "   ".join(row(pixels, y) for _, pixels in digits[-SHOWN:]))
    print("   ", "   ".join(f"  {digit}  " for digit in answer["digits"][-SHOWN:]))
    right = sum(str(digit) == said for (digit, _), said in zip(digits, answer["digits"], strict=True))
    print(f"{right} of {COUNT} digits that it has never seen are read right, after {answer['trained_steps']} steps")
    return right >= ENOUGH * COUNT


if sys.argv[1] == "input":
    json.dump({"digits": [[round(p, 6) for p in pixels] for _, pixels in held_out(COUNT)]}, sys.stdout)
else:
    with open(sys.argv[2]) as file:
        sys.exit(0 if compare(json.load(file)) else 1)
