"""The operator needs each of its rights: without any one of them something breaks."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo_operator.render import ROUTES
from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.hollow import Behaviour
from tests.cluster.kube_api import Client, Object, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import RIGHTS, Operator, environment
from tests.cluster.processes import Daemon
from tests.cluster.route_apis import RIGHTS as ROUTING_RIGHTS
from tests.cluster.route_apis import RouteApis
from tests.cluster.test_e2e import API, condition, make, manifest
from tests.cluster.test_loads import LOADS, servers  # noqa: F401

Rules = list[dict[str, Any]]

RBAC = "rbac.authorization.k8s.io/v1"
AT_ONCE = 4
SECONDS = 40.0

OF_SCALE_DOWN, OF_REMOVAL = "patch pods", "delete networkpolicies"
OF_SCALING = {f"{verb} horizontalpodautoscalers" for verb in ("get", "create", "patch")}
OF_REMOVALS = (OF_REMOVAL, "delete horizontalpodautoscalers")
OF_ROLLOUT = ("create pods", "get persistentvolumeclaims")
OF_A_METRICS_API_THAT_IS_GONE = "delete apiservices"
"""tests/cluster/test_metrics_api.py needs it."""
LATER = (OF_SCALE_DOWN, *OF_REMOVALS, *OF_ROLLOUT, OF_A_METRICS_API_THAT_IS_GONE)
"""What nothing needs before somebody changes his mind."""
MADE = ("deployments", "services", "poddisruptionbudgets", "networkpolicies")
IN_CONDITIONS = {
    *(f"{verb} {resource}" for verb in ("get", "create", "patch") for resource in MADE),
    "patch inferenceservices/scale",
    "list pods",
}
"""Rights whose lack the owner of a service is told in its conditions, and in an event. Of all
others the operator's log tells: without them it cannot know of a service, or cannot write to it.
"""


def all_rules(file: Path = RIGHTS) -> Rules:
    """Those of the ClusterRole and of the Role, as one."""
    documents = yaml.safe_load_all(file.read_text())
    return [rule for each in documents for rule in each.get("rules", ())]


def without_each(rules: Rules) -> Iterator[tuple[str, Rules]]:
    """Every right in words, and all rules but it."""
    for index, rule in enumerate(rules):
        for resource in rule["resources"]:
            for verb in rule["verbs"]:
                fewer = copy.deepcopy(rules)
                others = [each for each in rule["resources"] if each != resource]
                verbs = [each for each in rule["verbs"] if each != verb]
                fewer[index : index + 1] = [
                    {**rule, "resources": resources, "verbs": allowed}
                    for resources, allowed in (([resource], verbs), (others, rule["verbs"]))
                    if resources and allowed
                ]
                yield f"{verb} {resource}", fewer


class Scene:
    """An operator with these rights, and a service that it serves: in its own namespace, the only
    one that it looks at, or `everywhere`, in another one.
    """

    def __init__(
        self,
        cluster: Cluster,
        client: Client,
        name: str,
        rules: Rules,
        *,
        everywhere: bool = False,
        **spec: Any,
    ) -> None:
        self._client, self._namespace = client, name
        self._served = f"{name}-served" if everywhere else name
        for each in sorted({name, self._served}):
            client.create(path_of("v1", "Namespace"), {"metadata": {"name": each}})
        client.create(path_of("v1", "ServiceAccount", name), {"metadata": {"name": "operator"}})
        beyond = [rule for rule in rules if reaches_beyond(rule, everywhere)]
        self._grant("Role", name, [rule for rule in rules if rule not in beyond])
        self._grant("ClusterRole", None, beyond)
        wishes = {"networkPolicy": {}, "autoscaling": {"maxReplicas": 9}, **spec}
        make(client, self._served, manifest("a", **wishes))
        self.service = path_of(API, "InferenceService", self._served, "a")
        variables = environment(cluster.service_account_kubeconfig(name, "operator"))
        command = [
            sys.executable, "-m", "octavo_server.cli", "operator",
            "--liveness-port=0", f"--lease-namespace={name}",
        ]  # fmt: skip
        command += [] if everywhere else [f"--namespace={name}"]
        self._daemon = Daemon(f"rights-{name}", command, cluster.folder, variables)

    def _grant(self, kind: str, namespace: str | None, rules: Rules) -> None:
        metadata = {"metadata": {"name": self._namespace}}
        self._client.create(path_of(RBAC, kind, namespace), {**metadata, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": self._namespace}
        subject = {"kind": "ServiceAccount", "name": "operator", "namespace": self._namespace}
        binding = {**metadata, "roleRef": role, "subjects": [subject]}
        self._client.create(path_of(RBAC, f"{kind}Binding", namespace), binding)

    def complaint(self, right: str = "") -> str:
        """The first line of its log that says that it may not do this, or anything; "" for none."""
        words = missing(right) if right else "forbidden: User"
        lines = self._daemon.log.read_text(errors="replace").splitlines()
        return next((line for line in lines if words in line), "")

    def told(self, right: str) -> bool:
        """The service says in its conditions, and in an event, what the operator may not do."""
        found = self._client.get(self.service)
        said = condition(found, "Ready")
        events = self._client.get(path_of("v1", "Event", self._served))["items"]
        return (
            (said.get("status"), said.get("reason")) == ("False", "Forbidden")
            and missing(right) in said["message"]
            and any(missing(right) in each["message"] for each in events)
        )

    def says(self, reason: str, words: str = "", kind: str = "RoutingReady") -> bool:
        """That condition does."""
        said = condition(self._client.get(self.service), kind)
        return said.get("reason") == reason and words in said["message"]

    def silent_about_routes(self) -> bool:
        """There are none, and the status does not speak of them."""
        paths = (path_of(ROUTES[kind], kind, self._served, "a") for kind in ROUTES)
        return (
            not condition(self._client.get(self.service), "RoutingReady")
            and not any(self._client.find(path) for path in paths)
        )  # fmt: skip

    def works(self) -> bool:
        """The pass is written, said in an event, and the lease was renewed."""
        found = self._client.get(self.service)
        lease = path_of("coordination.k8s.io/v1", "Lease", self._namespace, "octavo-operator")
        held = (self._client.find(lease) or {}).get("spec", {})
        events = self._client.get(path_of("v1", "Event", self._served))["items"]
        return (
            bool(found.get("status", {}).get("conditions"))
            and held.get("renewTime", "") > held.get("acquireTime", "")
            and any(each["involvedObject"]["kind"] == "InferenceService" for each in events)
        )

    def end(self) -> None:
        self._daemon.stop()
        for each in sorted({self._namespace, self._served}):
            self._client.delete(path_of("v1", "Namespace", None, each))
        for kind in ("ClusterRoleBinding", "ClusterRole"):
            self._client.delete(path_of(RBAC, kind, None, self._namespace))


def reaches_beyond(rule: dict[str, Any], everywhere: bool) -> bool:
    """Whether it is of the ClusterRole: of an operator that serves all namespaces all but the lease
    is, else only what is in no namespace.
    """
    if everywhere:
        return bool(rule["resources"] != ["leases"])
    return rule["resources"] in (["nodes"], ["apiservices"])


def missing(right: str) -> str:
    """How the API server says that somebody has not got it."""
    verb, resource = right.split(" ")
    return f'cannot {verb} resource "{resource}"'


@pytest.fixture
def no_other(operator: Operator) -> Iterator[None]:
    """The session's operator would do the work of those that may not."""
    operator.stop()
    yield
    operator.restart()


