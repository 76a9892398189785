"""Snapshots of Hub repositories, in huggingface_hub's cache (HF_HOME, HF_ENDPOINT, HF_TOKEN)."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from octavo_server.config import EngineConfig
from octavo_server.errors import (
    GatedModel,
    HubUnreachable,
    ModelNotFound,
    StartupError,
    UnsupportedModel,
)
from octavo_server.loading.json_file import read_json
from octavo_server.loading.meter import Meter
from octavo_server.loading.safetensors import INDEX, index_names, weight_files
from octavo_server.model_config import parse_config

_TEXTS = ["*.json", "*.jinja", "*.txt", "*.model", "tokenizer*", "*.tiktoken"]
_WEIGHTS = ["*.safetensors"]
# The same weights again for other frameworks; folders below the root are never the model's own.
_LEFT_OUT = ["consolidated*", "adapter_*", "*/*"]
_PROGRESS_SECONDS = 2.0
_PARTIAL = ".incomplete"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What writing fails of, and no connection does. Such an error names no file."""


def fetch_snapshot(
    config: EngineConfig, progress: Callable[[str], None], meter: Meter | None = None
) -> Path:
    """Download what is missing of `config.model` at `config.revision`; the snapshot's folder.

    Small files come first, so that a model Octavo cannot serve is refused before its weights are
    fetched. A connection that breaks is resumed; a start that fails keeps the files it completed.
    Where the Hub does not answer, a complete snapshot in the cache serves. `meter` counts the
    weights' bytes.
    """
    folder = _download(config, _TEXTS, config.revision, progress)
    if not (folder / "config.json").is_file():
        raise UnsupportedModel(
            f"{config.model} has no config.json on the Hub; of a GGUF repository, download a file "
            "and give its path"
        )
    parse_config(read_json(folder / "config.json"))
    if config.load_format == "dummy":
        return folder
    started = time.monotonic()
    index = folder / INDEX
    wanted = index_names(index) if index.is_file() else _WEIGHTS
    if meter is not None:
        _measure(config, wanted, folder.name, meter)
    _download(config, wanted, folder.name, progress, meter)
    if not any(folder.glob("*.safetensors")):
        raise UnsupportedModel(
            f"{config.model} has no safetensors on the Hub; convert its weights "
            "(model.save_pretrained of transformers does) and serve the folder"
        )
    weight_files(folder)
    seconds = time.monotonic() - started
    progress(f"{config.model} at {folder.name[:12]}: files ready in {seconds:.1f} s")
    return folder


def _measure(config: EngineConfig, patterns: list[str], revision: str, meter: Meter) -> None:
    """Tells the meter what there is to fetch. Why it cannot, the download itself will say."""
    import httpx
    from huggingface_hub import snapshot_download

    try:
        files: Any = snapshot_download(
            config.model,
            revision=revision,
            cache_dir=config.download_dir,
            allow_patterns=patterns,
            ignore_patterns=_LEFT_OUT,
            tqdm_class=_progress_class(config.model, lambda _: None),
            endpoint=os.environ.get("HF_ENDPOINT"),
            dry_run=True,
        )
    except (httpx.HTTPError, OSError, ValueError):
        return
    sizes = [(each.file_size, each.is_cached) for each in files]
    meter.expect(sum(size for size, _ in sizes), sum(size for size, cached in sizes if cached))


def _download(
    config: EngineConfig,
    patterns: list[str],
    revision: str | None,
    progress: Callable[[str], None],
    meter: Meter | None = None,
) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = snapshot_download(
            config.model,
            revision=revision,
            cache_dir=config.download_dir,
            allow_patterns=patterns,
            ignore_patterns=_LEFT_OUT,
            tqdm_class=_progress_class(config.model, progress, meter),
            endpoint=os.environ.get("HF_ENDPOINT"),
            local_files_only=_offline(),
        )
    except HFValidationError as error:
        raise ModelNotFound(f"{config.model!r} is not a valid Hub id ({error})") from None
    except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        # RuntimeError: all that hf_xet says; ValueError: answers of a mirror that make no sense.
        raise _explained(error, config) from error
    return Path(folder)


def drop_partial_files() -> None:
    """Those this process is writing. To be called at its end: huggingface_hub gives each attempt a
    file of its own, so nobody would go on with them, and a claim would fill up.
    """
    for each in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):
            path = os.readlink(each)
            if path.endswith(_PARTIAL):
                os.unlink(path)


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _explained(error: BaseException, config: EngineConfig) -> StartupError:
    """One sentence for whatever huggingface_hub raised; the HTTP answer is often a cause's."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    model = config.model
    if _offline():
        return HubUnreachable(
            f"{model} is not (completely) in the cache, and HF_HUB_OFFLINE forbids downloading"
        )
    answers = [cause for cause in _causes(error) if isinstance(cause, HfHubHTTPError)]
    for answer in answers:
        status = answer.response.status_code
        if isinstance(answer, RevisionNotFoundError):
            return ModelNotFound(f"{model} has no revision {config.revision or 'main'} on the Hub")
        if isinstance(answer, GatedRepoError) or status == 403:
            action = "ask for access on its page" if get_token() else "set HF_TOKEN"
            return GatedModel(f"the Hub refuses access to {model}: it is gated; {action}")
        if status == 401 and get_token():
            return GatedModel(f"the Hub refuses access to {model}: HF_TOKEN is not valid for it")
        if status in (401, 404):
            # Without a token the Hub answers 401 for private and for missing repositories alike.
            hint = "" if get_token() else " (if it is private, set HF_TOKEN)"
            return ModelNotFound(
                f"the Hub has no model {model}{hint}, and there is no such file or folder here"
            )
        return HubUnreachable(f"the Hub answered {status} for {model}; try again later")
    if why := _why_not_stored(error):
        return StartupError(f"{model} cannot be stored in the cache: {why}")
    endpoint = os.environ.get("HF_ENDPOINT") or "the Hub"
    last = list(_causes(error))[-1]
    cached = ", and it is not in the cache" if isinstance(error, LocalEntryNotFoundError) else ""
    return HubUnreachable(
        f"{endpoint} cannot be reached to fetch {model}{cached} ({last}); there is no such file or "
        "folder here"
    )


def _why_not_stored(error: BaseException) -> str:
    """ "" of an error that is none of the cache's."""
    if isinstance(error, OSError) and (error.filename or error.errno in _FULL):
        return error.strerror or ""
    words = [os.strerror(each) for each in _FULL] if isinstance(error, RuntimeError) else []
    return next((each for each in words if each in str(error)), "")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _progress_class(model: str, progress: Callable[[str], None], meter: Meter | None = None) -> Any:
    """A bar that prints a line now and then; huggingface_hub adds the bytes of all files to it."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    base: Any = tqdm

    class Lines(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = "Reconstructing" in str(kwargs.get("desc"))
            self.done, self.told, self.guard = 0.0, time.monotonic(), threading.Lock()
            super().__init__(*args, **kwargs | {"disable": True})
            self.total = kwargs.get("total")

        def update(self, n: float | None = 1) -> None:
            if self.counts_bytes and meter is not None:
                meter.add(n or 0)
            with self.guard:
                self.done += n or 0
                now = time.monotonic()
                if not self.counts_bytes or now - self.told < _PROGRESS_SECONDS:
                    return
                self.told = now
            total = (self.total or 0) / 1e9
            progress(f"downloading {model}: {self.done / 1e9:.2f} of {total:.2f} GB")

    return Lines
