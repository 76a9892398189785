"""The table of ops a model is built from; one table per device, chosen once at start.

Model code calls `ops.rms_norm(...)` and never asks which device it runs on. Each op's module holds
the Triton kernel, its launcher and the vectorised torch op side by side; both obey the contract
written here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from . import allocator

if TYPE_CHECKING:
    from torch import Tensor

    from .step_inputs import StepBuffers

ActivationName = Literal["silu_mul", "gelu"]


class PrepareLinear(Protocol):
    def __call__(self, weight: Tensor) -> Tensor:
        """Layout that `linear` likes best for this weight `[out, in]`; called once, at load."""


class Linear(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x [tokens, in] @ weight.T + bias -> [tokens, out]`; weight from `prepare_linear`."""


class NormLinear(Protocol):
    def __call__(
        self,
        residual: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor | None,
        eps: float,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: ActivationName | None = None,
    ) -> Tensor:
        """`activation(linear(norm(residual)))`, `[tokens, out]` in weight's dtype.

        residual float32 `[tokens, in]`, read only; the norm is `rms_norm` without a norm_bias and
        `layer_norm` with one, rounded to the weight's dtype before the product where that is a
        launch of its own. Under "silu_mul" weight's rows are the gate's, then the up's, and the
        result is `[tokens, out / 2]`. The product may be activated before it is rounded (few rows
        on a GPU). weight from `prepare_linear`.
        """


class LinearAdd(Protocol):
    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> None:
        """`residual += linear(x)`, in place; x `[tokens, in]`, residual float32 `[tokens, out]`.

        The product is added in float32 (Triton) or rounded to x's dtype first (CPU).
        """


class StepInputs(Protocol):
    def __call__(
        self,
        packet: Tensor,
        buffers: StepBuffers,
        block_tables: Tensor,
        state: SamplingRows,
        *,
        block_size: int,
        seq_cap: int,
        token_cap: int,
    ) -> None:
        """Write a step's inputs, described in `step_inputs`, from the host's packet.

        packet int32; block_tables int32 `[max_rows + 1, max_blocks]` and `state` get the pages and
        parameters that the packet brings; the last row is for padding. Buffers are padded up to
        `seq_cap` sequences and samples and `token_cap` tokens.
        """


class SharedKeys(NamedTuple):
    """Keys that several sequences of a step share, as `attention_plan` cut them."""

    items: Tensor  # int32 [1 + most items, 8], see `shared_decode`
    members: Tensor  # int32 [seqs, 2], likewise
    partials: int  # bound of the (sequence, part) pairs


class AttentionBatch(NamedTuple):
    """How one step's tokens lie in their sequences' pages; tensors on the model's device.

    A CUDA graph is captured with upper bounds: everything that a replay may change is in the
    tensors, and the integers only bound grids and scratch.
    """

    block_tables: Tensor  # int32 [table_rows, max_blocks], persistent; a sequence reads one row
    rows: Tensor  # int32 [seqs]: each sequence's row of block_tables
    query_starts: Tensor  # int32 [seqs + 1], cumulative
    context_lens: Tensor  # int32 [seqs], tokens of the sequence including this step's
    num_decodes: int  # at most so many sequences, the first ones, have exactly one query token
    max_query_len: int  # bound; 1: the whole batch decodes, and token i belongs to sequence i
    max_context_len: int  # bound
    may_share: bool = True  # whether two sequences may have a page in common
    plan: Tensor | None = None  # int32 [slots, 8], see `attention_plan`; None: each layer cuts
    shared: SharedKeys | None = None  # with a plan only; None: none looked for


class PlanAttention(Protocol):
    def __call__(self, batch: AttentionBatch, *, heads: int, key_cache: Tensor) -> AttentionBatch:
        """batch with what `paged_attention` can compute once for all layers of a step.

        Called after `step_inputs`, on its stream or in its graph; heads are query's, key_cache is
        any layer's (only its shape and dtype count). The result may be used until the next
        `step_inputs`. Identity on CPU. A kernel that launches its successor early must not stand
        between it and attention without having waited itself.
        """


