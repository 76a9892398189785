"""Whether a model fits, from facts alone."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.services import service
from tests.server.models.published_configs import LLAMA, MISTRAL

from octavo_operator.fit import Unread, decide_fit, read_stated
from octavo_server.model_config import ModelConfig, parse_config

H100, L4, T4 = 81559, 23034, 15360
SMALL, LARGE = parse_config(LLAMA), parse_config(MISTRAL)  # 1.2 and 7.2 billion weights


@pytest.mark.parametrize(
    ("engine", "model", "gpus", "status", "reason", "words"),
    [
        ({"device": "cpu"}, None, (), "True", "NoAccelerator", "CPUs"),
        ({}, None, (H100,), "Unknown", "BeingRead", "config.json"),
        ({}, Unread("GatedModel", "a token"), (H100,), "Unknown", "GatedModel", "a token"),
        ({}, Unread("HubUnreachable", "away"), (), "Unknown", "HubUnreachable", "away"),
        ({}, SMALL, (), "Unknown", "NoGpuMemoryLabels", "nvidia.com/gpu.memory"),
        ({}, SMALL, (L4,), "True", "Fits", "2.30 GiB of weights"),
        ({}, LARGE, (H100,), "True", "Fits", "13.49 GiB of weights"),
        ({}, LARGE, (T4, H100), "True", "Fits", "not on nodes whose GPUs have 15.00 GiB"),
        ({}, LARGE, (L4, H100), "True", "Fits", "79.65 GiB x 0.9"),
        ({}, LARGE, (T4,), "False", "DoesNotFit", "tensorParallelSize 2 is the smallest"),
        ({"tensorParallelSize": 2}, LARGE, (T4,), "True", "Fits", "each of 2 GPUs"),
        ({"dtype": "float32"}, LARGE, (L4,), "False", "DoesNotFit", "tensorParallelSize"),
        ({"gpuMemoryUtilization": 0.1}, LARGE, (L4,), "False", "DoesNotFit", "32 is the smallest"),
        ({}, LARGE, (1024,), "False", "DoesNotFit", "no tensorParallelSize is enough"),
        (
            {"tensorParallelSize": 3},
            LARGE,
            (H100,),
            "False",
            "InvalidTensorParallelSize",
            "these work: 1, 2, 4, 8, 16, 32",
        ),
        # Without labels too: no GPU makes it right.
        (
            {"tensorParallelSize": 5},
            SMALL,
            (),
            "False",
            "InvalidTensorParallelSize",
            "32 attention heads, 8 key/value heads",
        ),
        ({"maxModelLen": 16384}, LARGE, (T4,), "False", "DoesNotFit", "smallest"),
        ({"kvCacheMemory": "40Gi"}, LARGE, (H100,), "True", "Fits", "x 1"),
        (
            {"kvCacheMemory": "64Mi", "maxModelLen": 8192},
            LARGE,
            (H100,),
            "False",
            "DoesNotFit",
            "raise spec.engine.kvCacheMemory",
        ),
        ({"kvCacheMemory": "70Gi"}, LARGE, (H100,), "False", "DoesNotFit", "asks for 70.00 GiB"),
        (
            {"maxModelLen": 10_000_000},
            SMALL,
            (H100,),
            "False",
            "DoesNotFit",
            "spec.engine.maxModelLen 10000000 is more",
        ),
    ],
)
def test_it(
    engine: dict[str, Any],
    model: ModelConfig | Unread | None,
    gpus: tuple[int, ...],
    status: str,
    reason: str,
    words: str,
) -> None:
    found = decide_fit(service(engine=engine), model, gpus)
    assert (found.status, found.reason) == (status, reason), found.message
    assert words in found.message
    assert found.type == "FitsAccelerator"


def test_a_slice_of_a_gpu_is_not_judged_as_a_whole_one() -> None:
    limits = {"limits": {"nvidia.com/mig-1g.10gb": 1}}
    found = decide_fit(service(resources=limits), LARGE, (H100,))
    assert (found.status, found.reason) == ("Unknown", "NoGpuMemoryLabels")
    assert "nvidia.com/mig-1g.10gb" in found.message


def test_a_config_of_the_manifest_is_as_good_as_the_hubs() -> None:
    stated = service(model={"config": MISTRAL}).spec.model.config
    assert stated is not None
    assert read_stated(stated) == LARGE


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "model type None is not supported"),
        ({**MISTRAL, "hidden_size": "large"}, "hidden_size"),
    ],
)
def test_a_config_of_the_manifest_that_is_none(config: dict[str, Any], words: str) -> None:
    found = read_stated(config)
    assert isinstance(found, Unread)
    assert found.reason == "ModelNotReadable"
    assert found.message.startswith("spec.model.config: ") and words in found.message
