#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes those of kinds/ whose positions turn q and k: modernbert-* and nomic-*, as make_kinds.py does the others, and
modernbert.tokens. These families need a newer transformers than the one that the others were made with.

    python3 -m venv venv
    venv/bin/pip install torch==2.6.0 transformers==5.24.0 'numpy<2.3' sentencepiece protobuf
    venv/bin/python make_turning_kinds.py

Four layers, of which ModernBERT's second and third see five tokens to each side and the text up to 24. nomic-classify
has the config.json of NomicBERT's authors; nomic-bias has their biases too, which transformers' model gets put in.
"""
import json
import shutil
import tempfile
import warnings
from pathlib import Path

import tokenizers
import torch
import transformers
from make_kinds import HEADS, HIDDEN, INTERMEDIATE, LENGTH, OUT, REQUESTS, ROUTES, TAGS, TEXTS, Reference, bert_tokenizer
from make_kinds import labels, rounded, write_tokens
from make_reference import PLAIN, UNICODE
from safetensors.torch import load_file, save_file

LAYERS = 4


def modern_tokenizer():
    """Byte-level BPE behind NFC, between [CLS] and [SEP], with runs of spaces as tokens of their own."""
    work = tokenizers.ByteLevelBPETokenizer(unicode_normalizer="nfc")
    work.train_from_iterator(PLAIN + UNICODE, vocab_size=480, show_progress=False, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]"])
    inner = work._tokenizer
    inner.add_special_tokens([tokenizers.AddedToken("[MASK]", lstrip=True, special=True, normalized=False)])
    inner.add_tokens([tokenizers.AddedToken(" " * n, normalized=True) for n in (4, 3, 2)])
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0",
        special_tokens=[("[CLS]", inner.token_to_id("[CLS]")), ("[SEP]", inner.token_to_id("[SEP]"))])  # fmt: skip
    state = json.loads(inner.to_str())
    state["truncation"] = state["padding"] = None
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LENGTH, "clean_up_tokenization_spaces": True,
              "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]", "unk_token": "[UNK]",
              "model_input_names": ["input_ids", "attention_mask"]}  # fmt: skip
    return inner.get_vocab_size(), {"tokenizer.json": state, "tokenizer_config.json": config}


def modern_config(vocabulary):
    return {"model_type": "modernbert", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "hidden_activation": "gelu",
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "max_position_embeddings": 64, "norm_eps": 1e-5,
            "vocab_size": vocabulary, "local_attention": 10, "global_attn_every_n_layers": 3, "global_rope_theta": 160000.0,
            "local_rope_theta": 10000.0, "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
            "sep_token_id": 2}  # fmt: skip


def nomic_config(vocabulary):
    return {"model_type": "nomic_bert", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "hidden_act": "silu",
            "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "max_position_embeddings": 64, "layer_norm_eps": 1e-12,
            "vocab_size": vocabulary, "type_vocab_size": 2, "pad_token_id": 0}  # fmt: skip


def first_nomic(config, bias):
    """The same as its authors spell it."""
    return {"architectures": config["architectures"], "model_type": "nomic_bert", "n_embd": HIDDEN, "n_inner": INTERMEDIATE,
            "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, "max_trained_positions": 64, "layer_norm_epsilon": 1e-12,
            "activation_function": "swiglu", "rotary_emb_fraction": 1.0, "rotary_emb_base": 1000, "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None, "rotary_scaling_factor": None, "prenorm": False, "parallel_block": False,
            "causal": False, "use_rms_norm": False, "qkv_proj_bias": bias, "mlp_fc1_bias": bias, "mlp_fc2_bias": bias,
            "vocab_size": config["vocab_size"], "type_vocab_size": 2,
            **{key: config[key] for key in ("id2label", "label2id") if key in config}}  # fmt: skip


def put_biases(model):
    """Linear steps of NomicBERT's layers with biases, which the authors' model may have and transformers' never has."""
    for layer in model.layers if hasattr(model, "layers") else model.nomic_bert.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, step in list(part.named_children()):
                if isinstance(step, torch.nn.Linear):
                    setattr(part, name, torch.nn.Linear(step.in_features, step.out_features, bias=True))


