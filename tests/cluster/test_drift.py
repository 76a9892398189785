"""What we set comes back when somebody changes it, on the event; what others set stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from octavo_operator.installation import Installation
from octavo_operator.render import ALWAYS, SOMETIMES, render
from octavo_operator.spec import parse
from tests.cluster.cluster import wait_for
from tests.cluster.edits import NOT_ALONE, Edit, edits_of, holds, is_key, value_at
from tests.cluster.hollow import steady
from tests.cluster.kube_api import ApiError, Client, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import NAMESPACE, Operator
from tests.cluster.test_e2e import API, make, manifest, wait_for_condition

pytestmark = pytest.mark.usefixtures("operator")

KINDS = {**ALWAYS, **SOMETIMES}
JSON_PATCH = "application/json-patch+json"
BY_HAND = "fieldManager=somebody"
# Far less than the 300 s after which everything is looked at anyway.
SECONDS = 20.0
AT_ONCE = 12

IDENTITY = {"apiVersion", "kind", "metadata.name", "metadata.namespace"}
IMMUTABLE = {
    "Deployment": IDENTITY
    | {
        "spec.selector.matchLabels.octavo.dev/service",
        # The selector selects by it.
        "spec.template.metadata.labels.octavo.dev/service",
    },
    "Service": IDENTITY,
    "PodDisruptionBudget": IDENTITY,
    "NetworkPolicy": IDENTITY,
}
"""What the API server lets nobody change."""


@pytest.fixture
def service(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator
) -> dict[str, Any]:
    nodes(gpus=4, script=steady)
    drain, secret = {"seconds": 30}, {"name": "clients"}
    made = manifest(
        "a",
        {"maxModelLen": 512},
        replicas=2,
        drain=drain,
        apiKeySecretRef=secret,
        networkPolicy={"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]},
    )
    make(client, namespace, made)
    wait_for_condition(client, namespace, "a", lambda c: c.get("status") == "True")
    made["metadata"]["namespace"] = namespace
    # A pass that read before an edit sets it back without a word of whose it was.
    wait_for("rest", lambda: operator.requests_in(0.5) == 0, 30)
    return made


class Child:
    """The live object, and what the operator renders it from."""

    def __init__(self, client: Client, service: dict[str, Any], kind: str) -> None:
        self._client = client
        self._path = path_of(KINDS[kind], kind, service["metadata"]["namespace"], "a")
        objects = render(
            parse(service),
            image="octavo-server:0.1.0",
            replicas=2,
            installation=Installation(namespace=NAMESPACE),
        )
        self.rendered = next(each for each in objects if each["kind"] == kind)

    def live(self) -> dict[str, Any]:
        found = self._client.find(self._path)
        return {} if found is None else found

    def patch(self, edits: list[Edit], *, dry: bool = False) -> dict[str, Any]:
        """Their places are looked up just before, so that none hits an item of somebody else's."""
        live = self.live()
        operations = [one for edit in edits for one in edit.operations(self.rendered, live)]
        how = f"{self._path}?{BY_HAND}" + ("&dryRun=All" if dry else "")
        return self._client.patch(how, operations, JSON_PATCH)  # type: ignore[arg-type]

    def refuses(self, edit: Edit) -> bool:
        try:
            self.patch([edit], dry=True)
        except ApiError:
            return True
        return False

    def comes_back(self, edits: list[Edit]) -> None:
        """Makes them, sees each in the answer, and waits until nothing is left of them."""
        before = self.live()
        places = [edit.place(self.rendered, before) for edit in edits]
        answer = self.patch(edits)
        for edit, place in zip(edits, places, strict=True):
            assert str(value_at(answer, place)) == str(edit.value), edit
        assert not holds(answer, self.rendered), edits
        what = ", ".join(f"{edit.name}={edit.value!r}" for edit in edits)
        wait_for(f"back: {what}", lambda: holds(self.live(), self.rendered), SECONDS, self.live)

    def again(self) -> None:
        """Another object in its place, with nothing in it of what was changed before."""
        uid = self.live()["metadata"]["uid"]
        self._client.delete(self._path)

        def new() -> bool:
            live = self.live()
            return bool(live) and live["metadata"]["uid"] != uid and holds(live, self.rendered)

        wait_for("a new object", new, SECONDS, self.live)


@pytest.mark.parametrize("kind", KINDS)
def test_each_value_that_we_set_comes_back(
    client: Client, service: dict[str, Any], kind: str
) -> None:
    child = Child(client, service, kind)
    assert holds(child.live(), child.rendered)
    edits = edits_of(child.rendered)
    refused = {edit.name for edit in edits if child.refuses(edit)}
    assert refused == IMMUTABLE[kind]
    values = [edit for edit in edits if edit.name not in refused and not is_key(edit.path)]
    assert len(values) > (60 if kind == "Deployment" else 5)
    simple = [edit for edit in values if edit.path[-2:] not in NOT_ALONE]
    for begin in range(0, len(simple), AT_ONCE):
        child.comes_back(simple[begin : begin + AT_ONCE])
    for edit in values:
        if edit not in simple:
            child.comes_back([edit])


@pytest.mark.parametrize("kind", ["Deployment", "Service"])
def test_each_item_whose_key_is_changed_comes_back(
    client: Client, service: dict[str, Any], kind: str
) -> None:
    """To server-side apply that is another item, of somebody else's, beside which ours returns."""
    child = Child(client, service, kind)
    keys = [edit for edit in edits_of(child.rendered) if is_key(edit.path)]
    assert len(keys) > (10 if kind == "Deployment" else 1)
    for edit in keys:
        child.comes_back([edit])
        child.again()


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
