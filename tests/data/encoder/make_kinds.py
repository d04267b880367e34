#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes kinds/: small models with random weights, one a family and head, and what the reference
implementation answers for them.

    kinds/NAME/      config.json, model.safetensors (F16), tokenizer.json, tokenizer_config.json
    kinds/NAME/golden.json   [{"route", "body", "answer"}, …]: of /v1/embeddings "answer" is the vectors
    kinds/FAMILY.tokens      where the tokenizer is not WordPiece: of each text of minilm/texts.json its tokens'
                             count, then id, start and end of each; u16 little-endian, not cut, nothing around;
                             "-prefix" with add_prefix_space, "-split" with white space split off first, "-strip" with
                             the ends stripped, as older and newer files of XLM-RoBERTa have it

The reference is Hugging Face transformers on torch, in float64: its models, its fast tokenizers
(truncation "longest_first"), its token-classification pipeline for what is aggregated. Softmax,
sigmoid, order and shape of the answers are written down here.

    apt install python3-torch; /usr/bin/python3 -m venv --system-site-packages venv
    venv/bin/pip install 'transformers==4.36.2' 'numpy<2' sentencepiece protobuf
    venv/bin/python make_kinds.py
"""
import base64
import io
import json
import pathlib
import shutil
import tempfile
import warnings

import numpy
import sentencepiece
import tokenizers
import torch
import transformers
from make_reference import PLAIN, UNICODE
from make_tiny import PIECES, WORDS, tokenizer as wordpiece_json
from safetensors.torch import save_file
from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "kinds"
HIDDEN, HEADS, LAYERS, INTERMEDIATE, LENGTH = 16, 2, 2, 32, 24
TAGS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "LOC"]

TEXTS = ["the quick brown fox jumps over the lazy dog", "water wheel", "", "Paris, the capital of France!",
         "kafka keeps a request until the worker has taken it and loses none of the requests that it keeps, never",
         "unbelievably large houses in Berlin, it's <mask> <pad> [MASK]", "caf\u00e9 na\u00efve \u4e2d\u6587 \U0001f600 zzz", "a"]  # fmt: skip


def save(folder, config, model, tokenizer_files):
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(len(str(folder.name)) * 1000 + sum(map(ord, folder.name)))
    state = {}
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        # Logits that differ, so that labels and ranks do.
        scale = 0.1 if value.dim() == 1 or "pre_" in name else 1.0 if "classifier" in name else 0.4
        value.copy_(noise * scale + (1 if "norm.weight" in name.lower() else 0))
        state[name] = value.half().contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name, value in tokenizer_files.items():
        (folder / name).write_text(json.dumps(value, ensure_ascii=True) + "\n")


def bert_tokenizer():
    marks = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + marks
    tokens += ["##" + chr(c) for c in range(ord("a"), ord("z") + 1)] + WORDS + ["##" + p for p in PIECES]
    tokens = list(dict.fromkeys(tokens))
    return tokens, {"tokenizer.json": wordpiece_json(tokens),
                    "tokenizer_config.json": {"do_lower_case": True, "model_max_length": LENGTH,
                                              "tokenizer_class": "BertTokenizer"}}


def roberta_tokenizer():
    """Byte-level BPE of 256 bytes and some 250 merges, as RobertaTokenizerFast writes it."""
    work = tokenizers.ByteLevelBPETokenizer()
    work.train_from_iterator(PLAIN + UNICODE, vocab_size=520, show_progress=False,
                             special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    work._tokenizer.post_processor = tokenizers.processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)  # fmt: skip
    work._tokenizer.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True, special=True)])
    json_text = json.loads(work._tokenizer.to_str())
    json_text["truncation"] = json_text["padding"] = None
    return work.get_vocab_size(), {"tokenizer.json": json_text,
                       "tokenizer_config.json": {"model_max_length": LENGTH, "tokenizer_class": "RobertaTokenizer",
                                                 "add_prefix_space": False}}  # fmt: skip


def xlm_tokenizer():
    """A unigram model of 600 pieces with XLM-RoBERTa's normalization (nmt_nfkc), converted as transformers does."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((PLAIN + UNICODE) * 3), model_writer=out, vocab_size=600, model_type="unigram",
        character_coverage=0.98, num_threads=1, minloglevel=2, hard_vocab_limit=False, max_sentence_length=1 << 16)  # fmt: skip
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(out.getvalue())
        file.flush()
        fast = transformers.convert_slow_tokenizer.convert_slow_tokenizer(transformers.XLMRobertaTokenizer(file.name))
    whole = transformers.XLMRobertaTokenizerFast(tokenizer_object=fast)
    state = json.loads(whole.backend_tokenizer.to_str())
    return len(whole), {"tokenizer.json": state,
                                   "tokenizer_config.json": {"model_max_length": LENGTH,
                                                             "tokenizer_class": "XLMRobertaTokenizer"}}  # fmt: skip


