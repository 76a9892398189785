"""What we set comes back when somebody changes it, on the event; what others set stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from octavo_operator.render import render
from octavo_operator.spec import parse
from tests.cluster.cluster import wait_for
from tests.cluster.hollow import steady
from tests.cluster.kube_api import ApiError, Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.test_e2e import API, make, manifest, wait_for_condition

pytestmark = pytest.mark.usefixtures("operator")

Path = tuple[str | int, ...]

KINDS = {"Deployment": "apps/v1", "Service": "v1", "PodDisruptionBudget": "policy/v1"}
JSON_PATCH = "application/json-patch+json"
BY_HAND = "fieldManager=somebody"
# Far less than the 300 s after which everything is looked at anyway.
SECONDS = 20.0
AT_ONCE = 12


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from leaves(each, (*path, index))
    else:
        yield path, value


def holds(live: Any, ours: Any) -> bool:
    """Whether all that we set is there, in lists among what others may have added."""
    if isinstance(ours, dict):
        return isinstance(live, dict) and all(holds(live.get(key), ours[key]) for key in ours)
    if isinstance(ours, list):
        return isinstance(live, list) and all(
            any(holds(each, one) for each in live) for one in ours
        )
    return str(live) == str(ours)  # an amount of 1 is kept as "1"


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else f"{value}x"


def change(path: Path, value: Any) -> dict[str, Any]:
    steps = [str(step).replace("~", "~0").replace("/", "~1") for step in path]
    return {"op": "replace", "path": "/" + "/".join(steps), "value": value}


@pytest.fixture
def service(client: Client, namespace: str, nodes: Callable[..., Node]) -> dict[str, Any]:
    nodes(gpus=4, script=steady)
    drain, secret = {"seconds": 30}, {"name": "clients"}
    made = manifest("a", {"maxModelLen": 512}, replicas=2, drain=drain, apiKeySecretRef=secret)
    make(client, namespace, made)
    wait_for_condition(client, namespace, "a", lambda c: c.get("status") == "True")
    made["metadata"]["namespace"] = namespace
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_each_value_that_we_set_comes_back(
    client: Client, namespace: str, service: dict[str, Any], kind: str
) -> None:
    own = path_of(KINDS[kind], kind, namespace, "a")
    before = client.get(own)
    rendered = next(
        each
        for each in render(parse(service), image="octavo-server:0.1.0", replicas=2)
        if each["kind"] == kind
    )
    assert holds(before, rendered)
    changes, refused = [], []
    for path, value in leaves(rendered):
        one = change(path, another(value))
        try:
            client.patch(f"{own}?{BY_HAND}&dryRun=All", [one], JSON_PATCH)  # type: ignore[arg-type]
            changes.append(one)
        except ApiError:
            refused.append(path)
    # A Service's or a budget's selector is mutable, a Deployment's is not.
    assert len(changes) > (20 if kind == "Deployment" else 5), refused
    for begin in range(0, len(changes), AT_ONCE):
        some = changes[begin : begin + AT_ONCE]
        client.patch(f"{own}?{BY_HAND}", some, JSON_PATCH)  # type: ignore[arg-type]
        wait_for(
            f"{some}", lambda: holds(client.get(own), rendered), SECONDS, lambda: client.get(own)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_child_comes_back(
    client: Client, namespace: str, service: dict[str, Any], kind: str
) -> None:
    own = path_of(KINDS[kind], kind, namespace, "a")
    uid = client.get(own)["metadata"]["uid"]
    client.delete(own)

    def again() -> bool:
        found = client.find(own)
        return found is not None and found["metadata"]["uid"] != uid

    wait_for(f"a new {kind}", again, SECONDS)


def test_what_others_set_stays(client: Client, namespace: str, service: dict[str, Any]) -> None:
    own = path_of("apps/v1", "Deployment", namespace, "a")
    theirs = {
        "metadata": {"labels": {"team": "x"}, "annotations": {"example.com/owner": "y"}},
        "spec": {"template": {"spec": {
            "priority": 0,
            "containers": [{"name": "octavo", "env": [{"name": "THEIRS", "value": "1"}],
                            "image": "somebody/else:1"}],
        }}},
    }  # fmt: skip
    client.patch(f"{own}?{BY_HAND}", theirs, "application/strategic-merge-patch+json")

    def container() -> dict[str, Any]:
        found: dict[str, Any] = client.get(own)["spec"]["template"]["spec"]["containers"][0]
        return found

    wait_for("our image", lambda: container()["image"] == "octavo-server:0.1.0", SECONDS)

    def told() -> list[str]:
        events = client.get(path_of("v1", "Event", namespace))["items"]
        return [each["message"] for each in events if each["reason"] == "ForeignChange"]

    (message,) = wait_for("an event", told)
    image = "spec.template.spec.containers[octavo].image"
    assert message == f"Deployment: {image} changed by somebody; set back"
    live = client.get(own)
    assert live["metadata"]["labels"]["team"] == "x"
    assert live["metadata"]["annotations"]["example.com/owner"] == "y"
    assert {"name": "THEIRS", "value": "1"} in container()["env"]
    # Another pass, for a reason of its own, leaves them too.
    path = path_of(API, "InferenceService", namespace, "a")
    client.patch(path, {"spec": {"engine": {"maxModelLen": 1024}}})
    wait_for("the pass", lambda: "--max-model-len=1024" in container()["args"], SECONDS)
    assert {"name": "THEIRS", "value": "1"} in container()["env"]
    assert client.get(own)["metadata"]["labels"]["team"] == "x"
