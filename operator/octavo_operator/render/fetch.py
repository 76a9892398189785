"""The container before the server's: it fetches the model from the Hub, and says how far it is.

What a pod waits for is seen then (ModelReady: 41% of 15.30 GiB), and a mistake in the model's name
or token ends it before a GPU's memory is touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from octavo_operator import names
from octavo_operator.model_uri import HubModel
from octavo_operator.render.merge import merge
from octavo_operator.spec import InferenceService

_SHARED = (
    "image",
    "imagePullPolicy",
    "env",
    "envFrom",
    "volumeMounts",
    "workingDir",
    "securityContext",
    "terminationMessagePolicy",
)
"""What it has of the server's container, podTemplate included: proxies and certificates, say."""

_FLAGS = ("--revision", "--download-dir", "--load-format")
"""Those of `octavo serve` that say what is fetched, and where to."""

_KEPT_FROM_IT = ("OCTAVO_API_KEY",)


def with_fetch(service: InferenceService, pod: dict[str, Any]) -> dict[str, Any]:
    """The pod spec (podTemplate merged in) with the container before the others.

    After the manifest's own init containers, since those may prepare something for it; one of its
    name there is merged over it, in its place. None where the server is somebody else's (another
    command), and none of a model that is not on the Hub.
    """
    if not isinstance(service.spec.model.source, HubModel):
        return pod
    server = _named(pod.get("containers"), names.CONTAINER)
    command = server.get("command")
    if not isinstance(command, list) or command[:2] != ["octavo", "serve"] or len(command) != 3:
        return pod
    fetch: dict[str, Any] = {
        "name": names.FETCH_CONTAINER,
        "command": ["octavo", "fetch", command[2]],
        "args": [*_flags(server.get("args")), f"--progress-port={names.PORT}"],
        **{key: copy.deepcopy(server[key]) for key in _SHARED if server.get(key)},
    }
    if isinstance(fetch.get("env"), list):
        fetch["env"] = [
            each
            for each in fetch["env"]
            if not (isinstance(each, Mapping) and each.get("name") in _KEPT_FROM_IT)
        ]
    if resources := _resources(server.get("resources")):
        fetch["resources"] = resources
    before = pod.get("initContainers")
    if not isinstance(before, list):
        return {**pod, "initContainers": [fetch]}
    if not _named(before, names.FETCH_CONTAINER):
        return {**pod, "initContainers": [*before, fetch]}
    return {
        **pod,
        "initContainers": [
            _overlaid(fetch, each) if _is(each, names.FETCH_CONTAINER) else each for each in before
        ],
    }


def _overlaid(fetch: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's item over ours; another program has no use for our arguments."""
    base = {key: value for key, value in fetch.items() if key != "args" or not own.get("command")}
    return merge(base, own)


def _resources(server: Any) -> dict[str, Any]:
    """CPU and memory as the server's, so that a quota or policy that asks for them has them; no
    device. A pod's request is the larger of the two, not their sum.
    """
    if not isinstance(server, Mapping):
        return {}
    found = {
        kind: {name: amount for name, amount in amounts.items() if "/" not in name}
        for kind, amounts in server.items()
        if isinstance(amounts, Mapping)
    }
    return {kind: amounts for kind, amounts in found.items() if amounts}


def _flags(arguments: Any) -> Iterator[str]:
    """Of the server's arguments those that `octavo fetch` takes too, in both spellings."""
    words: Iterator[Any] = iter(arguments if isinstance(arguments, list) else ())
    for word in words:
        flag, equals, _ = str(word).partition("=")
        if flag in _FLAGS:
            yield str(word)
            if not equals and (value := next(words, None)) is not None:
                yield str(value)


def _named(containers: Any, name: str) -> Mapping[str, Any]:
    """{} if there is none."""
    items = containers if isinstance(containers, list) else ()
    return next((each for each in items if _is(each, name)), {})


def _is(container: Any, name: str) -> bool:
    return isinstance(container, Mapping) and container.get("name") == name
