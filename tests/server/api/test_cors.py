"""Browsers' pages of other origins."""

from __future__ import annotations

import pytest
from tests.server.api.fake_engine import serving

from octavo_server.api.cors import Cors, cors_of
from octavo_server.errors import InvalidSettings

PAGE = "https://page.example"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def preflight(server, origin=PAGE):
    headers = {**PREFLIGHT, "Origin": origin}
    return server.http.options("/v1/completions", headers=headers)


def test_no_page_is_let_in_unless_told():
    with serving() as server:
        answer = server.http.post("/v1/completions", json={"prompt": "a"}, headers=PREFLIGHT)
        assert answer.status_code == 200
        assert preflight(server).status_code == 405
        for each in (answer, preflight(server)):
            assert not any(name.startswith("access-control") for name in each.headers)


def test_named_origins_and_no_others():
    with serving(cors=Cors((PAGE,)), api_keys=("k",)) as server:
        allowed = preflight(server)  # without a key, as browsers ask
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        assert preflight(server, "https://other.example").status_code == 400
        for key, status in (("k", 200), ("x", 401)):
            headers = {"Origin": PAGE, "Authorization": f"Bearer {key}"}
            answer = server.http.post(
                "/v1/completions", json={"prompt": "a", "stream": True}, headers=headers
            )
            assert answer.status_code == status  # a page is to see the error, too
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()
        other = {"Origin": "https://other.example", "Authorization": "Bearer k"}
        answer = server.http.get("/v1/models", headers=other)
        assert "access-control-allow-origin" not in answer.headers


def test_flags():
    assert cors_of([], [], [], credentials=False) is None
    assert cors_of(['["*"]'], [], [], credentials=False) == Cors(("*",))
    assert cors_of(
        [PAGE, '["http://localhost:3000"]'], ["GET"], ['["X-A"]'], credentials=True
    ) == Cors((PAGE, "http://localhost:3000"), ("GET",), ("X-A",), credentials=True)


@pytest.mark.parametrize(
    ("origins", "methods", "credentials"),
    [
        ([PAGE + "/"], [], False),
        (["page.example"], [], False),
        (["[1]"], [], False),
        (["[x"], [], False),
        (["*"], [], True),
        ([], ["GET"], False),
        ([], [], True),
    ],
)
def test_flags_that_let_in_nobody_or_everybody(origins, methods, credentials):
    with pytest.raises(InvalidSettings):
        cors_of(origins, methods, [], credentials=credentials)
