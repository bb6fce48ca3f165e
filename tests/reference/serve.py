#!/usr/bin/env python3
"""Serves a model with the llama.cpp server that the `xllamacpp` wheel carries, until its input ends.

    serve.py MODEL SLOTS CONTEXT THREADS

Prints the address it listens on. CONTEXT is that of one slot.
"""

import sys

import xllamacpp

model, slots, context, threads = sys.argv[1], *map(int, sys.argv[2:5])
params = xllamacpp.CommonParams()
params.model.path = model
params.n_parallel = slots
params.n_ctx = slots * context
params.port = 0
params.cpuparams.n_threads = threads
params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
