"""`octavo plan`: its arithmetic against engines that were measured, and what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from octavo_server import gpu_plan
from octavo_server.engine import rank, sampler, scheduler
from octavo_server.errors import CorruptModel, InvalidSettings
from octavo_server.gpu_plan import EngineSettings, plan_gpu, smallest_that_fits
from octavo_server.model_config import parse_config
from octavo_server.models import causal_lm
from octavo_server.plan_command import command
from tests.server.models.published_configs import GPT2, LLAMA
from tests.server.tiny_models import make_tiny

_GIB = 1 << 30
_LLAMA_8B = parse_config(
    LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128}
    | {"tie_word_embeddings": False, "max_position_embeddings": 8192}
)
_LLAMA_70B = replace(
    _LLAMA_8B, hidden_size=8192, intermediate_size=28672, num_layers=80, num_heads=64,
    layer_windows=(0,) * 80,
)  # fmt: skip
_H100 = EngineSettings(dtype="bfloat16", gpu_bytes=int(79.2 * _GIB), utilization=0.9)


@pytest.mark.parametrize(
    ("config", "settings", "blocks"),
    [
        # Start-up lines in benchmarks/results/gpu-h100.json.
        (_LLAMA_8B, _H100, 27_935),
        (parse_config(GPT2), replace(_H100, utilization=0.7, dtype="float16"), 19_307),
    ],
)
def test_blocks_are_those_of_measured_engines(
    config: Any, settings: EngineSettings, blocks: int
) -> None:
    cache = plan_gpu(config, settings).cache
    assert cache is not None
    assert cache.num_blocks == pytest.approx(blocks, rel=0.03)


def test_what_it_takes_from_the_engine_is_the_engines() -> None:
    assert rank.STEP_TOKENS["cuda"] == gpu_plan.STEP_TOKENS
    assert gpu_plan.MLP_TOKENS == causal_lm.MLP_TOKENS
    assert gpu_plan.EXTRA_ROWS == sampler.EXTRA_ROWS
    assert gpu_plan.COUNT_SLOTS == scheduler.COUNT_SLOTS


def test_a_model_too_large_for_one_gpu_fits_two() -> None:
    alone, pair = plan_gpu(_LLAMA_70B, _H100), plan_gpu(_LLAMA_70B, _H100, 2)
    assert alone.cache is None
    assert alone.left < 0
    assert re.search(r"take \d+\.\d\d GiB, more than the budget of \d+\.\d\d GiB$", alone.refusal)
    assert pair.cache is not None
    assert pair.weights == pytest.approx(alone.weights / 2, rel=0.001)
    assert pair.left - pair.cache.cache_bytes < pair.cache.bytes_per_block
    assert smallest_that_fits(_LLAMA_70B, _H100) == 2
    assert smallest_that_fits(_LLAMA_70B, replace(_H100, gpu_bytes=_GIB)) is None


def test_a_context_that_does_not_fit_names_the_one_that_does() -> None:
    long = replace(_LLAMA_70B, max_position=131072)
    plan = plan_gpu(long, _H100, 2)
    assert plan.cache is None
    assert "the longest context that fits is" in plan.refusal
    # Of flags, only those of this command.
    assert plan.refusal.endswith("raise --gpu-memory-utilization, or take more or larger GPUs")
    assert "kv-cache-memory" not in plan.refusal
    assert plan_gpu(long, replace(_H100, max_model_len=-1), 2).cache is not None
    assert smallest_that_fits(long, _H100) == 4


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(InvalidSettings, match="sizes that work: 1, 2, 4"):
        plan_gpu(_LLAMA_8B, _H100, 3)
    for utilization in (0.0, 1.5):
        with pytest.raises(InvalidSettings, match="--gpu-memory-utilization"):
            plan_gpu(_LLAMA_8B, replace(_H100, utilization=utilization))


def said(folder: Path, *flags: str, code: int = 0) -> str:
    result = CliRunner().invoke(command, [str(folder), *flags])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "llama2"])
def test_the_command_compares_headers_with_the_config(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / "model")
    assert "all weights that the config describes" in said(folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    mask = "transformer.h.0.attn.bias" if family == "gpt2" else "model.rotary_emb.inv_freq"
    save_file(weights | {mask: torch.ones(8)}, path)
    assert "all weights that the config describes" in said(folder)
    save_file(dict(sorted(weights.items())[1:]), path)
    assert "weights where the config describes" in said(folder)
    path.write_bytes(path.read_bytes()[:20])
    result = CliRunner().invoke(command, [str(folder)])
    assert isinstance(result.exception, CorruptModel)
    path.unlink()
    assert "stored" not in said(folder)  # the config is enough


def test_the_command_says_whether_it_fits(tmp_path: Path) -> None:
    folder = make_tiny("llama2", tmp_path / "model")
    fits = said(folder, "--gpu-memory", "2GiB", "--tensor-parallel-size", "2")
    assert "each of 2 GPUs" in fits
    assert "fits: " in fits
    assert "that fits: 1" in fits
    tight = said(folder, "--gpu-memory", "600MiB", code=1)
    assert "does not fit: the weights" in tight
    assert "no --tensor-parallel-size is enough" in tight


def test_the_command_reads_no_weights_and_needs_no_torch(tmp_path: Path) -> None:
    folder = make_tiny("llama2", tmp_path / "model")
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; "
        "from octavo_server.cli import main; main(sys.argv[1:])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, "plan", str(folder), "--tensor-parallel-size", "3"],
        capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.startswith("error: --tensor-parallel-size 3 does not divide")
    assert "sizes that work: 1, 2, 4" in ran.stderr
