"""The main job on a laptop: serve examples/smollm2.yaml without a cluster and ask it a question.

`make demo` runs this. Exits 0 if the answer names Paris, else 1 with one line that says why.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from fetch_demo_model import FetchFailed, demo_model

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = Path("examples") / "smollm2.yaml"
QUESTION = "What is the capital of France?"
NEXT = """Try next:
  source .venv/bin/activate
  octavo up -f examples/smollm2.yaml --volume /models=.cache/models    # the same, until Ctrl-C
  octavo serve .cache/models/SmolLM2-135M-Instruct.Q4_1.gguf           # docs/serve-a-model.md
  octavo render -f examples/smollm2.yaml                               # what a cluster would get"""
READY_TIMEOUT_SECONDS = 150.0
STOP_TIMEOUT_SECONDS = 30.0


class DemoFailed(Exception):
    """One line that says what went wrong."""


def main() -> None:
    began = time.monotonic()
    try:
        model = demo_model()
        run(model.parent)
    except (DemoFailed, FetchFailed) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"Done in {time.monotonic() - began:.1f} s. {NEXT}")


def run(models: Path) -> None:
    """`octavo up`, one question, a clean stop."""
    command = ["up", "-f", str(MANIFEST), "--volume", f"/models={models}", "--exit-on-failure"]
    print(f"$ octavo up -f {MANIFEST} --volume /models={os.path.relpath(models)}", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "octavo_server.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C reaches this process alone, which then stops `up` once
    )
    try:
        url = wait_ready(process)
        print(f"\nQ: {QUESTION}")
        answer = ask(url)
        print(f"A: {answer}\n", flush=True)
        if "Paris" not in answer:
            raise DemoFailed("the answer does not name Paris")
    finally:
        code = stop(process)
    if code != 0:
        raise DemoFailed(f"`octavo up` ended with {code} after its stop was asked for")


def wait_ready(process: subprocess.Popen[str]) -> str:
    """Echoes what `octavo up` prints until the pod's row says Ready; returns the URL there."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line.rstrip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    last = ""
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            message = f"the model is not ready after {READY_TIMEOUT_SECONDS:.0f} s"
            raise DemoFailed(message) from None
        if line is None:
            raise DemoFailed(f"`octavo up` ended before the model was ready: {last}")
        print(f"  {line}", flush=True)
        last = line or last
        if ready := re.search(r"\sReady\s.*(http://\S+)", line):
            return ready.group(1).rstrip("/")


def ask(url: str) -> str:
    """The answer of POST /v1/chat/completions, greedy."""
    base = url if url.endswith("/v1") else f"{url}/v1"
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 64,
    }
    request = urllib.request.Request(
        f"{base}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            answer: str = json.load(response)["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
        raise DemoFailed(f"HTTP {error.code}: {error.read().decode(errors='replace')}") from None
    except OSError as error:
        raise DemoFailed(f"no answer from {base}: {error}") from None
    return answer.strip()


def stop(process: subprocess.Popen[str]) -> int:
    """SIGTERM, as Kubernetes would; the exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


if __name__ == "__main__":
    main()