@pytest.mark.usefixtures("no_other")
def test_none_is_superfluous_and_none_is_missing(
    cluster: Cluster, client: Client, namespace: str
) -> None:
    rules = all_rules()
    cases = [("", rules), *(each for each in without_each(rules) if each[0] not in LATER)]
    assert len(cases) > 20

    def outcome(index: int) -> tuple[str, str]:
        removed, left = cases[index]
        scene = Scene(cluster, client, f"{namespace}-{index}", left)
        try:
            if removed in OF_SCALING:
                words = missing(removed)
                told = lambda: scene.says("Forbidden", words, "AutoscalingReady")  # noqa: E731
                wait_for(words, told, SECONDS, scene.complaint)
                return removed, words
            what = f"what comes without {removed}"
            wait_for(what, lambda: scene.complaint(removed) or scene.works(), SECONDS)
            if removed in IN_CONDITIONS:
                wait_for(f"{removed} in the conditions", lambda: scene.told(removed), SECONDS)
            return removed, scene.complaint(removed)
        finally:
            scene.end()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(pool.map(outcome, range(len(cases))))
    assert found.pop("") == ""
    assert found.keys() >= IN_CONDITIONS
    superfluous = [removed for removed, complaint in found.items() if not complaint]
    assert superfluous == []
    for removed, complaint in found.items():
        print(f"{removed}: {complaint[:200]}")


