#!/usr/bin/env python3
"""Asks for answers bound to JSON schemas with the unmodified `openai` and `ollama` packages and validates each.

    schema_client.py --base-url http://127.0.0.1:11535 --model smollm2:135m [--requests 12]

Every answer must be valid by the `jsonschema` package; half are streamed, and their speed is told beside that of
plain answers asked in turn. Ends with 0 if all are valid and the speed is at least --least of plain (0.5: a collapse; the
figure to reach is 0.7).
Needs: pip install openai ollama jsonschema
"""

import argparse
import json
import statistics
import sys
import time

import jsonschema
import ollama
import openai

TEXT = {"type": "string", "maxLength": 40}
SCHEMAS = [
    {
        "type": "object",
        "properties": {"name": TEXT, "age": {"type": "integer", "minimum": 0, "maximum": 130}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {
            "city": TEXT,
            "weather": {"enum": ["sun", "rain", "snow"]},
            "degrees": {"type": "number", "minimum": -50, "maximum": 60},
        },
        "required": ["city", "weather", "degrees"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {
            "steps": {"type": "array", "items": {"$ref": "#/$defs/step"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["steps"],
        "additionalProperties": False,
        "$defs": {
            "step": {
                "type": "object",
                "properties": {"do": TEXT, "minutes": {"type": "integer", "minimum": 1, "maximum": 90}},
                "required": ["do", "minutes"],
                "additionalProperties": False,
            }
        },
    },
    {
        "type": "object",
        "properties": {"answer": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}, "why": TEXT},
        "required": ["answer", "why"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 5},
]
QUESTIONS = [
    "Describe a person.",
    "What is the weather in Paris?",
    "How do I make tea?",
    "Is the earth round?",
    "Which colours do you like?",
]
# Enough for any answer but one: a number may have digits without end, and at times (1 of 200) the model finds none. Seeds
# make that a finding of a run and not of chance.
LIMIT = 400
PLAIN = [{"role": "user", "content": "Write a long story about a lighthouse."}]


def streamed(client, **request):
    """Text, and tokens per second after the first."""
    first = last = None
    text, tokens = "", 0
    for chunk in client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **request):
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        if chunk.choices and chunk.choices[0].delta.content:
            last = time.monotonic()
            first = first or last
            text += chunk.choices[0].delta.content
    return text, (tokens - 1) / (last - first) if tokens > 8 and last > first else None


def ask(number, openai_client, ollama_client, model):
    schema = SCHEMAS[number % len(SCHEMAS)]
    messages = [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}]
    kind, rate = number % 4, None
    named = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
    if kind in (0, 2):
        text, rate = streamed(
            openai_client, model=model, messages=messages, max_tokens=LIMIT, response_format=named, seed=number
        )
    elif kind == 1:
        whole = openai_client.chat.completions.create(
            model=model, messages=messages, max_tokens=LIMIT, response_format=named, temperature=1.2, seed=number
        )
        text = whole.choices[0].message.content
    else:
        text = ollama_client.chat(
            model=model, messages=messages, format=schema, options={"num_predict": LIMIT, "seed": number}
        ).message.content
    jsonschema.validate(json.loads(text), schema)
    return rate


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--least", type=float, default=0.5)
    arguments = parser.parse_args()
    openai_client = openai.OpenAI(base_url=f"{arguments.base_url}/v1", api_key="none", timeout=300, max_retries=0)
    ollama_client = ollama.Client(host=arguments.base_url, timeout=300)
    bound, plain, failed = [], [], 0
    for number in range(arguments.requests):
        try:
            rate = ask(number, openai_client, ollama_client, arguments.model)
        except Exception as error:  # every request is told
            failed += 1
            print(f"FAIL  request {number}: {type(error).__name__}: {error}")
            continue
        if rate:
            bound.append(rate)
            _, rate = streamed(openai_client, model=arguments.model, messages=PLAIN, max_tokens=48)
            plain.append(rate)
    ratio = statistics.median(bound) / statistics.median(plain)
    print(
        f"{arguments.requests - failed} of {arguments.requests} answers are valid; "
        f"{statistics.median(bound):.1f} tok/s bound, {statistics.median(plain):.1f} plain, ratio {ratio:.2f}"
    )
    if not failed:
        print("ok    answers bound to schemas")
    return 1 if failed or ratio < arguments.least else 0


if __name__ == "__main__":
    sys.exit(main())
