"""Damaged files fail in ways nobody can list; each reader has one border where they get a type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from octavo_server.errors import CorruptModel, OctavoError

_LONGEST = 200


@contextmanager
def damage_in(what: str) -> Iterator[None]:
    """Turn whatever reading `what` raises into CorruptModel with one line.

    Typed errors, lack of memory and torch's RuntimeErrors (its lack of memory is one) pass.
    """
    try:
        yield
    except (OctavoError, MemoryError):
        raise
    except BaseException as error:
        if not _is_damage(error):
            raise
        raise CorruptModel(f"{what} is damaged ({_one_line(error)})") from error


def _is_damage(error: BaseException) -> bool:
    if isinstance(error, RuntimeError):
        return isinstance(error, (RecursionError, NotImplementedError))
    # A panic of tokenizers' Rust code is a BaseException.
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _one_line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
