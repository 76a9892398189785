"""What people serve with before they look for a server, timed beside Octavo on the same machine.

    python -m benchmarks.rows.live --folder DIR --scenarios flask,transformers

The article's sequential Flask server (werkzeug alone where there is no Flask) and one static batch
in `transformers.generate`, both with gpt2-large's shape and dummy weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.rows.client import Clients, http_request, requests_per_second
from benchmarks.rows.reporting import note, sample, scenario
from benchmarks.rows.workloads import FULL, PROMPT, TINY, model
from benchmarks.servers import ROOT, free_port, running


def flask(args: argparse.Namespace) -> None:
    """All requests at once; the server answers one at a time, as the article's does."""
    sizes, shape = (TINY if args.tiny else FULL), model("gpt2", tiny=args.tiny)
    port = free_port()
    argv = [sys.executable, str(ROOT / "benchmarks" / "sequential_server.py"), str(args.folder)]
    argv += ["--port", str(port), "--dtype", shape.dtype, "--device", shape.device]
    argv += ["--load-format", "dummy"]
    body = {"prompt": PROMPT, "max_tokens": sizes.s1_tokens}
    request = http_request(port, "/generate", body)
    log = args.logs / "flask.log"
    with Clients(1) as clients, running("flask", argv, port=port, ready_path="/ready", log=log):
        clients.send(port, [request], [0.0])
        for _ in range(args.repeats):
            count = sizes.flask_requests
            answers = clients.send(port, [request] * count, [0.0] * count)
            sample("flask_s1", requests_per_second(answers))
    note("flask_s1", requests=sizes.flask_requests)


def transformers(args: argparse.Namespace) -> None:
    """One batch of all requests, tokenised and decoded; the fastest that generate alone gets."""
    import torch
    from benchmarks.sequential_server import Generator

    sizes, shape = (TINY if args.tiny else FULL), model("gpt2", tiny=args.tiny)
    generator = Generator(str(args.folder), shape.dtype, shape.device, "dummy")
    count, tokens = sizes.s1_requests, sizes.s1_tokens
    for repeat in range(1 + args.repeats):
        began = time.perf_counter()
        with torch.inference_mode():
            inputs = generator.tokenizer([PROMPT] * count, return_tensors="pt")
            output = generator.model.generate(
                **inputs.to(generator.model.device),
                do_sample=False,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                pad_token_id=generator.tokenizer.eos_token_id,
            )
        generator.tokenizer.batch_decode(output, skip_special_tokens=True)
        if repeat:
            sample("hf_s1", count / (time.perf_counter() - began))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--scenarios", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    runs = {"flask": flask, "transformers": transformers}
    for name in args.scenarios.split(","):
        with scenario(name):
            runs[name](args)


if __name__ == "__main__":
    main()
