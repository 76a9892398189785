"""/v1/completions and /v1/chat/completions: shapes, text, usage, logprobs, streams."""

from __future__ import annotations

import json
from types import SimpleNamespace

import openai
import pytest
from tests.server.api.fake_engine import EOS, say, serving
from tests.server.text.tiny_tokenizers import byte_level


@pytest.fixture(scope="module")
def server():
    with serving(say("one two three four")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def count(text):
    return len(byte_level().encode(text, add_special_tokens=False))


def events(server, path, body):
    with server.http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_completion(client):
    answer = client.completions.create(model="tiny", prompt="hello world", max_tokens=100)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert (answer.model, answer.choices[0].text) == ("tiny", "one two three four")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == count("hello world")
    assert answer.usage.completion_tokens == count("one two three four") + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_max_tokens_defaults_to_16_and_the_default_to_what_fits(server):
    server.completion()
    assert server.engine.adds[-1].params.max_tokens == 16
    server.completion(prompt=[5] * 190)
    assert server.engine.adds[-1].params.max_tokens == 10
    server.chat()
    add = server.engine.adds[-1]
    assert add.params.max_tokens == 200 - len(add.prompt_token_ids)
    assert server.completion(max_tokens=1).json()["choices"][0]["finish_reason"] == "length"


def test_a_chunk_per_token_then_usage(server):
    body = {"prompt": "hello", "max_tokens": 100, "stream_options": {"include_usage": True}}
    chunks = events(server, "/v1/completions", body)
    *tokens, usage = chunks
    assert len(tokens) == count("one two three four") + 1
    assert "".join(chunk["choices"][0]["text"] for chunk in tokens) == "one two three four"
    assert [chunk["choices"][0]["finish_reason"] for chunk in tokens][-2:] == [None, "stop"]
    assert all(chunk["usage"] is None for chunk in tokens)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], len(tokens))
    plain = events(server, "/v1/completions", {"prompt": "hello", "max_tokens": 2})
    assert all("usage" not in chunk for chunk in plain)
    body["stream_options"]["continuous_usage_stats"] = True
    counts = [c["usage"]["completion_tokens"] for c in events(server, "/v1/completions", body)]
    assert counts == [*range(1, len(tokens) + 1), len(tokens)]


def test_chat_streams_a_role_then_tokens(client):
    stream = client.chat.completions.create(
        model="alias", messages=[{"role": "user", "content": "hi"}], stream=True
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].object == "chat.completion.chunk"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert (text, chunks[-1].choices[0].finish_reason) == ("one two three four", "stop")
    assert len(chunks) == 1 + count("one two three four") + 1
    assert {chunk.model for chunk in chunks} == {"alias"}


def test_chat_goes_through_the_template(server):
    body = server.chat(max_completion_tokens=1).json()
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"]["role"] == "assistant"
    prompt = byte_level().decode(server.engine.adds[-1].prompt_token_ids)
    assert prompt == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    server.chat(messages=[{"role": "user", "content": parts}])
    prompt = byte_level().decode(server.engine.adds[-1].prompt_token_ids)
    assert "user\na\nb<|im_end|>" in prompt


def test_n_has_seeds_and_indices_of_its_own(client, server):
    before = len(server.engine.adds)
    answer = client.completions.create(
        model="tiny", prompt=["hello", "world"], n=3, seed=2**63 - 2, max_tokens=2
    )
    assert [choice.index for choice in answer.choices] == list(range(6))
    adds = server.engine.adds[before:]
    assert [add.params.seed for add in adds] == [2**63 - 2, 2**63 - 1, 0] * 2
    assert len({add.request_id for add in adds}) == 6
    assert answer.usage.prompt_tokens == count("hello") + count("world")
    assert answer.usage.completion_tokens == 12
    server.completion(n=2)
    assert all(add.params.seed is not None for add in server.engine.adds[-2:])


@pytest.mark.parametrize("prompt", [[5, 6, 7], [[5, 6, 7], [8]], "hello", ["hello", "world"]])
def test_prompts_of_all_four_kinds(server, prompt):
    answer = server.completion(prompt=prompt, max_tokens=1)
    assert answer.status_code == 200
    nested = isinstance(prompt, list) and not isinstance(prompt[0], int)
    assert len(answer.json()["choices"]) == (len(prompt) if nested else 1)


def test_stop_strings_cut_and_abort(server):
    with serving(say("one STOP two three")) as server:
        body = server.completion(stop="STOP", max_tokens=100).json()["choices"][0]
        assert (body["text"], body["finish_reason"], body["stop_reason"]) == (
            "one ",
            "stop",
            "STOP",
        )
        assert server.engine.aborted == [server.engine.adds[0].request_id]
        body = server.completion(stop=["STOP"], max_tokens=100, include_stop_str_in_output=True)
        assert body.json()["choices"][0]["text"] == "one STOP"
        chunks = events(
            server, "/v1/completions", {"prompt": "a", "stop": "STOP", "max_tokens": 100}
        )
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "one "


