#!/usr/bin/env python3
"""Writes a small LoRA adapter for SmolLM2-135M whose weights are drawn and mean nothing.

    adapter.py OUT.gguf

What the model says through it is another text than without, and always the same: that is what tests of the path of an
adapter need. Weights are whole numbers over a power of two, so every machine makes the same file. Names, keys and shapes
are those that llama.cpp's converter writes: `lora_a` is rank by input, `lora_b` output by rank. Needs: pip install gguf
"""

import sys

import gguf
import numpy

WIDTH, INNER, LAYERS = 576, 1536, 30  # of SmolLM2-135M
RANK, ALPHA = 4, 8.0
SEED = 20261130

generator = numpy.random.Generator(numpy.random.PCG64(SEED))


def drawn(scale, *shape):
    """Evenly between -scale and scale, in 256 steps."""
    return (generator.integers(-128, 128, size=shape) * (scale / 128)).astype("<f4")


def tensors():
    for layer in range(0, LAYERS, 3):
        for name, inner in [("attn_q", WIDTH), ("ffn_down", INNER)]:
            tensor = f"blk.{layer}.{name}.weight"
            yield f"{tensor}.lora_a", drawn(1 / 32, RANK, inner)
            yield f"{tensor}.lora_b", drawn(1 / 32, WIDTH, RANK)


def main():
    writer = gguf.GGUFWriter(sys.argv[1], "llama")
    writer.add_type("adapter")
    writer.add_name("an adapter of drawn weights for SmolLM2-135M")
    writer.add_license("cc0-1.0")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    for name, tensor in tensors():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
