"""One rank of a group, and what it computes of every model of a folder.

As a program: `python -m tests.server.distributed.rank_process RANK SIZE MODELS RENDEZVOUS DEVICE`;
writes `MODELS/result-SIZE-RANK.pt`. DEVICE is "cpu", or "cuda" for a GPU of each rank's own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tests.server.models.step import Rows
from torch import Tensor

from octavo_kernels.ops import SamplingRows, select_ops
from octavo_server.config import EngineConfig
from octavo_server.distributed.group import Group
from octavo_server.distributed.vocabulary import gather_logits
from octavo_server.loading.describe import read_model_config
from octavo_server.loading.load import load_model
from octavo_server.loading.source import resolve_source
from octavo_server.models.causal_lm import Batch, CausalLM

LENGTHS = (19, 5, 33)
DECODE_STEPS = 8
TEMPERATURE = 0.8
_TIMEOUT_SECONDS = 60.0


class Gathered:
    """A rank's model that gives whole logits, and keeps the last own ones."""

    def __init__(self, model: CausalLM, group: Group, vocab_size: int) -> None:
        self.config, self.shard = model.config, model.shard
        self._model, self._group, self._vocab_size = model, group, vocab_size
        self.residual = self.own = torch.empty(0)

    def forward(self, batch: Batch) -> Tensor:
        self.residual = self._model.forward(batch)
        return self.residual

    def logits(self, residual: Tensor) -> Tensor:
        self.own = self._model.logits(residual)
        return gather_logits(self._group, self.own, self._vocab_size)


def run_all(models: Path, group: Group, device: torch.device) -> dict[str, dict[str, Any]]:
    """Each model below `models` -> what `run` finds; in float32, or in bfloat16 if it says so."""
    found = {}
    for folder in sorted(path for path in models.iterdir() if path.is_dir()):
        settings = EngineConfig(model=str(folder))
        source = resolve_source(settings, lambda _: None)
        config = read_model_config(source)
        if config.num_heads % group.size:
            continue
        dtype = torch.bfloat16 if folder.name.endswith("bfloat16") else torch.float32
        model = load_model(
            source, config, settings, ops=select_ops(device.type), device=device, dtype=dtype,
            progress=lambda _: None, group=group,
        )  # fmt: skip
        rows = Rows(
            Gathered(model, group, config.vocab_size),  # type: ignore[arg-type]
            len(LENGTHS), dtype, str(device), max_blocks=8,
        )  # fmt: skip
        found[folder.name] = run(rows, group, config.vocab_size)
    return found


def run(rows: Rows, group: Group, vocab_size: int) -> dict[str, Any]:
    """Prompts in chunks, then greedy answers; at every step also what a temperature would draw."""
    model: Any = rows.model
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]
    logits: list[Tensor] = rows.step([prompts[0][:10], prompts[1], prompts[2][:1]])
    logits += rows.step([prompts[0][10:], [], prompts[2][1:]])
    tokens: list[list[int]] = []
    drawn: list[list[int]] = []
    chunks = [[7], [vocab_size - 1], [0]]
    for step in range(DECODE_STEPS):
        logits += rows.step(chunks)
        tokens.append(draw(model, group, 0.0, step))
        drawn.append(draw(model, group, TEMPERATURE, step))
        chunks = [[token] for token in tokens[-1]]
    return {
        "logits": torch.cat(logits), "tokens": tokens, "drawn": drawn,
        "residual": model.residual.cpu(), "own": model.own.shape[1],
    }  # fmt: skip


def draw(model: Any, group: Group, temperature: float, step: int) -> list[int]:
    """Tokens for the last logits, each rank comparing its slice's best; row i has seed i."""
    ops = select_ops(model.own.device.type)
    count, device = len(model.own), model.own.device
    rows = torch.arange(count, dtype=torch.int32, device=device)
    state = SamplingRows(
        temperature=torch.full((count,), temperature, device=device),
        top_k=torch.zeros(count, dtype=torch.int32, device=device),
        top_p=torch.ones(count, device=device), min_p=torch.zeros(count, device=device),
        seeds=torch.arange(count, device=device),
        last_tokens=torch.zeros(count, dtype=torch.int64, device=device),
    )  # fmt: skip
    positions = torch.full((count,), step, dtype=torch.int64, device=device)
    own = ops.best_of_slice(model.own, rows, positions, state, model.shard.first_id)
    found: list[int] = ops.best_of_all(
        group.all_gather(own[None]).view(group.size, -1), rows, state
    ).tolist()
    assert state.last_tokens.tolist() == found
    return found


