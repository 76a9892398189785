"""Triton if it is installed, else stand-ins, so that every op's torch path imports without it.

Triton decides when it is first imported whether its kernels are compiled or interpreted:
set TRITON_INTERPRET=1 before importing anything from this package to interpret them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

try:
    import triton
    import triton.language as tl

    # Row counts and windows change between launches: a value of 1 or a multiple of 16 is no reason
    # to compile again. Names that a kernel does not have are ignored.
    def jit(fn: Callable[..., Any]) -> Any:
        names = inspect.signature(fn).parameters
        volatile = [
            name
            for name in (
                "seqs",
                "window",
                "seq_cap",
                "token_cap",
                "wanted",
                "min_keys",
                "min_rows",
                "key_page",
                "shared_wanted",
                "min_shared",
                "min_saved",
                "tile_seqs",
                "first_partial",
                "tiles",
                "chunks",
                "rank",
            )
            if name in names
        ]
        return triton.jit(fn, do_not_specialize=volatile)

    HAS_TRITON = True
    INTERPRETED = bool(triton.knobs.runtime.interpret)
except ModuleNotFoundError:  # CPU-only installations
    triton = None
    tl = None
    HAS_TRITON = False
    INTERPRETED = False

    def jit(fn: Callable[..., Any]) -> Any:
        return fn


if HAS_TRITON and not INTERPRETED:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
    from triton.language.extra.cuda.libdevice import fast_log2f as fast_log2  # lg2.approx
else:

    @jit
    def fast_log2(x: Any) -> Any:
        return tl.log2(x)

    @jit
    def gdc_wait() -> None:
        """Never reached: `PDL` is False wherever this stands in."""

    gdc_launch_dependents = gdc_wait


@functools.cache
def launch_options(device_index: int | None) -> dict[str, bool]:
    """Keyword arguments that make a kernel's launch overlap its predecessor's end.

    Programmatic dependent launch (CUDA guide, sm_90 on): the kernel may start before the one in
    front of it has ended, and waits for its writes with `gdc_wait`. PDL is the kernel's own
    tl.constexpr. None: not a CUDA device.

    NOTE: every program of a kernel launched so calls gdc_wait, also one that finds no work: the
    next kernel waits for this one only, and this one's end must mean that all before it ended.
    """
    if device_index is None or INTERPRETED:
        return {"PDL": False}
    import torch

    if torch.cuda.get_device_capability(device_index)[0] < 9:
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}


def _let_interpreter_loop() -> None:
    """Triton 3.6's interpreter turns a loop bound, an array of shape [1], into an int with int(),
    which NumPy 2.4 refuses."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch


if INTERPRETED:
    _let_interpreter_loop()


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled form of a kernel, described without tensors, for ahead-of-time compilation.

    signature maps each run-time argument to Triton's type name ("*bf16", "i32", "fp32", ...);
    constants holds the tl.constexpr arguments; divisible names the arguments that the launcher
    always passes as multiples of 16 (aligned pointers, row strides).
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...] = ()
    warps: int = 4
    stages: int = 3
    options: dict[str, Any] = field(default_factory=dict)


# torch dtype name -> Triton's, as written in a signature.
TRITON_NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
