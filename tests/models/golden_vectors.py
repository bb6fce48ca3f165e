#!/usr/bin/env python3
"""The vectors that sentence-transformers makes of texts: 384 32-bit floats each, little-endian, of length 1.

    golden_vectors.py FOLDER texts.json vectors.f32

FOLDER is the model as it is published (all-MiniLM-L6-v2). Texts are cut at 512 tokens, which is what the model's positions
allow; its published default of 256 is a habit of its training. Needs: pip install sentence-transformers
"""

import json
import sys

import numpy
from sentence_transformers import SentenceTransformer

folder, texts, out = sys.argv[1:]
model = SentenceTransformer(folder, device="cpu")
model.max_seq_length = 512
with open(texts, encoding="utf-8") as file:
    texts = json.load(file)
vectors = model.encode(texts, batch_size=8, normalize_embeddings=True, convert_to_numpy=True)
assert vectors.shape == (len(texts), 384), vectors.shape
numpy.asarray(vectors, "<f4").tofile(out)
