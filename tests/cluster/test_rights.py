"""The operator needs each of its rights: without any one of them something breaks."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml

from tests.cluster.cluster import Cluster, wait_for
from tests.cluster.kube_api import Client, path_of
from tests.cluster.operator_process import RIGHTS, Operator, environment
from tests.cluster.processes import Daemon
from tests.cluster.test_e2e import API, make, manifest

Rules = list[dict[str, Any]]

RBAC = "rbac.authorization.k8s.io/v1"
AT_ONCE = 4
SECONDS = 40.0


def all_rules() -> Rules:
    """Those of the ClusterRole and of the Role, as one."""
    documents = yaml.safe_load_all(RIGHTS.read_text())
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
    """An operator that serves one namespace with these rights, and a service in it."""

    def __init__(self, cluster: Cluster, client: Client, name: str, rules: Rules) -> None:
        self._client, self._namespace = client, name
        client.create(path_of("v1", "Namespace"), {"metadata": {"name": name}})
        client.create(path_of("v1", "ServiceAccount", name), {"metadata": {"name": "operator"}})
        here = [rule for rule in rules if rule["resources"] != ["nodes"]]
        self._grant("Role", name, here)
        self._grant("ClusterRole", None, [rule for rule in rules if rule not in here])
        make(client, name, manifest("a"))
        variables = environment(cluster.service_account_kubeconfig(name, "operator"))
        command = [
            sys.executable, "-m", "octavo_server.cli", "operator", f"--namespace={name}",
            "--liveness-port=0", f"--lease-namespace={name}", "--verbose",
        ]  # fmt: skip
        self._daemon = Daemon(f"rights-{name}", command, cluster.folder, variables)

    def _grant(self, kind: str, namespace: str | None, rules: Rules) -> None:
        metadata = {"metadata": {"name": self._namespace}}
        self._client.create(path_of(RBAC, kind, namespace), {**metadata, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": self._namespace}
        subject = {"kind": "ServiceAccount", "name": "operator", "namespace": self._namespace}
        binding = {**metadata, "roleRef": role, "subjects": [subject]}
        self._client.create(path_of(RBAC, f"{kind}Binding", namespace), binding)

    def complaint(self) -> str:
        """The first line of its log that says what it may not do; "" if there is none."""
        lines = self._daemon.log.read_text(errors="replace").splitlines()
        return next((line for line in lines if "forbidden" in line.lower()), "")

    def works(self) -> bool:
        """The pass is written, said in an event, and the lease was renewed."""
        found = self._client.get(path_of(API, "InferenceService", self._namespace, "a"))
        lease = path_of("coordination.k8s.io/v1", "Lease", self._namespace, "octavo-operator")
        held = (self._client.find(lease) or {}).get("spec", {})
        events = self._client.get(path_of("v1", "Event", self._namespace))["items"]
        return (
            bool(found.get("status", {}).get("conditions"))
            and held.get("renewTime", "") > held.get("acquireTime", "")
            and any(each["involvedObject"]["kind"] == "InferenceService" for each in events)
        )

    def end(self) -> None:
        self._daemon.stop()
        self._client.delete(path_of("v1", "Namespace", None, self._namespace))
        for kind in ("ClusterRoleBinding", "ClusterRole"):
            self._client.delete(path_of(RBAC, kind, None, self._namespace))


def test_none_is_superfluous_and_none_is_missing(
    cluster: Cluster, client: Client, namespace: str, operator: Operator
) -> None:
    rules = all_rules()
    cases = [("nothing", rules), *without_each(rules)]
    assert len(cases) > 20
    operator.stop()  # it would do the work of those that may not
    try:

        def outcome(index: int) -> tuple[str, str]:
            removed, left = cases[index]
            scene = Scene(cluster, client, f"{namespace}-{index}", left)
            try:
                wait_for(
                    f"what comes without {removed}",
                    lambda: scene.complaint() or scene.works(),
                    SECONDS,
                )
                return removed, scene.complaint()
            finally:
                scene.end()

        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = dict(pool.map(outcome, range(len(cases))))
    finally:
        operator.restart()
    assert found.pop("nothing") == ""
    superfluous = [removed for removed, complaint in found.items() if not complaint]
    assert superfluous == []
    for removed, complaint in found.items():
        print(f"{removed}: {complaint[:200]}")


@pytest.mark.parametrize("word", ["*", "secrets", "delete", "escalate", "impersonate", "bind"])
def test_what_it_must_never_have(word: str) -> None:
    for rule in all_rules():
        assert word not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