@pytest.mark.parametrize(
    ("right", "change"),
    [
        (OF_SCALE_DOWN, {"replicas": 1}),
        *((right, {"engine": {"maxModelLen": 99}}) for right in OF_ROLLOUT),
    ],
)
@pytest.mark.usefixtures("no_other", "servers")
def test_the_rights_that_only_a_scale_down_or_a_rollout_needs(
    cluster: Cluster,
    client: Client,
    namespace: str,
    nodes: Callable[..., Node],
    right: str,
    change: dict[str, Any],
) -> None:
    addresses = iter(LOADS)
    given: dict[str, str] = {}

    def script(pod: Object) -> Behaviour:
        name = pod["metadata"]["name"]
        if name not in given:
            given[name] = next(addresses)
        return Behaviour(address=given[name])

    nodes(gpus=len(LOADS), script=script)
    (rules,) = [left for removed, left in without_each(all_rules()) if removed == right]
    # Of a claim that is not there: its pods wait, and the rollout begins all the same.
    cache = {"cache": {"persistentVolumeClaim": "cache"}} if "claims" in right else {}
    scene = Scene(
        cluster, client, f"{namespace}-later", rules,
        replicas=len(LOADS), autoscaling=None, **cache,
    )  # fmt: skip
    try:

        def all_serve() -> bool:
            status = client.get(scene.service).get("status", {})
            return bool(status.get("readyReplicas") == len(LOADS))

        wait_for("all pods", scene.works if cache else all_serve, SECONDS)
        assert scene.complaint() == ""
        client.patch(scene.service, {"spec": change})
        wait_for("the complaint", lambda: scene.complaint(right), SECONDS)
    finally:
        scene.end()


@pytest.mark.parametrize(
    ("right", "field", "kind"),
    [
        (OF_REMOVALS[0], "networkPolicy", ("networking.k8s.io/v1", "NetworkPolicy")),
        (OF_REMOVALS[1], "autoscaling", ("autoscaling/v2", "HorizontalPodAutoscaler")),
    ],
)
@pytest.mark.usefixtures("no_other")
def test_the_rights_that_only_what_is_no_longer_wanted_needs(
    cluster: Cluster, client: Client, namespace: str, right: str, field: str, kind: tuple[str, str]
) -> None:
    (rules,) = [left for removed, left in without_each(all_rules()) if removed == right]
    scene = Scene(cluster, client, f"{namespace}-removal", rules)
    made = path_of(*kind, f"{namespace}-removal", "a")
    try:
        wait_for("it", lambda: client.find(made) is not None, SECONDS)
        wait_for("its work", scene.works, SECONDS, scene.complaint)
        assert scene.complaint() == ""
        client.patch(scene.service, {"spec": {field: None}})
        if field == "autoscaling":
            words = missing(right)
            told = lambda: scene.says("Forbidden", words, "AutoscalingReady")  # noqa: E731
            wait_for(words, told, SECONDS, scene.complaint)
            return
        wait_for("the complaint", lambda: scene.complaint(right), SECONDS)
        wait_for("it in the conditions", lambda: scene.told(right), SECONDS)
    finally:
        scene.end()


