"""/tokenize and /detokenize."""

from __future__ import annotations

import threading

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tests.server.api.fake_engine import MAX_MODEL_LEN, VOCAB_SIZE, serving
from tests.server.text.tiny_tokenizers import byte_level

from octavo_server.api import service as services


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


def post(server, path, **body):
    return server.http.post(path, json=body)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_back_and_forth_is_the_same_text(server, text):
    told = post(server, "/tokenize", prompt=text, return_token_strs=True).json()
    assert told["tokens"] == byte_level().encode(text)
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] == MAX_MODEL_LEN
    back = post(server, "/detokenize", tokens=told["tokens"][:MAX_MODEL_LEN]).json()["prompt"]
    assert back == text or len(told["tokens"]) > MAX_MODEL_LEN


def test_special_tokens_stay(server):
    messages = [{"role": "user", "content": "hello"}]
    told = post(server, "/tokenize", messages=messages).json()
    text = post(server, "/detokenize", tokens=told["tokens"]).json()["prompt"]
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert told["token_strs"] is None
    bare = post(server, "/tokenize", messages=messages, add_generation_prompt=False).json()
    assert told["tokens"][: bare["count"]] == bare["tokens"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x" * 50_000}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}], "tools": [{}]}, "tools"),
        ("/tokenize", {"messages": [{"role": "user"}], "chat_template": "x"}, "chat_template"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens.0"),
        ("/detokenize", {"tokens": [VOCAB_SIZE]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [1] * (MAX_MODEL_LEN + 1)}, "tokens"),
    ],
)
def test_mistakes_are_400s(server, path, body, param):
    answer = post(server, path, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert post(server, path, **body, model="other").status_code in (400, 404)


def test_no_ids_have_no_text(server):
    assert post(server, "/detokenize", tokens=[]).json() == {"prompt": ""}
    past = [byte_level().encode("a")[0], VOCAB_SIZE - 1]  # the model's, not the tokenizer's
    assert post(server, "/detokenize", tokens=past).json() == {"prompt": "a"}


def test_long_texts_are_tokenised_off_the_event_loop(server, monkeypatch):
    threads: list[str] = []
    encode = services.encode

    def watched(*args):
        threads.append(threading.current_thread().name)
        return encode(*args)

    monkeypatch.setattr(services, "encode", watched)
    assert post(server, "/tokenize", prompt="hello " * 200).status_code == 200
    assert post(server, "/tokenize", messages=[{"role": "user", "content": "hello " * 200}])
    assert len(threads) == 2 and all(name.startswith("tokenizer") for name in threads)


def test_many_ids_are_detokenised_off_the_event_loop():
    from octavo_server.engine.messages import Ready

    with serving(ready=False) as server:
        from types import SimpleNamespace

        server.call(server.service.set_tokenizer, byte_level(), SimpleNamespace(eos_token_ids=[0]))
        ready = Ready(4000, VOCAB_SIZE, 16, 1000, 8, "float32", "cpu")
        server.call(server.service.on_message, ready)
        threads: list[str] = []
        run = server.service.in_pool

        async def watched(work, *, size):
            def noted():
                threads.append(threading.current_thread().name)
                return work()

            return await run(noted, size=size)

        server.service.in_pool = watched
        assert post(server, "/detokenize", tokens=[20] * 3000).status_code == 200
        told = post(server, "/tokenize", prompt="\x01" * 3000, return_token_strs=True)
        assert told.status_code == 200
        assert len(threads) == 3 and all(name.startswith("tokenizer") for name in threads)


def test_unknown_fields_are_named_once(server, caplog):
    post(server, "/detokenize", tokens=[], odd_for_detokenize=1)
    post(server, "/tokenize", prompt="a", odd_for_tokenize=1)
    text = " ".join(record.getMessage() for record in caplog.records)
    assert "odd_for_detokenize" in text and "odd_for_tokenize" in text
