"""Whose change it was, by managedFields."""

from __future__ import annotations

from typing import Any

from octavo_operator.foreign import describe_foreign_change

Fields = dict[str, Any]


def entry(manager: str, fields: Fields, operation: str = "Update", **more: str) -> Fields:
    return {"manager": manager, "operation": operation, "fieldsV1": fields, **more}


def ours(fields: Fields) -> Fields:
    return entry("octavo", fields, "Apply")


def live(*entries: Fields) -> Fields:
    return {"kind": "Deployment", "metadata": {"managedFields": list(entries)}}


IMAGE = {
    "f:spec": {"f:template": {"f:containers": {'k:{"name":"octavo"}': {".": {}, "f:image": {}}}}}
}
REPLICAS = {"f:spec": {"f:replicas": {}}}
BOTH = {"f:spec": {**IMAGE["f:spec"], **REPLICAS["f:spec"]}}


def test_an_edit_is_told_with_its_field_and_its_author() -> None:
    before = live(ours(REPLICAS), entry("kubectl-edit", IMAGE))
    found = describe_foreign_change(before, live(ours(BOTH)))
    assert found == (
        "Deployment: spec.template.containers[octavo].image changed by kubectl-edit; set back"
    )


def test_two_edits_by_two() -> None:
    before = live(ours({}), entry("b", IMAGE), entry("a", REPLICAS))
    found = describe_foreign_change(before, live(ours(BOTH)))
    assert "spec.replicas, spec.template" in found
    assert "by a and b" in found


def test_many_fields_are_counted() -> None:
    many = {"f:spec": {f"f:x{index}": {} for index in range(9)}}
    found = describe_foreign_change(live(ours({}), entry("a", many)), live(ours(many)))
    assert "spec.x4 and 4 more changed" in found


def test_nothing_to_tell() -> None:
    applied = live(ours(BOTH))
    for before in (
        None,
        live(),  # an object without managedFields
        applied,
        live(ours(REPLICAS)),  # a field that a newer operator adds
        live(ours(BOTH), entry("a", IMAGE)),  # shared: the same value
        live(ours(BOTH), entry("kube-controller-manager", REPLICAS, subresource="status")),
        live(ours(BOTH), entry("a", {"f:spec": {"f:paused": {}}})),  # theirs, and stays so
    ):
        assert describe_foreign_change(before, applied) == ""
    notes = {"f:metadata": {"f:annotations": {"f:octavo.dev/revision": {}}}}
    assert describe_foreign_change(live(entry("a", notes)), live(ours(notes))) == ""
