"""Runs steps on one device: differences in, sampled tokens out, the host never in the way.

Everything that touches the device is here, in the sampler and in the models; the scheduler never
sees a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from octavo_kernels.ops import AttentionBatch, Ops
from octavo_kernels.standing import make_counters
from octavo_kernels.step_inputs import HEADER, StepBuffers
from octavo_kernels.tiles import FEW_SEQUENCES, SHORT_CONTEXT
from octavo_server.distributed.group import SOLO, Group
from octavo_server.engine.arena import Arena
from octavo_server.engine.graphs import (
    MAX_TOKENS,
    SHARING_ROWS,
    SHORT_QUERY,
    Graphs,
    row_buckets,
    smallest,
    token_buckets,
)
from octavo_server.engine.head import Head
from octavo_server.engine.launched import Launched
from octavo_server.engine.rows import Rows, packet_size
from octavo_server.engine.sampler import Judgement, Sampler
from octavo_server.engine.shortage import shortage_in
from octavo_server.engine.step import Sampled, Step
from octavo_server.errors import StepOutOfMemory
from octavo_server.models.causal_lm import Batch, CausalLM

MIXED_SEQUENCES = 64
"""Graphs of steps with prompts provide for so many sequences at least: idle programs are cheap."""

_RING = 3
"""Host buffers in turn: one is written while those of two steps in flight may still be read."""


class Runner:
    """Owns the model, the KV cache and the rows of one rank.

    On every rank of a group: what it launches follows from the steps, so that all launch the same.
    """

    def __init__(
        self,
        model: CausalLM,
        ops: Ops,
        *,
        group: Group = SOLO,
        device: torch.device,
        dtype: torch.dtype,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
        max_step_tokens: int,
        arena: Arena | None = None,
        use_graphs: bool = False,
    ) -> None:
        """`arena` is None on a CPU, and `use_graphs` False."""
        config = model.config
        max_blocks = -(-max_model_len // block_size)
        self._model = model
        self._group = group
        self._ops = ops
        self._block_size = block_size
        self._heads = config.num_heads
        self._max_model_len = max_model_len
        self._on_gpu = device.type == "cuda"
        self._rows = Rows(max_num_seqs, max_model_len)
        self._sampler = Sampler(self._rows, ops, device, config.vocab_size)
        self._head = Head(model, group, self._sampler, ops)
        self._buffers = StepBuffers.allocate(max_step_tokens, max_num_seqs, device)
        # int32 [max_rows + 1, max_blocks]; the last row is for padding
        self._block_tables = torch.zeros(
            (max_num_seqs + 1, max_blocks), dtype=torch.int32, device=device
        )
        size = packet_size(max_num_seqs, max_step_tokens, max_blocks)
        self._turn = 0
        self._host_packets = [
            torch.zeros(size, dtype=torch.int32, pin_memory=self._on_gpu)
            for _ in range(_RING if self._on_gpu else 1)
        ]
        self._host_ids = [
            torch.zeros(max_num_seqs, dtype=torch.int64, pin_memory=self._on_gpu)
            for _ in range(_RING)
        ]
        # When the device was done with the buffers of each turn.
        self._done: list[torch.cuda.Event | None] = [None] * _RING
        self._packet = (
            torch.zeros(size, dtype=torch.int32, device=device)
            if self._on_gpu
            else self._host_packets[0]
        )
        # float32 [max_rows, hidden]: the residual of each sampled row, where graphs leave it
        self._last = torch.zeros((max_num_seqs, config.hidden_size), device=device)
        shape = (num_blocks, config.num_kv_heads, block_size, config.head_size)
        # Per layer (key, value). Not zeroed: pages are never read past what was written.
        self._kv_caches = [
            (
                torch.empty(shape, dtype=dtype, device=device),
                torch.empty(shape, dtype=dtype, device=device),
            )
            for _ in range(config.num_layers)
        ]
        self._row_buckets = row_buckets(max_num_seqs)
        self._token_buckets = token_buckets(max_step_tokens, config.layer_weights)
        if arena is not None:
            make_counters(device, max_num_seqs * config.num_kv_heads)
            arena.catch_up()
        self._stream = nullcontext if arena is None else arena.stream
        self._memory = nullcontext if arena is None else arena.memory
        self._graphs = _StepGraphs(self, arena) if use_graphs and arena is not None else None

    @property
    def has_graphs(self) -> bool:
        return self._graphs is not None

    @torch.inference_mode()
    def capture(self) -> int:
        """Capture the graphs that most steps need; the rest when it is first wanted. Returns how
        many.
        """
        if self._graphs is None:
            return 0
        wanted: list[tuple[Graphs, tuple[int, ...]]] = [
            (self._graphs.mixed, (tokens, self._sequence_cap(tokens, 1), min(tokens, SHORT_QUERY)))
            for tokens in reversed(self._token_buckets)
            if tokens <= MAX_TOKENS
        ]
        ends = [(rows, kind) for kind in self._head.kinds for rows in reversed(self._row_buckets)]
        wanted += [
            (self._graphs.whole, (rows, self._context_bound(rows, 0), shares, kind))
            for rows, kind in ends
            for shares in sorted({False, self._looks_for_shared(rows)})
        ]
        wanted += [(self._graphs.head, end) for end in ends]
        with self._stream():
            return sum(self._capture(graphs, *key) for graphs, key in wanted)

    def launch(self, step: Step) -> Launched:
        """Apply the difference, start the model and the draw, start the way back.

        Raises `StepOutOfMemory` where the device has too little left for the step.
        """
        try:
            with self._stream():
                return self._launch(step)
        except (RuntimeError, MemoryError) as error:
            if (shortage := shortage_in(error)) is None:
                raise
        # Out here the error is gone, and the step's tensors, which its traceback held, with it.
        raise StepOutOfMemory(
            f"the device ran out of memory at this request ({shortage}); the engine goes on: "
            "send it again later or make it shorter"
        )

    @torch.inference_mode()
    def _launch(self, step: Step) -> Launched:
        for row in step.freed_rows:
            self._sampler.free_row(row)
        sampled = [index for index, samples in enumerate(step.samples) if samples]
        rows = [step.rows[index] for index in sampled]
        self._turn = (self._turn + 1) % _RING
        if (done := self._done[self._turn]) is not None:
            done.synchronize()  # of use on ranks that nobody waits for
        host_packet = self._host_packets[self._turn % len(self._host_packets)]
        length = self._rows.write_packet(step, host_packet.numpy())
        for new in step.new_rows:
            self._sampler.take_row(new.row)
        more = self._sampler.asks_more(rows)
        by_slices = self._head.by_slices(rows)
        decodes = len(sampled) == step.num_tokens
        prompts = [] if decodes else self._prompts_to_judge(step)
        graphs = None if prompts else self._graphs

        def send_packet() -> None:
            if self._on_gpu:
                self._packet[:length].copy_(host_packet[:length], non_blocking=True)

        token_ids: Tensor | None = None
        judgements: list[Judgement] = []
        judged: dict[int, list[Judgement]] = {}
        bucket = smallest(self._row_buckets, len(sampled))
        if graphs is not None and decodes and bucket is not None and not more:
            context = self._context_bound(bucket, max(step.starts) + 1)
            key = (bucket, context, step.shares and self._looks_for_shared(bucket), by_slices)
            token_ids = self._replay(graphs.whole, *key, before=send_packet)
        if token_ids is None:
            if graphs is None or not self._replay_layers(graphs, step, decodes, send_packet):
                send_packet()
                with self._memory():
                    residual = self._run(step)
                    for index in prompts:
                        judged[index] = self._judge_prompt(step, residual, index)
                    chosen = self._buffers.sampled_tokens[: len(sampled)]
                    torch.index_select(residual, 0, chosen, out=self._last[: len(sampled)])
                    del residual
            if sampled and graphs is not None and bucket is not None and not more:
                token_ids = self._replay(graphs.head, bucket, by_slices)
            if sampled and token_ids is None:
                ends = [step.starts[index] + step.counts[index] for index in sampled]
                with self._memory():
                    token_ids, judgements = self._draw(rows, ends, more, by_slices)
        if token_ids is not None:
            token_ids = token_ids[: len(sampled)]
        return self._send_back(step, token_ids, sampled, judgements, judged)

    def wait(self, launched: Launched) -> Sampled:
        """The step's results, as soon as the device has come past it."""
        return launched.wait()

    def close(self) -> None:
        """No process runs beside this one."""

    # -- the parts of launch() --------------------------------------------------------------------

    def _replay_layers(
        self, graphs: _StepGraphs, step: Step, decodes: bool, send_packet: Callable[[], None]
    ) -> bool:
        """Inputs and layers of a step, sampled rows left in `_last`; False where no graph fits."""
        tokens, seqs = step.num_tokens, len(step.rows)
        if decodes:
            bucket = smallest(self._row_buckets, seqs)
            if bucket is None:
                return False
            context = self._context_bound(bucket, max(step.starts) + 1)
            return self._replay(graphs.decode, bucket, context, before=send_packet) is not None
        bucket = smallest(self._token_buckets, tokens)
        if bucket is None or seqs > min(bucket, self._row_buckets[-1]):
            return False
        query = SHORT_QUERY if max(step.counts) <= SHORT_QUERY else bucket
        key = (bucket, self._sequence_cap(bucket, seqs), min(bucket, query))
        return self._replay(graphs.mixed, *key, before=send_packet) is not None

    def _context_bound(self, rows: int, longest: int) -> int:
        """What a decode graph provides for: few rows are cut otherwise while they are short."""
        short = rows <= FEW_SEQUENCES and longest <= SHORT_CONTEXT
        return min(SHORT_CONTEXT, self._max_model_len) if short else self._max_model_len

    def _looks_for_shared(self, rows: int) -> bool:
        """Whether a decode graph of so many rows has a variant for pages in common: looking for
        them, though in vain, is a launch more a layer.
        """
        return rows >= SHARING_ROWS

    def _sequence_cap(self, tokens: int, seqs: int) -> int:
        """Sequences that a graph of so many tokens provides for: few as a rule, else all."""
        most = min(tokens, self._row_buckets[-1])
        return min(MIXED_SEQUENCES, most) if seqs <= MIXED_SEQUENCES else most

    def _replay(
        self, graphs: Graphs, *key: int, before: Callable[[], None] = lambda: None
    ) -> Tensor | None:
        """Replay a graph, captured first if it is new; `before` comes between. None if there is no
        memory for it: nothing has happened then but `before`.
        """
        if not graphs.has(*key):
            self._capture(graphs, *key)
        before()
        return graphs.replay(*key)

    def _capture(self, graphs: Graphs, *key: int) -> bool:
        # NOTE: an empty packet, for capturing runs the step once: all is padding then.
        self._packet[:HEADER].zero_()
        return graphs.capture(*key)

    def _draw(
        self, rows: list[int], ends: list[int], more: bool, by_slices: int
    ) -> tuple[Tensor, list[Judgement]]:
        """Tokens for the residuals in `_last`, without a graph."""
        if not more:
            return self._draw_last(len(rows), by_slices), []
        logits = self._head.logits(self._last[: len(rows)])
        return self._sampler.draw_extra(logits, *self._places(len(rows)), rows, ends)

    def _run(self, step: Step) -> Tensor:
        """Inputs and layers of a step of any shape: the residual of all its tokens."""
        tokens, seqs = step.num_tokens, len(step.rows)
        ones = [index for index, count in enumerate(step.counts) if count == 1]
        longest = max(start + count for start, count in zip(step.starts, step.counts, strict=True))
        batch = self._batch(
            tokens,
            seqs,
            num_decodes=ones[-1] + 1 if ones else 0,
            max_query_len=max(step.counts),
            max_context_len=longest,
            may_share=step.shares,
        )
        # Samples are padded as far as the graph that draws them reads.
        return self._layers(batch, smallest(self._row_buckets, seqs) or seqs, tokens)

    def _mixed(self, tokens: int, seqs: int, query: int) -> Tensor:
        """Inputs and layers of a step of up to so many tokens, sequences and tokens of one of
        them, from the packet alone; leaves the residual of its samples in `_last`.
        """
        batch = self._batch(
            tokens,
            seqs,
            num_decodes=seqs,
            max_query_len=query,
            max_context_len=self._max_model_len,
        )
        residual = self._layers(batch, seqs, tokens)
        chosen = self._buffers.sampled_tokens[:seqs]
        return torch.index_select(residual, 0, chosen, out=self._last[:seqs])

    def _decode(self, rows: int, context: int) -> Tensor:
        """As `_mixed`, for rows of one token each, which are all sampled, in order."""
        return self._last[:rows].copy_(self._decode_layers(rows, context))

    def _decode_and_draw(self, rows: int, context: int, shares: int, by_slices: int) -> Tensor:
        residual = self._decode_layers(rows, context, shares)
        return self._head.draw(residual, *self._places(rows), by_slices)

    def _decode_layers(self, rows: int, context: int, shares: int = True) -> Tensor:
        batch = self._batch(
            rows,
            rows,
            num_decodes=rows,
            max_query_len=1,
            max_context_len=context,
            may_share=bool(shares),
        )
        return self._layers(batch, rows, rows)

    def _draw_last(self, rows: int, by_slices: int) -> Tensor:
        """Tokens drawn for the residuals in `_last`."""
        return self._head.draw(self._last[:rows], *self._places(rows), by_slices)

    def _places(self, rows: int) -> tuple[Tensor, Tensor]:
        return self._buffers.sampled_rows[:rows], self._buffers.sampled_positions[:rows]

    def _batch(
        self,
        tokens: int,
        seqs: int,
        *,
        num_decodes: int,
        max_query_len: int,
        max_context_len: int,
        may_share: bool = True,
    ) -> Batch:
        buffers = self._buffers
        return Batch(
            token_ids=buffers.token_ids[:tokens],
            positions=buffers.positions[:tokens],
            slots=buffers.slots[:tokens],
            attention=AttentionBatch(
                block_tables=self._block_tables,
                rows=buffers.rows[:seqs],
                query_starts=buffers.query_starts[: seqs + 1],
                context_lens=buffers.context_lens[:seqs],
                num_decodes=num_decodes,
                max_query_len=max_query_len,
                max_context_len=max_context_len,
                may_share=may_share,
            ),
            kv_caches=self._kv_caches,
        )

    def _layers(self, batch: Batch, seq_cap: int, token_cap: int) -> Tensor:
        """The residual of a batch whose inputs are made here, from the packet."""
        self._ops.step_inputs(
            self._packet,
            self._buffers,
            self._block_tables,
            self._sampler.state,
            block_size=self._block_size,
            seq_cap=seq_cap,
            token_cap=token_cap,
        )
        batch.attention = self._ops.plan_attention(
            batch.attention, heads=self._heads, key_cache=self._kv_caches[0][0]
        )
        return self._model.forward(batch)

    def _prompts_to_judge(self, step: Step) -> list[int]:
        """Sequences of the step whose prompt tokens are to be judged, as indices."""
        return [
            index
            for index, row in enumerate(step.rows)
            if self._rows.params[row].prompt_logprobs is not None
            and step.starts[index] < self._rows.num_prompt_tokens[row] - 1
        ]

    def _judge_prompt(self, step: Step, residual: Tensor, index: int) -> list[Judgement]:
        first = sum(step.counts[:index])
        rows = residual[first : first + step.counts[index]]
        return self._sampler.judge_prompt(
            self._head.logits, rows, step.rows[index], step.starts[index]
        )

    def _send_back(
        self,
        step: Step,
        token_ids: Tensor | None,
        sampled: list[int],
        judgements: list[Judgement],
        prompts: dict[int, list[Judgement]],
    ) -> Launched:
        if not self._on_gpu:
            return Launched(step, token_ids, sampled, judgements, prompts, None)
        host_ids = None
        if token_ids is not None:
            host_ids = self._host_ids[self._turn][: len(sampled)]
            host_ids.copy_(token_ids, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        self._done[self._turn] = done
        return Launched(step, host_ids, sampled, judgements, prompts, done)


class _StepGraphs:
    """The graphs of one runner."""

    def __init__(self, runner: Runner, arena: Arena) -> None:
        # (rows, context, shares, by slices): plain decode
        # Where one rank has no memory for a graph, no other may replay its own.
        needed = runner._group.size > 1
        self.whole = Graphs(runner._decode_and_draw, arena, needed)
        self.decode = Graphs(runner._decode, arena, needed)  # (rows, context): its layers
        # (tokens, sequences, longest query): layers of any step
        self.mixed = Graphs(runner._mixed, arena, needed)
        # (rows, by slices): logits and draw behind layers
        self.head = Graphs(runner._draw_last, arena, needed)
