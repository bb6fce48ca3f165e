#!/usr/bin/env python3
"""Drives a node's files and batches with the unmodified `openai` package.

    batches_client.py --base-url http://127.0.0.1:11535 --model smollm2:135m --embedding-model all-minilm:33m [--api-key KEY]

Prints one line per check and ends with 0 if all held. Needs: pip install openai
"""

import argparse
import io
import json
import sys
import time

import openai

CHAT = "/v1/chat/completions"
UNKNOWN = "no-such-model:1b"
OVER = {"completed", "failed", "expired", "cancelled"}
# A batch of a few lines, on two cores, behind whatever else runs.
PATIENCE = 300


def line(custom_id, url, body):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def chat(model, text, **more):
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}


def upload(client, lines, **kwargs):
    text = "".join(json.dumps(one) + "\n" if isinstance(one, dict) else one for one in lines)
    kwargs.setdefault("purpose", "batch")
    return client.files.create(file=("in.jsonl", io.BytesIO(text.encode())), **kwargs)


def submit(client, lines, endpoint=CHAT, **kwargs):
    return client.batches.create(
        input_file_id=upload(client, lines).id, endpoint=endpoint, completion_window="24h", **kwargs
    )


def over(client, batch):
    until = time.monotonic() + PATIENCE
    while batch.status not in OVER:
        assert time.monotonic() < until, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def rows(client, file_id):
    told = [json.loads(row) for row in client.files.content(file_id).text.splitlines()]
    named = {row["custom_id"]: row for row in told}
    assert len(named) == len(told), "a row stands there twice"
    return named


