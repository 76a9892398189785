"""Every edit that somebody could make to a value that the operator set, as JSON patches. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]

_KEYS = {
    "containers": {"name"},
    "initContainers": {"name"},
    "env": {"name"},
    "volumes": {"name"},
    "volumeMounts": {"mountPath"},
    "topologySpreadConstraints": {"topologyKey", "whenUnsatisfiable"},
    "ports": {"containerPort", "port", "protocol"},
}
"""By list, what tells its items apart (x-kubernetes-list-map-keys)."""

_OTHER_WORDS = {
    "ALL": "NET_RAW",
    "AlwaysAllow": "IfHealthyBudget",
    "ClusterIP": "NodePort",
    "Exists": "Equal",
    "FallbackToLogsOnError": "File",
    "Ingress": "Egress",
    "NoSchedule": "NoExecute",
    "OnRootMismatch": "Always",
    "RollingUpdate": "Recreate",
    "RuntimeDefault": "Unconfined",
    "ScheduleAnyway": "DoNotSchedule",
    "TCP": "UDP",
}
"""Where the API has a few words, another of them."""


NOT_ALONE = {("strategy", "type")}
"""Ends of paths whose edit takes others' places away: one for a patch of its own."""


@dataclass(frozen=True, slots=True)
class Edit:
    """`value` instead of what is rendered at `path`."""

    path: Path
    value: Any

    @property
    def name(self) -> str:
        text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return text[1:]

    def place(self, rendered: Any, live: Any) -> Path:
        """The same path in the live object, whose lists others may have added to."""
        place: Path = ()
        for step in self.path:
            rendered = rendered[step]
            if isinstance(step, int) and isinstance(rendered, dict):
                found = [index for index, each in enumerate(live) if holds(each, rendered)]
                assert len(found) == 1, (self.name, live)
                step = found[0]
            live = live[step]
            place = (*place, step)
        return place

    def operations(self, rendered: Any, live: Any) -> list[dict[str, Any]]:
        """With what must change along, for the whole to be valid."""
        path = self.place(rendered, live)
        edits = [_operation("replace", path, self.value)]
        if path[-2:] == ("strategy", "type"):
            edits.append(_operation("remove", (*path[:-1], "rollingUpdate")))
        if len(path) > 2 and (path[-3], path[-1]) == ("volumeMounts", "name"):
            volume = {"name": self.value, "emptyDir": {}}
            edits.insert(0, _operation("add", (*path[:-5], "volumes", "-"), volume))
        if len(path) > 2 and (path[-3], path[-1]) == ("volumes", "name"):
            pod = path[:-3]
            edits += [
                _operation("replace", (*pod, kind, at, "volumeMounts", mount, "name"), self.value)
                for kind in ("initContainers", "containers")
                for at, container in enumerate(value_at(live, pod).get(kind, ()))
                for mount, each in enumerate(container.get("volumeMounts", ()))
                if each["name"] == value_at(live, path)
            ]
        return edits


def edits_of(rendered: dict[str, Any]) -> list[Edit]:
    """One for every value."""
    return [
        # Another volume in each container, since all edits may be made at once.
        Edit(path, f"{value}-of-{path[-5]}".lower() if _is_mounts(path) else _another(value))
        for path, value in _leaves(rendered)
    ]


def is_key(path: Path) -> bool:
    """Whether another value there makes another item of a list."""
    return len(path) > 2 and isinstance(path[-2], int) and path[-1] in _KEYS.get(str(path[-3]), ())


def _is_mounts(path: Path) -> bool:
    return len(path) > 4 and path[-3] == "volumeMounts" and path[-1] == "name"


def holds(live: Any, ours: Any) -> bool:
    """Whether all that we set is there: in lists of objects among what others may have added."""
    if isinstance(ours, dict):
        return isinstance(live, dict) and all(holds(live.get(key), ours[key]) for key in ours)
    if isinstance(ours, list) and ours and isinstance(ours[0], dict):
        return isinstance(live, list) and all(
            sum(holds(each, one) for each in live) == 1 for one in ours
        )
    if isinstance(ours, list):
        return isinstance(live, list) and list(map(str, live)) == list(map(str, ours))
    return str(live) == str(ours)  # an amount of 1 is kept as "1"


def value_at(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(each, (*path, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _leaves(each, (*path, index))
    else:
        yield path, value


def _another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return _OTHER_WORDS.get(value, f"{value}x")


def _operation(kind: str, path: Path, value: Any = None) -> dict[str, Any]:
    steps = [str(step).replace("~", "~0").replace("/", "~1") for step in path]
    made = {"op": kind, "path": "/" + "/".join(steps)}
    return made if kind == "remove" else {**made, "value": value}
