"""A start and some requests from a folder of compiled kernels: what was compiled all the same?

    OCTAVO_KERNELS=FOLDER TRITON_CACHE_DIR=EMPTY python tests/gpu/shipped_start.py MODEL [--eager]

The last line is JSON: `compiled` (names, by Triton's listener), `from_shipped`, `from_elsewhere`
(hits), `built` (launchers that a C compiler made), `background` (whether the start would have begun
to compile beside), `ready_seconds` (since the process began), `fingerprint` of the keys, `device`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / name) for name in ("server", "kernels"))]

# ruff: noqa: E402
import psutil
import torch
from triton import knobs

from octavo_kernels.compile_cache import fingerprint
from octavo_server.config import EngineConfig
from octavo_server.engine.build import build_engine
from octavo_server.engine.core import EngineCore
from octavo_server.engine.messages import Add
from octavo_server.rehearsal import kernels
from octavo_server.sampling_params import SamplingParams

BATCHES: list[list[tuple[int, dict[str, Any]]]] = [
    [(40, {"temperature": 0.0})],
    [(3000, {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "seed": 1})],
    [(17, {"temperature": 0.7, "seed": 2}), (200, {"temperature": 0.0}), (1, {"logprobs": 2})],
]
"""Prompt tokens and parameters of the requests that run together."""


class Counted:
    """Triton's listener: what it compiles, and where what it need not compile comes from."""

    def __init__(self, shipped: str) -> None:
        self._shipped = str(Path(shipped).resolve()) + os.sep if shipped else None
        self.compiled: list[str] = []
        self.hits = {True: 0, False: 0}

    def __call__(
        self, *, src: Any, metadata_group: dict[str, str], cache_hit: bool, **_: Any
    ) -> None:
        if not cache_hit:
            self.compiled.append(src.name)
            return
        paths = [str(Path(path).resolve()) for path in metadata_group.values()]
        shipped = self._shipped
        self.hits[shipped is not None and all(path.startswith(shipped) for path in paths)] += 1


def run(core: EngineCore) -> None:
    for number, batch in enumerate(BATCHES):
        for place, (length, asked) in enumerate(batch):
            ids = [(number * 37 + place * 11 + i) % core.ready.vocab_size for i in range(length)]
            ids = ids[: core.ready.max_model_len - 10]
            params = SamplingParams(max_tokens=8, ignore_eos=True, **asked)
            core.add(Add(f"{number}-{place}", ids, params, time.monotonic()))
        while core.has_work:
            report = core.step()
            for output in report.outputs if report else ():
                assert output.error is None, output.error


def main() -> None:
    model, eager = sys.argv[1], "--eager" in sys.argv
    device = "cuda" if torch.cuda.is_available() else "cpu"
    counted = Counted(os.environ.get("OCTAVO_KERNELS", ""))
    knobs.compilation.listener = counted
    background: list[bool] = []

    def would_compile(job: kernels.Job, _: Any) -> None:
        """What it compiles beside the start would hide what the folder lacks."""
        folders = [Path(job.folder), Path(os.environ.get("OCTAVO_KERNELS") or job.folder)]
        background.append(not kernels.is_built(job, folders))

    kernels.compile_in_background = would_compile  # type: ignore[assignment]
    config = EngineConfig(
        model=model,
        load_format="dummy",
        dtype="bfloat16" if device == "cuda" else "float32",
        device=device,
        enforce_eager=eager,
        kv_cache_memory_bytes=None if device == "cuda" else 64 << 20,
        max_model_len=None if device == "cuda" else 512,
    )
    core = build_engine(config, lambda text: print(text, file=sys.stderr))
    ready = time.time() - psutil.Process().create_time()
    run(core)
    own = Path(os.environ["TRITON_CACHE_DIR"])
    print(
        json.dumps(
            {
                "compiled": counted.compiled,
                "from_shipped": counted.hits[True],
                "from_elsewhere": counted.hits[False],
                "built": len(list(own.glob("*/*.so"))),
                "background": any(background),
                "ready_seconds": round(ready, 2),
                "fingerprint": fingerprint(90),
                "device": torch.cuda.get_device_name() if device == "cuda" else device,
            }
        )
    )


if __name__ == "__main__":
    main()
