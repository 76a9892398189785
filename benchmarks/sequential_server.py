"""The server that the article starts from: Flask around `model.generate`, one request at a time.

Where there is no Flask, werkzeug (what Flask itself runs on) serves the same two paths.
"""

from __future__ import annotations

import argparse
import json
import threading
from typing import Any

import torch
import transformers
from werkzeug.serving import run_simple
from werkzeug.wrappers import Request, Response


class Generator:
    def __init__(self, folder: str, dtype: str, device: str, load_format: str) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        torch_dtype = getattr(torch, dtype)
        if load_format == "dummy":
            config = transformers.AutoConfig.from_pretrained(folder)
            with torch.device(device):
                model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch_dtype)
            for weight in model.parameters():
                torch.nn.init.uniform_(weight, -1e-3, 1e-3)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype)
        self.model = model.to(device).eval()
        self.one_at_a_time = threading.Lock()

    def complete(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        """Exactly `max_tokens` greedy tokens after the prompt."""
        with self.one_at_a_time, torch.inference_mode():
            inputs = self.tokenizer(prompt, return_tensors="pt").to(self.model.device)
            output = self.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                pad_token_id=self.tokenizer.eos_token_id,
            )
        new = output[0, inputs["input_ids"].shape[1] :]
        text = self.tokenizer.decode(new, skip_special_tokens=True)
        return {"text": text, "completion_tokens": len(new)}


def application(generator: Generator) -> Any:
    try:
        import flask
    except ImportError:
        return _plain_application(generator)
    app = flask.Flask(__name__)

    @app.get("/ready")
    def ready() -> Any:
        return flask.jsonify(server=f"flask {_version('flask')}")

    @app.post("/generate")
    def generate() -> Any:
        body = flask.request.get_json()
        return flask.jsonify(generator.complete(body["prompt"], body["max_tokens"]))

    return app


def _plain_application(generator: Generator) -> Any:
    @Request.application
    def app(request: Request) -> Response:
        if request.path == "/ready":
            result: dict[str, Any] = {"server": f"werkzeug {_version('werkzeug')}"}
        else:
            body = request.get_json()
            result = generator.complete(body["prompt"], body["max_tokens"])
        return Response(json.dumps(result), mimetype="application/json")

    return app


def _version(distribution: str) -> str:
    from importlib import metadata

    return metadata.version(distribution)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder in Hugging Face's layout")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--load-format", choices=["auto", "dummy"], default="auto")
    args = parser.parse_args()
    generator = Generator(args.model, args.dtype, args.device, args.load_format)
    run_simple("127.0.0.1", args.port, application(generator), threaded=True)


if __name__ == "__main__":
    main()
