"""The model's tokenizer, by transformers; of a GGUF file it is built here, which is quicker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.errors import CorruptModel, ModelNotFound, UnsupportedModel
from octavo_server.loading.source import ModelSource, is_hub_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(
    source: ModelSource, tokenizer: str | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """`tokenizer` (a folder, .gguf file or Hub id) wins over the model's own.

    `trust_remote_code` is accepted and ignored: Octavo runs no code from model repositories. Raises
    UnsupportedModel, CorruptModel or ModelNotFound.
    """
    path = Path(tokenizer).expanduser() if tokenizer else source.path
    if path.is_file() and path.suffix == ".gguf":
        from octavo_server.loading.gguf_file import read_gguf
        from octavo_server.loading.gguf_tokenizer import build_tokenizer

        return build_tokenizer(read_gguf(path))
    if tokenizer and not path.exists() and not is_hub_id(tokenizer):
        raise ModelNotFound(f"--tokenizer: there is no file or folder {tokenizer}")
    return _by_transformers(tokenizer if tokenizer and not path.exists() else str(path))


_LONGEST = 300


def _by_transformers(name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    # "None of the known special tokens..." and the like are no news for who starts a server.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, trust_remote_code=False, local_files_only=Path(name).is_dir()
        )
    except Exception as error:
        raise _explained(name, error) from error
    finally:
        logging.set_verbosity(verbosity)
    return found


def _explained(name: str, error: Exception) -> Exception:
    """transformers raises ValueError, OSError, KeyError and bare Exception for damaged files."""
    folder = Path(name)
    text = str(error) or type(error).__name__
    first_line = text.splitlines()[0]
    if first_line.endswith(":"):  # it only announces what is wrong
        first_line = " ".join(text.split())[:_LONGEST]
    if "trust_remote_code" in str(error):
        return UnsupportedModel(
            f"the tokenizer of {name} needs code from its repository, which Octavo does not run"
        )
    if not folder.is_dir():
        return ModelNotFound(f"there is no tokenizer {name} ({first_line})")
    files = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((folder / file).is_file() for file in files):
        return CorruptModel(f"{name} has no tokenizer files; give another folder with --tokenizer")
    return CorruptModel(f"the tokenizer of {name} does not load: {first_line}")
