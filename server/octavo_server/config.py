"""The settings of one engine, as the command line, the offline entry and the tests give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
BLOCK_SIZES = (16, 32, 64, 128)
"""Tokens of a page that the command line takes: those of a manifest's blockSize."""

LoadFormat = Literal["auto", "safetensors", "gguf", "dummy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Names and meanings are vLLM's where it has the flag; None means "chosen from the model or
    device".

    `max_model_len` -1 takes the longest context that fits the KV cache. `device` "auto" is the GPU
    where torch sees one. `kv_cache_memory_bytes` None is 1 GiB on CPU, and what
    `gpu_memory_utilization` leaves on a GPU. `enforce_eager` does without CUDA graphs.
    `collective_timeout` is the seconds after which a step of several ranks that does not end has
    failed; None: 60 on GPUs, 600 on CPUs. `async_scheduling` launches a step before the last one's
    tokens are known; None: on a GPU.
    """

    model: str
    tokenizer: str | None = None
    revision: str | None = None
    load_format: LoadFormat = "auto"
    dtype: Dtype = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tensor_parallel_size: int = 1
    collective_timeout: float | None = None
    max_model_len: int | None = None
    block_size: int = 16
    max_num_seqs: int = 512
    max_num_batched_tokens: int | None = None
    enable_prefix_caching: bool = True
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    generation_config: str = "auto"
    download_dir: str | None = None
    trust_remote_code: bool = False
    enforce_eager: bool = False
    async_scheduling: bool | None = None
    seed: int = 0
