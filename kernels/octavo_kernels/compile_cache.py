"""Where compiled kernels are kept, so that a start finds them instead of compiling.

Triton's own cache writes absolute paths into its groups and makes a folder for every look-up: moved
to another place, or mounted read-only, it never hits. This one looks for the parts beside the group
and writes only when it has something to write. Keys stay Triton's (3.6, runtime/cache.py): its own
sources, the kernel's source with all it calls, signature and specialisation, options, `ptxas
--version` with the architecture, environment. No path and no device is among them.

NOTE: imports triton; import it where there is one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.cache import FileCacheManager, triton_key

SHIPPED = "OCTAVO_KERNELS"
"""Environment variable: a folder made by `octavo compile-kernels`; it may be read-only."""

_shipped: list[Path] = []

logger = logging.getLogger(__name__)


def default_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """TRITON_CACHE_DIR, else octavo/triton under XDG_CACHE_HOME, else under ~/.cache."""
    if stated := environment.get("TRITON_CACHE_DIR"):
        return Path(stated)
    base = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "octavo" / "triton"


def install(folder: Path | None = None, shipped: Path | None = None) -> Path:
    """Make Triton use this cache, in this process; returns the folder that it writes to.

    `folder` None is `default_folder()`; `shipped` None is what OCTAVO_KERNELS says. A folder that
    cannot be written to is read all the same, and new kernels go to a temporary one.
    """
    folder = (folder or default_folder()).absolute()
    stated = shipped or (Path(text) if (text := os.environ.get(SHIPPED)) else None)
    _shipped[:] = [stated.absolute()] if stated is not None else []
    if not _writable(folder):
        logger.warning("the kernel cache %s cannot be written to: new kernels are not kept", folder)
        _shipped.append(folder)
        folder = Path(tempfile.mkdtemp(prefix="octavo-triton-"))
    knobs.cache.dir = str(folder)
    knobs.cache.manager_class = PortableCache
    # The stages between source and machine code are 5/6 of the bytes, and every hit reads them.
    knobs.compilation.store_binary_only = True
    return folder


def fingerprint(capability: int) -> dict[str, str]:
    """What a key holds besides the kernel: where two machines differ, nothing built on one hits."""
    from triton._C.libtriton import get_cache_invalidating_env_vars

    environment = str(sorted(get_cache_invalidating_env_vars().items()))
    return {
        "triton": hashlib.sha256(triton_key().encode()).hexdigest()[:16],
        "backend": str(make_backend(GPUTarget("cuda", capability, 32)).hash()),
        "environment": environment,
    }


def prune(folder: Path) -> None:
    """Drop what no hit needs: each kernel's text before compilation, a third of the bytes."""
    for path in folder.glob("*/*.source"):
        path.unlink(missing_ok=True)


class PortableCache(FileCacheManager):  # type: ignore[misc]
    """One entry, looked up in the folder that is written to and then in the shipped ones."""

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        if override or dump:  # developer's switches of Triton, with folders of their own
            super().__init__(key, override, dump)
            self._folders = [self.cache_dir]
            return
        self.key = key
        self.cache_dir = os.path.join(knobs.cache.dir, key)
        self.lock_path = os.path.join(self.cache_dir, "lock")
        self._folders = [self.cache_dir, *(str(folder / key) for folder in _shipped)]

    def has_file(self, filename: str) -> bool:
        return self.get_file(filename) is not None

    def get_file(self, filename: str) -> str | None:
        paths = (os.path.join(folder, filename) for folder in self._folders)
        return next((path for path in paths if os.path.exists(path)), None)

    def get_group(self, filename: str) -> dict[str, str] | None:
        """Parts by name; None unless machine code and description are both there."""
        for folder in self._folders:
            with suppress(OSError, ValueError, KeyError, AttributeError):
                group: dict[str, Any] = json.loads(Path(folder, f"__grp__{filename}").read_text())
                paths = {name: os.path.join(folder, name) for name in group["child_paths"]}
                found = {name: path for name, path in paths.items() if os.path.exists(path)}
                if {os.path.splitext(name)[1] for name in found} >= {".json", ".cubin"}:
                    return found
        return None


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
