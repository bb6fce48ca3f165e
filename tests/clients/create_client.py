#!/usr/bin/env python3
"""Makes models of one's own with the unmodified `ollama` package.

    create_client.py --base-url http://127.0.0.1:11535 --model smollm2:135m --api-key KEY [--file MODEL.gguf] \\
        [--adapter ADAPTER.gguf]

The key needs the admin right. Prints one line per check and ends with 0 if all held. Needs: pip install ollama
"""

import argparse
import hashlib
import importlib.metadata
import sys
import tempfile

import httpx
import ollama

OWN = "create-client-parrot:1"
COPY = "create-client-parrot:copy"
UPLOADED = "create-client-uploaded:1"
SYSTEM = "You are a parrot. You repeat what you hear."
MESSAGES = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello! Hello!"}]
QUESTION = [{"role": "user", "content": "Name three colours and say one sentence about each of them."}]


def refused(call):
    try:
        list(call() or [])
    except ollama.ResponseError as error:
        return error
    raise AssertionError("it was done")


def make(client, base, **kwargs):
    settings = {"temperature": 0, "num_predict": 8, "seed": 1, "stop": ["\n\n"]}
    return client.create(model=OWN, from_=base, system=SYSTEM, parameters=settings, messages=MESSAGES, **kwargs)


def makes_a_model(client, base):
    assert make(client, base).status == "success"
    steps = [step.status for step in make(client, base, stream=True)]
    assert steps[-1] == "success" and "writing manifest" in steps, steps
    assert OWN in [entry.model for entry in client.list().models]


def shows_it(client, base):
    shown = client.show(OWN)
    assert SYSTEM in shown.modelfile and f"FROM {base}" in shown.modelfile, shown.modelfile
    assert "PARAMETER num_predict 8" in shown.modelfile, shown.modelfile
    parameters = dict(line.split(None, 1) for line in shown.parameters.splitlines())
    assert parameters["temperature"] == "0" and parameters["stop"] == '"\\n\\n"', parameters
    assert shown.details.parent_model == base, shown.details
    assert shown.template == client.show(base).template


def answers_by_its_defaults(client, base):
    own = client.chat(model=OWN, messages=QUESTION)
    assert own.eval_count <= 8, own
    # The same said in full to the model it is made from.
    told = [{"role": "system", "content": SYSTEM}, *MESSAGES, *QUESTION]
    options = {"temperature": 0, "num_predict": 8, "seed": 1, "stop": ["\n\n"]}
    full = client.chat(model=base, messages=told, options=options)
    assert own.message.content == full.message.content, (own.message.content, full.message.content)
    assert own.prompt_eval_count == full.prompt_eval_count
    generated = client.generate(model=OWN, prompt=QUESTION[0]["content"])
    assert generated.response == own.message.content, (generated.response, own.message.content)


def gives_way_to_the_request(client, base):
    longer = client.chat(model=OWN, messages=QUESTION, options={"num_predict": 12, "stop": []})
    assert 8 < longer.eval_count <= 12, longer
    system = [{"role": "system", "content": "Be brief."}, *QUESTION]
    own, plain = (client.chat(model=OWN, messages=messages).prompt_eval_count for messages in (QUESTION, system))
    assert own != plain


def copies_and_deletes_it(client, base):
    assert client.copy(OWN, COPY).status == "success"
    assert client.show(COPY).modelfile == client.show(OWN).modelfile
    assert client.delete(OWN).status == "success"
    assert client.chat(model=COPY, messages=QUESTION).eval_count <= 8
    assert client.delete(COPY).status == "success"
    options = {"num_predict": 2, "temperature": 0}
    assert client.chat(model=base, messages=QUESTION, options=options).message.content


def refuses_by_name(client, base):
    error = refused(lambda: client.create(model=OWN, from_="no-such-model:1b"))
    assert error.status_code == 404 and "no-such-model:1b" in error.error, error
    error = refused(lambda: client.create(model=OWN, from_=base, parameters={"warmth": 1}))
    assert error.status_code == 400 and "warmth" in error.error, error
    error = refused(lambda: client.create(model=OWN, from_=base, quantize="q4_K_M"))
    assert error.status_code == 400 and "not there yet" in error.error, error
    error = refused(lambda: client.create(model=OWN, from_=base, template="{{ .Prompt }}"))
    assert error.status_code == 400 and "Jinja" in error.error, error
    assert OWN not in [entry.model for entry in client.list().models]


