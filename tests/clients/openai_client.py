#!/usr/bin/env python3
"""Drives a node with the unmodified `openai` package.

    openai_client.py --base-url http://127.0.0.1:11535 --model smollm2:135m [--api-key KEY]

Prints one line per check and ends with 0 if all held. Needs: pip install openai
"""

import argparse
import sys

import openai

PROMPT = [{"role": "user", "content": "Name three colours and say one sentence about each of them."}]
UNKNOWN = "no-such-model:1b"


def answer(client, model, **kwargs):
    kwargs.setdefault("max_tokens", 32)
    return client.chat.completions.create(model=model, messages=PROMPT, **kwargs)


def lists_the_model(client, model):
    listed = [entry.id for entry in client.models.list()]
    assert model in listed, f"{model} is not among {listed}"
    one = client.models.retrieve(model)
    assert (one.id, one.object) == (model, "model"), one
    assert one.created > 0, one


def streams_a_chat(client, model):
    # With a seed both are read whole; without, the second goes on from what the first left, and may round otherwise.
    same = {"temperature": 0, "seed": 1}
    chunks = list(answer(client, model, stream=True, stream_options={"include_usage": True}, **same))
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1]), "the role came twice"
    finish, usage = chunks[-2], chunks[-1]
    assert finish.choices[0].finish_reason in ("stop", "length"), finish
    assert not finish.choices[0].delta.content, finish
    assert usage.choices == [] and usage.usage.completion_tokens > 0, usage
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1, "id or time changed on the way"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text, "no text came"
    whole = answer(client, model, **same).choices[0].message.content
    assert text == whole, f"streamed {text!r}, whole {whole!r}"


def answers_whole_with_facts(client, model):
    raw = client.chat.completions.with_raw_response.create(model=model, messages=PROMPT, max_tokens=8, temperature=0)
    for name in ("x-substrate-job", "x-substrate-node", "x-substrate-route", "x-substrate-scope", "server-timing"):
        assert raw.headers.get(name), f"{name} is missing"
    whole = raw.parse()
    assert whole.object == "chat.completion" and whole.choices[0].message.role == "assistant", whole
    usage = whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    assert usage.completion_tokens <= 8, usage


def tells_an_unknown_model(client, model):
    for call in (
        lambda: answer(client, UNKNOWN),
        lambda: answer(client, UNKNOWN, stream=True),
        lambda: client.models.retrieve(UNKNOWN),
    ):
        try:
            call()
        except openai.NotFoundError as error:
            assert error.status_code == 404 and error.code == "model_not_found", error.body
            assert error.param == "model" and UNKNOWN in error.message, error.body
        else:
            raise AssertionError("an unknown model was answered")


def tells_logprobs(client, model):
    choice = answer(client, model, logprobs=True, top_logprobs=3, temperature=0, max_tokens=8).choices[0]
    tokens = choice.logprobs.content
    assert 0 < len(tokens) <= 8, len(tokens)
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) <= 3, token
        best = max(other.logprob for other in token.top_logprobs)
        assert token.logprob >= best - 1e-3, f"greedy took {token.logprob}, {best} was better"
    said = b"".join(bytes(token.bytes or []) for token in tokens)
    assert said.startswith(choice.message.content.encode()), (said, choice.message.content)


def repeats_with_a_seed(client, model):
    text = lambda seed: answer(client, model, seed=seed, temperature=1.0).choices[0].message.content
    first = text(7)
    assert first == text(7), "the same seed gave another answer"
    assert any(text(seed) != first for seed in (8, 9, 10)), "four seeds gave one answer"


def stops_at_a_string(client, model):
    whole = answer(client, model, temperature=0, seed=1).choices[0].message.content
    stop = whole.split()[2]
    cut = answer(client, model, temperature=0, seed=1, stop=[stop, "\u0000never"]).choices[0]
    assert cut.finish_reason == "stop", cut
    assert cut.message.content == whole[: whole.index(stop)], (whole, stop, cut.message.content)
    streamed = answer(client, model, temperature=0, seed=1, stop=stop, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == cut.message.content, (text, cut.message.content)


def gives_several_choices(client, model):
    choices = answer(client, model, n=2, seed=3, max_tokens=8).choices
    assert [choice.index for choice in choices] == [0, 1], choices


def completes_text(client, model):
    whole = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8, temperature=0, logprobs=1)
    assert whole.object == "text_completion" and whole.choices[0].text, whole
    assert len(whole.choices[0].logprobs.tokens) == len(whole.choices[0].logprobs.text_offset), whole
    streamed = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text


