# SPDX-License-Identifier: Apache-2.0
"""Writes the small ONNX files of the tests, without a library: the few messages of onnx.proto that
they need. Run it to make tests/data/onnx anew; a unit test runs the files, so a change shows.

    python3 tests/lib/onnx_file.py
"""

import pathlib
import struct

FLOAT32, UINT8, INT8, UINT16, INT16, INT32, INT64, STRING, BOOL = range(1, 10)
FLOAT16, FLOAT64, UINT32, UINT64 = range(10, 14)


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field, value):
    return varint(field << 3) + varint(value & 0xFFFFFFFFFFFFFFFF)


def chunk(field, content):
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def value(name, kind, dims):
    """Axes are numbers, names, or None."""
    shape = b""
    for dim in dims:
        axis = b"" if dim is None else chunk(2, dim) if isinstance(dim, str) else number(1, dim)
        shape += chunk(1, axis)
    return chunk(1, name) + chunk(2, chunk(1, number(1, kind) + chunk(2, shape)))


def sequence(name, kind):
    return chunk(1, name) + chunk(2, chunk(4, chunk(1, chunk(1, number(1, kind)))))


def tensor(name, kind, dims, raw=None, external=None):
    out = b"".join(number(1, d) for d in dims) + number(2, kind) + chunk(8, name)
    if raw is not None:
        out += chunk(9, raw)
    if external is not None:
        for pair in external.items():
            out += chunk(13, chunk(1, pair[0]) + chunk(2, pair[1]))
        out += number(14, 1)
    return out


def floats(*numbers):
    return struct.pack(f"<{len(numbers)}f", *numbers)


def attribute(name, integer):
    return chunk(1, name) + number(3, integer) + number(20, 2)


def node(kind, inputs, outputs, *attributes):
    out = b"".join(chunk(1, i) for i in inputs) + b"".join(chunk(2, o) for o in outputs)
    return out + chunk(4, kind) + b"".join(chunk(5, a) for a in attributes)


def model(nodes, inputs, outputs, tensors=(), opset=13):
    graph = b"".join(chunk(1, n) for n in nodes) + chunk(2, "test")
    graph += b"".join(chunk(5, t) for t in tensors)
    graph += b"".join(chunk(11, i) for i in inputs) + b"".join(chunk(12, o) for o in outputs)
    return number(1, 8) + chunk(2, "headrace") + chunk(7, graph) + chunk(8, number(2, opset))


TYPES = {
    "f32": FLOAT32, "f64": FLOAT64, "f16": FLOAT16, "bool": BOOL,
    "i8": INT8, "i16": INT16, "i32": INT32, "i64": INT64,
    "u8": UINT8, "u16": UINT16, "u32": UINT32, "u64": UINT64,
}  # fmt: skip


def add():
    rows = [value(n, FLOAT32, ["batch", "width"]) for n in ("a", "b")]
    return model([node("Add", ["a", "b"], ["sum"]), node("Mul", ["a", "b"], ["product"])], rows,
                 [value(n, FLOAT32, ["batch", "width"]) for n in ("sum", "product")])


def types():
    return model([node("Identity", [t], [t + "_out"]) for t in TYPES],
                 [value(t, TYPES[t], ["N", 2]) for t in TYPES],
                 [value(t + "_out", TYPES[t], ["N", 2]) for t in TYPES])


def fixed():
    return model([node("Relu", ["x"], ["y"])], [value("x", FLOAT32, [1, 3])],
                 [value("y", FLOAT32, [1, 3])])


def running_sum():
    """Its first axis is free and is no batch."""
    axis = tensor("axis", INT64, [], struct.pack("<q", 0))
    return model([node("CumSum", ["x", "axis"], ["y"])], [value("x", FLOAT32, ["length"])],
                 [value("y", FLOAT32, ["length"])], [axis])


def liar():
    """Says that it keeps the batch, and sums it up."""
    return model([node("ReduceMax", ["x"], ["y"], attribute("keepdims", 1))],
                 [value("x", FLOAT32, ["batch", 1])], [value("y", FLOAT32, ["batch", 1])])


def root():
    return model([node("Sqrt", ["x"], ["y"])], [value("x", FLOAT32, ["batch"])],
                 [value("y", FLOAT32, ["batch"])])


def strict():
    """Fails at run time: its reshape wants six elements."""
    shape = tensor("shape", INT64, [2], struct.pack("<qq", 2, 3))
    return model([node("Reshape", ["x", "shape"], ["y"])], [value("x", FLOAT32, [None])],
                 [value("y", FLOAT32, [2, 3])], [shape])


