#!/usr/bin/env python3
"""Shows images to a node with the unmodified `openai`, `anthropic` and `ollama` packages.

    images_client.py --base-url http://127.0.0.1:11535 --model smollm2:135m-sees --blind smollm2:135m --image A.png

What the model says of an image is its own affair; that it was read is told by the tokens of the prompt. Prints one line per
check and ends with 0 if all held. Needs: pip install openai anthropic ollama
"""

import argparse
import base64
import pathlib
import sys

import anthropic
import ollama
import openai

QUESTION = "What is this?"
# A projector makes some tokens of an image; the question alone has fewer than this many more or less.
LEAST = 16


class Clients:
    def __init__(self, base_url, model, blind, image):
        self.openai = openai.OpenAI(base_url=f"{base_url}/v1", api_key="unused", timeout=120, max_retries=0)
        self.anthropic = anthropic.Anthropic(base_url=base_url, api_key="unused", timeout=120, max_retries=0)
        self.ollama = ollama.Client(host=base_url, timeout=120)
        self.model, self.blind, self.path = model, blind, image
        self.bytes = pathlib.Path(image).read_bytes()
        self.base64 = base64.b64encode(self.bytes).decode()

    def uri(self):
        return f"data:image/png;base64,{self.base64}"


def chat_completions(all):
    def ask(*parts):
        content = [*parts, {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content}]
        return all.openai.chat.completions.create(model=all.model, messages=messages, max_tokens=8, temperature=0)

    shown = ask({"type": "image_url", "image_url": {"url": all.uri(), "detail": "low"}})
    assert shown.choices[0].message.content, shown
    assert shown.usage.prompt_tokens >= ask().usage.prompt_tokens + LEAST, shown.usage


def responses(all):
    def ask(*parts):
        content = [*parts, {"type": "input_text", "text": QUESTION}]
        items = [{"role": "user", "content": content}]
        return all.openai.responses.create(model=all.model, input=items, max_output_tokens=16, temperature=0)

    shown = ask({"type": "input_image", "image_url": all.uri(), "detail": "auto"})
    assert shown.output_text, shown
    assert shown.usage.input_tokens >= ask().usage.input_tokens + LEAST, shown.usage


def messages(all):
    def ask(*parts):
        content = [*parts, {"type": "text", "text": QUESTION}]
        return all.anthropic.messages.create(
            model=all.model, messages=[{"role": "user", "content": content}], max_tokens=8
        )

    source = {"type": "base64", "media_type": "image/png", "data": all.base64}
    shown = ask({"type": "image", "source": source})
    assert shown.content[0].text, shown
    assert shown.usage.input_tokens >= ask().usage.input_tokens + LEAST, shown.usage


def chat(all):
    def ask(**more):
        turn = {"role": "user", "content": QUESTION, **more}
        return all.ollama.chat(model=all.model, messages=[turn], options={"num_predict": 8, "temperature": 0})

    plain = ask()
    for image in (all.path, all.bytes, all.base64):
        shown = ask(images=[image])
        assert shown.message.content, shown
        assert shown.prompt_eval_count >= plain.prompt_eval_count + LEAST, shown


def generate(all):
    def ask(**more):
        return all.ollama.generate(model=all.model, prompt=QUESTION, options={"num_predict": 8}, **more)

    assert ask(images=[all.path]).prompt_eval_count >= ask().prompt_eval_count + LEAST
    assert "vision" in all.ollama.show(all.model).capabilities
    assert "vision" not in all.ollama.show(all.blind).capabilities


def what_cannot_be_seen_is_refused(all):
    def ask(model, url):
        image = {"type": "image_url", "image_url": {"url": url}}
        messages = [{"role": "user", "content": [image]}]
        try:
            all.openai.chat.completions.create(model=model, messages=messages, max_tokens=8)
        except openai.BadRequestError as error:
            return str(error)
        raise AssertionError("it was answered")

    cut = base64.b64encode(all.bytes[:100]).decode()
    assert "image 1" in ask(all.model, f"data:image/png;base64,{cut}")
    assert "neither PNG" in ask(all.model, "data:image/png;base64,aGVsbG8gdGhlcmU=")
    assert "not fetched" in ask(all.model, "https://example.org/a.png")
    assert "sees no images" in ask(all.blind, all.uri())


CHECKS = [chat_completions, responses, messages, chat, generate, what_cannot_be_seen_is_refused]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True, help="such as http://127.0.0.1:11535")
    parser.add_argument("--model", required=True, help="one that sees")
    parser.add_argument("--blind", required=True, help="one that does not")
    parser.add_argument("--image", required=True, help="a PNG")
    arguments = parser.parse_args()
    all = Clients(arguments.base_url, arguments.model, arguments.blind, arguments.image)
    failed = 0
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            check(all)
            print(f"ok    {name}")
        except Exception as error:  # every check is told, whatever the one before did
            failed += 1
            print(f"FAIL  {name}: {type(error).__name__}: {error}")
    print(f"images: {len(CHECKS) - failed} of {len(CHECKS)} hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
