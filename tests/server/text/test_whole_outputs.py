"""Tokens that come together give what they give one by one, for every kind of tokenizer."""

from __future__ import annotations

import random

import pytest
from tests.server.text.tiny_tokenizers import byte_level, sentencepiece_like, word_piece

from octavo_server.engine.messages import TokenLogprobs, TokenOutput
from octavo_server.sampling_params import SamplingParams
from octavo_server.text.assemble import Assembler

KINDS = {"bytes": byte_level, "marks": sentencepiece_like, "opaque": word_piece}
TEXTS = ["hello world, caf\u00e9", "\U0001f600\U0001f680 na\u00efve \u4f60\u597d", "  the  stop "]


def random_ids(tokenizer, rng, length):
    """Real text, single bytes, special tokens and ids past the vocabulary, in any order."""
    ids = []
    while len(ids) < length:
        match rng.randrange(4):
            case 0:
                ids += tokenizer.encode(rng.choice(TEXTS), add_special_tokens=False)
            case 1:
                ids.append(rng.randrange(3))
            case 2:
                ids.append(len(tokenizer) + rng.randrange(5))
            case _:
                ids += [rng.randrange(len(tokenizer)) for _ in range(rng.randrange(1, 6))]
    return ids[:length]


def random_params(rng, ids):
    params = SamplingParams(
        skip_special_tokens=rng.random() < 0.5,
        include_stop_str_in_output=rng.random() < 0.3,
        min_tokens=rng.choice([0, 0, 3]),
        logprobs=rng.choice([None, None, 0]),
        stop=rng.choice([[], [], [], ["stop", "lo w"]]),
    )
    if rng.random() < 0.5:
        params.stop_token_ids = [ids[-1]]
    return params


def logprobs_of(ids, params):
    if params.logprobs is None:
        return None
    return [TokenLogprobs(token_id, -float(i), 1, [], []) for i, token_id in enumerate(ids)]


def outcome(assembler, outputs):
    """All that a reader gets to know, however it was cut."""
    text, ids, logprobs, offsets, last = "", [], [], [], None
    for output in outputs:
        delta = assembler.push(output)
        text += delta.text
        ids += delta.token_ids
        logprobs += delta.logprobs or []
        offsets += delta.offsets or []
        if delta.finish_reason is not None:
            last = (delta.finish_reason, delta.stop_reason, delta.completion_tokens)
            break
    return text, ids, logprobs, offsets, last, assembler.finished, assembler.completion_tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(150))
def test_one_output_gives_what_many_give(kind, seed):
    tokenizer = KINDS[kind]()
    rng = random.Random(seed)
    ids = random_ids(tokenizer, rng, rng.choice([1, 2, 3, 10, 50]))
    prompt = random_ids(tokenizer, rng, rng.choice([0, 1, 2, 8]))
    params = random_params(rng, ids)
    entries = logprobs_of(ids, params)
    stops = rng.random() < 0.5
    reason, stop_id = ("stop", ids[-1]) if stops else ("length", None)
    single = [
        TokenOutput("r", [token_id], logprobs=None if entries is None else [entries[i]])
        for i, token_id in enumerate(ids)
    ]
    single[-1].finish_reason, single[-1].stop_token_id = reason, stop_id
    whole = TokenOutput("r", ids, reason, stop_token_id=stop_id, logprobs=entries)
    expected = outcome(Assembler(tokenizer, prompt, params), single)
    got = outcome(Assembler(tokenizer, prompt, params), [whole])
    assert got == expected
    if params.stop or len(ids) < 2:
        return
    # In two parts, as after a stream that fell behind.
    cut = rng.randrange(1, len(ids))
    parts = [
        TokenOutput("r", ids[:cut], logprobs=entries and entries[:cut]),
        TokenOutput("r", ids[cut:], reason, stop_id, logprobs=entries and entries[cut:]),
    ]
    assert outcome(Assembler(tokenizer, prompt, params), parts) == expected
