# SPDX-License-Identifier: Apache-2.0
"""The native encoder against ONNX Runtime, same weights, same ids, same machine, taking turns.

ONNX Runtime gets the graph that its own optimizer arrives at for BERT: fused attention, fused
add-and-norm, fused bias-and-GELU (com.microsoft operators), all texts of one length, so no mask
is computed. It is built here straight from the safetensors file. Each round runs every
engine once for a fixed time; figures are medians over rounds. On one thread CPU seconds count, so
that other work on the machine does not; on several, wall seconds.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

MIXED = [(32, 128), (64, 256)]  # texts, and the longest; the shortest has MIXED_LEAST
MIXED_LEAST = 8
SHAPES = [(1, 16), (8, 16), (32, 16), (1, 128), (8, 128), (32, 128)]


def build_graph(model_dir, path):
    config = json.load(open(f"{model_dir}/config.json"))
    weights = load_file(f"{model_dir}/model.safetensors")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    eps = config["layer_norm_eps"]
    nodes, constants = [], []

    def constant(name, array):
        constants.append(numpy_helper.from_array(numpy.ascontiguousarray(array), name))
        return name

    def node(kind, inputs, output, domain="com.microsoft", more=(), **attributes):
        nodes.append(helper.make_node(kind, inputs, [output, *more], domain=domain, **attributes))
        return output

    def tensor(name):
        return constant(name, weights[name])

    x = node("EmbedLayerNormalization",
             ["ids", "types", tensor("embeddings.word_embeddings.weight"),
              tensor("embeddings.position_embeddings.weight"),
              tensor("embeddings.token_type_embeddings.weight"),
              tensor("embeddings.LayerNorm.weight"), tensor("embeddings.LayerNorm.bias")],
             "embedded", more=["mask_index"], epsilon=eps)
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        qkv = [at + f"attention.self.{name}." for name in ("query", "key", "value")]
        w = constant(at + "qkv.w", numpy.concatenate([weights[n + "weight"].T for n in qkv], axis=1))
        b = constant(at + "qkv.b", numpy.concatenate([weights[n + "bias"] for n in qkv]))
        context = node("Attention", [x, w, b], at + "context", num_heads=heads)

        def linear(source, name):
            w = constant(at + name + ".w", weights[at + name + ".weight"].T)
            return node("MatMul", [source, w], at + name + ".product", domain="")

        out = linear(context, "attention.output.dense")
        x = node("SkipLayerNormalization",
                 [out, x, tensor(at + "attention.output.LayerNorm.weight"),
                  tensor(at + "attention.output.LayerNorm.bias"),
                  tensor(at + "attention.output.dense.bias")], at + "attended", epsilon=eps)
        up = node("BiasGelu", [linear(x, "intermediate.dense"),
                               tensor(at + "intermediate.dense.bias")], at + "gelu")
        x = node("SkipLayerNormalization",
                 [linear(up, "output.dense"), x, tensor(at + "output.LayerNorm.weight"),
                  tensor(at + "output.LayerNorm.bias"), tensor(at + "output.dense.bias")],
                 at + "done", epsilon=eps)
    mean = node("ReduceMean", [x], "mean", domain="", axes=[1], keepdims=0)
    node("LpNormalization", [mean], "vectors", domain="", axis=1, p=2)
    graph = helper.make_graph(
        nodes, "bert",
        [helper.make_tensor_value_info(n, TensorProto.INT32, ["texts", "tokens"])
         for n in ("ids", "types")],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["texts", hidden])], constants)
    model = helper.make_model(graph, ir_version=8, opset_imports=[
        helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)])
    onnx.save(model, path)


class Ort:
    def __init__(self, path, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options,
                                                    providers=["CPUExecutionProvider"])

    def run(self, texts, tokens, seconds):
        ids = numpy.array([[101] + [(1000 + 7 * j + i) % 20000 + 1000 for j in range(1, tokens - 1)]
                           + [102] for i in range(texts)], dtype=numpy.int32)
        feed = {"ids": ids, "types": numpy.zeros_like(ids)}
        vectors = self.session.run(None, feed)[0]
        runs, cpu, start = 0, time.process_time(), time.monotonic()
        while time.monotonic() - start < seconds:
            self.session.run(None, feed)
            runs += 1
        return runs, time.monotonic() - start, time.process_time() - cpu, vectors[0]


class Native:
    def __init__(self, binary, model_dir):
        self.child = subprocess.Popen([binary, model_dir], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True)

    def run(self, texts, tokens, threads, dtype, seconds, kind=""):
        self.child.stdin.write(f"{kind}{texts} {tokens} {threads} {dtype} "
                               f"{int(seconds * 1000)}\n")
        self.child.stdin.flush()
        fields = self.child.stdout.readline().split()
        if not fields:
            sys.exit("encoder_bench ended; see its message above")
        vector = numpy.array([float(v) for v in fields[3:]])
        return int(fields[0]), float(fields[1]), float(fields[2]), vector

    def close(self):
        self.child.stdin.close()
        self.child.wait()


def rate(result, texts, threads):
    runs, wall, cpu, _ = result
    return texts * runs / (cpu if threads == 1 else wall)


def cosine(a, b):
    a, b = a.astype(float), b.astype(float)
    return a @ b / numpy.sqrt((a @ a) * (b @ b))


def compare_mixed(native, texts, longest, threads, dtype, args):
    """Tokens a second of texts of all lengths, and of as many texts of the mean length."""
    mean = (MIXED_LEAST + longest) // 2
    rates = {"mixed ": [], "": []}
    for _ in range(args.rounds):
        for kind, tokens in (("mixed ", longest), ("", mean)):
            result = native.run(texts, tokens, threads, dtype, args.seconds, kind)
            rates[kind].append(rate(result, texts, threads) * mean)
    mixed, fixed = (statistics.median(values) for values in rates.values())
    return (f"threads={threads} texts={texts:<3} tokens={MIXED_LEAST}-{longest} {dtype}: {mixed:.0f} tokens/s, of {mean} "
            f"tokens each {fixed:.0f}: {mixed / fixed:.2f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", required=True, help="the encoder_bench program")
    parser.add_argument("--model", required=True, help="MiniLM's directory")
    parser.add_argument("--graph", required=True, help="where to put the ONNX file")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--dtypes", default="f32,bf16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5)
    args = parser.parse_args()
    build_graph(args.model, args.graph)
    dtypes = args.dtypes.split(",")
    print(f"onnxruntime {onnxruntime.__version__}, {args.rounds} rounds of {args.seconds} s each; "
          "texts per second, ratio to ONNX Runtime f32, cosine with it")
    for threads in map(int, args.threads.split(",")):
        ort = Ort(args.graph, threads)
        natives = {dtype: Native(args.bench, args.model) for dtype in dtypes}
        for texts, tokens in SHAPES:
            rates = {name: [] for name in ["ort", *dtypes, "engine"]}
            cosines = {}
            for _ in range(args.rounds):
                result = ort.run(texts, tokens, args.seconds)
                rates["ort"].append(rate(result, texts, threads))
                for dtype, native in natives.items():
                    mine = native.run(texts, tokens, threads, dtype, args.seconds)
                    rates[dtype].append(rate(mine, texts, threads))
                    cosines[dtype] = cosine(mine[3], result[3])
                whole = natives[dtypes[0]].run(texts, tokens, threads, dtypes[0], args.seconds, "engine ")
                rates["engine"].append(rate(whole, texts, threads))
            middle = {name: statistics.median(values) for name, values in rates.items()}
            line = f"threads={threads} texts={texts:<3} tokens={tokens:<4} ort={middle['ort']:7.1f}"
            for dtype in dtypes:
                line += (f"  {dtype}={middle[dtype]:7.1f} ({middle[dtype] / middle['ort']:.2f}x, "
                         f"{cosines[dtype]:.6f})")
            print(line + f"  json-to-json {dtypes[0]}={middle['engine']:7.1f}", flush=True)
        for texts, longest in MIXED:
            for dtype, native in natives.items():
                print(compare_mixed(native, texts, longest, threads, dtype, args), flush=True)
        for native in natives.values():
            native.close()


if __name__ == "__main__":
    main()