def takes_a_blob_only_as_promised(client, base):
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"no model")
        file.flush()
        digest = client.create_blob(file.name)
        assert digest == "sha256:" + hashlib.sha256(b"no model").hexdigest(), digest
        # What is here already is not sent again.
        assert client.create_blob(file.name) == digest
    error = refused(lambda: client.create(model=UPLOADED, files={"m.gguf": digest}))
    assert error.status_code == 400, error
    error = refused(lambda: client.create(model=UPLOADED, files={"m.gguf": "sha256:" + "0" * 64}))
    assert error.status_code == 400 and "no blob" in error.error, error
    other = "sha256:" + "1" * 64
    http = client._client
    assert http.head(f"/api/blobs/{other}").status_code == 404
    assert http.head("/api/blobs/sha256:../x").status_code in (400, 404)
    assert http.post(f"/api/blobs/{other}", content=b"something else").status_code == 400
    assert http.head(f"/api/blobs/{other}").status_code == 404


def makes_a_model_of_an_upload(client, file):
    digest = client.create_blob(file)
    assert client._client.head(f"/api/blobs/{digest}").status_code == 200
    made = client.create(model=UPLOADED, files={"model.gguf": digest}, system=SYSTEM, parameters={"num_predict": 4})
    assert made.status == "success"
    answer = client.chat(model=UPLOADED, messages=QUESTION)
    assert answer.message.content and answer.eval_count <= 4, answer
    assert client.delete(UPLOADED).status == "success"


def lays_an_upload_over_a_model(client, file, base):
    digest = client.create_blob(file)
    assert client.create(model=UPLOADED, from_=base, adapters={"lora.gguf": digest}).status == "success"
    # The tests' adapter is faint: it takes some tokens until the two part.
    options = {"temperature": 0, "num_predict": 64, "seed": 1}
    own, plain = (client.chat(model=name, messages=QUESTION, options=options) for name in (UPLOADED, base))
    assert own.message.content != plain.message.content, own.message.content
    again = client.chat(model=UPLOADED, messages=QUESTION, options=options)
    assert again.message.content == own.message.content
    assert client.delete(UPLOADED).status == "success"
    absent = {"lora.gguf": "sha256:" + "0" * 64}
    error = refused(lambda: client.create(model=UPLOADED, from_=base, adapters=absent))
    assert error.status_code == 400 and "no blob" in error.error, error


def is_the_admins(client, base):
    base_url = str(client._client.base_url).rstrip("/")
    keyless = ollama.Client(host=base_url, timeout=120)
    error = refused(lambda: keyless.create(model=OWN, from_=base))
    assert error.status_code == 401, error
    answer = httpx.post(f"{base_url}/api/blobs/sha256:{'2' * 64}", content=b"x")
    assert answer.status_code == 401, answer


CHECKS = [
    makes_a_model,
    shows_it,
    answers_by_its_defaults,
    gives_way_to_the_request,
    copies_and_deletes_it,
    refuses_by_name,
    takes_a_blob_only_as_promised,
    is_the_admins,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", required=True, help="such as http://127.0.0.1:11535")
    parser.add_argument("--model", required=True)
    parser.add_argument("--api-key", required=True, help="one with the admin right")
    parser.add_argument("--file", help="a model file to be sent; without one that is not checked")
    parser.add_argument("--adapter", help="a LoRA for the model to be sent; likewise")
    arguments = parser.parse_args()
    headers = {"Authorization": f"Bearer {arguments.api_key}"}
    client = ollama.Client(host=arguments.base_url, headers=headers, timeout=120)
    checks = [(check, arguments.model) for check in CHECKS]
    if arguments.file:
        checks.append((makes_a_model_of_an_upload, arguments.file))
    if arguments.adapter:
        checks.append((lays_an_upload_over_a_model, arguments.adapter, arguments.model))
    failed = 0
    for check, *subjects in checks:
        name = check.__name__.replace("_", " ")
        try:
            check(client, *subjects)
            print(f"ok    {name}")
        except Exception as error:  # every check is told, whatever the one before did
            failed += 1
            print(f"FAIL  {name}: {type(error).__name__}: {error}")
    print(f"ollama {importlib.metadata.version('ollama')}: {len(checks) - failed} of {len(checks)} hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
