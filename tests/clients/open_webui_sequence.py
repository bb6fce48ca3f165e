#!/usr/bin/env python3
"""Replays the requests that Open WebUI makes of an Ollama server, and parses answers as it does.

    open_webui_sequence.py --base-url http://127.0.0.1:11535 --model smollm2:135m [--api-key KEY]

Greeting, version, tags, ps, a streamed chat, and its unload button. Standard library only.
"""

import argparse
import http.client
import json
import re
import sys
import urllib.parse


class Server:
    def __init__(self, base_url, api_key):
        self.at = urllib.parse.urlsplit(base_url)
        # Open WebUI forwards who asks; a server must not mind headers it does not know.
        self.headers = {"Content-Type": "application/json", "X-OpenWebUI-User-Name": "ann"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"

    def send(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.at.hostname, self.at.port, timeout=120)
        connection.request(method, path, json.dumps(body) if body is not None else None, self.headers)
        response = connection.getresponse()
        if response.status != 200:
            raise AssertionError(f"{method} {path}: {response.status} {response.read().decode()}")
        return response

    def json(self, method, path, body=None):
        return json.loads(self.send(method, path, body).read())


def version(server):
    """It compares versions as tuples of integers and takes the lowest of its servers."""
    told = server.json("GET", "/api/version")["version"]
    numbers = tuple(map(int, re.sub(r"^v|-.*", "", told).split(".")))
    assert len(numbers) == 3, told
    return told


def tags(server, model):
    """It merges its servers' lists by `model` and shows `name`, size and details."""
    models = server.json("GET", "/api/tags")["models"]
    merged = {entry["model"]: entry for entry in models}
    assert model in merged, f"{model} is not among {list(merged)}"
    entry = merged[model]
    assert re.fullmatch(r"[0-9a-f]{64}", entry["digest"]), entry
    for name in ("name", "modified_at", "size", "details"):
        assert name in entry, entry
    for name in ("parent_model", "format", "family", "families", "parameter_size", "quantization_level"):
        assert name in entry["details"], entry
    return len(models)


def chat(server, model):
    """It reads lines, adds up message.content and turns the last line into a usage table."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Say hello and name one colour."}],
        "options": {"num_predict": 24, "temperature": 0.8},
        "stream": True,
        "metadata": {"chat_id": "local"},
    }
    response = server.send("POST", "/api/chat", body)
    kind = response.getheader("content-type")
    assert kind.startswith("application/x-ndjson"), kind
    text, last = "", None
    for raw in response:
        line = json.loads(raw)
        assert "error" not in line, line
        assert last is None, "something followed the last line"
        text += line.get("message", {}).get("content", "")
        if line.get("done", False):
            last = line
    assert last is not None, "the stream ended without its last line"
    assert text, "no text came"
    return text, usage(last), last.get("substrate", {})


def usage(last):
    rate = lambda count, ns: round(count / (ns / 10_000_000) * 100, 2) if ns > 0 else "N/A"
    told = {
        "response_token/s": rate(last.get("eval_count", 0), last.get("eval_duration", 0)),
        "prompt_token/s": rate(last.get("prompt_eval_count", 0), last.get("prompt_eval_duration", 0)),
        "approximate_total": last.get("total_duration", 0) // 1_000_000_000,
        "completion_tokens": int(last.get("eval_count", 0)),
        "prompt_tokens": int(last.get("prompt_eval_count", 0)),
    }
    assert told["completion_tokens"] > 0 and told["prompt_tokens"] > 0, last
    return told


def unload(server, model):
    """Its unload button is a generation without a prompt that keeps nothing alive."""
    told = server.json("POST", "/api/generate", {"model": model, "keep_alive": 0})
    assert told["done"] and told["done_reason"] == "unload", told


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True, help="such as http://127.0.0.1:11535")
    parser.add_argument("--model", required=True)
    parser.add_argument("--api-key")
    arguments = parser.parse_args()
    server = Server(arguments.base_url, arguments.api_key)
    greeting = server.send("GET", "/").read()
    assert greeting == b"Ollama is running", greeting
    print(f"ok    version {version(server)}")
    print(f"ok    tags: {tags(server, arguments.model)} models, {arguments.model} among them")
    print(f"ok    ps: {len(server.json('GET', '/api/ps')['models'])} loaded here")
    text, table, facts = chat(server, arguments.model)
    print(f"ok    chat: {text!r}")
    print(f"      {json.dumps(table)}")
    print(f"      answered by {facts.get('node', '?')[:8]}, {facts.get('route')}, scope {facts.get('scope')}")
    unload(server, arguments.model)
    print("ok    unload")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (AssertionError, OSError, ValueError, KeyError) as error:
        print(f"FAIL  {type(error).__name__}: {error}")
        sys.exit(1)
