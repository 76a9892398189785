"""What pages tell a reader to apply and to type, on a real control plane."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.test_chart import CHART, helm_program
from tests.cluster.cluster import Cluster, kubectl_path, wait_for
from tests.cluster.hollow import CRASH, Behaviour, steady
from tests.cluster.kube_api import Client, Object, path_of
from tests.cluster.node_agent import Node
from tests.cluster.operator_process import CRDS, Operator
from tests.cluster.test_e2e import API, condition, make, manifest, pods_of, wait_for_condition
from tests.cluster.test_helm import older
from tests.docs.blocks import EXAMPLES, ROOT, Block, blocks, documents, of_kind, whole

pytestmark = pytest.mark.usefixtures("operator")

TEXTS = {str(each): each.text for each in of_kind("manifests")}
TEXTS |= {f"examples/{path.name}": path.read_text(encoding="utf-8") for path in EXAMPLES}
APPLY = ("apply", "--server-side", "--validate=strict", "-f", "-")

CRD = "crd/inferenceservices.octavo.dev"

Shell = Callable[..., str]


@pytest.fixture
def shell(cluster: Cluster, namespace: str, tmp_path: Path) -> Shell:
    """Runs a page's commands as a reader would, in the test's namespace; gives what they print."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "kubectl").symlink_to(kubectl_path(cluster.plane.assets))
    if (helm := helm_program()) is not None:
        (programs / "helm").symlink_to(helm)
    config = json.loads(cluster.kubeconfig.read_text())
    for each in config["contexts"]:
        each["context"]["namespace"] = namespace
    (tmp_path / "kubeconfig").write_text(json.dumps(config))

    def run(text: str, stdin: str = "", check: bool = True) -> str:
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", text],
            env={
                "PATH": f"{programs}:{os.environ['PATH']}",
                "KUBECONFIG": str(tmp_path / "kubeconfig"),
                "HOME": str(tmp_path),
            },
            input=stdin, capture_output=True, text=True, check=False, timeout=90, cwd=ROOT,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def commands(page: str, heading: str) -> list[str]:
    """The shell blocks under a heading."""
    found = [
        each.text
        for each in blocks(ROOT / "docs" / page)
        if each.language == "sh" and each.heading == heading
    ]
    assert found, f"{page} has no commands under {heading}"
    return found


def wait_for_its_pods(client: Client, namespace: str, made: Object) -> None:
    kind, name = made["kind"], made["metadata"]["name"]
    label = {"InferenceService": "octavo.dev/service", "Job": "job-name"}.get(kind)
    if label is None:
        return
    pods = path_of("v1", "Pod", namespace)
    own = path_of(API, "InferenceService", namespace)
    by = {"labelSelector": f"{label}={name}"}
    wait_for(f"pods of {name}", lambda: client.list(pods, **by), 15, lambda: client.list(own))


@pytest.mark.parametrize("where", TEXTS)
def test_each_manifest_is_applied_and_its_pods_are_let_in(
    client: Client, kubectl: Callable[..., Any], namespace: str, where: str
) -> None:
    """In a namespace that enforces Pod Security's level `restricted`, as docs/security.md says."""
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    client.patch(path_of("v1", "Namespace", name=namespace), {"metadata": {"labels": enforced}})
    try:
        kubectl(*APPLY, "-n", namespace, stdin=TEXTS[where])
        for each in documents(TEXTS[where]):
            wait_for_its_pods(client, namespace, each)
    finally:
        for each in documents(TEXTS[where]):
            if each["kind"] == "ClusterRole":
                kubectl("delete", "clusterrole", each["metadata"]["name"], "--ignore-not-found")


def test_a_pod_template_that_wants_more_is_refused_there(client: Client, namespace: str) -> None:
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    client.patch(path_of("v1", "Namespace", name=namespace), {"metadata": {"labels": enforced}})
    make(client, namespace, manifest("a", podTemplate={"spec": {"hostNetwork": True}}))
    found = wait_for_condition(
        client, namespace, "a", lambda each: each.get("reason") == "PodsRefused"
    )
    assert "hostNetwork" in found["message"]


