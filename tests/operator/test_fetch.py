"""The container that fetches the model before the server's starts."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.services import service

from octavo_operator.render import render_deployment


def pod(**spec: Any) -> dict[str, Any]:
    rendered = render_deployment(service(**spec), image="octavo-server:1", replicas=1)
    found: dict[str, Any] = rendered["spec"]["template"]["spec"]
    return found


def fetch(**spec: Any) -> dict[str, Any]:
    (found,) = (each for each in pod(**spec)["initContainers"] if each["name"] == "octavo-fetch")
    assert isinstance(found, dict)
    return found


def template(**server: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "octavo", **server}]}}


def test_the_same_image_cache_and_user_and_no_gpu() -> None:
    limits = {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": 1}
    made = pod(uri="hf://org/tiny@v1", resources={"limits": limits})
    (server,), (first,) = made["containers"], made["initContainers"]
    assert first["command"] == ["octavo", "fetch", "org/tiny"]
    assert first["args"] == ["--revision=v1", "--progress-port=8000"]
    for key in ("image", "volumeMounts", "securityContext", "env"):
        assert first[key] == server[key]
    assert first["resources"] == {"limits": {"cpu": "4", "memory": "16Gi"}}
    assert "resources" not in fetch()


@pytest.mark.parametrize("uri", ["file:///m.gguf", "pvc://claim/path", "oci://registry/model:1"])
def test_only_models_of_the_hub_are_fetched(uri: str) -> None:
    assert "initContainers" not in pod(uri=uri)


def test_the_token_and_the_endpoint_reach_it_the_servers_key_does_not() -> None:
    made = fetch(
        model={"secretRef": {"name": "hub"}, "endpoint": "http://mirror"},
        apiKeySecretRef={"name": "keys"},
        engine={"env": [{"name": "HTTPS_PROXY", "value": "http://proxy"}]},
    )
    names = [each["name"] for each in made["env"]]
    assert {"HF_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY", "HF_HOME"} <= set(names)
    assert "OCTAVO_API_KEY" not in names


def test_what_the_pod_template_gives_the_server_it_has_too() -> None:
    made = fetch(
        podTemplate=template(
            env=[{"name": "SSL_CERT_FILE", "value": "/ca/ca.crt"}],
            volumeMounts=[{"name": "ca", "mountPath": "/ca"}],
            image="mirror/octavo-server:1",
            imagePullPolicy="Always",
        )
    )
    assert {"name": "SSL_CERT_FILE", "value": "/ca/ca.crt"} in made["env"]
    assert {"name": "ca", "mountPath": "/ca"} in made["volumeMounts"]
    assert (made["image"], made["imagePullPolicy"]) == ("mirror/octavo-server:1", "Always")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--download-dir=/models"], ["--download-dir=/models"]),
        (["--download-dir", "/models", "--seed=1"], ["--download-dir", "/models"]),
        (["--load-format=dummy"], ["--load-format=dummy"]),
        (["--download-dir"], ["--download-dir"]),  # the server says what is wrong with it
        (["--max-logprobs=5"], []),
    ],
)
def test_flags_that_say_what_is_fetched(given: list[str], expected: list[str]) -> None:
    made = fetch(engine={"extraArgs": given})
    assert made["args"] == [*expected, "--progress-port=8000"]


@pytest.mark.parametrize(
    "server",
    [{"command": ["vllm", "serve", "org/tiny"]}, {"command": None}, {"command": ["octavo"]}],
)
def test_another_server_fetches_for_itself(server: dict[str, Any]) -> None:
    assert "initContainers" not in pod(podTemplate=template(**server))


def test_the_manifests_own_come_first() -> None:
    mine = [{"name": "certificates", "image": "a"}]
    made = pod(podTemplate={"spec": {"initContainers": mine}})["initContainers"]
    assert [each["name"] for each in made] == ["certificates", "octavo-fetch"]


def test_one_of_its_name_is_merged_over_it_in_its_place() -> None:
    mine = [
        {
            "name": "octavo-fetch",
            "env": [{"name": "A", "value": "1"}],
            "resources": {"limits": {"cpu": 1}},
        },
        {"name": "after", "image": "a"},
    ]
    first, second = pod(podTemplate={"spec": {"initContainers": mine}})["initContainers"]
    assert first["command"] == ["octavo", "fetch", "org/tiny"]
    assert {"name": "A", "value": "1"} in first["env"]
    assert first["resources"] == {"limits": {"cpu": 1}}
    assert second == mine[1]


def test_an_image_without_the_command_can_do_without_it() -> None:
    mine = [{"name": "octavo-fetch", "command": ["true"]}]
    made = fetch(podTemplate={"spec": {"initContainers": mine}})
    assert made["command"] == ["true"]


@pytest.mark.parametrize(
    "spec",
    [
        {"initContainers": "none"},
        {"initContainers": [None, "word"]},
        {"containers": [{"name": "octavo", "env": ["word", None], "args": "words"}]},
        {"containers": [{"name": "octavo", "resources": "all"}]},
    ],
)
def test_nonsense_is_the_api_servers_to_refuse(spec: dict[str, Any]) -> None:
    pod(podTemplate={"spec": spec})


def test_a_container_of_somebody_elses_named_fetch_is_none_of_ours() -> None:
    """Names of init and other containers are one set, which the API server looks at."""
    logs = {"name": "fetch", "image": "logs"}
    copies = {"name": "fetch", "image": "aws-cli", "command": ["aws", "s3", "sync", "s3://a", "/b"]}
    made = pod(podTemplate={"spec": {"containers": [logs]}})
    found = [each["name"] for each in [*made["initContainers"], *made["containers"]]]
    assert sorted(found) == sorted(set(found))
    made = pod(podTemplate={"spec": {"initContainers": [copies]}})
    assert made["initContainers"][0] == copies
    assert [each["name"] for each in made["initContainers"]] == ["fetch", "octavo-fetch"]


def test_another_program_in_its_place_gets_none_of_its_arguments() -> None:
    mine = {"name": "octavo-fetch", "command": ["aws", "s3", "sync", "s3://a", "/b"]}
    (made,) = pod(podTemplate={"spec": {"initContainers": [mine]}})["initContainers"]
    assert "args" not in made and made["command"] == mine["command"]
