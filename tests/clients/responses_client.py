#!/usr/bin/env python3
"""Drives a node's responses API with the unmodified `openai` package.

    responses_client.py --base-url http://127.0.0.1:11535 --model smollm2:135m [--api-key KEY]

Prints one line per check and ends with 0 if all held. Needs: pip install openai jsonschema
"""

import argparse
import json
import sys

import jsonschema
import openai

PROMPT = "Name three colours and say one sentence about each of them."
UNKNOWN = "no-such-model:1b"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 40}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "name": "weather", "description": "The weather.", "parameters": WEATHER, "strict": True}]
ASKED = "What is the weather in Rome?"


def answer(client, model, **kwargs):
    kwargs.setdefault("max_output_tokens", 32)
    kwargs.setdefault("input", PROMPT)
    # Drawn answers may be empty, or end before a limit that a check is about.
    kwargs.setdefault("temperature", 0)
    return client.responses.create(model=model, **kwargs)


def answers_whole_and_stores_nothing(client, model):
    whole = answer(client, model, store=True, max_output_tokens=8, metadata={"a": "b"})
    assert (whole.object, whole.status, whole.model) == ("response", "incomplete", model), whole
    assert whole.incomplete_details.reason == "max_output_tokens" and whole.error is None, whole
    assert whole.output_text and whole.output[0].role == "assistant", whole
    assert whole.store is False and whole.metadata == {"a": "b"}, whole
    assert whole.usage.output_tokens == 8, whole.usage
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens, whole.usage


def streams_every_event_in_order(client, model):
    events = list(answer(client, model, stream=True))
    kinds = [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events))), kinds
    head = ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[:4] == [f"response.{kind}" for kind in head], kinds
    tail = ["output_text.done", "content_part.done", "output_item.done"]
    assert kinds[-4:-1] == [f"response.{kind}" for kind in tail], kinds
    assert kinds[-1] in ("response.completed", "response.incomplete"), kinds
    assert set(kinds[4:-4]) == {"response.output_text.delta"}, kinds
    text = "".join(event.delta for event in events[4:-4])
    assert text and events[-1].response.output_text == text, (text, events[-1])
    assert events[-4].text == text, (text, events[-4])


def accumulates_a_stream(client, model):
    with client.responses.stream(model=model, input=PROMPT, max_output_tokens=32, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = None if kinds[-1] == "response.incomplete" else stream.get_final_response()
    assert "response.output_text.delta" in kinds, kinds
    assert final is None or final.output_text, final


def hears_instructions_and_turns(client, model):
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Say hello."}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Again."},
    ]
    long = answer(client, model, input=turns, instructions="Answer in one word.", max_output_tokens=4)
    short = answer(client, model, input=turns[-1:], max_output_tokens=4)
    assert long.usage.input_tokens > short.usage.input_tokens + 10, (long.usage, short.usage)
    assert long.instructions == "Answer in one word.", long


def binds_an_answer_to_a_schema(client, model):
    format = {"type": "json_schema", "name": "weather", "schema": WEATHER, "strict": True}
    bound = answer(client, model, input=ASKED, text={"format": format}, max_output_tokens=200)
    jsonschema.validate(json.loads(bound.output_text), WEATHER)


def calls_when_it_must(client, model):
    for choice in ("required", {"type": "function", "name": "weather"}):
        called = answer(client, model, input=ASKED, tools=TOOLS, tool_choice=choice, max_output_tokens=200)
        (call,) = called.output
        assert (call.type, call.name) == ("function_call", "weather") and call.call_id, call
        jsonschema.validate(json.loads(call.arguments), WEATHER)


def streams_a_call(client, model):
    events = list(answer(client, model, input=ASKED, tools=TOOLS, tool_choice="required", max_output_tokens=200, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    assert kinds == ["created", "in_progress", *call, "completed"], kinds
    jsonschema.validate(json.loads(events[4].arguments), WEATHER)
    assert events[4].arguments == events[5].item.arguments == events[6].response.output[0].arguments


def goes_on_after_a_call(client, model):
    called = answer(client, model, input=ASKED, tools=TOOLS, tool_choice="required", max_output_tokens=200)
    told = [{"role": "user", "content": ASKED}] + [item.model_dump() for item in called.output]
    told.append({"type": "function_call_output", "call_id": called.output[0].call_id, "output": "21 degrees"})
    after = answer(client, model, input=told, tools=TOOLS, tool_choice="none")
    assert after.output_text, after


def refuses_by_name(client, model):
    for param, kwargs in {
        "previous_response_id": {"previous_response_id": "resp_1"},
        "conversation": {"conversation": "conv_1"},
        "background": {"background": True},
        "temperature": {"temperature": 3},
        "tools[0].type": {"tools": [{"type": "web_search"}]},
        "input[0].content": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
    }.items():
        try:
            answer(client, model, **kwargs)
        except openai.BadRequestError as error:
            assert error.param == param, error.body
        else:
            raise AssertionError(f"{param} was accepted")
    try:
        answer(client, UNKNOWN)
    except openai.NotFoundError as error:
        assert error.code == "model_not_found", error.body
    else:
        raise AssertionError("an unknown model was answered")


def survives_a_client_that_leaves(client, model):
    stream = answer(client, model, stream=True, max_output_tokens=512)
    next(iter(stream))
    stream.close()
    assert answer(client, model, max_output_tokens=1).status in ("completed", "incomplete")


CHECKS = [
    answers_whole_and_stores_nothing,
    streams_every_event_in_order,
    accumulates_a_stream,
    hears_instructions_and_turns,
    binds_an_answer_to_a_schema,
    calls_when_it_must,
    streams_a_call,
    goes_on_after_a_call,
    refuses_by_name,
    survives_a_client_that_leaves,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True, help="such as http://127.0.0.1:11535")
    parser.add_argument("--model", required=True)
    parser.add_argument("--api-key", default="none")
    arguments = parser.parse_args()
    base = arguments.base_url.rstrip("/") + "/v1"
    client = openai.OpenAI(base_url=base, api_key=arguments.api_key, max_retries=0, timeout=120)
    failed = 0
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            check(client, arguments.model)
            print(f"ok    {name}")
        except Exception as error:  # every check is told, whatever the one before did
            failed += 1
            print(f"FAIL  {name}: {type(error).__name__}: {error}")
    print(f"openai {openai.__version__}, responses: {len(CHECKS) - failed} of {len(CHECKS)} hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