@pytest.mark.parametrize("part", of_kind("part"), ids=str)
def test_each_part_of_a_manifest_is_taken(
    kubectl: Callable[..., Any], namespace: str, part: Block
) -> None:
    kubectl(*APPLY, "--dry-run=server", "-n", namespace, stdin=json.dumps(whole(part)))


def test_a_claim_that_is_missing_is_named(
    client: Client, namespace: str, nodes: Callable[..., Node]
) -> None:
    nodes(gpus=1, script=steady)
    make(client, namespace, manifest("a", model={"uri": "pvc://nowhere/model"}))
    found = wait_for_condition(
        client, namespace, "a", lambda each: each.get("reason") == "Unschedulable"
    )
    assert "nowhere" in found["message"]


def test_the_token_is_asked_for(client: Client, namespace: str, shell: Shell) -> None:
    (create,) = [each for each in commands("gated-models.md", "Gated and private models")
                 if "create secret" in each]  # fmt: skip
    shell(create, stdin="hf_abc\n")
    secret = client.get(path_of("v1", "Secret", namespace, "hub-token"))
    assert {key: base64.b64decode(value) for key, value in secret["data"].items()} == {
        "token": b"hf_abc"
    }


def test_pull_secrets_reach_the_pods(
    client: Client, kubectl: Callable[..., Any], namespace: str, shell: Shell
) -> None:
    page = "private-registry.md"
    (create, _) = commands(page, "The operator, and everybody's default server")
    shell("USER_NAME=a PASSWORD=b\n" + create.replace("octavo-system", namespace))
    secret = client.get(path_of("v1", "Secret", namespace, "registry"))
    assert secret["type"] == "kubernetes.io/dockerconfigjson"
    (patch,) = commands(page, "The servers")
    shell(patch)
    (named,) = [text for where, text in TEXTS.items() if page in where]
    kubectl(*APPLY, "-n", namespace, stdin=named)
    make(client, namespace, manifest("unnamed"))
    for name in ("qwen3-06b", "unnamed"):
        (pod,) = wait_for("a pod", lambda name=name: pods_of(client, namespace, name))
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]


def test_pods_are_replaced_by_hand(
    client: Client, namespace: str, nodes: Callable[..., Node], shell: Shell
) -> None:
    """`kubectl rollout restart`, which docs/gated-models.md names, is nothing that is set back."""
    nodes(gpus=2, script=steady)
    make(client, namespace, manifest("a"))
    wait_for_condition(client, namespace, "a", lambda each: each.get("status") == "True")
    (before,) = pods_of(client, namespace, "a")
    shell("kubectl rollout restart deployment/a; kubectl rollout status deployment/a --timeout=30s")

    def replaced() -> bool:
        pods = pods_of(client, namespace, "a")
        return len(pods) == 1 and pods[0]["metadata"]["uid"] != before["metadata"]["uid"]

    wait_for("another pod", replaced)
    wait_for_condition(client, namespace, "a", lambda each: each.get("status") == "True")
    rollout = client.get(path_of(API, "InferenceService", namespace, "a"))["status"]["rollout"]
    assert rollout["complete"] and rollout["reason"] == "created"


