"""What stands for container images on the test nodes: a name, an environment, some folders."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Image:
    """`folders` maps container paths to folders of this machine, shown read-only."""

    environment: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()


def find_image(images: Mapping[str, Image], reference: str) -> Image | None:
    """By name without tag and digest, with or without the registry's and folders' part before it:

    "octavo" is found for "example.com/team/octavo:1", unless "team/octavo" is there too.
    """
    name = reference.split("@", 1)[0]
    head, _, last = name.rpartition("/")
    last = last.split(":", 1)[0]
    parts = (f"{head}/{last}" if head else last).split("/")
    for start in range(len(parts)):
        found = images.get("/".join(parts[start:]))
        if found is not None:
            return found
    return None


def default_images(folder: Path) -> dict[str, Image]:
    """`python` (this interpreter), `octavo` and `octavo-server` (this checkout, models in /models).

    Writes the `octavo` command into `folder`, since a checkout need not be installed.
    """
    binaries = folder / "octavo-image"
    binaries.mkdir(parents=True, exist_ok=True)
    command = binaries / "octavo"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m octavo_server.cli "$@"\n')
    command.chmod(0o755)
    sources = ":".join(str(ROOT / name) for name in ("server", "kernels", "operator"))
    python_folder = Path(sys.executable).parent
    environment = {"HOME": "/root", "LANG": "C.UTF-8"}
    models = ROOT / ".cache" / "models"
    octavo = Image(
        environment={
            **environment,
            "PATH": f"{binaries}:{python_folder}:{HOST_PATH}",
            "PYTHONPATH": sources,
            # Two pods and the control plane share a small machine.
            "OMP_NUM_THREADS": "1",
        },
        folders={"/models": models} if models.is_dir() else {},
        entrypoint=("octavo",),
    )
    return {
        "octavo": octavo,
        "octavo-server": octavo,
        "python": Image(environment={**environment, "PATH": f"{python_folder}:{HOST_PATH}"}),
    }
