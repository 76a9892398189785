"""Where ranks cannot share memory; that they can is tested on GPUs (tests/gpu/test_ranks.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import logging, sys
import torch
from octavo_server.distributed.peer_group import PeerGroup

def meet(group, device):
    raise RuntimeError("no descriptors here\\nat line 5")

logging.basicConfig(format="%(message)s")
PeerGroup._meet = meet
torch.cuda.synchronize = lambda device: None
group = PeerGroup(0, 1, "file://" + sys.argv[1], torch.device("cpu"), 20)
assert group.peers is None
x, residual = torch.ones(2, 4), torch.full((2, 4), 0.5)
group.add_sum_(residual, x)
group.all_reduce_(x)
assert torch.equal(residual, torch.full((2, 4), 1.5)) and torch.equal(x, torch.ones(2, 4))
group.close()
"""


def test_nccl_does_all_sums_where_memory_cannot_be_shared(tmp_path: Path) -> None:
    """In a process of its own: torch's default group is one a process."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "meet")],
        env={"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "share" in line]
    assert said == ["ranks cannot share the GPUs' memory, NCCL does all sums: no descriptors here"]