def test_services_are_moved_a_few_at_a_time(
    client: Client, namespace: str, nodes: Callable[..., Node], operator: Operator, shell: Shell
) -> None:
    nodes(gpus=8, script=steady)
    for name, team in (("smollm2", "none"), ("b", "search"), ("c", "search"), ("d", "none")):
        one = manifest(name)
        one["metadata"]["labels"] = {"team": team}
        make(client, namespace, one)
    for name in ("smollm2", "b", "c", "d"):
        wait_for_condition(client, namespace, name, lambda each: each.get("status") == "True")

    def images() -> dict[str, str]:
        pods = client.list(path_of("v1", "Pod", namespace), labelSelector="octavo.dev/service")
        return {
            each["metadata"]["labels"]["octavo.dev/service"]: each["spec"]["containers"][0]["image"]
            for each in pods
            if "deletionTimestamp" not in each["metadata"]
        }

    def waiting(name: str) -> str:
        status = client.get(path_of(API, "InferenceService", namespace, name))["status"]
        return str(status["rollout"].get("waiting", ""))

    old, new = "octavo-server:0.1.0", "octavo-server:newer"
    look, one, some = commands("upgrading.md", "Move services, a few at a time")
    try:
        operator.restart(f"--image={new}")
        wait_for("what waits", lambda: all(new in waiting(name) for name in "bcd"))
        table = shell(look)
        (row,) = [line for line in table.splitlines() if line.split()[:2] == [namespace, "b"]]
        assert row.split()[2] == "true" and new in row
        shell(one)
        one_of_them = {"smollm2": new, "b": old, "c": old, "d": old}
        wait_for("its image, alone", lambda: images() == one_of_them, 30, images)
        shell(some)
        assert images() == {"smollm2": new, "b": new, "c": new, "d": old}
        # Taking the request away asks for nothing.
        shell("kubectl annotate ois b octavo.dev/upgrade-")
        operator.restart()
        wait_for("what waits", lambda: old in waiting("b"))
        assert images()["b"] == new
    finally:
        operator.restart()


def said_of(cluster: Cluster, namespace: str, name: str) -> set[str]:
    return {each["reason"] for each in cluster.events(namespace, name)}


def test_the_move_ends_where_new_pods_fail(
    cluster: Cluster, client: Client, namespace: str, nodes: Callable[..., Node],
    operator: Operator, shell: Shell,
) -> None:  # fmt: skip
    def script(pod: Object) -> Behaviour:
        broken = pod["spec"]["containers"][0]["image"].endswith(":broken")
        return CRASH if broken else Behaviour()

    nodes(gpus=4, script=script, backoff_seconds=0.2)
    for name in "bc":
        one = manifest(name)
        one["metadata"]["labels"] = {"team": "search"}
        make(client, namespace, one)
    for name in "bc":
        wait_for_condition(client, namespace, name, lambda each: each.get("status") == "True")
    some = commands("upgrading.md", "Move services, a few at a time")[2]
    try:
        operator.restart("--image=octavo-server:broken")
        said = shell(some)
        assert "inferenceservice.octavo.dev/b annotated" in said, said
        assert "inferenceservice.octavo.dev/c annotated" not in said, said
        assert "\nrolled back: pods with the new settings fail (CrashLoopBackOff" in said, said
        own = path_of(API, "InferenceService", namespace, "b")
        assert client.get(own)["status"]["rollout"]["reason"].startswith("rolled back")
        wait_for("the event", lambda: "RolledBack" in said_of(cluster, namespace, "b"))
        (pod,) = [
            each
            for each in pods_of(client, namespace, "b")
            if "deletionTimestamp" not in each["metadata"]
        ]
        assert not pod["spec"]["containers"][0]["image"].endswith(":broken")
    finally:
        operator.restart()


@pytest.fixture
def without_crd(
    kubectl: Callable[..., Any], namespace: str, operator: Operator, shell: Shell
) -> Iterator[Callable[[], set[str]]]:
    """A cluster without Octavo; gives the fields of a spec that the CRD has by then."""
    if helm_program() is None:
        pytest.skip("no helm (`make helm`)")
    operator.stop()
    kubectl("delete", "-f", str(CRDS))

    def fields() -> set[str]:
        kubectl("wait", "--for=condition=Established", CRD)
        schema = json.loads(kubectl("get", CRD, "-o", "json").stdout)["spec"]["versions"][0]
        spec = schema["schema"]["openAPIV3Schema"]["properties"]["spec"]
        return set(spec["properties"])

    yield fields
    shell(f"helm uninstall own --namespace {namespace}", check=False)
    kubectl("delete", "-f", str(CRDS), "--ignore-not-found")
    kubectl("apply", "-f", str(CRDS))
    kubectl("wait", "--for=condition=Established", CRD)
    operator.restart()


