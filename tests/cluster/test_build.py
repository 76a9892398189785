"""Where the binaries come from, and which image stands for which name; needs no cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster import build
from tests.cluster.images import Image, find_image


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path


def fill(folder: Path, names: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()


def test_an_empty_cache_has_no_assets(cache: Path) -> None:
    assert build.find_assets() is None
    assert cache in build.assets_folder().parents


def test_a_filled_cache_is_used_without_a_build(cache: Path) -> None:
    fill(build.assets_folder(), build.REQUIRED)

    assert build.ensure_assets() == build.assets_folder()


def test_given_assets_win(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(build.assets_folder(), build.REQUIRED)
    fill(cache / "given", build.REQUIRED)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(cache / "given"))

    assert build.ensure_assets() == cache / "given"


def test_incomplete_given_assets_are_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(cache / "given", build.REQUIRED[1:])
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(cache / "given"))

    with pytest.raises(build.MissingAssets, match=r"lacks etcd$"):
        build.find_assets()


def test_another_source_is_another_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build.assets_folder()
    source = tmp_path / "assets"
    (source / "etcd").mkdir(parents=True)
    for name in ("go.mod", "go.sum", "etcd/main.go"):
        (source / name).write_bytes((build.SOURCE / name).read_bytes() + b"\n")
    monkeypatch.setattr(build, "SOURCE", source)

    assert build.assets_folder() != before


def test_the_version_is_the_one_go_mod_pins() -> None:
    pinned = (build.SOURCE / "go.mod").read_text()

    assert f"k8s.io/kubernetes {build.KUBERNETES_VERSION}" in pinned


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("octavo", "plain"),
        ("octavo:1.2", "plain"),
        ("registry.example:5000/team/octavo:1.2", "plain"),
        ("example.com/octavo@sha256:00", "plain"),
        ("example.com/special/octavo:2", "special"),
        ("octavo-other:1", None),
        ("example.com/octavo/server", None),
    ],
)
def test_images_are_found_by_name(reference: str, found: str | None) -> None:
    images = {
        "octavo": Image(environment={"NAME": "plain"}),
        "special/octavo": Image(environment={"NAME": "special"}),
    }

    image = find_image(images, reference)

    assert (image.environment["NAME"] if image else None) == found
