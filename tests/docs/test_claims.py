"""docs/models-on-a-claim.md: its Job's command fills a folder that its InferenceService serves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.docs.blocks import documents, of_kind
from tests.server.loading.hub_server import running_hub
from tests.server.tiny_models import make_tiny

from octavo_operator.render import render
from octavo_operator.render.deployment import USER_ID
from octavo_operator.spec import parse

MANIFESTS = [
    each
    for block in of_kind("manifests")
    if block.page.endswith("models-on-a-claim.md")
    for each in documents(block.text)
]
(JOB,) = [each for each in MANIFESTS if each["kind"] == "Job"]
SERVICES = [each for each in MANIFESTS if each["kind"] == "InferenceService"]
POD = JOB["spec"]["template"]["spec"]
COMMAND = POD["containers"][0]["command"]
MOUNT = POD["containers"][0]["volumeMounts"][0]["mountPath"]


def fill(folder: Path, hub: str, token: str = "") -> subprocess.CompletedProcess[str]:
    """The Job, with `folder` where it mounts the claim."""
    program = Path(sys.executable).parent / COMMAND[0]
    command = [str(program), *(each.replace(MOUNT, str(folder)) for each in COMMAND[1:])]
    quiet = {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "home"), "PATH": os.environ["PATH"]}
    environment = quiet | ({"HF_TOKEN": token} if token else {})
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_job_fills_what_the_service_reads(tmp_path: Path) -> None:
    repository = COMMAND[COMMAND.index("download") + 1]
    deployment = next(each for each in render(parse(SERVICES[0])) if each["kind"] == "Deployment")
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["command"][-1] == COMMAND[-1]
    assert MOUNT in [each["mountPath"] for each in container["volumeMounts"]]
    (claim,) = [each for each in pod["volumes"] if each["name"] == "model"]
    assert claim["persistentVolumeClaim"] == {
        "claimName": POD["volumes"][0]["persistentVolumeClaim"]["claimName"],
        "readOnly": True,
    }
    with running_hub() as hub:
        hub.repositories[repository] = make_tiny("qwen3", tmp_path / "repository")
        hub.gated[repository] = "hf_abc"
        refused = fill(tmp_path / "without", hub.url)
        assert refused.returncode != 0
        filled = fill(tmp_path / "claim", hub.url, "hf_abc")
        assert filled.returncode == 0, filled.stderr
    folder = tmp_path / "claim" / Path(COMMAND[-1]).name
    from octavo_server import LLM, SamplingParams  # late: it loads Triton, which others set up

    llm = LLM(str(folder), device="cpu", kv_cache_memory_bytes="4MiB", max_model_len=64)
    (answer,) = llm.generate([[3, 4]], SamplingParams(max_tokens=2))
    assert len(answer.outputs[0].token_ids) > 0
    llm.close()


def test_it_writes_as_the_user_that_reads() -> None:
    assert {POD["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {
        USER_ID
    }


def test_the_cache_is_where_the_page_says() -> None:
    page = "docs/models-on-a-claim.md"
    deployment = next(each for each in render(parse(SERVICES[1])) if each["kind"] == "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "cache"]
    places = {each["name"]: each.get("value", "") for each in container["env"]}
    text = (Path(__file__).resolve().parents[2] / page).read_text(encoding="utf-8")
    assert f"mounted at `{mount['mountPath']}` for writing" in text
    for name in ("HF_HOME", "TRITON_CACHE_DIR"):
        assert f"(`{name}`)" in text and places[name].startswith(mount["mountPath"] + "/")
