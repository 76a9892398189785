"""Parameters beyond the sampler's own: what reaches the engine, and what the answer then holds."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given
from tests.server.api.fake_engine import EOS, MAX_MODEL_LEN, say, serving
from tests.server.text.tiny_tokenizers import byte_level

from octavo_server.api.prompts import parse_prompts, tokens_to_keep, truncated
from octavo_server.api.refused import IGNORED, REFUSED
from octavo_server.errors import InvalidRequest
from octavo_server.text.bad_words import bad_word_ids

TEXT = "one two three"


def ids(text: str) -> list[int]:
    return byte_level().encode(text, add_special_tokens=False)


@pytest.fixture(scope="module")
def server():
    with serving(say(TEXT)) as server:
        yield server


def events(server, path, body):
    body = {"prompt": "hello", "messages": [{"role": "user", "content": "hello"}], **body}
    answer = server.http.post(path, json={**body, "stream": True})
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def newest(server):
    return server.engine.adds[-1]


@pytest.mark.parametrize("name", REFUSED)
def test_each_refused_field_says_why_unless_it_asks_for_nothing(server, name):
    for ask in (server.completion, server.chat):
        error = ask(**{name: {"x": 1}}).json()["error"]
        assert error == {
            "message": f"{name} {REFUSED[name].why}",
            "type": "invalid_request_error",
            "param": name,
            "code": None,
        }
        for value in (None, *REFUSED[name].neutral):
            assert ask(**{name: value}).status_code == 200


@pytest.mark.parametrize("value", [None, 1, "x", {"x": [1]}, [{}]])
def test_fields_without_effect_take_anything(server, value):
    for ask in (server.completion, server.chat):
        assert ask(**dict.fromkeys(IGNORED, value)).status_code == 200


def test_what_restricts_the_sampler_reaches_it(server):
    for ask in (server.completion, server.chat):
        assert ask(allowed_token_ids=[5, 6], bad_words=["two three"]).status_code == 200
        params = newest(server).params
        assert params.allowed_token_ids == [5, 6]
        assert params.bad_words_token_ids == bad_word_ids(byte_level(), ["two three"], 450)
        assert params.bad_words == []


def test_a_salt_reaches_the_cache(server):
    for ask in (server.completion, server.chat):
        ask(cache_salt="mine")
        assert newest(server).cache_salt == "mine"
        ask()
        assert newest(server).cache_salt is None


def test_priorities_need_a_server_that_has_them(server):
    assert server.completion(priority=0).status_code == 200
    with serving(priorities=True) as other:
        for ask in (other.completion, other.chat):
            for priority in (-3, 0, 2**31 - 1):
                assert ask(priority=priority).status_code == 200
                assert newest(other).priority == priority
            assert ask(priority=2**31).json()["error"]["param"] == "priority"


def test_a_prompt_is_truncated_from_its_beginning(server):
    text = "seven eight nine ten " * 200
    whole = ids(text)
    assert len(whole) > MAX_MODEL_LEN
    for prompt in (text, whole, [whole, whole], [text, text]):
        answer = server.completion(prompt=prompt, truncate_prompt_tokens=50)
        assert answer.status_code == 200, answer.text
        assert newest(server).prompt_token_ids == whole[-50:]
    server.completion(prompt=text, truncate_prompt_tokens=-1, max_tokens=30)
    assert newest(server).prompt_token_ids == whole[30 - MAX_MODEL_LEN :]
    server.completion(prompt="hello", truncate_prompt_tokens=50)
    assert newest(server).prompt_token_ids == ids("hello")
    messages = [{"role": "user", "content": text}]
    assert server.chat(messages=messages).status_code == 400
    assert server.chat(messages=messages, truncate_prompt_tokens=-1).status_code == 200
    tail = ids("<|im_end|>\n<|im_start|>assistant\n")
    assert newest(server).prompt_token_ids[-len(tail) :] == tail
    assert len(newest(server).prompt_token_ids) == MAX_MODEL_LEN - 1


def test_an_echo_is_what_is_left_of_the_prompt(server):
    answer = server.completion(prompt=TEXT, truncate_prompt_tokens=1, echo=True).json()
    assert answer["choices"][0]["text"] == byte_level().decode(ids(TEXT)[-1:]) + TEXT


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.integers(1, 14),
    st.lists(st.integers(0, 5), max_size=3),
)
def test_truncation_keeps_the_end_and_what_begins_every_text(token_ids, keep, prefix):
    kept = truncated(token_ids, keep, prefix)
    assert len(kept) == min(keep, len(token_ids))
    begins = token_ids[: len(prefix)] == prefix and len(prefix) < keep
    own = len(prefix) if begins else 0
    assert kept[:own] == token_ids[:own]
    assert kept[own:] == token_ids[len(token_ids) - len(kept) + own :]
    assert parse_prompts(token_ids, 1, 100, keep) == [token_ids[-keep:]]
    assert parse_prompts([token_ids, [9]], 1, 100, keep) == [token_ids[-keep:], [9]]


def test_how_much_is_kept():
    assert tokens_to_keep(None, 5, 100) is None
    assert tokens_to_keep(99, 5, 100) == 99
    assert tokens_to_keep(-1, 16, 100) == 84
    assert tokens_to_keep(-1, None, 100) == 99
    assert tokens_to_keep(-1, 500, 100) == 1
    for wrong in (0, -2, 100):
        with pytest.raises(InvalidRequest, match="truncate_prompt_tokens"):
            tokens_to_keep(wrong, 5, 100)


def test_token_ids_come_with_the_text(server):
    made = [*ids(TEXT), EOS]
    body = {"return_token_ids": True, "max_tokens": 100}
    choice = server.completion(**body).json()["choices"][0]
    assert (choice["token_ids"], choice["prompt_token_ids"]) == (made, ids("hello"))
    chunks = [c["choices"][0] for c in events(server, "/v1/completions", body)]
    assert [i for c in chunks for i in c["token_ids"]] == made
    assert [c.get("prompt_token_ids") for c in chunks] == [ids("hello"), *[None] * len(ids(TEXT))]
    both = server.completion(prompt=["hello", "one"], echo=True, logprobs=0, **body).json()
    assert [c["prompt_token_ids"] for c in both["choices"]] == [ids("hello"), ids("one")]
    assert [c["token_ids"] for c in both["choices"]] == [made, made]
    chat = server.chat(**body).json()
    assert chat["choices"][0]["token_ids"] == made
    assert chat["prompt_token_ids"] == newest(server).prompt_token_ids
    first, *chunks = events(server, "/v1/chat/completions", body)
    assert first["prompt_token_ids"] == newest(server).prompt_token_ids
    assert [i for c in chunks for i in c["choices"][0]["token_ids"]] == made
    assert not any("prompt_token_ids" in c for c in chunks)
    for plain in (server.completion().json(), server.chat().json()):
        assert "token_ids" not in json.dumps(plain)


def test_tokens_of_log_probabilities_by_their_ids(server):
    made = [f"token_id:{i}" for i in [*ids(TEXT), EOS]]
    body = {"return_tokens_as_token_ids": True, "max_tokens": 100}
    logprobs = server.completion(logprobs=2, **body).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == made
    assert [next(iter(top)) for top in logprobs["top_logprobs"]] == made
    for content in (
        server.chat(logprobs=True, top_logprobs=2, **body).json()["choices"][0]["logprobs"],
        {
            "content": [
                entry
                for chunk in events(
                    server, "/v1/chat/completions", {"logprobs": True, "top_logprobs": 2, **body}
                )
                for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
            ]
        },
    ):
        assert [entry["token"] for entry in content["content"]] == made
        assert content["content"][0]["top_logprobs"][1]["token"] == "token_id:10"


def test_variables_reach_the_chat_template():
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ mood }}"
    with serving(chat_template=template) as server:
        server.chat(chat_template_kwargs={"mood": " one"})
        assert newest(server).prompt_token_ids == ids("hello one")
        messages = [{"role": "user", "content": "two"}]
        body = {"messages": messages, "chat_template_kwargs": {"mood": " three"}}
        assert server.http.post("/tokenize", json=body).json()["tokens"] == ids("two three")


def test_cached_tokens_are_in_the_usage():
    def script(add):
        for output in say(TEXT)(add):
            if output.cached_tokens is not None:
                output.cached_tokens = 16
            yield output

    with serving(script) as server:
        for answer in (server.completion(n=2), server.chat(n=2)):
            assert answer.json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 16}
        options = {"stream_options": {"include_usage": True}}
        for path in ("/v1/completions", "/v1/chat/completions"):
            usage = events(server, path, options)[-1]["usage"]
            assert usage["prompt_tokens_details"] == {"cached_tokens": 16}
