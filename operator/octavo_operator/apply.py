"""Server-side apply of rendered objects, never over an object that belongs to somebody else."""

from __future__ import annotations

from typing import Any

from octavo_operator import conditions, names
from octavo_operator.conditions import WORKLOAD_READY, Problem
from octavo_operator.kube import Kube, KubeError
from octavo_operator.ports import renumber
from octavo_operator.spec import InferenceService


class Refused(Exception):
    """The object was not applied, for a reason that the manifest's owner must hear."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


async def apply(
    kube: Kube, service: InferenceService, manifest: dict[str, Any], live: dict[str, Any] | None
) -> dict[str, Any]:
    """Applies `manifest`; `live` is the object as just read, None if there is none.

    The caller has made sure with `find_conflict` that it is ours. Returns the object as it is now.
    Refused if the API server finds it invalid; KubeError for what a later attempt may mend.
    """
    metadata = {**manifest["metadata"], "ownerReferences": [owner_reference(service)]}
    if live is not None:
        # If it was replaced since it was read, the API server answers 409 instead of merging.
        metadata["uid"] = live["metadata"]["uid"]
        if manifest["kind"] == "Deployment" and "resourceVersion" in live["metadata"]:
            # Neither if it was changed: an operator that was frozen, and lost the lead meanwhile,
            # would bring back pods of before.
            metadata["resourceVersion"] = live["metadata"]["resourceVersion"]
    wanted = {**manifest, "metadata": metadata}
    try:
        try:
            return await _apply_unchanged(kube, wanted, live)
        except KubeError as error:
            if error.code != 422 or live is None or not (ports := renumber(manifest, live)):
                raise
        changed = await kube.change(live, ports)
        if "resourceVersion" in metadata:
            metadata["resourceVersion"] = changed["metadata"]["resourceVersion"]
        return await _apply_unchanged(kube, wanted, changed)
    except KubeError as error:
        what = f"{manifest['kind']} {service.name}"
        if error.code in (400, 422) or "failed to create typed patch object" in str(error):
            # The last is how an unknown field or a field of the wrong type is refused, with code
            # 500.
            raise Refused(
                Problem(
                    WORKLOAD_READY,
                    conditions.INVALID_POD_TEMPLATE
                    if manifest["kind"] == "Deployment"
                    else conditions.OBJECT_REFUSED,
                    f"the API server refuses the {what}; what runs stays: {error}",
                )
            ) from error
        if error.code == 403:
            raise Refused(
                Problem(WORKLOAD_READY, conditions.FORBIDDEN, f"the {what} is not allowed: {error}")
            ) from error
        raise


async def _apply_unchanged(
    kube: Kube, wanted: dict[str, Any], live: dict[str, Any] | None
) -> dict[str, Any]:
    """`kube.apply`; once more, unconditionally, if what changed since `live` was read is not ours.

    Others may write all the time (controllers the status, people labels): asking for a version that
    stays would starve. What is left to chance is the moment between the second look and the apply.
    """
    try:
        return await kube.apply(wanted)
    except KubeError as error:
        metadata = dict(wanted["metadata"])
        if error.code != 409 or live is None or metadata.pop("resourceVersion", None) is None:
            raise
        now = await kube.get(
            wanted["apiVersion"], wanted["kind"], metadata["namespace"], metadata["name"]
        )
        if now is None or _ours(now) != _ours(live):
            raise
        return await kube.apply({**wanted, "metadata": metadata})


def _ours(live: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """What tells one template of ours from another."""
    metadata = live["metadata"]
    annotations = metadata.get("annotations") or {}
    ours = {key: value for key, value in annotations.items() if key.startswith(names.GROUP)}
    return metadata["uid"], ours


def owner_reference(service: InferenceService) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": service.name,
        "uid": service.uid,
        "controller": True,
        # True would need update rights on inferenceservices/finalizers where owner references are
        # policed, and only makes foreground deletion wait.
        "blockOwnerDeletion": False,
    }


def find_conflict(service: InferenceService, live: dict[str, Any]) -> str | None:
    """Why `live` is not this service's, in a sentence; None if it is, or is an orphan of ours."""
    metadata = live["metadata"]
    what = f"{live.get('kind', 'object')} {metadata['name']}"
    owners = [each for each in metadata.get("ownerReferences") or [] if each.get("controller")]
    if owners:
        owner = owners[0]
        if owner["uid"] == service.uid:
            return None
        if (owner["kind"], owner["name"]) == (names.KIND, service.name):
            return f"the {what} belongs to a deleted {names.KIND} of this name and is going"
        return (
            f"the {what} exists and belongs to {owner['kind']} {owner['name']}; give this "
            f"{names.KIND} another name"
        )
    labels = metadata.get("labels") or {}
    if labels.get(names.SERVICE_LABEL) == service.name:
        return None
    return (
        f"a {what} exists that Octavo did not make; delete it or give this {names.KIND} another "
        "name"
    )
