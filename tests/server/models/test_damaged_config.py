"""A config.json that makes no sense is a StartupError with one line, never a traceback."""

from __future__ import annotations

import pytest
from tests.server.models.published_configs import LLAMA

from octavo_server.errors import StartupError
from octavo_server.model_config import parse_config


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": "x"},
        {"quantization_config": [1]},
        {"architectures": [5]},
        {"architectures": 5},
        {"rope_parameters": "x"},
        {"rope_parameters": [1]},
        {"rope_parameters": {"rope_theta": "a"}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": "x",
            }
        },
        {"rope_parameters": {"rope_type": "yarn", "factor": float("nan")}},
        {"rope_parameters": {"rope_type": "linear", "factor": float("inf")}},
        {"num_hidden_layers": 2**70},
        {"num_hidden_layers": 2**30},
        {"hidden_size": 10**18},
        {"max_position_embeddings": 1},
        {"max_position_embeddings": 2**30},
        {"rope_theta": -1},
        {"rope_theta": "x"},
        {"head_dim": 5},
        {"model_type": [], "architectures": None},
        {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "layer_types": 5},
        {
            "architectures": ["Qwen2ForCausalLM"],
            "use_sliding_window": True,
            "layer_types": None,
            "max_window_layers": None,
        },
    ],
)
def test_configs_that_make_no_sense(changes: dict[str, object]) -> None:
    with pytest.raises(StartupError) as caught:
        parse_config(LLAMA | changes)
    assert "\n" not in str(caught.value)