def keeps_lists_and_deletes_files(client, models):
    text = "one\r\n\r\n--boundary\r\ntwo\x00é"
    kept = client.files.create(
        file=("ü \"notes\".txt", text.encode()),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (kept.object, kept.purpose, kept.bytes) == ("file", "user_data", len(text.encode())), kept
    assert kept.filename == "ü \"notes\".txt", kept.filename
    assert kept.expires_at == kept.created_at + 3600, kept
    assert client.files.retrieve(kept.id) == kept
    assert client.files.content(kept.id).read() == text.encode()
    more = [upload(client, ["x\n"]) for _ in range(3)]
    ids = [one.id for one in client.files.list(limit=2, order="asc")]
    assert ids[-4:] == [kept.id] + [one.id for one in more], ids
    assert {one.purpose for one in client.files.list(purpose="user_data")} == {"user_data"}
    for one in [kept, *more]:
        assert client.files.delete(one.id).deleted is True
    try:
        client.files.retrieve(kept.id)
    except openai.NotFoundError:
        return
    raise AssertionError("a deleted file is still there")


def keeps_a_large_file(client, models):
    block = bytes(range(256)) * 4096
    large = block * 24
    kept = client.files.create(file=("large", large), purpose="user_data")
    assert kept.bytes == len(large), kept
    assert client.files.content(kept.id).read() == large
    client.files.delete(kept.id)


def refuses_files_by_name(client, models):
    for purpose in ("fine-tune", "assistants", "vision", "evals"):
        try:
            upload(client, ["x"], purpose=purpose)
        except openai.BadRequestError as error:
            assert error.param == "purpose" and purpose in str(error), error.body
        else:
            raise AssertionError(f"{purpose} was accepted")


def answers_chats_and_tells_errors_apart(client, models):
    lines = [line(f"line {n}", CHAT, chat(models.model, f"Say {n}.")) for n in range(6)]
    lines.append(line("unknown", CHAT, chat(UNKNOWN, "Hello?")))
    lines.append(line("hot", CHAT, chat(models.model, "Hello?", temperature=3)))
    made = submit(client, lines, metadata={"for": "a check"})
    assert made.object == "batch" and made.expires_at == made.created_at + 86400, made
    batch = over(client, made)
    assert batch.status == "completed" and batch.metadata == {"for": "a check"}, batch
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (8, 6, 2), counts
    assert batch.in_progress_at and batch.finalizing_at and batch.completed_at and batch.errors is None, batch
    good = rows(client, batch.output_file_id)
    assert set(good) == {f"line {n}" for n in range(6)}, good.keys()
    for row in good.values():
        response = row["response"]
        assert response["status_code"] == 200 and len(response["request_id"]) == 32 and row["error"] is None, row
        body = response["body"]
        assert body["object"] == "chat.completion" and body["choices"][0]["message"]["content"], body
    bad = rows(client, batch.error_file_id)
    assert bad["unknown"]["response"]["status_code"] == 404, bad
    assert bad["unknown"]["response"]["body"]["error"]["code"] == "model_not_found", bad
    assert bad["hot"]["response"]["body"]["error"]["param"] == "temperature", bad
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"
    assert batch.id in [one.id for one in client.batches.list(limit=3)]


def answers_the_other_routes(client, models):
    for endpoint, body, kind in (
        ("/v1/completions", {"model": models.model, "prompt": "One, two,", "max_tokens": 4}, "text_completion"),
        ("/v1/responses", {"model": models.model, "input": "Say hello.", "max_output_tokens": 4}, "response"),
        ("/v1/embeddings", {"model": models.embedding_model, "input": ["a cat", "a dog"]}, "list"),
    ):
        lines = [line(str(n), endpoint, body) for n in range(2)]
        batch = over(client, submit(client, lines, endpoint=endpoint))
        assert batch.status == "completed" and batch.error_file_id is None, (endpoint, batch)
        for row in rows(client, batch.output_file_id).values():
            assert row["response"]["body"]["object"] == kind, row


def fails_with_line_numbers(client, models):
    good = line("a", CHAT, chat(models.model, "Hello."))
    wrong = {**good, "custom_id": "b", "url": "/v1/embeddings"}
    streamed = line("c", CHAT, chat(models.model, "Hello.", stream=True))
    batch = over(client, submit(client, [good, "nonsense\n", wrong, streamed, good]))
    assert batch.status == "failed" and batch.output_file_id is None and batch.failed_at, batch
    told = [(error.line, error.code, error.param) for error in batch.errors.data]
    assert told == [
        (2, "invalid_json_line", None),
        (3, "invalid_url", "url"),
        (4, "invalid_value", "body.stream"),
        (5, "duplicate_custom_id", "custom_id"),
    ], told
    empty = over(client, submit(client, []))
    assert empty.errors.data[0].code == "empty_file", empty


def stops_when_told(client, models):
    lines = [line(str(n), CHAT, chat(models.model, f"Count to {n}.", max_tokens=400)) for n in range(40)]
    batch = submit(client, lines)
    source = batch.input_file_id
    try:
        client.files.delete(source)
    except openai.BadRequestError as error:
        assert error.code == "file_in_use", error.body
    else:
        raise AssertionError("a file that is read was deleted")
    stopping = client.batches.cancel(batch.id)
    assert stopping.status in ("cancelling", "cancelled"), stopping
    stopped = over(client, stopping)
    assert stopped.status == "cancelled" and stopped.cancelled_at, stopped
    assert stopped.request_counts.completed < 40, stopped
    try:
        client.batches.cancel(batch.id)
    except openai.BadRequestError as error:
        assert "cancelled already" in str(error), error.body
    else:
        raise AssertionError("a batch that is over was stopped again")
    client.files.delete(source)


def refuses_batches_by_name(client, models):
    kept = upload(client, [line("a", CHAT, chat(models.model, "Hello."))]).id
    notes = upload(client, ["x"], purpose="user_data").id
    for param, kwargs in {
        "endpoint": {"endpoint": "/v1/moderations"},
        "completion_window": {"completion_window": "1h"},
        "input_file_id": {"input_file_id": notes},
    }.items():
        usual = {"input_file_id": kept, "endpoint": CHAT, "completion_window": "24h"}
        try:
            client.batches.create(**{**usual, **kwargs})
        except openai.BadRequestError as error:
            assert error.param == param, error.body
        else:
            raise AssertionError(f"{param} was accepted")
    try:
        client.batches.retrieve("batch_" + "0" * 32)
    except openai.NotFoundError:
        return
    raise AssertionError("a batch that is not there was given")


CHECKS = [
    keeps_lists_and_deletes_files,
    keeps_a_large_file,
    refuses_files_by_name,
    answers_chats_and_tells_errors_apart,
    answers_the_other_routes,
    fails_with_line_numbers,
    stops_when_told,
    refuses_batches_by_name,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True, help="such as http://127.0.0.1:11535")
    parser.add_argument("--model", required=True)
    parser.add_argument("--embedding-model", required=True)
    parser.add_argument("--api-key", default="none")
    arguments = parser.parse_args()
    base = arguments.base_url.rstrip("/") + "/v1"
    client = openai.OpenAI(base_url=base, api_key=arguments.api_key, max_retries=0, timeout=120)
    failed = 0
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            check(client, arguments)
            print(f"ok    {name}")
        except Exception as error:  # every check is told, whatever the one before did
            failed += 1
            print(f"FAIL  {name}: {type(error).__name__}: {error}")
    print(f"openai {openai.__version__}, batches: {len(CHECKS) - failed} of {len(CHECKS)} hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
