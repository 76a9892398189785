"""A client's mistake: a 4xx with OpenAI's body that names the field, and nothing for the engine."""

from __future__ import annotations

import pytest
from tests.server.api.fake_engine import serving

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server():
    with serving(max_body_bytes=500_000) as server:
        yield server


def check(response, status, param):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": [1, 450]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [[1], [2**40]]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [5] * 200}, "prompt"),
        ({"prompt": "x" * 50_000}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": "many"}, "n"),
        ({"n": 100, "prompt": ["a"] * 100}, "prompt"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"frequency_penalty": -3}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 2000}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop": ["x"] * 2000}, "stop"),
        ({"stop_token_ids": [1] * 2000}, "stop_token_ids"),
        ({"logit_bias": {str(i): 1 for i in range(2000)}}, "logit_bias"),
        ({"prompt": ["a"] * 3000}, "prompt"),
        ({"stop_token_ids": [450]}, "stop_token_ids"),
        ({"logit_bias": {"450": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"seed": 2**64}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"guided_json": {}}, "guided_json"),
        ({"guided_choice": ["a", "b"]}, "guided_choice"),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs"),
        ({"guided_decoding_backend": "x"}, "guided_decoding_backend"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"bad_words": ["a", " "]}, "bad_words"),
        ({"bad_words": ["a"] * 1025}, "bad_words"),
        ({"bad_words": ["a" * 1025]}, "bad_words"),
        ({"bad_words": [chr(0x4E00 + i) * 30 for i in range(100)]}, "bad_words"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"allowed_token_ids": [1] * 4097}, "allowed_token_ids"),
        ({"allowed_token_ids": [450]}, "allowed_token_ids"),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 200}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": "all"}, "truncate_prompt_tokens"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": "x" * 1025}, "cache_salt"),
        ({"cache_salt": 5}, "cache_salt"),
        ({"priority": 1}, "priority"),
        ({"max_tokens": 199, "prompt": [5, 5]}, "max_tokens"),
        ({"max_tokens": 150, "prompt": [[5], [5] * 100]}, "max_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "echo": True, "logprobs": 1, "n": 2}, "n"),
    ],
)
def test_completions(server, body, param):
    before = len(server.engine.adds)
    check(server.http.post("/v1/completions", json={"prompt": "hello", **body}), 400, param)
    assert len(server.engine.adds) == before


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content",
        ),
        ({"messages": [{"role": "user", "content": "x " * 300}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 50_000}]}, "messages"),
        ({"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs"),
        ({"messages": MESSAGES, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": MESSAGES, "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"messages": MESSAGES, "max_completion_tokens": 200}, "max_completion_tokens"),
        ({"messages": MESSAGES, "max_tokens": 200}, "max_tokens"),
        ({"messages": MESSAGES, "guided_json": {}}, "guided_json"),
        ({"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools"),
        ({"messages": MESSAGES, "chat_template": "{{ 1 }}"}, "chat_template"),
        (
            {"messages": MESSAGES, "chat_template_kwargs": {"tokenize": True}},
            "chat_template_kwargs",
        ),
        ({"messages": [{"role": "user"}] * 17_000}, "messages"),
        ({"messages": MESSAGES, "continue_final_message": True}, "continue_final_message"),
        ({}, "messages"),
    ],
)
def test_chat(server, body, param):
    before = len(server.engine.adds)
    check(server.http.post("/v1/chat/completions", json=body), 400, param)
    assert len(server.engine.adds) == before


@pytest.mark.parametrize(
    ("field", "value", "names"),
    [
        ("guided_json", {}, "structured_outputs={'json': ...}"),
        ("guided_regex", "a+", "structured_outputs={'regex': ...}"),
        ("guided_choice", ["a"], "structured_outputs={'choice': ...}"),
        ("guided_grammar", "x", "structured_outputs={'grammar': ...}"),
        ("best_of", 2, "n answers with logprobs"),
        ("suffix", "x", "into prompt"),
        ("chat_template", "{{ 1 }}", "--chat-template"),
    ],
)
def test_what_is_refused_names_what_to_do_instead(server, field, value, names):
    assert names in check(server.completion(**{field: value}), 400, field)["message"]
    assert names in check(server.chat(**{field: value}), 400, field)["message"]


