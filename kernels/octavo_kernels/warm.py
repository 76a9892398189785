"""Compile ahead of time what a piece of code would launch, without a GPU.

`recording` puts a driver in place that names an architecture and launches nothing; Triton's own
launch path then works out signature, specialisation and options of every kernel, and what it would
have compiled is kept. `compile_all` compiles it by the same call with the same arguments, so the
keys are those of a GPU machine.

NOTE: imports triton, whose interpreter must be off.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triton import compile as triton_compile
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.compiler import ASTSource
from triton.runtime import driver
from triton.runtime.build import _build, platform_key
from triton.runtime.cache import get_cache_manager
from triton.runtime.jit import JITFunction

_WARP_SIZE = 32


@dataclass(slots=True)
class Recorded:
    """What was launched: each variant once. `launches` counts all."""

    target: GPUTarget
    variants: list[tuple[ASTSource, dict[str, Any]]] = field(default_factory=list)
    launches: int = 0

    def names(self) -> list[str]:
        """A line per variant: the kernel, its options, its arguments' types and constants."""
        return sorted(_described(source, options) for source, options in self.variants)


class _Driver:
    """As much of Triton's CudaDriver as a launch asks for."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


class _Launched:
    """Stands for a compiled kernel."""

    function = packed_metadata = None

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def launch_metadata(self, *arguments: Any) -> None:
        return None

    def run(self, *arguments: Any) -> None:
        self._recorded.launches += 1


@contextmanager
def recording(capability: int) -> Iterator[Recorded]:
    """Within, kernels are recorded instead of launched; arguments may be fake tensors.

    `capability` 90 is an H100's. For a process of its own: what it launches later, on a real
    device, is not affected, but no other thread may launch meanwhile.
    """
    target = GPUTarget("cuda", capability, _WARP_SIZE)
    recorded = Recorded(target)
    kernel = _Launched(recorded)
    touched: set[Any] = set()

    def record(
        function: Any, key: Any, signature: Any, device: Any, constants: Any, options: Any,
        attributes: Any, warmup: Any,
    ) -> _Launched:  # fmt: skip
        source = ASTSource(function, signature, constants, attributes)
        recorded.variants.append((source, dict(options.__dict__)))
        function.device_caches[device][0][key] = kernel
        touched.add(function)
        return kernel

    original, before = JITFunction._do_compile, driver._active
    JITFunction._do_compile = record
    driver.set_active(_Driver(target))
    try:
        yield recorded
    finally:
        JITFunction._do_compile = original
        driver._active = before
        for function in touched:
            function.device_caches.clear()


def compile_all(recorded: Recorded, processes: int, first: int = 0) -> list[str]:
    """Compile variants from `first` on into the installed cache; a line per one that failed.

    In processes, for the compiler holds the interpreter's lock most of the time: 40 variants of a
    llama took 24.7 s one after the other, 12.9 s in two processes, and no less in two threads.
    """
    tasks = range(first, len(recorded.variants))
    if processes <= 1:
        return [error for index in tasks if (error := _compile(recorded, index))]
    # Forked: sources hold functions, which cannot be pickled, and no child has to import torch.
    context = multiprocessing.get_context("fork")
    global _inherited
    _inherited = recorded
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        return [error for error in pool.map(_compile_inherited, tasks) if error]


_inherited: Recorded | None = None


def _compile_inherited(index: int) -> str:
    assert _inherited is not None
    return _compile(_inherited, index)


def _compile(recorded: Recorded, index: int) -> str:
    source, options = recorded.variants[index]
    try:
        built = triton_compile(source, target=recorded.target, options=options)
        keep_launcher(source, built.metadata)
    except Exception as error:  # one bad variant must not hide the others
        return f"{_described(source, options)}: {type(error).__name__}: {error}"[:400]
    return ""


def keep_launcher(source: ASTSource, metadata: Any) -> None:
    """The C module that passes a signature's arguments, built into the cache where it is missing.

    Triton builds it at the first launch, with a C compiler that a serving image need not have, and
    a third of a second each. Its key is its text (runtime/build.py); its file's name holds the
    Python version.
    """
    constants = dict(source.constants)
    text = nvidia.make_launcher(
        constants, dict(source.signature), getattr(metadata, "tensordesc_meta", None)
    )
    keep_module(text, "__triton_launcher")


def keep_module(text: str, name: str) -> None:
    key = hashlib.sha256((text + platform_key()).encode()).hexdigest()
    cache = get_cache_manager(key)
    file = f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if cache.get_file(file) is not None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.c")
        path.write_text(text)
        libraries = _link_folders(folder)
        built = _build(
            name, str(path), folder, libraries, nvidia.include_dirs, nvidia.libraries, []
        )
        cache.put(Path(built).read_bytes(), file, binary=True)


def keep_driver_module() -> None:
    """Triton's own module for talking to the driver, which every process with kernels loads."""
    keep_module(Path(nvidia.dirname, "driver.c").read_text(), "cuda_utils")


def _link_folders(folder: str) -> list[str]:
    """Where libcuda.so.1 is; on a machine without a driver, an empty one to link against."""
    try:
        return list(nvidia.library_dirs())
    except (AssertionError, OSError, subprocess.CalledProcessError):
        stand_in = Path(folder, "libcuda.so.1")
        compiler = os.environ.get("CC", "cc")
        command = [compiler, "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null"]
        subprocess.run([*command, "-o", str(stand_in)], check=True, capture_output=True)
        return [folder]


def _described(source: ASTSource, options: dict[str, Any]) -> str:
    names = source.fn.arg_names
    divisible = {path[0] for path, attributes in source.attrs.items() if attributes}
    values = []
    for index, name in enumerate(names):
        kind = source.signature[name]
        if kind == "constexpr":
            values.append(f"{name}={source.constants.get((index,))}")
        else:
            values.append(f"{name}:{kind}{'/16' if index in divisible else ''}")
    how = f"warps={options['num_warps']} stages={options['num_stages']}"
    return f"{source.name}[{how}{' pdl' if options['launch_pdl'] else ''}]({', '.join(values)})"


def cache_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