class PagedAttention(Protocol):
    def __call__(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        batch: AttentionBatch,
        *,
        scale: float,
        sliding_window: int = 0,
        out: Tensor | None = None,
    ) -> Tensor:
        """Causal attention of this step's tokens over their sequences' pages.

        query `[tokens, heads, head_size]`, a strided view of a fused qkv as a rule; caches
        `[blocks, kv_heads, block_size, head_size]`, of query's dtype, already holding this step's
        keys and values. Query token i of a sequence (counted from its start in this step) sits at
        position `context_len - query_len + i` and sees keys at positions
        `(position - sliding_window, position]` (`sliding_window` 0: all before it).
        Launching never synchronises. Sequences of one query token and longer ones are told apart
        on the device, by `query_starts`. Pages and table entries past `context_len`, and pages
        wholly before a sequence's window, may hold anything, NaN included. Sequences with no query
        token this step (`query_len` 0) are legal, as is a padded tail of them; output rows that
        belong to no sequence are left as they are.
        Accumulates in float32; returns contiguous `[tokens, heads, head_size]` (`out` if given).
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


class RotaryCache(Protocol):
    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        slots: Tensor,
        positions: Tensor,
        cos_sin: Tensor,
        query_norm: Tensor | None = None,
        key_norm: Tensor | None = None,
        eps: float = 0.0,
    ) -> None:
        """What lies between the qkv product and attention, in one pass over the tokens.

        `rms_norm` of each query and key head (Qwen3; where the norms are given), rounded to their
        dtype; `rotary` of both; then `cache_write`. query is overwritten in place; key is left
        undefined: only its page counts. Arguments as in `RmsNorm`, `Rotary` and `CacheWrite`; the
        three are strided views of one qkv.
        """


class Embed(Protocol):
    def __call__(
        self, token_ids: Tensor, table: Tensor, positions: Tensor, position_table: Tensor | None
    ) -> Tensor:
        """The residual stream's start, float32 `[tokens, hidden]`.

        `table[token_ids]`, plus `position_table[positions]` where given (summed in float32).
        token_ids and positions int64 `[tokens]`, tables `[rows, hidden]`.
        """


class Activation(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """silu_mul: `[tokens, 2 * n] -> [tokens, n]`, silu(first half) * second half.

        gelu: the tanh form, same shape.
        """


class SamplingRows(NamedTuple):
    """What each engine row asks of the sampler, and its last token; `[max_rows + 1]` each."""

    temperature: Tensor  # float32; 0: greedy
    top_k: Tensor  # int32; <= 0: off
    top_p: Tensor  # float32
    min_p: Tensor  # float32
    seeds: Tensor  # int64
    last_tokens: Tensor  # int64, written: what the row's next step embeds


class Sample(Protocol):
    def __call__(
        self, logits: Tensor, rows: Tensor, positions: Tensor, state: SamplingRows
    ) -> Tensor:
        """Draw one id per row of logits -> int64 `[n]`, and leave it in `last_tokens[rows]` too.

        logits `[n, vocab]`, the model's dtype or float32, rows may be strided; rows int32 `[n]`:
        whose parameters hold; positions int64 or int32 `[n]`. Temperature
        0 is argmax (lowest id wins ties). Otherwise Gumbel-max over logits / temperature after
        top-k, then top-p (the smallest set of best tokens whose mass reaches top_p; the token that
        crosses is kept), then min_p (relative to the best). Ids of equal logits stand or fall
        together, so a set can be larger than k. Noise is a stateless hash of (seed, position, id),
        the same on every device: `sampling.gumbel_noise`. A row never gets an id whose logit is
        -inf. Rows may repeat (padding of a graph); whose token stays in last_tokens is then open.
        """


class BestOfSlice(Protocol):
    def __call__(
        self,
        logits: Tensor,
        rows: Tensor,
        positions: Tensor,
        state: SamplingRows,
        first_id: int,
    ) -> Tensor:
        """The first half of `Sample` on one of several ranks -> int64 `[n]` candidates.

        logits `[n, width]`, of the ids from `first_id` on (a multiple of 16), -inf where there is
        no such id; the rest as in `Sample`. Rows must have no filters (what those with filters get
        is open). The largest candidate of a row, over all ranks, is of the id that `Sample` draws.
        """


class BestOfAll(Protocol):
    def __call__(self, candidates: Tensor, rows: Tensor, state: SamplingRows) -> Tensor:
        """The second half: int64 `[ranks, n]` -> int64 `[n]` ids, left in `last_tokens[rows]`."""


@dataclass(frozen=True, slots=True)
class Ops:
    """One device's implementation of every op."""

    name: str
    step_inputs: StepInputs
    prepare_linear: PrepareLinear
    linear: Linear
    plan_attention: PlanAttention
    paged_attention: PagedAttention
    norm_linear: NormLinear
    linear_add: LinearAdd
    rotary_cache: RotaryCache
    embed: Embed
    cache_write: CacheWrite
    rms_norm: RmsNorm
    layer_norm: LayerNorm
    rotary: Rotary
    silu_mul: Activation
    gelu: Activation
    sample: Sample
    best_of_slice: BestOfSlice
    best_of_all: BestOfAll


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
        attention_plan,
        cache_write,
        embed,
        layer_norm,
        linear,
        linear_add,
        norm_linear,
        paged_attention,
        rms_norm,
        rotary,
        rotary_cache,
        sampling,
        slices,
        step_inputs,
    )

    return Ops(
        name="torch",
        step_inputs=step_inputs.step_inputs_torch,
        prepare_linear=linear.prepare_linear_torch,
        linear=linear.linear_torch,
        norm_linear=norm_linear.norm_linear_torch,
        linear_add=linear_add.linear_add_torch,
        rotary_cache=rotary_cache.rotary_cache_torch,
        embed=embed.embed_torch,
        plan_attention=attention_plan.plan_attention_torch,
        paged_attention=paged_attention.paged_attention_torch,
        cache_write=cache_write.cache_write_torch,
        rms_norm=rms_norm.rms_norm_torch,
        layer_norm=layer_norm.layer_norm_torch,
        rotary=rotary.rotary_torch,
        silu_mul=activation.silu_mul_torch,
        gelu=activation.gelu_torch,
        sample=sampling.sample_torch,
        best_of_slice=slices.best_of_slice_torch,
        best_of_all=slices.best_of_all_torch,
    )


