"""What transformers would have chosen in half precision after each token of an answer: its best
five, for ties within rounding differ.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

TOP = 5


def best_ids(
    folder: Path,
    dtype: str,
    prompts: list[list[int]],
    outputs: list[list[int]],
    device: str = "cuda",
) -> list[list[list[int]]]:
    """For each token of each output, the ids that are best after what stands before it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager", device_map=device
    ).eval()
    found = []
    for prompt, output in zip(prompts, outputs, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + output], device=device)).logits[0]
        found.append(logits[len(prompt) - 1 : -1].float().topk(TOP).indices.tolist())
    return found


def check_greedy(
    folder: Path,
    dtype: str,
    prompts: list[list[int]],
    outputs: list[list[int]],
    device: str = "cuda",
) -> None:
    """Assert that every token is among the best five, and nine of ten the very best."""
    best = best_ids(folder, dtype, prompts, outputs, device)
    agreed = 0
    for theirs, ours in zip(best, outputs, strict=True):
        for choices, token_id in zip(theirs, ours, strict=True):
            assert token_id in choices
            agreed += token_id == choices[0]
    assert agreed > 0.9 * sum(map(len, outputs))
