#!/usr/bin/env python3
"""Drives a node with the unmodified `ollama` package.

    ollama_client.py --base-url http://127.0.0.1:11535 --model smollm2:135m [--api-key KEY]

Prints one line per check and ends with 0 if all held. Needs: pip install ollama
"""

import argparse
import importlib.metadata
import sys

import ollama

PROMPT = [{"role": "user", "content": "Name three colours and say one sentence about each of them."}]
UNKNOWN = "no-such-model:1b"


def answer(client, model, stream=False, options=None, **kwargs):
    options = {"num_predict": 32, **(options or {})}
    return client.chat(model=model, messages=PROMPT, stream=stream, options=options, **kwargs)


def refused(call):
    try:
        list(call() or [])
    except ollama.ResponseError as error:
        return error
    raise AssertionError("it was answered")


def lists_the_model(client, model):
    listed = {entry.model: entry for entry in client.list().models}
    assert model in listed, f"{model} is not among {list(listed)}"
    entry = listed[model]
    assert len(entry.digest) == 64 and entry.size > 0 and entry.modified_at is not None, entry
    assert entry.details.format == "gguf" and entry.details.family, entry


def shows_the_model(client, model):
    shown = client.show(model)
    assert "completion" in shown.capabilities, shown
    assert shown.modelinfo["general.architecture"], shown


def streams_a_chat(client, model):
    # With a seed both are read whole; without, the second goes on from what the first left, and may round otherwise.
    options = {"temperature": 0, "seed": 1}
    lines = list(answer(client, model, stream=True, options=options))
    assert not any(line.done for line in lines[:-1]) and lines[-1].done, "done came in the wrong place"
    last = lines[-1]
    assert last.done_reason in ("stop", "length"), last
    assert last.eval_count > 0 and last.prompt_eval_count > 0 and last.total_duration > 0, last
    text = "".join(line.message.content for line in lines)
    assert text, "no text came"
    whole = answer(client, model, options=options)
    assert whole.message.content == text, (text, whole.message.content)
    assert whole.message.role == "assistant" and whole.done, whole


def generates(client, model):
    options = {"num_predict": 8, "temperature": 0, "seed": 1}
    whole = client.generate(model=model, prompt="Say hello.", options=options)
    lines = client.generate(model=model, prompt="Say hello.", options=options, stream=True)
    assert "".join(line.response for line in lines) == whole.response != ""
    raw = client.generate(model=model, prompt="Once upon a time", raw=True, options=options)
    assert raw.response and raw.prompt_eval_count < whole.prompt_eval_count, (raw, whole)


def tells_an_unknown_model(client, model):
    for call in (
        lambda: answer(client, UNKNOWN),
        lambda: answer(client, UNKNOWN, stream=True),
        lambda: client.generate(model=UNKNOWN, prompt="x"),
        lambda: client.show(UNKNOWN),
    ):
        error = refused(call)
        assert error.status_code == 404, error
        assert error.error.startswith(f'model "{UNKNOWN}" not found, try pulling it first'), error.error


def tells_logprobs(client, model):
    whole = answer(client, model, options={"temperature": 0, "num_predict": 4}, logprobs=True, top_logprobs=2)
    assert 0 < len(whole.logprobs) <= 4, whole.logprobs
    assert all(token.logprob <= 0 and len(token.top_logprobs) <= 2 for token in whole.logprobs), whole.logprobs


def repeats_with_a_seed(client, model):
    text = lambda seed: answer(client, model, options={"seed": seed, "temperature": 1.0}).message.content
    first = text(7)
    assert first == text(7), "the same seed gave another answer"
    assert any(text(seed) != first for seed in (8, 9, 10)), "four seeds gave one answer"


def stops_at_a_string(client, model):
    whole = answer(client, model, options={"temperature": 0, "seed": 1}).message.content
    stop = whole.split()[2]
    cut = answer(client, model, options={"temperature": 0, "seed": 1, "stop": [stop]})
    assert cut.done_reason == "stop", cut
    assert cut.message.content == whole[: whole.index(stop)], (whole, stop, cut.message.content)


