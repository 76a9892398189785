"""Whether an error is a lack of memory, of which a GPU has several names."""

from __future__ import annotations

import re

import torch

_WANTED = re.compile(r"Tried to allocate ([\d.]+ \w+)")
_SHORTAGE = re.compile(r"out of memory|allocate memory|_ALLOC_FAILED")


def shortage_in(error: BaseException) -> str | None:
    """What an error says of memory that was not there, in a few words; None: it says nothing.

    torch's own has a class; what the driver, cuBLAS and Triton report is a RuntimeError.
    """
    text = str(error)
    if wanted := _WANTED.search(text):
        return f"{wanted[1]} were wanted"
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _SHORTAGE.search(text):
        return text.strip().splitlines()[0][:200] if text.strip() else "no more was said"
    return None