def test_unknown_model(server):
    error = check(server.completion(model="other"), 404, "model")
    assert error["code"] == "model_not_found"
    assert server.http.get("/v1/models/other").status_code == 404
    assert server.completion(model="alias").status_code == 200


def test_too_long_says_so(server):
    error = check(server.completion(prompt=[5] * 200), 400, "prompt")
    assert error["code"] == "context_length_exceeded"
    assert "200" in error["message"]
    assert server.completion(prompt=[5] * 199).status_code == 200


def test_an_answer_that_does_not_fit_says_what_would(server):
    error = check(server.completion(prompt=[5] * 150, max_tokens=51), 400, "max_tokens")
    assert error["code"] == "context_length_exceeded"
    for size in ("200", "150", "51", "201", "lower max_tokens to 50"):
        assert size in error["message"]
    assert server.completion(prompt=[5] * 150, max_tokens=50).status_code == 200


def test_fields_that_ask_for_nothing_are_accepted(server):
    neutral = {"best_of": 1, "suffix": "", "guided_json": None, "bad_words": [], "tools": []}
    assert server.completion(**neutral, response_format={"type": "text"}).status_code == 200


def test_the_log_names_only_fields_of_accepted_requests(server, caplog):
    def named():
        return " ".join(r.getMessage() for r in caplog.records if "ignored" in r.getMessage())

    with caplog.at_level("WARNING"):
        assert server.completion(best_of=2).status_code == 400
        assert server.completion(odd_one=1, n=0).status_code == 400
        assert server.completion(best_of=1, suffix="").status_code == 200
        assert named() == ""
        assert server.completion(odd_two=1).status_code == 200
        assert server.chat(odd_three=1).status_code == 200
    assert "odd_two" in named() and "odd_three" in named()
    assert "odd_one" not in named() and "best_of" not in named()


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b'{"prompt": "\xff"}', b"[" * 5000])
def test_bodies_that_are_no_json_object(server, raw):
    check(server.http.post("/v1/completions", content=raw), 400, None)


def test_large_bodies_are_refused_before_they_are_read(server):
    check(server.completion(prompt="x" * 600_000), 413, None)

    def chunks():
        for _ in range(60):
            yield b"x" * 10_000

    check(server.http.post("/v1/completions", content=chunks()), 413, None)
    assert server.completion().status_code == 200


def test_unknown_paths_and_methods_have_the_same_body(server):
    error = check(server.http.post("/chat/completions"), 404, None)
    assert error["message"] == "there is no path /chat/completions here"
    error = check(server.http.get("/v1/completions"), 405, None)
    assert error["message"] == "/v1/completions takes no GET"


def test_unknown_fields_are_accepted(server):
    assert server.completion(user="me", made_up={"a": 1}, tool_choice=None).status_code == 200


def test_nulls_mean_not_given(server):
    body = dict.fromkeys(("n", "temperature", "stop", "seed", "logprobs", "stream", "max_tokens"))
    assert server.completion(**body).status_code == 200


def test_keys():
    with serving(api_keys=("secret", "other")) as server:
        assert server.completion().status_code == 401
        check(server.http.get("/v1/models"), 401, None)
        for path in ("/health", "/ready", "/load", "/metrics", "/version"):
            assert server.http.get(path).status_code == 200
        wrong = {"Authorization": "Bearer secreT"}
        assert server.http.get("/v1/models", headers=wrong).status_code == 401
        right = {"Authorization": "Bearer other"}
        assert server.http.get("/v1/models", headers=right).status_code == 200


def test_an_unexpected_error_is_a_plain_500(server, monkeypatch):
    def explode(*args, **kwargs):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(server.service, "check_prompt", explode)
    response = server.completion()
    assert response.status_code == 500
    assert "secret" not in response.text
    monkeypatch.undo()
    assert server.completion().status_code == 200  # on the same connection