def refuses_by_name(client, model):
    error = refused(lambda: answer(client, model, options={"temperature": -1.0}))
    assert error.status_code == 400 and "temperature" in error.error, error
    error = refused(lambda: answer(client, model, options={"top_p": 2.0}))
    assert error.status_code == 400 and "top_p" in error.error, error


def thinks_only_if_it_can(client, model):
    able = "thinking" in client.show(model).capabilities
    for think in (True, "high"):
        if able:
            assert answer(client, model, think=think, options={"num_predict": 16}).message.thinking
        else:
            error = refused(lambda: answer(client, model, think=think))
            assert error.status_code == 400 and "does not support thinking" in error.error, error
    short = {"num_predict": 8, "temperature": 0}
    assert answer(client, model, think=False, options=short).message.content
    assert client.generate(model=model, prompt="Hi", think=False, options=short).response


def says_what_is_not_there(client, model):
    error = refused(lambda: client.push(model))
    assert error.status_code == 501 and "not there yet" in error.error, error


def keeps_models_from_keyless_callers(client, model):
    error = refused(lambda: client.delete(UNKNOWN))
    assert error.status_code in (401, 404), error


def lists_what_is_loaded(client, model):
    for worker in client.ps().models:
        assert worker.expires_at is not None and worker.size >= 0, worker


def embeds_texts(client, model):
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The interest rate was raised."]
    whole = client.embed(model=model, input=texts)
    cat, kitten, rate = whole.embeddings
    cosine = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert cosine(cat, kitten) > 0.6 > 0.2 > cosine(cat, rate), (cosine(cat, kitten), cosine(cat, rate))
    assert whole.prompt_eval_count > 15 and whole.total_duration > 0, whole.prompt_eval_count
    short = client.embed(model=model, input=texts[0], dimensions=64).embeddings[0]
    assert len(short) == 64 and abs(cosine(short, short) - 1) < 1e-5, len(short)
    old = client.embeddings(model=model, prompt=texts[0]).embedding
    assert cosine(old, cat) > 1 - 1e-6
    # What is too long is cut, as Ollama does, unless that is not wanted.
    long = "harbour " * 5_000
    assert len(client.embed(model=model, input=long).embeddings) == 1
    error = refused(lambda: client.embed(model=model, input=long, truncate=False))
    assert error.status_code == 400 and "tokens" in error.error, error
    assert list(client.embed(model=model, input=[]).embeddings) == []
    assert "embedding" in client.show(model).capabilities


CHECKS = [
    lists_the_model,
    shows_the_model,
    streams_a_chat,
    generates,
    tells_an_unknown_model,
    tells_logprobs,
    repeats_with_a_seed,
    stops_at_a_string,
    refuses_by_name,
    thinks_only_if_it_can,
    says_what_is_not_there,
    keeps_models_from_keyless_callers,
    lists_what_is_loaded,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True, help="such as http://127.0.0.1:11535")
    parser.add_argument("--model", required=True)
    parser.add_argument("--embedding-model", help="a model for vectors; without one they are not checked")
    parser.add_argument("--api-key")
    arguments = parser.parse_args()
    headers = {"Authorization": f"Bearer {arguments.api_key}"} if arguments.api_key else {}
    client = ollama.Client(host=arguments.base_url, headers=headers, timeout=120)
    checks = [(check, arguments.model) for check in CHECKS]
    if arguments.embedding_model:
        checks.append((embeds_texts, arguments.embedding_model))
    failed = 0
    for check, subject in checks:
        name = check.__name__.replace("_", " ")
        try:
            check(client, subject)
            print(f"ok    {name}")
        except Exception as error:  # every check is told, whatever the one before did
            failed += 1
            print(f"FAIL  {name}: {type(error).__name__}: {error}")
    print(f"ollama {importlib.metadata.version('ollama')}: {len(checks) - failed} of {len(checks)} hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
