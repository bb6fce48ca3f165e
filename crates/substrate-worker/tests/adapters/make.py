#!/usr/bin/env python3
"""Regenerates answers.json beside it from llama.cpp's own server with a LoRA adapter.

    python3 -m venv VENV && VENV/bin/pip install xllamacpp==2026.10.11549
    VENV/bin/python make.py MODEL.gguf ADAPTER.gguf

The adapter is that of tests/models/adapter.py. Which llama.cpp that is, is told as in ../golden/make.py.
"""

import json, pathlib, sys, urllib.request

import xllamacpp

PROMPTS = [
    "What is this?",
    "Name three colours.",
    "Write a sentence about the sea.",
    "Why is the sky blue?",
    "Count from one to ten in words.",
    "Tell me about cats.",
]


def answers(model, adapter):
    params = xllamacpp.CommonParams()
    # As in ../golden/make.py: plain attention, one thread, nothing kept.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.model.path = model
    info = xllamacpp.CommonAdapterLoraInfo()
    info.path = adapter
    info.scale = 1.0
    params.lora_adapters = [info]
    params.n_ctx = 1024
    params.n_parallel = 1
    params.port = 0
    params.use_jinja = True
    params.warmup = False
    params.cache_prompt = False
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    for prompt in PROMPTS:
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 24,
            "temperature": 0,
            "cache_prompt": False,
            "logprobs": True,
            "top_logprobs": 2,
        }
        request = urllib.request.Request(
            server.listening_address + "/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            choice = json.load(answer)["choices"][0]
        yield {
            "prompt": prompt,
            "ids": [token["id"] for token in choice["logprobs"]["content"]],
            "text": choice["message"]["content"],
        }


lines = ",\n".join(json.dumps(answer, ensure_ascii=False) for answer in answers(*sys.argv[1:]))
pathlib.Path(__file__).with_name("answers.json").write_text(f"[\n{lines}\n]\n")
