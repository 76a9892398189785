"""What a group's process tells the one that started it: a line of JSON per event on its stdout.

begin: a scenario starts (its time limit runs from here). sample: one repeat's value of a row.
note: something to keep beside a row. end: the scenario is over, `error` None or why it failed.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MARK = "@row "
"""Begins every event, for libraries print to stdout as well."""


def emit(event: str, **fields: Any) -> None:
    print(MARK + json.dumps({"event": event, **fields}), flush=True)


def sample(row: str, value: float) -> None:
    """One repeat of a row, in the row's unit."""
    emit("sample", row=row, value=value)


def note(row: str, **facts: Any) -> None:
    """Facts that go beside the row's value in the JSON."""
    emit("note", row=row, facts=facts)


@dataclass(slots=True)
class Outcome:
    """Set when the scenario's block has ended."""

    failed: bool = False


@contextmanager
def scenario(name: str) -> Iterator[Outcome]:
    """Begin and end of a scenario; its failure is reported, and the next one goes on."""
    emit("begin", scenario=name)
    outcome = Outcome()
    try:
        yield outcome
    except Exception as error:
        outcome.failed = True
        traceback.print_exc(file=sys.stderr)
        emit("end", scenario=name, error=f"{type(error).__name__}: {error}"[:2000])
    else:
        emit("end", scenario=name, error=None)


def parse_event(line: str) -> dict[str, Any] | None:
    """The event of a line of output, None if it is anything else."""
    if not line.startswith(MARK):
        return None
    try:
        found = json.loads(line.removeprefix(MARK))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
