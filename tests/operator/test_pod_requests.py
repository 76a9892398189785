"""What a pod asks of its node."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from octavo_operator.pod_requests import gpus_of, held_by, requests_of


def container(always: bool = False, **requests: str) -> dict[str, Any]:
    return {
        "resources": {"requests": requests},
        **({"restartPolicy": "Always"} if always else {}),
    }


def cpus(**pod_spec: Any) -> Decimal:
    return requests_of(pod_spec).get("cpu", Decimal(0))


def test_containers_run_together_and_init_containers_before() -> None:
    two = [container(cpu="1"), container(cpu="500m")]
    assert cpus(containers=two) == Decimal("1.5")
    assert cpus(containers=two, initContainers=[container(cpu="1"), container(cpu="2")]) == 2
    assert cpus(containers=two, initContainers=[container(cpu="1")]) == Decimal("1.5")


def test_sidecars_run_beside_all_after_them() -> None:
    """The example of KEP-753's section on resources."""
    assert cpus(containers=[container(cpu="1")], initContainers=[container(True, cpu="1")]) == 2
    first = [container(cpu="5"), container(True, cpu="1"), container(cpu="3")]
    assert cpus(containers=[container(cpu="1")], initContainers=first) == 5
    assert cpus(containers=[container(cpu="4")], initContainers=first) == 5
    assert cpus(containers=[container(cpu="1")], initContainers=first[1:]) == 4


def test_a_limit_is_a_request_where_there_is_none() -> None:
    resources = {"limits": {"cpu": "4", "memory": "1Ki"}, "requests": {"cpu": "1"}}
    found = requests_of({"containers": [{"resources": resources}], "overhead": {"memory": "1"}})
    assert found == {"cpu": 1, "memory": 1025}


def test_pods_that_have_not_ended() -> None:
    spec = {"containers": [container(cpu="1"), {}]}
    pods = [{"spec": spec, "status": {"phase": phase}} for phase in ("Running", "Failed")]
    assert held_by([*pods, {"spec": spec}]) == {"cpu": 2, "pods": 2}
    assert held_by([]) == {}


def test_gpus() -> None:
    def limited(name: str) -> dict[str, Any]:
        return {"containers": [{}, {"resources": {"limits": {"cpu": "1", name: "2"}}}]}

    assert gpus_of(limited("nvidia.com/mig-1g.10gb")) == ("nvidia.com/mig-1g.10gb", 2)
    assert gpus_of(limited("amd.com/gpu")) == ("amd.com/gpu", 2)
    assert gpus_of(limited("memory")) == ("", 0)
