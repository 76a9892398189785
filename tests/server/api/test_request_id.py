"""X-Request-Id: of a client that gives one, and of all others."""

from __future__ import annotations

import pytest
from tests.server.api.fake_engine import say, serving

PATHS = ("/v1/completions", "/v1/chat/completions")
BODY = {"prompt": "hello", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def server():
    with serving(say("one two three")) as server:
        yield server


def post(server, path, headers=None, **fields):
    return server.http.post(path, json={**BODY, **fields}, headers=headers or {})


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_clients_own(server, path, stream):
    answer = post(server, path, {"X-Request-Id": "trace-1/a"}, stream=stream)
    assert answer.headers.get_list("x-request-id") == ["trace-1/a"]
    assert "cmpl-trace-1/a" in answer.text
    field = post(server, path, stream=stream, request_id="mine")
    assert (field.headers["x-request-id"], "cmpl-mine" in field.text) == ("mine", True)
    both = post(server, path, {"X-Request-Id": "header"}, stream=stream, request_id="mine")
    assert both.headers["x-request-id"] == "header"


@pytest.mark.parametrize("path", PATHS)
def test_a_new_one_for_each(server, path):
    answers = [post(server, path, stream=stream) for stream in (False, True, False)]
    names = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(names)) == 3
    assert all(f"cmpl-{name}" in a.text for name, a in zip(names, answers, strict=True))


@pytest.mark.parametrize("odd", ["a b", "x" * 129, "", "caf\u00e9".encode()])
def test_what_is_no_good_name_is_not_taken_over(server, odd):
    answer = post(server, PATHS[0], {"X-Request-Id": odd})
    assert answer.status_code == 200
    assert len(answer.headers["x-request-id"]) == 24
    if isinstance(odd, str):
        answer = post(server, PATHS[0], request_id=odd)
        assert (answer.status_code, len(answer.headers["x-request-id"])) == (200, 24)


def test_errors_have_one_too(server):
    for answer in (
        post(server, PATHS[0], {"X-Request-Id": "a"}, n=0),
        post(server, PATHS[0], {"X-Request-Id": "a"}, model="other"),
        server.http.get("/v1/completions", headers={"X-Request-Id": "a"}),
        server.http.get("/v1/models/none", headers={"X-Request-Id": "a"}),
    ):
        assert answer.status_code >= 400
        assert answer.headers["x-request-id"] == "a"
    with serving(api_keys=("k",)) as guarded:
        answer = post(guarded, PATHS[0], {"X-Request-Id": "a"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (401, "a")


def test_two_requests_may_have_one_name(server):
    """Of a client that tries again, say: the engine's names stay apart."""
    server.call(server.engine.gate.clear)
    before = len(server.engine.adds)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(post, server, PATHS[0], {"X-Request-Id": "same"}) for _ in range(2)]
        server.wait(lambda: len(server.engine.adds) == before + 2)
        server.call(server.engine.gate.set)
        assert {job.result().status_code for job in jobs} == {200}
    assert len({add.request_id for add in server.engine.adds[before:]}) == 2
