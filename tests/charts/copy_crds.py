"""Copies crds/ into the chart, for its template of them: `python tests/charts/copy_crds.py`."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "crds"
COPY = ROOT / "charts" / "octavo" / "files"

if __name__ == "__main__":
    COPY.mkdir(exist_ok=True)
    for path in SOURCE.glob("*.yaml"):
        shutil.copy(path, COPY / path.name)
