"""An engine in a process of its own, told what to do by lines of JSON: see test_memory.py.

The first line is the settings of `EngineConfig`, each further one a request: `prompt` (tokens) and
parameters. Answers are lines of JSON too: `log`, then `ready` or `refused`, then one a request.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / name) for name in ("server", "kernels"))]

# ruff: noqa: E402
import torch

from octavo_server.config import EngineConfig
from octavo_server.engine.build import build_engine
from octavo_server.engine.core import EngineCore
from octavo_server.engine.memory import foreign_bytes
from octavo_server.engine.messages import Add
from octavo_server.errors import EngineDead, StartupError
from octavo_server.sampling_params import SamplingParams


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def used_bytes(device: str) -> tuple[int, int]:
    """In use on the GPU by anybody, and its size."""
    if device == "cpu":
        return 0, 1
    free, total = torch.cuda.mem_get_info()
    return total - free, total


def answer(core: EngineCore, number: int, asked: dict[str, Any]) -> dict[str, Any]:
    """Tokens and error of one request that runs alone."""
    length = asked.pop("prompt")
    # Ids of its own: a hit in the prefix cache would hide most of the prompt.
    prompt = [(number * 31 + place * 7) % core.ready.vocab_size for place in range(length)]
    if asked.pop("same", False):
        prompt = [3] * length
    params = SamplingParams(**({"temperature": 0.0, "max_tokens": 4, "ignore_eos": True} | asked))
    core.add(Add(str(number), prompt, params, time.monotonic()))
    found: dict[str, Any] = {"tokens": [], "error": None}
    while core.has_work:
        report = core.step()
        for output in report.outputs if report else ():
            found["tokens"] += output.token_ids
            found["error"] = found["error"] or output.error
    return found


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    device = settings.get("device", "cuda")
    try:
        before = foreign_bytes(torch.device(device)) if device != "cpu" else 0
        core = build_engine(EngineConfig(**settings), lambda text: say(log=text))
    except StartupError as error:
        say(refused=str(error), reason=error.reason)
        sys.exit(error.exit_code)
    say(ready=True, used_before=before)
    for number, line in enumerate(sys.stdin):
        try:
            found = answer(core, number, json.loads(line))
        except EngineDead as error:
            say(dead=str(error))
            sys.exit(1)
        used, total = used_bytes(device)
        say(**found, used=used, total=total)


if __name__ == "__main__":
    main()
