"""Frequencies of every rope scaling against transformers'."""

from __future__ import annotations

import pytest
import torch
from tests.server.models.published_configs import LLAMA
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from octavo_server.model_config import parse_config
from octavo_server.models.rotary import cos_sin_table, inverse_frequencies

_SCALINGS = {
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 32768},
}


@pytest.mark.parametrize("kind", sorted(_SCALINGS))
def test_frequencies_are_those_of_transformers(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 500000.0, **_SCALINGS[kind]}
    given = LLAMA | {"rope_parameters": rope, "max_position_embeddings": 131072}
    theirs, their_factor = ROPE_INIT_FUNCTIONS[kind](
        LlamaConfig(hidden_size=2048, num_attention_heads=32, **{
            key: given[key] for key in ("rope_parameters", "max_position_embeddings")
        })
    )  # fmt: skip
    config = parse_config(given)
    assert config.rope is not None
    ours, factor = inverse_frequencies(config.rope)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert factor == pytest.approx(their_factor)


def test_the_table_holds_cosines_then_sines() -> None:
    config = parse_config(LLAMA)
    assert config.rope is not None
    table = cos_sin_table(config.rope, 10, torch.device("cpu"))
    assert table.shape == (10, 64)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table[0], torch.cat((torch.ones(32), torch.zeros(32))))
    torch.testing.assert_close(table[7, 0], torch.tensor(7.0).cos())
    torch.testing.assert_close(table[7, 32], torch.tensor(7.0).sin())
