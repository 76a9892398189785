"""A start and its steps on a GPU that is not there; in a process of its own, which has no
interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512,
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "torch_dtype": "bfloat16", "hidden_act": "silu",
}  # fmt: skip
SCRIPT = """
import json, sys
from octavo_server.config import EngineConfig
from octavo_server.rehearsal.engine import rehearse
said = []
config = EngineConfig(
    model=sys.argv[1], load_format="dummy", max_num_seqs=64, tensor_parallel_size=int(sys.argv[2])
)
after = [len(recorded.variants) for recorded in rehearse(config, said.append)]
*_, recorded = rehearse(config, said.append)
names = [source.name for source, _ in recorded.variants]
print(json.dumps({"said": said, "after": after, "names": names, "launches": recorded.launches}))
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("size", [1, 2])
def test_every_kind_of_step_is_launched_without_a_gpu(tmp_path: Path, size: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(size)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert not [line for line in found["said"] if "not rehearsed" in line]
    start, whole = found["after"]
    assert 10 < start <= whole < 100
    assert found["launches"] > 1000
    assert len(found["names"]) == whole  # a second rehearsal finds the same, none left over
    slices = ["join_kernel", "choose_kernel"] if size > 1 else []
    for part in (
        "step_inputs", "embed", "decode", "prefill", "scan", "shared_decode", "find_shared",
        *slices,
    ):  # fmt: skip
        assert any(part in name for name in found["names"]), part
