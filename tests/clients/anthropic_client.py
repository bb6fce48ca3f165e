#!/usr/bin/env python3
"""Drives a node with the unmodified `anthropic` package.

    anthropic_client.py --base-url http://127.0.0.1:11535 --model smollm2:135m [--api-key KEY]

Prints one line per check and ends with 0 if all held. Needs: pip install anthropic jsonschema
"""

import argparse
import sys

import anthropic
import jsonschema

PROMPT = [{"role": "user", "content": "Name three colours and say one sentence about each of them."}]
UNKNOWN = "no-such-model:1b"
# The package has no parameter for it any more; the API has.
GREEDY = {"temperature": 0}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 40}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS = [
    {"name": "weather", "description": "The weather in a city.", "input_schema": WEATHER},
    {"name": "lights_off", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}},
]
ASKED = [{"role": "user", "content": "What is the weather in Rome?"}]


def answer(client, model, **kwargs):
    kwargs.setdefault("max_tokens", 32)
    kwargs.setdefault("messages", PROMPT)
    return client.messages.create(model=model, **kwargs)


def answers_whole_with_facts(client, model):
    raw = client.messages.with_raw_response.create(model=model, messages=PROMPT, max_tokens=8, extra_body=GREEDY)
    for name in ("x-substrate-job", "x-substrate-node", "x-substrate-route", "x-substrate-scope", "server-timing"):
        assert raw.headers.get(name), f"{name} is missing"
    whole = raw.parse()
    assert (whole.type, whole.role, whole.model) == ("message", "assistant", model), whole
    assert [block.type for block in whole.content] == ["text"] and whole.content[0].text, whole
    assert whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 8, whole
    assert whole.usage.input_tokens > 0, whole


def streams_the_same_events_as_anthropic(client, model):
    events = list(answer(client, model, stream=True, extra_body=GREEDY))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"], kinds
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"], kinds
    assert set(kinds[2:-3]) == {"content_block_delta"}, kinds
    assert events[0].message.usage.input_tokens > 0 and events[0].message.content == [], events[0]
    assert events[-2].delta.stop_reason in ("max_tokens", "end_turn") and events[-2].usage.output_tokens > 0, events[-2]


def accumulates_a_stream(client, model):
    with client.messages.stream(model=model, messages=PROMPT, max_tokens=32, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text and final.content[0].text == text, (text, final)
    assert final.usage.output_tokens > 0 and final.stop_reason, final


def hears_the_system(client, model):
    for system in ("Answer in one word.", [{"type": "text", "text": "Answer in one word."}]):
        more = answer(client, model, system=system, max_tokens=4).usage.input_tokens
        assert more > answer(client, model, max_tokens=4).usage.input_tokens - 30, more
        assert more != answer(client, model, system="Answer in one word, please, and be quick.", max_tokens=4).usage.input_tokens


def stops_at_a_sequence(client, model):
    whole = answer(client, model, extra_body=GREEDY).content[0].text
    stop = whole.split()[2]
    cut = answer(client, model, extra_body=GREEDY, stop_sequences=[stop])
    assert cut.stop_reason in ("end_turn", "stop_sequence"), cut
    assert "".join(block.text for block in cut.content) == whole[: whole.index(stop)], (whole, stop, cut)


def calls_when_it_must(client, model):
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        called = answer(client, model, messages=ASKED, tools=TOOLS, tool_choice=choice, max_tokens=200)
        assert called.stop_reason == "tool_use", called
        (call,) = [block for block in called.content if block.type == "tool_use"]
        jsonschema.validate(call.input, WEATHER if call.name == "weather" else TOOLS[1]["input_schema"])
        assert choice["type"] == "any" or call.name == "weather", call


def streams_a_call(client, model):
    choice = {"type": "tool", "name": "weather"}
    with client.messages.stream(model=model, messages=ASKED, tools=TOOLS, tool_choice=choice, max_tokens=200) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert "input_json" in kinds, kinds
    (call,) = final.content
    assert call.type == "tool_use" and final.stop_reason == "tool_use", final
    jsonschema.validate(call.input, WEATHER)


def answers_without_a_call(client, model):
    for kwargs in ({"tool_choice": {"type": "none"}}, {}):
        said = answer(client, model, messages=ASKED, tools=TOOLS, max_tokens=24, **kwargs)
        calls = [block for block in said.content if block.type == "tool_use"]
        assert bool(calls) == (said.stop_reason == "tool_use"), said
        assert not (kwargs and calls), said


def goes_on_after_a_call(client, model):
    told = ASKED + [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome", "unit": "celsius"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "21 degrees"}]},
    ]
    # Greedy: a drawn answer may be empty.
    none = {"tool_choice": {"type": "none"}, "max_tokens": 24, "extra_body": GREEDY}
    after = answer(client, model, messages=told, tools=TOOLS, **none)
    assert after.content and after.content[0].text, after


def refuses(kind, call, *words):
    try:
        call()
    except kind as error:
        assert error.body["type"] == "error" and error.body["error"]["type"], error.body
        for word in words:
            assert word in error.body["error"]["message"], error.body
        return error.body["error"]["type"]
    raise AssertionError(f"{words} was answered")


def tells_what_is_wrong(client, model):
    unknown = refuses(anthropic.NotFoundError, lambda: answer(client, UNKNOWN), UNKNOWN)
    assert unknown == "not_found_error", unknown
    image = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}]
    for kwargs, word in (
        ({"extra_body": {"temperature": 1.5}}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": image}]}, "image"),
        ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "name"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "does not support thinking"),
    ):
        kind = refuses(anthropic.BadRequestError, lambda: answer(client, model, **kwargs), word)
        assert kind == "invalid_request_error", kind


def says_what_is_not_there(client, model):
    count = lambda: client.messages.count_tokens(model=model, messages=PROMPT)
    refuses(anthropic.APIStatusError, count, "not there yet")


def does_not_know_a_wrong_key(client, model):
    wrong = client.with_options(api_key="sk-substrate-wrong")
    kind = refuses(anthropic.AuthenticationError, lambda: answer(wrong, model))
    assert kind == "authentication_error", kind


def survives_a_client_that_leaves(client, model):
    stream = answer(client, model, stream=True, max_tokens=512)
    next(iter(stream))
    stream.close()
    assert answer(client, model, max_tokens=1).stop_reason in ("end_turn", "max_tokens")


CHECKS = [
    answers_whole_with_facts,
    streams_the_same_events_as_anthropic,
    accumulates_a_stream,
    hears_the_system,
    stops_at_a_sequence,
    calls_when_it_must,
    streams_a_call,
    answers_without_a_call,
    goes_on_after_a_call,
    tells_what_is_wrong,
    says_what_is_not_there,
    does_not_know_a_wrong_key,
    survives_a_client_that_leaves,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True, help="such as http://127.0.0.1:11535")
    parser.add_argument("--model", required=True)
    parser.add_argument("--api-key", default="none")
    arguments = parser.parse_args()
    base = arguments.base_url.rstrip("/")
    client = anthropic.Anthropic(base_url=base, api_key=arguments.api_key, max_retries=0, timeout=120)
    failed = 0
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            check(client, arguments.model)
            print(f"ok    {name}")
        except Exception as error:  # every check is told, whatever the one before did
            failed += 1
            print(f"FAIL  {name}: {type(error).__name__}: {error}")
    print(f"anthropic {anthropic.__version__}: {len(CHECKS) - failed} of {len(CHECKS)} hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
