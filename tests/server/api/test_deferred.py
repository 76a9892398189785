"""Requests that nobody reads before their end: one output from the engine, the same answers."""

from __future__ import annotations

import json
import socket
import time

import pytest
from tests.server.api.fake_engine import EOS, MAX_MODEL_LEN, say, serving
from tests.server.text.tiny_tokenizers import byte_level

from octavo_server.engine.messages import TokenOutput

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT = "one two \U0001f680 three. na\u00efve four"


def at_once(script, *, first_token=None):
    """What the engine does with a request that does not stream: all steps in one output."""

    def deferred(add):
        if add.stream:
            yield from script(add)
            return
        steps = list(script(add))
        whole = TokenOutput(add.request_id, [i for step in steps for i in step.token_ids])
        whole.finish_reason, whole.stop_token_id = steps[-1].finish_reason, steps[-1].stop_token_id
        whole.scheduled, whole.cached_tokens = steps[0].scheduled, steps[0].cached_tokens
        whole.prompt_logprobs = steps[0].prompt_logprobs
        whole.first_token = time.monotonic() if first_token is None else first_token(add)
        if steps[0].logprobs is not None:
            whole.logprobs = [entry for step in steps for entry in step.logprobs]
        yield whole

    return deferred


@pytest.fixture(scope="module")
def stepwise():
    with serving(say(TEXT)) as server:
        yield server


@pytest.fixture(scope="module")
def deferred():
    with serving(at_once(say(TEXT))) as server:
        yield server


def post(server, path, body):
    key = {"messages": [{"role": "user", "content": "hello"}]} if path == CHAT else {}
    return server.http.post(path, json={"max_tokens": 100, "prompt": "hello", **key, **body})


def answer_of(server, path, body):
    """The answer without what differs from request to request."""
    response = post(server, path, body)
    assert response.status_code == 200, response.text
    return {k: v for k, v in response.json().items() if k not in ("id", "created")}


LAST_ID = byte_level().encode(TEXT, add_special_tokens=False)[-1]
BOTH = [
    {},
    {"max_tokens": 1},
    {"max_tokens": 7},
    *({"max_tokens": cut} for cut in range(4, 14)),  # some within the rocket's four tokens
    {"n": 3, "seed": 7},
    {"prompt_logprobs": 1},
    {"stop_token_ids": [LAST_ID]},
    {"ignore_eos": True, "skip_special_tokens": False},
    {"include_stop_str_in_output": True, "skip_special_tokens": False},
    {"min_tokens": 2},
    {"stop": "three"},
    {"stop": ["never"], "n": 2},
]
CASES = [(path, body) for path in (COMPLETIONS, CHAT) for body in BOTH] + [
    (COMPLETIONS, {"logprobs": 2}),
    (COMPLETIONS, {"logprobs": 0, "max_tokens": 5}),
    (COMPLETIONS, {"logprobs": 1, "echo": True}),
    (COMPLETIONS, {"echo": True, "max_tokens": 0, "logprobs": 1}),
    (COMPLETIONS, {"echo": True, "prompt": ["hello", "world"], "n": 2}),
    (COMPLETIONS, {"prompt_logprobs": 2, "n": 2}),
    (COMPLETIONS, {"prompt": [[5, 6], [7, 8, 9]], "logprobs": 1, "stop": "three"}),
    (CHAT, {"logprobs": True, "top_logprobs": 2, "n": 2}),
    (CHAT, {"logprobs": True, "max_tokens": 5}),
]


@pytest.mark.parametrize(("path", "body"), CASES)
def test_the_answer_is_that_of_single_steps(stepwise, deferred, path, body):
    assert answer_of(deferred, path, body) == answer_of(stepwise, path, body)


def test_own_stop_id_is_named(deferred):
    def script(add):
        ids = [5, 6, add.params.stop_token_ids[0]]
        yield TokenOutput(
            add.request_id, ids, "stop", stop_token_id=ids[-1], first_token=time.monotonic()
        )

    with serving(script) as server:
        for path in (COMPLETIONS, CHAT):
            answer = answer_of(server, path, {"stop_token_ids": [9]})
            choice = answer["choices"][0]
            assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", 9)
            assert answer["usage"]["completion_tokens"] == 3
            text = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
            assert text == byte_level().decode([5, 6])
    choice = answer_of(deferred, COMPLETIONS, {})["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", None)  # EOS


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("body", "stream"),
    [
        ({}, False),
        ({"stream": False, "n": 2, "stop_token_ids": [9], "min_tokens": 2}, False),
        ({"prompt_logprobs": 1}, False),
        ({"stop": []}, False),
        ({"stop": "x"}, True),
        ({"stop": ["x"], "n": 2}, True),
        ({"stream": True}, True),
        ({"stream": True, "stop": "x"}, True),
    ],
)
def test_the_engine_is_told_who_reads_along(deferred, path, body, stream):
    before = len(deferred.engine.adds)
    assert post(deferred, path, body).status_code == 200
    adds = deferred.engine.adds[before:]
    assert [add.stream for add in adds] == [stream] * body.get("n", 1)


