"""The full objects that examples and other manifests become.

After a wanted change run `OCTAVO_WRITE_GOLDEN=1 pytest tests/operator/test_golden.py`, then read
the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from tests.operator.services import MANIFESTS

from octavo_operator.manifests import read_services
from octavo_operator.render import render

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_golden(manifest: Path) -> None:
    golden = GOLDEN / manifest.name
    objects = [each for one in read_services([str(manifest)]) for each in render(one)]
    if os.environ.get("OCTAVO_WRITE_GOLDEN"):
        golden.write_text(yaml.safe_dump_all(objects, sort_keys=False, width=100), encoding="utf-8")
    assert list(yaml.safe_load_all(golden.read_text(encoding="utf-8"))) == objects


def test_no_stale_golden() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {path.name for path in MANIFESTS}