def _triton_ops(*, interpreted: bool) -> Ops:
    from . import (
        activation,
        attention_plan,
        cache_write,
        embed,
        language,
        layer_norm,
        linear,
        linear_add,
        norm_linear,
        paged_attention,
        rms_norm,
        rotary,
        rotary_cache,
        sampling,
        slices,
        step_inputs,
    )

    if not language.HAS_TRITON:
        raise RuntimeError("the Triton ops need the package triton, which is not installed")
    if interpreted and not language.INTERPRETED:
        raise RuntimeError("OCTAVO_OPS=triton on CPU needs TRITON_INTERPRET=1 set from the start")
    return Ops(
        name="triton",
        step_inputs=step_inputs.step_inputs_triton,
        prepare_linear=linear.prepare_linear_torch if interpreted else linear.prepare_linear_cuda,
        linear=linear.linear_torch if interpreted else linear.linear_cuda,
        norm_linear=norm_linear.norm_linear_triton,
        linear_add=linear_add.linear_add_triton,
        rotary_cache=rotary_cache.rotary_cache_triton,
        embed=embed.embed_triton,
        plan_attention=attention_plan.plan_attention_triton,
        paged_attention=paged_attention.paged_attention_triton,
        cache_write=cache_write.cache_write_triton,
        rms_norm=rms_norm.rms_norm_triton,
        layer_norm=layer_norm.layer_norm_triton,
        rotary=rotary.rotary_triton,
        silu_mul=activation.silu_mul_triton,
        gelu=activation.gelu_triton,
        sample=sampling.sample_triton,
        best_of_slice=slices.best_of_slice_triton,
        best_of_all=slices.best_of_all_triton,
    )
