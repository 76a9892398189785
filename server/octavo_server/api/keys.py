"""A server's API keys: from flags, files and the environment, and how a request's is compared."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from octavo_server.errors import InvalidSettings

VARIABLE = "OCTAVO_API_KEY"
_KEY = re.compile(r"[\x21-\x7e]+")  # what an Authorization header carries unharmed


def read_keys(
    given: Sequence[str], files: Sequence[str], variable: str | None = None
) -> tuple[str, ...]:
    """All keys, each once. A file and the variable hold one a line.

    Raises `InvalidSettings` for a source without any, since a server that is thought to have a key
    must not be open, and for what is no key. No message holds one.
    """
    keys: list[str] = []
    for key in given:
        keys += _keys_of("--api-key", [key])
    for name in files:
        keys += _keys_of(f"--api-key-file {name}", _read(name).splitlines())
    if variable is not None:
        keys += _keys_of(f"${VARIABLE}", variable.splitlines())
    return tuple(dict.fromkeys(keys))


class KeyRing:
    """Says which of some keys a request has."""

    def __init__(self, keys: Iterable[str]) -> None:
        # Digests are of one length: a comparison's time tells nothing of a key's.
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def find(self, authorization: bytes) -> int | None:
        """The number of the key in an Authorization header; None: it holds none of ours.

        NOTE: all are compared, each in constant time.
        """
        scheme, _, key = authorization.partition(b" ")
        digest = _digest(key.strip())
        found = [hmac.compare_digest(digest, each) for each in self._digests]
        return found.index(True) if any(found) and scheme.lower() == b"bearer" else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _read(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidSettings(f"--api-key-file {name}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidSettings(f"--api-key-file {name}: not a text file") from error


def _keys_of(source: str, lines: Iterable[str]) -> list[str]:
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise InvalidSettings(
            f"{source} holds no key: leave it out for a server that asks for none"
        )
    if not all(map(_KEY.fullmatch, keys)):
        raise InvalidSettings(f"{source}: a key is visible ASCII characters without spaces")
    return keys