def test_figures_come_from_the_engines_times():
    def first_token(add):
        return add.arrival + 0.003

    def script(add):
        for output in at_once(say("one two three"), first_token=first_token)(add):
            output.scheduled, output.cached_tokens = add.arrival + 0.002, 1
            yield output

    tokens = len(byte_level().encode("one two three", add_special_tokens=False)) + 1
    with serving(script, step_seconds=0.2) as server:
        assert server.completion(max_tokens=50, n=2).json()["usage"]["prompt_tokens_details"] == {
            "cached_tokens": 1
        }
        metrics = server.service.metrics
        histograms = {
            "first": metrics.time_to_first_token,
            "queue": metrics.queue_time,
            "prefill": metrics.prefill_time,
            "between": metrics.inter_token_latency,
            "decode": metrics.decode_time,
            "each": metrics.time_per_output_token,
            "all": metrics.e2e_latency,
        }
        counts = {name: sum(histogram.counts) for name, histogram in histograms.items()}
        means = {name: histogram.total / 2 for name, histogram in histograms.items()}
        assert counts == dict.fromkeys(histograms, 2) | {"between": 2 * (tokens - 1)}
        assert means["first"] == pytest.approx(0.003, abs=1e-6)
        assert means["queue"] == pytest.approx(0.002, abs=1e-6)
        assert means["prefill"] == pytest.approx(0.001, abs=1e-6)
        assert means["decode"] >= 0.19
        assert means["between"] == pytest.approx(means["decode"])
        assert means["each"] == pytest.approx(means["decode"] / (tokens - 1))
        assert means["all"] == pytest.approx(means["decode"] + 0.003, abs=1e-4)
        assert metrics.finished["stop"] == 2
        assert metrics.prompt_tokens_cached == 2


def test_a_single_token_has_no_time_between():
    with serving(at_once(say("one two"))) as server:
        assert server.completion(max_tokens=1).status_code == 200
        metrics = server.service.metrics
        assert sum(metrics.time_to_first_token.counts) == 1
        assert sum(metrics.inter_token_latency.counts) == 0
        assert sum(metrics.time_per_output_token.counts) == 0


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_in_the_middle_ends_the_whole_request(path, failing):
    def script(add):
        if add.request_id.endswith(f"-{failing}"):
            yield TokenOutput(add.request_id, [], finish_reason="error", error="out of memory")
        else:
            yield from (TokenOutput(add.request_id, []) for _ in range(3))
            yield from at_once(say(TEXT))(add)

    with serving(script, step_seconds=0.01) as server:
        response = post(server, path, {"n": 3})
        assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_dead")
        assert response.json()["error"]["message"] == "out of memory"
        server.wait(lambda: not server.engine.running)
        assert len(server.service.requests) == 0
        server.wait(lambda: server.service.lifecycle.active == 0)
        others = [a.request_id for a in server.engine.adds if a.request_id[-1] != str(failing)]
        assert set(others) <= set(server.engine.aborted)
        assert server.service.metrics.finished["error"] == 3


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("n", [1, 3])
def test_a_disconnect_aborts_all(path, n):
    with serving(at_once(say(TEXT))) as server:
        server.call(server.engine.gate.clear)
        messages = [{"role": "user", "content": "hello"}]
        payload = json.dumps({"prompt": "hello", "messages": messages, "n": n}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(payload)}\r\n\r\n"
        with socket.create_connection(
            ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
        ) as connection:
            connection.sendall(head.encode() + payload)
            server.wait(lambda: len(server.engine.adds) == n)
        server.wait(lambda: not server.engine.running)
        assert sorted(server.engine.aborted) == sorted(a.request_id for a in server.engine.adds)
        server.wait(lambda: server.service.lifecycle.active == 0)
        assert len(server.service.requests) == 0
        assert server.service.metrics.finished["abort"] == n
        server.call(server.engine.gate.set)
        assert post(server, path, {}).status_code == 200


def test_the_end_of_the_context_is_a_length_end():
    def script(add):
        room = MAX_MODEL_LEN - len(add.prompt_token_ids)
        assert add.params.max_tokens == room
        yield TokenOutput(add.request_id, [7] * room, "length", first_token=time.monotonic())

    with serving(script) as server:
        answer = answer_of(server, CHAT, {"max_tokens": None, "stop_token_ids": [EOS]})
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["total_tokens"] == MAX_MODEL_LEN
