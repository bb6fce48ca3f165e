#!/usr/bin/env python3
"""Writes a small projector for SmolLM2-135M: one in LLaVA's form, whose weights are drawn and mean nothing.

    projector.py OUT.gguf

What the model says about an image through it is gibberish, but always the same, and another for another image: that is
what tests of the path of an image need. Weights are whole numbers over a power of two, so every machine makes the same
file. Names and keys are those that llama.cpp's `clip` reads for the projector type `mlp`. Needs: pip install gguf
"""

import sys

import gguf
import numpy

SIDE, PATCH = 112, 14  # 64 patches, each a row for the model
WIDTH, INNER, HEADS = 64, 128, 4
LAYERS = 3  # the last is not computed: LLaVA takes what the one before it says
HIDDEN, TEXT = 256, 576  # SmolLM2-135M reads rows of 576
SEED = 20261129

generator = numpy.random.Generator(numpy.random.PCG64(SEED))


def drawn(scale, *shape):
    """Evenly between -scale and scale, in 256 steps."""
    return (generator.integers(-128, 128, size=shape) * (scale / 128)).astype("<f4")


def tensors():
    yield "v.class_embd", drawn(1 / 4, WIDTH)
    yield "v.patch_embd.weight", drawn(1 / 16, WIDTH, 3, PATCH, PATCH)
    yield "v.position_embd.weight", drawn(1 / 4, (SIDE // PATCH) ** 2 + 1, WIDTH)
    for name in ["v.pre_ln", "v.post_ln"]:
        yield f"{name}.weight", 1 + drawn(1 / 16, WIDTH)
        yield f"{name}.bias", drawn(1 / 16, WIDTH)
    for layer in range(LAYERS):
        block = f"v.blk.{layer}"
        for name in ["attn_q", "attn_k", "attn_v", "attn_out"]:
            yield f"{block}.{name}.weight", drawn(1 / 4, WIDTH, WIDTH)
            yield f"{block}.{name}.bias", drawn(1 / 16, WIDTH)
        for name in ["ln1", "ln2"]:
            yield f"{block}.{name}.weight", 1 + drawn(1 / 16, WIDTH)
            yield f"{block}.{name}.bias", drawn(1 / 16, WIDTH)
        yield f"{block}.ffn_up.weight", drawn(1 / 4, INNER, WIDTH)
        yield f"{block}.ffn_up.bias", drawn(1 / 16, INNER)
        yield f"{block}.ffn_down.weight", drawn(1 / 4, WIDTH, INNER)
        yield f"{block}.ffn_down.bias", drawn(1 / 16, WIDTH)
    yield "mm.0.weight", drawn(1 / 4, HIDDEN, WIDTH)
    yield "mm.0.bias", drawn(1 / 16, HIDDEN)
    # As large as the model's own rows for tokens are.
    yield "mm.2.weight", drawn(1 / 64, TEXT, HIDDEN)
    yield "mm.2.bias", drawn(1 / 64, TEXT)


def main():
    writer = gguf.GGUFWriter(sys.argv[1], "clip")
    writer.add_name("a projector of drawn weights for SmolLM2-135M")
    writer.add_license("cc0-1.0")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", False)
    for key, value in {
        "image_size": SIDE,
        "patch_size": PATCH,
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "projection_dim": TEXT,
        "block_count": LAYERS,
        "attention.head_count": HEADS,
    }.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.25, 0.25, 0.25])
    for name, tensor in tensors():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
