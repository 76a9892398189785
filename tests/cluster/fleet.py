"""Some services whose pods are replaced again and again, and how far that is."""

from __future__ import annotations

import zlib

from .cluster import wait_for
from .history import CHILDREN, History, serves
from .hollow import Behaviour
from .kube_api import Client, Object, path_of
from .test_e2e import API, condition, make, manifest


def slow(pod: Object) -> Behaviour:
    """Ready after 0.3 to 1.8 s, each in its own time, so that a rollout has many moments."""
    own = zlib.crc32(pod["metadata"]["uid"].encode()) % 1500 / 1000
    return Behaviour(start_after=0.1, ready_after=0.2 + own, stop_after=0.1)


class Fleet:
    """Hollow services of `replicas` pods; the number that a rollout changes is maxModelLen."""

    def __init__(self, client: Client, namespace: str, services: int, replicas: int) -> None:
        self._client, self._namespace = client, namespace
        self.names = [f"s{index}" for index in range(services)]
        self.where = path_of(API, "InferenceService", namespace)
        self.replicas = replicas
        self.pods = services * replicas
        self._length = 0

    def make(self, length: int) -> None:
        self._length = length
        for name in self.names:
            made = manifest(name, {"maxModelLen": length}, replicas=self.replicas)
            make(self._client, self._namespace, made)

    def change(self, length: int) -> None:
        self._length = length
        for name in self.names:
            change = {"spec": {"engine": {"maxModelLen": length}}}
            self._client.patch(f"{self.where}/{name}", change)

    def serving(self) -> int:
        """How many pods with the newest settings serve."""
        found = self._client.list(path_of("v1", "Pod", self._namespace))
        wanted = f"--max-model-len={self._length}"
        return sum(serves(pod) and wanted in pod["spec"]["containers"][0]["args"] for pod in found)

    def wait_for(self, serving: int) -> None:
        """Until so many pods with the newest settings serve, and not all do."""
        wait_for(f"{serving} new pods", lambda: self.serving() >= serving, 60, self.serving)
        self.assert_rolling()

    def assert_rolling(self) -> None:
        serving = self.serving()
        assert serving < self.pods, f"the rollout is over: all {serving} pods serve"

    def settled(self) -> bool:
        for each in self._client.list(self.where):
            status = each.get("status", {})
            if (
                status.get("observedGeneration") != each["metadata"]["generation"]
                or status.get("readyReplicas") != self.replicas
                or not status.get("rollout", {}).get("complete")
                or condition(each, "Ready").get("status") != "True"
            ):
                return False
        return True

    def wait_until_settled(self, seconds: float) -> None:
        wait_for("all services", self.settled, seconds, self._states)

    def judge(self, history: History) -> None:
        """All is as the last change wants it, and never was as it must not be."""
        assert history.lies() == []
        assert history.doubled(self.replicas) == []
        assert history.claims() > len(self.names)
        for kind, version in CHILDREN.items():
            found = self._client.list(path_of(version, kind, self._namespace))
            assert sorted(each["metadata"]["name"] for each in found) == sorted(self.names), kind
        assert len(self._client.list(path_of("v1", "Pod", self._namespace))) == self.pods
        assert self.serving() == self.pods

    def _states(self) -> list[object]:
        found = self._client.list(self.where)
        return [
            (each["metadata"]["name"], each["metadata"]["generation"], each.get("status"))
            for each in found
        ]
