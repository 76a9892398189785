"""What a request may ask of the engine, on a tiny random model and end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from octavo_server import LLM, SamplingParams
from octavo_server.errors import EngineDead, InvalidRequest, OutOfMemory
from octavo_server.llm import Completion
from tests.server.tiny_models import VOCAB_SIZE, make_tiny

PROMPT = [5, 9, 17, 33, 65, 129, 200, 77, 3, 250]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama3", tmp_path_factory.mktemp("llama3"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return load(folder)


def load(folder: Path, **settings: object) -> LLM:
    return LLM(
        str(folder),
        device="cpu",
        dtype="float32",
        **({"max_model_len": 128, "kv_cache_memory_bytes": 16 << 20} | settings),  # type: ignore[arg-type]
    )


def ask(llm: LLM, prompt: list[int] | None = None, **params: object) -> Completion:
    settings = {"max_tokens": 24, "ignore_eos": True, "seed": 7} | params
    return llm.generate([prompt or PROMPT], SamplingParams(**settings))[0].outputs[0]  # type: ignore[arg-type]


def test_a_seed_decides_the_output_whatever_runs_beside_it(llm: LLM, folder: Path) -> None:
    alone = ask(llm).token_ids
    crowd = llm.generate([PROMPT] * 5, SamplingParams(max_tokens=24, ignore_eos=True, seed=7, n=2))
    assert all(each.outputs[0].token_ids == alone for each in crowd)
    assert ask(llm, seed=8).token_ids == crowd[0].outputs[1].token_ids != alone
    # Two preempted again and again draw what they would have drawn undisturbed.
    small = load(folder, num_gpu_blocks_override=1 + 8, max_model_len=64)
    pressed = small.generate(
        [PROMPT, PROMPT[::-1], PROMPT[1:]] * 2,
        SamplingParams(max_tokens=50, ignore_eos=True, seed=7),
    )
    assert small.core.scheduler.pool.usage == 0.0
    assert pressed[0].outputs[0].token_ids[:24] == alone


def test_requests_are_taken_in_while_steps_run(
    llm: LLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[3 + i, 9, 17 + i, 33, 5][: 1 + i % 5] for i in range(40)]
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    alone = [llm.generate([prompt], params)[0].outputs[0].token_ids for prompt in prompts]
    monkeypatch.setattr("octavo_server.llm._INTAKE_SECONDS", 0.0)
    small = load(folder, max_num_batched_tokens=8, max_num_seqs=4)
    seen: list[int] = []
    step = small.core.step

    def stepped() -> object:
        seen.append(len(small.core.scheduler.waiting) + len(small.core.scheduler.running))
        return step()

    monkeypatch.setattr(small.core, "step", stepped)
    found = [each.outputs[0].token_ids for each in small.generate(prompts, params)]
    assert found == alone
    # Two steps' worth at first: 16 tokens, the rest step by step.
    assert seen[0] < 10
    assert max(seen) < 40


def test_unseeded_samples_differ(llm: LLM) -> None:
    outputs = llm.generate([PROMPT], SamplingParams(n=4, max_tokens=16, temperature=2.0))[0].outputs
    assert len({tuple(each.token_ids) for each in outputs}) > 1
    assert [each.index for each in outputs] == [0, 1, 2, 3]


def test_top_k_one_is_greedy(llm: LLM) -> None:
    greedy = ask(llm, temperature=0.0).token_ids
    assert ask(llm, top_k=1).token_ids == greedy
    assert ask(llm, top_p=1e-6).token_ids == greedy
    assert ask(llm, min_p=1.0).token_ids == greedy


def test_logprobs_equal_transformers(llm: LLM, folder: Path) -> None:
    params = SamplingParams(
        max_tokens=6,
        temperature=0.7,
        seed=3,
        logprobs=4,
        prompt_logprobs=2,
        ignore_eos=True,
        frequency_penalty=1.0,
    )
    generation = llm.generate([PROMPT], params)[0]
    completion = generation.outputs[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT + completion.token_ids])).logits[0]
    expected = torch.log_softmax(logits, -1)
    assert generation.prompt_logprobs is not None and completion.logprobs is not None
    assert generation.prompt_logprobs[0] is None
    judged = generation.prompt_logprobs[1:] + completion.logprobs
    assert len(judged) == len(PROMPT) - 1 + 6
    for position, (entry, token_id) in enumerate(
        zip(judged, (PROMPT + completion.token_ids)[1:], strict=True)
    ):
        assert entry is not None and entry.token_id == token_id
        row = expected[position]
        assert entry.logprob == pytest.approx(float(row[token_id]), abs=1e-3)
        assert entry.rank == int((row > row[token_id]).sum()) + 1
        count = 2 if position < len(PROMPT) - 1 else 4
        assert entry.top_ids == row.topk(count).indices.tolist()
        assert entry.top_logprobs == pytest.approx(row.topk(count).values.tolist(), abs=1e-3)


def test_prompt_logprobs_are_the_same_in_chunks_and_with_a_warm_cache(folder: Path) -> None:
    prompt = (PROMPT * 8)[:70]
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0)
    whole = load(folder).generate([prompt], params)[0].prompt_logprobs
    chunked = load(folder, max_num_batched_tokens=16)
    chunked.generate([prompt], SamplingParams(max_tokens=1))
    again = chunked.generate([prompt], params)[0]
    assert again.cached_tokens == 0
    assert whole is not None and again.prompt_logprobs is not None
    for one, other in zip(whole[1:], again.prompt_logprobs[1:], strict=True):
        assert one is not None and other is not None
        assert (one.token_id, one.logprob) == (
            other.token_id,
            pytest.approx(other.logprob, abs=1e-4),
        )


def test_repetition_is_punished(llm: LLM) -> None:
    for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}):
        plain = ask(llm, temperature=1.5, max_tokens=80, top_k=8).token_ids
        punished = ask(llm, temperature=1.5, max_tokens=80, top_k=8, **penalty).token_ids
        assert len(set(punished)) > len(set(plain))
    banned = ask(llm, temperature=0.0, repetition_penalty=100.0, max_tokens=30).token_ids
    assert not set(banned) & set(PROMPT)


def test_penalties_survive_preemption(folder: Path) -> None:
    params = SamplingParams(
        temperature=0.0,
        frequency_penalty=0.7,
        repetition_penalty=1.3,
        max_tokens=45,
        ignore_eos=True,
    )
    prompts = [PROMPT, PROMPT[::-1], [*PROMPT[2:], 1, 2]]
    roomy = load(folder, max_model_len=64).generate(prompts, params)
    tight = load(folder, max_model_len=64, num_gpu_blocks_override=1 + 5).generate(prompts, params)
    assert [each.outputs[0].token_ids for each in tight] == [
        each.outputs[0].token_ids for each in roomy
    ]


def test_logit_bias_forces_and_bans(llm: LLM) -> None:
    assert set(ask(llm, logit_bias={11: 100.0}, temperature=0.0).token_ids) == {11}
    greedy = ask(llm, temperature=0.0, max_tokens=1).token_ids[0]
    assert ask(llm, temperature=0.0, max_tokens=1, logit_bias={greedy: -100.0}).token_ids != [
        greedy
    ]


def test_only_allowed_ids_are_drawn(llm: LLM) -> None:
    free = ask(llm, temperature=1.0)
    few = ask(llm, allowed_token_ids=[40, 41, 42], temperature=1.0)
    assert set(few.token_ids) == {40, 41, 42} and not {40, 41, 42} & set(free.token_ids[:3])
    assert ask(llm, allowed_token_ids=list(range(VOCAB_SIZE))).token_ids == free.token_ids
    # An end that may not come yet and nothing else to draw: the end, and the answer goes on.
    only = ask(llm, allowed_token_ids=[2], ignore_eos=False, min_tokens=3, max_tokens=9)
    assert only.token_ids == [2, 2, 2, 2] and only.finish_reason == "stop"


def test_bad_words_are_not_written(llm: LLM, folder: Path) -> None:
    plain = ask(llm, temperature=0.0, max_tokens=30)
    words = [plain.text[i : i + 2] for i in range(4, 20, 4) if plain.text[i : i + 2].strip()]
    ids = [llm.tokenizer.encode(word, add_special_tokens=False) for word in words]
    assert any(len(word) > 1 for word in ids) and len(words) > 2
    clean = ask(llm, temperature=0.0, max_tokens=30, bad_words=words)
    assert clean.token_ids != plain.token_ids
    for word in ids:
        for at in range(30):
            assert clean.token_ids[at : at + len(word)] != word
    # Rows that are preempted know what they had written.
    small = load(folder, num_gpu_blocks_override=1 + 8, max_model_len=64)
    params = SamplingParams(temperature=0.0, max_tokens=30, bad_words=words, ignore_eos=True)
    pressed = small.generate([PROMPT, PROMPT[::-1], PROMPT[1:]] * 2, params)
    assert small.core.scheduler.pool.usage == 0.0
    assert pressed[0].outputs[0].token_ids == clean.token_ids


def test_eos_ends_and_min_tokens_hold_it_off(llm: LLM) -> None:
    """generation_config.json of the tiny models names two EOS ids, 2 and 0."""
    bias = {0: 100.0}
    ended = ask(llm, ignore_eos=False, logit_bias=bias)
    assert (ended.finish_reason, ended.token_ids, ended.stop_reason) == ("stop", [0], None)
    held = ask(llm, ignore_eos=False, logit_bias=bias, min_tokens=5)
    assert held.finish_reason == "stop" and len(held.token_ids) == 6
    assert not {0, 2} & set(held.token_ids[:5])
    ignored = ask(llm, logit_bias=bias, max_tokens=4)
    assert (ignored.finish_reason, ignored.token_ids) == ("length", [0] * 4)


def test_stop_ids_and_stop_strings(llm: LLM) -> None:
    greedy = ask(llm, temperature=0.0, max_tokens=40)
    at = next(i for i in range(4, 40) if greedy.token_ids[i] not in greedy.token_ids[:i])
    stopped = ask(llm, temperature=0.0, max_tokens=40, stop_token_ids=[greedy.token_ids[at]])
    assert stopped.token_ids == greedy.token_ids[: at + 1]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", greedy.token_ids[at])
    needle = greedy.text[10:13]
    cut = ask(llm, temperature=0.0, max_tokens=40, stop=[needle])
    assert cut.text == greedy.text[: greedy.text.index(needle)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", needle)
    assert not llm.core.scheduler.has_work


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "has 0 tokens"),
        ([1] * 128, {}, "has 128 tokens; between 1 and 127 fit"),
        ([VOCAB_SIZE], {}, "outside 0 to 383"),
        ([1], {"temperature": float("nan")}, "temperature"),
        ([1], {"top_p": 0.0}, "top_p"),
        ([1], {"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
        ([1], {"logit_bias": {-1: 1.0}}, "logit_bias"),
        ([1], {"min_tokens": 17}, "min_tokens"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(
    llm: LLM, prompt: list[int], params: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        llm.generate([PROMPT, prompt], SamplingParams(**params))  # type: ignore[arg-type]
    assert not llm.core.scheduler.has_work


def test_a_context_that_does_not_fit_names_the_one_that_does(folder: Path) -> None:
    with pytest.raises(OutOfMemory, match="--max-model-len 48"):
        load(folder, num_gpu_blocks_override=1 + 3)
    assert (
        load(folder, num_gpu_blocks_override=1 + 3, max_model_len=-1).core.ready.max_model_len == 48
    )


def test_a_cache_that_the_machine_cannot_give_is_one_sentence(folder: Path) -> None:
    with pytest.raises(OutOfMemory, match="could not give the KV cache"):
        load(folder, kv_cache_memory_bytes=100 << 40)


def test_a_prompt_that_does_not_fit_is_named(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"^prompt 1 of 2 .* has 128 tokens; between 1 and"):
        llm.generate([PROMPT, [5] * 128])
    with pytest.raises(InvalidRequest, match=r"^prompt 0 of 1 .* holds ids outside 0 to"):
        llm.generate({"prompt_token_ids": [VOCAB_SIZE]})


def test_a_conversation_goes_through_the_chat_template(llm: LLM) -> None:
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{{ word }}"
    messages = [{"role": "user", "content": "t5 t9"}]
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    asked = {"chat_template": template, "chat_template_kwargs": {"word": "t17"}}
    (one,) = llm.chat(messages, params, **asked)  # type: ignore[arg-type]
    assert one.prompt == "user t5 t9 t17"
    assert one.prompt_token_ids == llm.tokenizer.encode(one.prompt, add_special_tokens=False)
    assert (
        one.outputs[0].token_ids
        == ask(llm, one.prompt_token_ids, temperature=0.0, max_tokens=4).token_ids
    )
    assert len(llm.chat([messages, messages], params, chat_template=template)) == 2
    refusing = "{{ raise_exception('only tools here') }}"
    with pytest.raises(InvalidRequest, match="only tools here"):
        llm.chat(messages, params, chat_template=refusing)


def test_nothing_after_close(folder: Path) -> None:
    closed = load(folder)
    closed.close()
    with pytest.raises(EngineDead, match="closed"):
        ask(closed)
