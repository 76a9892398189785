"""Bounds of a body, checked before anything walks it, and of what n makes of it."""

from __future__ import annotations

import threading
import time

import pytest
from tests.server.api.fake_engine import MAX_MODEL_LEN, VOCAB_SIZE, serving

from octavo_server.api.conversation import ChatMessage, message_dicts
from octavo_server.api.limits import (
    MAX_CONTAINERS,
    MAX_REQUEST_TOKENS,
    check_lengths,
    check_multiplied,
    check_raw,
)
from octavo_server.errors import EngineDead, InvalidRequest


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ["a"] * 1025}, "stop"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids"),
        ({"tokens": [1] * (MAX_MODEL_LEN + 1)}, "tokens"),
        ({"messages": [{}] * 16_385}, "messages"),
        ({"messages": [{"content": [{}] * 9000}] * 2}, "messages.1.content"),
        ({"messages": [{"content": [dict.fromkeys(map(str, range(65)))]}]}, "messages.0.content"),
        ({"messages": [dict.fromkeys(map(str, range(65)))]}, "messages.0"),
        ({"messages": [5]}, "messages.0"),
        (dict.fromkeys(map(str, range(1001))), None),
    ],
)
def test_containers_that_are_too_long(fields, param) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_lengths(fields, MAX_MODEL_LEN)
    assert caught.value.param == param


def test_what_is_as_long_as_it_may_be() -> None:
    fields = {"stop": ["a"] * 1024, "tokens": [1] * MAX_MODEL_LEN, "messages": [{}] * 16_384}
    check_lengths(fields, MAX_MODEL_LEN)


@pytest.mark.parametrize("piece", [b"{},", b"[],", b'"a" :1,'])
def test_bodies_that_would_take_long_to_parse(piece: bytes) -> None:
    with pytest.raises(InvalidRequest, match=str(MAX_CONTAINERS)):
        check_raw(piece * (MAX_CONTAINERS + 1))
    check_raw(piece * 100_000)


def test_many_keys_take_long_but_quoted_ones_are_a_text() -> None:
    with pytest.raises(InvalidRequest, match="keys"):
        check_raw(b'"ab":1,' * 600_000)
    check_raw(b'\\"ab\\":1,' * 600_000)


@pytest.mark.parametrize(
    ("tokens", "n", "context"),
    [
        (199, 128, 200),  # a full context, as often as the limit says
        (2048 * 100, 1, 1024),  # many prompts, each once
        (2048 * 50, 8, 1024),  # and a few times
        (MAX_REQUEST_TOKENS, 1, 131_072),
        (32_767, 128, 32_768),
    ],
)
def test_what_one_request_may_multiply(tokens: int, n: int, context: int) -> None:
    check_multiplied(tokens, n, context)


@pytest.mark.parametrize(
    ("tokens", "n", "context", "limit"),
    [
        (16 * 199, 128, 200, 25_600),
        (131_071, 128, 131_072, MAX_REQUEST_TOKENS),
        (MAX_REQUEST_TOKENS + 1, 1, 131_072, MAX_REQUEST_TOKENS),
    ],
)
def test_what_it_may_not(tokens: int, n: int, context: int, limit: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{tokens * n} prompt tokens.* {limit}"):
        check_multiplied(tokens, n, context)


def test_a_text_is_multiplied_as_well() -> None:
    with serving() as server:
        body = {"prompt": ["hello world " * 20] * 16, "n": 128}
        answer = server.http.post("/v1/completions", json=body)
        assert answer.status_code == 400
        assert "send several requests" in answer.json()["error"]["message"]
        assert not server.engine.adds


def test_an_engine_that_dies_between_two_batches_ends_the_request() -> None:
    with serving() as server:
        service = server.service
        send, sent = service.requests._send, []

        def fail_once(message) -> None:
            send(message)
            sent.append(message)
            if len(sent) == 10:
                server.loop.call_soon(service.requests.fail_all, EngineDead("gone"))

        service.requests._send = fail_once
        answer = server.completion(n=100)
        assert answer.status_code == 500
        assert len(service.requests) == 0


def test_others_have_their_turn_while_a_request_is_prepared() -> None:
    """1,000 sequences, each slow to send: nobody waits for all of them."""
    with serving() as server:
        send = server.service.requests._send

        def slowly(message) -> None:
            time.sleep(0.003)
            send(message)

        server.service.requests._send = slowly
        thread = threading.Thread(
            target=lambda: server.completion(prompt=["a"] * 1000, max_tokens=1)
        )
        thread.start()
        worst = 0.0
        while thread.is_alive():
            started = time.monotonic()
            server.call(lambda: None)
            worst = max(worst, time.monotonic() - started)
        assert worst < 1.5  # all of them take 3 s


def test_unknown_names_are_cut_quoted_and_few(caplog) -> None:
    with serving() as server:
        server.completion(**{f"field{i}\n{'x' * 1000}": 1 for i in range(500)})
    (text,) = [r.getMessage() for r in caplog.records if "ignored" in r.getMessage()]
    assert len(text) < 2000
    assert "\n" not in text
    assert text.endswith(" and 480 more")


def test_logprobs_beyond_the_vocabulary() -> None:
    with serving(max_logprobs=10**6) as server:
        assert server.completion(logprobs=VOCAB_SIZE).status_code == 200
        assert server.completion(logprobs=VOCAB_SIZE + 1).status_code == 400
        assert server.completion(prompt_logprobs=VOCAB_SIZE + 1).status_code == 400
        wrong = server.chat(logprobs=True, top_logprobs=VOCAB_SIZE + 1)
        assert wrong.status_code == 400


def test_unknown_fields_of_a_message_reach_the_template() -> None:
    message = ChatMessage.model_validate({"role": "user", "name": "x", "a": None, "b": {"c": None}})
    assert message_dicts([message]) == [
        {"role": "user", "name": "x", "b": {"c": None}, "content": ""}
    ]
