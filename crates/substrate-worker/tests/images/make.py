#!/usr/bin/env python3
"""Regenerates the images beside it, and answers.json from llama.cpp's own server.

    python3 -m venv VENV && VENV/bin/pip install xllamacpp==2026.10.11549 pillow==13.0.0
    VENV/bin/python make.py MODEL.gguf PROJECTOR.gguf

The projector is that of tests/models/projector.py. The images are drawn here: a gradient, stripes, one of other sides; the
first two as JPEG and GIF, a JPEG that has lost its end; one cut off in its middle, and one whose header claims more points than its bytes could ever fill. For each
question the server's greedy answer is recorded; of which llama.cpp that is, is told as in ../golden/make.py.
"""

import base64, io, json, pathlib, struct, sys, urllib.request, zlib

from PIL import Image

HERE = pathlib.Path(__file__).parent


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, point, claimed=None):
    rows = b"".join(
        b"\0" + bytes(c for x in range(width) for c in point(x, y)) for y in range(height)
    )
    sides = struct.pack(">II", *(claimed or (width, height)))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", sides + bytes([8, 2, 0, 0, 0]))
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def other(png, kind):
    kept = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(kept, kind)
    return kept.getvalue()


def gradient(x, y):
    return x * 2, y * 2, 255 - x


def stripes(x, y):
    return (230, 40, 40) if (x // 8) % 2 else (20, 60, 200)


IMAGES = {
    "gradient.png": png(112, 112, gradient),
    "stripes.png": png(112, 112, stripes),
    "wide.png": png(120, 60, gradient),
    "cut.png": png(112, 112, gradient)[:300],
    "bomb.png": png(16, 16, gradient, claimed=(60_000, 60_000)),
    "empty-promise.png": png(16, 16, gradient, claimed=(4_000, 4_000)),
}
IMAGES["gradient.jpg"] = other(IMAGES["gradient.png"], "JPEG")
IMAGES["stripes.gif"] = other(IMAGES["stripes.png"], "GIF")
IMAGES["endless.jpg"] = IMAGES["gradient.jpg"][: len(IMAGES["gradient.jpg"]) // 3]
CASES = [
    (["gradient.png", "What is this?"]),
    (["stripes.png", "What is this?"]),
    (["wide.png", "Describe the picture in one sentence."]),
    (["gradient.jpg", "What is this?"]),
    (["stripes.gif", "What is this?"]),
    (["First: ", "gradient.png", "Second: ", "stripes.png", "Which is larger?"]),
]


def part(content):
    if content not in IMAGES:
        return {"type": "text", "text": content}
    data = base64.b64encode(IMAGES[content]).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{content[-3:]};base64,{data}"}}


def answers(model, projector):
    import xllamacpp

    params = xllamacpp.CommonParams()
    # As in ../golden/make.py: plain attention, one thread, nothing kept.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.model.path = model
    params.mmproj.path = projector
    params.mmproj_use_gpu = False
    params.n_ctx = 2048
    params.n_parallel = 1
    params.port = 0
    params.use_jinja = True
    params.warmup = False
    params.cache_prompt = False
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    for case in CASES:
        body = {
            "messages": [{"role": "user", "content": [part(content) for content in case]}],
            "max_tokens": 24,
            "temperature": 0,
            "cache_prompt": False,
            "return_tokens": True,
            "logprobs": True,
            "top_logprobs": 2,
        }
        request = urllib.request.Request(
            server.listening_address + "/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            answer = json.load(answer)
        choice = answer["choices"][0]
        yield {
            "parts": case,
            "n_in": answer["usage"]["prompt_tokens"],
            "ids": [token["id"] for token in choice["logprobs"]["content"]],
            "text": choice["message"]["content"],
            "stop": choice["finish_reason"],
        }


for name, image in IMAGES.items():
    (HERE / name).write_bytes(image)
if len(sys.argv) == 3:
    lines = ",\n".join(json.dumps(answer, ensure_ascii=False) for answer in answers(*sys.argv[1:]))
    (HERE / "answers.json").write_text(f"[\n{lines}\n]\n")
