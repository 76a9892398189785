"""Texts, offsets and ends of echoed prompts."""

from __future__ import annotations

import pytest
from tests.server.api.fake_engine import say, serving


@pytest.mark.parametrize("prompt", ["<|im_start|>hello world", "hello <|im_end|>\nworld"])
def test_offsets_of_an_echoed_prompt_count_its_special_tokens(prompt: str) -> None:
    with serving() as server:
        server.wait(lambda: server.http.get("/ready").status_code == 200)
        body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 2}
        choice = server.http.post("/v1/completions", json=body).json()["choices"][0]
    logprobs = choice["logprobs"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"].startswith(token, offset), (token, offset, choice["text"])


def test_a_dropped_token_leaves_no_stop_reason() -> None:
    """echo with max_tokens 0: the engine's one token is dropped, what ended it as well."""
    with serving(say("hello")) as server:
        server.wait(lambda: server.http.get("/ready").status_code == 200)
        body = {"prompt": "hello", "echo": True, "max_tokens": 0, "stop": ["h"]}
        choice = server.http.post("/v1/completions", json=body).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