def mpnet_tokenizer():
    """WordPiece between <s> and </s>, as transformers converts it."""
    tokens = ["<s>", "<pad>", "</s>", "[UNK]"] + bert_tokenizer()[0][5:] + ["<mask>"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "vocab.txt"
        path.write_text("\n".join(tokens) + "\n")
        fast = transformers.MPNetTokenizerFast(str(path), model_max_length=LENGTH)
    return len(tokens), {"tokenizer.json": json.loads(fast.backend_tokenizer.to_str()),
                         "tokenizer_config.json": {"model_max_length": LENGTH, "do_lower_case": True,
                                                   "tokenizer_class": "MPNetTokenizer"}}  # fmt: skip


def write_tokens(name, folder, change=None, **options):
    """All of a tokenizer, not cut."""
    backend = AutoTokenizer.from_pretrained(folder, **options).backend_tokenizer
    backend.no_truncation()
    if change is not None:
        change(backend)
    words = []
    for text in json.loads((HERE / "minilm/texts.json").read_text()):
        encoded = backend.encode(text, add_special_tokens=True)
        inner = list(zip(encoded.ids, encoded.offsets))[1:-1]
        words += [len(inner)] + [word for id, (start, end) in inner for word in (id, start, end)]
    (OUT / f"{name}.tokens").write_bytes(numpy.array(words, "<u2").tobytes())


def write_more_tokens():
    def split(backend):
        words = [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Metaspace()]
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(words)

    def strip(backend):
        map = json.loads(backend.to_str())["normalizer"]["normalizers"][0]["precompiled_charsmap"]
        steps = [tokenizers.normalizers.Precompiled(base64.b64decode(map)), tokenizers.normalizers.Strip(False, True),
                 tokenizers.normalizers.Replace(tokenizers.Regex(" {2,}"), "\u2581")]  # fmt: skip
        backend.normalizer = tokenizers.normalizers.Sequence(steps)

    write_tokens("roberta-prefix", OUT / "roberta-embed", add_prefix_space=True)
    write_tokens("xlm-split", OUT / "xlm-embed", split)
    write_tokens("xlm-strip", OUT / "xlm-embed", strip)


class Reference:
    def __init__(self, folder, architecture):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = getattr(transformers, architecture).from_pretrained(folder).double().eval()
        self.labels = self.model.config.id2label

    def encode(self, text, second, body):
        self.tokenizer.truncation_side = body.get("truncation_direction", "Right").lower()
        # As lists: of a single pair whose second text is empty, the reference would make a single text.
        pair = {"text_pair": [second]} if second is not None else {}
        return self.tokenizer([text], truncation="longest_first", max_length=LENGTH,
                              return_tensors="pt", return_offsets_mapping=True, **pair)

    def run(self, text, second, body):
        encoded = self.encode(text, second, body)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            out = self.model(**encoded)
        return encoded["input_ids"][0].tolist(), offsets, out

    def embeddings(self, body):
        vectors = []
        for text in body["input"]:
            hidden = self.run(text, None, body)[2].last_hidden_state[0]
            vectors.append(hidden.mean(0).tolist())
        return vectors

    def scores(self, text, second, body):
        logits = self.run(text, second, body)[2].logits[0]
        if body.get("raw_scores"):
            return logits
        multi = self.model.config.problem_type == "multi_label_classification"
        return torch.sigmoid(logits) if len(logits) == 1 or multi else torch.softmax(logits, -1)

    def rerank(self, body):
        scores = [self.scores(body["query"], text, body)[0].item() for text in body["texts"]]
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
        return [{"index": i, "score": scores[i], **({"text": body["texts"][i]} if body.get("return_text") else {})}
                for i in order]  # fmt: skip

    def predict(self, body):
        inputs = [[body["inputs"]]] if isinstance(body["inputs"], str) else body["inputs"]
        answer = []
        for texts in inputs:
            scores = self.scores(texts[0], texts[1] if len(texts) > 1 else None, body).tolist()
            order = sorted(range(len(scores)), key=lambda i: -scores[i])
            answer.append([{"label": self.labels[i], "score": scores[i]} for i in order])
        return answer

    def predict_tokens(self, body):
        inputs = [[body["inputs"]]] if isinstance(body["inputs"], str) else body["inputs"]
        return [self.tokens(text, body) for [text] in inputs]

    def tokens(self, text, body):
        ids, offsets, out = self.run(text, None, body)
        strategy, logits = body.get("aggregation_strategy", "none"), out.logits[0]
        rows = logits if body.get("raw_scores") else torch.softmax(logits, -1)
        if strategy == "none":
            names = self.tokenizer.convert_ids_to_tokens(ids)
            return [{"token": names[t], "token_id": ids[t], "start": offsets[t][0], "end": offsets[t][1],
                     "results": self.results(rows[t], body)} for t in range(len(ids))]  # fmt: skip
        pipeline = transformers.TokenClassificationPipeline(model=self.model, tokenizer=self.tokenizer)
        kind = transformers.pipelines.token_classification.AggregationStrategy(strategy)
        special = numpy.array([1] + [0] * (len(ids) - 2) + [1])
        before = pipeline.gather_pre_entities(text, numpy.array(ids), rows.numpy(), numpy.array(offsets), special, kind)
        groups = [g for g in pipeline.aggregate(before, kind) if g["entity_group"] != "O"]
        return [{"token": text[int(g["start"]):int(g["end"])], "token_id": 0, "start": int(g["start"]),
                 "end": int(g["end"]), "results": {g["entity_group"]: float(g["score"])}}
                for g in groups]  # fmt: skip

    def results(self, row, body):
        if body.get("raw_scores"):
            return {self.labels[i]: row[i].item() for i in range(len(row))}
        best = int(row.argmax())
        return {self.labels[best]: row[best].item()}


REQUESTS = {
    "Model": [("/v1/embeddings", {"input": TEXTS})],
    "rerank": [("/rerank", {"query": "water wheel", "texts": TEXTS[:4] + TEXTS[5:], "return_text": True,
                           "truncate": True}),
               ("/rerank", {"query": TEXTS[4], "texts": TEXTS, "truncate": True, "raw_scores": True}),
               ("/rerank", {"query": TEXTS[0], "texts": TEXTS, "truncate": True, "truncation_direction": "Left"}),
               ("/predict", {"inputs": "water wheel"})],
    "classify": [("/predict", {"inputs": "the cat sat on the mat"}),
                 ("/predict", {"inputs": [[t] for t in TEXTS], "truncate": True}),
                 ("/predict", {"inputs": [[t] for t in TEXTS], "truncate": True, "truncation_direction": "Left"}),
                 ("/predict", {"inputs": [[TEXTS[0], TEXTS[1]], [TEXTS[4], TEXTS[4]], [TEXTS[2], TEXTS[2]]],
                               "truncate": True, "raw_scores": True})],
    "tokens": [("/predict_tokens", {"inputs": "Paris is unbelievably large"}),
               ("/predict_tokens", {"inputs": [[t] for t in TEXTS], "truncate": True, "raw_scores": True}),
               ("/predict_tokens", {"inputs": [[t] for t in TEXTS], "truncate": True, "truncation_direction": "Left"})]
    + [("/predict_tokens", {"inputs": [[t] for t in TEXTS], "truncate": True, "aggregation_strategy": s})
       for s in ("simple", "first", "average", "max")],
}  # fmt: skip
ROUTES = {"/v1/embeddings": "embeddings", "/rerank": "rerank", "/predict": "predict", "/predict_tokens": "predict_tokens"}


def bert_config(vocabulary):
    return {"model_type": "bert", "hidden_act": "gelu", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
            "layer_norm_eps": 1e-12, "max_position_embeddings": 32, "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": vocabulary}


def labels(names):
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def roberta_config(vocabulary):
    return {**bert_config(vocabulary), "model_type": "roberta", "layer_norm_eps": 1e-5, "max_position_embeddings": 34,
            "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}  # fmt: skip


def xlm_config(vocabulary):
    return {**roberta_config(vocabulary), "model_type": "xlm-roberta"}


def mpnet_config(vocabulary):
    config = {**roberta_config(vocabulary), "model_type": "mpnet", "relative_attention_num_buckets": 32}
    del config["type_vocab_size"]
    return config


def distil_config(vocabulary):
    return {"model_type": "distilbert", "activation": "gelu", "dim": HIDDEN, "hidden_dim": INTERMEDIATE, "n_heads": HEADS,
            "n_layers": LAYERS, "max_position_embeddings": 32, "pad_token_id": 0, "sinusoidal_pos_embds": False,
            "vocab_size": vocabulary}  # fmt: skip


def heads(family):
    classify = family + "ForSequenceClassification"
    return [("embed", family + "Model", "Model", {}), ("rerank", classify, "rerank", labels(["LABEL_0"])),
            ("classify", classify, "classify", labels(["joy", "anger", "fear", "none of \"them\""])),
            ("tokens", family + "ForTokenClassification", "tokens", labels(TAGS))]  # fmt: skip


def families():
    tokens, files = bert_tokenizer()
    yield "bert", "Bert", bert_config(len(tokens)), files
    distil = {**files, "tokenizer_config.json": {**files["tokenizer_config.json"], "tokenizer_class": "DistilBertTokenizer"}}
    yield "distilbert", "DistilBert", distil_config(len(tokens)), distil
    count, files = roberta_tokenizer()
    yield "roberta", "Roberta", roberta_config(count), files
    count, files = mpnet_tokenizer()
    yield "mpnet", "MPNet", mpnet_config(count), files
    count, files = xlm_tokenizer()
    yield "xlm", "XLMRoberta", xlm_config(count), files


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def write_kind(name, architecture, config, files, requests):
    folder = OUT / name
    model_class = getattr(transformers, architecture)
    settings = model_class.config_class(**config)
    model = model_class(settings, **({"add_pooling_layer": False} if architecture.endswith("Model") and
                                     "Distil" not in architecture else {}))
    save(folder, {"architectures": [architecture], **config}, model, files)
    reference = Reference(folder, architecture)
    golden = [{"route": route, "body": body, "answer": getattr(reference, ROUTES[route])(body)}
              for route, body in requests]
    (folder / "golden.json").write_text(json.dumps(rounded(golden), ensure_ascii=True) + "\n")


def main():
    warnings.filterwarnings("ignore")
    shutil.rmtree(OUT, ignore_errors=True)
    for name, family, config, files in families():
        for head, architecture, requests, extra in heads(family):
            if name in ("xlm", "mpnet") and head in ("classify", "tokens"):
                continue  # as RoBERTa's
            write_kind(f"{name}-{head}", architecture, {**config, **extra}, files, REQUESTS[requests])
        if "WordPiece" not in json.dumps(files["tokenizer.json"]["model"]["type"]):
            write_tokens(name, OUT / f"{name}-embed")
    # One copy of its large normalization is enough.
    (OUT / "xlm-rerank/tokenizer.json").unlink()
    (OUT / "xlm-rerank/tokenizer.json").symlink_to("../xlm-embed/tokenizer.json")
    write_more_tokens()
    tokens, files = bert_tokenizer()
    write_kind("bert-multi", "BertForSequenceClassification",
               {**bert_config(len(tokens)), **labels(["joy", "anger", "fear"]),
                "problem_type": "multi_label_classification"}, files, REQUESTS["classify"])  # fmt: skip


if __name__ == "__main__":
    main()
