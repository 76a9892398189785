"""In a process of its own: the C library's thresholds hold for the whole process."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import resource, torch
from octavo_kernels import allocator
kept = allocator.keep_freed_memory()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30): torch.empty(4 << 20, dtype=torch.uint8).fill_(1)
before = faults()
for _ in range(20): torch.empty(4 << 20, dtype=torch.uint8).fill_(1)
print(kept, faults() - before)  # 20 times 1,024 pages if each were handed back
"""


def test_freed_memory_is_used_again() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept, faults = done.stdout.split()
    assert kept == "False" or int(faults) < 2000  # False: a C library without mallopt
