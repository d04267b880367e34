#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes minilm/: 200 texts, their token ids and vectors by the reference implementation.

    texts.json    array of texts, ASCII with escapes
    tokens.u16    per text: count, then ids; u16 little-endian; cut at the model's length
    truncated.u8  per text: 1 where the model's length cut it
    vectors.f32   per text: 384 f32 little-endian, mean-pooled and normalized

and tiny_tokens.u16 and tiny_truncated.u8: the same texts by the tokenizer of tiny/ (make_tiny.py).

The reference is Hugging Face transformers' BertModel on torch, run in float64 so that its own
rounding does not count, and the fast tokenizer that sentence-transformers uses; pooling and
normalizing are sentence-transformers' own three lines.

    apt install python3-torch; /usr/bin/python3 -m venv --system-site-packages venv
    venv/bin/pip install 'transformers==4.36.2' 'numpy<2'
    venv/bin/python make_reference.py MODEL_DIR
"""
import json
import pathlib
import random
import sys

import numpy
import torch
from transformers import AutoTokenizer, BertModel

COUNT = 200
HERE = pathlib.Path(__file__).resolve().parent

PLAIN = """The quick brown fox jumps over the lazy dog.
Kafka keeps the request until a worker has taken it.
A headrace is the channel that carries water to the wheel.
Where is the nearest train station?
The cat sat on the mat.
A feline was resting on a rug.
Stock markets fell sharply on Tuesday after the announcement.
She sells sea shells by the sea shore.
How do I reset my password?
I forgot my login credentials, what should I do?
The mitochondria is the powerhouse of the cell.
E = mc^2
Paris is the capital of France.
Berlin is the capital of Germany.
def main(): print("hello, world")
SELECT id, state FROM headrace_v1.jobs WHERE state = 'QUEUED';
Please cancel my order #12345-B, placed on 2026-11-23.
The patient was given 5mg/kg of the drug every 6 hours.
It's raining cats and dogs; don't forget your umbrella!
"To be, or not to be: that is the question."
GPU memory is exhausted (out of memory)
He said that she said that they said that it was fine.
1 2 3 4 5 6 7 8 9 10
3.14159265358979323846
https://example.com/path?query=1&other=two#fragment
user.name+tag@example.co.uk
ALL CAPS SHOULDN'T MATTER FOR AN UNCASED MODEL
all caps shouldn't matter for an uncased model
antidisestablishmentarianism
pneumonoultramicroscopicsilicovolcanoconiosis
state-of-the-art end-to-end encryption
C++ and C# and F# are languages; so is C.
$100 + 20% = $120 ~ 110 EUR
(parentheses) [brackets] {braces} <angles>
...!!!???,,,;;;:::
foo_bar_baz fooBarBaz foo.bar.baz
Mr. and Mrs. Smith went to Washington, D.C.
a
I
.""".split("\n")

UNICODE = [
    "", " ", "\t\n\r ", "\u00a0\u2003\u3000",
    "Caf\u00e9 cr\u00e8me br\u00fbl\u00e9e na\u00efve fa\u00e7ade", "Cafe\u0301 cre\u0300me bru\u0302le\u0301e nai\u0308ve fac\u0327ade",
    "Stra\u00dfe, Gr\u00f6\u00dfe, \u00c4pfel, \u1e9e", "\u0130stanbul \u0131\u015f\u0131k I\u0307i", "\u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3 \u1f48\u03b4\u03c5\u03c3\u03c3\u03b5\u03cd\u03c2",
    "\u041c\u043e\u0441\u043a\u0432\u0430 \u2014 \u0441\u0442\u043e\u043b\u0438\u0446\u0430 \u0420\u043e\u0441\u0441\u0438\u0438, \u0451\u043b\u043a\u0430 \u0439\u043e\u0434", "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u064e \u0627\u0644\u0652\u0639\u064e\u0631\u064e\u0628\u0650\u064a\u064e\u0651\u0629",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01", "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u4e2d\u6587\u548cEnglish\u6df7\u5408text\u6d4b\u8bd5", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\u3002\u30ab\u30bf\u30ab\u30ca\u3068\u6f22\u5b57", "\u304b\u3099\u304e\u3050 \u30cf\u309a\u30d2\u3099",
    "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4", "\u1112\u1161\u11ab\u1100\u116e\u11a8", "\U00020000\U0002a6d6\U0002f800 rare ideographs \uf900\u3400", "\u3007\u3006\u30f5 \u2f00\u2e80",
    "I love \U0001f600 and \U0001f44d\U0001f3fd!", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family emoji", "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 flags", "\u2764\ufe0f heart with selector", "\U0001f970\U0001fae0 newer emoji",
    "zero\u200bwidth\u200cjoiners\u200dhere\ufeff", "soft\u00adhyphen", "bell\u0007 backspace\u0008 escape\u001b[31mred\u001b[0m", "nul\u0000inside", "replacement \ufffd char", "vertical\u000btab form\u000cfeed next\u0085line", "line\u2028separator paragraph\u2029separator", "del\u007f c1\u0080\u009f",
    "private \ue000 use \U000f0000 area", "unassigned \u0378 \U000e0fff code points", "noncharacter \ufdd0 \uffff",
    "\u202eright to left override\u202c", "\u2066isolate\u2069", "a\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307 stacked accents", "\u0300leading accent", "\u0300", "z\u0337a\u0336l\u0335g\u0334o",
    "\u2018quotes\u2019 \u201cdouble\u201d \u00abguillemets\u00bb \u2013 \u2014 \u2026", "\u00a1Hola! \u00bfQu\u00e9 tal?", "\u20ac100 \u00a350 \u00a51000 \u20b9500 \u20bf1", "x\u00b2 + y\u00b3 = z\u2074, H\u2082O", "\u00bd \u00be \u2153 \u2160\u2161\u2162 \u2460\u2461", "\ufb01nance \ufb02ow o\ufb03ce", "\uff26\uff55\uff4c\uff4c\uff57\uff49\uff44\uff54\uff48 \uff11\uff12\uff13", "\u212b \u00c5 A\u030a", "\u2126 \u03a9 \u212a K",
    "\u2190 \u2191 \u2192 \u2193 \u21d2 \u2200x \u2203y", "\u222b\u2211\u220f\u221a\u221e \u2264 \u2265 \u2260", "\U0001d400\U0001d401\U0001d402 math alphanumerics", "\u00b5 \u03bc micro", "\u0391\u0392\u0393 \u03b1\u03b2\u03b3 \u037e greek question mark", "\u0e33 \u0eb3 sara am", "\u1e0b\u0323 \u0064\u0323\u0307 ordering",
    "\u0e01\u0e33\u0e25\u0e31\u0e07 \u0e01\u0e32\u0e23", "Ti\u1ebfng Vi\u1ec7t c\u00f3 d\u1ea5u", "\u01c4 \u01c5 \u01c6 digraphs", "\u10d0\u10d1\u10d2 \u10a0\u10a1 \u1c90", "\u13a0\u13a1 \uab70 cherokee", "\u166d\u1680\u180e odd ones", "\U00011049\U0001104a brahmi \U000111c9", "\u2e43\u2e4f newer punctuation \u061d",
    "[CLS] injected [SEP] special [MASK] tokens [PAD] [UNK]", "[cls] [Mask] [MASK][MASK]x[MASK]", "[MASK", "]MASK[", "[unused1] ##ing ##", "hello##world", "word" * 24 + "wor", "word" * 25, "word" * 25 + "s", "a" * 100, "a" * 101, "\u00e9" * 100, "e\u0301" * 100, "e\u0301" * 101, "\u4e00" * 130,
    "tab\tseparated\tvalues\r\nand lines\n\n\nmore", "  leading and trailing  ", "multiple     spaces", "no.space.after.dots,or,commas;or;semicolons", "don't can't won't it's I'm you're", "rock'n'roll o'clock 'tis", "\u0060backticks\u0060 ^carets^ ~tildes~ |pipes|", "\\backslash\\ /slash/", "a\u00b7b\u2022c\u2027d", "\u30fb\u3001\u3002\u300c\u300d\uff1f\uff01",
]


def long_texts(rng):
    words = [w.strip(".,;:!?\"'()") for line in PLAIN for w in line.split()]
    for count in (60, 120, 200, 230, 250, 253, 254, 255, 256, 257, 300, 400, 600, 2000):
        yield " ".join(rng.choice(words) for _ in range(count))
    yield "the " * 254
    yield "the " * 255
    yield "\u4e16" * 254
    yield "\u4e16" * 300
    yield "unbelievably " * 300
    yield "\U0001f600 " * 300


def texts():
    rng = random.Random(20261123)
    made = PLAIN + UNICODE + list(long_texts(rng))
    alphabets = ["abcdefghijklmnopqrstuvwxyz   ", "ABCxyz 0123.,-\u00e9\u00fc\u00f1",
                 "\u4e00\u4e8c\u4e09abc \u3042\u3044", "\u0430\u0431\u0432 \u0410\u0401\u0439", "\ud55c\uae00 abc.", "\U0001f600\U0001f680\u200d\ufe0f ok "]
    while len(made) < COUNT:
        alphabet = rng.choice(alphabets)
        made.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 160))))
    assert len(made) == COUNT, len(made)
    return made


def tokenize(model_dir):
    limit = json.loads((model_dir / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ids = [tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in texts()]
    truncated = [len(tokenizer(text, truncation=False)["input_ids"]) > limit for text in texts()]
    print(f"{COUNT} texts, {sum(map(len, ids))} tokens, {sum(truncated)} truncated, limit {limit}")
    return ids, truncated


def write_tokens(ids, truncated, tokens_path, truncated_path):
    flat = [n for row in ids for n in [len(row)] + row]
    tokens_path.write_bytes(numpy.array(flat, dtype="<u2").tobytes())
    truncated_path.write_bytes(bytes(truncated))


def main():
    model_dir = pathlib.Path(sys.argv[1])
    out = HERE / "minilm"
    out.mkdir(exist_ok=True)
    write_tokens(*tokenize(HERE / "tiny"), HERE / "tiny_tokens.u16", HERE / "tiny_truncated.u8")
    ids, truncated = tokenize(model_dir)
    write_tokens(ids, truncated, out / "tokens.u16", out / "truncated.u8")
    model = BertModel.from_pretrained(model_dir).double().eval()
    vectors = []
    for row in ids:
        with torch.no_grad():
            states = model(torch.tensor([row])).last_hidden_state
        vector = torch.nn.functional.normalize(states.mean(dim=1), p=2, dim=1)[0]
        vectors.append(vector.numpy().astype("<f4"))
    (out / "texts.json").write_text(json.dumps(texts(), ensure_ascii=True, indent=0) + "\n")
    (out / "vectors.f32").write_bytes(numpy.stack(vectors).tobytes())


if __name__ == "__main__":
    main()