def fill(model, name):
    generator = torch.Generator().manual_seed(len(name) * 1000 + sum(map(ord, name)))
    for key, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        is_norm = any(part in key.lower() for part in ("norm.weight", "layernorm.weight"))
        scale = 0.1 if value.dim() == 1 or "head.dense" in key or "pooler" in key else 1.0 if "classifier" in key else 0.4
        value.copy_((noise * scale + (1 if is_norm else 0)).half())


NOMIC_BIASES = {"self_attn.o_proj": "attn.out_proj", "mlp.up_proj": "mlp.fc11", "mlp.gate_proj": "mlp.fc12",
                "mlp.down_proj": "mlp.fc2"}  # fmt: skip


def write_weights(model, folder, bias):
    """As transformers saves them, which is under the names of the hub's files."""
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        state = load_file(Path(saved) / "model.safetensors")
    if bias:
        kept = {key: value for key, value in state.items() if not key.endswith(".bias") or "norm" in key or "emb_ln" in key}
        for i, layer in enumerate(model.layers):
            at = f"encoder.layers.{i}."
            kept[at + "attn.Wqkv.bias"] = torch.cat([getattr(layer.self_attn, n).bias for n in ("q_proj", "k_proj", "v_proj")])
            for ours, theirs in NOMIC_BIASES.items():
                kept[f"{at}{theirs}.bias"] = layer.get_submodule(ours).bias
        state = kept
    save_file({key: value.detach().half().contiguous() for key, value in state.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip


class Turning(Reference):
    def __init__(self, folder, model):
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = model.double().eval()
        self.labels = self.model.config.id2label


def write_kind(name, architecture, config, files, requests, first=False, bias=False):
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model_class = getattr(transformers, architecture)
    settings = model_class.config_class(**config)
    settings._attn_implementation = "eager"
    model = model_class(settings)
    if bias:
        put_biases(model)
    with torch.no_grad():
        fill(model, name)
    write_weights(model, folder, bias)
    config = {"architectures": [architecture], **config}
    (folder / "config.json").write_text(json.dumps(first_nomic(config, bias) if first else config, indent=2) + "\n")
    for file, value in files.items():
        (folder / file).write_text(json.dumps(value, ensure_ascii=True) + "\n")
    reference = Turning(folder, model)
    golden = [{"route": route, "body": body, "answer": getattr(reference, ROUTES[route])(body)} for route, body in requests]
    (folder / "golden.json").write_text(json.dumps(rounded(golden), ensure_ascii=True) + "\n")


def main():
    warnings.filterwarnings("ignore")
    count, files = modern_tokenizer()
    config = modern_config(count)
    spaced = [("/v1/embeddings", {"input": TEXTS + ["a  b    c", "e\u0301te\u0301 \u1100\u1161\u11a8 \u212b"]})]
    write_kind("modernbert-embed", "ModernBertModel", config, files, spaced)
    write_kind("modernbert-rerank", "ModernBertForSequenceClassification", {**config, **labels(["LABEL_0"])}, files, REQUESTS["rerank"])
    write_kind("modernbert-classify", "ModernBertForSequenceClassification",
               {**config, **labels(["joy", "anger", "fear", "none"]), "classifier_pooling": "mean", "norm_bias": True,
                "attention_bias": True, "mlp_bias": True, "classifier_bias": True}, files, REQUESTS["classify"])  # fmt: skip
    write_kind("modernbert-tokens", "ModernBertForTokenClassification", {**config, **labels(TAGS)}, files, REQUESTS["tokens"])
    write_tokens("modernbert", OUT / "modernbert-embed")
    tokens, files = bert_tokenizer()
    config = nomic_config(len(tokens))
    classify = "NomicBertForSequenceClassification"
    write_kind("nomic-embed", "NomicBertModel", config, files, REQUESTS["Model"])
    write_kind("nomic-bias", "NomicBertModel", config, files, REQUESTS["Model"], first=True, bias=True)
    write_kind("nomic-rerank", classify, {**config, **labels(["LABEL_0"])}, files, REQUESTS["rerank"])
    write_kind("nomic-classify", classify, {**config, **labels(["joy", "anger", "fear", "none"])}, files,
               REQUESTS["classify"], first=True)  # fmt: skip
    write_kind("nomic-tokens", "NomicBertForTokenClassification", {**config, **labels(TAGS)}, files, REQUESTS["tokens"])


if __name__ == "__main__":
    main()
