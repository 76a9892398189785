"""Which settings are kept from the pods: those that the model cannot run with, once that is known.

What is known outlives the operator in the condition FitsAccelerator, since another that starts in
its place has read no model yet. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo_operator.conditions import (
    BEING_READ,
    FITS_ACCELERATOR,
    INVALID_TENSOR_PARALLEL_SIZE,
    PROGRESSING,
    WORKLOAD_READY,
    Condition,
    Problem,
)


def keep_verdict(fit: Condition, previous: Mapping[str, Any], generation: int) -> Condition:
    """`fit`, or the status' own word about this generation where `fit` knows less.

    While the model is being read that is any word; where it cannot be read now, only that the
    settings are impossible: they have not become possible.
    """
    for each in previous.get("conditions") or ():
        if each["type"] != FITS_ACCELERATOR or each.get("observedGeneration") != generation:
            continue
        impossible = each["reason"] == INVALID_TENSOR_PARALLEL_SIZE
        if fit.reason == BEING_READ or (fit.status == "Unknown" and impossible):
            return Condition(FITS_ACCELERATOR, each["status"], each["reason"], each["message"])
    return fit


def decide_hold(fit: Condition | None) -> Problem | None:
    """Why the pods stay as they are; None if they may follow the manifest."""
    if fit is None:
        return None
    if fit.reason == INVALID_TENSOR_PARALLEL_SIZE:
        return Problem(WORKLOAD_READY, fit.reason, f"{fit.message}; what runs stays")
    if fit.reason == BEING_READ:
        # A moment: it may be known then to keep any pod from starting.
        waits = "what the manifest asks for waits until the model's config.json is read"
        return Problem(WORKLOAD_READY, PROGRESSING, waits)
    return None
