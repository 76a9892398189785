"""The group is ours alone, or not ours at all."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from octavo_operator.kube import KubeError
from octavo_operator.metrics_api.registration import (
    Place,
    Plan,
    Registration,
    decide_registration,
    render_api_service,
)

PLACE = Place("octavo-system", "octavo-metrics-api")
CA = b"the CA"


def ours(version: str, authorities: bytes = CA, **spec: Any) -> dict[str, Any]:
    made = render_api_service(version, PLACE, authorities)
    made["metadata"] |= {"uid": f"uid-{version}", "resourceVersion": "7"}
    made["spec"] |= spec
    return made


def others(version: str, group: str = "custom.metrics.k8s.io") -> dict[str, Any]:
    service = {"namespace": "monitoring", "name": "adapter"}
    return {
        "metadata": {"name": f"{version}.{group}", "uid": "x"},
        "spec": {"group": group, "version": version, "service": service},
    }


def names_of(objects: Any) -> list[str]:
    return [each["metadata"]["name"].partition(".")[0] for each in objects]


def test_both_versions_are_registered_and_the_later_is_preferred() -> None:
    plan = decide_registration([others("v1beta1", "external.metrics.k8s.io")], PLACE, CA)
    assert names_of(plan.created) == ["v1beta2", "v1beta1"] and not plan.taken
    specs = [each["spec"] for each in plan.created]
    assert specs[0]["versionPriority"] > specs[1]["versionPriority"]
    for spec in specs:
        assert base64.b64decode(spec["caBundle"]) == CA
        assert "insecureSkipTLSVerify" not in spec
        assert spec["service"] == {
            "namespace": "octavo-system", "name": "octavo-metrics-api", "port": 443,
        }  # fmt: skip


def test_what_is_as_it_should_be_is_left_alone() -> None:
    plan = decide_registration([ours("v1beta1"), ours("v1beta2")], PLACE, CA)
    assert not (plan.created or plan.replaced or plan.withdrawn or plan.taken)


@pytest.mark.parametrize(
    "changed",
    [
        {"caBundle": "b2xk"},
        {"insecureSkipTLSVerify": True},
        {"versionPriority": 1},
        {"service": {"namespace": "octavo-system", "name": "octavo-metrics-api", "port": 1}},
    ],
)
def test_what_differs_is_kept_current(changed: dict[str, Any]) -> None:
    plan = decide_registration([ours("v1beta1"), ours("v1beta2", **changed)], PLACE, CA)
    assert names_of(plan.replaced) == ["v1beta2"] and not plan.created
    (replaced,) = plan.replaced
    assert replaced["metadata"]["resourceVersion"] == "7"
    assert "insecureSkipTLSVerify" not in replaced["spec"]


@pytest.mark.parametrize("version", ["v1beta1", "v1beta2", "v1"])
def test_anothers_version_keeps_all_of_ours_away(version: str) -> None:
    plan = decide_registration([others(version)], PLACE, CA)
    assert not plan.created and not plan.withdrawn
    assert plan.taken == (
        f"the APIService {version}.custom.metrics.k8s.io leads to the Service monitoring/adapter"
    )
    ones = [ours(each) for each in ("v1beta1", "v1beta2") if each != version]
    plan = decide_registration([*ones, others(version)], PLACE, CA)
    assert plan.withdrawn == tuple(ones) and not plan.replaced


def test_the_api_servers_own_is_anothers() -> None:
    own = others("v1beta1")
    del own["spec"]["service"]
    assert "the API server's own" in decide_registration([own], PLACE, CA).taken


def test_they_go_with_their_cluster_role() -> None:
    owner = {"metadata": {"name": "octavo-metrics-api", "uid": "u1"}}
    plan = decide_registration([ours("v1beta1")], PLACE, CA, owner)
    for each in (*plan.created, *plan.replaced):
        (reference,) = each["metadata"]["ownerReferences"]
        assert (reference["kind"], reference["uid"]) == ("ClusterRole", "u1")
    live = [{**each, "metadata": {**each["metadata"], "resourceVersion": "8"}}
            for each in (*plan.created, *plan.replaced)]  # fmt: skip
    assert decide_registration(live, PLACE, CA, owner) == Plan()
    # Installed again: another one of that name.
    owner["metadata"]["uid"] = "u2"
    again = decide_registration(live, PLACE, CA, owner).replaced
    assert [each["metadata"]["ownerReferences"][0]["uid"] for each in again] == ["u2", "u2"]
    assert {each["metadata"]["resourceVersion"] for each in again} == {"8"}


class ApiServices:
    def __init__(self, *found: dict[str, Any]) -> None:
        self.found = list(found)
        self.done: list[str] = []
        self.code = 0

    async def list(self, *_: Any) -> list[dict[str, Any]]:
        return self.found

    async def _do(self, what: str, manifest: dict[str, Any]) -> None:
        assert manifest["apiVersion"] == "apiregistration.k8s.io/v1"
        if self.code:
            raise KubeError(self.code, "", "")
        self.done.append(f"{what} {manifest['metadata']['name'].partition('.')[0]}")

    async def create(self, manifest: dict[str, Any]) -> None:
        await self._do("create", manifest)

    async def replace(self, manifest: dict[str, Any]) -> None:
        await self._do("replace", manifest)

    async def delete(self, manifest: dict[str, Any]) -> None:
        await self._do("delete", manifest)


async def test_another_that_comes_and_goes() -> None:
    kube: Any = ApiServices()
    registration = Registration(kube, PLACE)
    await registration.look(CA)
    assert kube.done == ["create v1beta2", "create v1beta1"]
    kube.found = [ours("v1beta2"), others("v1beta1")]
    await registration.look(CA)
    assert kube.done[2:] == ["delete v1beta2"] and "monitoring/adapter" in registration.taken
    kube.found = []
    await registration.look(CA)
    assert kube.done[3:] == ["create v1beta2", "create v1beta1"] and not registration.taken


@pytest.mark.parametrize("code", [404, 409])
async def test_the_other_replica_was_quicker(code: int) -> None:
    kube: Any = ApiServices(ours("v1beta1", b"old"))
    kube.code = code
    await Registration(kube, PLACE).look(CA)
    kube.code = 403
    with pytest.raises(KubeError):
        await Registration(kube, PLACE).look(CA)
