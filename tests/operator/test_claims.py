"""A claim of one node is found, whatever writes it into the pod."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo_operator.claims import Claims
from octavo_operator.kube import KubeError


class Kept:
    def __init__(self, **claims: dict[str, Any]) -> None:
        self.claims, self.code = claims, 200

    async def get(
        self, _version: str, kind: str, namespace: str, name: str
    ) -> dict[str, Any] | None:
        assert (kind, namespace) == ("PersistentVolumeClaim", "ns")
        if self.code != 200:
            raise KubeError(self.code, "", "")
        return self.claims.get(name)


def claim(*modes: str, has: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"spec": {"accessModes": list(modes)}, "status": {"accessModes": list(has)}}


def template(*volumes: Any) -> dict[str, Any]:
    return {"spec": {"volumes": list(volumes)}}


def volume(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "persistentVolumeClaim": {"claimName": name, **more}}


def bound(kept: Any, pod: dict[str, Any]) -> str | None:
    return asyncio.run(Claims(kept).bound_to_one_node("ns", pod))


def test_the_first_that_one_node_alone_may_mount() -> None:
    kept = Kept(many=claim("ReadWriteMany"), one=claim("ReadWriteOnce"))
    pod = template({"name": "x", "emptyDir": {}}, volume("many"), volume("absent"), volume("one"))
    assert bound(kept, pod) == "one"
    assert bound(kept, template(volume("many"), volume("absent"))) is None


def test_its_volume_knows_better_than_its_wishes() -> None:
    assert (
        bound(Kept(a=claim("ReadWriteOnce", has=("ReadWriteMany",))), template(volume("a"))) is None
    )


def test_of_claims_that_may_not_be_read_those_written_to_count() -> None:
    kept = Kept()
    kept.code = 403
    assert bound(kept, template(volume("models", readOnly=True))) is None
    assert bound(kept, template(volume("models", readOnly=True), volume("cache"))) == "cache"
    kept.code = 503
    with pytest.raises(KubeError):
        bound(kept, template(volume("cache")))


@pytest.mark.parametrize("volumes", [None, "x", ["x"], [{"persistentVolumeClaim": "x"}]])
def test_what_the_api_server_will_refuse_is_none(volumes: Any) -> None:
    assert bound(Kept(), {"spec": {"volumes": volumes}}) is None
