#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tiny/: a BERT model directory with random weights, for tests without a real model.

Shaped like all-MiniLM-L6-v2's (same files, same steps), 3 layers of 32, 1,000 tokens. The first
layer is F32, the second F16, the third BF16, so that one load reads all three. Needs nothing but
Python, and writes the same bytes each time.

    python3 make_tiny.py
"""
import json
import pathlib
import random
import struct

HIDDEN, HEADS, LAYERS, INTERMEDIATE = 32, 4, 3, 64
TOKENS, POSITIONS, LENGTH = 1000, 64, 48
OUT = pathlib.Path(__file__).resolve().parent / "tiny"

WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were her all she there would their we him been has when who will more no if out so said what up its
about into than them can only other new some could time these two may then do first any my now such like our over man
me even most made after also did many before must through back years where much your way well down should because
each just those people how too little state good very make world still own see men work long get here between both
life being under never day same another know while last might us great old year off come since against go came right
used take three states himself few house use during without again place american around however home small found
water wheel head race kafka queue worker request job model text vector engine batch token layer quick brown fox jumps
lazy dog cat sat mat stock market station train password order patient drug paris berlin france germany capital""".split()
PIECES = """ing ed er est ly tion s es ment ness able ful less ism ist ity al ic ous ive en or ar an th un re de in on
at it is ou st nd le ve ra ro ri ti te ne se ce ta la li""".split()
SCRIPTS = ("абвгдежзиклмнопрстухцчшщыьэюяαβγδεζηθικλμνξοπρστυφχψωאבגדהוזחטיכלמנסעפצקרשתابتثجحخدذرزسشصضطظعغفقكلمنهوي"
           "一丁三上下不世中主人今他会你入全公六共内再出分力北十千南口可台右同名向周命和唐四国土地城大天太女好字学小山"
           "あいうえおかきくけこさしすせそたちつてとなにぬねのアイウエオカキクケコᄀᄂᄃᄅᄆᄇᄉᄋᄌ하ᅡᅥᅩᅮᅵᆨᆫᆯ"
           "नमसतेदक一กขคงจ😀👍ßøłđħıæœð°²³½€£¥·–—‘’“”…、。「」・")


def vocabulary():
    ascii_marks = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + ascii_marks
    tokens += ["##" + chr(c) for c in range(ord("a"), ord("z") + 1)] + [f"##{d}" for d in range(10)]
    tokens += WORDS + ["##" + p for p in PIECES] + list(SCRIPTS) + ["##" + c for c in SCRIPTS if c.isalpha()]
    tokens = list(dict.fromkeys(tokens))
    assert len(tokens) <= TOKENS, len(tokens)
    return tokens + [f"[unused{i}]" for i in range(TOKENS - len(tokens))]


def pack(values, dtype):
    if dtype == "F32":
        return struct.pack(f"<{len(values)}f", *values)
    if dtype == "F16":
        return struct.pack(f"<{len(values)}e", *values)
    # The upper half of an f32, cut: any BF16 is a good one here.
    return b"".join(struct.pack("<f", v)[2:] for v in values)


def tensors(rng):
    def matrix(name, rows, columns, dtype, deviation):
        yield name, dtype, [rows, columns], [rng.gauss(0, deviation) for _ in range(rows * columns)]

    def vector(name, size, dtype, mean, deviation):
        yield name, dtype, [size], [rng.gauss(mean, deviation) for _ in range(size)]

    yield from matrix("embeddings.word_embeddings.weight", TOKENS, HIDDEN, "F32", 0.5)
    yield from matrix("embeddings.position_embeddings.weight", POSITIONS, HIDDEN, "F32", 0.2)
    yield from matrix("embeddings.token_type_embeddings.weight", 2, HIDDEN, "F32", 0.2)
    yield from vector("embeddings.LayerNorm.weight", HIDDEN, "F32", 1, 0.1)
    yield from vector("embeddings.LayerNorm.bias", HIDDEN, "F32", 0, 0.1)
    for layer, dtype in enumerate(["F32", "F16", "BF16"][:LAYERS]):
        at = f"encoder.layer.{layer}."
        for name, rows, columns in [("attention.self.query", HIDDEN, HIDDEN),
                                    ("attention.self.key", HIDDEN, HIDDEN),
                                    ("attention.self.value", HIDDEN, HIDDEN),
                                    ("attention.output.dense", HIDDEN, HIDDEN),
                                    ("intermediate.dense", INTERMEDIATE, HIDDEN),
                                    ("output.dense", HIDDEN, INTERMEDIATE)]:
            yield from matrix(at + name + ".weight", rows, columns, dtype, 0.2)
            yield from vector(at + name + ".bias", rows, dtype, 0, 0.1)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            yield from vector(at + name + ".weight", HIDDEN, dtype, 1, 0.1)
            yield from vector(at + name + ".bias", HIDDEN, dtype, 0, 0.1)


def write_weights(path):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, dtype, shape, values in tensors(random.Random(7)):
        packed = pack(values, dtype)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def tokenizer(tokens):
    special = [{"id": i, "special": True, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False} for i, t in enumerate(tokens[:5])]
    def mark(text):
        return {"SpecialToken": {"id": text, "type_id": 0}}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
                           "single": [mark("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, mark("[SEP]")],
                           "pair": [mark("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, mark("[SEP]"),
                                    {"Sequence": {"id": "B", "type_id": 1}},
                                    {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
                           "special_tokens": {t: {"id": t, "ids": [tokens.index(t)], "tokens": [t]}
                                              for t in ("[CLS]", "[SEP]")}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {t: i for i, t in enumerate(tokens)}},
    }


def main():
    def write_json(name, value):
        path = OUT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=None if name == "tokenizer.json" else 2) + "\n")

    tokens = vocabulary()
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write_json("config.json", {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "layer_norm_eps": 1e-12, "max_position_embeddings": POSITIONS,
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "pad_token_id": 0,
        "position_embedding_type": "absolute", "type_vocab_size": 2, "vocab_size": TOKENS})
    write_json("modules.json", [{"idx": i, "name": str(i), "path": path,
                                 "type": "sentence_transformers.models." + kind}
                                for i, (path, kind) in enumerate(modules)])
    write_json("1_Pooling/config.json", {"word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": False,
                                         "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False,
                                         "pooling_mode_mean_sqrt_len_tokens": False})
    write_json("sentence_bert_config.json", {"max_seq_length": LENGTH, "do_lower_case": False})
    write_json("tokenizer_config.json", {"do_lower_case": True, "model_max_length": POSITIONS,
                                         "tokenizer_class": "BertTokenizer"})
    write_json("tokenizer.json", tokenizer(tokens))
    (OUT / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    write_weights(OUT / "model.safetensors")
    print(f"{sum(f.stat().st_size for f in OUT.rglob('*') if f.is_file())} bytes in {OUT}")


if __name__ == "__main__":
    main()
