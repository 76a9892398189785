"""Reads one of a checkpoint's JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo_server.errors import CorruptModel


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or CorruptModel naming the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorruptModel(f"{path.parent} has no {path.name}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise CorruptModel(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise CorruptModel(f"{path} does not hold a JSON object")
    return found
