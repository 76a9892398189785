"""GGUF metadata -> a fast tokenizer with its special tokens and chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo_server.errors import CorruptModel, UnsupportedModel
from octavo_server.loading.damage import damage_in
from octavo_server.loading.gguf_file import GgufFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# How `tokenizer.ggml.pre` cuts text before byte-level BPE (llama.cpp); "" is ByteLevel's own way.
_GPT2 = ""
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_PATTERNS = {
    "gpt-2": _GPT2,
    "default": _GPT2,
    "smollm": _GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
_SINGLE_DIGITS = ("smollm",)
_ADDS_BOS = ("llama-bpe", "llama3", "llama-v3")
# Token types of the format.
_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "\u2581"  # what SentencePiece writes for a space


def build_tokenizer(file: GgufFile) -> PreTrainedTokenizerBase:
    """Raises UnsupportedModel for tokenizers it does not know, CorruptModel for missing parts."""
    with damage_in(f"the tokenizer of {file.path}"):
        return _build(file)


def _build(file: GgufFile) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    metadata = file.metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise CorruptModel(f"{file.path} has no tokenizer; give one with --tokenizer")
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level(file, tokens)
    elif kind == "llama":
        tokenizer = _sentencepiece(file, tokens)
    else:
        raise UnsupportedModel(
            f"{file.path} has a tokenizer of kind {kind!r}; give another with --tokenizer"
        )
    _add_special(tokenizer, metadata, tokens)
    special = {
        f"{role}_token": token
        for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if (token := _token(metadata, tokens, key)) is not None
    }
    _add_bos(tokenizer, metadata, special)
    wrapped: PreTrainedTokenizerBase = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )
    wrapped.chat_template = metadata.get("tokenizer.chat_template")
    return wrapped


def _byte_level(file: GgufFile, tokens: list[str]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = file.metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _PATTERNS:
        raise UnsupportedModel(
            f"{file.path} cuts text the {pre!r} way, which Octavo does not know; give the model's "
            "original tokenizer with --tokenizer"
        )
    given = file.metadata.get("tokenizer.ggml.merges")
    if not given:
        raise CorruptModel(f"{file.path} has a tokenizer but no merges; give one with --tokenizer")
    merges = [tuple(merge.split(" ", 1)) for merge in given]
    pattern = _PATTERNS[pre]
    tokenizer = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(tokens)},
            merges,
            ignore_merges=pattern == _LLAMA3,
        )
    )
    steps: list[Any] = []
    if pre in _SINGLE_DIGITS:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pattern:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pattern == _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: GgufFile, tokens: list[str]) -> Tokenizer:
    """Llama 2's kind: BPE over text whose spaces are visible, bytes as a last resort."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    metadata = file.metadata
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            _merges_by_score(vocabulary, metadata.get("tokenizer.ggml.scores") or []),
            unk_token=_token(metadata, tokens, "unknown"),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps: list[Any] = [normalizers.Prepend(_SPACE)] if prefix else []
    steps.append(normalizers.Replace(" ", _SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    decoding: list[Any] = [
        decoders.Replace(_SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if prefix:
        decoding.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(decoding)
    return tokenizer


def _merges_by_score(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose whole has the best score; BPE wants that as a list."""
    if len(scores) != len(vocabulary):
        raise CorruptModel("the GGUF file's tokenizer has no score for each token")
    ranked = []
    for token, number in vocabulary.items():
        pairs = [
            (vocabulary[token[:cut]], vocabulary[token[cut:]], token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in vocabulary and token[cut:] in vocabulary
        ]
        ranked.append((-scores[number], number, sorted(pairs)))
    ranked.sort(key=lambda entry: entry[:2])
    return [(left, right) for _, _, pairs in ranked for _, _, left, right in pairs]


def _add_special(tokenizer: Tokenizer, metadata: dict[str, Any], tokens: list[str]) -> None:
    from tokenizers import AddedToken

    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, its_kind in zip(tokens, types, strict=False)
            if its_kind == kind
        ]
        if special:
            tokenizer.add_special_tokens(added)
        else:
            tokenizer.add_tokens(added)


def _token(metadata: dict[str, Any], tokens: list[str], key: str) -> str | None:
    number = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if number is None:
        return None
    if not 0 <= number < len(tokens):
        raise CorruptModel(f"the GGUF file's {key} token {number} is not one of its tokens")
    return str(tokens[number])


def _add_bos(tokenizer: Tokenizer, metadata: dict[str, Any], special: dict[str, str]) -> None:
    from tokenizers import processors

    default = (
        metadata.get("tokenizer.ggml.model") == "llama"
        or metadata.get("tokenizer.ggml.pre") in _ADDS_BOS
    )
    start = (
        special.get("bos_token") if metadata.get("tokenizer.ggml.add_bos_token", default) else None
    )
    end = special.get("eos_token") if metadata.get("tokenizer.ggml.add_eos_token", False) else None
    around = [token for token in (start, end) if token]
    if around:
        single = ([start] if start else []) + ["$A"] + ([end] if end else [])
        second = [f"{'$B' if part == '$A' else part}:1" for part in single]
        numbers = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(around)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=[*single, *second], special_tokens=numbers
        )
