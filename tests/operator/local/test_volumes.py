from pathlib import Path
from typing import Any

import pytest
from tests.operator.local.pods import container, make_pod

from octavo_operator.local.resolver import MissingReference, Objects
from octavo_operator.local.sandbox import LocalSandbox
from octavo_operator.local.volumes import Volumes, write_files

OBJECTS = Objects(
    secrets={("default", "s"): {"token": b"t", "raw": b"\xff"}},
    config_maps={("default", "c"): {"a": b"1", "b": b"2"}},
)


async def mount(folder: Path, **source: Any) -> tuple[Volumes, Path]:
    mounts = [{"name": "v", "mountPath": "/v"}]
    one = container(["x"], volumeMounts=mounts)
    pod = make_pod(one, volumes=[{"name": "v", **source}])
    volumes = Volumes(folder)
    await volumes.prepare(pod, OBJECTS, LocalSandbox(), pod_ip="10.0.0.7", host_ip="10.0.0.1")
    return volumes, volumes.mounts(one)[0].source


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    found = (file for file in folder.rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mode & 0o777)
        for file in found
    }


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"secret": {"secretName": "s"}}, {"token": (b"t", 0o644), "raw": (b"\xff", 0o644)}),
        (
            {"configMap": {"name": "c", "defaultMode": 0o400}},
            {"a": (b"1", 0o400), "b": (b"2", 0o400)},
        ),
        (
            {"configMap": {"name": "c", "items": [{"key": "a", "path": "x/y", "mode": 0o600}]}},
            {"x/y": (b"1", 0o600)},
        ),
        ({"configMap": {"name": "none", "optional": True}}, {}),
        (
            {"secret": {"secretName": "s", "optional": True, "items": [{"key": "n", "path": "n"}]}},
            {},
        ),
        (
            {
                "projected": {
                    "defaultMode": 0o440,
                    "sources": [
                        {"secret": {"name": "s", "items": [{"key": "token", "path": "t"}]}},
                        {"configMap": {"name": "c", "items": [{"key": "b", "path": "b"}]}},
                        {
                            "downwardAPI": {
                                "items": [{"path": "ip", "fieldRef": {"fieldPath": "status.podIP"}}]
                            }
                        },
                    ],
                }
            },
            {"t": (b"t", 0o440), "b": (b"2", 0o440), "ip": (b"10.0.0.7", 0o440)},
        ),
        ({"emptyDir": {}}, {}),
    ],
)
async def test_folders(tmp_path: Path, source: dict, expected: dict) -> None:
    _, folder = await mount(tmp_path / "v", **source)
    assert files(folder) == expected


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"secret": {"secretName": "none"}}, 'secret "none" not found'),
        ({"configMap": {"name": "none"}}, 'configmap "none" not found'),
        ({"configMap": {"name": "c", "items": [{"key": "n", "path": "n"}]}}, 'has no key "n"'),
        ({"persistentVolumeClaim": {"claimName": "x"}}, "this node lacks"),
    ],
)
async def test_missing(tmp_path: Path, source: dict, sentence: str) -> None:
    with pytest.raises(MissingReference, match=sentence):
        await mount(tmp_path / "v", **source)


async def test_memory_is_another_folder_and_goes_too(tmp_path: Path) -> None:
    volumes, folder = await mount(tmp_path / "v", emptyDir={"medium": "Memory"})
    (folder / "x").write_text("x")
    volumes.remove()
    assert not folder.exists()
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x"])
def test_files_stay_in_their_volume(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="leaves its volume"):
        write_files(tmp_path / "v", {path: (b"", 0o644)})
