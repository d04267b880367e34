# SPDX-License-Identifier: Apache-2.0
"""From the detector's map to lines of text: its regions, grown by what the detector was taught to
shrink them, cut out as the tensors that the recogniser takes. Lines are taken to lie level."""

import base64
import io

import numpy as np
from PIL import Image

IS_TEXT, IS_LINE = 0.3, 0.5  # a pixel's and a region's least probability
UNCLIP = 1.6
HEIGHT = 48
SIDE_MIN = 3


def regions(text):
    """Boxes (left, top, right, bottom) of what hangs together, by runs of rows joined downwards."""
    parent, runs, above = [], [], []

    def root(label):
        while parent[label] != label:
            label = parent[label]
        return label

    for y, row in enumerate(text):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
        here = []
        for left, right in zip(edges[::2], edges[1::2]):
            touching = [root(label) for l, r, label in above if l <= right and r >= left]
            label = min(touching, default=len(parent))
            if not touching:
                parent.append(label)
            for other in touching:
                parent[other] = label
            here.append((left, right, label))
            runs.append((int(left), y, int(right), y + 1, label))
        above = here
    boxes = {}
    for left, top, right, bottom, label in runs:
        l, t, r, b = boxes.setdefault(root(label), (left, top, right, bottom))
        boxes[root(label)] = (min(l, left), min(t, top), max(r, right), max(b, bottom))
    return boxes.values()


def grown(box):
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    more = width * height * UNCLIP / (2 * (width + height))
    return left - more, top - more, right + more, bottom + more


def tensor(line):
    pixels = np.asarray(line, np.float32)[:, :, ::-1] / 127.5 - 1
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
    return {"shape": planes.shape, "dtype": "float32", "data": base64.b64encode(planes.tobytes()).decode()}


class Model:
    def predict(self, model_input):
        picture = Image.open(io.BytesIO(base64.b64decode(model_input["image"]))).convert("RGB")
        (found,) = model_input["found"].values()
        likely = np.frombuffer(base64.b64decode(found["data"]), np.float32).reshape(found["shape"])[0, 0]
        across, down = picture.width / likely.shape[1], picture.height / likely.shape[0]
        boxes, lines = [], []
        for box in sorted(regions(likely > IS_TEXT), key=lambda box: (box[1] + box[3], box[0])):
            left, top, right, bottom = box
            if min(right - left, bottom - top) < SIDE_MIN or likely[top:bottom, left:right].mean() < IS_LINE:
                continue
            left, top, right, bottom = grown(box)
            place = (
                max(0, round(left * across)),
                max(0, round(top * down)),
                min(picture.width, round(right * across)),
                min(picture.height, round(bottom * down)),
            )
            line = picture.crop(place)
            boxes.append(place)
            lines.append(tensor(line.resize((max(16, round(line.width * HEIGHT / line.height)), HEIGHT))))
        return {"boxes": boxes, "lines": lines}
