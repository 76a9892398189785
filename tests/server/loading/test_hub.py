"""Snapshots from a loopback Hub: what arrives, what is resumed, and what each failure says."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.server.loading.hub_server import Hub, running_hub
from tests.server.models.published_configs import LLAMA

from octavo_server.config import EngineConfig
from octavo_server.errors import (
    CorruptModel,
    GatedModel,
    HubUnreachable,
    ModelNotFound,
    StartupError,
    UnsupportedModel,
)
from octavo_server.loading.source import ModelSource, resolve_source

MODEL = "acme/tiny"
_WEIGHT_BYTES = 3_000_000


class Clock:
    """The time module as huggingface_hub sees it: waiting is `wait`, the rest as it is."""

    def __init__(self, wait: Callable[[], object] = lambda: None) -> None:
        self.wait = wait

    def sleep(self, seconds: float) -> None:
        self.wait()

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(_WEIGHT_BYTES))
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "consolidated.safetensors").write_bytes(b"again")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    # Failures are tried again after 1, 2, 4 ... seconds: not what is tested here.
    monkeypatch.setattr("huggingface_hub.utils._http.time", Clock())
    monkeypatch.setattr("huggingface_hub.file_download.time", Clock())
    # Only whole chunks are kept of a cut download.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    with running_hub() as running:
        running.repositories[MODEL] = folder
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def resolve(tmp_path: Path, model: str = MODEL, **settings: object) -> ModelSource:
    config = EngineConfig(model=model, download_dir=str(tmp_path / "cache"), **settings)  # type: ignore[arg-type]
    return resolve_source(config, print)


def refused(
    tmp_path: Path, kind: type[StartupError], model: str = MODEL, **settings: object
) -> str:
    with pytest.raises(kind) as caught:
        resolve(tmp_path, model, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def names(source: ModelSource) -> set[str]:
    return {path.name for path in source.path.iterdir()}


def test_a_model_arrives_without_what_it_does_not_need(hub: Hub, tmp_path: Path) -> None:
    source = resolve(tmp_path)
    assert source.kind == "folder"
    assert source.name == MODEL
    assert source.revision is not None and len(source.revision) == 40
    assert names(source) == {"config.json", "tokenizer.json", "model.safetensors"}
    original = hub.repositories[MODEL] / "model.safetensors"
    assert (source.path / "model.safetensors").read_bytes() == original.read_bytes()


def test_the_second_start_downloads_nothing(hub: Hub, tmp_path: Path) -> None:
    first = resolve(tmp_path)
    hub.requests.clear()
    assert resolve(tmp_path) == first
    assert hub.downloads("model.safetensors") == []
    assert len(hub.requests) == 1  # which commit is main


def test_the_cache_serves_while_the_hub_is_away(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve(tmp_path)
    hub.answer_all_with = 503
    assert resolve(tmp_path) == first
    monkeypatch.setenv("HF_ENDPOINT", closed_endpoint())
    assert resolve(tmp_path) == first
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve(tmp_path) == first


def test_dummy_weights_are_not_downloaded(hub: Hub, tmp_path: Path) -> None:
    assert names(resolve(tmp_path, load_format="dummy")) == {"config.json", "tokenizer.json"}


def test_a_cut_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after_bytes = 1_000_000
    source = resolve(tmp_path)
    original = hub.repositories[MODEL] / "model.safetensors"
    assert (source.path / "model.safetensors").read_bytes() == original.read_bytes()
    assert hub.downloads("model.safetensors") == [None, "bytes=1000000-"]


def test_a_start_that_failed_leaves_its_whole_files_to_the_next(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub.repositories[MODEL]
    (folder / "model.safetensors").rename(folder / "model-2.safetensors")
    (folder / "model-1.safetensors").write_bytes(b"small")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    snapshots = tmp_path / "cache" / "models--acme--tiny" / "snapshots"

    def hub_dies() -> None:
        for _ in range(500):
            if list(snapshots.glob("*/model-1.safetensors")):
                break
            time.sleep(0.01)
        hub.answer_all_with = 503

    monkeypatch.setattr("huggingface_hub.file_download.time", Clock(hub_dies))
    hub.cut_after_bytes = 1_000_000
    refused(tmp_path, HubUnreachable)
    hub.answer_all_with = None
    hub.requests.clear()
    assert {"model-1.safetensors", "model-2.safetensors"} < names(resolve(tmp_path))
    assert hub.downloads("model-1.safetensors") == []
    assert len(hub.downloads("model-2.safetensors")) == 1


def test_downloads_report_progress(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_server.loading.hub._PROGRESS_SECONDS", 0.0)
    (hub.repositories[MODEL] / "model.safetensors").write_bytes(bytes(60_000_000))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000_000)
    lines: list[str] = []
    resolve_source(EngineConfig(model=MODEL, download_dir=str(tmp_path / "cache")), lines.append)
    assert f"downloading {MODEL}: 0.05 of 0.06 GB" in lines
    assert lines[-1].startswith(f"{MODEL} at 0123456789ab: files ready in ")


def test_half_a_model_in_the_cache_is_not_served(hub: Hub, tmp_path: Path) -> None:
    resolve(tmp_path, load_format="dummy")
    hub.answer_all_with = 503
    assert MODEL in refused(tmp_path, HubUnreachable)


def test_no_such_model(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(tmp_path, ModelNotFound, "acme/tinny")
    assert "the Hub has no model acme/tinny" in message
    assert message.endswith("and there is no such file or folder here")
    assert "HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "HF_TOKEN is not valid" in refused(tmp_path, GatedModel, "acme/tinny")


def test_no_such_revision(hub: Hub, tmp_path: Path) -> None:
    assert "no revision v9" in refused(tmp_path, ModelNotFound, revision="v9")


def test_gated(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated[MODEL] = "hf_good"
    assert "set HF_TOKEN" in refused(tmp_path, GatedModel)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "ask for access" in refused(tmp_path, GatedModel)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert "model.safetensors" in names(resolve(tmp_path))


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_failing_hub(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.answer_all_with = status
    assert MODEL in refused(tmp_path, HubUnreachable)


def xet_fails(words: str) -> Callable[..., None]:
    def fail(**_: object) -> None:
        raise RuntimeError(words)

    return fail


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("CAS Client Error: error sending request", "CAS Client Error: error sending request"),
        ("I/O error: No space left on device (os error 28)", "cannot be stored in the cache"),
    ],
)
def test_what_xet_storage_fails_of_is_a_sentence(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    hub.xet = True
    monkeypatch.setattr("huggingface_hub.file_download.xet_get", xet_fails(words))
    assert said in refused(tmp_path, StartupError)


def test_a_mirror_that_forwards_half_of_xet(hub: Hub, tmp_path: Path) -> None:
    hub.xet = True
    assert "Xet headers" in refused(tmp_path, HubUnreachable)


def test_nobody_answers(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = closed_endpoint()
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert endpoint in refused(tmp_path, HubUnreachable)


def test_offline_and_not_in_the_cache(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in refused(tmp_path, HubUnreachable)
    assert hub.requests == []


def test_what_octavo_cannot_serve_is_refused_before_its_weights(hub: Hub, tmp_path: Path) -> None:
    folder = hub.repositories[MODEL]
    (folder / "config.json").write_text(json.dumps(LLAMA | {"architectures": ["BertModel"]}))
    assert "BertModel" in refused(tmp_path, UnsupportedModel)
    assert hub.downloads("model.safetensors") == []


def test_only_pickles(hub: Hub, tmp_path: Path) -> None:
    (hub.repositories[MODEL] / "model.safetensors").unlink()
    (hub.repositories[MODEL] / "consolidated.safetensors").unlink()
    assert "no safetensors" in refused(tmp_path, UnsupportedModel)
    assert hub.downloads("pytorch_model.bin") == []


def test_an_index_decides_which_weights_arrive(hub: Hub, tmp_path: Path) -> None:
    folder = hub.repositories[MODEL]
    (folder / "model.fp16.safetensors").write_bytes(b"the same again")
    index = {"weight_map": {"a": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.fp16.safetensors" not in names(resolve(tmp_path))
    index = {"weight_map": {"a": "model.safetensors", "b": "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.rmtree(tmp_path / "cache")
    assert "lacks 1 of 2 weight files" in refused(tmp_path, CorruptModel)


def test_a_repository_without_config(hub: Hub, tmp_path: Path) -> None:
    (hub.repositories[MODEL] / "config.json").unlink()
    assert "no config.json" in refused(tmp_path, UnsupportedModel)


def closed_endpoint() -> str:
    """An address where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{bound.getsockname()[1]}"