def test_a_rollback_takes_the_crd_along(
    client: Client, namespace: str, shell: Shell, tmp_path: Path,
    without_crd: Callable[[], set[str]],
) -> None:  # fmt: skip
    where = f"--namespace {namespace}"
    shell(f"helm install own {older(tmp_path)} {where}")
    make_once_served(client, namespace, without_crd)
    upgrade, apply, back = (
        text.replace("octavo-system", namespace)
        .replace("upgrade octavo", "upgrade own")
        .replace("rollback octavo", "rollback own")
        for text in commands("upgrading.md", "Upgrading")
    )
    shell(upgrade)
    assert "suspend" in without_crd()
    shell(back)
    assert "suspend" not in without_crd()
    shell(apply)
    assert "suspend" in without_crd()
    assert client.find(path_of(API, "InferenceService", namespace, "a")) is not None


def before_the_template(folder: Path) -> Path:
    """The chart as it was: the CRD in a folder that Helm installs and never owns, an operator that
    knows no Lease."""
    chart = older(folder)
    (chart / "templates" / "crds.yaml").unlink()
    (chart / "crds").mkdir()
    (chart / "files" / "inferenceservice.yaml").rename(chart / "crds" / "inferenceservice.yaml")
    values = yaml.safe_load((chart / "values.yaml").read_text(encoding="utf-8"))
    del values["crds"]
    (chart / "values.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    schema = json.loads((chart / "values.schema.json").read_text(encoding="utf-8"))
    del schema["properties"]["crds"]
    (chart / "values.schema.json").write_text(json.dumps(schema), encoding="utf-8")
    return chart


@pytest.mark.parametrize("by_kubectl", [False, True], ids=["helm", "kubectl"])
def test_a_crd_is_given_to_the_release(
    client: Client, namespace: str, shell: Shell, tmp_path: Path,
    without_crd: Callable[[], set[str]], by_kubectl: bool,
) -> None:  # fmt: skip
    text = "".join(commands("upgrading.md", "A CRD that is not the release's"))
    text = text.replace("RELEASE=octavo", "RELEASE=own").replace("octavo-system", namespace)
    chart = before_the_template(tmp_path)
    if by_kubectl:
        shell(f"kubectl apply -f {chart / 'crds'}")
        shutil.rmtree(chart / "crds")
    shell(f"helm install own {chart} --namespace {namespace} --set podLabels.a=b")
    make_once_served(client, namespace, without_crd)
    refused = shell(text.splitlines()[-1].replace("$RELEASE", "own")
                    .replace("$NAMESPACE", namespace), check=False)  # fmt: skip
    assert "invalid ownership metadata" in refused, refused
    shell(text)
    assert "suspend" in without_crd()
    live: Object = client.get(path_of("apps/v1", "Deployment", namespace, "own-octavo-operator"))
    assert live["spec"]["replicas"] == 1
    assert live["spec"]["template"]["metadata"]["labels"]["a"] == "b"
    shell(f"helm rollback own 1 --namespace {namespace}")
    shell(f"helm uninstall own --namespace {namespace}")
    # Neither takes the CRD away, nor what people wrote; and it stays the release's.
    assert client.find(path_of(API, "InferenceService", namespace, "a")) is not None
    shell(f"helm install own {CHART} --namespace {namespace}")


def make_once_served(client: Client, namespace: str, fields: Callable[[], set[str]]) -> None:
    """An InferenceService under a CRD of before."""
    assert "suspend" not in fields()
    make(client, namespace, manifest("a"))


def test_conditions_are_looked_at_as_the_page_says(
    client: Client, namespace: str, nodes: Callable[..., Node], shell: Shell
) -> None:
    nodes(gpus=1, script=steady)
    make(client, namespace, manifest("a"))
    wait_for_condition(client, namespace, "a", lambda each: each.get("status") == "True")
    (text,) = commands("troubleshooting.md", "Troubleshooting")
    first, second, _ = text.replace("NAME", "a").splitlines()
    assert "Serving" in shell(first)
    shown = shell(second)
    live = client.get(path_of(API, "InferenceService", namespace, "a"))
    assert condition(live, "Ready")["message"] in shown and "Events:" in shown
