"""API keys: where they come from, and that no other is let in."""

from __future__ import annotations

import hmac

import hypothesis.strategies as st
import pytest
from hypothesis import example, given
from tests.server.api.fake_engine import serving

from octavo_server.api import keys
from octavo_server.api.keys import KeyRing, read_keys
from octavo_server.errors import InvalidSettings

KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=12)


def test_keys_come_from_flags_files_and_the_environment(tmp_path) -> None:
    (tmp_path / "keys").write_text("  f1\n\nf2\r\nf1\n")
    files = [str(tmp_path / "keys")]
    assert read_keys(["a", "b", "a"], files, "e1\ne2\n") == ("a", "b", "f1", "f2", "e1", "e2")
    assert read_keys([], [], None) == ()
    assert read_keys([], [], "one\n") == ("one",)  # as kubectl makes Secrets from files


@pytest.mark.parametrize("text", ["", " \n", "se cret", "s\u00e4cret", "a\nse\tcret"])
def test_what_holds_no_key_is_no_open_server(tmp_path, text) -> None:
    (tmp_path / "keys").write_text(text)
    for sources in (
        ([text], [], None),
        ([], [str(tmp_path / "keys")], None),
        ([], [], text),
        (["fine"], [], text),
    ):
        with pytest.raises(InvalidSettings) as caught:
            read_keys(*sources)
        assert "cret" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(InvalidSettings, match="No such file"):
        read_keys([], [str(tmp_path / "none")])
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidSettings, match="not a text file"):
        read_keys([], [str(tmp_path / "binary")])


@given(
    st.lists(KEYS, min_size=1, max_size=5, unique=True), KEYS, st.sampled_from(["Bearer", "bEARER"])
)
@example(["a"], "", "Bearer")
@example(["ab"], "a", "Bearer")
def test_each_key_and_no_other(there: list[str], asked: str, scheme: str) -> None:
    ring = KeyRing(there)
    for number, key in enumerate(there):
        assert ring.find(f"{scheme} {key}".encode()) == number
        for wrong in (key, f"Basic {key}", f"Bearer{key}", f"Bearer {key}x", f"Bearer {key[:-1]}"):
            found = ring.find(wrong.encode())
            assert found is None or there[found] == wrong.removeprefix("Bearer ")
    found = ring.find(f"{scheme} {asked}".encode())
    assert (found is not None) == (asked in there)
    assert ring.find(b"") is None


def test_every_key_is_compared_whichever_matches(monkeypatch) -> None:
    """A comparison's number and operands' length are the same for all: its time tells nothing."""
    seen: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def watched(a: bytes, b: bytes) -> bool:
        seen.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(keys.hmac, "compare_digest", watched)
    ring = KeyRing(["short", "x" * 100, "third"])
    for given_key in (b"short", b"third", b"", b"y" * 5000):
        seen.clear()
        ring.find(b"Bearer " + given_key)
        assert seen == [(32, 32)] * 3


def test_keys_are_nowhere_in_logs_or_answers(caplog) -> None:
    with serving(api_keys=("topsecret", "other")) as server, caplog.at_level("DEBUG"):
        refused = server.completion()
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        wrong = server.http.get("/v1/models", headers={"Authorization": "Bearer topsecre"})
        right = server.http.get("/v1/models", headers={"Authorization": "bearer  topsecret"})
        assert (wrong.status_code, right.status_code) == (401, 200)
        texts = [refused.text, wrong.text, server.http.get("/metrics").text, caplog.text]
        assert not any("topsecret" in text for text in texts)
