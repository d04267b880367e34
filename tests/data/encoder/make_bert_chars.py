#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes workers/engines/encoder/wordpiece_chars.def: the character classes of BERT's tokenizer.

The reference (Hugging Face tokenizers) carries Unicode tables of its own, frozen years ago. A
character that Unicode added since is no punctuation and no accent to it, and models were trained
so. The classes are therefore asked from the reference itself, one code point at a time.

    python3 make_bert_chars.py > ../../../workers/engines/encoder/wordpiece_chars.def

Needs: pip install tokenizers==0.15.2
"""
import tokenizers
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def normalizer(**on):
    flags = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    return BertNormalizer(**{**flags, **on})


def ranges(points):
    runs = []
    for c in points:
        if runs and runs[-1][1] == c - 1:
            runs[-1][1] = c
        else:
            runs.append([c, c])
    return runs


def main():
    clean = normalizer(clean_text=True)
    cjk = normalizer(handle_chinese_chars=True)
    strip = normalizer(strip_accents=True)
    split = BertPreTokenizer()
    classes = {
        "DROPPED": [c for c in CODE_POINTS if clean.normalize_str(f"a{chr(c)}b") == "ab"],
        "SPACE": [c for c in CODE_POINTS if clean.normalize_str(f"a{chr(c)}b") == "a b"],
        "IDEOGRAPH": [c for c in CODE_POINTS if cjk.normalize_str(chr(c)) != chr(c)],
        "ACCENT": [c for c in CODE_POINTS if strip.normalize_str(chr(c)) == ""],
        "PUNCTUATION": [c for c in CODE_POINTS if len(split.pre_tokenize_str(f"a{chr(c)}b")) == 3],
    }
    print("/* SPDX-License-Identifier: Apache-2.0 */")
    print("/* CHARS(class, first code point, last code point): made by")
    print(" * tests/data/encoder/make_bert_chars.py from tokenizers", tokenizers.__version__)
    print(" * Ascending within a class; the order of classes is that of enum char_class. */")
    for name, points in classes.items():
        for first, last in ranges(points):
            print(f"CHARS({name}, 0x{first:04X}, 0x{last:04X})")


if __name__ == "__main__":
    main()
