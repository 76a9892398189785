"""The kernels of one engine, compiled into a folder: by `octavo compile-kernels`, and beside a
start that finds none.

Run as a module it is that start's helper: its job comes as one JSON line on standard input.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from octavo_server.config import EngineConfig

# What changes neither the kernels nor how they are launched.
_IRRELEVANT = {
    "tokenizer": None, "revision": None, "load_format": "auto", "generation_config": "auto",
    "download_dir": None, "trust_remote_code": False, "seed": 0, "device": "auto",
    "gpu_memory_utilization": 0.9, "kv_cache_memory_bytes": None, "num_gpu_blocks_override": None,
    "collective_timeout": None, "enable_prefix_caching": True, "async_scheduling": None,
}  # fmt: skip
_SOURCES = ("engine", "models", "rehearsal")


class Job(msgspec.Struct, kw_only=True):
    """`config.model` is a folder or file of this machine; `processes` 0 means one a core."""

    config: EngineConfig
    folder: str
    capability: int = 90
    multiprocessors: int = 132
    memory_bytes: int = 79 << 30
    processes: int = 0


def default_folder() -> Path:
    """Where a start keeps its kernels: see `octavo_kernels.compile_cache`."""
    from octavo_kernels import compile_cache

    return compile_cache.default_folder()


class Built(msgspec.Struct, kw_only=True):
    """What the mark of a finished build says."""

    variants: int
    failed: list[str]
    seconds: float


def build(job: Job, progress: Callable[[str], None]) -> Built:
    """Compile what an engine of this config launches on such a GPU into `job.folder`.

    Without a GPU. Raises `StartupError`s as a start does; a kernel that does not compile is only
    listed. NOTE: it rebuilds parts of torch and triton, and forks: for a process of its own.
    """
    # Triton is chosen when it is first imported; these must not reach a real device either.
    os.environ.pop("TRITON_INTERPRET", None)
    from octavo_kernels import compile_cache, warm
    from octavo_server.rehearsal.engine import rehearse

    started = time.monotonic()
    folder = compile_cache.install(Path(job.folder))
    processes = job.processes or len(os.sched_getaffinity(0))
    config = dataclasses.replace(job.config, load_format="dummy")
    failed: list[str] = []
    done = 0
    recorded = None
    for recorded in rehearse(
        config,
        progress,
        capability=job.capability,
        multiprocessors=job.multiprocessors,
        memory_bytes=job.memory_bytes,
    ):
        failed += warm.compile_all(recorded, processes, first=done)
        done = len(recorded.variants)
        progress(f"{done} kernels compiled after {time.monotonic() - started:.1f} s")
    warm.keep_driver_module()
    compile_cache.prune(folder)
    built = Built(variants=done, failed=failed, seconds=time.monotonic() - started)
    mark = folder / mark_name(job)
    mark.write_bytes(msgspec.json.encode(built))
    return built


def is_built(job: Job, folders: list[Path]) -> bool:
    """Whether a build of the same job, by the same sources, ended in one of the folders."""
    name = mark_name(job)
    return any((folder / name).is_file() for folder in folders)


def mark_name(job: Job) -> str:
    """Of the file that says that a build is complete: a hash of all that decides what is launched.

    Milliseconds; Triton's own fingerprint would hash half a gigabyte, so its version must do here,
    and its keys say the rest.
    """
    from importlib import metadata

    import octavo_kernels
    import octavo_server

    config = dataclasses.replace(job.config, model="", **_IRRELEVANT)  # type: ignore[arg-type]
    digest = hashlib.sha256(msgspec.json.encode(config))
    digest.update(f"{job.capability} {job.multiprocessors} {metadata.version('triton')}".encode())
    digest.update(f"{sys.version_info[:2]}".encode())  # in the names of the launchers' files
    model = Path(job.config.model)
    described = model / "config.json" if model.is_dir() else model
    with described.open("rb") as file:
        digest.update(file.read(1 << 20))
    folders = [Path(folder) for folder in octavo_kernels.__path__]
    folders += [Path(root, name) for root in octavo_server.__path__ for name in _SOURCES]
    for folder in folders:
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return f"octavo-{digest.hexdigest()[:24]}.json"


class Background:
    """A build in a process of its own, beside a start; `wait` before the first launch."""

    def __init__(self, job: Job, progress: Callable[[str], None]) -> None:
        self._progress = progress
        # No GPU for it: a second CUDA context would take memory and a second of the driver's time.
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "octavo_server.rehearsal.kernels"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(job) + b"\n")
        self._process.stdin.flush()

    def wait(self, seconds: float) -> None:
        """Until it ends, at most so long: then, or if it failed, Triton compiles as it launches."""
        try:
            output, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._progress(f"kernels: not compiled within {seconds:.0f} s, going on without")
            return
        last = output.decode(errors="replace").strip().splitlines()[-1:] or [""]
        took = time.monotonic() - self._started
        if self._process.returncode == 0:
            self._progress(f"kernels compiled in {took:.1f} s ({last[0]})")
        else:
            self._progress(f"kernels: the compiler failed, going on without ({last[0][:200]})")


def compile_in_background(job: Job, progress: Callable[[str], None]) -> Background | None:
    """Start compiling what is missing; None where a build is complete.

    Looks in `job.folder` and in the shipped folder (OCTAVO_KERNELS).
    """
    folders = [Path(job.folder)]
    if shipped := os.environ.get("OCTAVO_KERNELS"):
        folders.append(Path(shipped))
    if is_built(job, folders):
        return None
    return Background(job, progress)


def prepare(
    config: EngineConfig, path: Path, device_index: int, progress: Callable[[str], None]
) -> Background | None:
    """Install the kernel cache in this process, and start compiling what this GPU lacks in it.

    `path` is where the model's files are.
    """
    import torch

    from octavo_kernels import compile_cache

    folder = compile_cache.install()
    device = torch.cuda.get_device_properties(device_index)
    job = Job(
        config=dataclasses.replace(config, model=str(path)),
        folder=str(folder),
        capability=device.major * 10 + device.minor,
        multiprocessors=device.multi_processor_count,
        memory_bytes=device.total_memory,
    )
    return compile_in_background(job, progress)


def main() -> int:
    import threading

    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)

    # communicate() closes standard input too: only another parent tells that ours is gone.
    parent = os.getppid()

    def watch_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch_parent, daemon=True).start()
    built = build(job, lambda text: print(text, flush=True))
    print(f"{built.variants} variants, {len(built.failed)} failed")
    for line in built.failed:
        print(line, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