def test_completion_logprobs(client):
    answer = client.completions.create(model="tiny", prompt="hi", logprobs=2, max_tokens=3)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert logprobs.token_logprobs == [-0.5] * 3
    assert [len(top) for top in logprobs.top_logprobs] == [2] * 3
    assert logprobs.text_offset[0] == 0
    assert logprobs.text_offset[1] == len(logprobs.tokens[0])


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs_judges_the_prompt(server, stream):
    body = {"prompt": "hello world", "echo": True, "logprobs": 1, "max_tokens": 2}
    if stream:
        chunks = [c["choices"][0] for c in events(server, "/v1/completions", body)]
        text = "".join(chunk["text"] for chunk in chunks)
        logprobs = {key: [] for key in chunks[0]["logprobs"]}
        for chunk in chunks:
            for key, values in chunk["logprobs"].items():
                logprobs[key] += values
    else:
        choice = server.completion(**body).json()["choices"][0]
        text, logprobs = choice["text"], choice["logprobs"]
    assert text.startswith("hello world")
    assert "".join(logprobs["tokens"]) == text
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    for offset, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True):
        assert text[offset : offset + len(token)] == token
    assert server.engine.adds[-1].params.prompt_logprobs == 1


def test_echo_with_max_tokens_0_is_the_prompt_alone(server):
    for extra in ({}, {"logprobs": 0}):
        body = server.completion(prompt="hello world", echo=True, max_tokens=0, **extra).json()
        assert body["choices"][0]["text"] == "hello world"
        assert body["usage"]["completion_tokens"] == 0
        assert body["choices"][0]["finish_reason"] == "length"
    assert len(body["choices"][0]["logprobs"]["tokens"]) == count("hello world")
    ids = byte_level().encode("hello world", add_special_tokens=False)
    body = server.completion(prompt=ids, echo=True, max_tokens=0).json()
    assert body["choices"][0]["text"] == "hello world"
    chunks = events(server, "/v1/completions", {"prompt": "hello", "echo": True, "max_tokens": 0})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "hello"


def test_prompt_logprobs(server):
    body = server.completion(prompt="hello world", prompt_logprobs=1, n=2, max_tokens=1).json()
    rows = body["choices"][1]["prompt_logprobs"]
    assert rows[0] is None
    assert next(iter(rows[1].values()))["rank"] == 1
    assert [add.params.prompt_logprobs for add in server.engine.adds[-2:]] == [1, None]


def test_chat_logprobs(client):
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        logprobs=True,
        top_logprobs=2,
        max_tokens=3,
    )
    content = answer.choices[0].logprobs.content
    assert "".join(token.token for token in content) == answer.choices[0].message.content
    assert bytes(b for token in content for b in token.bytes).decode() == "".join(
        token.token for token in content
    )
    assert [len(token.top_logprobs) for token in content] == [2, 2, 2]


def test_the_models_defaults_apply_where_the_body_is_silent():
    defaults = SimpleNamespace(
        eos_token_ids=[EOS, 7], temperature=0.6, top_k=20, top_p=None, max_new_tokens=9
    )
    with serving(defaults=defaults) as server:
        server.completion(top_k=5)
        params = server.engine.adds[-1].params
        assert (params.temperature, params.top_k, params.top_p) == (0.6, 5, 1.0)
        assert params.eos_token_ids == [EOS, 7]
        server.completion(temperature=0)
        assert server.engine.adds[-1].params.temperature == 0
        server.chat()
        assert server.engine.adds[-1].params.max_tokens == 9


def test_ids_past_the_tokenizer_still_send_a_chunk_per_token(server):
    assert server.completion(prompt=[440, 449], max_tokens=1).status_code == 200

    def script(add):
        from octavo_server.engine.messages import TokenOutput

        yield TokenOutput(add.request_id, [430])
        yield TokenOutput(add.request_id, [431], finish_reason="length")

    with serving(script) as server:
        chunks = events(server, "/v1/completions", {"prompt": "a"})
        assert [chunk["choices"][0]["text"] for chunk in chunks] == ["", ""]


def test_models_and_version(client, server):
    cards = client.models.list().data
    assert [card.id for card in cards] == ["tiny", "alias"]
    assert cards[0].max_model_len == 200
    assert client.models.retrieve("alias").id == "alias"
    assert server.http.get("/version").json()["version"]
    paths = server.http.get("/openapi.json").json()["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize", "/health"} <= set(paths)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_no_text_ends_an_event_early(path):
    """JSON lets some characters stand that clients take for the end of a line, as httpx does."""
    text = "one\u2028two\u2029three\u0085four \u201cfive\u201d"
    with serving(say(text)) as server:
        body = {"prompt": "hello"} if path == "/v1/completions" else {
            "messages": [{"role": "user", "content": "hello"}]
        }  # fmt: skip
        found = events(server, path, {**body, "max_tokens": 100})
        choices = [each["choices"][0] for each in found]
        said = [c["text"] if "text" in c else c["delta"].get("content") or "" for c in choices]
        assert "".join(said) == text
