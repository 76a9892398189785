"""Two ways to a compiled kernel, neither with a GPU; run by test_compile_cache.py, which says why.

    python tests/kernels/compile_cache_routes.py FOLDER

Prints one JSON object: the folders' entries by each route, and what a second start of either sort
compiled when it was given what the first one left.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton.language as tl
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from triton import knobs
from triton.runtime import driver

from octavo_kernels import compile_cache, warm
from octavo_kernels.language import jit

TARGET = 90


@jit
def scaled_kernel(out, x, width, seqs, scale, BLOCK: tl.constexpr, NAME: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + index, mask=index < width, other=0.0).to(tl.float32)
    tl.store(out + index, values * scale + seqs, mask=index < width)


def launch(x: Any, out: Any) -> None:
    """Aligned and not, a width of one, of 16 and of neither; with options."""
    options = {"BLOCK": 128, "NAME": "octavo", "num_warps": 2}
    scaled_kernel[(1,)](out, x, 256, 3, 0.5, **options)
    scaled_kernel[(1,)](out, x[1:], 255, 16, 0.5, **options)
    scaled_kernel[(1,)](out, x, 1, 1, 2.0, **options, launch_pdl=True)


def entries(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob("*/scaled_kernel.cubin"))


def recorded(folder: Path) -> list[str]:
    """Fake CUDA tensors, a recording, a build: what `octavo compile-kernels` does."""
    compile_cache.install(folder)
    FakeTensor.data_ptr = lambda it: 4096 + it.storage_offset() * it.element_size()
    with FakeTensorMode():
        x = torch.empty(512, dtype=torch.bfloat16, device="cuda")
        with warm.recording(TARGET) as kept:
            launch(x, torch.empty(512, device="cuda"))
            launch(x, torch.empty(512, device="cuda"))
    assert (len(kept.variants), kept.launches) == (3, 6)
    assert warm.compile_all(kept, processes=2) == []
    compile_cache.prune(folder)
    return entries(folder)


class _Real:
    """A driver as a GPU machine's, but for the launch itself."""

    class utils:
        @staticmethod
        def get_device_properties(_: int) -> dict[str, int]:
            return {"max_shared_mem": 227 << 10}

        @staticmethod
        def load_binary(*_: Any) -> tuple[int, int, int, int, int]:
            return 1, 1, 32, 0, 1024

    launcher_cls = staticmethod(lambda *_: lambda *_: None)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return compile_cache.GPUTarget("cuda", TARGET, 32)


def really(folder: Path, shipped: Path | None = None) -> tuple[list[str], int]:
    """Triton's own path untouched, real tensors (the CPU's: it asks for address and type only);
    entries, and how many it compiled."""
    compile_cache.install(folder, shipped)
    scaled_kernel.device_caches.clear()
    compiled = []
    knobs.compilation.listener = lambda *, cache_hit, src, **_: cache_hit or compiled.append(src)
    driver.set_active(_Real())
    launch(torch.zeros(512, dtype=torch.bfloat16), torch.zeros(512))
    return entries(folder), len(compiled)


def main(base: Path) -> None:
    by_record = recorded(base / "record")
    by_launch, compiled = really(base / "launch")
    shutil.move(base / "record", base / "shipped")  # another place, and nobody may write there
    for path in (base / "shipped", *(base / "shipped").iterdir()):
        path.chmod(0o555)
    written, with_shipped = really(base / "empty", base / "shipped")
    _, with_own = really(base / "launch")
    print(
        json.dumps(
            {
                "by_record": by_record, "by_launch": by_launch, "compiled": compiled,
                "written": written, "with_shipped": with_shipped, "with_own": with_own,
                "made": sorted(path.name for path in (base / "empty").iterdir()),
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
