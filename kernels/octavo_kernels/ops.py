"""The table of ops a model is built from; one table per device, chosen once at start.

Model code calls `ops.rms_norm(...)` and never asks which device it runs on. Each op's module holds
the Triton kernel, its launcher and the vectorised torch op side by side; both obey the contract
written here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from . import allocator

if TYPE_CHECKING:
    from torch import Tensor


class PrepareLinear(Protocol):
    def __call__(self, weight: Tensor) -> Tensor:
        """Layout that `linear` likes best for this weight `[out, in]`; called once, at load."""


class Linear(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x [tokens, in] @ weight.T + bias -> [tokens, out]`; weight from `prepare_linear`."""


class PagedAttention(Protocol):
    def __call__(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        query_starts: Tensor,
        context_lens: Tensor,
        *,
        max_query_len: int,
        max_context_len: int,
        scale: float,
        sliding_window: int = 0,
        out: Tensor | None = None,
    ) -> Tensor:
        """Causal attention of this step's tokens over their sequences' pages.

        query `[tokens, heads, head_size]`; caches `[blocks, kv_heads, block_size, head_size]`, of
        query's dtype; block_tables int32 `[seqs, max_blocks]`; query_starts int32 `[seqs + 1]`,
        cumulative; context_lens int32 `[seqs]`, tokens of the sequence including this step's, whose
        keys are in the cache already. Query token i of a sequence (counted from its start in this
        step) sits at position `context_len - query_len + i` and sees keys at positions
        `(position - sliding_window, position]` (`sliding_window` 0: all before it).
        `max_query_len` and `max_context_len` are upper bounds the host knows; launching never
        synchronises. Pages and table entries past `context_len`, and pages wholly before a
        sequence's window, may hold anything, NaN included. Sequences with no query token this step
        (`query_len` 0) are legal, as is a padded tail of them; output rows that belong to no
        sequence are left as they are.
        Accumulates in float32; returns `[tokens, heads, head_size]` (`out` if given).
        """


class CacheWrite(Protocol):
    def __call__(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
    ) -> None:
        """Store key/value `[tokens, kv_heads, head_size]` at int64 `slots [tokens]`.

        A slot is `block * block_size + offset`; -1 skips the token (padding). key and value may be
        strided views (slices of a fused qkv).
        """


class RmsNorm(Protocol):
    def __call__(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
    ) -> Tensor:
        """`x / rms(x) * weight` over the last dimension, in float32, returned in x's dtype.

        With `residual`: residual += x in place (in residual's dtype), and the norm is of that sum.
        Also used per head on `[tokens, heads, head_size]` views (Qwen3's q/k norm), whose last
        dimension is contiguous.
        """


class LayerNorm(Protocol):
    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        residual: Tensor | None = None,
    ) -> Tensor:
        """LayerNorm over the last dimension; `residual` as in `RmsNorm`."""


class Rotary(Protocol):
    def __call__(self, query: Tensor, key: Tensor, positions: Tensor, cos_sin: Tensor) -> None:
        """Rotate query `[tokens, heads, d]` and key `[tokens, kv_heads, d]` in place, halves style.

        cos_sin float32 `[max_positions, rotary_size]`: cos in the first half, sin in the second;
        dimensions past rotary_size pass through. positions int64 `[tokens]`. Views may be strided.
        """


class Activation(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """silu_mul: `[tokens, 2 * n] -> [tokens, n]`, silu(first half) * second half.

        gelu: the tanh form, same shape.
        """


class Sample(Protocol):
    def __call__(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        seeds: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """Draw one id per row -> int64 `[rows]`.

        logits float32 `[rows, vocab]` (may be overwritten); temperature, top_p, min_p float32
        `[rows]`; top_k int32 `[rows]` (<= 0: off); seeds and positions int64 `[rows]`. Temperature
        0 is argmax (lowest id wins ties). Otherwise Gumbel-max over logits / temperature after
        top-k, then top-p (the smallest set of best tokens whose mass reaches top_p; the token that
        crosses is kept), then min_p (relative to the best). Ids of equal logits stand or fall
        together, so a set can be larger than k. Noise is a stateless hash of (seed, position, id),
        the same on every device: `sampling.gumbel_noise`. A row never gets an id whose logit is
        -inf.
        """


@dataclass(frozen=True, slots=True)
class Ops:
    """One device's implementation of every op."""

    name: str
    prepare_linear: PrepareLinear
    linear: Linear
    paged_attention: PagedAttention
    cache_write: CacheWrite
    rms_norm: RmsNorm
    layer_norm: LayerNorm
    rotary: Rotary
    silu_mul: Activation
    gelu: Activation
    sample: Sample


def select_ops(device: str) -> Ops:
    """Table for "cuda" (Triton) or "cpu" (vectorised torch).

    "cpu" also tells the C library to keep freed memory (`allocator`). With TRITON_INTERPRET=1 and
    OCTAVO_OPS=triton the Triton table also runs on CPU tensors, slowly. Raises ValueError for
    another device, RuntimeError where triton is needed and not there.
    """
    if device == "cuda" or (device == "cpu" and os.environ.get("OCTAVO_OPS") == "triton"):
        return _triton_ops(interpreted=device == "cpu")
    if device != "cpu":
        raise ValueError(f'no ops for device "{device}": choose "cuda" or "cpu"')
    allocator.keep_freed_memory()
    return _torch_ops()


def _torch_ops() -> Ops:
    from . import (
        activation,
        cache_write,
        layer_norm,
        linear,
        paged_attention,
        rms_norm,
        rotary,
        sampling,
    )

    return Ops(
        name="torch",
        prepare_linear=linear.prepare_linear_torch,
        linear=linear.linear_torch,
        paged_attention=paged_attention.paged_attention_torch,
        cache_write=cache_write.cache_write_torch,
        rms_norm=rms_norm.rms_norm_torch,
        layer_norm=layer_norm.layer_norm_torch,
        rotary=rotary.rotary_torch,
        silu_mul=activation.silu_mul_torch,
        gelu=activation.gelu_torch,
        sample=sampling.sample_torch,
    )


def _triton_ops(*, interpreted: bool) -> Ops:
    from . import (
        activation,
        cache_write,
        language,
        layer_norm,
        linear,
        paged_attention,
        rms_norm,
        rotary,
        sampling,
    )

    if not language.HAS_TRITON:
        raise RuntimeError("the Triton ops need the package triton, which is not installed")
    if interpreted and not language.INTERPRETED:
        raise RuntimeError("OCTAVO_OPS=triton on CPU needs TRITON_INTERPRET=1 set from the start")
    return Ops(
        name="triton",
        prepare_linear=linear.prepare_linear_torch if interpreted else linear.prepare_linear_cuda,
        linear=linear.linear_torch if interpreted else linear.linear_cuda,
        paged_attention=paged_attention.paged_attention_triton,
        cache_write=cache_write.cache_write_triton,
        rms_norm=rms_norm.rms_norm_triton,
        layer_norm=layer_norm.layer_norm_triton,
        rotary=rotary.rotary_triton,
        silu_mul=activation.silu_mul_triton,
        gelu=activation.gelu_triton,
        sample=sampling.sample_triton,
    )
