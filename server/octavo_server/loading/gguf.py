"""A GGUF file's tensors: dequantised, under transformers' names, rows in transformers' order."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from octavo_server.errors import CorruptModel, UnsupportedModel
from octavo_server.loading.checkpoint import StoredTensor
from octavo_server.loading.damage import damage_in
from octavo_server.loading.gguf_file import GgufFile, GgufTensor
from octavo_server.model_config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LLAMA_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2_LAYER_NAMES = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
# Part of the config, not of the weights (see gguf_config).
_NOT_WEIGHTS = ("rope_freqs.weight",)


def stored_gguf_tensors(file: GgufFile, config: ModelConfig) -> list[StoredTensor]:
    """Every weight of the file; CorruptModel if one lies past the file's end."""
    with damage_in(str(file.path)):
        return _stored(file, config)


def _stored(file: GgufFile, config: ModelConfig) -> list[StoredTensor]:
    permuted = file.metadata.get("general.architecture") == "llama"
    found = []
    for tensor in file.tensors.values():
        if tensor.name in _NOT_WEIGHTS:
            continue
        name = _hf_name(tensor.name, config.family)
        heads = 0
        if permuted and ".self_attn.q_proj." in name:
            heads = config.num_heads
        elif permuted and ".self_attn.k_proj." in name:
            heads = config.num_kv_heads
        # GPT-2's own layout is [in, out]; the file's is [out, in].
        turned = (
            config.family == "gpt2" and tensor.name.startswith("blk.") and len(tensor.shape) == 2
        )
        shape = tensor.shape[::-1] if turned else tensor.shape
        packed = _packed(file, tensor)
        read = partial(_read, packed, tensor, heads, turned)
        found.append(StoredTensor(name, shape, packed.nbytes, read))
    return found


def _hf_name(name: str, family: str) -> str:
    """Names without a counterpart stay as they are, and are then reported as unexpected."""
    gpt2 = family == "gpt2"
    match = _LAYER.fullmatch(name)
    if match is None:
        stem, _, kind = name.rpartition(".")
        known = (_GPT2_NAMES if gpt2 else _LLAMA_NAMES).get(stem)
        return f"{known}.{kind}" if known else name
    layer, stem, kind = match.groups()
    known = (_GPT2_LAYER_NAMES if gpt2 else _LLAMA_LAYER_NAMES).get(stem)
    prefix = "transformer.h" if gpt2 else "model.layers"
    return f"{prefix}.{layer}.{known}.{kind}" if known else name


def _packed(file: GgufFile, tensor: GgufTensor) -> np.ndarray:
    """uint8 `[rows, bytes of a row]`, a view of the mapped file."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
    except (ValueError, KeyError):
        raise UnsupportedModel(
            f"tensor {tensor.name} in {file.path} has encoding {tensor.kind}, which is not known"
        ) from None
    *rows, columns = tensor.shape
    if columns % block:
        raise CorruptModel(f"tensor {tensor.name} in {file.path} has rows of {columns} elements")
    row_bytes = columns // block * block_bytes
    count = math.prod(rows) * row_bytes
    start = file.data_offset + tensor.offset
    if start + count > len(file.data):
        raise CorruptModel(
            f"{file.path} is incomplete: tensor {tensor.name} ends at byte {start + count}, "
            f"the file at {len(file.data)}"
        )
    return np.frombuffer(file.data, np.uint8, count, start).reshape(-1, row_bytes)


def _read(packed: np.ndarray, tensor: GgufTensor, heads: int, turned: bool) -> Tensor:
    import torch
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(tensor.kind)
    try:
        values = dequantize(packed, kind)
    except NotImplementedError:
        raise UnsupportedModel(
            f"tensor {tensor.name} has encoding {kind.name}, which cannot be dequantised"
        ) from None
    values = values.reshape(tensor.shape)
    if heads:
        values = _halves(values, heads)
    if not values.flags.writeable:  # a view of the file: torch warns about read-only arrays
        values = values.copy()
    found = torch.from_numpy(values)
    return found.T if turned else found


def _halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of q/k rows: pairs (2i, 2i + 1) back to halves (i, i + d / 2)."""
    rows = values.shape[0]
    paired = values.reshape(heads, rows // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(values.shape)