def check_graph(group: Group, device: torch.device) -> None:
    """Collectives captured in a CUDA graph do on a replay what they do without one."""
    ones = torch.ones(4, 8, device=device)
    partial, residual, column = ones.bfloat16(), ones.clone(), ones[:, :1].clone()

    def collect() -> Tensor:
        group.add_sum_(residual, partial)
        group.all_reduce_(column)
        return group.all_gather(column)

    collect()  # connects the ranks, which cannot be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gathered = collect()
    total = sum(range(1, group.size + 1))
    for factor in (1, 3):
        mine = factor * (group.rank + 1)
        partial.fill_(mine)
        column.fill_(mine)
        residual.fill_(0.5)
        graph.replay()
        assert torch.equal(residual, ones * (0.5 + factor * total))
        assert torch.equal(gathered, ones[:, :1].expand(4, group.size) * factor * total)


def check_sums(group: Group, device: torch.device) -> None:
    """Sums of any size in any order, launch by launch and in a graph; all ranks' parts are known
    to each, so that the sum in float32, in the order of ranks, is too."""
    sizes = [2, 14, 1022, 4096, 131072, 131074, 99999, 1 << 20, (4 << 20) - 6, 6 << 20]
    order = torch.Generator().manual_seed(7)

    def part_of(rank: int, index: int, count: int, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator(device).manual_seed(index * 100 + rank)
        return torch.randn(count, generator=generator, device=device).to(dtype)

    def check(total: Tensor, index: int, count: int, dtype: torch.dtype, start: float) -> None:
        wanted = torch.zeros(count, device=device)
        for rank in range(group.size):
            wanted += part_of(rank, index, count, dtype)
        # NCCL rounds its sums of 16 bits.
        error = (total.float() - start - wanted).abs().max()
        assert error <= (4e-2 if dtype != torch.float32 else 1e-5), (index, count, dtype, error)

    captured: list[tuple[Tensor, int, int, torch.dtype]] = []
    graph = torch.cuda.CUDAGraph()
    kept = [
        (index, count, dtype, part_of(group.rank, index, count, dtype))
        for index in range(24)
        for count in [sizes[int(torch.randint(len(sizes), (), generator=order))]]
        for dtype in [(torch.bfloat16, torch.float16, torch.float32)[index % 3]]
    ]
    for index, count, dtype, part in kept:
        total = part.clone()
        group.all_reduce_(total)
        check(total, index, count, dtype, 0.0)
        residual = torch.full((count,), 0.5, device=device)
        group.add_sum_(residual, part.clone())
        check(residual, index, count, dtype, 0.5)
    residuals = [torch.empty(count, device=device) for _, count, _, _ in kept]
    with torch.cuda.graph(graph):
        for (index, count, dtype, part), residual in zip(kept, residuals, strict=True):
            residual.fill_(0.25)
            group.add_sum_(residual, part.clone())
            captured.append((residual, index, count, dtype))
    for _ in range(5):
        graph.replay()
    for residual, index, count, dtype in captured:
        check(residual, index, count, dtype, 0.25)


def main() -> None:
    # Late, as in an engine: one rank alone never imports torch.distributed.
    from octavo_server.distributed.torch_group import make_group

    rank, size = int(sys.argv[1]), int(sys.argv[2])
    models, rendezvous, kind = sys.argv[3:]
    torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    group = make_group(rank, size, rendezvous, device, _TIMEOUT_SECONDS)
    if kind == "cuda":
        check_graph(group, device)
        check_sums(group, device)
    found = run_all(Path(models), group, device)
    torch.save(found, Path(models) / f"result-{size}-{rank}.pt")
    group.close()


if __name__ == "__main__":
    main()
