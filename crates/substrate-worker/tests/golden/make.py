#!/usr/bin/env python3
"""Regenerates the golden files beside it from llama.cpp's own server.

    python3 -m venv VENV && VENV/bin/pip install xllamacpp==2026.10.11549
    VENV/bin/python make.py MODEL.gguf [templates|tokens|answers]

The wheel carries llama.cpp's server. What is recorded: its rendering of conversations
(/apply-template), its token ids (/tokenize), its greedy answers (/completion), and which
llama.cpp it was (made_by.json).

That wheel is llama.cpp's nightly b11549, by the last number of its version; its own build number
and commit are left out of it. It calls itself 0.6.0-dev with ggml 0.26.0, and so does
llama-cpp-sys-2 =0.1.161, which the worker links: the same version, built with other flags and not
necessarily from the same commit. A test compares the versions, so that a new llama-cpp-sys-2 asks
for new golden files from a wheel of its version.
"""

import ctypes, json, pathlib, random, sys, urllib.request

import xllamacpp

HERE = pathlib.Path(__file__).parent
MODEL = sys.argv[1]
WHAT = sys.argv[2:] or ["templates", "tokens", "answers"]


def serve(template=None):
    params = xllamacpp.CommonParams()
    # Plain attention: the fused kernel rounds differently in every build of the same source.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.model.path = MODEL
    params.n_ctx = 2048
    params.n_parallel = 1
    params.port = 0
    params.use_jinja = True
    params.warmup = False
    params.cache_prompt = False
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    if template:
        params.chat_template = template
    return xllamacpp.Server(params)


def ask(server, path, body):
    request = urllib.request.Request(
        server.listening_address + path,
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def write(name, value):
    lines = ",\n".join(json.dumps(item, ensure_ascii=False) for item in value)
    (HERE / name).write_text(f"[\n{lines}\n]\n")
    print(name, len(value))


def made_by():
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    library.llama_version.restype = library.ggml_version.restype = ctypes.c_char_p
    versions = {
        "xllamacpp": xllamacpp.__version__,
        "llama.cpp": library.llama_version().decode(),
        "ggml": library.ggml_version().decode(),
    }
    (HERE / "made_by.json").write_text(json.dumps(versions) + "\n")


def templates():
    sources = {"gguf": None}
    sources |= {p.stem: p.read_text() for p in sorted((HERE / "templates").glob("*.jinja"))}
    cases = json.loads((HERE / "conversations.json").read_text())
    out = []
    for name, source in sources.items():
        server = serve(source)
        for case in cases:
            if name not in case.get("only", [name]):
                continue
            body = {key: case[key] for key in ("messages", "tools") if key in case}
            try:
                rendered = ask(server, "/apply-template", body)["prompt"]
            except urllib.error.HTTPError as error:
                print(name, case["name"], error.read()[:300])
                continue
            out.append({"template": name, "case": case["name"], **body, "rendered": rendered})
        del server
    write("templates.json", out)


SCRIPTS = [
    "abcdefghijklmnopqrstuvwxyz ABCDEFGH 0123456789 .,;:!?'\"()[]{}<>/\\|@#$%^&*-_=+~`",
    "äöüßéèêñçøåœ łżźćń ğış ",
    "абвгдежзийклмнопрстуфхцчшщъыьэюя ",
    "αβγδεζηθικλμνξοπρστυφχψω ",
    "你好世界中文字符测试語言模型 ",
    "こんにちは世界カタカナテスト ",
    "안녕하세요세계한국어 ",
    "مرحبا بالعالم ",
    "שלום עולם ",
    "नमस्ते दुनिया ",
    "สวัสดีชาวโลก ",
    "🦀🎉👩‍💻👍🏽🇪🇺✨❤️🔥🏳️‍🌈 ",
    "\t\u0001\u0002\u001b\u007f\u0085\u00a0\u200b\u200d\ufeff\u2028 \r",
]
SNIPPETS = [
    "fn main() { println!(\"{}\", 1 + 1); }", "for (int i = 0; i < n; ++i) a[i] *= 2;",
    "SELECT * FROM t WHERE x >= 10 AND y != 'z';", "def f(x):\n    return x ** 2\n",
    "<div class=\"a\">text</div>", "https://example.org/a?b=c&d=%20#e", "  leading and trailing  ",
    "\n\n\nblank lines\n\n", "it's we're I'd they'll don't", "1234567890 3.14159 1e-9 0xff",
    "<|im_start|>user\nnot a control token here<|im_end|>", "CamelCase snake_case kebab-case",
]


def lines(count):
    rng = random.Random(20261122)
    for i in range(count):
        if i < len(SNIPPETS):
            yield SNIPPETS[i]
            continue
        text = ""
        for _ in range(rng.randint(1, 5)):
            alphabet = rng.choice(SCRIPTS)
            text += "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 24)))
            text += rng.choice(["", " ", "  ", "\n"])
        yield text


def tokens():
    server = serve()
    out = []
    for text in lines(400):
        body = {"content": text, "add_special": False, "parse_special": False}
        out.append({"text": text, "ids": ask(server, "/tokenize", body)["tokens"]})
    write("tokens.json", out)


def answers():
    server = serve()
    out = []
    for case in json.loads((HERE / "prompts.json").read_text()):
        prompt = ask(server, "/apply-template", {"messages": case})["prompt"]
        body = {
            "prompt": prompt, "n_predict": 40, "temperature": 0, "cache_prompt": False,
            "return_tokens": True, "stream": False,
        }
        answer = ask(server, "/completion", body)
        out.append({
            "messages": case, "ids": answer["tokens"], "text": answer["content"],
            "stop": answer["stop_type"],
        })
    write("answers.json", out)


made_by()
for what in WHAT:
    {"templates": templates, "tokens": tokens, "answers": answers}[what]()