def lists():
    return model([node("SplitToSequence", ["x"], ["parts"]), node("Neg", ["x"], ["minus"])],
                 [value("x", FLOAT32, ["batch", 2])],
                 [sequence("parts", FLOAT32), value("minus", FLOAT32, ["batch", 2])])


def weights(location, offset=0, length=8):
    """x times two numbers of another file."""
    w = tensor("w", FLOAT32, [2], external={
        "location": location, "offset": str(offset), "length": str(length)})
    return model([node("Mul", ["x", "w"], ["y"])], [value("x", FLOAT32, ["batch", 2])],
                 [value("y", FLOAT32, ["batch", 2])], [w])


def texts():
    """Token i's vector is (i, 1): a mean tells which tokens counted."""
    table = tensor("table", FLOAT32, [1000, 2], b"".join(floats(i, 1) for i in range(1000)))
    ids = [value(n, INT64, ["batch_size", "sequence_length"])
           for n in ("input_ids", "attention_mask")]
    return model([node("Gather", ["table", "input_ids"], ["last_hidden_state"])], ids,
                 [value("last_hidden_state", FLOAT32, ["batch_size", "sequence_length", 2])],
                 [table])


def fields(data):
    """(number, value) of a message; values are ints or bytes."""

    def read_varint(at):
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at

    at = 0
    while at < len(data):
        tag, at = read_varint(at)
        if tag & 7 == 0:
            content, at = read_varint(at)
        elif tag & 7 == 2:
            size, at = read_varint(at)
            content, at = data[at : at + size], at + size
        else:
            size = 8 if tag & 7 == 1 else 4
            content, at = data[at : at + size], at + size
        yield tag >> 3, content


def metadata(path):
    """The texts that a model's maker has put into its file."""
    entries = [dict(fields(c)) for n, c in fields(path.read_bytes()) if n == 14]
    return {e[1].decode(): e[2].decode() for e in entries}


def main():
    folder = pathlib.Path(__file__).resolve().parent.parent / "data/onnx"
    files = {
        "add/model.onnx": add(),
        "types/types.onnx": types(),
        "fixed/model.onnx": fixed(),
        "running_sum/model.onnx": running_sum(),
        "liar/model.onnx": liar(),
        "root/model.onnx": root(),
        "strict/model.onnx": strict(),
        "lists/model.onnx": lists(),
        "weights/model.onnx": weights("w.bin", offset=4),
        "weights/w.bin": floats(9, 10, 100),
        "texts/onnx/model.onnx": texts(),
        "hostile/climbs.onnx": weights("../weights/w.bin"),
        "hostile/absolute.onnx": weights("/etc/passwd"),
        "hostile/absent.onnx": weights("nowhere.bin"),
        "hostile/beyond.onnx": weights("nine.bin", offset=4, length=8),
        "hostile/nine.bin": b"123456789",
        "hostile/huge_shape.onnx": model(
            [node("Mul", ["x", "w"], ["y"])], [value("x", FLOAT32, [2])],
            [value("y", FLOAT32, [2])], [tensor("w", FLOAT32, [1 << 40, 1 << 40], b"")]),
        "hostile/short_raw.onnx": model(
            [node("Mul", ["x", "w"], ["y"])], [value("x", FLOAT32, [2])],
            [value("y", FLOAT32, [2])], [tensor("w", FLOAT32, [2], b"1234")]),
        "hostile/many_axes.onnx": model(
            [node("Relu", ["x"], ["y"])], [value("x", FLOAT32, [1] * 9)],
            [value("y", FLOAT32, [1] * 9)]),
        "hostile/unknown_op.onnx": model(
            [node("Nonsense", ["x"], ["y"])], [value("x", FLOAT32, [2])],
            [value("y", FLOAT32, [2])]),
        "hostile/cut.onnx": add()[:-20],
        "hostile/text.onnx": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "hostile/empty.onnx": b"",
        "hostile/strings.onnx": model(
            [node("Identity", ["x"], ["y"])], [value("x", STRING, [2])], [value("y", STRING, [2])]),
    }  # fmt: skip
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    tiny = folder.parent / "encoder/tiny"
    for name in ("vocab.txt", "tokenizer_config.json"):
        if (tiny / name).exists():
            (folder / "texts" / name).write_bytes((tiny / name).read_bytes())


if __name__ == "__main__":
    main()
