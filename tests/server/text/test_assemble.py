"""Text, ids, log probabilities, counts and reasons of one sequence."""

from __future__ import annotations

from tests.server.text.tiny_tokenizers import byte_level

from octavo_server.engine.messages import TokenLogprobs, TokenOutput
from octavo_server.sampling_params import SamplingParams
from octavo_server.text.assemble import Assembler

EOS = 0


def ids_of(text):
    return byte_level().encode(text, add_special_tokens=False)


def run(ids, params, *, finish="length", stop_token_id=None, prompt=()):
    assembler = Assembler(byte_level(), list(prompt), params)
    deltas = []
    for index, token_id in enumerate(ids):
        last = index == len(ids) - 1
        logprobs = None
        if params.logprobs is not None:
            logprobs = [TokenLogprobs(token_id, -float(index), 1, [], [])]
        deltas.append(
            assembler.push(
                TokenOutput(
                    "r",
                    [token_id],
                    finish_reason=finish if last else None,
                    stop_token_id=stop_token_id if last else None,
                    logprobs=logprobs,
                )
            )
        )
        if deltas[-1].finish_reason:
            break
    return deltas


def text_of(deltas):
    return "".join(delta.text for delta in deltas)


def test_a_delta_per_token():
    ids = ids_of("hello world")
    deltas = run(ids, SamplingParams())
    assert text_of(deltas) == "hello world"
    assert [delta.token_ids for delta in deltas] == [[token_id] for token_id in ids]
    assert [delta.completion_tokens for delta in deltas] == list(range(1, len(ids) + 1))
    assert deltas[-1].finish_reason == "length"
    assert all(delta.finish_reason is None for delta in deltas[:-1])


def test_eos_counts_but_has_no_text():
    params = SamplingParams(eos_token_ids=[EOS], skip_special_tokens=False)
    deltas = run([*ids_of("Rome"), EOS], params, finish="stop", stop_token_id=EOS)
    assert text_of(deltas) == "Rome"
    assert deltas[-1].completion_tokens == len(ids_of("Rome")) + 1
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", None)


def test_own_stop_id_is_the_stop_reason_and_may_be_shown():
    ids = ids_of("Rome.")
    params = SamplingParams(stop_token_ids=[ids[-1]])
    deltas = run(ids, params, finish="stop", stop_token_id=ids[-1])
    assert (text_of(deltas), deltas[-1].stop_reason) == ("Rome", ids[-1])
    params.include_stop_str_in_output = True
    assert text_of(run(ids, params, finish="stop", stop_token_id=ids[-1])) == "Rome."


def test_stop_string_cuts_text_and_counts_up_to_the_match():
    ids = [token for character in "one STOP two" for token in ids_of(character)]
    deltas = run(ids, SamplingParams(stop=["STOP"], logprobs=0))
    assert text_of(deltas) == "one "
    last = deltas[-1]
    assert (last.finish_reason, last.stop_reason, last.stopped_here) == ("stop", "STOP", True)
    assert last.completion_tokens == 8
    assert sum(len(delta.token_ids) for delta in deltas) == 8
    assert [p.logprob for delta in deltas for p in delta.logprobs] == [-float(i) for i in range(8)]
    assert [start for delta in deltas for start in delta.offsets] == list(range(8))


def test_a_stop_with_the_last_token_needs_no_abort():
    ids = [token for character in "a STOP" for token in ids_of(character)]
    last = run(ids, SamplingParams(stop=["STOP"]))[-1]
    assert (last.finish_reason, last.stopped_here) == ("stop", False)


def test_ids_are_released_with_their_text():
    ids = [token for character in "x STAY" for token in ids_of(character)]
    deltas = run(ids, SamplingParams(stop=["STOP"], logprobs=0))
    assert [len(delta.token_ids) for delta in deltas] == [1, 1, 0, 0, 3, 1]
    assert [delta.text for delta in deltas] == ["x", " ", "", "", "STA", "Y"]
    assert deltas[3].completion_tokens == 4


def test_the_end_flushes_what_was_held():
    ids = [token for character in "x ST" for token in ids_of(character)]
    deltas = run(ids, SamplingParams(stop=["STOP"]))
    assert text_of(deltas) == "x ST"
    assert len(deltas[-1].token_ids) == 2


def test_min_tokens_come_before_stop_strings():
    ids = [token for character in "ENDENDx" for token in ids_of(character)]
    deltas = run(ids, SamplingParams(stop=["END"], min_tokens=3))
    assert text_of(deltas) == "END"
    assert deltas[-1].completion_tokens == 6
    assert text_of(run(ids, SamplingParams(stop=["END"]))) == ""


def test_several_tokens_in_one_output_are_cut_at_the_match():
    ids = [token for character in "ab#cd" for token in ids_of(character)]
    assembler = Assembler(byte_level(), [], SamplingParams(stop=["#"]))
    delta = assembler.push(TokenOutput("r", ids))
    assert (delta.text, delta.completion_tokens, delta.token_ids) == ("ab", 3, ids[:3])
    assert delta.stopped_here
    late = assembler.push(TokenOutput("r", ids, finish_reason="length"))
    assert (late.text, late.token_ids, late.finish_reason) == ("", [], None)


def test_an_incomplete_character_at_the_end_becomes_a_replacement():
    ids = ids_of("a\U0001f680")  # not in the corpus: one token a byte
    deltas = run(ids[:-1], SamplingParams())
    assert text_of(deltas) == "a\ufffd"
    assert sum(len(delta.token_ids) for delta in deltas) == len(ids) - 1
    assert text_of(run(ids, SamplingParams())) == "a\U0001f680"
