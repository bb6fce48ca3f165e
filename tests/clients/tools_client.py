#!/usr/bin/env python3
"""Calls of tools with the unmodified `openai` and `ollama` packages.

    tools_client.py --base-url http://127.0.0.1:11535 --model smollm2:135m [--requests 8]

Every request with `tool_choice: required`, or with one function named, must come back as a call of an offered tool whose
arguments are valid by its own schema; half are streamed. With `none` and with no choice made the answer must be sound, whether
it calls or not. Ends with 0 if all of that holds.
Needs: pip install openai ollama jsonschema
"""

import argparse
import json
import sys

import jsonschema
import ollama
import openai

PARAMETERS = {
    "weather": {
        "type": "object",
        "properties": {
            "city": {"$ref": "#/$defs/city"},
            "unit": {"enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
        "$defs": {"city": {"type": "string", "maxLength": 40}},
    },
    "set_alarm": {
        "type": "object",
        "properties": {
            "hour": {"type": "integer", "minimum": 0, "maximum": 23},
            "minute": {"type": "integer", "minimum": 0, "maximum": 59},
        },
        "required": ["hour", "minute"],
        "additionalProperties": False,
    },
    "lights_off": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": f"The function {name}.", "parameters": parameters},
    }
    for name, parameters in PARAMETERS.items()
]
QUESTIONS = ["What is the weather in Rome?", "Wake me at seven.", "Make it dark, please.", "Is it hot in Oslo?"]


def streamed(client, **request):
    """(name, arguments) of each call, and the reason of the end."""
    calls, reason = {}, None
    for chunk in client.chat.completions.create(stream=True, **request):
        if not chunk.choices:
            continue
        choice = chunk.choices[0]
        reason = choice.finish_reason or reason
        for part in choice.delta.tool_calls or []:
            name, arguments = calls.get(part.index, ("", ""))
            calls[part.index] = (name + (part.function.name or ""), arguments + (part.function.arguments or ""))
    return list(calls.values()), reason


def whole(client, **request):
    choice = client.chat.completions.create(**request).choices[0]
    calls = choice.message.tool_calls or []
    return [(call.function.name, call.function.arguments) for call in calls], choice.finish_reason


def sound(calls):
    for name, arguments in calls:
        jsonschema.validate(json.loads(arguments), PARAMETERS[name])


def forced(client, model, number):
    names = list(PARAMETERS)
    named = number % 3 == 2
    wanted = names[number % len(names)]
    choice = {"type": "function", "function": {"name": wanted}} if named else "required"
    ask = streamed if number % 2 else whole
    calls, reason = ask(
        client,
        model=model,
        messages=[{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
        tools=TOOLS,
        tool_choice=choice,
        max_tokens=200,
    )
    assert reason == "tool_calls", reason
    assert len(calls) == 1, calls
    sound(calls)
    assert not named or calls[0][0] == wanted, (calls, wanted)


def free(client, ollama_client, model):
    question = [{"role": "user", "content": QUESTIONS[0]}]
    calls, reason = whole(client, model=model, messages=question, tools=TOOLS, tool_choice="none", max_tokens=24)
    assert not calls and reason in ("stop", "length"), (calls, reason)
    calls, reason = streamed(client, model=model, messages=question, tools=TOOLS, max_tokens=64)
    assert bool(calls) == (reason == "tool_calls"), (calls, reason)
    answer = ollama_client.chat(model=model, messages=question, tools=TOOLS, options={"num_predict": 64})
    for call in answer.message.tool_calls or []:
        assert call.function.name in PARAMETERS and isinstance(call.function.arguments, dict), call
    assert answer.message.content or answer.message.tool_calls, answer
    # A conversation goes on after a call.
    told = question + [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome","unit":"celsius"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "21 degrees"},
    ]
    after = client.chat.completions.create(model=model, messages=told, tools=TOOLS, tool_choice="none", max_tokens=24)
    assert after.choices[0].message.content, after


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=8)
    arguments = parser.parse_args()
    client = openai.OpenAI(base_url=f"{arguments.base_url}/v1", api_key="none", timeout=300, max_retries=0)
    failed = 0
    for number in range(arguments.requests):
        try:
            forced(client, arguments.model, number)
        except Exception as error:  # every request is told
            failed += 1
            print(f"FAIL  request {number}: {type(error).__name__}: {error}")
    print(f"{arguments.requests - failed} of {arguments.requests} forced calls are well-formed")
    free(client, ollama.Client(host=arguments.base_url, timeout=300), arguments.model)
    if not failed:
        print("ok    tools")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
