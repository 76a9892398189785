"""Fields of requests that Octavo does not act on: those that are refused, and those that are not.

Refused is what would change an answer if it worked: its silent loss would look like an answer. The
rest is accepted and ignored, known or not, for clients send many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo_server.errors import InvalidRequest

OFF: tuple[object, ...] = (False, [], {}, "", 0)
_LATER = "is not supported by this server yet"


@dataclass(frozen=True, slots=True)
class Refusal:
    """`why` completes a sentence that begins with the field. Null and the `neutral` values ask for
    nothing and are accepted.
    """

    why: str
    neutral: tuple[object, ...] = OFF


def _replaced(by: str) -> Refusal:
    # {} asks for a form, too; vLLM ignores these fields, which is worse than a 400.
    return Refusal(f"was replaced by structured_outputs={{{by!r}: ...}}, which {_LATER}", ())


REFUSED: dict[str, Refusal] = {
    "best_of": Refusal(
        "is not supported: ask for n answers with logprobs and keep the best", (*OFF, 1)
    ),
    "suffix": Refusal(
        "is not supported: write the text before and after into prompt, in the model's own format"
    ),
    "guided_json": _replaced("json"),
    "guided_regex": _replaced("regex"),
    "guided_choice": _replaced("choice"),
    "guided_grammar": _replaced("grammar"),
    "guided_whitespace_pattern": _replaced("whitespace_pattern"),
    "structured_outputs": Refusal(_LATER, ()),
    "structural_tag": Refusal(_LATER, ()),
    "response_format": Refusal(
        "must be {'type': 'text'}: no other type is supported yet", ({"type": "text"}, {})
    ),
    "tools": Refusal(_LATER),
    "tool_choice": Refusal(
        "must be 'none' or 'auto': tools are not supported yet", ("none", "auto")
    ),
    "functions": Refusal(_LATER),
    "function_call": Refusal(
        "must be 'none' or 'auto': functions are not supported yet", ("none", "auto")
    ),
    "chat_template": Refusal(
        "is taken from the server's --chat-template only: a template is code", OFF
    ),
    "documents": Refusal("is not supported: write them into the messages"),
    "prompt_embeds": Refusal("is not supported: send text or token ids", ()),
    "modalities": Refusal("must be ['text']", (["text"], *OFF)),
    "audio": Refusal("is not supported: this server writes text only"),
    "web_search_options": Refusal("is not supported: this server searches nothing", ()),
    "logits_processors": Refusal("is not supported: no code of a request is run"),
    "logprob_token_ids": Refusal("is not supported: ask for logprobs"),
    "use_beam_search": Refusal("is not supported"),
    "thinking_token_budget": Refusal(_LATER),
    "repetition_detection": Refusal("is not supported"),
}

IGNORED: dict[str, str] = {
    "user": "who asks",
    "metadata": "words for the client's own use",
    "store": "nothing is stored",
    "service_tier": "there is one",
    "safety_identifier": "who asks",
    "prompt_cache_key": "prefixes are found by themselves; cache_salt keeps them apart",
    "session_id": "who asks",
    "prediction": "would change the speed only",
    "verbosity": "of models that know it",
    "reasoning_effort": "of models that know it; chat_template_kwargs reach the template",
    "include_reasoning": "reasoning stays in the text",
    "parallel_tool_calls": "without tools",
    "length_penalty": "of beam search",
    "early_stopping": "of beam search",
    "spaces_between_special_tokens": "fast tokenizers put none",
    "stream_interval": "a chunk a token",
    "mm_processor_kwargs": "of images",
    "kv_transfer_params": "nothing is transferred",
    "vllm_xargs": "of vLLM's own extensions",
}
"""Known fields without effect, and why that does no harm."""


def is_refused(name: str) -> bool:
    """Whether a field is refused for some of its values."""
    return name in REFUSED or name.startswith("guided_")


def refuse(fields: dict[str, Any]) -> None:
    """Raise `InvalidRequest` for the first field that asks for what this server cannot give."""
    for name, value in fields.items():
        if value is None or not is_refused(name):
            continue
        refusal = REFUSED.get(name) or Refusal("was replaced by structured_outputs", ())
        if value not in refusal.neutral:
            raise InvalidRequest(f"{name} {refusal.why}", name)
