"""One rank of a group on the CPU, and what it computes of every model of a folder.

As a program: `python -m tests.server.distributed.rank_process RANK SIZE MODELS RENDEZVOUS`; writes
`MODELS/result-SIZE-RANK.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from tests.server.models.step import Rows
from torch import Tensor

from octavo_kernels.gumbel import gumbel_noise
from octavo_kernels.ops import select_ops
from octavo_server.config import EngineConfig
from octavo_server.distributed.group import Group
from octavo_server.distributed.vocabulary import best, gather_logits, winners
from octavo_server.loading.describe import read_model_config
from octavo_server.loading.load import load_model
from octavo_server.loading.source import resolve_source
from octavo_server.models.causal_lm import Batch, CausalLM

LENGTHS = (19, 5, 33)
DECODE_STEPS = 8
TEMPERATURE = 0.8
_TIMEOUT_SECONDS = 60.0


class Seen:
    """A rank's model that gives whole logits, and keeps its own."""

    def __init__(self, model: CausalLM, group: Group, vocab_size: int) -> None:
        self.config, self._model, self._group = model.config, model, group
        self._vocab_size = vocab_size
        self.own = torch.empty(0)

    def forward(self, batch: Batch) -> Tensor:
        self.residual = self._model.forward(batch)
        return self.residual

    def logits(self, residual: Tensor) -> Tensor:
        self.own = self._model.logits(residual)
        return gather_logits(self._group, self.own, self._vocab_size)


def run_all(models: Path, group: Group) -> dict[str, dict[str, Any]]:
    """Each model below `models` -> logits of prompts and answers, tokens, and what was held."""
    found = {}
    for folder in sorted(path for path in models.iterdir() if path.is_dir()):
        settings = EngineConfig(model=str(folder))
        source = resolve_source(settings, lambda _: None)
        config = read_model_config(source)
        if config.num_heads % group.size:
            continue
        model = load_model(
            source, config, settings, ops=select_ops("cpu"), device=torch.device("cpu"),
            dtype=torch.float32, progress=lambda _: None, group=group,
        )  # fmt: skip
        found[folder.name] = run(model, group, config.vocab_size)
    return found


def run(model: CausalLM, group: Group, vocab_size: int) -> dict[str, Any]:
    """Prompts in chunks, then greedy answers; at every step also what a temperature would draw."""
    seen = Seen(model, group, vocab_size)
    rows = Rows(seen, len(LENGTHS), max_blocks=8)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(0, vocab_size, (n,), generator=generator).tolist() for n in LENGTHS]
    logits: list[Tensor] = rows.step([prompts[0][:10], prompts[1], prompts[2][:1]])
    logits += rows.step([prompts[0][10:], [], prompts[2][1:]])
    tokens: list[list[int]] = []
    drawn: list[list[int]] = []
    chunks = [[7], [vocab_size - 1], [0]]
    for step in range(DECODE_STEPS):
        logits += rows.step(chunks)
        first_id = model.shard.first_id
        tokens.append(winners(group, best(seen.own, first_id)).tolist())
        drawn.append(winners(group, best(noisy(seen.own, first_id, step), first_id)).tolist())
        chunks = [[token] for token in tokens[-1]]
    return {
        "logits": torch.cat(logits), "tokens": tokens, "drawn": drawn, "residual": seen.residual,
        "own": seen.own.shape[1],
    }  # fmt: skip


def noisy(logits: Tensor, first_id: int, step: int) -> Tensor:
    """What a draw with temperature takes the best of; the noise is of ids in the whole
    vocabulary.
    """
    ids = torch.arange(first_id, first_id + logits.shape[1], dtype=torch.int32)
    seeds = torch.arange(len(logits))
    return logits / TEMPERATURE + gumbel_noise(seeds, torch.full_like(seeds, step), ids)


def main() -> None:
    # Late, as in an engine: one rank alone never imports torch.distributed.
    from octavo_server.distributed.torch_group import TorchGroup

    rank, size, models, rendezvous = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    group = TorchGroup(rank, size, rendezvous, torch.device("cpu"), _TIMEOUT_SECONDS)
    found = run_all(Path(models), group)
    torch.save(found, Path(models) / f"result-{size}-{rank}.pt")
    group.close()


if __name__ == "__main__":
    main()
