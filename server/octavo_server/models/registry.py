"""Which class serves a family."""

from __future__ import annotations

import torch

from octavo_kernels.ops import Ops
from octavo_server.distributed.group import SOLO, Group
from octavo_server.model_config import ModelConfig
from octavo_server.models.causal_lm import CausalLM
from octavo_server.models.gpt2 import GPT2
from octavo_server.models.llama import Llama
from octavo_server.models.slab import Slab, slab_bytes

_CLASSES: dict[str, type[GPT2] | type[Llama]] = {"gpt2": GPT2, "llama": Llama}


def build_model(
    config: ModelConfig,
    ops: Ops,
    dtype: torch.dtype,
    device: torch.device,
    *,
    max_len: int | None = None,
    group: Group = SOLO,
) -> CausalLM:
    """This rank's part of the model with memory for its weights, which are not filled yet.

    config is the whole model's. Raises InvalidSettings where the group's size does not divide it.
    """
    # On a CPU `prepare` replaces weights one by one: memory of each comes back.
    slab = None
    if device.type == "cuda":
        name = str(dtype).removeprefix("torch.")
        slab = Slab(slab_bytes(config, name, group.size), device)
    return _CLASSES[config.family](
        config, ops, dtype, device, max_len=max_len, group=group, slab=slab
    )
