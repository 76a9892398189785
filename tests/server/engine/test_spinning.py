"""The environment in which engine processes start: read off real processes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

import octavo_server
from octavo_server.engine.early import spawn
from octavo_server.engine.spinning import short_spins


@pytest.mark.parametrize("chosen", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_chose_stands(
    monkeypatch: pytest.MonkeyPatch, chosen: Mapping[str, str]
) -> None:
    assert short_spins(chosen) == {}
    forget(monkeypatch)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    environment = environment_of_an_engine()
    assert {name: environment.get(name) for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} == {
        "GOMP_SPINCOUNT": chosen.get("GOMP_SPINCOUNT"),
        "OMP_WAIT_POLICY": chosen.get("OMP_WAIT_POLICY"),
    }


def test_an_engine_process_spins_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)
    assert int(environment_of_an_engine()["GOMP_SPINCOUNT"]) < 10_000


def test_the_offline_entry_sets_it_before_torch_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget(monkeypatch)
    assert octavo_server.LLM is not None
    assert int(os.environ["GOMP_SPINCOUNT"]) < 10_000


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)


def environment_of_an_engine() -> dict[str, str]:
    with spawn() as process:
        # Empty at first: the kernel sets it a moment after the new program has begun.
        deadline = time.monotonic() + 10
        while not (text := Path(f"/proc/{process.pid}/environ").read_text()):
            assert time.monotonic() < deadline
        process.kill()
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)
