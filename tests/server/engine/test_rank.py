"""What a rank says of itself before it loads anything."""

from __future__ import annotations

import pytest
import torch

from octavo_server.config import EngineConfig
from octavo_server.engine.rank import describe_device

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("config", "threads", "line"),
    [
        (
            EngineConfig(model="m"),
            1,
            "no GPU: using the CPU, 1 thread, bfloat16, tensor parallel size 1",
        ),
        (
            EngineConfig(model="m", device="cpu", tensor_parallel_size=2),
            3,
            "using the CPU, 3 threads in each of 2 processes, bfloat16, tensor parallel size 2",
        ),
    ],
)
def test_the_line_about_the_device(
    monkeypatch: pytest.MonkeyPatch, config: EngineConfig, threads: int, line: str
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert describe_device(config, CPU, "bfloat16") == line


def test_the_name_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    config = EngineConfig(model="m", tensor_parallel_size=2)
    line = describe_device(config, torch.device("cuda", 0), "float16")
    assert line == "2 x NVIDIA H100 80GB HBM3, float16, tensor parallel size 2"