@pytest.mark.usefixtures("no_other")
def test_the_rights_of_an_operator_of_all_namespaces(
    cluster: Cluster, client: Client, namespace: str
) -> None:
    """What it lists and watches it asks for at the cluster's scope; all else it does as one of a
    single namespace does. Here several look at the same services, so each is judged by its log.
    """
    rules = all_rules()
    scene = Scene(cluster, client, f"{namespace}-all", rules, everywhere=True)
    try:
        wait_for("its work", scene.works, SECONDS, scene.complaint)
        assert scene.complaint() == ""
    finally:
        scene.end()
    cases = [each for each in without_each(rules) if each[0].startswith(("list ", "watch "))]
    assert len(cases) == 15

    def outcome(index: int) -> str:
        removed, left = cases[index]
        scene = Scene(cluster, client, f"{namespace}-{index}", left, everywhere=True)
        try:
            what = f"the log says that it may not {removed}"
            return wait_for(what, lambda: scene.complaint(removed), SECONDS)
        finally:
            scene.end()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for complaint in pool.map(outcome, range(len(cases))):
            assert "at the cluster scope" in complaint


ROUTED = {
    "gateways": [{"name": "public"}],
    "inferencePool": {"endpointPicker": {"name": "picker"}},
}


@pytest.mark.usefixtures("no_other")
def test_the_rights_on_routes(
    cluster: Cluster, client: Client, namespace: str, route_apis: RouteApis
) -> None:
    """Each that is missing is told in RoutingReady; a watch in the log: passes do its work."""
    route_apis.install()
    rules, routing = all_rules(), all_rules(ROUTING_RIGHTS)
    cases = [(removed, rules + left) for removed, left in without_each(routing)]
    assert len(cases) == 10
    cases += [("", rules + routing), ("", rules + routing)]

    def outcome(index: int) -> str:
        removed, left = cases[index]
        verb = removed.partition(" ")[0]
        name, everywhere = f"{namespace}-{index}", index == len(cases) - 1
        scene = Scene(cluster, client, name, left, everywhere=everywhere, routing=ROUTED)
        try:
            if verb in ("get", "create", "patch"):
                words = missing(removed)
                wait_for(words, lambda: scene.says("Forbidden", words), SECONDS, scene.complaint)
                return removed
            wait_for("both", lambda: scene.says("AwaitingGateway"), SECONDS, scene.complaint)
            if verb == "watch":
                wait_for(removed, lambda: scene.complaint(removed), SECONDS)
                return removed
            client.patch(scene.service, {"spec": {"routing": None}})
            if verb == "delete":
                words = missing(removed)
                wait_for(words, lambda: scene.says("Forbidden", words), SECONDS, scene.complaint)
                return removed
            wait_for("silence", lambda: scene.silent_about_routes(), SECONDS, scene.complaint)
            assert scene.complaint() == ""
            return removed
        finally:
            scene.end()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert list(pool.map(outcome, range(len(cases)))) == [each for each, _ in cases]


@pytest.mark.parametrize("word", ["*", "secrets", "escalate", "impersonate", "bind"])
def test_what_it_must_never_have(word: str) -> None:
    for rule in all_rules():
        assert word not in rule["verbs"] + rule["resources"] + rule["apiGroups"]


def test_what_it_may_delete() -> None:
    deleting = [rule["resources"] for rule in all_rules() if "delete" in rule["verbs"]]
    assert deleting == [["networkpolicies"], ["horizontalpodautoscalers"], ["apiservices"]]
