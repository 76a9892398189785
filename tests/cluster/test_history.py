"""The judge of the fault tests: what it must find, and what it must let pass."""

from __future__ import annotations

from typing import Any

from tests.cluster.history import SERVICE_LABEL, History, Moment


def service(version: int, ready: str, generation: int = 1, observed: int = 1) -> Moment:
    claim = {"type": "Ready", "status": ready, "observedGeneration": observed}
    item = {
        "metadata": {"name": "s0", "generation": generation},
        "spec": {"engine": {"maxModelLen": 511 + generation}},
        "status": {"conditions": [claim]},
    }
    return Moment(version, "InferenceService", item)


def pod(version: int, ready: str, length: int = 512, **more: Any) -> Moment:
    metadata = {"name": "p", "uid": f"p{length}", "labels": {SERVICE_LABEL: "s0"}, **more}
    containers = [{"args": [f"--max-model-len={length}"]}]
    status = {"conditions": [{"type": "Ready", "status": ready}]}
    item = {"metadata": metadata, "spec": {"containers": containers}, "status": status}
    return Moment(version, "Pod", item)


def child(version: int, kind: str, uid: str, replicas: int = 1, gone: bool = False) -> Moment:
    metadata = {"name": f"s0-{uid}", "uid": uid, "labels": {SERVICE_LABEL: "s0"}}
    return Moment(version, kind, {"metadata": metadata, "spec": {"replicas": replicas}}, gone)


def test_ready_without_a_pod_that_serves_is_a_lie_whatever_the_order_of_arrival() -> None:
    assert History([service(2, "True"), pod(1, "True")]).lies() == []
    assert History([service(2, "False"), pod(1, "False")]).lies() == []
    for bad in (pod(1, "False"), pod(3, "True"), pod(1, "True", deletionTimestamp="now")):
        (lie,) = History([bad, service(2, "True")]).lies()
        assert "s0" in lie
    gone = Moment(3, "Pod", pod(3, "True").item, gone=True)
    assert len(History([pod(1, "True"), service(2, "True"), gone]).lies()) == 1


def test_ready_for_settings_that_no_pod_has_is_a_lie() -> None:
    old, new = pod(1, "True"), pod(1, "True", 513)
    changed = service(2, "True", generation=1), service(3, "True", generation=2, observed=1)
    assert History([old, *changed]).lies() == []  # not said of the new ones yet
    claims = service(4, "True", generation=2, observed=2)
    assert len(History([old, *changed, claims]).lies()) == 1
    assert History([old, new, *changed, claims]).lies() == []
    assert History([old, *changed, claims]).claims() == 3


def test_what_happened_in_a_gap_is_not_judged() -> None:
    moments = [pod(1, "True"), service(2, "True"), pod(5, "False"), service(6, "False")]
    assert len(History(moments).lies()) == 1
    assert History(moments, [(3, 7)]).lies() == []
    assert len(History([*moments, service(9, "True")], [(3, 7)]).lies()) == 1


def test_a_child_made_twice_is_found_though_one_went_again() -> None:
    once = [service(1, "True"), child(2, "Deployment", "a"), child(3, "Deployment", "a")]
    assert History(once).doubled(1) == []
    went = [*once, child(4, "Deployment", "a", gone=True), child(5, "Deployment", "b")]
    assert History(went).doubled(1) == ["Deployment s0: 2 made where 1 should be"]


def test_more_replica_sets_than_settings_and_more_pods_than_wanted_are_found() -> None:
    sets = [child(2, "ReplicaSet", "a", 2), child(3, "ReplicaSet", "a", 1)]
    rolled = [service(1, "True"), *sets, service(4, "True", generation=2)]
    assert History([*rolled, child(5, "ReplicaSet", "b", 1)]).doubled(2) == []
    (found,) = History([*rolled, child(5, "ReplicaSet", "b", 2)]).doubled(2)
    assert "wants 3 pods" in found
    (found,) = History([*rolled[:-1], child(5, "ReplicaSet", "b", 1)]).doubled(2)
    assert found == "ReplicaSet s0: 2 made where 1 should be"