def refuses_by_name(client, model):
    for param, kwargs in {
        "temperature": {"temperature": 3},
        "n": {"n": 1_000_000_000},
        "stop": {"stop": ["x"] * 10_000},
        "response_format": {"response_format": {"type": "xml"}},
        "tool_choice": {"tool_choice": "sometimes", "tools": [{"type": "function", "function": {"name": "f"}}]},
        "top_logprobs": {"logprobs": True, "top_logprobs": 21},
    }.items():
        try:
            answer(client, model, **kwargs)
        except openai.BadRequestError as error:
            assert error.param == param, error.body
        else:
            raise AssertionError(f"{param} was accepted")


def says_what_is_not_there(client, model):
    try:
        client.moderations.create(model=model, input="x")
    except openai.APIStatusError as error:
        assert error.status_code == 501 and error.code == "not_implemented", error.body
    else:
        raise AssertionError("moderations were answered")


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b))


def embeds_texts(client, model):
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The interest rate was raised."]
    # The package asks for base64 unless told otherwise.
    packed = client.embeddings.create(model=model, input=texts)
    assert [entry.index for entry in packed.data] == [0, 1, 2], packed
    cat, kitten, rate = (entry.embedding for entry in packed.data)
    assert abs(cosine(cat, cat) - 1) < 1e-5, "not of length 1"
    assert cosine(cat, kitten) > 0.6 > 0.2 > cosine(cat, rate), (cosine(cat, kitten), cosine(cat, rate))
    assert packed.usage.prompt_tokens == packed.usage.total_tokens > 15, packed.usage
    plain = client.embeddings.create(model=model, input=texts[0], encoding_format="float").data[0].embedding
    assert cosine(plain, cat) > 1 - 1e-6
    short = client.embeddings.create(model=model, input=texts[0], dimensions=64).data[0].embedding
    length = sum(x * x for x in cat[:64]) ** 0.5
    assert len(short) == 64 and abs(cosine(short, cat) - length) < 1e-5, "not the first 64, at length 1"
    for param, kwargs in {
        "dimensions": {"input": "x", "dimensions": 100_000},
        "input": {"input": ["x", ""]},
        "input[0]": {"input": [[1, 2, 3]]},
        "encoding_format": {"input": "x", "encoding_format": "hex"},
    }.items():
        try:
            client.embeddings.create(model=model, **kwargs)
        except openai.BadRequestError as error:
            assert error.param == param, error.body
        else:
            raise AssertionError(f"{kwargs} was answered")
    try:
        client.embeddings.create(model=model, input="harbour " * 5_000)
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded" and error.param == "input", error.body
    else:
        raise AssertionError("a text over the context was answered")


def asks_each_model_for_what_it_does(client, models):
    answers, embeds = models
    for call in (
        lambda: client.embeddings.create(model=answers, input="x"),
        lambda: answer(client, embeds),
    ):
        try:
            call()
        except openai.BadRequestError as error:
            assert "vectors" in error.message, error.body
        else:
            raise AssertionError("a model did what it was not made for")


def survives_a_client_that_leaves(client, model):
    stream = answer(client, model, stream=True, max_tokens=512)
    next(iter(stream))
    stream.close()
    assert answer(client, model, max_tokens=1).choices[0].finish_reason in ("stop", "length")


CHECKS = [
    lists_the_model,
    streams_a_chat,
    answers_whole_with_facts,
    tells_an_unknown_model,
    tells_logprobs,
    repeats_with_a_seed,
    stops_at_a_string,
    gives_several_choices,
    completes_text,
    refuses_by_name,
    says_what_is_not_there,
    survives_a_client_that_leaves,
]

EMBEDDING_CHECKS = [embeds_texts]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True, help="such as http://127.0.0.1:11535")
    parser.add_argument("--model", required=True)
    parser.add_argument("--embedding-model", help="a model for vectors; without one they are not checked")
    parser.add_argument("--api-key", default="none")
    arguments = parser.parse_args()
    base = arguments.base_url.rstrip("/") + "/v1"
    client = openai.OpenAI(base_url=base, api_key=arguments.api_key, max_retries=0, timeout=120)
    checks = [(check, arguments.model) for check in CHECKS]
    if arguments.embedding_model:
        checks += [(check, arguments.embedding_model) for check in EMBEDDING_CHECKS]
        checks.append((asks_each_model_for_what_it_does, (arguments.model, arguments.embedding_model)))
    failed = 0
    for check, subject in checks:
        name = check.__name__.replace("_", " ")
        try:
            check(client, subject)
            print(f"ok    {name}")
        except Exception as error:  # every check is told, whatever the one before did
            failed += 1
            print(f"FAIL  {name}: {type(error).__name__}: {error}")
    print(f"openai {openai.__version__}: {len(checks) - failed} of {len(checks)} hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
